"""Pictures for the report: quiet SVG plots that follow the page's light or dark ink, and mel spectrograms as PNG."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from hiermusic.audio import pictures
from hiermusic.errors import UserError
from hiermusic.evaluate.scores import SCORES
from hiermusic.train.log import read_metrics

INDIGO, ORANGE, TEAL, GREY = "#5f74e8", "#e07b39", "#1f9e89", "#8b8894"  # legible on white and on black
INK = "#010203"  # stands for the page's text colour until the SVG is written

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "hiermusic",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": GREY,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
}


def _svg(draw, width: float, height: float) -> str:
    """Draws on a fresh figure and returns SVG to set inline: transparent, scalable, in the page's ink and font."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure((width, height), layout="constrained")
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()[out.getvalue().index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"|(?<=<g) id="[^"]*"', "", svg)
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "system-ui, sans-serif", svg)
    svg = svg.replace("<svg", f'<svg width="{100 * width:.0f}"', 1)
    return svg.replace(INK, "currentColor").strip()


def mel_png(wav_LC: Float[np.ndarray, "L C"], sample_rate: int, width: int = 900) -> bytes:
    """`audio.pictures.mel_shades` as a small palette PNG without axes."""
    from PIL import Image

    image = Image.fromarray(pictures.mel_shades(wav_LC, sample_rate, width))
    image.putpalette(pictures.palette().tobytes())
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True, bits=6)
    return out.getvalue()


def loss_curves(runs: Mapping[str, str | Path], keys: tuple[str, str] = ("loss", "valid/loss")) -> str:
    """One panel a run: the training loss (faint, its smoothed line over it) and the validation loss as dots.

    Args:
      runs: title -> the metrics.jsonl of a workdir.
      keys: names of the training and the validation figure in metrics.jsonl; records without one are passed over.
    Raises:
      UserError: no training was logged.
    """
    series = {title: read_metrics(Path(path).parent) for title, path in runs.items()}
    for title, rows in series.items():
        if not any(keys[0] in row for row in rows):
            raise UserError(f"{runs[title]} holds no {keys[0]!r}; train there first")

    def draw(figure):
        columns = min(3, len(series))
        axes = figure.subplots(-(-len(series) // columns), columns, squeeze=False).ravel()
        for axis in axes[len(series) :]:
            axis.set_visible(False)
        for axis, (title, rows) in zip(axes, series.items(), strict=False):
            train, valid = (
                np.array([(r["step"], r[k]) for r in rows if isinstance(r.get(k), int | float)]).reshape(-1, 2).T
                for k in keys
            )
            axis.plot(*train, color=INDIGO, alpha=0.35, linewidth=1)
            axis.plot(train[0], _smooth(train[1]), color=INDIGO, label="train")
            if valid.size:
                axis.plot(*valid, color=ORANGE, marker="o", linewidth=1.2, label="held out")
            axis.set(title=title, xlabel="step", ylabel="loss")
            axis.legend()

    columns = min(3, len(series))
    return _svg(draw, 3.6 * columns, 2.7 * -(-len(series) // columns))


def _smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a twentieth of the run."""
    half = len(values) // 40
    total = np.concatenate([[0.0], np.cumsum(values)])
    low, high = np.maximum(np.arange(len(values)) - half, 0), np.minimum(np.arange(len(values)) + half + 1, len(values))
    return (total[high] - total[low]) / (high - low)


def reconstruction(result: Mapping, metric: str, baselines: Mapping | None = None) -> str:
    """One score against bits per second, marked by number of levels, with 95 % intervals.

    Args:
      result: from `evaluate_codec`.
      metric: a key of `scores.SCORES`.
      baselines: from `evaluate_baselines`: the transform codec's curve and flat lines for low-passed sound.
    """
    heading, unit, higher = SCORES[metric]

    def draw(figure):
        axis = figure.subplots()
        _curve(axis, result["reconstruction"], metric, INDIGO, "this codec")
        for row in result["reconstruction"]:
            axis.annotate(
                row["levels"],
                (row["bits_per_second"], row[metric]["mean"]),
                xytext=(0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
        if baselines:
            _curve(axis, baselines["transform"], metric, ORANGE, "transform codec")
            for row in baselines["low_pass"]:
                _level(axis, row[metric]["mean"], TEAL, f"low-pass {row['cutoff'] / 1000:g} kHz")
        floor = result["anchors"]["random_codes"][metric]["mean"]
        if not higher and math.isfinite(floor):
            _level(axis, floor, GREY, "random codes")
        axis.margins(y=0.12)
        axis.set_xscale("log", base=2)
        rates = [row["bits_per_second"] for row in result["reconstruction"]]
        axis.set_xticks(rates, [f"{r / 1000:.3g}k" if r >= 1000 else f"{r:.0f}" for r in rates], fontsize=8.5)
        axis.minorticks_off()
        better = "higher is better" if higher else "lower is better"
        title = f"{heading}, {unit}" if unit else heading
        axis.set(title=f"{title} ({better})", xlabel="bits per second; number of levels above each point")
        axis.legend()

    return _svg(draw, 5.4, 3.5)


def _curve(axis, rows: Sequence[Mapping], metric: str, colour: str, label: str) -> None:
    x = [row["bits_per_second"] for row in rows]
    mean, low, high = ([row[metric][key] for row in rows] for key in ("mean", "low", "high"))
    axis.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    axis.plot(x, mean, color=colour, marker="o", label=label)


def _level(axis, height: float, colour: str, label: str) -> None:
    """A horizontal line that carries its own name, for what has no bit rate."""
    axis.axhline(height, color=colour, linestyle=(0, (4, 3)), linewidth=1.2)
    place = {"xycoords": axis.get_yaxis_transform(), "xytext": (0, 2), "textcoords": "offset points"}
    axis.annotate(label, (0.01, height), color=colour, fontsize=8, va="bottom", **place)


def self_similarity(sounds: Mapping[str, tuple[Float[np.ndarray, "N N"], float]]) -> str:
    """One panel a sound: how alike its parts are (`music.self_similarity`), time against time."""

    def draw(figure):
        axes = figure.subplots(1, len(sounds), squeeze=False)[0]
        for axis, (title, (alike_NN, step)) in zip(axes, sounds.items(), strict=True):
            end = len(alike_NN) * step
            axis.imshow(alike_NN, cmap="magma", vmin=-0.25, vmax=1, origin="lower", extent=(0, end, 0, end))
            axis.grid(False)
            axis.set(title=title, xlabel="seconds")

    return _svg(draw, 3.6 * len(sounds), 3.7)


def timeline(
    seconds: float,
    beats: Mapping[str, Float[np.ndarray, "N"]],
    chords: Mapping[str, Sequence[tuple[str, float, float]]],
    seams: Sequence[float] = (),
) -> str:
    """Lanes over time: of each name its beats as strokes, or its chords (name, start, end) as spans; seams dashed."""

    def draw(figure):
        axis = figure.subplots()
        lanes = [*beats, *chords]
        for lane, name in enumerate(beats):
            axis.vlines(beats[name], lane - 0.35, lane + 0.35, color=(INDIGO, ORANGE, TEAL)[lane % 3], linewidth=1.3)
        for lane, name in enumerate(chords, len(beats)):
            for number, (chord, start, end) in enumerate(chords[name]):
                axis.barh(lane, end - start, 0.7, start, color=(INDIGO, TEAL)[number % 2], alpha=0.25, linewidth=0)
                if end - start > seconds / 40:
                    axis.text((start + end) / 2, lane, chord, ha="center", va="center", fontsize=7.5)
        for seam in seams:
            axis.axvline(seam, color=GREY, linestyle=(0, (4, 3)), linewidth=1)
        axis.set_yticks(range(len(lanes)), lanes)
        axis.grid(axis="y", visible=False)
        axis.set(xlabel="seconds", xlim=(0, seconds), ylim=(len(lanes) - 0.4, -0.6))

    return _svg(draw, 10.0, 0.45 * (len(beats) + len(chords)) + 0.8)


def code_usage(codes: Sequence[Mapping]) -> str:
    """Share of the codebook used (bars) and share of its bits carried (entropy / log2 codes, line) over the levels."""

    def draw(figure):
        axis = figure.subplots()
        levels = [row["level"] for row in codes]
        axis.bar(levels, [row["usage"] for row in codes], width=0.8, color=INDIGO, alpha=0.3, label="codes used")
        axis.plot(levels, [row["efficiency"] for row in codes], "o-", color=ORANGE, label="entropy / log2(codes)")
        axis.set(title="Codes used and bits carried", xlabel="level", ylabel="share", ylim=(0, 1.05))
        axis.grid(axis="x", visible=False)
        axis.legend(loc="lower right", ncols=2, bbox_to_anchor=(1.0, 1.0), borderaxespad=0)

    return _svg(draw, 7.2, 2.9)


def level_losses(rows: Sequence[Mapping]) -> str:
    """Bits a token of each level: the model beside the unigram; `rows` are from `tokens.compare`."""

    def draw(figure):
        axis = figure.subplots()
        levels = [row for row in rows if row["level"] != "all"]
        x = [row["level"] for row in levels]
        for key, colour in {"uniform": GREY, "unigram": ORANGE, "model": INDIGO}.items():
            axis.plot(x, [row[key] for row in levels], "o-", color=colour, label=key)
        axis.set(title="Cross-entropy, bits a token (lower is better)", xlabel="level", ylim=(0, None))
        axis.legend()

    return _svg(draw, 7.2, 2.9)
