"""The table of what fits where: compiles a list of configurations for slices of TPUs, one process each.

    python benchmarks/scale_table.py --rows=benchmarks/scale_rows.txt --out=docs/scale

A line of the list is what `hiermusic compile` is told: the configuration, the topology, and if need be the number of
slices, overrides and other flags, as in

    configs/khala/backbone.py:paper v6e:16x16 --slices=2 --config.mesh.fsdp=16 --config.train.batch_size=512

Results are kept in OUT/results.jsonl, so an interrupted run goes on where it stopped (delete the file to start again);
the table goes to OUT/table.md and to standard output. A row that does not fit says so; one that fails for another
reason says why and is tried again next time.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

COLUMNS = ("model", "slice", "mesh", "batch", "remat", "program", "parameters", "GiB a chip", "collectives, GiB a chip",
           "compile, s", "step, s *", "MFU *", "tokens/s *")  # fmt: skip
_GIB = 2**30
_DOES_NOT_FIT = 3


def read_rows(path: Path) -> list[tuple[str, ...]]:
    """The arguments of each row of a list, comments and empty lines left out."""
    rows = [shlex.split(line, comments=True) for line in path.read_text().splitlines()]
    return [(f"--config={row[0]}", f"--topology={row[1]}", *row[2:]) for row in rows if row]


def compile_row(row: tuple[str, ...], limit: float) -> dict:
    """The facts that the verb tells of a row, or `failed` with its words."""
    command = [sys.executable, "-m", "hiermusic", "compile", *row, "--json"]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"failed": f"not compiled within {limit:g} s"}
    if ended.returncode not in (0, _DOES_NOT_FIT):
        words = [line for line in ended.stderr.splitlines() if line.strip()]
        return {"failed": words[-1] if words else f"exit status {ended.returncode}"}
    return json.loads(ended.stdout)


def cells(row: tuple[str, ...], facts: dict) -> list[list[str]]:
    """The lines of a row in the table: one a program."""
    if "failed" in facts:
        return [[" ".join(row), facts["failed"], *[""] * (len(COLUMNS) - 2)]]
    slices = f"{facts['slices']} x " if facts["slices"] > 1 else ""
    mesh = " ".join(f"{axis} {size}" for axis, size in facts["mesh"].items() if size > 1) or "one device"
    head = [f"{facts['stage']} {facts['preset']}", slices + facts["topology"], mesh]
    pieces = [flag.partition("=")[2] for flag in row if flag.startswith("--config.train.accumulate=")]
    head += [" / ".join([str(facts["batch_size"]), *pieces]), facts["remat"]]
    lines = []
    for program in facts["programs"]:
        sizes, memory = program["bytes_per_chip"], facts["memory_per_chip"] / _GIB
        line = [*head, program["name"], f"{facts['parameters'] / 1e9:.3f} B"]
        if program["fits"]:
            told = program["prediction"]
            sent = program["collectives"]
            moved = "unread" if sent is None else f"{sum(part['bytes'] for part in sent) / _GIB:.2f}"
            line += [f"{sizes['peak'] / _GIB:.2f} of {memory:.0f}", moved, f"{program['compile_seconds']:.0f}"]
            line += [f"{told['step_seconds']:.3g} ({told['bound_by']})", f"{told['mfu']:.0%}"]
            line.append(f"{told['tokens_per_second']:,.0f}")
        else:
            wanted = "" if sizes["wanted"] is None else f": {sizes['wanted'] / _GIB:.2f} of {sizes['memory']}"
            line += [f"does not fit{wanted}", "", f"{program['compile_seconds']:.0f}", "", "", ""]
        lines.append(line)
    return lines


def table(results: list[tuple[tuple[str, ...], dict]]) -> str:
    """All rows in Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(line for row, facts in results for line in cells(row, facts))]
    note = "\\* Prediction: the best case by analytic counts and data sheets (`hiermusic/parallel/roofline.py`)."
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n\n" + note + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="list of rows")
    parser.add_argument("--out", type=Path, default=Path("out/scale"), help="folder of results and table")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which a row is given up")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    kept, path = {}, options.out / "results.jsonl"
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # the last line of a run that was killed while it wrote
                continue
            kept[tuple(entry["row"])] = entry["facts"]
    results = []
    for row in read_rows(options.rows):
        if row not in kept:
            print(f"compiling {' '.join(row)}", file=sys.stderr, flush=True)
            kept[row] = compile_row(row, options.limit)
            if "failed" not in kept[row]:
                with path.open("a") as file:
                    file.write("\n" + json.dumps({"row": row, "facts": kept[row]}))
                    file.flush()
                    os.fsync(file.fileno())
        results.append((row, kept[row]))
    text = table(results)
    (options.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
