"""Whatever the mesh, training is the training of one device; and no mesh that cannot be is begun."""

from functools import cache, partial

import jax
import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.systems import workdir
from hiermusic.train import loop
from tests.scale.presets import Placed, load, small, train

MESHES = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"tensor": 4, "data": 2},
    "context": {"context": 4, "data": 2},
    "mixed": {"data": 2, "fsdp": 2, "tensor": 2},
    "all": {"fsdp": 2, "context": 2, "tensor": 2},
}
QUICK = {("superres", "all")}  # both tasks over three axes
CASES = [
    pytest.param(stage, mesh, id=f"{stage}-{mesh}", marks=() if (stage, mesh) in QUICK else pytest.mark.slow)
    for stage in ("backbone", "superres", "codec")
    for mesh in MESHES
    if (stage, mesh) != ("codec", "all")  # refused, see below
]
AAR = (("lm", "all"), ("lm", "fsdp"), ("ar_baseline", "mixed"), ("sat", "mixed"))
PYRAMID = (("pyramid", "mixed"), ("pyramid", "fsdp"), ("pyramid", "context"), ("pyramid_lm", "all"))
HAFM = (("coarse", "all"), ("coarse", "context"))
CASES += [pytest.param(*case, id="-".join(case), marks=pytest.mark.slow) for case in (*AAR, *PYRAMID, *HAFM)]

one_device = cache(lambda stage: train(small(stage, {})))


@pytest.mark.parametrize(("stage", "mesh"), CASES)
def test_losses_and_weights_are_those_of_one_device(stage, mesh):
    measured, state = train(small(stage, MESHES[mesh]))
    alone, state_alone = one_device(stage)
    (losses, norms), (losses_alone, norms_alone) = np.transpose(measured), np.transpose(alone)
    np.testing.assert_allclose(losses, losses_alone, rtol=1e-4)
    np.testing.assert_allclose(norms, norms_alone, rtol=5e-4)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0.01, atol=5e-4), state["model"], state_alone["model"])


@pytest.mark.slow
def test_six_steps_of_the_tiny_codec_agree_in_loss_and_gradient():
    """A loss that rounding rules gives equal losses and other gradients, and lets the losses part a few steps later."""
    config = load("codec", "tiny")
    config.mesh.data = 1
    alone, _ = train(config, 6)
    config.mesh.fsdp = 8
    (losses, norms), (losses_alone, norms_alone) = zip(*train(config, 6)[0], strict=True), zip(*alone, strict=True)
    np.testing.assert_allclose(losses, losses_alone, rtol=1e-4)
    np.testing.assert_allclose(norms, norms_alone, rtol=2e-4)  # the fifth step's, since latents read mel bands


@pytest.mark.slow
def test_codebooks_of_eight_devices_are_those_of_one():
    ours, theirs = (
        state["model"]["quantiser"] for _, state in (train(small("codec", {"data": 4, "fsdp": 2})), one_device("codec"))
    )
    for name in ("codebooks", "ema_sums", "ema_counts"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stage", ["codec", "backbone", "superres", "sat", "lm", "pyramid", "coarse"])
@pytest.mark.parametrize("axis", ["data", "fsdp", "context"])
def test_tiny_presets_take_eight_devices_by_one_flag(stage, axis):
    config = load(stage, "tiny")
    config.mesh[axis] = 8
    mesh = loop.check(workdir.stage(config))
    assert mesh.shape[axis] == 8 and mesh.size == 8


@pytest.mark.parametrize(
    ("stage", "mesh", "change", "words"),
    [
        ("backbone", {"tensor": 8}, {}, "4 kv_heads do not divide over 8 devices of mesh axis 'tensor'"),
        ("backbone", {"fsdp": 8}, {"train": {"batch_size": 4}}, "batch_size=4 does not divide over the 8 devices"),
        ("superres", {"context": 8}, {"model": {"length": 60}}, "a row of 60 positions does not divide over the 8"),
        ("codec", {"context": 2, "tensor": 4}, {}, "split over time and over channels at once"),
        ("codec", {"tensor": 8}, {"model": {"decoder_width": 8}}, "4 hidden do not divide over 8 devices"),
        ("codec", {"data": 8}, {"train": {"accumulate": 2}}, "train.accumulate is 2"),
        ("backbone", {"data": 3}, {}, "mesh data=3, fsdp=1, context=1, tensor=1 has 3 places for 8 devices"),
        ("backbone", {"model": 8}, {}, "mesh axis 'model' is unknown"),
    ],
)
def test_a_rule_that_cannot_be_met_is_one_line(stage, mesh, change, words):
    config = small(stage, {})
    with config.unlocked():
        config.update(change)
        config.mesh.update(mesh)
    with pytest.raises(UserError) as raised:
        loop.check(workdir.stage(config))
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_moments_lie_where_their_weights_lie():
    placed = Placed(small("backbone", {"fsdp": 4, "tensor": 2}))
    model = jax.tree_util.tree_leaves_with_path(placed.placement.model)
    moments = jax.tree_util.tree_leaves_with_path(placed.placement.optimiser)
    specs = {jax.tree_util.keystr(path): leaf.spec for path, leaf in model}
    found = 0
    for path, leaf in moments:
        name = jax.tree_util.keystr(path)
        for weight, spec in specs.items():
            if name.endswith(weight) and ("mu" in name or "nu" in name):
                assert leaf.spec == spec, name
                found += 1
    assert found >= 2 * len(specs)
