"""How fast training and generation are on an accelerator, beside what the hardware allows: one command, eight minutes.

    python benchmarks/accelerator.py --out=out/accelerator.jsonl
    python benchmarks/accelerator.py --table=out/accelerator.jsonl

Every result is one JSON object, printed and appended to `--out` as soon as it is there; sections come in order of worth
and each runs in a process of its own, so that one that fails or hangs loses nothing but itself:

* card: matrix peak in bfloat16, memory bandwidth;
* parity: logits, losses and gradients of the `tiny` models on this device against the CPU;
* backbone, superres: a training step at `paper` width, as many layers as fit, and whether its attention is fused;
* tokens: a decoding step of the backbone at batch 1, 4, 16 and 32;
* song: the layer-wise passes and the codec's decoding of four minutes, and with `tokens` the whole song;
* scales: next-scale against next-token prediction at d16, one guided second at a time, decoding included;
* codec: a training step of the codec, float32 and bfloat16.

Weights and data are random, which no time depends on. Floating-point operations: two for a multiplication and its
addition, forward and backward three times the forward pass, nothing that is recomputed counted twice, and of attention
only the pairs that see each other, so that a causal row counts half of its square. `floor` is the least time that the
operations (at the peak) or the bytes (at the bandwidth) take, by the maker's data sheet where it is known, else as
measured. `--preset=tiny` runs all of it on a CPU in a minute; where there is no GPU, programs are also lowered for one,
as far as that goes.
"""

import argparse
import contextlib
import json
import os
import runpy
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SONG_SECONDS = 240.0
RATE = 44100 / 2048  # frames a second
FUSED = "__cudnn$fmha"

# seconds: below the first a section is not begun, after the second it is ended
SECTIONS = {
    "card": (10, 60),
    "parity": (20, 90),
    "backbone": (30, 110),
    "superres": (30, 110),
    "tokens": (30, 110),
    "song": (30, 120),
    "scales": (45, 180),
    "codec": (40, 180),
}

Record = dict[str, Any]


@dataclass
class Bench:
    """What a section is told.

    Args:
      preset: "paper" or "tiny".
      end: until when, by `time.monotonic`.
      known: the records so far.
    """

    preset: str
    end: float
    known: list[Record] = field(default_factory=list)

    @property
    def tiny(self) -> bool:
        return self.preset == "tiny"

    def left(self) -> float:
        return self.end - time.monotonic()

    def find(self, section: str, **values: Any) -> Record:
        """The last record of a section with these values, empty where there is none."""
        fits = [r for r in self.known if r["section"] == section and all(r.get(k) == v for k, v in values.items())]
        return fits[-1] if fits else {}

    def limits(self) -> tuple[float | None, float | None, str]:
        """Operations and bytes a second, and whose figures these are."""
        import jax

        from hiermusic.parallel.chips import chip_of

        if chip := chip_of(jax.devices()[0]):
            return chip.device_flops, chip.memory_bandwidth, "data sheet"
        card = self.find("card", what="bandwidth")
        return self.find("card", what="matrix").get("flops"), card.get("bytes_per_second"), "measured"

    def floor(self, flops: float, moved: float, share: float = 1.0) -> Record:
        """The least seconds, from operations at `share` of the bfloat16 peak and from bytes."""
        peak, bandwidth, whose = self.limits()
        if not peak or not bandwidth:
            return {}
        computing, moving = flops / (peak * share), moved / bandwidth
        return {"floor": max(computing, moving), "bound": "flops" if computing > moving else "bytes", "limits": whose}


# MARK: tools


def configuration(name: str, preset: str):
    return runpy.run_path(str(HERE.parent / "configs" / f"{name}.py"))["get_config"](preset)


def fresh(make: Callable, placement: Any = None):
    """The state of a module with random weights, made on the device by one program; and its graph."""
    import jax
    from flax import nnx

    key = jax.random.key(0, impl="rbg")  # quick to compile and to draw
    graphdef = nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(key))))[0]
    quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    run = jax.jit(lambda key: nnx.state(make(nnx.Rngs(key))), out_shardings=placement, compiler_options=quickly)
    return graphdef, run(key)


def halved(make: Callable, dtype: str) -> Callable:
    """The same module with floating-point weights of another type, as a song is made with."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    def cast(x):
        return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x

    def made(rngs):
        module = make(rngs)
        nnx.update(module, jax.tree.map(cast, nnx.state(module)))
        return module

    return made


def timed(run: Callable[[], Any], seconds: float, least: int = 2, most: int = 1000) -> float:
    """Seconds of one call, over so many that they take about `seconds`; the device is waited for at the end alone."""
    import jax

    begin = time.perf_counter()
    jax.block_until_ready(run())
    once = time.perf_counter() - begin
    count = max(least, min(most, int(seconds / max(once, 1e-6))))
    begin = time.perf_counter()
    for _ in range(count):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - begin) / count


def compiled(lowered) -> tuple[Any, float]:
    begin = time.perf_counter()
    return lowered.compile(), time.perf_counter() - begin


def memory() -> Record:
    """Bytes that the device has, and the most that this process has held of them; empty on a CPU."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return {"limit": stats.get("bytes_limit"), "peak": stats.get("peak_bytes_in_use")} if stats else {}


def wanted(program) -> int:
    """Bytes that a program needs while it runs."""
    told = program.memory_analysis()
    return (
        told.argument_size_in_bytes + told.output_size_in_bytes + told.temp_size_in_bytes - told.alias_size_in_bytes
    )


@contextlib.contextmanager
def as_for_gpu() -> Iterator[None]:
    """Lets programs be lowered for a GPU where there is none: what JAX asks of the device is answered for it."""
    import jax._src.cudnn.fused_attention_stablehlo as fused

    from hiermusic.nn import attention

    before = fused.check_cudnn_version, fused.check_compute_capability, attention._platform
    fused.check_cudnn_version, fused.check_compute_capability = lambda: 91000, lambda capability: True
    attention._platform = lambda: "gpu"
    try:
        yield
    finally:
        fused.check_cudnn_version, fused.check_compute_capability, attention._platform = before


def fused_calls(text: str) -> Record:
    """Calls of cuDNN's attention in a program's text."""
    backward = text.count(f"{FUSED}SoftmaxBackward")
    return {"forward": text.count(FUSED) - backward, "backward": backward}


def attention_proof(name: str, program, trace: Callable[[], Any], trained: bool) -> Record:
    """Fused attention in the compiled program on a GPU, elsewhere in what is lowered for one; else an error.

    Args:
      trace: traces the program anew, for a GPU.
      trained: there must be a backward pass.
    """
    import jax

    if jax.default_backend() == "gpu":
        where, calls = "compiled", fused_calls(program.as_text())
    else:
        jax.clear_caches()  # a function that was traced for this platform would not be traced again ...
        with as_for_gpu():
            where, calls = "lowered for cuda", fused_calls(trace().lower(lowering_platforms=("cuda",)).as_text())
        jax.clear_caches()  # ... nor one for a GPU
    proof: Record = {"what": "attention", "program": name, "where": where, **calls}
    if not calls["forward"] or (trained and not calls["backward"]):
        proof["error"] = "attention fell back: cuDNN's call is not in the program"
    return proof


# MARK: card


def card(bench: Bench) -> Iterator[Record]:
    import jax
    import jax.numpy as jnp

    from hiermusic.parallel.chips import chip_of

    device = jax.devices()[0]
    chip = chip_of(device)
    sheet = {"sheet_flops": chip.device_flops, "sheet_bandwidth": chip.memory_bandwidth} if chip else {}
    precision = str(jax.config.jax_default_matmul_precision or "default (float32 products may be TF32 on a GPU)")
    facts = {"device": device.device_kind, "backend": jax.default_backend(), "jax": jax.__version__}
    yield {"what": "device", **facts, "precision": precision, **sheet, **memory()}
    for n in (256,) if bench.tiny else (8192, 16384):
        key = jax.random.key(0)
        a, b = jax.jit(lambda key, n=n: tuple(jax.random.normal(k, (n, n), jnp.bfloat16) for k in jax.random.split(key)))(key)
        product = jax.jit(lambda a, b: a @ b)
        seconds = timed(lambda: product(a, b), 0.05 if bench.tiny else 1.5)  # noqa: B023
        yield {"what": "matrix", "n": n, "seconds": seconds, "flops": 2 * n**3 / seconds}
    size = 2**20 if bench.tiny else 2**30  # float32 numbers
    x = jax.jit(lambda: jnp.ones(size, jnp.float32))()
    for what, run, moved in (
        ("bandwidth", jax.jit(lambda x: x + 1.0), 8 * size),  # reads and writes
        ("reading", jax.jit(lambda x: x.sum()), 4 * size),
    ):
        seconds = timed(lambda: run(x), 0.05 if bench.tiny else 0.5)  # noqa: B023
        yield {"what": what, "bytes": moved, "seconds": seconds, "bytes_per_second": moved / seconds}


# MARK: token models


def token_batch(config, rows: int, seed: int = 0, ragged: bool = False) -> Record:
    """Rows of random text and codes that fill the model's context; every second one half of it where `ragged`."""
    import numpy as np

    from hiermusic.systems.khala_rows import vocabulary
    from hiermusic.tokens import pattern, sequence

    model, ids, rng = config.model, vocabulary(config.model), np.random.default_rng(seed)
    text = rng.integers(256, size=min(model.text_limit // 2, 256)).tolist()
    packed = []
    for row in range(rows):
        room = model.length // (2 if ragged and row % 2 else 1) - len(text) - 1
        if config.stage == "backbone":
            codes = rng.integers(model.codes, size=(model.levels, room // model.levels))
            layout = pattern.flatten((codes.shape[1],) * model.levels)
            packed.append(sequence.pack(text, *layout.build(codes), model.length, shared=True, end=ids.eos))
        else:
            codes = rng.integers(model.codes, size=(model.levels, room))
            layout = pattern.layer_pass((room,) * model.levels, model.levels // 2)
            packed.append(sequence.pack(text, *layout.build(codes), model.length, shared=False))
    level = {} if config.stage == "backbone" else {"level": np.int32(model.levels // 2)}
    return sequence.stack(packed) | level


def parity(bench: Bench) -> Iterator[Record]:
    """The largest difference relative to the largest value, over all positions that count: between the devices, and of
    each device's results from those of the CPU in float32."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from hiermusic.parallel.mesh import make_mesh
    from hiermusic.systems import khala
    from hiermusic.tokens.visibility import Visibility

    accelerator, cpu = jax.devices()[0], jax.devices("cpu")[0]
    for stage, visibility in (("backbone", Visibility.causal()), ("superres", Visibility.full())):
        config = configuration(f"khala/{stage}", "tiny")
        config.model.layers, config.model.length = 2, 256
        batch = token_batch(config, 2, ragged=True)
        _, state = fresh(khala.make_model(config))
        state, counted = jax.device_get(state), batch["valid"]
        results = {}

        def lower(device, dtype, config=config, state=state, batch=batch, visibility=visibility):
            config = config.copy_and_resolve_references()
            config.model.dtype = dtype
            graphdef = nnx.split(nnx.eval_shape(lambda: khala.make_model(config)(nnx.Rngs(0))))[0]

            def run(state, batch):
                def loss(state):
                    return nnx.merge(graphdef, state).loss(batch, visibility=visibility)[0]

                model = nnx.merge(graphdef, state)
                logits = model.level_logits(model.hidden(batch, visibility=visibility), batch.get("level", 0))
                value, gradients = jax.value_and_grad(loss)(state)
                squares = sum(jnp.square(g.astype(jnp.float32)).sum() for g in jax.tree.leaves(gradients))
                return {"logits": logits, "loss": value, "grad_norm": jnp.sqrt(squares)}

            mesh = make_mesh({}, [device])
            place = jax.NamedSharding(mesh, jax.P())
            with jax.set_mesh(mesh), jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
                arguments = jax.device_put((state, batch), place)
                return jax.jit(run, out_shardings=place).lower(*arguments), arguments

        jobs = [(device, dtype) for dtype in ("float32", "bfloat16") for device in dict.fromkeys((cpu, accelerator))]
        lowered = [lower(*job) for job in jobs]
        with ThreadPoolExecutor(4) as pool:
            quickly = {"xla_backend_optimization_level": 0}  # of the CPU, whose compiler is slow
            options = [quickly if device == cpu else None for device, _ in jobs]
            programs = list(pool.map(lambda job, how: job[0].compile(how), lowered, options))
        for job, program, (_, arguments) in zip(jobs, programs, lowered, strict=True):
            results[job] = jax.device_get(program(*arguments))
        for dtype in ("float32", "bfloat16"):
            ours, theirs = results[accelerator, dtype], results[cpu, dtype]
            exact = results[cpu, "float32"]
            pairs = {"from_cpu": (ours, theirs), "from_float32": (ours, exact), "cpu_from_float32": (theirs, exact)}
            yield {
                "model": stage,
                "dtype": dtype,
                "loss": float(ours["loss"]),
                **{what: {name: apart(a[name], b[name], counted) for name in a} for what, (a, b) in pairs.items()},
                "finite": bool(np.isfinite(ours["logits"]).all()),
            }


def apart(ours, theirs, counted) -> float:
    import numpy as np

    ours, theirs = (np.asarray(x, np.float64)[counted] if np.ndim(x) > 1 else np.float64(x) for x in (ours, theirs))
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def backbone(bench: Bench) -> Iterator[Record]:
    yield from training(bench, "backbone", rows=1)


def superres(bench: Bench) -> Iterator[Record]:
    yield from training(bench, "superres", rows=2)


def training(bench: Bench, name: str, rows: int) -> Iterator[Record]:
    """The step of a stage with its whole optimiser state, by what it recomputes; the layers are halved until one fits."""
    import jax

    from hiermusic.systems import khala

    config = configuration(f"khala/{name}", bench.preset)
    config.model.dtype, config.model.dropout, config.train.batch_size = "bfloat16", 0.0, rows
    if bench.tiny:
        config.model.layers, config.model.length = 2, 256
    whole = config.model.layers
    while config.model.layers:
        done = []
        for remat in ("dots",) if bench.tiny else ("dots", "none", "full"):
            if done and bench.left() < 1.5 * max(record["took"] for record in done):
                yield {"what": "step", "remat": remat, "skipped": "no time left"}
                continue
            begin = time.monotonic()
            config.model.remat = remat
            try:
                stage = khala.stage(config, None)
                task = stage.examples()[-1][0]
                for record in step(bench, stage, task, token_batch(config, rows), f"{name}, remat {remat}", True):
                    sizes = {"layers": config.model.layers, "of": whole, "positions": config.model.length, "rows": rows}
                    took = time.monotonic() - begin
                    record = {**record, "model": name, "remat": remat, **sizes, "took": took}
                    if "seconds" in record:
                        done.append(record)
                    yield record
            except jax.errors.JaxRuntimeError as error:
                yield {"what": "step", "model": name, "remat": remat, "error": line(error)}
            if remat == "none" and done and bench.left() < 60 and not bench.tiny:
                break
        if done:
            best = min(done, key=lambda record: record["seconds"])
            yield {**best, "what": "best"}
            return
        config.model.layers //= 2


def step(bench: Bench, stage, task, batch: Record, name: str, fused: bool) -> Iterator[Record]:
    """A training step as the loop makes it: compiled, shown to attend as it should, and timed if it fits."""
    import jax
    import numpy as np

    from hiermusic.parallel.mesh import BatchPlacement, make_mesh, shardings
    from hiermusic.train.loop import LIMITS, abstract_state, make_update

    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        graphdef, abstract = abstract_state(stage, 0)
        placement = shardings(abstract, mesh)
        update = make_update(stage, graphdef, mesh, placement, 0)
        size = next(len(value) for value in batch.values() if value.ndim)
        placed = BatchPlacement(mesh, size).put(batch)
        rest = (np.int32(0), np.full(LIMITS.shape, np.inf, np.float32), task)
        shapes = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, placement)
        program, compiling = compiled(update.lower(shapes, placed, *rest))
        if fused:
            yield attention_proof(
                name, program, lambda: make_update(stage, graphdef, mesh, placement, 0).trace(shapes, placed, *rest), True
            )
        needs, work = wanted(program), stage.work(task)
        facts = {"what": "step", "compile": compiling, "needs": needs, "flops": work.flops}
        if (limit := memory().get("limit")) and needs > limit:
            yield {**facts, "skipped": f"needs {needs / 2**30:.1f} GiB of {limit / 2**30:.1f}"}
            return
        held = [fresh(stage.create, placement)[1], {}]

        def run():
            held[0], held[1] = program(held[0], placed, *rest[:2])
            return held[1]

        seconds = timed(run, 0.2 if bench.tiny else 4.0)
        loss, skipped = float(held[1]["loss"]), bool(held[1]["skipped"])
        peak, _, whose = bench.limits()
        measured = bench.find("card", what="matrix").get("flops")
        yield {
            **facts,
            "seconds": seconds,
            "tflops": work.flops / seconds / 1e12,
            "mfu": work.flops / seconds / peak if peak else None,
            "limits": whose,
            "mfu_of_measured": work.flops / seconds / measured if measured else None,
            "tokens_per_second": work.tokens / seconds,
            "audio_per_second": work.seconds / seconds,
            "loss": loss,
            "skipped_update": skipped,
            **memory(),
        }


# MARK: generation


def weights_bytes(weights, without: tuple[str, ...] = ()) -> int:
    """Bytes of a model's weights, some tables left out."""
    from flax import nnx

    flat = nnx.to_flat_state(weights)
    return sum(leaf[...].nbytes for path, leaf in flat if path[0] not in without)


def tokens(bench: Bench) -> Iterator[Record]:
    """Steps in the middle of a four-minute song; the floor reads every weight once and half of the song's cache."""
    import jax
    import numpy as np

    from hiermusic.generate import autoregressive
    from hiermusic.systems import khala
    from hiermusic.tokens import pattern

    config = configuration("khala/backbone", bench.preset)
    config.model.dtype, model = "bfloat16", config.model
    frames = 32 if bench.tiny else round(SONG_SECONDS * RATE)
    positions = frames * model.levels
    make = khala.make_model(config)
    graphdef, weights = fresh(halved(lambda rngs: make(rngs).unstack(), "bfloat16"))
    from flax import nnx

    lm = nnx.merge(graphdef, weights)
    runs = {}
    for rows in (1, 2) if bench.tiny else (1, 4, 16, 32):
        program, arguments = autoregressive.chunk(
            lm, [[0]] * rows, [pattern.flatten((frames,) * model.levels)] * rows, seeds=range(rows),
            sizes=[model.codes] * model.levels, eos=lm.config.end, temperature=1.0, top_k=50,
            cache_dtype="bfloat16")  # fmt: skip
        runs[rows] = program.func.lower(*arguments, **program.keywords), arguments
    begin = time.perf_counter()
    with ThreadPoolExecutor(len(runs)) as pool:
        programs = dict(zip(runs, pool.map(lambda run: run[0].compile(), runs.values()), strict=True))
    yield {"what": "compile", "programs": len(programs), "seconds": time.perf_counter() - begin}
    trunk = lm.config.transformer
    read = weights_bytes(weights, ("text_embed", "text_head", "code_embed", "code_head"))
    read += 2 * model.codes * model.width  # of one level's head
    cached = 2 * 2 * trunk.layers * trunk.kv_heads * trunk.head_dim * positions / 2
    flops = 2 * read / 2 + 2 * 2 * trunk.layers * trunk.heads * trunk.head_dim * positions / 2
    for rows, program in programs.items():
        _, _, state, fixed, condition, steps = runs[rows][1]
        held = [jax.jit(lambda state=state: jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), state))()]
        held[0] = held[0]._replace(
            codes_BKT=jax.numpy.full(state.codes_BKT.shape, -1, jax.numpy.int32),
            length_B=jax.numpy.full(rows, frames, jax.numpy.int32),
        )
        middle = (steps[0] + np.int32(positions // 2 - autoregressive.CHUNK), *steps[1:])

        def run(program=program, held=held, fixed=fixed, condition=condition, middle=middle):
            held[0] = program(weights, held[0], fixed, condition, middle)
            return held[0].length_B

        seconds = timed(run, 0.2 if bench.tiny else 2.0) / autoregressive.CHUNK
        yield {
            "what": "step",
            "batch": rows,
            "positions": positions,
            "seconds": seconds,
            "tokens_per_second": rows / seconds,
            "songs_seconds": seconds * positions,
            **bench.floor(flops * rows, read + cached * rows),
            "needs": wanted(program),
        }
        del held


def song(bench: Bench) -> Iterator[Record]:
    import numpy as np

    from hiermusic.tokens.visibility import Visibility

    frames = 40 if bench.tiny else round(SONG_SECONDS * RATE)
    total = []
    for part in (passes, decoding):
        for record in part(bench, frames, np, Visibility):
            if "song" in record:
                total.append(record)
            yield record
    one = bench.find("tokens", what="step", batch=1)
    if len(total) == 2 and one.get("floor") and all("floor" in record for record in total):
        seconds = one["songs_seconds"] + sum(record["song"] for record in total)
        floor = one["floor"] * one["positions"] + sum(record["floor_song"] for record in total)
        yield {"what": "whole", "audio": frames / RATE, "seconds": seconds, "floor": floor, "times": seconds / floor}


def passes(bench: Bench, frames: int, np, Visibility) -> Iterator[Record]:
    from flax import nnx

    from hiermusic.generate import layerwise
    from hiermusic.systems import khala

    config = configuration("khala/superres", bench.preset)
    config.model.dtype, model = "bfloat16", config.model
    graphdef, weights = fresh(halved(khala.make_model(config), "bfloat16"))
    lm = nnx.merge(graphdef, weights)
    codes = np.random.default_rng(0).integers(model.codes, size=(frames, model.given)).astype(np.int32)
    text = 32 if bench.tiny else 256
    how = {"markers": [0] * model.levels, "seeds": [0], "sizes": [model.codes] * model.levels}
    run, arguments = layerwise.level_pass(lm, [[0] * text], [codes], **how)
    program, compiling = compiled(run.func.lower(*arguments, **run.keywords))
    yield attention_proof("layer-wise pass", program, lambda: run.func.trace(*arguments, **run.keywords), False)
    count = model.levels - model.given
    held, request = [arguments[2]], arguments[3]
    held[0] = program(weights, held[0], request, np.int32(model.given), np.int32(0))
    held[0].block_until_ready()
    begin = time.perf_counter()
    for level in range(model.given, model.levels):
        held[0] = program(weights, held[0], request, np.int32(level), np.int32(0))
    held[0].block_until_ready()
    seconds = time.perf_counter() - begin
    flops = lm.config.flops(text + frames, Visibility.full(), 1)
    least = bench.floor(flops, weights_bytes(weights, ("text_embed", "text_head")))
    song = {"floor_song": least["floor"] * count} if least else {}
    yield {"what": "passes", "count": count, "frames": frames, "compile": compiling, "seconds": seconds / count,
           "song": seconds, **least, **song, "needs": wanted(program)}  # fmt: skip


def decoding(bench: Bench, frames: int, np, Visibility) -> Iterator[Record]:
    import jax
    from flax import nnx

    from hiermusic.codec import chunked
    from hiermusic.codec.codec import Codec
    from hiermusic.parallel.counting import forward_flops
    from hiermusic.systems import khala

    config = configuration("khala/codec", bench.preset)
    settings = khala.codec_config(config.model)
    graphdef, weights = fresh(lambda rngs: Codec(settings, rngs=rngs))
    codec = nnx.merge(graphdef, weights)
    codes = np.random.default_rng(0).integers(config.model.codes, size=(frames, config.model.codebooks))
    begin = time.perf_counter()
    chunked.decode_long(codec, codes)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    wav = chunked.decode_long(codec, codes)
    seconds = time.perf_counter() - begin
    shape = jax.ShapeDtypeStruct((1, *codes.shape), np.int32)
    flops = forward_flops(lambda codec, codes: codec.decode(codes), codec, shape)
    # float32 products run as TF32, at half of bfloat16's rate
    least = bench.floor(flops, wav.nbytes + weights_bytes(weights), 0.5)
    song = {"floor_song": least["floor"]} if least else {}
    yield {"what": "decoding", "audio": len(wav) / settings.sample_rate, "compile": first - seconds,
           "seconds": seconds, "song": seconds, "flops": flops, **least, **song, **memory()}  # fmt: skip


# MARK: next scale, codec


def scales(bench: Bench) -> Iterator[Record]:
    from flax import nnx

    module = runpy.run_path(str(HERE / "next_scale.py"))
    depth, repeats = (1, 1) if bench.tiny else (16, 5)
    fastest = None
    for name, kind in (("next-scale", "next_scale"), ("next-token, flatten", "flatten"), ("next-token, delay", "delay")):
        if fastest and bench.left() < 20 and not bench.tiny:
            yield {"model": name, "skipped": "no time left"}
            continue
        begin = time.perf_counter()
        contender = module["contender_of"](
            kind, depth, "bfloat16", bench.preset, lambda make: nnx.merge(*fresh(make))
        )
        built = time.perf_counter() - begin
        times = module["measure"](name, contender, repeats if kind == "next_scale" else min(repeats, 2))
        seconds, cpu = times.medians
        fastest = fastest or seconds
        yield {"model": name, "depth": depth, "passes": contender.passes, "run": contender.run, "seconds": seconds,
               "cpu": cpu, "real_time": 1 / seconds, "times": seconds / fastest, "compile": times.compile,
               "build": built}  # fmt: skip


def codec(bench: Bench) -> Iterator[Record]:
    import jax
    import numpy as np

    from hiermusic.systems import khala

    config = configuration("khala/codec", bench.preset)
    rows = 2 if bench.tiny else 8
    for dtype in ("bfloat16", "float32"):
        if bench.left() < 45 and not bench.tiny:
            yield {"what": "step", "dtype": dtype, "skipped": "no time left"}
            continue
        config.model.dtype, done, size = dtype, False, rows
        while not done and size:
            config.train.batch_size = size
            stage = khala.stage(config, None)
            task = stage.examples()[-1][0]
            wav = np.random.default_rng(0).normal(size=stage.shape).astype(np.float32) / 10
            try:
                for record in step(bench, stage, task, {"wav": wav}, "codec", False):
                    done = done or "seconds" in record
                    yield {**record, "dtype": dtype, "rows": size, "samples": stage.shape[1]}
            except jax.errors.JaxRuntimeError as error:
                yield {"what": "step", "dtype": dtype, "rows": size, "error": line(error)}
            size //= 2


# MARK: running


def line(error: BaseException) -> str:
    """An error in one line, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames) if "site-packages" not in f.filename), "")
    words = (str(error).strip() or type(error).__name__).splitlines()[0][:400]
    return f"{type(error).__name__}: {words} ({place})"


def read(path: Path) -> list[Record]:
    return [json.loads(text) for text in path.read_text().splitlines() if text.strip()] if path.exists() else []


def say(path: Path, section: str, record: Record) -> None:
    text = json.dumps({"section": section, **{k: short(v) for k, v in record.items()}})
    print(text, flush=True)
    with path.open("a") as file:
        file.write(text + "\n")


def short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: short(one) for name, one in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def perform(name: str, path: Path, preset: str, seconds: float) -> None:
    """Runs a section in this process; whatever it raises becomes its last record."""
    begin = time.monotonic()
    bench = Bench(preset, begin + seconds, read(path))
    try:
        for record in globals()[name](bench):
            say(path, name, record)
            bench.known.append({"section": name, **record})
    except Exception as error:  # the sections after it have nothing to do with it
        say(path, name, {"error": line(error)})
        traceback.print_exc()
    say(path, name, {"what": "done", "took": time.monotonic() - begin})


def started(name: str, path: Path, preset: str) -> subprocess.Popen:
    """A process that imports what a section needs and then waits to be told to begin, and for how long."""
    command = [sys.executable, __file__, f"--out={path}", f"--preset={preset}", f"--section={name}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True)


def conduct(names: list[str], path: Path, preset: str, minutes: float, together: bool) -> None:
    """All sections, one after another."""
    end = time.monotonic() + 60 * minutes
    following = None if together else started(names[0], path, preset)
    for index, name in enumerate(names):
        least, most = SECTIONS[name]
        seconds = min(most, end - time.monotonic())
        process, following = following, None
        if seconds < least and preset != "tiny":
            say(path, name, {"skipped": f"{seconds:.0f} s left, {least} needed"})
            following = process and retarget(process, names[index + 1 :], path, preset)
            continue
        if together:
            perform(name, path, preset, max(seconds, 30))
            continue
        if index + 1 < len(names):
            following = started(names[index + 1], path, preset)
        try:
            process.communicate(f"{seconds}\n", timeout=seconds)
            if process.returncode:
                say(path, name, {"error": f"the process ended with {process.returncode}"})
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            say(path, name, {"error": f"ended after {seconds:.0f} s"})


def retarget(process: subprocess.Popen, rest: list[str], path: Path, preset: str) -> subprocess.Popen | None:
    """Another section's process in the place of one that waits in vain."""
    process.kill()
    process.wait()
    return started(rest[0], path, preset) if rest else None


def section(name: str, path: Path, preset: str) -> None:
    """A process that `started` began."""
    import jax  # noqa: F401
    import optax  # noqa: F401
    from flax import nnx  # noqa: F401

    from hiermusic.systems import khala  # noqa: F401
    from hiermusic.train import loop  # noqa: F401

    told = sys.stdin.readline()
    if told:
        perform(name, path, preset, float(told) - 2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("accelerator.jsonl"), help="JSON lines are appended to it")
    parser.add_argument("--preset", choices=("paper", "tiny"), default="paper", help="tiny: all of it on a CPU")
    parser.add_argument("--only", default="", help=f"sections, by comma: {', '.join(SECTIONS)}")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no section is begun or goes on")
    parser.add_argument("--together", action="store_true", help="all sections in this process (tiny does so anyway)")
    parser.add_argument("--cache", type=Path, help="keep compiled programs there; a second run then compiles nothing")
    parser.add_argument("--table", type=Path, help="print what a run wrote as Markdown, and do nothing else")
    parser.add_argument("--section", choices=tuple(SECTIONS), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.table:
        return table(read(given.table))
    names = [name for name in given.only.split(",") if name] or list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]}: choose from {', '.join(SECTIONS)}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if given.cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(given.cache.absolute())
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    path = given.out.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    if given.section:
        return section(given.section, path, given.preset)
    return conduct(names, path, given.preset, given.minutes, given.together or given.preset == "tiny")


def table(records: list[Record]) -> None:
    raise NotImplementedError


if __name__ == "__main__":
    main()
