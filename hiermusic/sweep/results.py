"""What the runs of a sweep came to: results.json, a table in results.md, and results.png."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.errors import reading, replacing
from hiermusic.evaluate.plots import GREY, INDIGO, INK, ORANGE, STYLE, TEAL
from hiermusic.sweep import scaling
from hiermusic.sweep.plan import Estimate, short
from hiermusic.sweep.runs import Run
from hiermusic.train import checkpoint
from hiermusic.train.log import read_metrics

Row = dict[str, Any]
Curve = list[tuple[int, float]]


def rows_of(
    runs: Sequence[Run], estimates: Sequence[Estimate], wall: Mapping[str, float], failed: Sequence[str]
) -> list[Row]:
    """One row a run; what it has not come to is None.

    Args:
      runs: of the sweep.
      estimates: of the same runs.
      wall: seconds that their processes took here, by name.
      failed: names of those that ended in an error.
    """
    rows = []
    for run, plan in zip(runs, estimates, strict=True):
        records = read_metrics(run.workdir)
        valid = _curve(records, "valid/loss")
        best = min(valid, key=lambda point: point[1], default=(None, None))
        step = checkpoint.latest_step(run.workdir) or 0
        state = "finished" if step >= plan.steps else "failed" if run.name in failed else "not finished"
        rows.append(
            {
                "run": run.name,
                "settings": run.settings,
                "state": state,
                "step": step,
                "steps": plan.steps,
                "loss": next((record["loss"] for record in reversed(records) if record.get("loss") is not None), None),
                "valid_loss": valid[-1][1] if valid else None,
                "best_valid_loss": best[1],
                "best_step": best[0],
                "wall_seconds": wall.get(run.name),
                "seconds_per_step": _median([record.get("seconds_per_step") for record in records[1:]]),
                "parameters": plan.parameters,
                "tokens": min(step / plan.steps, 1.0) * plan.tokens,
                "audio_seconds": min(step / plan.steps, 1.0) * plan.seconds,
                "flops": min(step / plan.steps, 1.0) * plan.flops,
            }
        )
    return rows


def read_wall(folder: str) -> dict[str, float]:
    """Seconds that the runs of a sweep have taken so far, by name."""
    path = Path(folder) / "results.json"
    if not path.is_file():
        return {}
    with reading(path, "the results of a sweep", "delete it"):
        rows = json.loads(path.read_text())["runs"]
        return {str(row["run"]): float(row["wall_seconds"]) for row in rows if row["wall_seconds"] is not None}


def write(folder: str, runs: Sequence[Run], rows: Sequence[Row], is_scaling: bool) -> tuple[dict[str, Any], list[str]]:
    """Writes results.json, results.md and results.png; returns what the first holds and the table as lines."""
    chosen = [rows[i] for i in _frontier(rows)] if is_scaling else []
    law = scaling.fit([row["flops"] for row in chosen], [row["valid_loss"] for row in chosen]) if chosen else None
    words = _words(rows, chosen, law) if is_scaling else []
    table = [*_table(rows), *([""] if words else []), *words]
    results: dict[str, Any] = {"runs": list(rows)}
    if law:
        results["scaling"] = vars(law) | {"runs": [row["run"] for row in chosen]}
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    with replacing(target / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1) + "\n")
    with replacing(target / "results.md") as temporary:
        temporary.write_text("\n".join([f"# {runs[0].config}", "", *table, "", "![curves](results.png)", ""]))
    logs = {run.name: read_metrics(run.workdir) for run in runs}
    curves = {name: (_curve(log, "loss"), _curve(log, "valid/loss")) for name, log in logs.items()}
    with replacing(target / "results.png") as temporary:
        _draw(temporary, rows, curves, chosen, law)
    return results, table


def _frontier(rows: Sequence[Row]) -> list[int]:
    whole = [i for i, row in enumerate(rows) if row["state"] == "finished" and row["valid_loss"] is not None]
    kept = scaling.frontier([rows[i]["flops"] for i in whole], [rows[i]["valid_loss"] for i in whole])
    return [whole[i] for i in kept]


def _words(rows: Sequence[Row], chosen: Sequence[Row], law: scaling.Fit | None) -> list[str]:
    """The fit, and how far to trust it."""
    beaten = [row["run"] for row in rows if row["state"] == "finished" and row not in chosen]
    left = [f"Left out, since a run of at most their compute does better: {', '.join(beaten)}."] if beaten else []
    if law is None:
        return [
            f"No scaling law: three parameters need at least {scaling.FEWEST} finished runs of different compute, each "
            f"better than all cheaper ones; there are {len(chosen)}.",
            *left,
        ]
    low, high = law.interval
    unsure = low <= 0 or high >= scaling.STEEPEST
    error = "not known below 5 runs" if law.left_out is None else f"{law.left_out:.3g} (root mean square)"
    return [
        f"L(C) = {law.floor:.4g} + {law.scale:.4g} C^-{law.exponent:.4g}, C in FLOPs, from {len(chosen)} runs.",
        f"R^2 {law.r2:.4f}; largest residual {max(map(abs, law.residuals)):.3g}; error on a run left out: {error}; "
        f"exponent between {low:.3g} and {high:.3g} (95 %, bootstrap)"
        + ("; these runs do not determine it." if unsure else "."),
        *left,
    ]


def _table(rows: Sequence[Row]) -> list[str]:
    best = min((row["valid_loss"] for row in rows if row["valid_loss"] is not None), default=None)
    head = "run|state|valid loss|best (step)|train loss|wall s|s/step|tokens|FLOPs|parameters".split("|")
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for row in rows:
        state = row["state"] if row["state"] == "finished" else f"{row['state']}, {row['step']} of {row['steps']}"
        final = _number(row["valid_loss"], ".4f")
        cells = (
            row["run"],
            state,
            f"**{final}**" if best is not None and row["valid_loss"] == best else final,
            "-" if row["best_step"] is None else f"{row['best_valid_loss']:.4f} ({row['best_step']})",
            _number(row["loss"], ".4f"),
            _number(row["wall_seconds"], ".0f"),
            _number(row["seconds_per_step"], ".3g"),
            short(row["tokens"]),
            f"{row['flops']:.3g}",
            short(row["parameters"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _curve(records: Sequence[Mapping[str, Any]], name: str) -> Curve:
    return [(record["step"], record[name]) for record in records if record.get(name) is not None]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


# MARK: the picture


def _draw(
    path: Path,
    rows: Sequence[Row],
    curves: Mapping[str, tuple[Curve, Curve]],
    chosen: Sequence[Row],
    law: scaling.Fit | None,
) -> None:
    """Learning curves on the left; on the right the law, the loss against the one swept number, or a rank list."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {name: "#222222" if value == INK else value for name, value in STYLE.items()}
    with matplotlib.rc_context(style):
        figure = Figure((11, max(4.2, 1.6 + 0.24 * len(rows))), layout="constrained")
        left, right = figure.subplots(1, 2)
        colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(rows)))
        for colour, (name, (train, valid)) in zip(colours, curves.items(), strict=True):
            if train:
                left.plot(*zip(*train, strict=True), color=colour, alpha=0.3, linewidth=1)
            if train or valid:
                left.plot(*zip(*(valid or train), strict=True), color=colour, marker="o" if valid else None, label=name)
        left.set(title="held-out loss (faint: training)", xlabel="step", ylabel="loss")
        if any(train or valid for train, valid in curves.values()) and len(rows) <= 12:
            left.legend(fontsize=7)
        ended = [row for row in rows if row["valid_loss"] is not None]
        field = _swept_number(ended)
        if law:
            _draw_law(right, ended, chosen, law)
        elif field:
            points = sorted((row["settings"][field], row["valid_loss"]) for row in ended)
            right.plot(*zip(*points, strict=True), color=INDIGO, marker="o")
            values = [x for x, _ in points]
            if min(values) > 0 and max(values) >= 8 * min(values):
                right.set_xscale("log")
            right.set(title="held-out loss at the end", xlabel=field, ylabel="loss")
        else:
            ended.sort(key=lambda row: row["valid_loss"], reverse=True)
            right.plot([row["valid_loss"] for row in ended], range(len(ended)), "o", color=INDIGO)
            right.set_yticks(range(len(ended)), [row["run"] for row in ended], fontsize=7)
            right.set(title="held-out loss at the end", xlabel="loss")
        figure.savefig(path, format="png", dpi=130, facecolor="white", metadata={"Software": None})


def _swept_number(rows: Sequence[Row]) -> str | None:
    """The one field that differs between the runs, where it is a number."""
    fields = dict.fromkeys(name for row in rows for name in row["settings"])
    varying = [name for name in fields if len({repr(row["settings"].get(name)) for row in rows}) > 1]
    if len(varying) != 1:
        return None
    values = [row["settings"].get(varying[0]) for row in rows]
    return varying[0] if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values) else None


def _draw_law(axis, ended: Sequence[Row], chosen: Sequence[Row], law: scaling.Fit) -> None:
    others = [row for row in ended if row not in chosen]
    for group, colour, label in ((chosen, INDIGO, "fitted"), (others, GREY, "left out")):
        if group:
            points = [(row["flops"], row["valid_loss"]) for row in group]
            axis.plot(*zip(*points, strict=True), "o", color=colour, label=label)
    compute = np.geomspace(min(row["flops"] for row in chosen), max(row["flops"] for row in chosen), 100)
    axis.plot(compute, law(compute), color=ORANGE, label=f"{law.floor:.3g} + A C^-{law.exponent:.3g}")
    if law.floor > 0.5 * min(row["valid_loss"] for row in chosen):
        axis.axhline(law.floor, color=TEAL, linewidth=0.8, linestyle="--", label="E")
    axis.set(title="held-out loss against compute", xlabel="training FLOPs", ylabel="loss", xscale="log")
    axis.legend()
