"""A demo: everything of a system once, small, from a corpus to a page to listen on.

Each step is a `hiermusic` command in a process of its own, so its wall time and peak memory are its own, and an
interrupted demo goes on where it was: a finished step is not run again, a half-finished one resumes itself.
"""

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiermusic import children
from hiermusic.console import say
from hiermusic.errors import UserError, replacing, write_atomically
from hiermusic.evaluate import report, sections


@dataclass(frozen=True)
class Step:
    """One command of the demo.

    Args:
      name: what the ledger keeps it under.
      words: what is said and shown of it.
      arguments: what follows `hiermusic`.
    """

    name: str
    words: str
    arguments: Sequence[str]


@dataclass(frozen=True)
class Demo:
    """What a system shows.

    Args:
      title, intro: of the page.
      files: small files that the steps read, by name, written first.
      steps: the commands, in order; each can be typed by hand.
      runs: the workdirs in it, whose configurations the page shows.
      chapters: what was made, as the page shows it; called when all steps are done.
    """

    title: str
    intro: str
    files: Mapping[str, str]
    steps: Sequence[Step]
    runs: Sequence[str]
    chapters: Callable[[], list[report.Section]]


def run(demo: Demo, folder: Path) -> Path:
    """Runs what is not done yet and writes the report.

    Args:
      demo: what to show.
      folder: for everything the demo makes.
    Returns:
      The path of report.html.
    Raises:
      UserError: a step failed (its own line stands above).
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in demo.files.items():
        write_atomically(folder / name, text)
    ledger, total = Ledger(folder / "steps.json"), len(demo.steps)
    for number, step in enumerate(demo.steps, 1):
        say(f"[{number}/{total}] {step.words}")
        if not ledger.done(step):
            ledger.run(step)
    say(f"[{total}/{total}] write the report")
    return _write_report(demo, folder, ledger)


class Ledger:
    """What each step took, over all the times it was started; kept in one JSON file."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def done(self, step: Step) -> bool:
        """Whether this very command has already ended well."""
        row = self.rows.get(step.name, {})
        return row.get("done", False) and row["command"] == _command(step)

    def run(self, step: Step) -> None:
        """Runs a step and adds its wall time and peak memory to its row.

        Raises:
          UserError: the command failed.
        """
        begin = time.monotonic()
        status, memory = children.run(step.arguments)
        row = self.rows.get(step.name, {"seconds": 0.0, "peak_memory_mb": 0.0})
        kilo = 1024 if sys.platform != "darwin" else 1
        self.rows[step.name] = {
            "command": _command(step),
            "seconds": round(row["seconds"] + time.monotonic() - begin, 1),
            "peak_memory_mb": round(max(row["peak_memory_mb"], memory * kilo / 2**20)),
            "done": status == 0,
        }
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.rows, indent=1) + "\n")
        if status:
            raise UserError(f"the step '{step.words}' failed; run the same command again to go on from there")


def _command(step: Step) -> str:
    return "hiermusic " + " ".join(step.arguments)


def _write_report(demo: Demo, folder: Path, ledger: Ledger) -> Path:
    """The page: what the system shows, what each step took, commands and settings."""
    costs = [
        {"stage": step.words, "seconds": row["seconds"], "peak_memory_mb": row["peak_memory_mb"]}
        for step in demo.steps
        if (row := ledger.rows[step.name])
    ]
    total = sum(cost["seconds"] for cost in costs)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    chapters = [*demo.chapters(), sections.cost(costs, caption=f"{machine}; {total / 60:.1f} minutes in all")]
    commands = "\n".join(_command(step) for step in demo.steps)
    settings = [report.Code(commands, "The same by hand")]
    settings += [
        report.Code((folder / name / "config.json").read_text(), f"{name}/config.json") for name in demo.runs
    ]
    chapters.append(report.Section("Commands and settings", items=settings))
    return report.write(report.Page(demo.title, demo.intro, chapters), folder / "report.html")


def results(folder: Path, *runs: str) -> dict[str, dict]:
    """What the evaluations of a demo's workdirs found, by workdir."""
    return {name: json.loads((folder / name / "evaluation" / "results.json").read_text()) for name in runs}


def reconstructions(folder: Path) -> list[report.Player]:
    """The sounds of a codec's evaluation: the truth, then more and more layers."""
    return [
        report.Player(path.stem.removeprefix("clip-").replace("-", " "), path)
        for path in sorted((folder / "evaluation" / "sounds").glob("*.wav"), key=_by_layers)
    ]


def _by_layers(path: Path) -> int:
    digits = "".join(filter(str.isdigit, path.stem))
    return int(digits) if digits else -1
