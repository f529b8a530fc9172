"""Ready-made chapters of a report, each from what the other measurements return."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hiermusic.evaluate import plots
from hiermusic.evaluate.codec import levels_name
from hiermusic.evaluate.continuation import MEASURES as GOING_ON
from hiermusic.evaluate.music import MEASURES
from hiermusic.evaluate.report import DASH, MINUS, Code, Figure, Item, KeyValues, Player, Section, Table, number
from hiermusic.evaluate.scores import SCORES, from_json
from hiermusic.evaluate.tokens import losing


def _mean(cell: Mapping[str, float], decimals: int) -> str:
    mean, low, high = (f"{cell[key]:.{decimals}f}".replace("-", MINUS) for key in ("mean", "low", "high"))
    return f"{mean} ({low} … {high})" if cell["count"] else DASH


def _share(value: float) -> str:
    return f"{100 * value:.1f}"


def song(title: str, prompt: Mapping[str, object], players: Sequence[Player], text: str = "") -> Section:
    """One song: its players in a grid over the prompt that made it; an entry "lyrics" of the prompt is set as verse."""
    facts = {name: value for name, value in prompt.items() if name != "lyrics" and value not in (None, "")}
    items: list[Item] = [*players]
    if facts:
        items.append(KeyValues(facts))
    if prompt.get("lyrics"):
        items.append(Code(str(prompt["lyrics"]), "Lyrics"))
    return Section(title, text, items)


def reconstruction(result: Mapping, baselines: Mapping | None = None, title: str = "Reconstruction") -> Section:
    """What n levels rebuild, in plots and one table with every anchor.

    Args:
      result: from `evaluate_codec`.
      baselines: from `evaluate_baselines` at the same rates.
    """
    result, baselines = from_json(result), baselines and from_json(baselines)
    bars = [(levels_name(row["levels"]), row["bits_per_second"], row) for row in result["reconstruction"]]
    if baselines:
        bars += [("transform codec", row["bits_per_second"], row) for row in baselines["transform"]]
        bars += [(f"low-pass {row['cutoff'] / 1000:g} kHz", None, row) for row in baselines["low_pass"]]
        bars += [("silence", None, baselines["silence"])]
    bars += [(name.replace("_", " "), None, row) for name, row in result["anchors"].items()]
    columns = ["", "bit/s", *(f"{h}, {u}" if u else h for h, u, _ in SCORES.values()), "silent, %"]
    decimals = {key: 1 if unit == "dB" else 2 for key, (_, unit, _) in SCORES.items()}
    rows = [
        [name, rate and round(rate), *(_mean(row[k], d) for k, d in decimals.items()), _share(row["silence"]["mean"])]
        for name, rate, row in bars
    ]
    clips = f"{result['clips']} held-out clip{'s' * (result['clips'] != 1)}, {result['seconds']:.0f} s in all"
    silent = f"; {result['silent_clips']} silent ones left out" if result["silent_clips"] else ""
    caption = (
        f"Mean over clips (95 % bootstrap interval). {clips}{silent}. Protocol {result['protocol_hash']}: mel and STFT "
        "distances with the Descript Audio Codec library's default scales. Bits count log2(codes) a token. "
    )
    if baselines:
        caption += (
            "Transform codec: MDCT, one uniform step, adaptive arithmetic code of exactly the bits shown. Low-passed "
            "sound makes no claim about rate. "
        )
    caption += (
        "Shuffled clips: another clip's reconstruction, which shows what unrelated music scores. "
        "Silent: share of 50 ms frames below -60 dBFS; an empty output passes some distances well."
    )
    figures = [
        Figure(plots.reconstruction(result, key, baselines), alt=f"{SCORES[key][0]} against bits per second")
        for key in ("si_sdr", "mel")
    ]
    return Section(title, items=[*figures, Table(columns, rows, caption)])


_MEANINGS = (
    "Tonality: share of the power between 80 and 2,000 Hz in bins 8 dB above their neighbours. Chroma entropy: at most "
    "3.58. Onset regularity: highest autocorrelation of the onset strength at 0.25 to 1.5 s; noise of the same "
    "envelope keeps it. "
)


def _measures(rows: Mapping[str, Mapping], caption: str) -> Table:
    """A row a sound, a column a measure of music, of those that the rows have."""
    shown = [key for key in MEASURES if any(key in row for row in rows.values())]
    cells = [
        [name, *(_mean(row[key], MEASURES[key][1]) if key in row else None for key in shown)]
        for name, row in rows.items()
    ]
    return Table(["", *(MEASURES[key][0] for key in shown)], cells, caption)


def music(result: Mapping, title: str = "How far from music") -> Section:
    """Generated songs beside their corpus and the anchors; `result` is from `songs.evaluate_songs`."""
    result = from_json(result)
    text = result["verdict"]
    if len(result["against_shuffled"]) > 1:
        text += f" The version of the higher tonality, here “{result['best']}”, stands first."
    beyond = ", ".join(
        f"{MEASURES[name][0].split(',')[0]} by {_mean(cell | {'count': 1}, 2)}"
        for name, cell in result["against_shuffled"][result["best"]].items()
        if not math.isnan(cell["mean"])
    )
    caption = (
        f"Mean over {result['songs']} songs and {result['held_out']} held-out ones cut to their greatest length (95 % "
        f"bootstrap interval). {_MEANINGS}Loudness, peak and clipping of songs are those before the limiter. "
        "Distances: mean difference in dB, two seconds by two seconds, to the most alike of "
        f"{result['training_tracks']} training songs, and of songs of other prompts; far below that of held-out songs "
        f"means copies. From shuffled frames of held-out songs “{result['best']}” differs in {beyond}."
    )
    return Section(title, text, [_measures(result["rows"], caption)])


def frechet(result: Mapping, title: str = "How near the corpus as a whole") -> Section:
    """Distances of sets of songs from the training tracks; `result` is from `frechet.evaluate_songs`."""
    rows = [[name, number(row["distance"], 4), row["windows"]] for name, row in result["rows"].items()]
    reference = result["reference"]
    caption = (
        f"Frechet distance of {result['family']} vectors ({result['embedding']}) to those of "
        f"{reference['training_tracks']} training tracks, {reference['windows']} windows. {result['protocol']}. It "
        "falls with the number of windows: compare rows that have about as many."
    )
    return Section(title, items=[Table(["", "distance", "windows"], rows, caption)])


def continuation(rows: Mapping[str, Mapping], title: str = "Does it go on as it began?") -> Section:
    """How songs go on from what they continue; `rows` are from `continuation.evaluate`."""
    rows = from_json(rows)
    columns = ["", "pairs", *(heading for heading, _ in GOING_ON.values())]
    cells = [
        [name, row["distance"]["count"], *(_mean(row[key], decimals) for key, (_, decimals) in GOING_ON.items())]
        for name, row in rows.items()
    ]
    caption = (
        "Mean over pairs of a beginning and what follows it (95 % bootstrap interval): the correlation of their mean "
        "chroma; whether their tempi agree within 4 %, half and double counted as right; the difference of their "
        "loudness; the mean distance, two seconds by two seconds, from what follows to the beginning."
    )
    return Section(title, items=[Table(columns, cells, caption)])


def structure(
    sounds: Mapping[str, tuple[np.ndarray, float]], title: str = "Does it come back to what it was?"
) -> Section:
    """The self-similarity of a long song beside a real track's; `sounds` are from `songs.structure`."""
    caption = (
        "Each point: the correlation of two seconds of a sound's mel spectrum with two others, less the mean of the "
        "whole. Repeats are bright lines beside the diagonal, sections bright squares on it; what never comes back has "
        "neither."
    )
    figure = Figure(plots.self_similarity(sounds), caption, alt=f"Self-similarity of {' and of '.join(sounds)}")
    return Section(title, items=[figure])


def rebuilt_music(result: Mapping, title: str = "Music in what is rebuilt") -> Section:
    """What of pitch, harmony and rhythm so many levels carry; `result` is from `evaluate_codec`."""
    caption = (
        f"Mean over the clips (95 % bootstrap interval). {_MEANINGS}Agreement is with the clip itself: mean "
        "correlation of the chroma, frame by frame, and the F-measure of the beats within 70 ms."
    )
    return Section(title, items=[_measures(from_json(result["music"]), caption)])


def obedience(rows: Mapping[str, Mapping], title: str = "Are they what was asked for?") -> Section:
    """Attributes of prompts that songs have; `rows` are from `obedience.measure`."""
    rows = from_json(rows)
    columns = ["", "prompts", "obeyed, %", "other prompts, %", "gain, points", "p", "held-out songs told rightly, %"]

    def share(cell: Mapping) -> str:
        return _mean({key: 100 * cell[key] for key in ("mean", "low", "high")} | {"count": cell["count"]}, 0)

    cells = [
        [
            name if row["trusted"] else f"{name} (cannot be told)",
            row["songs"]["share"]["count"],
            share(row["songs"]["share"]),
            f"{100 * row['songs']['permuted']:.0f}",
            share(row["songs"]["gain"]),
            f"{row['songs']['p']:.3f}",
            share(row["corpus"]["share"]) if name != "length" else None,
        ]
        for name, row in rows.items()
    ]
    caption = (
        "Obeyed: the share of songs in which what their prompt asks for is heard (95 % bootstrap interval), beside the "
        "mean share under each other's prompts; p: share of 1,000 random permutations of the prompts that do as well. "
        "Tempo within 4 %, half and double counted as right; length within a fifth. Drums, voice, mode and pace are "
        "told by detectors that the corpus's training songs taught; the last column says what they are worth."
    )
    return Section(title, items=[Table(columns, cells, caption)])


def code_use(result: Mapping, title: str = "Use of the codes") -> Section:
    """Usage, perplexity and entropy of each level; `result` is from `evaluate_codec`."""
    codes, whole = result["codes"], result["reconstruction"][-1]
    text = (
        f"All {len(codes)} levels carry {number(whole['effective_bits_per_second'])} of "
        f"{number(whole['bits_per_second'])} bits per second: {whole['efficiency']:.0%}. "
        f"Counted over {codes[0]['tokens']:,} tokens of the first level; entropy cannot exceed log2 of that number."
    )
    columns = ["level", "codes used, %", "perplexity", "entropy, bits", "of bits"]
    rows = [
        [r["level"], _share(r["usage"]), f"{r['perplexity']:.1f}", f"{r['entropy_bits']:.2f}", f"{r['bits']:.3g}"]
        for r in codes
    ]
    picture = Figure(plots.code_usage(codes), alt="Share of codes used and of bits carried for each level")
    return Section(title, text, [picture, Table(columns, rows)])


def training(runs: Mapping[str, str | Path], title: str = "Training") -> Section:
    """Loss curves of each run; `runs` maps a name to its metrics.jsonl."""
    names = ", ".join(runs)
    return Section(title, items=[Figure(plots.loss_curves(runs), alt=f"Training and held-out loss of {names}")])


def predictability(rows: Sequence[Mapping], title: str = "Predicting the tokens") -> Section:
    """Cross-entropy of each level beside counting; `rows` are from `tokens.compare`."""
    rows = from_json(rows)
    total = rows[-1]
    text = (
        f"On held-out music the model spends {number(total['model'])} bits per second of audio where counting codes "
        f"(a smoothed unigram) spends {number(total['unigram'])}. Counting is ahead on "
        f"{'levels ' + ', '.join(map(str, losing(rows))) if losing(rows) else 'no level'}."
    )
    columns = ["level", "tokens/s", *(f"{kind}, bits" for kind in ("model", "unigram", "uniform"))]
    columns += [f"model {MINUS} unigram", "saved, %"]
    kinds = ("rate", "model", "unigram", "uniform")
    cells = [
        [str(r["level"]), *(f"{r[kind]:.2f}" for kind in kinds), _mean(r["difference"], 2), _share(r["saved"])]
        for r in rows
    ]
    caption = (
        "Bits a token, teacher forced; the row “all” in bits per second of audio. In brackets the 95 % bootstrap "
        f"interval over {total['difference']['count']} tracks."
    )
    picture = Figure(plots.level_losses(rows), alt="Cross-entropy of each level: model, unigram and uniform")
    return Section(title, text, [picture, Table(columns, cells, caption)])


def verification(checks: Sequence[Mapping], title: str = "Verifying the tokens") -> Section:
    """Each check with its figure and whether it passes; `checks` are of `verify.Check.to_json`."""
    checks = from_json(checks)
    verdicts = {True: "pass", False: "FAIL"}
    rows = [
        [check["name"], f"{check['figure']:.3f}", check["unit"], check["wanted"], verdicts.get(check["passed"], DASH)]
        for check in checks
    ]
    failed = sum(check["passed"] is False for check in checks)
    text = f"{failed} of {len(checks)} checks fail." if failed else "No check fails."
    return Section(title, text, [Table(["", "figure", "of", "wanted", ""], rows)])


def cost(stages: Sequence[Mapping[str, object]], title: str = "Time and memory", caption: str = "") -> Section:
    """What each stage took: mappings with one set of keys, such as stage, seconds, peak_memory_mb."""
    columns = list(stages[0])
    rows = [[stage[column] for column in columns] for stage in stages]
    return Section(title, items=[Table([c.replace("_", " ") for c in columns], rows, caption)])
