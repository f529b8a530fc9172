"""A tokenizer of meaning, from an encoder's folder to tokens, through the verbs."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic import presets
from hiermusic.audio import files
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.pretrained import encoder, export
from hiermusic.pretrained.hubert import HubertConfig
from hiermusic.systems import workdir

ENCODER = HubertConfig(
    width=16, layers=2, heads=2, ffn_width=8, conv_widths=(4,) * 7, position_kernel=4, position_groups=2, layer=2
)
SMALL = {
    "model.codes": 6,
    "train.crop_seconds": 0.5,
    "train.batch_size": 8,
    "train.valid_every": 0,
    "train.checkpoint_every": 0,
    "train.log_every": 1,
}


@pytest.fixture(scope="module")
def at(tmp_path_factory):
    """An encoder with random weights, and audio records of four noises of their own colours."""
    folder, dice = tmp_path_factory.mktemp("semantic"), np.random.default_rng(0)
    weights = {name: dice.normal(size=shape).astype(np.float32) for name, shape in encoder.shapes(ENCODER).items()}
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    fields = {**encoder.to_fields(ENCODER), "licences": ["mit"]}
    export.write(folder / "hubert", shapes, lambda names: {n: weights[n] for n in names}, fields, {"step": 0}, {})
    for number in range(4):
        wav_L = np.convolve(dice.normal(size=20_000 + 700 * number), np.ones(3**number) / 3**number, "same")
        files.write(folder / "music" / f"{number}.wav", 0.3 * wav_L[:, None], 16_000)
    return folder


def settings(at, **more):
    told = {**SMALL, "model.encoder": str(at / "hubert"), "model.layer": 1, "data.path": str(at / "records"), **more}
    return ["--config=configs/tokens/semantic.py:hubert", *presets.overrides(told)]


def test_clusters_are_learnt_on_any_mesh_in_any_number_of_goes_and_name_the_frames(at, run, capsys, tmp_path):
    run("data", f"--source={at / 'music'}", f"--out={at / 'records'}", "--sample_rate=16000", "--channels=1",
        "--valid_fraction=0")  # fmt: skip
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("train", *settings(at, **{"mesh.data": 8, "train.steps": 4}), f"--workdir={whole}", "--noprogress")
    for steps in (2, 4):
        other = {"mesh.data": 2, "mesh.fsdp": 4, "train.steps": steps}
        run("train", *settings(at, **other), f"--workdir={parts}", "--noprogress")
    shutil.move(at / "hubert", at / "gone")  # what was trained needs it no more
    models = [workdir.load(place, "semantic")[1] for place in (whole, parts)]
    books = [np.asarray(model.clusters.codebooks[0]) for model in models]
    np.testing.assert_allclose(*books, rtol=1e-3, atol=1e-3)
    assert len(np.unique(np.rint(100 * books[0]), axis=0)) == 6
    weights = export.load(at / "gone")
    for name, value in export.dotted(nnx.to_pure_dict(nnx.state(models[0].features))).items():
        np.testing.assert_array_equal(value, weights[name])
    told = json.loads((whole / "config.json").read_text())
    assert told["features"]["model"]["layer"] == 1 and told["features"]["model"]["width"] == 16

    capsys.readouterr()
    run("tokenize", f"--codec={whole}", f"--data={at / 'records'}", f"--out={tmp_path / 'tokens'}")
    source = TokenSource(tmp_path / "tokens")
    assert [level.rate for level in source.hierarchy] == [50] and source.hierarchy.sizes == (6,)
    for index, track in enumerate(source.tracks):
        wav_LC, _ = files.read(at / "music" / track["id"])
        codes_TK = source[index]["codes"]
        assert codes_TK.shape == ((len(wav_LC) - 400) // 320 + 1, 1)
        np.testing.assert_array_equal(codes_TK, workdir.encoded(models[0], wav_LC))
    seen = [np.bincount(source[index]["codes"][:, 0], minlength=6) for index in range(4)]
    assert np.count_nonzero(np.sum(seen, axis=0)) > 1

    capsys.readouterr()
    run("inspect", f"--workdir={whole}", "--json")
    facts = json.loads(capsys.readouterr().out)
    assert facts["params"]["clusters"] == 6 * 16 and facts["codes"] == 6 and facts["frame_rate_hz"] == 50
    for verb, words in (("evaluate", "rebuilds nothing and predicts nothing"),
                        ("encode", "was trained as a semantic: give the workdir of a codec")):  # fmt: skip
        flags = [f"--workdir={whole}"] if verb == "evaluate" else [f"--codec={whole}", "in.wav", "out.npz"]
        with pytest.raises(SystemExit):
            run(verb, *flags)
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"train.batch_size": 1, "model.codes": 60}, "a batch holds 24 frames, fewer than the 60 clusters"),
        ({"train.accumulate": 2}, "train.accumulate is 2"),
        ({"train.ema_decay": 0.9}, "train.ema_decay is 0.9"),
        ({"model.codes": 1}, "model.codes=1: give a number of clusters from 2 to 65,536"),
        ({"model.codes": 70_000}, "model.codes=70000: give a number of clusters"),
        ({"model.window": -1.0}, "model.window=-1.0 is no number of seconds"),
        ({"model.encoder": "out/none"}, "no encoder at out/none"),
        ({"model.encoder": ""}, "model.encoder is empty: give log_mel, chroma"),
    ],
)
def test_what_no_clusters_can_be_learnt_of_is_told(changed, words):
    config = presets.load("configs/tokens/semantic.py:log_mel", {**SMALL, **changed})
    with pytest.raises(UserError, match=words):
        workdir.stage(workdir.resolved(config))


def test_a_mesh_that_would_split_clips_is_refused():
    from hiermusic.train import loop

    config = presets.load("configs/tokens/semantic.py:log_mel", {**SMALL, "mesh.context": 2, "mesh.data": 4})
    with pytest.raises(UserError, match=r"mesh.context=2: clips are heard whole"):
        loop.check(workdir.stage(workdir.resolved(config)))
