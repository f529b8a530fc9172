"""Counting what a function does from its traced form: floating-point operations, and bytes to and from memory.

A scan's body counts as often as it runs, which XLA's own counts do not see; of a branch the cheapest way counts, and a
loop of unknown length once.
"""

import math
from collections.abc import Callable
from typing import Any

import jax

_PRODUCTS = ("dot_general", "conv_general_dilated", "fft", "pallas_call")


def forward_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of the matrix products and convolutions that a function runs, two for a multiplication and addition.

    Args:
      function: what `jax.jit` takes.
      arguments: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    return _total(jax.make_jaxpr(function)(*arguments).jaxpr, _flops)


def product_bytes(function: Callable[..., Any], *arguments: Any) -> float:
    """Bytes that the products, convolutions, transforms and kernels of a function read and write, each array once.

    All else is taken to be fused with them, and whatever is small to stay on the chip is counted all the same.

    Args:
      function, arguments: as for `forward_flops`.
    """
    return _total(jax.make_jaxpr(function)(*arguments).jaxpr, _moved)


def _total(jaxpr: Any, cost: Callable[[Any], float | None]) -> float:
    """The cost of all equations; `cost` gives that of one, or None to look inside it."""
    total = 0.0
    for equation in jaxpr.eqns:
        own = cost(equation)
        if own is None:
            parts = jax.tree.leaves(list(equation.params.values()), is_leaf=_is_jaxpr)
            inner = [_total(getattr(part, "jaxpr", part), cost) for part in parts if _is_jaxpr(part)]
            name = equation.primitive.name
            times = equation.params["length"] if name == "scan" else 1
            own = min(inner) if name == "cond" else times * sum(inner)
        total += own
    return total


def _flops(equation: Any) -> float | None:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2.0 * equation.outvars[0].aval.size * summed
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * equation.outvars[0].aval.size * kernel.size / outputs
    return None


def _moved(equation: Any) -> float | None:
    if equation.primitive.name not in _PRODUCTS:
        return None
    return float(sum(_size(variable.aval) for variable in (*equation.invars, *equation.outvars)))


def _size(aval: Any) -> float:
    return math.prod(aval.shape) * aval.dtype.itemsize if hasattr(aval, "dtype") and hasattr(aval, "shape") else 0


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
