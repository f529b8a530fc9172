"""Audio files in and out: decoding, resampling, channels, and atomic 16-bit writing."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from hiermusic.audio import containers
from hiermusic.errors import UserError, is_passing, replacing

if TYPE_CHECKING:
    import soundfile

EXTENSIONS = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif")
_BLOCK = 1 << 20  # frames per read: headers may promise any length, so memory follows what really decodes
# libsndfile shortens what it promises to what a cut file holds, and tells only its log: chunk sizes in bytes
_CUT = re.compile(r"^\s*(?:data|SSND|FORM|riff|Riff size|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN = 0x7FFFF000  # sizes from here on are what programs write that do not know the length yet
_ENDLESS = 1 << 62  # frames from here on are what libsndfile says of a FLAC stream whose header says nothing
_HEADER = 1024  # programs that count a header, or part of it, as sound are off by less
_MISSING = 0.25  # seconds, or this share of a short file's, that may be missing: headers are a few frames off
RATES = (1000, 1_000_000)  # Hz that recordings have; a header that says less makes hours of seconds
_MOST_SECONDS, _MOST_SAMPLES = 2 * 3600, 1 << 29  # of one file, as its memory is four bytes a sample
_INTEGERS = 16.0  # float samples beyond this were never meant to lie in [-1, 1]
_CANCELLED = 0.1  # of the channels' level that their mean must keep


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
      UserError: missing, a directory, empty, not audio, truncated, longer than 2 hours or 2^29 samples, of a rate that
        no recording has, or holding samples that are not finite or of integers.
      OSError: the machine's own fault (`errors.is_passing`), which says nothing about the file.
    """
    with _open(path) as file:
        _check_size(path, file)
        rate = file.samplerate
        promised = _promised(file)
        wav_LC = _decoded(path, file)
        whole, kind = promised == file.frames, file.format
    if kind == "MP3" and (frames := containers.mp3_frames(path)):
        _check_frames(path, frames, len(wav_LC) / rate, rate)  # the length that libsndfile promises is a guess
    elif not whole or promised - len(wav_LC) > _MISSING * min(rate, promised):
        got, said = len(wav_LC) / rate, promised / rate
        raise UserError(f"{path}: truncated, {got:.1f} s decode of the {said:.1f} s in its header; get it again.")
    if kind == "OGG" and (lacking := containers.ogg_fault(path)):
        raise UserError(f"{path}: truncated, {lacking}; get it again.")
    if wrong := fault(wav_LC):
        raise UserError(f"{path}: {wrong}")
    if channels is not None:
        wav_LC = to_channels(wav_LC, channels)
    if sample_rate is not None:
        wav_LC, rate = resample(wav_LC, rate, sample_rate), sample_rate
    return wav_LC, rate


def fault(wav_LC: Float[np.ndarray, "L C"]) -> str | None:
    """Why samples are none that can be used, and what to do: they are not finite, or integers; None where they are."""
    peak = max(-float(wav_LC.min()), float(wav_LC.max())) if wav_LC.size else 0.0
    if not np.isfinite(peak):
        return "holds NaN or infinite samples; export it again from its source."
    if peak > _INTEGERS:
        return (
            f"has float samples that reach {peak:,.0f} where full scale is 1 (integers?); divide them, or export it "
            "again as 16-bit."
        )
    return None


def oddity(wav_LC: Float[np.ndarray, "L C"]) -> str | None:
    """In a few words, what a listener would not expect of a sound that can be used: channels that cancel when mixed."""
    levels, mixed, count = 0.0, 0.0, 0
    for start in range(0, len(wav_LC), _BLOCK):
        block_LC = wav_LC[start : start + _BLOCK]
        levels += float(np.square(block_LC).mean(axis=1).sum(dtype=np.float64))
        mixed += float(np.square(block_LC.mean(axis=1)).sum(dtype=np.float64))
        count += len(block_LC)
    if not count or mixed >= _CANCELLED**2 * levels:
        return None
    kept = f"{10 * np.log10(mixed / levels):.0f} dB" if mixed else "nothing"
    return f"its channels cancel each other (their mean keeps {kept} of their level): turn the phase of one round"


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
            temporary.write_bytes(whole.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place.") from None


def resample(wav_LC: Float[np.ndarray, "L C"], sr_from: int, sr_to: int) -> Float[np.ndarray, "n C"]:
    """Changes the sample rate (soxr, high quality): L samples become ceil(L * sr_to / sr_from)."""
    if sr_from == sr_to:
        return wav_LC
    import soxr

    length = -(-len(wav_LC) * sr_to // sr_from)
    out_nC = soxr.resample(np.asarray(wav_LC, np.float32), sr_from, sr_to, quality="HQ")[:length]
    if len(out_nC) == length:  # padding would copy it, and it may be hours of sound
        return out_nC
    # soxr rounds the length its own way; a missing last sample is held.
    return np.pad(out_nC, ((0, length - len(out_nC)), (0, 0)), mode="edge" if len(out_nC) else "constant")


def to_channels(wav_LC: Float[np.ndarray, "L C"], channels: int) -> Float[np.ndarray, "L n"]:
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


def _check_size(path: str | Path, file: "soundfile.SoundFile") -> None:
    low, high = RATES
    if not low <= file.samplerate <= high:
        raise UserError(f"{path}: its header says {file.samplerate} Hz, not {low} to {high}; export it again.")
    if file.frames >= _ENDLESS:  # and cannot read to its end
        raise UserError(f"{path}: its header does not say how long it is; write it again, or convert it to wav.")
    seconds = file.frames / file.samplerate
    if seconds > _MOST_SECONDS or file.frames * file.channels > _MOST_SAMPLES:
        raise UserError(
            f"{path}: {file.channels} channels of {seconds / 60:,.0f} minutes are more than one file may hold "
            f"({_MOST_SECONDS // 60} minutes, {_MOST_SAMPLES:,} samples); split it into parts."
        )


def _decoded(path: str | Path, file: "soundfile.SoundFile") -> Float[np.ndarray, "L C"]:
    """All that decodes; memory follows it, since pages of what a header promised are not taken until written to."""
    import soundfile

    wav_LC = np.empty((file.frames, file.channels), np.float32)
    length = 0
    try:
        while got := len(file.read(out=wav_LC[length : length + _BLOCK])):
            length += got
    except soundfile.LibsndfileError as error:
        with open(path, "rb") as raw:  # libsndfile keeps the system's reason to itself
            while raw.read(_BLOCK):
                pass
        raise UserError(f"{path}: decoding breaks off ({error.error_string}); truncated? Get it again.") from None
    if not length:
        raise UserError(f"{path}: no sample could be decoded; truncated? Get it again.")
    return wav_LC[:length]


def _check_frames(path: str | Path, frames: containers.Frames, seconds: float, rate: int) -> None:
    """UserError where an mp3 file's own frames are not what its header says or what was decoded of it."""
    held = frames.count * frames.samples / rate
    if frames.claimed is not None and frames.count < frames.claimed - 2:
        said = frames.claimed * frames.samples / rate
        raise UserError(f"{path}: truncated, {held:.1f} s decode of the {said:.1f} s in its header; get it again.")
    if frames.cut:
        raise UserError(f"{path}: truncated, its last frame is cut short after {held:.1f} s; get it again.")
    if seconds < held - _MISSING:
        raise UserError(
            f"{path}: only {seconds:.1f} s of its {held:.1f} s decode, as its header does not say how long it is; "
            "convert it to wav or flac."
        )


@contextmanager
def _open(path: str | Path) -> "Iterator[soundfile.SoundFile]":
    import soundfile

    path = Path(path)
    if "\0" in str(path):
        raise UserError(f"{path}: no file has such a name; check the path.")
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a directory; name an audio file.")
        if not path.is_file():
            raise UserError(f"{path}: no such file; check the path.")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: is empty (0 bytes); get it again.")
        raw = open(path, "rb")  # by Python, which tells a fault of the machine from one of the file
    except OSError as error:
        if is_passing(error):
            raise
        raise UserError(f"{path}: cannot be opened ({error.strerror}); check its name and permissions.") from None
    with raw:
        try:
            file = soundfile.SoundFile(raw.fileno(), closefd=False)
        except soundfile.LibsndfileError as error:
            raise UserError(
                f"{path}: not readable as audio ({error.error_string}); convert it to wav, flac, ogg or mp3."
            ) from None
        with file:
            if file.frames == 0:
                raise UserError(f"{path}: holds no samples; get it again.")
            yield file
