import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiermusic.codec.multiscale import MultiscaleConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.errors import UserError
from hiermusic.nn.param import parameter_counts
from hiermusic.tokens.scales import schedule

CONFIG = MultiscaleConfig(
    scales=(1, 2, 5, 8, 11), codes=12, latent=6, phi_count=3, kernel=5, gamma=0.4, kmeans_iterations=5
)
WIDTH = 9

_train = nnx.jit(lambda quantiser, x, key: quantiser(x, key=key, train=True))
_evaluate = nnx.jit(lambda quantiser, x: quantiser(x))
_encode = nnx.jit(lambda quantiser, x, levels: quantiser.encode(x, levels), static_argnums=2)
_decode = nnx.jit(lambda quantiser, codes, levels: quantiser.decode(codes, levels), static_argnums=2)


def _frames(seed, batch=3, windows=2, width=WIDTH, window=11):
    return np.random.default_rng(seed).normal(size=(batch, windows * window, width)).astype(np.float32)


def _fresh(config=CONFIG, width=WIDTH):
    return nnx.jit(lambda: config.make(width, rngs=nnx.Rngs(0)))()


def _quantiser(config=CONFIG, width=WIDTH):
    quantiser = _fresh(config, width)
    rng = np.random.default_rng(5)
    quantiser.phi_bias[...] = jnp.asarray(rng.normal(size=quantiser.phi_bias.shape), jnp.float32) * 0.1
    _train(quantiser, _frames(0, width=width, window=config.frames), jax.random.key(0))
    return quantiser


# An independent quantiser of one window, in double precision and by loops.


def _pool(x_TE, n):
    T = len(x_TE)
    return np.stack([x_TE[i * T // n : -(-(i + 1) * T // n)].mean(0) for i in range(n)])


def _interpolate(x_nE, T):
    n = len(x_nE)
    place = np.clip((np.arange(T) + 0.5) * n / T - 0.5, 0, n - 1)
    return np.stack([np.interp(place, np.arange(n), channel) for channel in x_nE.T], axis=1)


def _phi(u_TE, kernel_WEE, bias_E, gamma):
    half = len(kernel_WEE) // 2
    smooth = np.tile(bias_E, (len(u_TE), 1))
    for t in range(len(u_TE)):
        for w, tap in enumerate(kernel_WEE):
            if 0 <= t + w - half < len(u_TE):
                smooth[t] += u_TE[t + w - half] @ tap
    return (1 - gamma) * u_TE + gamma * smooth


def _weights(quantiser):
    return {path[-1]: np.asarray(v[...], np.float64) for path, v in nnx.state(quantiser).flat_state()}


def _reference(weights, config, phis, window_TD):
    """Codes, and f, the residuals and the steps of all levels."""
    f = window_TD.astype(np.float64)
    if "in_proj" in weights:
        f = f @ weights["in_proj"] + weights["in_proj_bias"]
    residual, codes, residuals, steps = f, [], [], []
    for k, n in enumerate(config.scales):
        book = weights["codebooks"][k]
        chosen = np.square(_pool(residual, n)[:, None] - book[None]).sum(-1).argmin(1)
        u = _interpolate(book[chosen], config.frames)
        step = _phi(u, weights["phi"][phis[k]], weights["phi_bias"][phis[k]], config.gamma)
        codes.append(chosen), residuals.append(residual), steps.append(step)
        residual = residual - step
    return np.concatenate(codes), f, residuals, steps


def _out_proj(weights, total):
    return total @ weights["out_proj"] + weights["out_proj_bias"] if "out_proj" in weights else total


@pytest.mark.parametrize(
    ("width", "phi", "phis"),
    [(WIDTH, "partial", [0, 0, 1, 2, 2]), (CONFIG.latent, "shared", [0] * 5), (WIDTH, "unshared", [0, 1, 2, 3, 4])],
)
def test_the_quantiser_is_an_independent_reference(width, phi, phis):
    config = dataclasses.replace(CONFIG, phi=phi)
    quantiser, x = _quantiser(config, width), _frames(7, width=width)
    weights, out = _weights(quantiser), _evaluate(quantiser, x)
    assert out.codes_BPS.shape == (3, 2, sum(config.scales)) and out.codes_BPS.dtype == jnp.int32
    errors = []
    for b in range(3):
        for r in range(2):
            window = x[b, r * 11 : (r + 1) * 11]
            codes, f, _, steps = _reference(weights, config, phis, window)
            np.testing.assert_array_equal(out.codes_BPS[b, r], codes)
            sums = np.cumsum(steps, 0)
            np.testing.assert_allclose(
                out.z_q_BTD[b, r * 11 : (r + 1) * 11], _out_proj(weights, sums[-1]), rtol=1e-4, atol=1e-5
            )
            errors.append([np.mean(np.square(f - total)) for total in sums])
    np.testing.assert_allclose(out.stats["commitment_K"], np.mean(errors, 0), rtol=1e-4)
    assert float(out.commitment) == pytest.approx(2 * np.mean(errors), rel=1e-4)


def test_encode_and_decode_agree_with_the_forward_pass():
    quantiser, x = _quantiser(), _frames(7)
    out, codes = _evaluate(quantiser, x), _encode(quantiser, x, None)
    np.testing.assert_array_equal(codes, out.codes_BPS)
    np.testing.assert_allclose(_decode(quantiser, codes, None), out.z_q_BTD, atol=1e-5)
    first = sum(CONFIG.slots[:3])
    np.testing.assert_array_equal(_encode(quantiser, x, 3), codes[..., :first])
    three = _decode(quantiser, codes, 3)
    np.testing.assert_array_equal(_decode(quantiser, codes[..., :first], None), three)
    # -1 adds nothing, not even phi's bias
    np.testing.assert_allclose(_decode(quantiser, codes.at[..., first:].set(-1), None), three, atol=1e-6)
    assert np.abs(three - out.z_q_BTD).max() > 0.01


def test_inputs_are_the_views_of_a_sum_built_step_by_step():
    quantiser, x = _quantiser(), _frames(7)
    weights, codes = _weights(quantiser), _encode(quantiser, x, None)
    inputs = jax.jit(quantiser.inputs)(codes)
    assert inputs.shape == (3, 2, sum(CONFIG.scales), CONFIG.latent) and inputs.dtype == jnp.float32
    _, _, _, steps = _reference(weights, CONFIG, CONFIG.phis, x[1, 11:])
    sums = np.concatenate([np.zeros((1, 11, 6)), np.cumsum(steps, 0)])
    expected = np.concatenate([_pool(sums[k], n) for k, n in enumerate(CONFIG.scales)])
    np.testing.assert_allclose(inputs[1, 1], expected, atol=1e-5)

    @jax.jit
    def by_hand(codes_S):
        total, start, views = jnp.zeros((11, 6)), 0, []
        for level, n in enumerate(CONFIG.scales):
            views.append(quantiser.view(total, level))
            total = quantiser.add(total, codes_S[start : start + n], level)
            start += n
        return jnp.concatenate(views), total

    views, total = by_hand(codes[1, 1])
    np.testing.assert_allclose(views, inputs[1, 1], atol=1e-6)
    np.testing.assert_allclose(_out_proj(weights, total), _evaluate(quantiser, x).z_q_BTD[1, 11:], atol=1e-5)


@pytest.mark.parametrize("straight_through", ["once", "per_level"])
@pytest.mark.parametrize("objective", ["residual", "running"])
def test_gradients_are_finite_differences_of_the_surrogate(straight_through, objective):
    config = dataclasses.replace(CONFIG, straight_through=straight_through, objective=objective)
    quantiser, x = _quantiser(config), _frames(7, batch=1, windows=1)
    g = np.random.default_rng(8).normal(size=x.shape)
    graph, params, rest = nnx.split(quantiser, nnx.Param, ...)

    @jax.jit
    @jax.grad
    def gradient(inputs):
        out = nnx.merge(graph, inputs[0], rest)(inputs[1])
        return jnp.sum(out.z_q_BTD * g) + out.commitment

    moved, x_gradient = gradient((params, jnp.asarray(x)))
    gradients = {path[-1]: np.asarray(v[...], np.float64) for path, v in moved.flat_state()}
    gradients["x"] = np.asarray(x_gradient[0], np.float64)

    start = _weights(quantiser)
    gain = len(config.scales) if straight_through == "per_level" else 1
    codes, f0, residuals0, steps0 = _reference(start, config, config.phis, x[0])
    parts, sums0 = np.split(codes, np.cumsum(config.scales)[:-1]), np.cumsum(steps0, 0)

    def surrogate(weights):
        """The loss with the codes, and all that a gradient stops at, held where they are."""
        f = weights["x"] @ weights["in_proj"] + weights["in_proj_bias"]
        losses, total = [], 0.0
        for k, chosen in enumerate(parts):
            u = _interpolate(weights["codebooks"][k][chosen], config.frames)
            step = _phi(u, weights["phi"][config.phis[k]], weights["phi_bias"][config.phis[k]], config.gamma)
            total = total + step
            if objective == "residual":
                residual = f - (sums0[k] - steps0[k])
                losses.append(np.mean((steps0[k] - residual) ** 2) + np.mean((step - residuals0[k]) ** 2))
            else:
                losses.append(0.25 * np.mean((sums0[k] - f) ** 2) + np.mean((total - f0) ** 2))
        return np.sum(_out_proj(weights, sums0[-1] + gain * (f - f0)) * g[0]) + np.mean(losses)

    start["x"] = x[0].astype(np.float64)
    for name in ("x", "in_proj", "in_proj_bias", "out_proj", "out_proj_bias", "phi", "phi_bias"):
        direction = np.random.default_rng(1).normal(size=start[name].shape)
        ahead, behind = (surrogate(start | {name: start[name] + e * direction}) for e in (1e-4, -1e-4))
        assert np.sum(gradients[name] * direction) == pytest.approx((ahead - behind) / 2e-4, rel=2e-3, abs=1e-5), name


def test_the_gradient_is_the_identitys_and_per_level_gives_k_of_them():
    x, g = _frames(7, width=6), _frames(8, width=6)

    def gradient(config):
        quantiser = _quantiser(config, 6)
        return jax.jit(jax.grad(lambda x: jnp.sum(quantiser(x).z_q_BTD * g)))(x)

    np.testing.assert_allclose(gradient(CONFIG), g)
    np.testing.assert_allclose(gradient(dataclasses.replace(CONFIG, straight_through="per_level")), 5 * g, rtol=1e-6)


def test_past_the_codebooks_frames_go_through_both_maps():
    quantiser, x = _fresh(), _frames(7)
    weights = _weights(quantiser)
    expected = _out_proj(weights, x @ weights["in_proj"] + weights["in_proj_bias"])
    np.testing.assert_allclose(quantiser.bypass(x)[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(_fresh(width=CONFIG.latent).bypass(x[..., :6])[0], x[..., :6])


def test_every_level_commits():
    quantiser, x = _quantiser(), _frames(7)
    commitment = jax.jit(jax.jacrev(lambda x: quantiser(x).stats["commitment_K"]))(x)
    assert commitment.shape == (5, *x.shape)
    assert np.all(np.abs(commitment).max((1, 2, 3)) > 1e-4)


def test_first_batch_initialises_level_by_level():
    quantiser, x = _fresh(), _frames(0, batch=8)
    out = _train(quantiser, x, jax.random.key(0))
    assert bool(quantiser.initialised[...])
    # One token a window and more codes than that: every window's mean has a code of its own.
    assert len(np.unique(out.codes_BPS[..., 0])) > 6
    assert np.all(np.isfinite(quantiser.codebooks[...])) and np.all(np.asarray(quantiser.ema_counts[...]).sum(1) > 0)
    np.testing.assert_allclose(np.asarray(quantiser.ema_counts[...]).sum(1), 16 * np.array(CONFIG.scales), rtol=0.02)
    assert _evaluate(quantiser, x).stats["commitment_K"][-1] < 0.7 * np.mean(np.square(x @ quantiser.in_proj[...]))


def test_averages_move_by_the_written_formula():
    config = dataclasses.replace(CONFIG, dead_share=0.0)
    quantiser, x = _quantiser(config), _frames(3)
    before, phis = _weights(quantiser), config.phis
    windows = x.reshape(6, 11, WIDTH)
    found = [_reference(before, config, phis, window) for window in windows]
    _train(quantiser, x, jax.random.key(1))
    start = 0
    for k, n in enumerate(config.scales):
        points = np.concatenate([_pool(residuals[k], n) for _, _, residuals, _ in found])
        codes = np.concatenate([codes[start : start + n] for codes, *_ in found])
        start += n
        decay = max(0.99, 1 - len(points) / 12)
        counts = decay * before["ema_counts"][k] + (1 - decay) * np.bincount(codes, minlength=12)
        sums = np.stack([points[codes == v].sum(0) for v in range(12)])
        sums = decay * before["ema_sums"][k] + (1 - decay) * sums
        epsilon = 1e-5 * min(1, counts.sum() / 12)
        smooth = (counts + epsilon) / (counts.sum() + 12 * epsilon) * counts.sum()
        np.testing.assert_allclose(quantiser.ema_counts[k], counts, rtol=1e-4)
        np.testing.assert_allclose(quantiser.ema_sums[k], sums, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(quantiser.codebooks[k], sums / smooth[:, None], rtol=1e-3, atol=1e-4)


def test_a_scale_of_one_token_fills_its_codebook_without_churning():
    codes, batch, steps = 256, 2, 500
    sizes = dict(scales=(1, 3), codes=codes, latent=4, phi="shared", kernel=3, kmeans_iterations=2)
    config = MultiscaleConfig(**sizes, decay=0.9)
    graph, state = nnx.split(_fresh(config, 4))
    rng = np.random.default_rng(0)
    means = rng.normal(size=(steps, batch, 1, 4))
    xs = (means + 0.3 * rng.normal(size=(steps, batch, 3, 4))).astype(np.float32)

    @jax.jit
    def run(state, xs):
        def step(state, inputs):
            x, key = inputs
            quantiser = nnx.merge(graph, state)
            out = quantiser(x, key=key, train=True)
            level = (quantiser.codebooks[0], quantiser.ema_sums[0], quantiser.ema_counts[0])
            return nnx.state(quantiser), (*level, out.codes_BPS[:, 0, 0], out.stats)

        return jax.lax.scan(step, state, (xs, jax.random.split(jax.random.key(0), steps)))[1]

    books, sums, counts, chosen, stats = jax.tree.map(np.asarray, run(state, xs))
    hit = np.zeros((steps, codes), bool)
    hit[np.arange(steps)[:, None], chosen] = True
    moves = np.abs(np.diff(books, axis=0)).max(-1)
    replaced = (moves > 1e-2) & ~hit[1:]
    assert np.all(np.abs(books[0]).max(-1) > 1e-3), "codes that wait for a vector stay where they are"
    assert replaced.sum(1).max() <= batch, "no more codes are replaced than there are vectors"
    # Uniform use takes codes / batch steps to choose a code: none is given up before that.
    assert replaced.sum(0).max() <= -(-steps // (codes // batch))
    for step, code in zip(*np.nonzero(replaced[: steps - 60]), strict=True):
        later = np.flatnonzero(hit[step + 2 :, code])
        until = step + 1 + min(60, later[0] + 1 if len(later) else 60)
        kept = books[step + 1 : until, code]
        np.testing.assert_allclose(kept, np.broadcast_to(kept[0], kept.shape), rtol=1e-3, atol=1e-4)
        ratio = sums[step + 1, code] / counts[step + 1, code]
        np.testing.assert_allclose(ratio, books[step + 1, code], rtol=1e-4, atol=1e-5)
    # A code that was chosen stays for a long time.
    for code in np.unique(chosen[200:400]):
        last = 200 + np.flatnonzero(hit[200:400, code])[-1]
        assert not replaced[last : last + codes // batch, code].any()
    late = len(np.unique(chosen[-codes // batch :]))
    assert late > 0.3 * codes, "with as many vectors as codes, many codes are chosen"
    assert stats["usage_K"][-1, 0] > 0.3 and stats["perplexity_K"][-1, 0] > 0.2 * codes
    error = stats["commitment_K"][:, 0]
    assert error[-100:].mean() < 0.8 * error[1:30].mean()


def test_evaluation_moves_nothing():
    quantiser = _quantiser()
    before = jax.tree.map(np.asarray, nnx.state(quantiser))
    _evaluate(quantiser, _frames(9))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(quantiser)))


def test_a_sharded_batch_moves_the_codebooks_as_one_device_does():
    """With as many vectors as codes: of fewer, two codes begin in one place, and rounding says which is nearer."""
    config = dataclasses.replace(CONFIG, codes=16, dead_share=0.5)
    graph, fresh = nnx.split(_fresh(config))

    @jax.jit
    def step(state, x, key):
        quantiser = nnx.merge(graph, state)
        out = quantiser(x, key=key, train=True)
        return nnx.state(quantiser), out.codes_BPS

    mesh = Mesh(np.array(jax.devices()), ("data",))
    placements = [
        (NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())),
        (jax.devices()[0], jax.devices()[0]),
    ]
    results = []
    for batch_place, state_place in placements:
        state = jax.device_put(fresh, state_place)
        for seed in range(4):
            x = jax.device_put(_frames(seed, batch=16, windows=1), batch_place)
            state, codes = step(state, x, jax.random.key(seed))
        results.append((jax.tree.map(np.asarray, state), np.asarray(codes)))
    np.testing.assert_array_equal(results[0][1], results[1][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), results[0][0], results[1][0])


def test_phis_are_spread_over_the_levels():
    assert MultiscaleConfig().phis == (0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5)
    assert MultiscaleConfig(phi="shared").phis == (0,) * 16
    assert MultiscaleConfig(phi="unshared").phis == MultiscaleConfig(phi_count=16).phis == tuple(range(16))
    assert MultiscaleConfig(scales=(4,), phi_count=1).phis == (0,)


@pytest.mark.parametrize(("width", "latent", "parameters"), [(1024, 64, 353_728), (128, 128, 885_504)])
def test_the_papers_sizes(width, latent, parameters):
    config = MultiscaleConfig(latent=latent)
    assert (config.levels, config.frames, sum(config.slots)) == (16, 75, 455)
    quantiser = nnx.eval_shape(lambda: config.make(width, rngs=nnx.Rngs(0)))
    assert sum(parameter_counts(quantiser).values()) == parameters
    assert quantiser.codebooks.shape == (16, 1024, latent)


def test_a_residual_quantisers_row_is_a_frame():
    config = QuantiserConfig(levels=3, codes=8)
    assert (config.frames, config.slots) == (1, (1, 1, 1))
    assert nnx.eval_shape(lambda: config.make(5, rngs=nnx.Rngs(0))).codebooks.shape == (3, 8, 5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scales": (1, 3, 3)}, "scales (1, 3, 3)"),
        ({"phi": "some"}, "phi is 'some': choose from partial"),
        ({"objective": "both"}, "objective is 'both'"),
        ({"straight_through": "never"}, "straight_through is 'never'"),
        ({"kernel": 4}, "kernel is 4"),
        ({"scales": schedule("linear", 8, 4)}, "phi_count is 6: choose 1 to 4"),
    ],
)
def test_bad_configurations_are_named(fields, words):
    with pytest.raises(UserError) as caught:
        MultiscaleConfig(**fields)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_only_whole_windows_and_whole_scales_are_taken():
    quantiser = _fresh()
    with pytest.raises(ValueError, match="12 frames are no whole windows of 11"):
        jax.eval_shape(quantiser, jnp.zeros((1, 12, WIDTH)))
    with pytest.raises(ValueError, match="packets of 4 codes"):
        jax.eval_shape(quantiser.decode, jnp.zeros((1, 1, 4), int))
