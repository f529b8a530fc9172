"""Whether an accompaniment goes with its vocal: beats and harmony, without weights, between chance and the true pair.

Chance is the same accompaniment behind the vocals of other songs of its style, so that what all songs of a style share
counts for nothing. Where the corpus knows its beats and chords, accompaniments are held against these as well.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from hiermusic.audio import files, music
from hiermusic.data.composer import NAMES
from hiermusic.errors import write_atomically
from hiermusic.evaluate import plots, report, seams
from hiermusic.evaluate.music import Lead, agreement, lead
from hiermusic.evaluate.scores import difference, from_json, interval, to_json
from hiermusic.systems.accompany import RESULTS, Vocal

FEWEST = 8  # songs: over fewer, no interval says anything
MEASURES = {  # name: heading
    "beat_agreement": "beats with the vocal's, F",
    "chroma_agreement": "chroma with the vocal's, correlation",
    "true_beat_agreement": "beats with the true ones, F",
    "true_chroma_agreement": "chroma with the true chords, correlation",
}
OWN, OTHERS = "accompaniments, with their vocals", "... with other songs of their style"
TRUE, TRUE_OTHERS = "true accompaniments, with their vocals", "... of theirs with other songs of their style"
FRAME = music.HOP / music.RATE  # seconds from one chroma to the next
_THIRDS = {"maj": 4, "min": 3}
_SMOOTH = 0.5  # seconds of harmony that a chord is told by


class Heard(NamedTuple):
    """What is measured of a sound, and how long it lasts in seconds."""

    lead: Lead
    seconds: float

    @classmethod
    def of(cls, wav_LC: Float[np.ndarray, "L C"], sample_rate: int) -> "Heard":
        return cls(lead(wav_LC, sample_rate), len(wav_LC) / sample_rate)


class Pair(NamedTuple):
    """A vocal, what was made to it, and what is known.

    Attributes:
      style: only pairs of one style are exchanged; None is a style too.
      vocal, made: what is heard of both.
      true: of the accompaniment that the vocal has; None where there is none.
      truth: of the beats and chords that the song has, as a sound of nothing else would have them; None likewise.
    """

    style: str | None
    vocal: Heard
    made: Heard
    true: Heard | None = None
    truth: Heard | None = None


def chord_chroma(name: str) -> Float[np.ndarray, "n"]:
    """The pitch classes of a triad such as A:min, C first."""
    root, _, mode = name.partition(":")
    notes = (0, _THIRDS[mode], 7)
    return np.isin(np.arange(12), [(NAMES.index(root) + note) % 12 for note in notes]).astype(float)


def truth_of(meta: Mapping[str, Any], seconds: float) -> Heard | None:
    """The beats and chords that the metadata of a song tells of; None where it tells of none."""
    told = meta.get("truth") or {}
    if not told.get("beats") or not told.get("chords"):
        return None
    chroma_Tn, times_T = np.zeros((int(seconds / FRAME) + 1, 12)), np.arange(int(seconds / FRAME) + 1) * FRAME
    for name, start, end in told["chords"]:
        chroma_Tn[(times_T >= start) & (times_T < end)] = chord_chroma(name)
    return Heard(Lead(chroma_Tn, np.asarray(told["beats"], float)), seconds)


def agree(ref: Heard, est: Heard) -> dict[str, float]:
    """How a sound goes with another over the time that both last: see `music.agreement`."""
    seconds = min(ref.seconds, est.seconds)
    return agreement(*(Lead(one.chroma_Tn, one.beats_N[one.beats_N < seconds]) for one, _ in (ref, est)))


def measure(pairs: Sequence[Pair]) -> dict[str, Any]:
    """How accompaniments go with their vocals, with those of other songs, and how true ones do.

    Returns:
      {pairs, rows: {row: {measure: interval}}, above: {measure: interval of what pairs gain over chance, song by song},
      of_the_way: {measure: share of the way from chance to the true pairs}, verdict}. Rows and measures that nothing is
      known for are left out. Each song's chance is its mean over all others of its style; a song without another has
      none.
    """
    rows = {OWN: [_with(pair, pair.made) for pair in pairs], OTHERS: _exchanged(pairs, lambda other: other.made)}
    if all(pair.true for pair in pairs):
        rows[TRUE] = [_with(pair, pair.true) for pair in pairs]
        rows[TRUE_OTHERS] = _exchanged(pairs, lambda other: other.true)
    found = {
        name: {key: interval([one.get(key, math.nan) for one in row]) for key in MEASURES if any(key in x for x in row)}
        for name, row in rows.items()
    }
    above = {key: difference(cell, found[OTHERS][key]) for key, cell in found[OWN].items() if key in found[OTHERS]}
    way = {}
    if TRUE in found:
        for key, gained in above.items():
            whole = found[TRUE][key]["mean"] - found[OTHERS][key]["mean"]
            way[key] = gained["mean"] / whole if whole > 0 else math.nan
    return {"pairs": len(pairs), "rows": found, "above": above, "of_the_way": way, "verdict": _verdict(pairs, above)}


def _with(pair: Pair, est: Heard) -> dict[str, float]:
    told = agree(pair.vocal, est)
    return told | ({f"true_{key}": value for key, value in agree(pair.truth, est).items()} if pair.truth else {})


def _exchanged(pairs: Sequence[Pair], of: Callable[[Pair], Heard]) -> list[dict[str, float]]:
    """Of each pair, the mean of its measures with what other pairs of its style have in its accompaniment's place."""
    rows = []
    for pair in pairs:
        told = [_with(pair, of(other)) for other in pairs if other is not pair and other.style == pair.style]
        values = {key: [one[key] for one in told if not math.isnan(one.get(key, math.nan))] for key in MEASURES}
        rows.append({key: float(np.mean(given)) for key, given in values.items() if given})
    return rows


def _verdict(pairs: Sequence[Pair], above: Mapping[str, Mapping[str, Any]]) -> str:
    if len(pairs) < FEWEST:
        return (
            f"{len(pairs)} song{'s' * (len(pairs) != 1)}: over fewer than {FEWEST} nothing can be said of whether "
            "accompaniments follow their vocals, and intervals mean nothing."
        )
    words = []
    for key, cell in above.items():
        if not cell["count"]:
            continue
        how = "above" if cell["low"] > 0 else "below" if cell["high"] < 0 else "not beyond doubt above"
        words.append(
            f"{MEASURES[key]}: {how} chance, by {cell['mean']:+.3f} ({cell['low']:+.3f} … {cell['high']:+.3f})"
        )
    if not words:
        return "No song has another of its style: chance is not known."
    return f"Of {len(pairs)} songs, against other songs of their style: {'; '.join(words)}."


# MARK: chords


def chords(chroma_Tn: Float[np.ndarray, "T n"]) -> list[tuple[str, float, float]]:
    """The triads that a chroma is most like, as (name, start, end) in seconds.

    Silence has none, nor what lies between two of them and is like a third for less than a quarter of a second.
    """
    width = max(round(_SMOOTH / FRAME), 1)
    if not len(chroma_Tn):
        return []
    padded = np.pad(chroma_Tn, ((width // 2, width - 1 - width // 2), (0, 0)), mode="edge")
    smooth_Tn = np.lib.stride_tricks.sliding_window_view(padded, width, axis=0).mean(axis=2)
    names = [f"{root}:{mode}" for root in NAMES for mode in _THIRDS]
    book_Mn = np.stack([chord_chroma(name) for name in names])
    book_Mn -= book_Mn.mean(axis=1, keepdims=True)
    likeness_TM = (smooth_Tn - smooth_Tn.mean(axis=1, keepdims=True)) @ book_Mn.T
    best_T = np.where(smooth_Tn.sum(axis=1) > music.AUDIBLE * smooth_Tn.sum(axis=1).mean(), likeness_TM.argmax(1), -1)
    runs = pairwise([0, *(np.flatnonzero(np.diff(best_T)) + 1), len(best_T)])
    return [(names[best_T[a]], a * FRAME, b * FRAME) for a, b in runs if best_T[a] >= 0 and b - a >= width // 2]


# MARK: report


def evaluate(songs: Sequence[Mapping[str, Any]], vocals: Sequence[Vocal], out: Path) -> dict[str, Any]:
    """Measures accompaniments that were written, and shows them on a page: results.json and report.html.

    Args:
      songs: what `systems.accompany.accompany` returned.
      vocals: what it was given.
      out: where it wrote.
    """
    pairs, met = [], {"jump": [], "flux": []}
    for song, vocal in zip(songs, vocals, strict=True):
        wav_LC, rate = files.read(song["sounds"]["accompaniment"]["path"])
        true = None if vocal.true_LC is None else Heard.of(vocal.true_LC, vocal.sample_rate)
        style, truth = vocal.meta.get("genre"), truth_of(vocal.meta, len(vocal.wav_LC) / vocal.sample_rate)
        heard = Heard.of(vocal.wav_LC, vocal.sample_rate)
        pairs.append(Pair(style, heard, Heard.of(wav_LC, rate), true, truth))
        for key, values in seams.measure(wav_LC, rate, [seam * rate for seam in song["seams"]]).items():
            met[key] += values
    results = measure(pairs) | {"seams": {key: interval(values) for key, values in met.items()}}
    results["heard"] = [_heard(pair) for pair in pairs]
    results = to_json(results)
    write_atomically(out / f"{RESULTS}.json", json.dumps(results, indent=1) + "\n")
    report.write(report.Page("Accompaniments", _intro(songs), chapters(results, songs)), out / "report.html")
    return results


def _heard(pair: Pair) -> dict[str, Any]:
    """What the page shows of a pair: beats and chords by where they are heard, and the measures of this pair alone."""
    lanes = {"beats of the vocal": pair.vocal, "beats of the accompaniment": pair.made}
    harmony = {"accompaniment": pair.made}
    if pair.truth:
        lanes["true beats"] = harmony["true chords"] = pair.truth
    elif pair.true:
        harmony["true accompaniment"] = pair.true
    return {
        "style": pair.style,
        "seconds": pair.vocal.seconds,
        "beats": {name: one.lead.beats_N.round(3).tolist() for name, one in lanes.items()},
        "chords": {name: chords(one.lead.chroma_Tn) for name, one in harmony.items()},
        "measures": _with(pair, pair.made),
    }


def read(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results of accompaniments that lie in a folder, and what is told of each of them."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if path.stem != RESULTS]
    songs = [one for one in found if "vocal" in one]
    for sound in (sound for song in songs for sound in song["sounds"].values()):
        sound["path"] = str(folder / Path(sound["path"]).name)  # written as seen from where the command was given
    return json.loads((folder / f"{RESULTS}.json").read_text()), songs


def lines(results: Mapping[str, Any]) -> list[str]:
    """The results in plain lines."""
    rows = [
        f"{name}: " + ", ".join(f"{MEASURES[key].split(',')[0]} {_shown(cell)}" for key, cell in row.items())
        for name, row in results["rows"].items()
        if row
    ]
    return [results["verdict"], *rows]


def _shown(cell: Mapping[str, Any]) -> str:
    if not cell["count"]:
        return report.DASH
    mean, low, high = (f"{cell[key]:.2f}".replace("-", report.MINUS) for key in ("mean", "low", "high"))
    return mean if cell["count"] < FEWEST else f"{mean} ({low} … {high})"


def _intro(songs: Sequence[Mapping[str, Any]]) -> str:
    return (
        f"What was played to {len(songs)} vocal{'s' * (len(songs) != 1)}. Tokens of the vocal: "
        f"{songs[0]['tokens']['vocal']}. Codes: {songs[0]['tokens']['codes']}."
    )


def chapters(results: Mapping[str, Any], songs: Sequence[Mapping[str, Any]]) -> list[report.Section]:
    """What a page shows of accompaniments: whether they go with their vocals, their seams, and each to hear."""
    results = from_json(results)
    rows, met = results["rows"], results["seams"]
    shown = [key for key in MEASURES if any(key in row for row in rows.values())]
    cells = [[name, *(_shown(row[key]) if key in row else None for key in shown)] for name, row in rows.items()]
    gained = [_shown(results["above"][key]) if key in results["above"] else None for key in shown]
    cells.append(["what pairs gain over chance", *gained])
    caption = (
        f"Mean over songs, with the 95 % bootstrap interval from {FEWEST} songs on. Beats: F-measure within 70 ms of "
        "those that a tracker finds. Chroma: correlation frame by frame. Chance: the same accompaniments with the "
        "vocals of other songs of their style, over the time that both last."
    )
    joined = [["at seams over elsewhere", met["jump"]["count"], _shown(met["jump"]), _shown(met["flux"])]]
    seam_words = (
        "Mean over the places where a window's own codes begin; 1 is a seam that nothing shows. Jump: second "
        "difference of the waveform. Flux: change from one mel spectrum to the next."
    )
    table = report.Table(["", *(MEASURES[key] for key in shown)], cells, caption)
    met_table = report.Table(["", "seams", "jump", "flux"], joined, seam_words)
    return [
        report.Section("Does it go with its vocal?", results["verdict"], [table]),
        report.Section("Are seams heard?", "", [met_table])
        if met["jump"]["count"]
        else report.Section("Are seams heard?", "Every vocal fits one window: there is no seam."),
        *(_song(song, heard) for song, heard in zip(songs, results["heard"], strict=True)),
    ]


_PLAYERS = {"mix": "both", "accompaniment": "accompaniment", "vocal": "vocal", "true": "the true accompaniment"}


def _song(song: Mapping[str, Any], heard: Mapping[str, Any]) -> report.Section:
    players = [
        report.Player(words, song["sounds"][name]["path"]) for name, words in _PLAYERS.items() if name in song["sounds"]
    ]
    beats = {name: np.asarray(times) for name, times in heard["beats"].items()}
    picture = plots.timeline(heard["seconds"], beats, heard["chords"], song["seams"])
    told = {MEASURES[key]: f"{value:.2f}" for key, value in heard["measures"].items() if not math.isnan(value)}
    facts = {"vocal": song["vocal"], "style": heard["style"], "seed": song["seed"], "noise": song["noise"], **told}
    caption = "Beats as a tracker finds them, chords as the triads nearest to the chroma; dashed: where windows meet."
    items = [*players, report.Figure(picture, caption, f"Beats and chords of {song['name']} over time")]
    return report.Section(
        song["name"], "", [*items, report.KeyValues({k: v for k, v in facts.items() if v is not None})]
    )
