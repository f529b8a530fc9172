import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from hiermusic.nn.conv import Conv, ConvTranspose, GroupNorm, Snake, snake, transposed_conv

_snake, _transposed = jax.jit(snake), jax.jit(transposed_conv)
_apply = jax.jit(lambda layer, x: layer(x))


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _make(kind, *sizes, **options):
    return jax.jit(lambda: kind(*sizes, **options, rngs=nnx.Rngs(0)))()


def test_snake_is_its_definition():
    x = np.tile(np.linspace(-30, 30, 20_001, dtype=np.float32)[:, None], 3)
    alpha = np.array([0.5, 1.0, 3.0])
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(_snake(x, alpha.astype(np.float32)), wide + np.sin(alpha * wide) ** 2 / alpha, atol=2e-5)


def test_gradient_of_snake_survives_the_range_reduction():
    # Half turns, where the reduction jumps, are among the points.
    x = np.concatenate([np.linspace(-12, 12, 4001), np.pi * (np.arange(-3, 3) + 0.5)])
    x = np.tile(x[:, None], 3).astype(np.float32)
    alpha, g = np.array([0.5, 1.0, 3.0], np.float32), _random(0, len(x), 3)

    def reference(x, alpha):
        return x + jnp.sin(alpha * x) ** 2 / alpha

    ours, theirs = (
        jax.jit(jax.grad(lambda x, a, f=f: jnp.sum(g * f(x, a)), argnums=(0, 1)))(x, alpha) for f in (snake, reference)
    )
    np.testing.assert_allclose(ours[0], theirs[0], atol=2e-4)
    np.testing.assert_allclose(ours[1], theirs[1], atol=2e-2)


def test_snake_starts_at_frequency_one_and_keeps_the_type():
    x = _random(0, 2, 5, 3)
    layer = Snake(3, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(_apply(layer, x), x + np.sin(x) ** 2, atol=1e-5)
    assert jax.eval_shape(layer, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
def test_transposed_conv_is_its_definition(stride):
    x, w = _random(0, 2, 7, 3), _random(1, 2 * stride, 3, 4)
    expected = np.zeros((2, 8 * stride, 4), np.float32)
    for n in range(7):
        for k in range(2 * stride):
            expected[:, n * stride + k] += x[:, n] @ w[k]
    np.testing.assert_allclose(_transposed(x, w), expected, atol=1e-5)


def test_a_transposed_conv_makes_nothing_that_has_to_be_added_up():
    """Products apart would be twice what comes out."""
    x, w = jnp.zeros((1, 4096, 32)), jnp.zeros((16, 32, 16))
    memory = _transposed.lower(x, w).compile().memory_analysis()
    assert memory.output_size_in_bytes == 4097 * 8 * 16 * 4 > 2 * memory.temp_size_in_bytes


@pytest.mark.parametrize("stride", [2, 5])
def test_transposed_conv_has_the_gradient_of_lax(stride):
    x, w, g = _random(0, 2, 7, 3), _random(1, 2 * stride, 3, 4), _random(2, 2, 8 * stride, 4)

    def reference(x, w):
        full = [(2 * stride - 1, 2 * stride - 1)]
        return lax.conv_general_dilated(
            x, w[::-1], (1,), full, lhs_dilation=(stride,), dimension_numbers=("NHC", "HIO", "NHC")
        )

    ours, theirs = (
        jax.jit(jax.grad(lambda x, w, f=f: jnp.sum(f(x, w) * g), argnums=(0, 1)))(x, w)
        for f in (transposed_conv, reference)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("stride", [2, 3, 8])
def test_conv_transpose_layer_keeps_exact_length_and_trims_the_front(stride):
    layer = _make(ConvTranspose, 3, 4, stride)
    layer.bias[...] = np.arange(4, dtype=np.float32)
    x = _random(0, 2, 6, 3)
    y = _apply(layer, x)
    assert y.shape == (2, 6 * stride, 4)
    v = np.asarray(layer.weight_v[...])
    front = (stride + 1) // 2
    # Sample 0 of the output is sample `front` of the full overlap-add: the first frame's tap `front` alone.
    np.testing.assert_allclose(np.asarray(y)[:, 0], x[:, 0] @ v[front] + np.arange(4.0), atol=1e-5)


def test_weight_norm_makes_the_weight_independent_of_the_length_of_v():
    for layer, x in (
        (_make(Conv, 3, 4, (7,), dilation=(2,)), _random(0, 2, 20, 3)),
        (_make(ConvTranspose, 3, 4, 2), _random(0, 2, 20, 3)),
    ):
        before = np.asarray(_apply(layer, x))
        layer.weight_v[...] = 3.0 * layer.weight_v[...]
        np.testing.assert_allclose(_apply(layer, x), before, atol=1e-5)
        layer.weight_g[...] = 2.0 * layer.weight_g[...]
        np.testing.assert_allclose(_apply(layer, x), 2 * before, atol=1e-5)


def test_conv_is_a_dilated_correlation_with_zero_padding():
    layer = _make(Conv, 3, 4, (7,), dilation=(3,))
    x = _random(0, 1, 30, 3)
    padded = np.pad(x, ((0, 0), (9, 9), (0, 0)))
    w = np.asarray(layer.weight_v[...])  # g starts at |v|, so the weight is v
    expected = sum(padded[:, 3 * k : 3 * k + 30] @ w[k] for k in range(7))
    np.testing.assert_allclose(_apply(layer, x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"), [(16, 16, 8, 4), (37, 9, 2, 4), (40, 10, 5, 3), (9, 4, 2, 0)]
)
def test_strided_conv_is_laxs(size, kernel, stride, padding):
    kwargs = dict(stride=(1, stride), dilation=(2, 1), padding=(2, padding))
    layer = _make(Conv, 3, 4, (3, kernel), **kwargs)
    x = _random(0, 2, 5, size, 3)

    def reference(x):
        return lax.conv_general_dilated(
            x,
            layer.weight_v[...],
            (1, stride),
            [(2, 2), (padding, padding)],
            rhs_dilation=(2, 1),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def value_and_gradient(f):
        return jax.jit(jax.grad(lambda x: (jnp.sum(jnp.square(y := f(x))), y), has_aux=True))(x)

    (ours, y), (theirs, expected) = value_and_gradient(layer), value_and_gradient(reference)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("mode", ["zeros", "reflect", "constant"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(10, 5, (3, 2)), (7, 1, (2, 4)), (2, 2, (0, 0))])
def test_either_side_is_padded_by_itself(kernel, stride, padding, mode):
    layer = _make(Conv, 3, 4, (kernel,), stride=(stride,), padding=(padding,), padding_mode=mode)
    x = _random(0, 2, 20, 3)
    padded = np.pad(x, ((0, 0), padding, (0, 0)), mode={"zeros": "constant"}.get(mode, mode))
    windows = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=1)[:, ::stride]
    np.testing.assert_allclose(_apply(layer, x), np.einsum("btik,kio->bto", windows, layer.weight_v[...]), atol=1e-5)


def test_a_signal_too_short_to_mirror_is_lengthened_with_zeros_first():
    layer = _make(Conv, 1, 1, (7,), padding_mode="reflect")
    layer.weight_v[...] = jnp.ones((7, 1, 1))
    layer.weight_g[...] = jnp.sqrt(7.0)[None]
    # 1 2 becomes 1 2 0 0, mirrored 0 0 2 | 1 2 0 0 | 0 2 1, and without its last two 0 0 2 1 2 0 0 0.
    np.testing.assert_allclose(_apply(layer, np.array([[[1.0], [2.0]]], np.float32))[0, :, 0], [5, 5], atol=1e-5)


@pytest.mark.parametrize("norm", ["weight", "group"])
@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"), [(10, 5, (3, 2)), (7, 1, (3, 3)), (7, 1, (6, 0)), (4, 2, (2, 0))]
)
def test_what_lies_behind_an_end_is_not_heard(kernel, stride, padding, mode, norm):
    """Signals of any length in one array give what each gives by itself."""
    layer = _make(Conv, 3, 4, (kernel,), stride=(stride,), padding=(padding,), padding_mode=mode, norm=norm)
    layer.bias[...] = jnp.arange(4.0)
    x, ends_B = _random(0, 9, 40, 3), np.array([1, 2, 3, 4, 5, 7, 9, 20, 26], np.int32)
    found = jax.jit(lambda layer, x, ends_B: layer(x, ends_B))(layer, x, ends_B)
    for one, item, end in zip(found, x, ends_B, strict=True):
        alone = layer(item[None, :end])[0]
        assert len(alone) == -(-end // stride)
        np.testing.assert_allclose(one[: len(alone)], alone, atol=1e-5)


@pytest.mark.parametrize("norm", ["weight", "group"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("stride", [2, 5])
def test_frames_behind_an_end_are_not_heard_either(stride, causal, norm):
    layer = _make(ConvTranspose, 3, 4, stride, causal=causal, norm=norm)
    layer.bias[...] = jnp.arange(4.0)
    x, ends_B = _random(0, 3, 9, 3), np.array([1, 4, 9], np.int32)
    found = jax.jit(lambda layer, x, ends_B: layer(x, ends_B))(layer, x, ends_B)
    for one, item, end in zip(found, x, ends_B, strict=True):
        np.testing.assert_allclose(one[: end * stride], layer(item[None, :end])[0], atol=1e-5)


def test_a_stride_over_dilated_taps_is_refused():
    with pytest.raises(ValueError, match="dilat"):
        Conv(2, 2, (3,), stride=(2,), dilation=(2,), rngs=nnx.Rngs(0))


def test_conv_computes_in_the_type_it_is_told():
    layer = _make(Conv, 2, 4, (3, 9), stride=(1, 2), dtype="bfloat16")
    y = jax.eval_shape(layer, _random(0, 1, 5, 16, 2))
    assert y.shape == (1, 5, 8, 4) and y.dtype == jnp.bfloat16
    assert layer.weight_v[...].dtype == jnp.float32


def test_a_group_norm_is_over_all_positions_and_channels_of_an_item():
    norm, x = _make(GroupNorm, 3, None), 5 + _random(0, 2, 4, 6, 3)
    np.testing.assert_array_equal(norm.bias[...], np.zeros(3))
    norm.scale[...], norm.bias[...] = jnp.array([1.0, 2.0, -1.0]), jnp.array([0.5, 0.0, 3.0])
    mean, variance = (of(x.astype(float), axis=(1, 2, 3), keepdims=True) for of in (np.mean, np.var))
    wanted = (x - mean) / np.sqrt(variance + 1e-5) * [1, 2, -1] + [0.5, 0, 3]
    np.testing.assert_allclose(_apply(norm, x), wanted, atol=1e-4)


def test_initialisation_is_dacs():
    layer = _make(Conv, 64, 64, (7,))
    v = np.asarray(layer.weight_v[...])
    assert abs(v.std() - 0.02) < 1e-3
    assert not np.any(layer.bias[...])
