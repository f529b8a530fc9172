"""What the sections of `accelerator.py` are told, and what they measure with."""

import contextlib
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FUSED = "__cudnn$fmha"

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
        return self.peak(), self.find("card", what="bandwidth").get("bytes_per_second"), "measured"

    def peak(self) -> float | None:
        """Operations a second of the fastest product measured."""
        products = [r for r in self.known if r["section"] == "card" and r.get("what") == "matrix"]
        return max((r["flops"] for r in products), default=None)

    def floor(self, flops: float, moved: float, share: float = 1.0) -> Record:
        """The least seconds, from operations at `share` of the bfloat16 peak and from bytes."""
        peak, bandwidth, whose = self.limits()
        if not peak or not bandwidth:
            return {}
        floors = {"flops": flops / (peak * share), "bytes": moved / bandwidth}
        bound = max(floors, key=floors.__getitem__)
        return {"floor": floors[bound], "bound": bound, "floors": floors, "limits": whose}


# MARK: tools

# What `tiny` has still less of here than where it is trained: to compile takes longer than all else. A codec has one
# stride, and folds more samples beforehand; what needs mel filters, which are librosa's, is left out.
LESS = {
    "backbone": {"model": {"layers": 1, "length": 128}},
    "superres": {"model": {"layers": 1, "length": 128}},
    "codec": {
        "model": {"levels": 4, "fold": 128, "strides": (4,), "dilations": (1,), "noise_db": (), "mel_bands": 0},
        "loss": {"mel": 0.0, "stft": 2.0, "stft_sizes": (206,)},
    },
}
LESS_SCALES = {"levels": 3, "fold": 80, "strides": (4,), "phi_count": 2}  # of the codecs of next-scale prediction


def configuration(name: str, preset: str):
    from hiermusic import presets

    config = presets.read(f"configs/khala/{name}.py:{preset}")
    if preset == "tiny":
        config.update(LESS[name])
    config.model.levels = config.model.levels or config.tokens.levels
    return config


def fresh(make: Callable, placement: Any = None):
    """The graph of a module, and its state with random weights.

    They are made on the device by one program; for a CPU, where that is slow to compile, they are drawn without.
    """
    import jax
    import numpy as np
    from flax import nnx

    key = jax.random.key(0, impl="rbg")  # quick to compile and to draw
    abstract = nnx.eval_shape(lambda: make(nnx.Rngs(key)))
    graphdef = nnx.split(abstract)[0]
    if jax.default_backend() != "cpu":
        return graphdef, jax.jit(lambda key: nnx.state(make(nnx.Rngs(key))), out_shardings=placement)(key)
    rng = np.random.default_rng(0)
    _, params, rest = nnx.split(abstract, nnx.Param, ...)
    params = jax.tree.map(lambda x: rng.uniform(0, 0.04, x.shape).astype(x.dtype), params)
    rest = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), rest)
    return graphdef, jax.device_put(nnx.merge_state(params, rest), placement)


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
    return told.argument_size_in_bytes + told.output_size_in_bytes + told.temp_size_in_bytes - told.alias_size_in_bytes


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
      trace: traces the program at the size of `paper`, where there is no GPU: none of that size was traced before, so
        nothing that JAX remembers was made for another platform.
      trained: there must be a backward pass.
    """
    import jax

    if jax.default_backend() == "gpu":
        where, text = "compiled", program.as_text()
    else:
        with as_for_gpu():
            where, text = "paper, lowered for cuda", trace().lower(lowering_platforms=("cuda",)).as_text()
    calls = fused_calls(text)
    proof: Record = {"what": "attention", "program": name, "where": where, **calls}
    if not calls["forward"] or (trained and not calls["backward"]):
        proof["error"] = "attention fell back: cuDNN's call is not in the program"
    return proof


def refusal(error: BaseException) -> Record:
    """What there was no memory for is left out, all else is an error."""
    return {"skipped" if "RESOURCE_EXHAUSTED" in str(error) else "error": line(error)}


def line(error: BaseException) -> str:
    """An error in one line, and where it came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(f.filename).name}:{f.lineno}" for f in frames if "site-packages" not in f.filename]
    words = (str(error).strip() or type(error).__name__).splitlines()[0][:400]
    return f"{type(error).__name__}: {words} ({ours[-1] if ours else 'elsewhere'})"
