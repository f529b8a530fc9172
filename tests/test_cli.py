"""The command line: help that works as printed, and one line for whatever is wrong."""

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hiermusic import cli, presets
from hiermusic.errors import UserError
from hiermusic.systems import catalogue, workdir
from hiermusic.systems.lm import models as lm_models
from hiermusic.train import loop
from hiermusic.verbs import flags
from hiermusic.verbs.flags import mesh_sizes

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


@pytest.mark.parametrize("system", ["", *catalogue.systems()])
@pytest.mark.parametrize("name", cli.VERBS)
def test_help_has_an_example_whose_flags_exist(capsys, name, system):
    """Of the system that is named, where the verb has none of its own; of the first, where that one has none."""
    verb = cli.VERBS[name]
    cli.main([name, "-h", *([f"--system={system}"] if system else [])])
    out, _ = capsys.readouterr()
    systems = catalogue.systems()
    example = verb.example or systems[system or "khala"].examples.get(name) or systems["khala"].examples[name]
    assert example in out and verb.summary in out
    program, called, *rest = shlex.split(example)
    values = cli.Values()
    verb.define(values)
    assert (program, called) == ("hiermusic", name)
    assert all(flag.split("=")[0].lstrip("-").partition(".")[0] in values for flag in rest if flag.startswith("-"))


def test_help_of_generation_is_that_of_the_system_that_is_named(capsys):
    """And tells of all where none is, whose flag is whose."""
    told = {}
    for name in ("", *catalogue.systems()):
        cli.main(["generate", "-h", *([f"--system={name}"] if name else [])])
        told[name] = capsys.readouterr().out
    owners = {"superres": ["khala"], "tags": ["khala", "pyramid", "tokens"], "min_share": ["khala"],
              "lm": ["aar", "pyramid", "tokens"], "like": ["aar"], "levels_too": ["pyramid"]}  # fmt: skip
    for flag, theirs in owners.items():
        assert [name for name in catalogue.systems() if f"--{flag} " in told[name] and name != "hafm"] == theirs, flag
        assert re.search(rf"--{flag} +{catalogue.systems()[theirs[0]].title}: ", told[""])
    assert told["hafm"] == told[""]  # it has no songs without a vocal
    assert all(f"--{flag} " in text for text in told.values() for flag in ("codec", "seconds", "top_k", "guidance"))
    assert re.search(r"--top_k +its top-k", told[""])
    assert re.search(r"--guidance +Khala: guidance .*; AAR: guidance", told[""])


def test_a_system_that_is_not_there(capsys):
    assert "give a name behind --system=" in fails(capsys, "generate", "-h", "--system")
    there = "--system=nobody: there is khala, aar, pyramid, hafm or tokens"
    assert fails(capsys, "demo", "--system=nobody") == f"hiermusic demo: {there}"
    with pytest.raises(UserError, match=there):
        catalogue.named("nobody")


def test_commands_of_the_documents_exist(monkeypatch):
    """With their flags, and the fields of configurations that they set."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").rglob("*.py")):
        for line in re.sub(r"\\\n\s*", "", page.read_text()).splitlines():
            if not re.match(r"\s*hiermusic [a-z]+ .*--", line):
                continue
            # of a recipe of fine-tuning the run that it names, which is not there, is left out
            _, name, *rest = shlex.split(re.sub(r"(finetune\.py:\w+)@\S+", r"\1", line.strip()), comments=True)
            values = cli.Values()
            monkeypatch.setattr("sys.argv", [f"hiermusic {name}", *rest])
            cli.VERBS[name].define(values)
            try:
                cli._parse(name, values)
            except UserError as error:
                pytest.fail(f"{page}: {line.strip()}: {error}")


def test_inspect_answers_with_one_json_object(capsys):
    cli.main(["inspect", f"--config={CONFIG}:tiny", "--json"])
    out, _ = capsys.readouterr()
    facts = json.loads(out)
    assert facts["stage"] == "codec" and facts["params"]["total"] > 0
    assert {"sequence_length", "frame_rate_hz", "tokens_per_second"} <= facts.keys()


def test_overrides_reach_the_configuration(capsys):
    cli.main(["inspect", f"--config={CONFIG}:tiny", "--config.model.levels=3", "--json"])
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


def test_a_command_ends_with_the_one_that_started_it(monkeypatch, capsys):
    watched = []
    monkeypatch.setattr(cli, "end_with_parent", lambda: watched.append(True))
    cli.main(["-h"])
    assert watched == [True]


def test_the_package_alone_imports_nothing_heavy():
    code = (
        "import sys, hiermusic, hiermusic.cli; print([m for m in ('jax', 'tensorflow', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_help_of_every_verb_comes_without_jax():
    code = """
import sys
from hiermusic import cli
for name in cli.VERBS:
    cli.main([name, "-h"])
print([m for m in ("jax", "flax", "orbax", "grain", "librosa") if m in sys.modules], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.strip().splitlines()[-1] == "[]"


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


SCALES = "tokens.scales has 16 scales: a residual quantiser has none, another one for each of its 15 levels "
SCALES += "(tokens.levels)"


@pytest.mark.parametrize(
    ("stage", "setting", "words"),
    [
        ("khala/backbone", "model.kv_heads=0", "model.kv_heads=0: give whole numbers of 1 or more"),
        ("khala/backbone", "model.layers=0", "model.layers=0: give whole numbers of 1 or more"),
        ("khala/backbone", "model.width=-4", "model.width=-4: give whole numbers of 1 or more"),
        ("khala/backbone", "tokens.hop=0", "tokens.hop=0: give a number from 1 to 16,777,216"),
        ("khala/backbone", "model.levels=65", "model.levels=65: the tokens have 64 levels; 0 takes all"),
        ("aar/lm", "tokens.levels=15", SCALES),
        ("khala/codec", "model.strides=abc", "model.strides=('abc',): give whole numbers of 1 or more"),
        ("khala/codec", "model.strides=(0, 2)", "model.strides=(0, 2): give whole numbers of 1 or more"),
        ("khala/codec", "model.levels=0", "model.levels=0: give whole numbers of 1 or more"),
        ("khala/codec", "train.batch_size=0", "train.batch_size=0: give a whole number of 1 or more"),
        ("aar/lm", "model.depth=0", "model.depth=0: give whole numbers of 1 or more"),
        ("aar/codec", "model.fold=0", "model.fold=0: give whole numbers of 1 or more"),
        ("khala/codec", "model.latent=99999999", "model.latent=99999999: no size of a model exceeds 16,777,216"),
        ("aar/ar_baseline", "model.window=900000", "a window of 900000 frames of 6 levels is too long: lower it"),
    ],
)
def test_sizes_that_are_none(capsys, stage, setting, words):
    line = fails(capsys, "inspect", f"--config={ROOT}/configs/{stage}.py:tiny", f"--config.{setting}")
    assert line == f"hiermusic inspect: {words}"


@pytest.mark.parametrize("system", ["khala", "aar", "tokens"])
def test_a_stage_that_the_system_has_not(capsys, system):
    file = "lm" if system == "tokens" else "codec"
    line = fails(capsys, "inspect", f"--config={ROOT}/configs/{system}/{file}.py:tiny", "--config.stage=vocoder")
    theirs = {"khala": "codec, backbone, superres", "aar": "codec, lm, ar_baseline", "tokens": "codec, semantic, lm"}
    assert line == f"hiermusic inspect: the configuration is of the stage 'vocoder'; {system} has {theirs[system]}"


def test_what_a_configuration_is_stands_in_its_stage():
    """Fields that another stage has too change nothing."""
    told = []
    for fields in ({}, {"strides": (2, 2), "context": 25}):
        config = presets.read("configs/khala/backbone.py:tiny")
        config.model.update(fields)
        told.append((lm_models.token_lm_config(config), lm_models.hierarchy(config)))
    assert told[0] == told[1] and told[0][0].end is not None
    superres = presets.read("configs/khala/superres.py:tiny")
    assert lm_models.token_lm_config(superres).end is None


def test_a_mesh_is_read_in_one_way(capsys, tmp_path):
    assert mesh_sizes("fsdp=4, tensor=2") == {"fsdp": 4, "tensor": 2} and mesh_sizes(None) == mesh_sizes("") == {}
    assert mesh_sizes("data=-1") == {"data": -1}
    for text in ("fsdp", "fsdp=2,", ",fsdp=2", "fsdp=two", "fsdp=2,fsdp=4", "fsdp=2=3", "fsdp=2;tensor=2"):
        with pytest.raises(UserError, match="give each axis once with its devices, such as --mesh=fsdp=4,tensor=2"):
            mesh_sizes(text)
    (tmp_path / "config.json").write_text(presets.read("configs/khala/backbone.py:tiny").to_json())
    generate = ("generate", "--backbone=b", f"--out={tmp_path / 'o'}", "--seconds=1")
    for verb in (generate, ("reshard", f"--workdir={tmp_path}", f"--out={tmp_path / 'o'}")):
        assert "--mesh=fsdp=2,: give each axis once" in fails(capsys, *verb, "--mesh=fsdp=2,")
    assert not (tmp_path / "o").exists()


def test_train_makes_its_stage_and_checks_it_once(tmp_path, monkeypatch, capsys):
    asked, stage = [], SimpleNamespace(config=SimpleNamespace(loop=SimpleNamespace(steps=900)))
    monkeypatch.setattr(workdir, "stage", lambda config: asked.append("made") or stage)
    monkeypatch.setattr(loop, "check", lambda stage: asked.append("checked") or "the mesh")
    monkeypatch.setattr(workdir, "open_data", lambda stage, place: asked.append("opened"))
    ran = {"step": 900, "loss": 1.0}
    monkeypatch.setattr(loop, "run", lambda *given: asked.append((given[0], *given[2:])) or ran)
    cli.main(["train", f"--config={CONFIG}:tiny", f"--workdir={tmp_path / 'w'}", "--noprogress"])
    assert asked == ["made", "checked", "opened", (stage, False, "the mesh")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "cannot be read as the configuration of a workdir (it holds other things)"),
        ("null", "cannot be read as the configuration of a workdir (it holds other things)"),
        ("[" * 100_000, "cannot be read as the configuration of a workdir (RecursionError"),
        ('{"system": "khala", "stage": "codec"}', "has no field model"),
        ('{"system": "khala", "stage": "codec", "model": {}, "train": {"batch_size": 1}}', "has no field"),
        ('{"system": "khala", "stage": "codec", "model": 3, "train": 4}', "has no field"),
    ],
)
def test_a_workdir_whose_configuration_is_none(capsys, tmp_path, text, words):
    (tmp_path / "config.json").write_text(text)
    line = fails(capsys, "inspect", f"--workdir={tmp_path}")
    assert f"{tmp_path}/config.json" in line and words in line
    line = fails(capsys, "encode", f"--codec={tmp_path}", "in.wav", tmp_path / "codes.npz")
    assert f"{tmp_path}/config.json" in line and words in line


def test_an_argument_of_any_length_is_answered_in_a_line(capsys, tmp_path):
    line = fails(capsys, "data", f"--source={'a' * 100_000}", f"--out={tmp_path / 'o'}")
    assert len(line) < 1100 and line.startswith("hiermusic data: aaa")
    line = fails(capsys, "data", "--source=builtin:1?seconds=inf", f"--out={tmp_path / 'o'}")
    assert "give songs, seconds and seed as in builtin:40" in line and not (tmp_path / "o").exists()


@pytest.mark.parametrize("verb", ["data", "train"])
def test_flagfiles(capsys, tmp_path, verb):
    (tmp_path / "bytes").write_bytes(b"\xd0\x00\xff")
    for name in ("gone", "", "bytes"):
        assert "--flagfile cannot be read" in fails(capsys, verb, f"--flagfile={tmp_path / name}")
    (tmp_path / "flags").write_text(f"--source=gone\n--config={CONFIG}:huge\n--out=o\n--workdir=o\n")
    line = fails(capsys, verb, f"--flagfile={tmp_path / 'flags'}")
    assert ("unknown preset 'huge'" if verb == "train" else "Unknown command line flag 'config'") in line


def test_a_configuration_file_that_fails(capsys, tmp_path):
    for text, words in (("def get_config(:\n", "SyntaxError"), ("import no_such_module\n", "no_such_module")):
        (tmp_path / "c.py").write_text(text)
        line = fails(capsys, "train", f"--config={tmp_path / 'c.py'}", f"--workdir={tmp_path / 'w'}")
        assert "the configuration cannot be made" in line and words in line


def test_a_machine_without_a_home_or_a_user(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert "does not exist" in fails(capsys, "data", f"--source={tmp_path / 'gone'}", f"--out={tmp_path / 'o'}")
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ  # a folder named ~ is not what was meant
    core = SimpleNamespace(constants=SimpleNamespace(DATA_DIR="~/data"))  # TFDS takes seconds to import
    monkeypatch.setitem(sys.modules, "tensorflow_datasets.core", core)
    assert "is not prepared" in fails(capsys, "data", "--source=tfds:gone", f"--out={tmp_path / 'o'}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("data", "--source=builtin:1?seconds=1", "--out=gs://bucket/x"),
        ("data", "--source=s3://bucket/x", "--out=o"),
        ("data", "--source=builtin:1?seconds=1", "--out=o", "--tfds=gs://bucket/x"),
        ("train", f"--config={CONFIG}:tiny", "--workdir=gs://bucket/x"),
        ("train", f"--config={CONFIG}:tiny", "--workdir=o", "--config.data.path=https://bucket/x"),
        ("generate", "--backbone=b", "--seconds=1", "--tags=x://y", "--out=hdfs://bucket/x"),
        ("tokenize", "--codec=c", "--data=d", "--out=file:///tmp/x"),
        ("encode", "--codec=c", "in.wav", "gs://bucket/codes.npz"),
        ("decode", "--codec=gs://bucket/x", "codes.npz", "out.wav"),
        ("evaluate", "--workdir=w", "--out=gs://bucket/x"),
        ("export", "--workdir=w", "--out=gs://bucket/x"),
        ("reshard", "--workdir=w", "--out=gs://bucket/x"),
        ("sweep", f"--sweep={ROOT}/configs/sweeps/learning_rate.py", "--workdir=gs://bucket/x"),
        ("demo", "--workdir=gs://bucket/x"),
    ],
)
def test_addresses_are_refused_before_anything_is_written(capsys, tmp_path, monkeypatch, arguments):
    place = ROOT if arguments[0] == "sweep" else tmp_path  # a sweep looks for its configuration first
    monkeypatch.chdir(place)
    line = fails(capsys, *arguments)
    words = "only places of this machine are read and written: mount it, or copy it here"
    assert "://" in line and line.endswith(words)
    assert list(tmp_path.iterdir()) == [] and not (place / "gs:").exists()


@pytest.mark.parametrize("flag", ["--segment_seconds=1e308", "--sample_rate=1", f"--sample_rate={10**30}"])
def test_lengths_and_rates_that_no_record_has(capsys, tmp_path, flag):
    line = fails(capsys, "data", "--source=builtin:1?seconds=1", f"--out={tmp_path / 'o'}", flag)
    assert flag.split("=")[0] in line and not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (UserError("not so"), 1, "not so"),
        (FileNotFoundError(2, "No such file or directory", "x.wav"), 1, "x.wav: No such file or directory"),
        (OSError("odd"), 1, "odd"),
        (MemoryError("9 GB"), 1, "there is not enough memory (9 GB); ask for less at a time"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command to go on"),
    ],
)
def test_what_ends_a_verb_is_one_line_and_a_status(monkeypatch, capsys, error, status, words):
    def run(values, given):
        raise error

    monkeypatch.setitem(cli.VERBS, "data", dataclasses.replace(cli.VERBS["data"], run=run))
    with pytest.raises(SystemExit) as ending:
        cli.main(["data"])
    assert ending.value.code == status and capsys.readouterr() == ("", f"hiermusic data: {words}\n")


def test_an_unknown_verb_is_wrong_use(capsys):
    with pytest.raises(SystemExit) as ending:
        cli.main(["sing"])
    assert ending.value.code == 2


def test_help_tells_every_flag_its_meaning_and_its_default(capsys):
    cli.main(["data", "--help"])
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line.startswith("  --")]
    told = dict(lines)
    assert list(told) == sorted(told) and told["--sample_rate"] == "samples a second of the records (default 44100)"
    assert told["--out"] == "folder for the records" and told["--channels"].endswith("(default 2)")


def test_compiled_programs_are_kept_where_the_environment_says_nothing_else(monkeypatch):
    least = ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES")
    names = ("JAX_COMPILATION_CACHE_DIR", *least)
    for name in names:
        monkeypatch.setenv(name, "mine")
    cli._keep_compiled_programs()
    assert [os.environ[name] for name in names] == ["mine"] * 3
    for name in names:
        monkeypatch.delenv(name)
    monkeypatch.setattr("os.path.expanduser", lambda path: "/home/x")
    cli._keep_compiled_programs()
    assert [os.environ[name] for name in names] == ["/home/x/.cache/hiermusic/compiled", "0", "-1"]


@pytest.mark.parametrize(
    ("found", "devices", "platforms"),
    [
        ({"libtpu"}, [], "cpu"),
        ({"libtpu"}, ["/dev/accel0"], None),
        ({"libtpu", "jax_plugins"}, [], None),  # of a GPU
        (set(), [], None),
    ],
)
def test_only_a_tpu_that_is_not_there_is_left_out(monkeypatch, found, devices, platforms):
    monkeypatch.setenv("JAX_PLATFORMS", "undone afterwards")
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(cli, "find_spec", lambda name: name in found or None)
    monkeypatch.setattr(cli.Path, "glob", lambda self, pattern: devices)
    cli._leave_out_absent_tpu()
    assert os.environ.get("JAX_PLATFORMS") == platforms
    monkeypatch.setenv("JAX_PLATFORMS", "mine")
    cli._leave_out_absent_tpu()
    assert os.environ["JAX_PLATFORMS"] == "mine"


def test_words_are_no_places():
    values = cli.Values()
    cli.VERBS["generate"].define(values)
    values(["generate", "--tags=x://y", "--lyrics=la://la", "--out=o"])
    flags.local(values, [])
    with pytest.raises(UserError, match=r"^gs://bucket/in\.wav: only places of this machine"):
        flags.local(values, ["gs://bucket/in.wav"])
