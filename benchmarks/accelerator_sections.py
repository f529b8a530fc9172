"""The sections of `accelerator.py`: each is told a `Bench` and yields its results as they come."""

import runpy
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from accelerator_models import paper_step, token_batch, traced, training_config
from accelerator_tools import (
    HERE,
    LESS_SCALES,
    Bench,
    Record,
    attention_proof,
    compiled,
    configuration,
    fresh,
    halved,
    memory,
    refusal,
    timed,
    wanted,
)

SONG_SECONDS = 240.0
RATE = 44100 / 2048  # frames a second
CONVENTION = (
    "two for a multiplication and its addition; a training step is three times its forward pass, and what "
    "is recomputed does not count; of attention only the pairs that see each other count, so of a causal row half"
)


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
    yield {"what": "convention", "words": CONVENTION}
    for n in (256,) if bench.tiny else (8192, 16384):
        key = jax.random.key(0)
        draw = jax.jit(lambda key, n=n: jax.random.normal(key, (n, n), jnp.bfloat16))
        a, b = map(draw, jax.random.split(key))
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


def parity(bench: Bench) -> Iterator[Record]:
    """The largest difference relative to the largest value, over all positions that count: between the devices, and of
    each device's results from those of the CPU in float32."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from hiermusic.parallel.mesh import make_mesh
    from hiermusic.systems.khala import models as khala
    from hiermusic.tokens.visibility import Visibility

    accelerator, cpu = jax.devices()[0], jax.devices("cpu")[0]
    for stage, visibility in (("backbone", Visibility.causal()), ("superres", Visibility.full())):
        config = configuration(stage, "tiny")
        batch = token_batch(config, 2, ragged=True)
        _, state = fresh(khala.make_model(config))
        state, counted = jax.device_get(state), batch["valid"]
        results, level = {}, 0 if stage == "backbone" else config.model.levels // 2

        def lower(device, dtype, config=config, state=state, batch=batch, visibility=visibility, level=level):
            config = config.copy_and_resolve_references()
            config.model.dtype = dtype
            graphdef = nnx.split(nnx.eval_shape(lambda: khala.make_model(config)(nnx.Rngs(0))))[0]

            def run(state, batch):
                def loss(state):
                    return nnx.merge(graphdef, state).loss(batch, visibility=visibility)[0]

                model = nnx.merge(graphdef, state)
                logits = model.level_logits(model.hidden(batch, visibility=visibility), level)
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
    """The step of a stage with its whole optimiser state, by what is recomputed; layers are halved until one fits."""
    import jax

    from hiermusic.systems.khala import stages as khala

    config = training_config(name, bench.preset, rows)
    whole = config.model.layers
    while config.model.layers:
        done = []
        for remat in ("dots",) if bench.tiny else ("dots", "none", "full"):
            if done and bench.left() < 1.5 * max(record["took"] for record in done):
                yield {"what": "step", "remat": remat, "skipped": "no time left"}
                continue
            begin = time.monotonic()
            config.model.remat = remat

            def proof(program, remat=remat):
                return attention_proof(f"remat {remat}", program, lambda: paper_step(name, rows, remat), True)

            try:
                for record in step(bench, khala.stage(config), token_batch(config, rows), proof):
                    sizes = {"layers": config.model.layers, "of": whole, "positions": config.model.length, "rows": rows}
                    took = time.monotonic() - begin
                    record = {**record, "model": name, "remat": remat, **sizes, "took": took}
                    if "seconds" in record:
                        done.append(record)
                    yield record
            except jax.errors.JaxRuntimeError as error:
                yield {"what": "step", "model": name, "remat": remat, **refusal(error)}
            if remat == "none" and done and bench.left() < 60 and not bench.tiny:
                break
        if done:
            best = min(done, key=lambda record: record["seconds"])
            yield {**best, "what": "best"}
            return
        config.model.layers //= 2
    yield {"what": "step", "model": name, "error": "not even one layer fits"}


def step(bench: Bench, stage, batch: Record, proof: Callable | None = None) -> Iterator[Record]:
    """A training step as the loop makes it: compiled, shown to attend as it should, and timed if it fits."""
    import jax

    from hiermusic.parallel.mesh import BatchPlacement, make_mesh

    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        size = next(len(value) for value in batch.values() if value.ndim)
        placed = BatchPlacement(mesh, size).put(batch)
        trace, rest, placement = traced(stage, placed, mesh)
        program, compiling = compiled(trace.lower())
        if proof:
            yield proof(program)
        needs, work = wanted(program), stage.work(stage.examples()[-1][0])
        facts = {"what": "step", "compile": compiling, "needs": needs, "flops": work.flops}
        if (limit := memory().get("limit")) and needs > limit:
            yield {**facts, "skipped": f"needs {needs / 2**30:.1f} GiB of {limit / 2**30:.1f}"}
            return
        held = [fresh(stage.create, placement)[1], {}]

        def run():
            held[0], held[1] = program(held[0], placed, *rest)
            return held[1]

        seconds = timed(run, 0.2 if bench.tiny else 4.0)
        loss, skipped = float(held[1]["loss"]), bool(held[1]["skipped"])
        peak, _, whose = bench.limits()
        measured = bench.peak()
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


TABLES = ("text_embed", "text_head", "code_embed", "code_head")  # of which a pass reads some rows


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
    from hiermusic.systems.khala import models as khala
    from hiermusic.tokens import pattern

    config = configuration("backbone", bench.preset)
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
            sizes=[lm.config.codes] * model.levels, eos=lm.config.end, temperature=1.0, top_k=50,
            cache_dtype="bfloat16")  # fmt: skip
        runs[rows] = program.func.lower(*arguments, **program.keywords), arguments
    begin = time.perf_counter()
    with ThreadPoolExecutor(len(runs)) as pool:
        programs = dict(zip(runs, pool.map(lambda run: run[0].compile(), runs.values()), strict=True))
    yield {"what": "compile", "programs": len(programs), "seconds": time.perf_counter() - begin}
    trunk = lm.config.transformer
    read = weights_bytes(weights, TABLES)
    read += 2 * lm.config.codes * model.width  # of one level's head
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
    from hiermusic.systems.khala import models as khala

    def traced_pass(lm, model, text, frames):
        codes = np.random.default_rng(0).integers(lm.config.codes, size=(frames, model.given)).astype(np.int32)
        how = {"markers": [0] * model.levels, "seeds": [0], "sizes": [lm.config.codes] * model.levels}
        run, arguments = layerwise.level_pass(lm, [[0] * text], [codes], **how)
        return run.func.trace(*arguments, **run.keywords), arguments

    def maker(preset):
        config = configuration("superres", preset)
        config.model.dtype = "bfloat16"
        return halved(khala.make_model(config), "bfloat16"), config.model

    def paper_pass():
        make, model = maker("paper")
        return traced_pass(nnx.eval_shape(lambda: make(nnx.Rngs(0))), model, 256, round(SONG_SECONDS * RATE))[0]

    make, model = maker(bench.preset)
    graphdef, weights = fresh(make)
    lm, text = nnx.merge(graphdef, weights), 32 if bench.tiny else 256
    trace, arguments = traced_pass(lm, model, text, frames)
    program, compiling = compiled(trace.lower())
    yield attention_proof("layer-wise pass", program, paper_pass, False)
    count = model.levels - model.given
    held, request = [arguments[2]], arguments[3:5]  # the first pass's row serves all: what it reads costs the same
    held[0] = program(weights, held[0], *request, np.int32(model.given), np.int32(0))
    held[0].block_until_ready()
    begin = time.perf_counter()
    for level in range(model.given, model.levels):
        held[0] = program(weights, held[0], *request, np.int32(level), np.int32(0))
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
    from hiermusic.systems.khala import models as khala

    config = configuration("codec", bench.preset)
    settings = khala.codec_config(config.model)
    graphdef, weights = fresh(lambda rngs: Codec(settings, rngs=rngs))
    codec = nnx.merge(graphdef, weights)
    codes = np.random.default_rng(0).integers(config.model.codes, size=(frames, config.model.levels))
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
    depth, repeats, less = (1, 1, LESS_SCALES) if bench.tiny else (16, 5, {})
    fastest = None
    kinds = {"next-scale": "next_scale", "next-token, flatten": "flatten", "next-token, delay": "delay"}
    if bench.tiny:
        del kinds["next-token, delay"]  # nothing that the others do not run, to be compiled once more
    for name, kind in kinds.items():
        if fastest and bench.left() < 20 and not bench.tiny:
            yield {"model": name, "skipped": "no time left"}
            continue
        begin = time.perf_counter()
        contender = module["contender_of"](
            kind, depth, "bfloat16", bench.preset, lambda make: nnx.merge(*fresh(make)), less
        )
        built = time.perf_counter() - begin
        times = module["measure"](name, contender, repeats if kind == "next_scale" else min(repeats, 2))
        seconds, cpu = times.medians
        fastest = fastest or seconds
        trunk = weights_bytes(nnx.state(contender.lm), TABLES)
        rows, guided = -(-contender.codec.sample_rate // contender.codec.packet), 2
        flops = guided * rows * sum(contender.codec.slots) * 2 * trunk / 2
        yield {"model": name, "depth": depth, "passes": contender.passes, "run": contender.run, "seconds": seconds,
               "cpu": cpu, "real_time": 1 / seconds, "times": seconds / fastest, "compile": times.compile,
               "build": built, **bench.floor(flops, contender.passes * trunk)}  # fmt: skip


def codec(bench: Bench) -> Iterator[Record]:
    import jax
    import numpy as np

    from hiermusic.systems.khala import stages as khala

    config = configuration("codec", bench.preset)
    rows = 2 if bench.tiny else 8
    for dtype in ("bfloat16", "float32"):
        if bench.left() < 45 and not bench.tiny:
            yield {"what": "step", "dtype": dtype, "skipped": "no time left"}
            continue
        config.model.dtype, done, size = dtype, False, rows
        while not done and size:
            config.train.batch_size = size
            stage = khala.stage(config)
            wav = np.random.default_rng(0).normal(size=stage.shape).astype(np.float32) / 10
            try:
                for record in step(bench, stage, {"wav": wav}):
                    done = done or "seconds" in record
                    yield {**record, "dtype": dtype, "rows": size, "samples": stage.shape[1]}
            except jax.errors.JaxRuntimeError as error:
                yield {"what": "step", "dtype": dtype, "rows": size, **refusal(error)}
            size //= 2
