"""Configurations by name: the package's presets from any folder, a person's own files, and what all stages share."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import pytest

from hiermusic import cli, presets
from hiermusic.configs import common
from hiermusic.errors import UserError
from hiermusic.sweep import hyper, runs
from hiermusic.train.settings import LoopConfig

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data" / "golden" / "presets.json"  # HIERMUSIC_GOLDEN=write writes it anew
STAGES = (
    "khala/codec",
    "khala/backbone",
    "khala/superres",
    "aar/codec",
    "aar/lm",
    "aar/ar_baseline",
    "tokens/codec",
    "tokens/lm",
    "tokens/semantic",
    "pyramid/codec",
    "pyramid/lm",
    "hafm/semantic",
    "hafm/coarse",
    "hafm/fine",
)
RECIPES = ("khala/finetune",)  # of stages that have a file of their own
LADDER = ("tiny", "small", "paper", "3b", "7b")
PRESETS = [
    *(f"configs/{stage}.py:{preset}" for stage in STAGES[:3] for preset in LADDER),
    *(f"configs/{stage}.py:{preset}" for stage in STAGES[3:6] for preset in LADDER[:3]),
    *(f"configs/tokens/lm.py:{preset}" for preset in ("tiny", "small", "base")),
    *(
        f"configs/tokens/codec.py:{preset}"
        for preset in ("tiny", "encodec_24khz", "encodec_32khz", "encodec_48khz", "spectrostream")
    ),
    *(f"configs/tokens/codec.py:dac_{rate}" for rate in ("16khz", "24khz", "44khz", "44khz_16kbps")),
    *(f"configs/tokens/semantic.py:{preset}" for preset in ("tiny", "chroma", "log_mel", "hubert")),
    "configs/khala/codec.py:music",
    "configs/aar/codec.py:paper128",
    *(f"configs/pyramid/codec.py:{preset}" for preset in ("tiny", "small", "paper", "code", "dac")),
    *(f"configs/pyramid/lm.py:{preset}" for preset in ("tiny", "small", "paper")),
    *(f"configs/{stage}.py:{preset}" for stage in STAGES[-3:] for preset in ("tiny", "small", "paper")),
    *(f"configs/khala/finetune.py:{preset}" for preset in ("song", "style", "song_superres", "style_superres_lora")),
    "configs/khala/finetune.py:song_lora_tiny",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_file_of_a_stage_is_known_here():
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "configs").glob("[!s]*/*.py")} == {
        f"configs/{stage}.py" for stage in (*STAGES, *RECIPES)
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_found_from_any_folder_and_says_what_it_is(name):
    config, (path, preset) = presets.read(name), name.split(":")
    recipe = path.removeprefix("configs/").removesuffix(".py") in RECIPES
    assert (recipe or f"configs/{config.system}/{config.stage}.py" == path) and config.preset == preset
    assert config == presets.read(f"{ROOT}/{name}")
    assert LoopConfig.of(config.train).batch_size == config.train.batch_size


@pytest.mark.parametrize("size", ["tiny", "small", "paper"])
@pytest.mark.parametrize("of", ["backbone", "superres"])
def test_a_recipe_takes_the_model_of_the_stage_that_it_tunes_as_it_is(of, size):
    stage = presets.read(f"configs/khala/{of}.py:{size}")
    for recipe in ("song", "style"):
        words = [recipe, *(["superres"] if of == "superres" else []), "lora", *([size] if size != "paper" else [])]
        config = presets.read(f"configs/khala/finetune.py:{'_'.join(words)}")
        by_heart = (recipe, of, size) == ("song", "superres", "tiny")
        assert config.stage == of and config.model == stage.model and config.lora.rank == (32 if by_heart else 16)
        ends = (config.train.stop_worse, config.train.stop_loss > 0, config.train.valid_every > 0)
        assert ends == ((1, False, True) if recipe == "style" else (0, True, False))


def test_adapters_of_super_resolution_begin_with_what_reached_a_song_by_heart():
    """The figures of the run that docs/results.md tells of."""
    config = presets.read("configs/khala/finetune.py:song_superres_lora_tiny")
    train, lora = config.train, config.lora
    assert (train.learning_rate, train.schedule, train.final_share, train.steps) == (5e-3, "cosine", 0.02, 300)
    assert (train.stop_loss, lora.alpha) == (0.003, 32) and {"code_embed", "code_head"} < set(lora.targets)


@pytest.mark.parametrize("of", ["backbone", "superres"])
def test_a_recipe_takes_the_model_of_a_run_that_it_names(of, tmp_path):
    """Stage, sizes and words, and what is set besides on top of them."""
    begun = presets.read(f"configs/khala/{of}.py:small")
    begun.model.width, begun.model.as_released, begun.tokens.codes = 96, True, 512
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(begun.to_json_best_effort())
    for run in ("run", "run@120"):
        config = presets.load(f"configs/khala/finetune.py:song_lora@{run}", {"model.length": 96})
        assert (config.stage, config.init_from, config.model.length) == (of, run, 96)
        config.model.length = begun.model.length
        assert config.model.to_dict() == begun.model.to_dict() and config.tokens.to_dict() == begun.tokens.to_dict()
        assert config.lora.rank == 16 and config.train.steps == 400
    if of == "backbone":
        with pytest.raises(UserError, match="song_superres@run: run is a backbone: leave superres out"):
            presets.read("configs/khala/finetune.py:song_superres@run")
    for part, field in (("model", "levels"), ("tokens", "codes")):
        told = begun.to_dict()
        told[part][field] = "many"
        (tmp_path / "run" / "config.json").write_text(json.dumps(told))
        with pytest.raises(UserError, match=r"run cannot be read as a run of this version \(it holds other things"):
            presets.read("configs/khala/finetune.py:style@run")
    begun.stage = "codec"
    del begun.tokens  # which codecs have none of
    (tmp_path / "run" / "config.json").write_text(begun.to_json_best_effort())
    with pytest.raises(UserError, match="run is the codec of khala: name a backbone or a super-resolution model"):
        presets.read("configs/khala/finetune.py:style@run")
    with pytest.raises(UserError, match=r"nowhere/config\.json cannot be read as the configuration of a workdir"):
        presets.read("configs/khala/finetune.py:style@nowhere")
    with pytest.raises(UserError, match="no run is named behind @"):
        presets.read("configs/khala/finetune.py:song_lora@")


@pytest.mark.parametrize("preset", ["songs", "style_lora_superres", "style_huge", "lora", "song__tiny"])
def test_a_recipe_that_there_is_none_of_is_told(preset):
    with pytest.raises(UserError, match=f"unknown preset '{preset}' of configs/khala/finetune.py: choose song or"):
        presets.read(f"configs/khala/finetune.py:{preset}")


def crcs(parts) -> dict[str, str]:
    return {name: f"{zlib.crc32(json.dumps(part, sort_keys=True).encode()):08x}" for name, part in parts.items()}


def test_presets_and_sweeps_are_what_they_were():
    """A number that slips is a model of another size, hours later; one that is meant, HIERMUSIC_GOLDEN=write keeps."""
    found = {name.removeprefix("configs/"): crcs(json.loads(presets.read(name).to_json())) for name in PRESETS}
    for path in sorted((ROOT / "configs" / "sweeps").glob("*.py")):
        found[f"sweeps/{path.name}"] = crcs({"points": runs.read(str(path)).get_hyper(hyper)})
    if os.environ.get("HIERMUSIC_GOLDEN") == "write":
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(parts)}" for name, parts in found.items())
        GOLDEN.write_text("{\n" + lines + "\n}\n")
    held = json.loads(GOLDEN.read_text())
    assert [name for name in found if found[name] != held.get(name)] == [] and held.keys() == found.keys()


def test_a_file_that_is_here_comes_before_the_packages(tmp_path):
    mine = tmp_path / "configs" / "khala" / "codec.py"
    mine.parent.mkdir(parents=True)
    mine.write_text(
        "from hiermusic import presets\n"
        'def get_config(preset="mine"):\n'
        '    config = presets.read("configs/khala/backbone.py:tiny")\n'
        "    config.preset = preset\n"
        "    return config\n"
    )
    assert presets.read("configs/khala/codec.py").preset == "mine"
    assert presets.read("configs/khala/codec.py:other").preset == "other"
    assert presets.read("configs/khala/backbone.py").preset == "tiny"  # which is not here
    shutil.copy(ROOT / "configs" / "aar" / "lm.py", tmp_path / "copied.py")
    assert presets.read("copied.py:small") == presets.read("configs/aar/lm.py:small")


def test_a_new_field_of_the_loop_is_in_every_preset(monkeypatch):
    @dataclass(frozen=True)
    class Later(LoopConfig):
        pace: int = 3

    monkeypatch.setattr(common, "LoopConfig", Later)
    assert all(presets.read(name).train.pace == 3 for name in PRESETS)
    assert presets.load(PRESETS[0], {"train.pace": 5}).train.pace == 5


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_does_not_say_again_what_all_have(stage):
    """Before it comes to its presets, a file gives a shared field only where its value is another."""
    shared = common.config("", "", "").train
    body = ast.parse((ROOT / "configs" / f"{stage}.py").read_text()).body
    made = [node for node in body if isinstance(node, ast.FunctionDef) and node.name in ("get_config", "base")]
    given = {
        ast.unparse(node.targets[0]): node.value
        for node in (one for make in made for one in make.body)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    }
    again = [name for name, value in given.items() if value.value == shared.get(name.removeprefix("config.train."))]
    assert again == [] and "config.mesh" not in given
    assert "config.train.steps" in given or stage in ("hafm/coarse", "hafm/fine")  # which take the first stage's
    assert {field.name for field in fields(LoopConfig)} - {"steps", "batch_size"} <= set(shared)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("import no_such_module\n", "no_such_module"),
        ("x = 1\n", "KeyError: 'get_config'"),
        ("def get_config(preset):\n    return int('x')\n", "takes|missing"),
        ("def get_config():\n    return int('x')\n", "ValueError: invalid literal"),
        ("def get_config():\n    return {'train': {}}\n", "get_config gives a dict where a ConfigDict belongs"),
        ("def get_config():\n    pass\n", "get_config gives a NoneType where a ConfigDict belongs"),
    ],
)
def test_a_file_that_makes_no_configuration_is_one_line(text, words, tmp_path, capsys):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(UserError, match=words) as told:
        presets.read("c.py")
    assert "look into c.py" in str(told.value) and "Traceback" not in str(told.value)
    with pytest.raises(SystemExit):
        cli.main(["inspect", "--config=c.py"])
    err = capsys.readouterr().err
    assert err.startswith("hiermusic inspect: the configuration cannot be made") and err.count("\n") == 1


def test_a_sweep_that_is_given_as_a_configuration_is_told(capsys):
    with pytest.raises(SystemExit):
        cli.main(["sweep", "--config=configs/sweeps/learning_rate.py", "--workdir=w"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "is a sweep and no configuration: `hiermusic sweep` takes it as --sweep=configs/sweeps/learning_rate.py"
    )


@pytest.mark.parametrize("name", ["nowhere.py:tiny", "configs/khala/nowhere.py", "configs", "configs/khala", ""])
def test_a_file_that_is_not_there_is_one_line(name, capsys):
    words = f"no configuration file at {name.split(':')[0]}: give --config=FILE.py[:preset]"
    for flags in ([f"--config={name}"], ["--config", name]):
        with pytest.raises(SystemExit):
            cli.main(["inspect", *flags])
        assert capsys.readouterr().err == f"hiermusic inspect: {words}\n"
    with pytest.raises(UserError, match=r"unknown preset 'huge' of .*: choose tiny, small or paper"):
        presets.read("configs/aar/lm.py:huge")


@pytest.mark.parametrize("name", PRESETS)
def test_resolved_is_every_field_and_nothing_else(name, capsys):
    cli.main(["inspect", f"--config={name}", "--resolved", "--config.train.steps=7", "--config.mesh.fsdp=4"])
    out, err = capsys.readouterr()
    wanted = presets.load(name, {"train.steps": 7, "mesh.fsdp": 4})
    assert json.loads(out) == json.loads(wanted.to_json()) and err == ""
    assert json.loads(out)["train"]["steps"] == 7 and json.loads(out)["mesh"]["fsdp"] == 4


def test_resolved_of_a_workdir_is_its_own(capsys, tmp_path):
    config = presets.load("configs/khala/codec.py:tiny", {"train.steps": 7})
    (tmp_path / "config.json").write_text(config.to_json())
    cli.main(["inspect", f"--workdir={tmp_path}", "--resolved"])
    assert json.loads(capsys.readouterr().out) == json.loads(config.to_json())
    for flag in ("--weights", "--step=3"):
        with pytest.raises(SystemExit):
            cli.main(["inspect", f"--workdir={tmp_path}", "--resolved", flag])
        out, err = capsys.readouterr()
        assert out == "" and "--resolved looks at the configuration alone: leave --step and --weights out" in err


def test_the_page_on_sweeps_names_those_that_come_with_the_package():
    page = (ROOT / "docs" / "sweeps.md").read_text()
    for path in (ROOT / "configs" / "sweeps").glob("*.py"):
        assert f"`{path.name}`" in page


def commands(page: Path) -> list[str]:
    """What stands behind --config= and --sweep= in a page, and at the beginning of a line."""
    return re.findall(r"(?:--(?:config|sweep)=|^)(configs/[\w./:-]+)", page.read_text(), re.MULTILINE)


def test_whatever_the_pages_name_is_found():
    code = [*(ROOT / "hiermusic" / "verbs").glob("*.py"), *(ROOT / "configs").rglob("*.py")]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "benchmarks" / "scale_rows.txt", *code]
    named = {name for page in pages for name in commands(page)}
    wrong = {"configs/khala/codec.py:huge", "configs/sweeps/gone.py"}  # of docs/bad_input.md
    assert len(named - wrong) > 15 and wrong <= named
    for name in named - wrong:
        if name.startswith("configs/sweeps/"):
            assert presets.locate(name).is_file(), name
        else:
            presets.read(name)


def test_a_wheel_carries_the_presets(tmp_path):
    """What setuptools would put into one, from another folder: the files of the presets lie in no package of Python."""
    pytest.importorskip("setuptools")
    tree, wheel, empty = (tmp_path / name for name in ("tree", "wheel", "empty"))
    for folder in (tree, empty):
        folder.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(ROOT / "hiermusic", tree / "hiermusic", ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import setup; setup()"
    subprocess.run([sys.executable, "-c", build, "build_py", f"--build-lib={wheel}"], cwd=tree, check=True)
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from hiermusic import presets\n"
        "assert presets.__file__.startswith(sys.argv[1])\n"
        "assert presets.locate('configs/sweeps/sat.py').is_file()\n"
        "print('[' + ', '.join(presets.read(name).to_json() for name in sys.argv[2:]) + ']')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(wheel), *PRESETS], cwd=empty, check=True, capture_output=True, text=True
    )
    assert json.loads(done.stdout) == [json.loads(presets.read(name).to_json()) for name in PRESETS]
