"""The programs of a training stage, to be compiled for a mesh that is not there; and what fits on it."""

import dataclasses
import math
from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiermusic.errors import UserError
from hiermusic.nn import attention_splash
from hiermusic.parallel.aot import Job, examine
from hiermusic.parallel.chips import Chip
from hiermusic.parallel.counting import forward_flops, product_bytes
from hiermusic.parallel.mesh import batch_sharding, make_mesh, shardings
from hiermusic.parallel.roofline import Load, activation_transfers, weight_transfers
from hiermusic.train.loop import LIMITS, abstract_state, check, make_update
from hiermusic.train.stage import Stage, Work

POLICIES = ("none", "dots", "full")  # of `model.remat`, from what costs no time to what saves most memory


class Build(Protocol):
    """A configuration as the stages that it makes, without their data: its own, or one with some fields changed."""

    def __call__(self, *, batch_size: int | None = None, remat: str | None = None) -> Stage:
        """The stage with a batch size and a remat policy in place of the configuration's."""


def jobs(build: Build, mesh: Mesh, batch_size: int | None = None, remat: str | None = None) -> list[Job]:
    """One program for each task of a stage: the update that training runs.

    Args:
      build: of any configuration.
      mesh: of devices that need not be there.
      batch_size, remat: as `Build` takes them.
    """
    build = partial(build, **_given(batch_size=batch_size, remat=remat))
    stage = build()
    seed = stage.config.loop.seed
    graphdef, state = abstract_state(stage, seed)
    placement = shardings(state, mesh)
    update = make_update(stage, graphdef, mesh, placement, seed)
    whole = NamedSharding(mesh, PartitionSpec())
    state = jax.tree.map(_placed, state, placement)

    def job(task: Hashable, shapes: Any) -> Job:
        batch = {name: _placed(x, batch_sharding(mesh) if x.shape else whole) for name, x in shapes.items()}
        step, limits = _placed(jax.ShapeDtypeStruct((), np.int32), whole), _placed(LIMITS, whole)
        return Job(
            f"train {_words(task)}".rstrip(),
            lambda: update.lower(state, batch, step, limits, task),
            lambda: _load(build, mesh, task, stage.work(task)),
        )

    return [job(task, shapes) for task, shapes in stage.examples()]


def _placed(x: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _words(task: Hashable) -> str:
    """A task in words: the fields that are true, or their text."""
    fields = dataclasses.asdict(task) if dataclasses.is_dataclass(task) else {} if task is None else {str(task): True}
    words = [value if isinstance(value, str) else name if value is True else "" for name, value in fields.items()]
    return " ".join(filter(None, words))


def _given(**changes: Any) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if value is not None}


def parameters(stage: Stage) -> int:
    """How many parameters a stage trains."""
    _, state = abstract_state(stage, 0)
    return sum(math.prod(shape) for shape, _ in _weights(state))


def _weights(state: nnx.State) -> list[tuple[tuple[int, ...], tuple[Hashable, ...]]]:
    """Shape and path of what the optimisers move: not the running average of it."""
    leaves = nnx.to_flat_state(state)
    return [(leaf.shape, path) for path, leaf in leaves if isinstance(leaf, nnx.Param) and path[0] != "ema"]


def _load(build: Build, mesh: Mesh, task: Hashable, work: Work) -> Load:
    """What an update asks for, from one device's share of the batch traced as if it were alone.

    The work that `tensor` and `context` divide is divided evenly; weights travel in the compute type.
    """
    stage = build()
    rows = _shares(mesh)
    config = stage.config
    policy = stage.config.remat or "none"
    share = config.loop.batch_size // rows
    local = build(batch_size=share)
    alone = make_mesh({}, mesh.devices.flat[:1])
    with jax.set_mesh(alone):
        moved = product_bytes(*_update(local, task)) / (mesh.shape["tensor"] * mesh.shape["context"])
        again = 0.0
        if policy != "none":
            kept = build(batch_size=share, remat="none")
            again = forward_flops(*_update(local, task)) - forward_flops(*_update(kept, task))
    _, state = abstract_state(stage, 0)
    placement = shardings(state, mesh)
    placed = dict(nnx.to_flat_state(placement))
    specs = [(shape, jax.tree.leaves(placed[path])[0].spec) for shape, path in _weights(state)]
    held = sum(
        leaf.dtype.itemsize * math.prod(sharding.shard_shape(leaf.shape))
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(placement), strict=True)
    )
    itemsize = jnp.dtype(config.dtype).itemsize
    passes = 3 if policy == "full" else 2
    transfers = weight_transfers(specs, mesh, itemsize, passes) * config.loop.accumulate
    attended = 0.0
    if trunk := stage.trunk:
        length = stage.length
        positions = config.loop.batch_size * length / (rows * mesh.shape["context"])
        sizes = {name: getattr(trunk, name) for name in ("layers", "width", "heads", "kv_heads", "head_dim")}
        transfers += activation_transfers(mesh, tokens=positions, **sizes, itemsize=itemsize, passes=passes)
        row = jax.ShapeDtypeStruct((1, 1, length, 1), jnp.float32)
        if policy != "none" and attention_splash.fits(row, task):  # `again` does not see into kernels
            pairs = task.pairs(length) * config.loop.batch_size
            attended = 4.0 * trunk.layers * trunk.heads * trunk.head_dim * pairs
    return Load(
        flops=work.flops,
        recomputed=again * rows + attended,
        memory=moved + 2 * held,
        transfers=tuple(transfers),
        tokens=work.tokens,
        seconds=work.seconds,
    )


def _update(stage: Stage, task: Hashable) -> tuple:
    """A stage's step as a function, and what it takes."""
    graphdef, state = abstract_state(stage, 0)
    (batch,) = [shapes for other, shapes in stage.examples() if other == task]

    def step(state, batch):
        return stage.step(nnx.merge(graphdef, state), batch, task, jax.random.key(0))

    return step, state, batch


# MARK: what fits


def fit(build: Build, devices: list[jax.Device], chip: Chip, say: Callable[[str], None]) -> dict[str, Any]:
    """The largest batch that fits under each remat policy, found by compiling.

    Memory is nearly linear in the batch, so two programs tell where the limit should be and two more that it is there,
    to a unit or to 3 %.

    Args:
      build: as in `jobs`; batch size and remat policy are varied.
      devices, chip: to fit on.
      say: told of every program tried.
    Returns:
      `unit` (the least batch that the mesh's data axes and accumulation allow), `tried` (of every trial `remat`,
      `batch_size`, `fits`, bytes `wanted` and `available` a chip, compile `seconds`, and the `tokens_per_second`
      predicted of its slowest task), `largest` (policy -> batch size, 0 for none), and `cheapest`, the first policy
      under which the configuration's own batch fits, or None.
    """
    stage = build()
    mesh = check(stage, devices)
    own = stage.config.loop.batch_size
    unit = _shares(mesh) * stage.config.loop.accumulate
    tried: list[dict[str, Any]] = []

    def attempt(policy: str, batch: int) -> dict[str, Any]:
        facts = [examine(job, mesh, chip) for job in jobs(build, mesh, batch, policy)]
        row = {
            "remat": policy,
            "batch_size": batch,
            "fits": all(fact["fits"] for fact in facts),
            **_demand([fact["bytes_per_chip"] for fact in facts], chip),
            "seconds": sum(fact["compile_seconds"] for fact in facts),
            "tokens_per_second": min((f["prediction"]["tokens_per_second"] for f in facts if f["fits"]), default=None),
        }
        tried.append(row)
        size = (
            "it is not told how much it wants" if row["wanted"] is None else f"{row['wanted'] / 2**30:.2f} GiB a chip"
        )
        say(f"remat {policy}, batch {batch}: {'fits' if row['fits'] else 'does not fit'}, {size}")
        return row

    largest, cheapest = {}, None
    for policy in _policies(build, stage):
        largest[policy] = _largest(lambda batch, policy=policy: attempt(policy, batch), unit, own, chip.memory)
        if cheapest is None and largest[policy] >= own:
            cheapest = policy
    return {"unit": unit, "tried": tried, "largest": largest, "cheapest": cheapest}


def _policies(build: Build, stage: Stage) -> Iterator[str]:
    """The remat policies that a configuration's model knows."""
    if stage.config.remat is None:
        yield "none"
        return
    for policy in POLICIES:
        try:
            abstract_state(build(remat=policy), 0)
        except UserError:
            continue
        yield policy


def _largest(attempt: Callable[[int], dict[str, Any]], unit: int, first: int, memory: float) -> int:
    """The largest multiple of `unit` that fits, or one within 3 % of it; 0 where none does.

    What `attempt` wants grows almost linearly.

    Args:
      attempt: batch -> `fits`, bytes `wanted` (None where that was not told) and bytes `available`.
      unit: the least batch.
      first: where to begin to look.
      memory: bytes that there are, to aim at.
    """
    fits, fails = 0, math.inf
    points: dict[int, float] = {}
    batch = first
    while fails - fits > _step(unit, fits):
        row = attempt(batch)
        if row["wanted"] is not None:
            points[batch] = row["wanted"]
        memory = min(memory, row["available"])  # the compiler keeps some of it
        fits, fails = (max(fits, batch), fails) if row["fits"] else (fits, min(fails, batch))
        batch = _aim(points, memory, unit, fits, fails)
    return fits


def _aim(points: dict[int, float], memory: float, unit: int, fits: int, fails: float) -> int:
    """The next batch to try, between what fits and what does not."""
    guess = fits * 2 if math.isinf(fails) else (fits + fails) / 2
    if len(points) > 1:
        (a, at_a), (b, at_b) = sorted(points.items(), key=lambda point: abs(point[1] - memory))[:2]
        slope = (at_b - at_a) / (b - a)
        guess = a + (memory - at_a) / slope if slope > 0 else guess
    guess, step = int(guess // unit) * unit, _step(unit, fits)
    upper = guess if math.isinf(fails) else int(fails) - step
    return max(fits + step, min(guess, upper))


def _step(unit: int, fits: int) -> int:
    """What a batch is worth knowing to: a unit, or about 3 % of it."""
    return max(fits // 32 // unit, 1) * unit


def _demand(sizes: list[dict[str, Any]], chip: Chip) -> dict[str, float | None]:
    """Bytes of HBM that the hungriest of some programs wants, None where that was not told, and those there are."""
    hbm = [size for size in sizes if size.get("memory") != "VMEM"]
    wanted = [size.get("peak") or size.get("wanted") for size in hbm]
    available = [size["available"] for size in hbm if size.get("available")]
    told = len(hbm) == len(sizes) and None not in wanted
    return {"wanted": max(wanted) if told else None, "available": min(available, default=chip.memory)}


def _shares(mesh: Mesh) -> int:
    """Devices that a batch is split over."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
