"""A demo: everything of a system once, small, from a corpus to a page to listen on.

Each step is a `hiermusic` command in a process of its own, so its wall time and peak memory are its own, and an
interrupted demo goes on where it was: a finished step is not run again, a half-finished one resumes itself.
"""

import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hiermusic import children
from hiermusic.console import say
from hiermusic.errors import UserError, replacing, write_atomically
from hiermusic.evaluate import accompaniment, report, sections, songs
from hiermusic.systems.demos import Demo, Step


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
    ledger = Ledger(folder / "steps.json")
    total = len(demo.steps)
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
        self.entries: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def done(self, step: Step) -> bool:
        """Whether this very command has already ended well."""
        entry = self.entries.get(step.name, {})
        return entry.get("done", False) and entry["command"] == _command(step)

    def run(self, step: Step) -> None:
        """Runs a step and adds its wall time and peak memory to its entry.

        Raises:
          UserError: the command failed.
        """
        begin = time.monotonic()
        status, memory = children.run(step.arguments)
        entry = self.entries.get(step.name, {"seconds": 0.0, "peak_memory_mb": 0.0})
        kilo = 1024 if sys.platform != "darwin" else 1
        self.entries[step.name] = {
            "command": _command(step),
            "seconds": round(entry["seconds"] + time.monotonic() - begin, 1),
            "peak_memory_mb": round(max(entry["peak_memory_mb"], memory * kilo / 2**20)),
            "done": status == 0,
        }
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.entries, indent=1) + "\n")
        if status:
            raise UserError(f"the step '{step.words}' failed; run the same command again to go on from there")


def _command(step: Step) -> str:
    return "hiermusic " + " ".join(step.arguments)


def _write_report(demo: Demo, folder: Path, ledger: Ledger) -> Path:
    """The page: what the system shows, what each step took, commands and settings."""
    costs = [
        {"stage": step.words, "seconds": entry["seconds"], "peak_memory_mb": entry["peak_memory_mb"]}
        for step in demo.steps
        if (entry := ledger.entries[step.name])
    ]
    total = sum(cost["seconds"] for cost in costs)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    chapters = [*_chapters(demo, folder), sections.cost(costs, caption=f"{machine}; {total / 60:.1f} minutes in all")]
    commands = "\n".join(_command(step) for step in demo.steps)
    settings = [report.Code(commands, "The same by hand")]
    settings += [report.Code((folder / name / "config.json").read_text(), f"{name}/config.json") for name in demo.runs]
    chapters.append(report.Section("Commands and settings", items=settings))
    return report.write(report.Page(demo.title, demo.intro, chapters), folder / "report.html")


def _chapters(demo: Demo, folder: Path) -> list[report.Section]:
    """What was made and measured: songs, accompaniments, codecs, losses, token models."""
    found = {name: _results(folder / name) for name in (*demo.songs, *demo.runs)}
    chapters = []
    for name, words in demo.songs.items():
        chapters.append(sections.music(found[name], f"{words}: how far from music"))
        made, best = songs.read(folder / name), found[name]["best"]
        chapters += [_song(one, f"{words}: {one.name}", best) for one in made]
        if found[name].get("continuation"):  # of songs that continue a sound
            chapters.append(sections.continuation(found[name]["continuation"], f"{words}: as it began?"))
        if alike := songs.structure(made, found[name]["corpus"], best):
            chapters.append(sections.structure(alike, f"{words}: does it come back to what it was?"))
    for name, words in demo.accompanied.items():
        for section in accompaniment.chapters(*accompaniment.read(folder / name)):
            chapters.append(replace(section, title=f"{words}: {section.title}"))
    for name, words in demo.runs.items():
        if "reconstruction" in found[name]:
            chapters += [
                report.Section(f"{words}: a held-out song", items=_reconstructions(folder / name)),
                sections.reconstruction(found[name], found[name]["baselines"], f"{words}: reconstruction"),
                sections.rebuilt_music(found[name], f"{words}: music in what is rebuilt"),
                sections.code_use(found[name], f"{words}: use of the codes"),
            ]
    chapters.append(sections.training({name: folder / name / "metrics.jsonl" for name in demo.runs}))
    for name, words in demo.runs.items():
        if "predictability" in found[name]:
            chapters.append(sections.predictability(found[name]["predictability"], f"{words}: predicting the tokens"))
    return chapters


def _results(workdir: Path) -> dict[str, Any]:
    return json.loads((workdir / "evaluation" / "results.json").read_text())


def _song(made: songs.Made, title: str, best: str) -> report.Section:
    """A song, the version that sounds better first, and behind it the clip that it should sound like."""
    told = made.facts
    asked = {name: value for name, value in made.facts["prompt"].items() if value}
    facts = asked | {f"sampling, {name}": value for name, value in told["sampling"].items()}
    facts |= {"length asked, s": asked.get("seconds"), "length made, s": told["seconds"], "ended itself": told["ended"]}
    players = [report.Player(version, path) for version, path in made.paths.items()]
    players.sort(key=lambda player: player.label != best)
    if "like" in told:
        players.append(report.Player("what it should sound like", Path(told["like"]["path"])))
    return sections.song(title, facts, players)


def _reconstructions(folder: Path) -> list[report.Player]:
    """The sounds of a codec's evaluation: the truth, then more and more levels."""
    return [
        report.Player(path.stem.removeprefix("clip-").replace("-", " "), path)
        for path in sorted((folder / "evaluation" / "sounds").glob("*.wav"), key=_by_levels)
    ]


def _by_levels(path: Path) -> int:
    digits = "".join(filter(str.isdigit, path.stem))
    return int(digits) if digits else -1
