"""Which collectives a compiled program runs, how often, and over how many bytes: read from its HLO text."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "ragged-all-to-all", "collective-permute")

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "c128": 16}  # s8, u16, f8e4m3fn ...: by name
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*?)(?<!\w)([a-z][a-z0-9\-]*)\(([^()]*)\)(.*)$")
_SHAPE = re.compile(r"([a-z][a-z0-9]*)\[([0-9,]*)\]")


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind over groups of one size.

    Args:
      kind: one of `KINDS`.
      devices: in a group; 0 for permutations, which go from neighbour to neighbour.
      count: how often one step runs them on one device.
      bytes: that they gather, reduce or send on one device in one step, loops included: the larger of what goes in and
        comes out.
      loops_known: False where one of them stands in a loop of unknown length, which counts as if it ran once.
    """

    kind: str
    devices: int
    count: int
    bytes: int
    loops_known: bool = True


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    rest: str
    is_root: bool


@dataclass
class _Computation:
    instructions: dict[str, _Instruction] = field(default_factory=dict)

    @property
    def root(self) -> _Instruction | None:
        return next((i for i in self.instructions.values() if i.is_root), None)


def collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled program, by kind and size of group, most bytes first.

    A loop that counts up to a constant counts as often as it runs; of a condition every branch counts. What the
    compiler spreads over several fusions (an asynchronous collective) is one collective: it keeps its channel and size.

    Args:
      hlo: `compiled.as_text()`.
    """
    computations, entry = _parse(hlo)
    found: dict[tuple, tuple[int, int, bool]] = {}
    for computation, times, known, fused in _visits(computations, entry):
        for instruction in computations[computation].instructions.values():
            kind = instruction.op.removesuffix("-start")
            if kind not in KINDS:
                continue
            size = _payload(instruction, computations[computation])
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            # outside fusions a channel tells nothing: all collectives of JAX's shard_map have the same one
            which = (channel[1], size) if fused and channel else (computation, instruction.name)
            key = (kind, _group(instruction), which)
            if key not in found or times < found[key][0]:
                found[key] = (times, size, known)
    rows: dict[tuple[str, int], list] = defaultdict(lambda: [0, 0, True])
    for (kind, devices, _), (times, size, known) in found.items():
        row = rows[kind, devices]
        row[0], row[1], row[2] = row[0] + times, row[1] + times * size, row[2] and known
    return sorted((Collective(*key, *row) for key, row in rows.items()), key=lambda c: -c.bytes)


def _parse(hlo: str) -> tuple[dict[str, _Computation], str]:
    computations, entry, current = {}, "", None
    for line in hlo.splitlines():
        if head := _COMPUTATION.match(line):
            current = computations[head[2]] = _Computation()
            entry = head[2] if head[1] else entry
        elif current is not None and (body := _INSTRUCTION.match(line)):
            operands = tuple(word.split()[-1].lstrip("%") for word in body[5].split(", ") if word)
            current.instructions[body[2]] = _Instruction(body[2], body[3], body[4], operands, body[6], bool(body[1]))
    return computations, entry


def _visits(
    computations: dict[str, _Computation], name: str, times: int = 1, known: bool = True, fused: bool = False
) -> Iterator[tuple]:
    """Every computation that runs, how often, whether that is known, and whether it is part of a fusion."""
    if name not in computations:
        return
    yield name, times, known, fused
    computation = computations[name]
    for instruction in computation.instructions.values():
        if instruction.op == "while":
            trips = _trips(instruction, computation, computations)
            body = re.search(r"body=%?([\w.\-]+)", instruction.rest)[1]
            yield from _visits(computations, body, times * (trips or 1), known and trips is not None)
            continue
        for callee in _callees(instruction):
            yield from _visits(computations, callee, times, known, fused or instruction.op == "fusion")


def _callees(instruction: _Instruction) -> list[str]:
    if instruction.op in ("fusion", "call", "conditional", "async-start"):
        found = re.findall(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)", instruction.rest)
        branches = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        return found + ([name.lstrip("%") for name in branches[1].split(", ")] if branches else [])
    return []


def _trips(loop: _Instruction, caller: _Computation, computations: dict[str, _Computation]) -> int | None:
    """How often a loop runs whose condition compares a counter with a constant; None where that cannot be read."""
    if told := re.search(r"known_trip_count\D+(\d+)", loop.rest):
        return int(told[1])
    condition = computations.get(re.search(r"condition=%?([\w.\-]+)", loop.rest)[1])
    test = condition.root if condition else None
    if test is None or test.op != "compare" or "direction=LT" not in test.rest:
        return None
    counter, end = (condition.instructions.get(name) for name in test.operands)
    stop = _constant(end)
    if stop is None or counter is None or counter.op != "get-tuple-element":
        return None
    initial = caller.instructions.get(loop.operands[0])
    index = int(re.search(r"index=(\d+)", counter.rest)[1])
    start = caller.instructions.get(initial.operands[index]) if initial and initial.op == "tuple" else None
    while start is not None and start.op in ("copy", "bitcast"):
        start = caller.instructions.get(start.operands[0])
    begin = _constant(start)
    return None if begin is None else max(stop - begin, 0)


def _constant(instruction: _Instruction | None) -> int | None:
    is_count = instruction is not None and instruction.op == "constant" and instruction.operands
    return int(instruction.operands[0]) if is_count and re.fullmatch(r"-?\d+", instruction.operands[0]) else None


def _group(instruction: _Instruction) -> int:
    """Devices in a group, from any of the three ways HLO writes groups."""
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", instruction.rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        parts = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", instruction.rest):
        return int(iota[1])
    if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", instruction.rest):
        return len(groups[1].split(","))
    return 0


def _payload(instruction: _Instruction, computation: _Computation) -> int:
    given = sum(
        _size(computation.instructions[name].shape) for name in instruction.operands if name in computation.instructions
    )
    if instruction.op.endswith("-start") and instruction.op != "all-reduce-start":
        made = _size(instruction.shape.replace("u32[]", "")) - given  # it holds the operands too, and semaphores
    else:
        made = _size(instruction.shape)
    return max(given, made)


def _size(shape: str) -> int:
    """Bytes of an HLO shape, a tuple's parts summed up."""
    total = 0
    for kind, sizes in _SHAPE.findall(shape):
        bits = re.search(r"\d+", kind)
        width = _BYTES.get(kind) or max(int(bits[0]) // 8, 1) if kind in _BYTES or bits else 0
        total += width * math.prod(int(size) for size in sizes.split(",") if size)
    return total
