"""Audio files in and out: decoding, resampling, channels, and atomic 16-bit writing."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from hiermusic.errors import UserError, replacing

if TYPE_CHECKING:
    import soundfile

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
_BLOCK = 1 << 20  # frames per read: headers may promise any length, so memory follows what really decodes
# libsndfile shortens what it promises to what a cut file holds, and tells only its log: chunk sizes in bytes
_CUT = re.compile(r"^\s*(?:data|SSND|FORM|riff|Riff size|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN = 0x7FFFF000  # sizes from here on are what programs write that do not know the length yet
_HEADER = 1024  # programs that count a header, or part of it, as sound are off by less
_COMPLETE = 0.9  # share of the header's length that must decode; mp3 headers are often a few frames off


@dataclass(frozen=True)
class AudioInfo:
    """What a file's header promises: length in seconds, sample rate in Hz, number of channels."""

    seconds: float
    sample_rate: int
    channels: int


def probe(path: str | Path) -> AudioInfo:
    """Reads the header of an audio file without decoding it.

    Raises UserError for what is missing, empty or not audio.
    """
    with _open(path) as file:
        return AudioInfo(_promised(file) / file.samplerate, file.samplerate, file.channels)


def read(
    path: str | Path, sample_rate: int | None = None, channels: int | None = None
) -> tuple[Float[np.ndarray, "L C"], int]:
    """Decodes a whole audio file to float32 in about [-1, 1].

    Args:
      path: a file of any format libsndfile decodes (wav, flac, ogg, mp3, aiff, ...).
      sample_rate: Hz to resample to; None keeps the file's own.
      channels: number of channels, by the rule of `to_channels`; None keeps the file's own.

    Returns:
      wav_LC and its sample rate in Hz.

    Raises:
      UserError: missing, a directory, empty, not audio, truncated, or holding samples that are not finite.
    """
    import soundfile

    with _open(path) as file:
        promised, rate = _promised(file), file.samplerate
        whole = promised == file.frames
        blocks = []
        try:
            while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
                blocks.append(block)
        except soundfile.LibsndfileError as error:
            raise UserError(f"{path}: decoding breaks off ({error.error_string}); truncated? Get it again.") from None
    if not blocks:
        raise UserError(f"{path}: no sample could be decoded; truncated? Get it again.")
    wav_LC = np.concatenate(blocks)
    if len(wav_LC) < _COMPLETE * promised or not whole:
        got, said = len(wav_LC) / rate, promised / rate
        raise UserError(f"{path}: truncated, {got:.1f} s decode of the {said:.1f} s in its header; get it again.")
    if not np.isfinite(wav_LC).all():
        raise UserError(f"{path}: holds NaN or infinite samples; export it again from its source.")
    if channels is not None:
        wav_LC = to_channels(wav_LC, channels)
    if sample_rate is not None:
        wav_LC, rate = resample(wav_LC, rate, sample_rate), sample_rate
    return wav_LC, rate


def write(path: str | Path, wav_LC: Float[np.ndarray, "L C"], sample_rate: int) -> None:
    """Writes a 16-bit PCM wav file, complete or not at all.

    Args:
      path: where; missing folders are made, an existing file is replaced.
      wav_LC: float samples, clipped to [-1, 1].
      sample_rate: Hz.

    Raises:
      UserError: samples that are not finite, a place that cannot be written, or a full disk.
    """
    import soundfile

    path = Path(path)
    if not np.isfinite(wav_LC).all():
        raise UserError(f"{path}: not written, the sound holds NaN or infinite samples.")
    # 32768, the number decoders divide by, so that writing what was read changes nothing.
    pcm_LC = np.clip(np.rint(np.asarray(wav_LC) * 32768.0), -32768, 32767).astype(np.int16)
    whole = io.BytesIO()  # libsndfile does not tell a full disk from other failures, Python does
    soundfile.write(whole, pcm_LC, sample_rate, subtype="PCM_16", format="WAV")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(whole.getbuffer())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place.") from None


def resample(wav_LC: Float[np.ndarray, "L C"], sr_from: int, sr_to: int) -> Float[np.ndarray, "M C"]:
    """Changes the sample rate (soxr, high quality): L samples become ceil(L * sr_to / sr_from)."""
    if sr_from == sr_to:
        return wav_LC
    import soxr

    length = -(-len(wav_LC) * sr_to // sr_from)
    out_MC = soxr.resample(np.asarray(wav_LC, np.float32), sr_from, sr_to, quality="HQ")[:length]
    # soxr rounds the length its own way; a missing last sample is held.
    return np.pad(out_MC, ((0, length - len(out_MC)), (0, 0)), mode="edge" if len(out_MC) else "constant")


def to_channels(wav_LC: Float[np.ndarray, "L C"], channels: int) -> Float[np.ndarray, "L D"]:
    """Changes the number of channels: the mean of all of them, repeated; the same number is left alone."""
    if wav_LC.shape[1] == channels:
        return wav_LC
    return np.repeat(wav_LC.mean(axis=1, keepdims=True), channels, axis=1)


def _promised(file: "soundfile.SoundFile") -> int:
    """Frames the header speaks of, be they there or not."""
    for said, held in (map(int, sizes) for sizes in _CUT.findall(file.extra_info)):
        if held + _HEADER < said < _UNKNOWN:
            return round(file.frames * said / max(held, 1))
    return file.frames


def _open(path: str | Path) -> "soundfile.SoundFile":
    import soundfile

    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: is a directory; name an audio file.")
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path.")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty (0 bytes); get it again.")
    try:
        file = soundfile.SoundFile(path)
    except (OSError, soundfile.LibsndfileError) as error:
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or error
        raise UserError(f"{path}: not readable as audio ({reason}); convert it to wav, flac, ogg or mp3.") from None
    if file.frames == 0:
        file.close()
        raise UserError(f"{path}: holds no samples; get it again.")
    return file
