"""The command line: help that works as printed, and one line for whatever is wrong."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hiermusic import cli

ROOT = Path(__file__).parents[1]
CONFIG = f"{ROOT}/configs/khala/codec.py"


def fails(capsys, *arguments) -> str:
    """The one line a failing verb leaves on standard error."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert exit_info.value.code not in (0, None)
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("hiermusic")]
    assert len(lines) == 1 and "Traceback" not in err
    return lines[0]


def test_usage_names_every_verb(capsys):
    cli.main([])
    out, err = capsys.readouterr()
    assert all(f"  {verb}" in out for verb in cli.VERBS) and err == ""


@pytest.mark.parametrize("name", cli.VERBS)
def test_help_has_an_example_whose_flags_exist(capsys, name):
    cli.main([name, "-h"])
    out, _ = capsys.readouterr()
    verb = cli.VERBS[name]
    assert verb.example in out and verb.summary in out
    program, called, *rest = shlex.split(verb.example)
    values = cli.Values()
    verb.define(values)
    assert (program, called) == ("hiermusic", name)
    assert all(flag.split("=")[0].lstrip("-").partition(".")[0] in values for flag in rest if flag.startswith("-"))


def test_commands_of_the_documents_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").rglob("*.py")):
        for line in re.sub(r"\\\n\s*", "", page.read_text()).splitlines():
            if not re.match(r"\s*hiermusic [a-z]+ .*--", line):
                continue
            _, name, *rest = shlex.split(line.strip(), comments=True)
            values = cli.Values()
            cli.VERBS[name].define(values)
            for flag in (word for word in rest if word.startswith("--")):
                stem = flag.split("=")[0].lstrip("-").partition(".")[0]
                assert stem in values or stem.removeprefix("no") in values, f"{page}: {flag}"


def test_inspect_answers_with_one_json_object(capsys):
    cli.main(["inspect", f"--config={CONFIG}:tiny", "--json"])
    out, _ = capsys.readouterr()
    facts = json.loads(out)
    assert facts["stage"] == "codec" and facts["params"]["total"] > 0
    assert {"sequence_length", "frame_rate_hz", "tokens_per_second"} <= facts.keys()


def test_overrides_reach_the_configuration(capsys):
    cli.main(["inspect", f"--config={CONFIG}:tiny", "--config.model.codebooks=3", "--json"])
    assert json.loads(capsys.readouterr()[0])["levels"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sing"], "no verb 'sing'"),
        (["train"], "--config, --workdir is needed"),
        (["train", "--config=nowhere.py", "--workdir=w"], "no configuration file at nowhere.py"),
        (["train", f"--config={CONFIG}:huge", "--workdir=w"], "unknown preset 'huge'"),
        (["train", f"--config={CONFIG}", "--config.train.stepz=3", "--workdir=w"], "no field"),
        (["train", f"--config={CONFIG}", "--config.train.steps=many", "--workdir=w"], "many"),
        (["train", "--colour=red"], "colour"),
        (["data", "--source=nowhere", "--out=w"], "nowhere does not exist"),
        (["encode", "--codec=nowhere", "a.wav"], "expected 2 arguments"),
        (["encode", "--codec=nowhere", "a.wav", "b.npz"], "not a training workdir"),
        (["generate", "--out=w"], "--superres, --backbone or --lm is needed"),
        (["generate", "--out=w", "--backbone=b", "--seconds=nan"], "finite"),
        (["generate", "--out=w", "--backbone=b", "--seconds=1", "--seed=-1"], "the seed -1"),
        (["data", "--source=nowhere", "--out=w", "--channels=7"], "channels"),
        (["inspect"], "either --config or --workdir"),
        (["inspect", "--workdir=nowhere"], "not a training workdir"),
        (["evaluate", "--workdir=nowhere"], "not a training workdir"),
        (["evaluate"], "either --workdir or --songs"),
        (["evaluate", "--songs=nowhere", "--workdir=nowhere"], "either --workdir or --songs"),
        (["evaluate", "--songs=nowhere"], "nowhere holds no songs"),
        (["generate", "--out=w", "--backbone=b", "--seconds=1", "--min_share=2"], "--min_share=2"),
        (["demo", "--configs=nowhere"], "no configurations in nowhere"),
    ],
)
def test_bad_input_is_told_in_one_line(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert words in fails(capsys, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_verb_is_a_process_with_an_exit_status():
    done = subprocess.run(
        [sys.executable, "-m", "hiermusic", "inspect", "--workdir=nowhere"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1


def test_the_package_alone_imports_nothing_heavy():
    code = (
        "import sys, hiermusic, hiermusic.cli; print([m for m in ('jax', 'tensorflow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_as_many_files_may_be_open_as_the_system_allows():
    script = (
        "import resource; from hiermusic import cli\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))\n"
        "cli.main(['data', '-h'])\n"
        "print('soft', resource.getrlimit(resource.RLIMIT_NOFILE)[0], min(hard, cli.OPEN_FILES))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    _, soft, wanted = done.stdout.splitlines()[-1].split()
    assert soft == wanted
