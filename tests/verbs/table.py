"""Of each flag of each verb, what it changes in what is asked of the rooms below: a new flag needs a row."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np

from hiermusic.parallel.chips import CHIPS
from hiermusic.pretrained.family import Family, Imported
from hiermusic.sweep.plan import Budget, Estimate
from hiermusic.sweep.runs import Run
from hiermusic.systems import aar, khala
from hiermusic.systems.requests import Request

from .calls import told
from .cases import CODEC, GONE, ROOT, RUN, STAGE, Case, asked, at, configuration, one, page

SONG, PLAY = "workdir.generate", "accompany.accompany"


def said(flag: str, value: str, requests: list[Request]) -> dict[str, tuple[tuple[str, ...], dict[str, Any]]]:
    """The row of a word of a single prompt, which the system may yet refuse."""
    told = True if value == "true" else value
    return {flag: ((f"--{flag}={value}",), {f"{SONG}.requests": requests, f"{SONG}.{flag}": told})}


PROMPTS = [asked("song-001", 7, tags="a"), asked("x", 3, "clip.wav"), asked("song-003", 9)]
GENERATE = Case(
    ("--superres=s", "--seconds=2", "--out=o"),
    {"hiermusic.systems.workdir.generate": [{"wav": "song.wav", "seconds": 2.0}]},
    one("system", "khala", f"{SONG}.name")
    | one("superres", "t", f"{SONG}.model", f"{SONG}.superres")
    | one("backbone", "b", f"{SONG}.backbone")
    | one("lm", "l", f"{SONG}.lm")
    | one("codec", "c", f"{SONG}.codec")
    | one("out", "p", f"{SONG}.out")
    | said("like", "clip.wav", [asked(like="clip.wav")])
    | said("text", "a slow piano", [asked(description="a slow piano")])
    | one("clap", "e", f"{SONG}.clap")
    | said("tags", "slow, piano", [asked(tags="slow, piano")])
    | said("lyrics", "la\\nlu", [asked(lyrics="la\nlu")])
    | said("instrumental", "true", [asked(instrumental=True)])
    | one("seconds", "3.5", f"{SONG}.requests", to=[asked(seconds=3.5)])
    | one("seed", "5", f"{SONG}.requests", to=[asked(seed=5)])
    | {"prompts": (("--prompts=p.jsonl", "--seed=7"), {f"{SONG}.requests": PROMPTS})}
    | one("temperature", "0", f"{SONG}.temperature", to=0.0)
    | one("top_k", "0", f"{SONG}.top_k", to=0)
    | one("top_p", "0.5", f"{SONG}.top_p", to=0.5)
    | one("guidance", "2", f"{SONG}.guidance", to=2.0)
    | one("min_share", "0", f"{SONG}.min_share", to=0.0)
    | one("backbone_too", "true", f"{SONG}.backbone_too", to=True)
    | one("finer_lms", "m,n", f"{SONG}.finer_lms", to="m,n")
    | one("levels", "2", f"{SONG}.levels", to=2)
    | one("levels_too", "true", f"{SONG}.levels_too", to=True)
    | one("mesh", "fsdp=4, tensor=2", f"{SONG}.mesh", to={"fsdp": 4, "tensor": 2})
    | one("rows", "3", f"{SONG}.rows", to=3),
)

RECORDS = {"hiermusic.data.records.read_summary": lambda: SUMMARY, "hiermusic.data.tfds_builder.export_tfds": "t/x"}
SUMMARY = SimpleNamespace(path="o", tracks=3, seconds=9.0, splits={"train": 2, "valid": 1}, division=None, skipped=())
TFDS = {"tfds": (("--tfds=t",), {"tfds_builder.export_tfds.records": "o", "tfds_builder.export_tfds.data_dir": "t"})}
WRITE = "audio_records.write_audio"
OUT = ("records.read_summary.out",)

SWEPT = Estimate("r", 20, 0, 1000, 1e6, 60.0, 1e12)
STARTS = ("lock.owned", "launch.here", "results.read_wall", "results.rows_of", "results.write")
SMALL, TINY = told(configuration("small")), told(configuration())
RESOLVED = json.dumps(configuration().to_dict(), indent=2, sort_keys=True)
MESH = SimpleNamespace(shape={"data": 4})
LINES = "compile._lines.facts"
WEIGHTS = SimpleNamespace(shapes={"a": jax.ShapeDtypeStruct((2,), np.float32)}, step=4, part="ema", read=len)
TRANSFORMERS = {"out": "o", "files": ["model.safetensors"], "bytes": 8, "arrays": 1, "class": "Model"}

FITS = {"programs": [{"fits": True}], "fits": True}


def facts() -> dict[str, Any]:
    """What `compile` tells of a slice of four chips."""
    chip = CHIPS["v5e"]
    return {
        **{"system": "khala", "stage": "codec", "preset": "tiny", "topology": "v5e:2x2", "slices": 1, "chips": 4},
        **{"chip": chip.name, "memory_per_chip": chip.memory, "mesh": {"data": 4}, "parameters": 1000},
        **{"batch_size": RUN.loop.batch_size, "remat": RUN.remat},
    }


CASES = {
    "generate": GENERATE,
    "continue": Case(
        (*GENERATE.words, "in.wav"),
        GENERATE.below,
        GENERATE.flags,
    ),
    "accompany": Case(
        ("--workdir=w", "--out=o", "vocal.wav"),
        {
            "hiermusic.systems.accompany.stages_in": None,
            "hiermusic.systems.accompany.of_file": "a vocal",
            "hiermusic.systems.accompany.accompany": ["a song"],
            "hiermusic.systems.accompany.lines": ["its file"],
            "hiermusic.evaluate.accompaniment.evaluate": {"rows": 1},
            "hiermusic.evaluate.accompaniment.lines": ["a line"],
        },
        one("workdir", "v", f"{PLAY}.folder", "accompany.stages_in.folder")
        | {
            "out": (
                ("--out=p",),
                {f"{PLAY}.out": Path("p"), "accompaniment.evaluate.out": Path("p")}
                | {"out": "its file\na line\np/report.html"},
            )
        }
        | one("seed", "7", f"{PLAY}.seed", to=7)
        | one("temperature", "0", f"{PLAY}.temperature", to=0.0)
        | one("top_k", "0", f"{PLAY}.top_k", to=0)
        | one("guidance", "3", f"{PLAY}.guidance", to=3.0)
        | one("overlap", "0", f"{PLAY}.overlap", to=0.0)
        | one("noise", "0", f"{PLAY}.noise", to=0.0)
        | one("rows", "3", f"{PLAY}.rows", to=3),
    ),
    "accompany tracks": Case(
        ("--workdir=w", "--out=o", "--data=d"),
        {
            "hiermusic.systems.accompany.stages_in": None,
            "hiermusic.systems.accompany.of_records": ["a vocal"],
            "hiermusic.systems.accompany.accompany": ["a song"],
            "hiermusic.systems.accompany.lines": ["its file"],
            "hiermusic.evaluate.accompaniment.evaluate": {"rows": 1},
            "hiermusic.evaluate.accompaniment.lines": ["a line"],
        },
        one("data", "e", "accompany.of_records.data") | one("tracks", "3", "accompany.of_records.tracks", to=3),
    ),
    "data": Case(
        ("--source=s", "--out=o"),
        {
            "hiermusic.data.sources.open_source": SimpleNamespace(tracks=["track"], fingerprint="print"),
            "hiermusic.data.audio_records.write_audio": None,
            **RECORDS,
        },
        one("source", "m", "sources.open_source.path")
        | one("out", "p", f"{WRITE}.out", *OUT)
        | one("sample_rate", "8000", f"{WRITE}.sample_rate", to=8000)
        | one("channels", "1", f"{WRITE}.channels", to=1)
        | one("valid_fraction", "0", f"{WRITE}.valid_fraction", to=0.0)
        | one("segment_seconds", "5", f"{WRITE}.segment_seconds", to=5.0)
        | one("stems", "vocals,mix", "sources.open_source.stems", f"{WRITE}.stems", to=("mix", "vocals"))
        | one("sounding", "mix", f"{WRITE}.sounding", to=("mix",))
        | {
            "separate": (
                ("--stems=vocals", "--separate"),
                at(("vocals",), "sources.open_source.stems", f"{WRITE}.stems")
                | {"sources.open_source.separate": Path("o/separated")},
            )
        }
        | TFDS,
    ),
    "tokenize": Case(
        ("--codec=c", "--data=d", "--out=o"),
        {"hiermusic.systems.workdir.tokenise": None, **RECORDS},
        one("codec", "k", "workdir.tokenise.codecs", to={"": "k"})
        | one("data", "e", "workdir.tokenise.data")
        | one("out", "p", "workdir.tokenise.out", *OUT)
        | one("split_at", "4", "workdir.tokenise.split_at", to=4)
        | TFDS,
    ),
    "tokenize streams": Case(
        ("--stream=vocals:c", "--data=d", "--out=o"),
        {"hiermusic.systems.workdir.tokenise": {"vocals": SUMMARY}},
        one("stream", "mix/fine:k", "workdir.tokenise.codecs", to={"vocals": "c", "mix/fine": "k"})
        | one("vocal_noise", "0.01", "workdir.tokenise.vocal_noise", to=0.01),
    ),
    "encode": Case(
        ("--codec=c", "in.wav", "codes.npz"),
        {"hiermusic.systems.workdir.encode_file": {"codes": [2, 3], "seconds": 1.0}},
        one("codec", "k", "workdir.encode_file.codec_dir") | one("levels", "3", "workdir.encode_file.levels", to=3),
    ),
    "decode": Case(
        ("--codec=c", "codes.npz", "out.wav"),
        {"hiermusic.systems.workdir.decode_file": {"seconds": 1.0}},
        one("codec", "k", "workdir.decode_file.codec_dir") | one("levels", "3", "workdir.decode_file.levels", to=3),
    ),
    "embed": Case(
        ("--model=m", "in.wav", "out.npy"),
        {"hiermusic.data.embed.embed_file": {"shape": [2, 3], "seconds": 1.0}},
        one("model", "n", "embed.embed_file.folder")
        | one("layer", "0", "embed.embed_file.layer", to=0)
        | one("window", "0", "embed.embed_file.window", to=0.0),
    ),
    "embed tracks": Case(
        ("--model=m", "--data=d", "out.npz"),
        {"hiermusic.data.embed.embed_tracks": {"tracks": 2, "width": 3}},
        one("data", "e", "embed.embed_tracks.data"),
    ),
    "train": Case(
        (f"--config={CODEC}:tiny", "--workdir=w"),
        {
            "hiermusic.systems.workdir.resolved": "resolved",
            "hiermusic.systems.workdir.stage": STAGE,
            "hiermusic.train.loop.check": "mesh",
            "hiermusic.train.lock.owned": nullcontext(),
            "hiermusic.systems.workdir.open_data": None,
            "hiermusic.train.checkpoint.latest_step": 2,
            "hiermusic.train.loop.run": {"step": 10**9, "loss": 1.0},
        },
        one("config", f"{CODEC}:small", "workdir.resolved.config", to=SMALL)
        | {
            "workdir": (
                ("--workdir=v",),
                at("v", "lock.owned.folder", "workdir.open_data.workdir", "loop.run.workdir")
                | at("v", "checkpoint.latest_step.workdir", "workdir.resolved.workdir")
                | {"out": f"v: trained to step {10**9}, loss 1.0"},
            )
        }
        | one("progress", "false", "loop.run.progress", to=False),
    ),
    "inspect": Case(
        ("--workdir=w",),
        {"hiermusic.systems.workdir.inspect": {"stage": "codec"}, "hiermusic.systems.workdir.read": configuration},
        one("workdir", "v", "workdir.inspect.workdir")
        | one("step", "0", "workdir.inspect.step", to=0)
        | one("weights", "true", "workdir.inspect.weights", to=True)
        | {
            "resolved": (
                ("--resolved",),
                {"workdir.inspect": GONE, "workdir.read.workdir": "w", "out": RESOLVED},
            )
        },
    ),
    "inspect config": Case(
        (f"--config={CODEC}:tiny",),
        {"hiermusic.systems.workdir.inspect": {"stage": "codec"}},
        one("config", f"{CODEC}:small", "workdir.inspect.config", to=SMALL)
        | {"resolved": (("--resolved",), at(GONE, "workdir.inspect", "jax.config") | {"out": RESOLVED})},
    ),
    "evaluate": Case(
        ("--workdir=w",),
        {"hiermusic.evaluate.run.evaluate": {"rows": 1}, "hiermusic.evaluate.run.lines": ["a line"]},
        page("workdir", "v", "v/evaluation", "run.evaluate.workdir", "run.evaluate.out")
        | one("data", "d", "run.evaluate.data")
        | page("out", "o", "o", "run.evaluate.out", "run.evaluate.out")
        | one("seconds", "3", "run.evaluate.seconds", to=3.0)
        | one("tracks", "5", "run.evaluate.tracks", to=5)
        | {
            "verify_tokens": (
                ("--verify_tokens",),
                {"run.evaluate.verify_tokens": True}
                | {"run.evaluate.out": "w/verification", "out": "a line\nw/verification/report.html"},
            )
        },
    ),
    "evaluate songs": Case(
        ("--songs=s",),
        {"hiermusic.evaluate.run.evaluate_songs": {"rows": 1}, "hiermusic.evaluate.run.lines": ["a line"]},
        page("songs", "t", "t/evaluation", "run.evaluate_songs.folder", "run.evaluate_songs.out")
        | one("data", "d", "run.evaluate_songs.data")
        | page("out", "o", "o", "run.evaluate_songs.out", "run.evaluate_songs.out")
        | one("embedding", "f", "run.evaluate_songs.embedding")
        | one("tracks", "5", "run.evaluate_songs.tracks", to=5),
    ),
    "demo": Case(
        (f"--configs={ROOT}/configs",),
        {"hiermusic.demo.runner.run": "report.html"},
        {
            "system": (
                ("--system=aar",),
                {
                    "runner.run.demo": aar.SYSTEM.rooms.demo(Path("out/demo-aar"), ROOT / "configs"),
                    "runner.run.folder": Path("out/demo-aar"),
                },
            ),
            "workdir": (
                ("--workdir=w",),
                {
                    "runner.run.demo": khala.SYSTEM.rooms.demo(Path("w"), ROOT / "configs"),
                    "runner.run.folder": Path("w"),
                },
            ),
            "configs": (
                ("--configs=c",),
                {"runner.run.demo": khala.SYSTEM.rooms.demo(Path("out/demo"), Path("c"))},
            ),
        },
    ),
    "sweep": Case(
        ("--sweep=one.py", "--workdir=w"),
        {
            "hiermusic.sweep.runs.runs_of": [Run("r", {"x": 1}, "c.py", {}, "w/r")],
            "hiermusic.sweep.plan.estimate": [SWEPT],
            "hiermusic.sweep.plan.lines": ["the plan"],
            "hiermusic.sweep.launch.here": (True, 1.0),
            "hiermusic.train.lock.owned": nullcontext(),
            "hiermusic.sweep.results.read_wall": lambda: {},
            "hiermusic.sweep.results.rows_of": ["row"],
            "hiermusic.sweep.results.write": ({}, ["a table"]),
        },
        {"sweep": (("--sweep=other.py",), {"runs.runs_of.path": "other.py", "results.write.is_scaling": True})}
        | one("config", f"{CODEC}:small", "runs.runs_of.config")
        | {
            "workdir": (
                ("--workdir=v",),
                at("v", "runs.runs_of.folder", "lock.owned.folder", "results.read_wall.folder", "results.write.folder")
                | {"out": "a table\nv/results.md"},
            )
        }
        | {"list": (("--list",), {"plan.estimate.here": False, "out": "the plan"} | at(GONE, *STARTS))}
        | {
            "results": (
                ("--results",),
                {"plan.estimate.here": False}
                | at(GONE, "lock.owned", "launch.here", "plan.lines")
                | {"results.rows_of.wall": {}},
            )
        }
        | {
            "launcher": (
                ("--launcher=print",),
                {"plan.estimate.here": False, "out": "hiermusic train --config=c.py --workdir=w/r --config.x=1"}
                | at(GONE, *STARTS),
            )
        }
        | one("chip", "h100", "plan.lines.budget", to=Budget(CHIPS["h100"], 1, 0.4))
        | one("chips", "8", "plan.lines.budget", to=Budget(CHIPS["v5e"], 8, 0.4))
        | one("mfu", "0.5", "plan.lines.budget", to=Budget(CHIPS["v5e"], 1, 0.5))
        | one("progress", "false", "launch.here.progress", to=False),
    ),
    "reshard": Case(
        ("--workdir=w", "--out=o", "--mesh=fsdp=2"),
        {
            "hiermusic.systems.workdir.read": configuration,
            "hiermusic.systems.workdir.stage": STAGE,
            "hiermusic.verbs.checkpoints._on_cpu": None,
            "hiermusic.parallel.mesh.mesh_of": "mesh",
            "hiermusic.parallel.mesh.BatchPlacement": None,
            "hiermusic.train.loop.abstract_state": (None, "abstract"),
            "hiermusic.parallel.mesh.shardings": "shardings",
            "hiermusic.train.checkpoint.place": "placed",
            "hiermusic.train.stored.reshard": {"step": 4, "bytes": 8},
        },
        one("workdir", "v", "workdir.read.workdir", "stored.reshard.workdir")
        | {
            "out": (
                ("--out=p",),
                {
                    "stored.reshard.out": "p",
                    "out": "p: step 4 for a mesh of data=-1, fsdp=2, context=1, tensor=1, 0.0 MB",
                },
            )
        }
        | {
            "mesh": (
                ("--mesh=data=2,tensor=3",),
                at(told(configuration(data=2, tensor=3)), "workdir.stage.config")
                | {"checkpoints._on_cpu.devices": 6, "mesh.mesh_of.devices": "6 devices"}
                | {"out": "o: step 4 for a mesh of data=2, fsdp=1, context=1, tensor=3, 0.0 MB"},
            )
        }
        | one("step", "0", "stored.reshard.step", to=0)
        | one("weights_only", "true", "stored.reshard.weights_only", to=True)
        | one("dtype", "bfloat16", "stored.reshard.dtype"),
    ),
    "export": Case(
        ("--workdir=w", "--out=o"),
        {
            "hiermusic.systems.workdir.read": configuration,
            "hiermusic.verbs.checkpoints._on_cpu": None,
            "hiermusic.verbs.checkpoints._evaluation": ["a measure"],
            "hiermusic.train.stored.open_weights": WEIGHTS,
            "hiermusic.train.log.read_metrics": [{"step": 4, "loss": 1.0}, {"step": 5, "loss": 0.5}],
            "hiermusic.pretrained.card.write": "the card",
            "hiermusic.pretrained.export.write": ["model.safetensors"],
            "hiermusic.pretrained.export.total_bytes": 8,
            "hiermusic.verbs.checkpoints._to_transformers": TRANSFORMERS,
        },
        one(
            "workdir",
            "v",
            *("workdir.read.workdir", "stored.open_weights.workdir", "log.read_metrics.workdir"),
            "checkpoints._evaluation.run",
        )
        | {"out": (("--out=p",), {"export.write.out": "p", "out": "p: model.safetensors (0.0 MB, float32)"})}
        | one("step", "0", "stored.open_weights.step", to=0)
        | one("dtype", "bfloat16", "stored.open_weights.dtype")
        | one("licence", "cc0", "card.write.licence")
        | {
            "format": (
                ("--format=transformers",),
                at(GONE, "stored.open_weights", "log.read_metrics", "checkpoints._evaluation", "card.write")
                | at(GONE, "export.write", "export.total_bytes")
                | at(None, "checkpoints._to_transformers.step", "checkpoints._to_transformers.licence")
                | {"checkpoints._to_transformers.config": TINY}
                | {"checkpoints._to_transformers.run": "w", "checkpoints._to_transformers.out": "o"}
                | {"out": "o: model.safetensors (0.0 MB) for transformers' Model"},
            )
        },
    ),
    "import": Case(
        ("a kind", "m", "o"),
        {
            "hiermusic.pretrained.export.check_new": None,
            "hiermusic.verbs.published._read": (Family("A", None), "mit", Imported({}, {"a": np.zeros(2)})),
            "hiermusic.pretrained.card.write": "the card",
            "hiermusic.pretrained.export.write": ["model.safetensors"],
        },
        {
            "licence": (
                ("--licence=cc0",),
                {"card.write.config": {"licences": ["cc0"]}, "export.write.config": {"licences": ["cc0"]}},
            )
        }
        | one("encoder", "log_mel", "published._read.encoder")
        | one("layer", "9", "published._read.layer", to=9)
        | one("tokenizer", "t.json", "published._read.tokenizer")
        | one("bias", "1", "published._read.bias", to=1)
        | one("codec", "c", "published._read.codec")
        | one("audio", "a.wav", "published._read.audio"),
    ),
    "export shao": Case(
        ("--workdir=w", "--out=o", "--format=shao", "v"),
        {
            "hiermusic.systems.workdir.read": configuration,
            "hiermusic.verbs.checkpoints._on_cpu": None,
            "hiermusic.verbs.checkpoints._as_published": {"files": ["a"], "bytes": 8},
        },
        one("bias", "1", "checkpoints._as_published.bias", to=1)
        | {"workdir": (("--workdir=x",), {"workdir.read.workdir": "x", "checkpoints._as_published.runs": ["x", "v"]})}
        | {"out": (("--out=p",), {"checkpoints._as_published.out": "p", "out": "p: a (0.0 MB)"})}
        | one("step", "0", "checkpoints._as_published.step", to=0)
        | one("dtype", "bfloat16", "checkpoints._as_published.dtype")
        | one("licence", "cc0", "checkpoints._as_published.licence"),
    ),
    "compile": Case(
        (f"--config={CODEC}:tiny", "--topology=v5e:2x2"),
        {
            "hiermusic.systems.workdir.resolved": configuration,
            "hiermusic.systems.workdir.stage": STAGE,
            "hiermusic.parallel.topology.topology": ["a device"] * 4,
            "hiermusic.parallel.chips.chip_of": CHIPS["v5e"],
            "hiermusic.train.loop.check": MESH,
            "hiermusic.train.compile.parameters": 1000,
            "hiermusic.train.compile.jobs": ["an update"],
            "hiermusic.train.compile.fit": {"largest": {"none": 8}},
            "hiermusic.systems.programs.generation": ["a song"],
            "hiermusic.parallel.aot.examine": {"fits": True},
            "hiermusic.verbs.compile._lines": ["a line"],
        },
        {
            "config": (
                (f"--config={CODEC}:small",),
                at(SMALL, "workdir.resolved.config"),
            ),
            "topology": (
                ("--topology=v6e-8",),
                {"topology.topology.name": "v6e-8", LINES: facts() | FITS | {"topology": "v6e-8"}},
            ),
            "slices": (("--slices=2",), {"topology.topology.slices": 2, LINES: facts() | FITS | {"slices": 2}}),
            "fit": (
                ("--fit",),
                at(GONE, "compile.jobs", "aot.examine")
                | {"compile.fit.build": "a function"}
                | {"compile.fit.devices": ["a device"] * 4, "compile.fit.chip": CHIPS["v5e"]}
                | {"compile.fit.say": "a function", LINES: facts() | {"fit": {"largest": {"none": 8}}}},
            ),
            "generate": (
                ("--generate",),
                {"compile.jobs": GONE, "aot.examine.job": "a song"}
                | {"programs.generation.config": TINY, "programs.generation.mesh": MESH},
            ),
            "out": (("--out=o/facts.json",), {"written": {"o/facts.json"}}),
        }
        | one("effort", "O0", "jax.config.jax_optimization_level", to="O0"),
    ),
}
