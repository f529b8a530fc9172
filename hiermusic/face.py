"""The package from Python: a trained codec or model as an object. `hiermusic.load` is the way in."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from hiermusic.audio import files
from hiermusic.codec.chunked import decode_long, encode_long
from hiermusic.codec.codec import Codec
from hiermusic.console import warn
from hiermusic.data.arrays import read_npz
from hiermusic.errors import UserError
from hiermusic.systems import catalogue, requests, workdir
from hiermusic.systems.system import ROWS
from hiermusic.tokens.hierarchy import Hierarchy


@dataclass(frozen=True)
class TrainedCodec:
    """A codec with its weights: sound to codes and back.

    Args:
      folder: the workdir, or exported model, it was read from.
      codec: the Flax module.
    """

    folder: Path
    codec: Codec

    @property
    def sample_rate(self) -> int:
        """Hz of what it hears and makes."""
        return self.codec.sample_rate

    @property
    def channels(self) -> int:
        """Of what it hears and makes."""
        return self.codec.channels

    @property
    def hierarchy(self) -> Hierarchy:
        """Its levels, coarse first: rates in Hz and numbers of codes."""
        return self.codec.hierarchy

    def encode(
        self, wav: Float[np.ndarray, "L"] | Float[np.ndarray, "L C"], sample_rate: int, levels: int | None = None
    ) -> Int[np.ndarray, "S P"]:
        """Codes of a sound of any length, uint16: a row for every slot of a packet, coarse first.

        In a residual codec a packet is a frame and has a slot for each level; in a multi-scale one it is a window, and
        a level has as many slots as tokens.

        Args:
          wav: float samples in about [-1, 1]; they are resampled and mixed to what the codec hears.
          sample_rate: of `wav`, in Hz.
          levels: how many to keep, coarse first; all when left out.
        Raises:
          UserError: no samples, samples that are not finite or are integers, another shape, or levels there are not.
        """
        workdir.check_levels(self.codec, levels)
        wav_LC = self._heard(wav, sample_rate)
        return encode_long(self.codec, wav_LC, levels=levels).T

    def scales(
        self, wav: Float[np.ndarray, "L"] | Float[np.ndarray, "L C"], sample_rate: int
    ) -> Float[np.ndarray, "N"] | None:
        """What a codec of segments (EnCodec at 48 kHz) keeps beside the codes of a sound, float32; None of others.

        Args:
          wav, sample_rate: as for `encode`.
        """
        return workdir.scales(self.codec, self._heard(wav, sample_rate))

    def _heard(self, wav: np.ndarray, sample_rate: int) -> Float[np.ndarray, "L C"]:
        """A sound at the codec's rate and channels."""
        wav_LC = _as_sound(wav)
        low, high = files.RATES
        if not low <= sample_rate <= high:
            raise UserError(f"sample_rate={sample_rate}: give that of the samples, {low} to {high} Hz")
        if self.channels == 1 and (odd := files.oddity(wav_LC)):
            warn(f"the sound to encode: {odd}")
        return files.resample(files.to_channels(wav_LC, self.channels), sample_rate, self.sample_rate)

    def decode(
        self,
        codes_SP: Int[np.ndarray, "S P"],
        levels: int | None = None,
        length: int | None = None,
        scales_N: Float[np.ndarray, "N"] | None = None,
    ) -> Float[np.ndarray, "L C"]:
        """The sound of codes, float32 samples at `sample_rate`.

        Args:
          codes_SP: as from `encode`; of fewer levels too, coarse first.
          levels: how many of them to hear, coarse first; all when left out.
          length: samples to return, whole packets when left out.
          scales_N: from `scales`, of a codec of segments; its `model.loudness` for each when left out.
        Raises:
          UserError: codes or scales that are none of this codec's, or levels there are not.
        """
        codes_SP = np.asarray(codes_SP)
        workdir.check_levels(self.codec, levels)
        workdir.check_codes(self.codec, codes_SP, "the array", str(self.folder))
        scales_N = None if scales_N is None else np.asarray(scales_N)
        workdir.check_scales(self.codec, scales_N, codes_SP.shape[1], "the array of scales")
        return decode_long(self.codec, codes_SP.T.astype(np.int32), length=length, levels=levels, scales_N=scales_N)


@dataclass(frozen=True)
class Song:
    """A song that was made.

    Args:
      name: from its prompt.
      wav_LC: float32 samples in [-1, 1], as in its file.
      sample_rate: Hz.
      codes_SP: what it is the sound of, as `TrainedCodec.decode` takes them.
      facts: what its JSON file holds: prompt, seed, settings, seconds, whether it ended itself, loudness, ...
    """

    name: str
    wav_LC: Float[np.ndarray, "L C"]
    sample_rate: int
    codes_SP: Int[np.ndarray, "S P"]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class TrainedModel:
    """A trained token model, and with it the models and the codec that it was trained on: prompts to songs.

    Args:
      folder: the workdir, or exported model.
      config: the configuration it was trained with.
    """

    folder: Path
    config: ConfigDict

    def generate(
        self,
        prompts: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        out: str | Path | None = None,
        continues: str | Path | None = None,
        seed: int = 0,
        **options: Any,
    ) -> list[Song]:
        """Songs for prompts, all in one batch; the same as `hiermusic generate --prompts=FILE` makes of them.

        Args:
          prompts: one, or several, each with the fields of a line of a prompts file: `seconds`, and of the others
            (tags, lyrics, instrumental, like, name, seed, ...) those that the system knows.
          out: folder for NAME.wav, NAME.npz and NAME.json; what stands there is not made again. None keeps nothing.
          continues: audio file to go on from; its length counts in the prompts' seconds.
          seed: of the first prompt that names none; the next takes the next.
          options: flags of `hiermusic generate` by name, such as temperature, top_k, guidance, codec or rows; the words
            of a prompt stand in `prompts`, and a mesh is a mapping from axes to devices. None is as good as left out.
        Raises:
          UserError: a prompt that is none, an option that means nothing to the system or that its flag would not take,
            a codec or model that is gone.
        """
        ours = workdir.system(self.config)
        asked = [prompts] if isinstance(prompts, Mapping) else list(prompts)
        parsed = requests.parse(asked, seed, ours.versions)
        if words := [flag.name for flag in ours.flags if flag.of == "prompt" and flag.name in options]:
            raise UserError(f"{words[0]} is of a single song: give it as a field of a prompt")
        known = {flag.name: flag for flag in (*ours.flags, ROWS)}
        options = {name: value for name, value in options.items() if value is not None}
        options |= {name: known[name].of_python(value) for name, value in options.items() if name in known}
        if not isinstance(mesh := options.get("mesh", {}), Mapping):
            raise UserError(f"mesh={mesh!r}: give a mapping from axes to devices, such as {{'fsdp': 4, 'tensor': 2}}")
        models = [flag.name for flag in ours.flags if flag.of == "model"]
        own = self.config.stage if self.config.stage in models else models[0]
        given = {own: str(self.folder)} | options
        with tempfile.TemporaryDirectory() as kept_nowhere:
            made = workdir.generate(
                parsed,
                str(out or kept_nowhere),
                str(self.folder),
                ours.name,
                audio=None if continues is None else str(continues),
                **given,
            )
            sounds = [(*files.read(song["wav"]), _codes(song["wav"])) for song in made]
        if out is None:
            made = [{name: value for name, value in song.items() if name != "wav"} for song in made]
        return [Song(song["name"], *sound, song) for song, sound in zip(made, sounds, strict=True)]


def load(folder: str | Path, step: int | None = None) -> TrainedCodec | TrainedModel:
    """As `hiermusic.load`."""
    config = workdir.read(folder)
    ours = catalogue.systems().get(config.get("system"))
    if ours is None:
        workdir.system(config, str(folder))
    if config.stage == "codec":
        return TrainedCodec(Path(folder), workdir.load_codec(folder, step))
    if workdir.makes_tokens(config):
        raise UserError(f"{folder} makes tokens of sound and no sound of them: give it to `hiermusic tokenize`")
    if step is not None:
        raise UserError(f"{folder} is a {config.stage}, which makes songs with its newest weights: leave step out")
    return TrainedModel(Path(folder), config)


def _codes(wav: str) -> Int[np.ndarray, "S P"]:
    return read_npz(Path(wav).with_suffix(".npz"), "the codes of a song", "make the song again")["codes"]


def _as_sound(wav: np.ndarray) -> Float[np.ndarray, "L C"]:
    wav = np.asarray(wav)
    wav_LC = wav[:, None] if wav.ndim == 1 else wav
    if wav_LC.ndim != 2 or wav_LC.dtype.kind != "f":
        raise UserError(f"samples of shape {wav.shape} and type {wav.dtype} are no sound: give floats [L] or [L, C]")
    if 0 < len(wav_LC) < wav_LC.shape[1]:
        raise UserError(f"samples of shape {wav.shape} have more channels than samples: give [L, C], channels last")
    if wrong := files.fault(wav_LC):
        raise UserError(f"the sound to encode {wrong}")
    return wav_LC
