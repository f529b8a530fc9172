"""Counting the floating-point operations of a function from its traced form."""

import math
from collections.abc import Callable
from typing import Any

import jax


def forward_flops(function: Callable[..., Any], *arguments: Any) -> float:
    """Operations of the matrix products and convolutions that a function runs, two for a multiplication and addition.

    A scan's body counts as often as it runs, which XLA's own count does not see; of a branch the cheapest way counts,
    and a loop of unknown length once.

    Args:
      function: what `jax.jit` takes.
      arguments: arrays or `jax.ShapeDtypeStruct`s; nothing is computed.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
    return sum(map(_equation, jaxpr.eqns))


def _equation(eqn: Any) -> float:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        return 2.0 * eqn.outvars[0].aval.size * summed
    if name == "conv_general_dilated":
        kernel = eqn.invars[1].aval
        outputs = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
        return 2.0 * eqn.outvars[0].aval.size * kernel.size / outputs
    inner = [_count(getattr(part, "jaxpr", part)) for part in jax.tree.leaves(list(params.values())) if _is_jaxpr(part)]
    if name == "cond":
        return min(inner)
    return params.get("length", 1) * sum(inner) if name == "scan" else float(sum(inner))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
