"""Everything once, small: corpus, codec, tokens, two token models, three songs and a page to hear them on.

Each step is a `hiermusic` command in a process of its own, so its wall time and peak memory are its own, and an
interrupted demo goes on where it was: a finished step is not run again, a half-finished one resumes itself.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hiermusic.errors import UserError, replacing

CORPUS = "builtin:150?seconds=5-10"
PROMPTS = (
    {
        "name": "slow-ballad",
        "tags": "slow, ballad, piano, female",
        "lyrics": "[Verse]\nla lu na mi so\nna mi lu la so\n[Chorus]\nso la mi na lu",
        "seconds": 8,
        "seed": 1,
    },
    {
        "name": "fast-dance",
        "tags": "fast, dance, synth, drums, male",
        "lyrics": "[Verse]\nma no ri sa tu\nri sa ma no tu\n[Chorus]\ntu ma ri no sa",
        "seconds": 6,
        "seed": 2,
    },
    {"name": "instrumental", "tags": "medium, pop, keys, drums", "instrumental": True, "seconds": 10, "seed": 3},
)


@dataclass(frozen=True)
class Step:
    """One command of the demo, and the file that only stands when it is done (None: the command knows itself)."""

    name: str
    words: str
    arguments: Sequence[str]


def steps(folder: Path, configs: Path) -> list[Step]:
    """The commands of the demo, in order; each can be typed by hand."""
    at = {name: str(folder / name) for name in ("corpus", "codec", "tokens", "backbone", "superres", "songs")}
    config = {name: f"--config={configs / 'khala' / name}.py:tiny" for name in ("codec", "backbone", "superres")}
    tokens = f"--config.data.path={at['tokens']}"
    return [
        Step("corpus", "compose and render songs", ["data", f"--source={CORPUS}", f"--out={at['corpus']}"]),
        Step(
            "codec",
            "train the codec",
            ["train", config["codec"], f"--workdir={at['codec']}", f"--config.data.path={at['corpus']}"],
        ),
        Step(
            "tokens",
            "turn the songs into tokens",
            ["tokenize", f"--codec={at['codec']}", f"--data={at['corpus']}", f"--out={at['tokens']}"],
        ),
        Step("backbone", "train the backbone", ["train", config["backbone"], f"--workdir={at['backbone']}", tokens]),
        Step(
            "superres",
            "train super-resolution",
            [
                "train",
                config["superres"],
                f"--workdir={at['superres']}",
                tokens,
                f"--config.init_from={at['backbone']}",
            ],
        ),
        Step(
            "songs",
            "generate three songs",
            [
                "generate",
                f"--superres={at['superres']}",
                f"--prompts={folder / 'prompts.jsonl'}",
                f"--out={at['songs']}",
                "--backbone_too",
            ],
        ),
        *(
            Step(f"evaluate {name}", f"measure the {name}", ["evaluate", f"--workdir={at[name]}"])
            for name in ("codec", "backbone", "superres")
        ),
    ]


def run(folder: Path, configs: Path) -> Path:
    """Runs what is not done yet and writes the report.

    Args:
      folder: for everything the demo makes.
      configs: the folder of the configuration files.
    Returns:
      The path of report.html.
    Raises:
      UserError: a step failed (its own line stands above), or the configurations are not there.
    """
    if not (configs / "khala" / "codec.py").is_file():
        raise UserError(f"no configurations in {configs}: run in the project's folder, or give --configs=FOLDER")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    plan = steps(folder, configs)
    ledger = Ledger(folder / "steps.json")
    for number, step in enumerate(plan, 1):
        print(f"[{number}/{len(plan)}] {step.words}", file=sys.stderr, flush=True)
        if not ledger.done(step):
            ledger.run(step)
    print(f"[{len(plan)}/{len(plan)}] write the report", file=sys.stderr, flush=True)
    return write_report(folder, plan, ledger)


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
        process = subprocess.Popen([sys.executable, "-m", "hiermusic", *step.arguments], stdout=subprocess.DEVNULL)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            process.wait()
            raise
        row = self.rows.get(step.name, {"seconds": 0.0, "peak_memory_mb": 0.0})
        kilo = 1024 if sys.platform != "darwin" else 1
        self.rows[step.name] = {
            "command": _command(step),
            "seconds": round(row["seconds"] + time.monotonic() - begin, 1),
            "peak_memory_mb": round(max(row["peak_memory_mb"], usage.ru_maxrss * kilo / 2**20)),
            "done": status == 0,
        }
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps(self.rows, indent=1) + "\n")
        if status:
            raise UserError(f"the step '{step.words}' failed; run the same command again to go on from there")


def _command(step: Step) -> str:
    return "hiermusic " + " ".join(step.arguments)


def write_report(folder: Path, plan: Sequence[Step], ledger: Ledger) -> Path:
    """The page of the demo: songs, truth and reconstructions, curves, measures, prompts, settings, costs."""
    from hiermusic.evaluate import report, sections

    results = {
        name: json.loads((folder / name / "evaluation" / "results.json").read_text())
        for name in ("codec", "backbone", "superres")
    }
    players = [
        report.Player(path.stem.removeprefix("clip-").replace("-", " "), path)
        for path in sorted((folder / "codec" / "evaluation" / "sounds").glob("*.wav"), key=_by_layers)
    ]
    chapters = [_song(folder / "songs" / f"{prompt['name']}.json") for prompt in PROMPTS]
    chapters.append(report.Section("The codec on a held-out song", items=players))
    chapters.append(sections.reconstruction(results["codec"], results["codec"]["baselines"]))
    chapters.append(sections.code_use(results["codec"]))
    chapters.append(
        sections.training({name: folder / name / "metrics.jsonl" for name in ("codec", "backbone", "superres")})
    )
    chapters.append(sections.predictability(results["backbone"]["predictability"], "Predicting layers 0 and 1"))
    chapters.append(sections.predictability(results["superres"]["predictability"], "Predicting every layer"))
    costs = [
        {"stage": step.words, "seconds": row["seconds"], "peak_memory_mb": row["peak_memory_mb"]}
        for step in plan
        if (row := ledger.rows[step.name])
    ]
    total = sum(cost["seconds"] for cost in costs)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    chapters.append(sections.cost(costs, caption=f"{machine}; {total / 60:.1f} minutes in all"))
    commands = "\n".join(_command(step) for step in plan)
    settings = [report.Code(commands, "The same by hand")]
    settings += [
        report.Code((folder / name / "config.json").read_text(), f"{name}/config.json")
        for name in ("codec", "backbone", "superres")
    ]
    chapters.append(report.Section("Commands and settings", items=settings))
    intro = (
        "Khala's three models at toy size, trained in minutes on songs that the package composed and rendered itself. "
        "What you hear shows that every part works, not what the design can do at scale."
    )
    return report.write(report.Page("hiermusic demo", intro, chapters), folder / "report.html")


def _by_layers(path: Path) -> int:
    digits = "".join(filter(str.isdigit, path.stem))
    return int(digits) if digits else -1


def _song(path: Path):
    from hiermusic.evaluate import report, sections

    song = json.loads(path.read_text())
    prompt = {name: value for name, value in song["prompt"].items() if value}
    facts = prompt | {f"sampling, {name}": value for name, value in song["sampling"].items()}
    facts |= {
        "length asked, s": prompt.get("seconds"),
        "length made, s": song["seconds"],
        "ended itself": song["ended"],
    }
    players = [
        report.Player("after super-resolution", path.with_suffix(".wav")),
        report.Player("backbone only", path.with_suffix(".backbone.wav")),
    ]
    return sections.song(f"Song: {path.stem}", facts, players)
