"""A stacked LSTM, in the form that runs fast on every platform."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers
from jaxtyping import Array, Float

from hiermusic.nn import param
from hiermusic.parallel.mesh import constrain, gathered

# PyTorch's: uniform within 1 / sqrt(width).
_INIT = initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_AXES = (None, "channels")


class LSTM(nnx.Module):
    """Layers of a unidirectional LSTM, every one as wide as its input, from a state of zeros.

    Gates lie in PyTorch's order (input, forget, cell, output); its two biases, which only ever act as their sum, are
    one. Time stays whole on every device, whatever the mesh: a step needs the one before.

    Args:
      width: channels.
      layers: how many.
      dtype: compute type of the products; the state and the gates stay float32.
    """

    def __init__(self, width: int, layers: int, *, dtype: str = "float32", rngs: nnx.Rngs):
        self.layers = nnx.List([LSTMLayer(width, dtype=dtype, rngs=rngs) for _ in range(layers)])

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        for layer in self.layers:
            x_BTD = layer(x_BTD)
        return x_BTD


class LSTMLayer(nnx.Module):
    """One layer of `LSTM`."""

    def __init__(self, width: int, *, dtype: str, rngs: nnx.Rngs):
        self.dtype = dtype
        self.weight_ih = param.weight(rngs, (width, 4 * width), _AXES, _INIT)
        self.weight_hh = param.weight(rngs, (width, 4 * width), _AXES, _INIT)
        self.bias = param.zeros(rngs, (4 * width,), _AXES[1:])

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        # Whole before the scan, or every step would gather them anew.
        w_ih, w_hh = (gathered(w[...].astype(self.dtype), _AXES) for w in (self.weight_ih, self.weight_hh))
        x_BTD = constrain(x_BTD.astype(self.dtype), "batch", None, None)
        inputs_BTG = (x_BTD @ w_ih).astype(jnp.float32) + self.bias[...]
        return recurrence(inputs_BTG.swapaxes(0, 1), w_hh).swapaxes(0, 1).astype(self.dtype)


@jax.custom_vjp
def recurrence(inputs_TBG: Float[Array, "T B G"], w_DG: Float[Array, "D G"]) -> Float[Array, "T B D"]:
    """The outputs of an LSTM whose gates are inputs[t] + h[t - 1] w, from h and c of zeros.

    The gradient is written out for one reason: the weight's is one product over all steps, where the derived one adds
    to a whole matrix at every step.

    Args:
      inputs_TBG: what the input adds to the gates, G = 4 D.
      w_DG: recurrent weight; its type is the type of the products.
    """
    return _forward(inputs_TBG, w_DG)[0]


def _forward(inputs_TBG: Array, w_DG: Array) -> tuple[Array, tuple[Array, ...]]:
    def step(state, inputs_BG):
        h_BD, c_BD = state
        state = _cell(inputs_BG + _matmul(h_BD, w_DG), c_BD)
        return state, state

    start_BD = jnp.zeros((inputs_TBG.shape[1], len(w_DG)))
    _, (h_TBD, c_TBD) = lax.scan(step, (start_BD, start_BD), inputs_TBG)
    return h_TBD, (inputs_TBG, w_DG, h_TBD, c_TBD)


def _backward(saved: tuple[Array, ...], g_TBD: Array) -> tuple[Array, Array]:
    inputs_TBG, w_DG, h_TBD, c_TBD = saved
    h_TBD, c_TBD = (jnp.pad(x[:-1], ((1, 0), (0, 0), (0, 0))) for x in (h_TBD, c_TBD))
    gates_TBG = inputs_TBG + _matmul(h_TBD, w_DG)

    # Kept apart, or XLA puts the transposition back into every product, which is slower on CPU.
    w_GD = lax.optimization_barrier(w_DG.T)

    def step(state, at):
        (dh_BD, dc_BD), (g_BD, gates_BG, c_BD) = state, at
        dgates_BG, dc_BD = jax.vjp(_cell, gates_BG, c_BD)[1]((g_BD + dh_BD, dc_BD))
        return (_matmul(dgates_BG, w_GD), dc_BD), dgates_BG

    end_BD = jnp.zeros_like(g_TBD[0])
    _, dgates_TBG = lax.scan(step, (end_BD, end_BD), (g_TBD, gates_TBG, c_TBD), reverse=True)
    dw_DG = _matmul(h_TBD.reshape(-1, len(w_DG)).T, dgates_TBG.reshape(-1, w_DG.shape[1]).astype(w_DG.dtype))
    return dgates_TBG, dw_DG.astype(w_DG.dtype)


recurrence.defvjp(_forward, _backward)


def _cell(gates_BG: Array, c_BD: Array) -> tuple[Array, Array]:
    i, f, g, o = jnp.split(gates_BG, 4, axis=-1)
    c_BD = jax.nn.sigmoid(f) * c_BD + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c_BD), c_BD


def _matmul(x: Array, w: Array) -> Array:
    """In the type of the weight, summed in float32."""
    return jnp.matmul(x.astype(w.dtype), w, preferred_element_type=jnp.float32)
