"""Loss against compute: L(C) = E + A C^-alpha, fitted and doubted."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.optimize import least_squares

FEWEST = 4  # runs of different compute: three parameters and something left to be wrong about
STEEPEST = 3.0
SQUARED = 1e-3  # relative errors below this count squared, larger ones in proportion (Chinchilla's delta)


@dataclass(frozen=True)
class Fit:
    """A fitted law and how good it is.

    Args:
      floor: E, the loss that no compute takes away.
      scale: A.
      exponent: alpha.
      interval: of alpha, 95 %, by bootstrap over the residuals; at the bounds 0 or 3 the runs say nothing.
      r2: share of the losses' variance that the law explains.
      residuals: loss minus law at each run.
      left_out: root mean square error on each run of the law fitted without it; None below 5 runs.
    """

    floor: float
    scale: float
    exponent: float
    interval: tuple[float, float]
    r2: float
    residuals: list[float]
    left_out: float | None

    def __call__(self, compute: Float[np.ndarray, "X"]) -> Float[np.ndarray, "X"]:
        return self.floor + self.scale * np.asarray(compute, np.float64) ** -self.exponent


def frontier(compute: Sequence[float], loss: Sequence[float]) -> list[int]:
    """Indices of the runs that none of at most their compute beats, by rising compute."""
    best = np.inf
    kept = []
    for index in sorted(range(len(loss)), key=lambda i: (compute[i], loss[i])):
        if loss[index] < best:
            best = loss[index]
            kept.append(index)
    return kept


def fit(compute: Sequence[float], loss: Sequence[float], samples: int = 300, seed: int = 0) -> Fit | None:
    """Robust least squares on the logarithm of the loss, as Chinchilla's third approach (arXiv:2203.15556).

    Args:
      compute: of each run, FLOPs or any other unit, positive.
      loss: of each run, positive.
      samples: of the bootstrap.
      seed: of the bootstrap.
    Returns:
      The law; None with fewer than 4 runs of different compute.
    """
    compute, loss = np.asarray(compute, np.float64), np.asarray(loss, np.float64)
    if len(np.unique(compute)) < FEWEST:
        return None
    centre = np.exp(np.log(compute).mean())  # parameters of order one
    x = np.log(compute / centre)
    best = _solve(x, loss)
    law = _law(best, x)
    spread = np.log(loss) - np.log(law)
    # residuals of a fit are smaller than the errors: three parameters have followed them
    spread = (spread - spread.mean()) * np.sqrt(len(x) / (len(x) - 3))
    rng = np.random.default_rng(seed)
    drawn = [_solve(x, law * np.exp(rng.choice(spread, len(x))), start=best)[2] for _ in range(samples)]
    # few residuals have thin tails: widened as Student's t is against the normal distribution
    widen = stats.t.ppf(0.975, len(x) - 3) / stats.norm.ppf(0.975)
    low, high = np.clip(best[2] + widen * (np.quantile(drawn, (0.025, 0.975)) - best[2]), 0.0, STEEPEST)
    errors = [
        loss[i] - _law(_solve(np.delete(x, i), np.delete(loss, i)), x[i])
        for i in range(len(x))
        if len(np.unique(np.delete(compute, i))) >= FEWEST
    ]
    return Fit(
        floor=float(best[0]),
        scale=float(np.exp(best[1]) * centre ** best[2]),
        exponent=float(best[2]),
        interval=(float(low), float(high)),
        r2=float(1 - np.sum((loss - law) ** 2) / np.sum((loss - loss.mean()) ** 2)),
        residuals=[float(r) for r in loss - law],
        left_out=float(np.sqrt(np.mean(np.square(errors)))) if errors else None,
    )


def _law(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    floor, log_scale, exponent = parameters
    return floor + np.exp(log_scale - exponent * x)


def _solve(x: np.ndarray, loss: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """(floor, log of the scale at x = 0, exponent) of the best of several starts, or from one."""
    top = loss.min() * (1 - 1e-6)
    bounds = ([0.0, -np.inf, 0.0], [top, np.inf, STEEPEST])
    starts = [start] if start is not None else []
    if start is None:
        for share in (0.0, 0.3, 0.6, 0.9, 0.97):
            # what lies above the floor is a straight line in logarithms
            slope, height = np.polyfit(x, np.log(loss - share * top), 1)
            starts.append(np.array([share * top, height, np.clip(-slope, 1e-3, STEEPEST - 1e-3)]))

    def misfit(parameters):
        return np.log(_law(parameters, x)) - np.log(loss)

    found = [
        least_squares(misfit, np.clip(s, *bounds), bounds=bounds, loss="soft_l1", f_scale=SQUARED, x_scale="jac")
        for s in starts
    ]
    return min(found, key=lambda result: result.cost).x
