"""How audible is the seam where two windows of a multi-scale codec meet?

    python benchmarks/seam.py --sat=out/sat --lm=out/aar --data=MUSIC

Held-out music is rebuilt twice by the same weights: trunk on one window at a time ("alone"), and over all windows at
once ("across"). With a model, each clip is also gone on with from its first window, the window before carried along as
in training ("carried") and, for contrast, each window drawn as if there were none before ("none"). Columns compare what
happens at seams with what happens elsewhere in the same track: the mean ratio over seams, with its 95 % bootstrap
interval.

* jump: mean absolute second difference of the waveform, of the two samples on either side of a seam;
* mel error: mean absolute log10 mel difference from the original, of frames that touch a seam; before it that of all
  frames, no ratio;
* mel flux: mean absolute log10 mel difference of neighbouring frames, of pairs that touch a seam.

1 is a seam that nothing shows; the first line, the original cut at the same places, is what music itself does there.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from flax import nnx
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from hiermusic.codec.chunked import decode_long, encode_long
from hiermusic.codec.codec import Codec
from hiermusic.data import pipeline
from hiermusic.data.streams import Tokenizer
from hiermusic.errors import UserError
from hiermusic.evaluate import seams
from hiermusic.evaluate.run import held_out
from hiermusic.evaluate.scores import audible, interval
from hiermusic.generate import nextscale
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.aar.prior import Prior
from hiermusic.systems.aar.rows import windows
from hiermusic.systems.aar.stages import check_codebooks, check_codec

COLUMNS = ("sound", "context", "trunk", "jump", "mel error", "mel error at seams", "mel flux")

Wave = Float[np.ndarray, "L C"]


def measure(wav_LC: Wave, rate: int, packet: int, original_LC: Wave | None) -> dict[str, list[float]]:
    """The ratios of a track at each of its seams; those of the error, and the error, only against an original."""
    places = range(packet, len(wav_LC) - packet // 2, packet)
    told = seams.measure(wav_LC, rate, places)
    if original_LC is not None:
        mel_TM, n_fft, hop = seams.log_mel(wav_LC, rate)
        error_T = np.abs(mel_TM - seams.log_mel(original_LC, rate)[0]).mean(1)
        error = seams.ratios(error_T, np.arange(len(error_T)) * hop, places, n_fft / 2, len(wav_LC))
        told |= {"all": [error_T.mean()], "error": error}
    return told


def trunks(codec: Codec) -> dict[str, Codec]:
    """The codec with its trunk on windows alone, and across them: the same weights."""
    found = {}
    for name, windowed in (("alone", True), ("across", False)):
        found[name] = nnx.merge(*nnx.split(codec))
        found[name].config = dataclasses.replace(codec.config, windowed=windowed)
    return found


def continuation(
    model: Prior, config: ConfigDict, codes_PS: Int[np.ndarray, "P S"], seed: int, carried: bool
) -> Int[np.ndarray, "P S"]:
    """As many windows as there are in a clip, all but the first drawn by a model that hears the clip.

    Args:
      model: of next-scale prediction, its token model unstacked.
      config: the model's.
      codes_PS: the clip.
      seed: of the sampling.
      carried: whether a window knows the one before.
    """
    codes_PS = codes_PS.astype(np.int32)
    cond_BU = np.asarray(model.listen(windows(config, data=False).clip(codes_PS)[None]))
    missing = len(codes_PS) - 1
    how = {"context": model.config.context, "uncond_U": np.asarray(model.unconditional[...])} | dict(config.sampling)
    arguments = (model.lm, model.quantiser, cond_BU)
    if carried:
        before_BcE = model.context(codes_PS[None, 0])
        drawn_WS = nextscale.generate(*arguments, seeds=[seed], windows=missing, before_BcE=before_BcE, **how)[0]
    else:
        seeds = np.random.default_rng(seed).integers(2**32, size=missing).tolist()
        drawn_WS = np.concatenate([nextscale.generate(*arguments, seeds=[own], **how)[0] for own in seeds])
    return np.concatenate([codes_PS[:1], drawn_WS])


def load_model(workdir: str, codec: Codec, sat: str) -> tuple[ConfigDict, Prior]:
    """A model of next-scale prediction, ready to draw; UserError where it does not belong to the codec."""
    config, model = workdirs.load(workdir, "lm")
    check_codec(config, workdir, Tokenizer(sat, None))
    check_codebooks(codec, sat, model, workdir)
    if not config.model.listener:
        raise UserError(f"{workdir} takes CLAP vectors, which clips do not have: give a model with a listener")
    model.lm = model.lm.unstack()
    return config, model


def load_clips(codec: Codec, config: ConfigDict, workdir: str, given: argparse.Namespace) -> list[Wave]:
    """Held-out clips of whole windows, two at least."""
    audio_dir = pipeline.resolve(
        given.data or config.data.path,
        Path(workdir) / "data",
        codec.sample_rate,
        codec.channels,
        kind="auto" if given.data else config.data.kind,
        segment_seconds=config.data.segment_seconds,
        valid_fraction=config.data.valid_fraction,
    )
    clips = audible(held_out(audio_dir, given.seconds, given.tracks), -60.0)
    clips = [clip[: len(clip) // codec.packet * codec.packet] for clip in clips if len(clip) >= 2 * codec.packet]
    if not clips:
        raise UserError(
            f"no held-out clip has two windows of {codec.packet / codec.sample_rate:g} s: give longer music"
        )
    return clips


def rows(given: argparse.Namespace) -> list[list[str]]:
    """The lines of the table."""
    config, codec = workdirs.load(given.sat, "codec")
    if codec.config.quantiser.frames == 1:
        raise UserError(f"{given.sat} codes single frames: give a codec with model.quantiser=multiscale")
    model = load_model(given.lm, codec, given.sat) if given.lm else None
    clips, lines = load_clips(codec, config, given.sat, given), []

    def add(names: Sequence[str], sounds: Sequence[Wave], originals: Sequence[Wave | None]) -> None:
        pairs = zip(sounds, originals, strict=True)
        tracks = [measure(wav_LC, codec.sample_rate, codec.packet, original) for wav_LC, original in pairs]
        cells = []
        for key in ("jump", "all", "error", "flux"):
            values = [value for track in tracks for value in track.get(key, ())]
            cells.append(_shown(interval(values), key != "all") if values else "")
        lines.append([*names, *cells])

    nothing = [None] * len(clips)
    add(("original", "", ""), clips, nothing)
    for name, coder in trunks(codec).items():
        say(f"rebuilding {len(clips)} clips, trunk {name}")
        add(("rebuilt", "", name), [decode_long(coder, encode_long(coder, clip)) for clip in clips], clips)
    if model is not None:
        config, prior = model
        clips_codes = [encode_long(codec, clip) for clip in clips]
        for context in ("carried", "none") if prior.config.context else ("none",):
            say(f"going on with {len(clips)} clips, context {context}")
            drawn = [
                continuation(prior, config, codes_PS, seed, context == "carried")
                for seed, codes_PS in enumerate(clips_codes)
            ]
            for name, coder in trunks(codec).items():
                add(("generated", context, name), [decode_long(coder, codes_PS) for codes_PS in drawn], nothing)
    return lines


def _shown(value: dict[str, float], with_interval: bool) -> str:
    return f"{value['mean']:.2f}" + (f" ({value['low']:.2f}-{value['high']:.2f})" if with_interval else "")


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sat", required=True, help="workdir of a multi-scale codec")
    parser.add_argument("--lm", default="", help="workdir of a model of its codes")
    parser.add_argument("--data", default="", help="audio records or music, as for training; default: the codec's own")
    parser.add_argument("--tracks", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each track")
    try:
        lines = rows(parser.parse_args())
    except UserError as problem:
        sys.exit(str(problem))
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *lines):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
