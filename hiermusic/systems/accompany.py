"""From a vocal to its accompaniment on disk, by whichever system's stages lie in a folder."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from hiermusic.audio import files
from hiermusic.codec.chunked import decode_long
from hiermusic.codec.codec import Codec
from hiermusic.console import warn
from hiermusic.data.audio_records import QUIET_DB, AudioSource, rms_db
from hiermusic.data.stems import INSTRUMENTAL, VOCALS
from hiermusic.data.streams import Tokenizer
from hiermusic.data.tokenise import noisy
from hiermusic.errors import UserError, write_atomically
from hiermusic.generate import windows
from hiermusic.pretrained.semantic import Semantic
from hiermusic.systems import catalogue
from hiermusic.systems.songs import progress, write_sound
from hiermusic.systems.workdir import TOKENIZERS, encoded, load
from hiermusic.tokens import packets
from hiermusic.tokens.facts import TokenFacts, difference
from hiermusic.train.checkpoint import latest_step

SHORTEST = 1.0  # seconds of a vocal: less tells no beat
RESULTS = "results"  # .json: what is measured of all that lies beside it

Wave = Float[np.ndarray, "L C"]


@dataclass(frozen=True)
class Vocal:
    """A vocal to be accompanied.

    Args:
      name: of the files that are written.
      origin: the file or the track that it is.
      wav_LC, sample_rate: its sound.
      true_LC: the accompaniment that it has, at the same rate, where it is known.
      meta: what is known of the song.
    """

    name: str
    origin: str
    wav_LC: Wave
    sample_rate: int
    true_LC: Wave | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)


def of_file(path: str) -> Vocal:
    """The vocal in an audio file; UserError for what is no sound, too short, or called as the measures of all are."""
    if Path(path).stem.lower() == RESULTS:
        raise UserError(f"{path}: {RESULTS}.json is where measures go, beside each vocal's own: give it another name")
    wav_LC, rate = files.read(path)
    if len(wav_LC) < SHORTEST * rate:
        raise UserError(f"{path} lasts {len(wav_LC) / rate:.2f} s: a vocal lasts {SHORTEST:g} s or more")
    if odd := files.oddity(wav_LC):
        warn(f"{path}: {odd}")
    if rms_db(wav_LC) < QUIET_DB:
        warn(f"{path}: is silent: there is nothing to follow in it")
    return Vocal(Path(path).stem, path, wav_LC, rate)


def of_records(data: str, tracks: int) -> list[Vocal]:
    """The vocals of the first held-out tracks in which one is heard, each with its true accompaniment.

    Args:
      data: audio records with vocals and instrumental.
      tracks: at most so many.
    Raises:
      UserError: records without these stems, or without such a track.
    """
    sung, played = AudioSource(data, VOCALS), AudioSource(data, INSTRUMENTAL)
    found, silent = [], 0
    for index in sung.valid:
        if len(found) == tracks:
            break
        wav_LC, track = sung.track(index), sung.tracks[index]
        if rms_db(wav_LC) < QUIET_DB or len(wav_LC) < SHORTEST * sung.sample_rate:
            silent += 1
            continue
        name = f"{len(found) + 1:03d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', track['id'])[-60:]}"
        true_LC = played.track(index)
        found.append(Vocal(name, f"{data}: {track['id']}", wav_LC, sung.sample_rate, true_LC, track["meta"]))
    if silent:
        warn(f"{data}: {silent} held-out tracks have no vocal of {SHORTEST:g} s or more: left out")
    if not found:
        raise UserError(f"{data} has no held-out track with a vocal: write it with --valid_fraction above 0")
    return found


def stages_in(folder: str) -> tuple[Any, dict[str, str]]:
    """The system whose chain of stages a folder holds, and their workdirs in its order.

    Those that a chain can spare may be missing. UserError where no chain is there.
    """
    chains = {}
    for system in catalogue.systems().values():
        if system.chain:
            chains[system.title] = system.chain
            places = {stage: Path(folder) / stage for stage in system.chain}
            there = {stage: str(place) for stage, place in places.items() if (place / "config.json").is_file()}
            if set(system.chain) - set(system.spare) <= set(there):
                return system, there
    known = "; ".join(f"{title}: {', '.join(chain)}" for title, chain in chains.items())
    raise UserError(f"{folder} holds no stages that accompany a vocal: give the folder of their workdirs ({known})")


def accompany(
    vocals: Sequence[Vocal],
    out: Path,
    folder: str,
    *,
    seed: int = 0,
    overlap: float | None = None,
    noise: float | None = None,
    rows: int = 8,
    **sampling: Any,
) -> list[dict[str, Any]]:
    """Plays accompaniments to vocals of any length.

    Of each are written NAME.accompaniment.wav, which is as long as the vocal, NAME.mix.wav, both together and limited
    where they exceed full scale, NAME.vocal.wav, NAME.true.wav where it is known, and NAME.json with all that decided
    it.

    Args:
      vocals: what to follow.
      out: the folder.
      folder: of the stages' workdirs.
      seed: of the first vocal; the next one takes the next.
      overlap: seconds that neighbouring windows share at least; a quarter of one when left out.
      noise: standard deviation of the Gaussian noise that a vocal is put under before it is tokenized; as it was for
        training when left out. What is heard has none.
      rows: windows that are played at once.
      sampling: temperature, top_k and guidance of the stages that are to differ from their workdirs'.
    Returns:
      what each JSON holds.
    Raises:
      UserError: a folder without stages, tokenizers that make other tokens than these know, or windows that share more
        than they hold.
    """
    system, stages = stages_in(folder)
    player = system.rooms.accompanist(stages)
    tokenizer = _maker(player.tokenizers["vocal"], TOKENIZERS, player.vocal, folder)
    codec = _maker(player.tokenizers["codes"], ("codec",), player.codes, folder)
    rate = float(player.vocal.frame_rate)
    shared = player.window // 4 if overlap is None else math.ceil(round(overlap * rate, 6))
    windows.spans(player.window + 1, player.window, shared, windows.unit(player))  # before any token is made
    out.mkdir(parents=True, exist_ok=True)  # or minutes pass before it is told that nothing can lie there
    noise = player.noise if noise is None else noise
    tokens = [_tokens(tokenizer, one, noise, seed + n) for n, one in enumerate(vocals)]
    seeds = [seed + n for n in range(len(vocals))]
    with progress("window") as show:
        made = windows.play(player, tokens, seeds=seeds, overlap=shared, rows=rows, progress=show, **sampling)
    common = {
        "sampling": player.sampling | {"given": sampling} if sampling else player.sampling,
        "workdirs": stages,
        "steps": {stage: latest_step(place) for stage, place in stages.items()},
        "tokenizers": {name: str(one) for name, one in player.tokenizers.items()},
        "tokens": {"vocal": _spoken(tokenizer, player.vocal), "codes": _spoken(codec, player.codes, player.levels)},
        "overlap": shared / rate,
        "noise": noise,
    }
    return [
        _write(out, vocal, song, codec, {"name": vocal.name, "vocal": vocal.origin, "seed": own, **common})
        for vocal, song, own in zip(vocals, made, seeds, strict=True)
    ]


def _maker(named: Tokenizer, stages: Sequence[str], wanted: TokenFacts, folder: str) -> Semantic | Codec:
    """The model that made some tokens; UserError where what lies in its place now makes others."""
    model = load(named.workdir, *stages, step=named.step)[1]
    if told := difference(model.facts, wanted):
        raise UserError(
            f"{named.workdir} makes other tokens than the stages in {folder} know ({told}): put back what made those "
            "that they were trained on"
        )
    return model


def _tokens(tokenizer: Any, vocal: Vocal, noise: float, seed: int) -> Int[np.ndarray, "T"]:
    wav_LC = files.to_channels(vocal.wav_LC, tokenizer.channels)
    wav_LC = noisy(files.resample(wav_LC, vocal.sample_rate, tokenizer.sample_rate), noise, f"{vocal.name} {seed}")
    return np.asarray(encoded(tokenizer, wav_LC), np.int32)[:, 0]


def _spoken(model: Semantic | Codec, facts: Any, levels: int = 1) -> str:
    """What tokens are, for a person who listens to what became of them."""
    rate = f"at {float(facts.frame_rate):.4g} a second"
    if isinstance(model, Semantic):
        return f"{facts.codes} clusters of {type(model.features).__name__} features {rate}"
    return f"{levels} of {facts.levels} levels of {facts.codes} codes {rate}, of sound at {facts.sample_rate} Hz"


def fitted(wav_LC: Wave, length: int) -> Wave:
    """A sound of so many samples: cut, or followed by silence."""
    return np.pad(wav_LC[:length], ((0, max(length - len(wav_LC), 0)), (0, 0)))


def mixed(one_LC: Wave, one_rate: int, other_LC: Wave, other_rate: int) -> tuple[Wave, int]:
    """The sum of two sounds at the higher of their rates, as long as the first, with the channels of the wider."""
    rate, channels = max(one_rate, other_rate), max(one_LC.shape[1], other_LC.shape[1])
    parts = [
        files.resample(files.to_channels(wav_LC, channels), own, rate)
        for wav_LC, own in ((one_LC, one_rate), (other_LC, other_rate))
    ]
    return parts[0] + fitted(parts[1], len(parts[0])), rate


def _write(out: Path, vocal: Vocal, song: windows.Whole, codec: Codec, facts: dict[str, Any]) -> dict[str, Any]:
    rate, seconds = codec.sample_rate, codec.facts.frames / codec.facts.frame_rate  # of a packet
    wav_LC = decode_long(codec, packets.to_packets(song.codes_TK, codec.slots))
    wav_LC = fitted(wav_LC, -(-len(vocal.wav_LC) * rate // vocal.sample_rate))
    sounds = {"accompaniment": (wav_LC, rate), "mix": mixed(vocal.wav_LC, vocal.sample_rate, wav_LC, rate)}
    sounds["vocal"] = (vocal.wav_LC, vocal.sample_rate)
    if vocal.true_LC is not None:
        sounds["true"] = (vocal.true_LC, vocal.sample_rate)
    facts |= {"seconds": len(vocal.wav_LC) / vocal.sample_rate, "seams": [float(seam * seconds) for seam in song.seams]}
    facts["sounds"] = {}
    for name, (sound_LC, own) in sounds.items():
        path = out / f"{vocal.name}.{name}.wav"
        facts["sounds"][name] = {"path": str(path)} | write_sound(path, sound_LC, own)
    write_atomically(out / f"{vocal.name}.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n")
    return facts


def lines(songs: Iterable[Mapping[str, Any]]) -> list[str]:
    """What was written, in words."""
    return [f"{song['sounds']['accompaniment']['path']}: {song['seconds']:.2f} s" for song in songs]
