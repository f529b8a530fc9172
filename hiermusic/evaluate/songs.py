"""How near generated songs come to the music they were learnt from, and whether they are what was asked for."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.audio import files, music
from hiermusic.data.audio_records import AudioSource
from hiermusic.data.records import read_json
from hiermusic.errors import UserError, reading
from hiermusic.evaluate import obedience
from hiermusic.evaluate.by_track import Each, columns, in_memory, scores_of
from hiermusic.evaluate.detectors import hear
from hiermusic.evaluate.music import ANCHORS, anchored, describe, table
from hiermusic.evaluate.scores import gap
from hiermusic.tokens.prompt import Prompt

TRAINING_TRACKS = 256  # that songs are compared with and detectors learn from, at most
SONGS = "songs"  # and, where they were written, `VERSION only`
CORPUS = "held-out songs"
_STRUCTURED = 30  # seconds of a song that has parts to be compared
_LONGEST = 64  # letters of a version's name
_FEATURES = ("timbre", "harmony", "rhythm", "tempo", "length")


@dataclass(frozen=True)
class Made:
    """A generated song: its name, what its JSON holds, and of each version the sound and what is told of it."""

    name: str
    facts: Mapping[str, Any]
    paths: Mapping[str, Path]
    told: Mapping[str, Mapping[str, Any]]


def read(folder: str | Path) -> list[Made]:
    """The songs that `hiermusic generate` left in a folder, by name, in all versions that each of them has.

    Raises:
      UserError: there is none, or a JSON that is not what `hiermusic generate` writes.
    """
    found = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            facts = read_json(path)
        except (ValueError, RecursionError):
            continue
        if isinstance(facts, dict) and "prompt" in facts and path.with_suffix(".wav").is_file():
            with reading(path, "a song", "make it again, or take it out of the folder"):
                _check(facts)
            found.append((path, facts))
    if not found:
        raise UserError(f"{folder} holds no songs: give the folder that `hiermusic generate --out` wrote")

    def has(path: Path, facts: Mapping[str, Any], name: str) -> bool:
        return name in facts.get("versions", {}) and path.with_suffix(f".{name}.wav").is_file()

    written = [name for name in found[0][1].get("versions", {}) if all(has(*one, name) for one in found)]
    return [
        Made(
            path.stem,
            facts,
            {SONGS: path.with_suffix(".wav")} | {f"{name} only": path.with_suffix(f".{name}.wav") for name in written},
            {SONGS: facts} | {f"{name} only": facts["versions"][name] for name in written},
        )
        for path, facts in found
    ]


def _check(facts: Mapping[str, Any]) -> None:
    """Stumbles over a song's JSON in which what is measured, or measured by, is of another kind."""
    asked = Prompt.from_json(facts["prompt"]).seconds
    told = [facts["seconds"], *([] if asked is None else [asked])]
    if min(told) <= 0:
        raise ValueError("a length in it is not above nought")
    if not all(name.isidentifier() and len(name) < _LONGEST for name in facts.get("versions", {})):
        raise ValueError("a version in it has no name")
    for version in (facts, *facts.get("versions", {}).values()):
        told += [version[name] for name in ("loudness", "peak", "clipped") if version.get(name) is not None]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in told):
        raise ValueError("a length or a measure in it is no number")
    if not isinstance(facts.get("workdirs", {}).get("codec", ""), str):
        raise ValueError("its codec is no folder")


def evaluate_songs(
    songs: Sequence[Made],
    corpus: AudioSource,
    tracks: int,
    progress: Callable[[str], None] = lambda words: None,
    each: Each = in_memory,
) -> dict[str, Any]:
    """Measures of generated songs beside those of held-out songs, of noise shaped like these and of their frames.

    Held-out songs are cut to the longest generated one, from their middle.

    Args:
      songs: from `read`.
      corpus: what they were learnt from, with training and held-out tracks.
      tracks: held-out tracks, at most.
      progress: called with one line of words a step.
      each: how the sounds are gone through (see `by_track`).
    Returns:
      JSON-able
      {songs, names, held_out, training_tracks, rows: {row: {measure: interval}} (see `music.MEASURES`), best,
       verdict, against_shuffled: {version: {measure: gap}}, obedience}
      `best` is the version of the higher mean tonality; `obedience`, of that version, is from `obedience.measure` and
      empty for fewer than eight songs.
    """
    held_out, training = corpus.valid[:tracks], corpus.train[:TRAINING_TRACKS]
    versions = list(songs[0].paths)
    longest = max(song.facts["seconds"] for song in songs)
    judged = len(songs) >= obedience.FEWEST_SONGS

    def heard(wav_LC: np.ndarray, rate: int) -> dict[str, np.ndarray]:
        return hear(wav_LC, rate) if judged else {}

    def cut(index: int) -> np.ndarray:
        wav_LC = corpus.track(index)
        length = round(longest * corpus.sample_rate)
        start = max(len(wav_LC) - length, 0) // 2
        return wav_LC[start : start + length]

    def song(index: int) -> dict[str, np.ndarray]:
        progress(f"measuring song {index + 1} of {len(songs)}")
        return _measured(songs[index], heard)

    def real(index: int) -> dict[str, np.ndarray]:
        progress(f"measuring held-out track {index + 1} of {len(held_out)}")
        wav_LC = cut(held_out[index])
        rate = corpus.sample_rate
        scores = [describe(sound_LC, rate) for sound_LC in anchored(wav_LC, rate, index).values()]
        return columns(scores) | _numbered(0, heard(wav_LC, rate))

    made, known = each("song", len(songs), song), each("held-out", len(held_out), real)
    rows = {version: [scores_of(one, number) for one in made] for number, version in enumerate(versions)}
    rows |= {name: [scores_of(one, number) for one in known] for number, name in enumerate((CORPUS, *ANCHORS))}
    spans = {version: [music.spans(*files.read(song.paths[version])) for song in songs] for version in versions}
    spans[CORPUS] = [music.spans(cut(index), corpus.sample_rate) for index in held_out]

    def track(index: int) -> dict[str, np.ndarray]:
        progress(f"comparing with training track {index + 1} of {len(training)}")
        other_MD = music.spans(corpus.track(training[index]), corpus.sample_rate)
        near = np.array([music.distance(one_ND, other_MD) for group in spans.values() for one_ND in group])
        return {"distance": near} | _numbered(0, heard(cut(training[index]), corpus.sample_rate))

    trained = each("training", len(training), track)
    nearest = iter(np.min([one["distance"] for one in trained], axis=0).tolist())
    prompts = {version: [song.facts["prompt"] for song in songs] for version in versions} | {CORPUS: held_out}
    for name, group in spans.items():
        for one, apart in zip(rows[name], _apart(group, prompts[name]), strict=True):
            one |= {"nearest": next(nearest), "apart": apart}

    found = table(rows)
    best = max(versions, key=lambda version: np.nan_to_num(found[version]["tonality"]["mean"]))

    def judge() -> dict[str, Any]:
        asked = [song.facts["prompt"] for song in songs]
        learnt, true = ([corpus.tracks[index]["meta"] for index in group] for group in (training, held_out))
        groups = ((made, versions.index(best), asked), (trained, 0, learnt), (known, 0, true))
        return obedience.measure(*(_judged(*group) for group in groups))

    return {
        "songs": len(songs),
        "names": [song.name for song in songs],
        "held_out": len(held_out),
        "training_tracks": len(training),
        "rows": found,
        "best": best,
        "verdict": _verdict(found, best),
        "against_shuffled": {version: _gaps(found[version], found[list(ANCHORS)[-1]]) for version in versions},
        "obedience": judge() if judged else {},
    }


def structure(songs: Sequence[Made], records: str | Path, version: str) -> dict[str, tuple[np.ndarray, float]]:
    """How alike the parts of the longest song are, and of the longest held-out track, if the song lasts long enough.

    Args:
      songs: from `read`.
      records: audio records of what they were learnt from.
      version: of the songs.
    Returns:
      of each sound by its name what `music.self_similarity` says; nothing for songs under half a minute.
    """
    longest = max(songs, key=lambda song: song.facts["seconds"])
    if longest.facts["seconds"] < _STRUCTURED:
        return {}
    corpus = AudioSource(records)
    real = max(corpus.valid, key=lambda index: corpus.tracks[index]["samples"])
    sounds = {
        longest.name: files.read(longest.paths[version]),
        "a held-out track": (corpus.track(real), corpus.sample_rate),
    }
    return {name: music.self_similarity(*sound) for name, sound in sounds.items()}


def _measured(song: Made, heard: Callable[[np.ndarray, int], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Scores of every version of a generated song, and of its sound what `heard` says."""
    scores, features = [], {}
    for number, (version, path) in enumerate(song.paths.items()):
        wav_LC, rate = files.read(path)
        scores.append(describe(wav_LC, rate) | _told(song, version, len(wav_LC) / rate))
        features |= _numbered(number, heard(wav_LC, rate))
    return columns(scores) | features


def _numbered(number: int, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The features of the n-th sound of a measurement, as it keeps them."""
    return {f"{number} {name}": value for name, value in features.items()}


def _apart(group: Sequence[np.ndarray], prompts: Sequence[Any]) -> list[float]:
    """From each sound to the nearest of another prompt."""
    return [
        min(
            (music.distance(one, other) for other, said in zip(group, prompts, strict=True) if said != prompt),
            default=np.nan,
        )
        for one, prompt in zip(group, prompts, strict=True)
    ]


def _judged(measured: Sequence[Mapping[str, np.ndarray]], number: int, words: Sequence[Mapping]) -> obedience.Heard:
    """What was heard of the n-th sound of each measurement, and what words say of it."""
    heard = [{name: one[f"{number} {name}"] for name in _FEATURES} for one in measured]
    return list(zip(heard, map(obedience.asked, words), strict=True))


def _told(song: Made, version: str, seconds: float) -> dict[str, float]:
    """What only the song's JSON knows: the sound before the limiter, and the length asked for."""
    facts = song.told[version]
    told = {name: facts[name] for name in ("loudness", "peak") if facts.get(name) is not None}
    if facts.get("clipped") is not None:
        told["clipped"] = 100 * facts["clipped"]
    return told | {"length": seconds / (song.facts["prompt"].get("seconds") or np.nan)}


def _gaps(version: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    names = ("tonality", "chroma_entropy", "onset_regularity")
    return {name: gap(version[name]["values"], other[name]["values"]) for name in names}


def _verdict(found: Mapping[str, Any], best: str) -> str:
    """How far the tonality has come from that of noise to that of the corpus."""
    made, real, floor = (found[name]["tonality"]["mean"] for name in (best, CORPUS, next(iter(ANCHORS))))
    way = (made - floor) / (real - floor)
    return (
        f"{best[0].upper()}{best[1:]}: tonality {made:.2f}, where held-out songs of the corpus have {real:.2f} and "
        f"noise shaped like them {floor:.2f}; that is {way:.0%} of the way from noise to music."
    )
