"""What becomes of codes out of use: rules of rebirth side by side, on latents of a codec's trunk.

    python benchmarks/codebook_rules.py
    python benchmarks/codebook_rules.py --quick      # a minute: to see that it runs, not to be read

Trains one autoencoder trunk for each latent width on songs of the built-in corpus (22,050 Hz mono, hop 1,024, L1 of the
waveform), freezes it, and fits the codebooks of a residual quantiser to its latents as training does: batches of
8 x 22 frames, k-means on the first, then moving averages. Everything but the rule is the same in all rows of a setting.
Told of held-out songs: SNR of the latents with the first levels, and perplexity of single levels' codes.

First table: the rules. Second: decay and dead_share for the widest latents, under the first rule and the package's.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from hiermusic.audio import files
from hiermusic.codec import codebook
from hiermusic.codec.codebook import Averages
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.residual import QuantiserConfig, ResidualQuantiser
from hiermusic.data.corpus import corpus

RATE, HELD_OUT = 22_050, 2
TRUNK = DacConfig(fold=16, strides=(8, 8), dilations=(1, 3), encoder_width=48, decoder_width=192, init="fan_in")
CROPS, FRAMES = 8, 22
DEPTHS, LEVELS = (8, 16, 32, 64), (0, 7, 31, 63)


def put(now: Averages, replaced_V, book_VD, counts_V) -> Averages:
    """The averages with these codes and counts where codes are replaced."""
    return Averages(
        jnp.where(replaced_V[:, None], book_VD, now.book),
        jnp.where(replaced_V[:, None], book_VD * counts_V[:, None], now.sums),
        jnp.where(replaced_V, counts_V, now.counts),
    )


def batch_vector(now: Averages, replaced_V, vectors_VD, owners_V, start) -> Averages:
    """The vector itself, as in EnCodec."""
    return put(now, replaced_V, vectors_VD, jnp.full_like(now.counts, start))


def towards(share: float, now: Averages, replaced_V, vectors_VD, owners_V, start) -> Averages:
    """A share of the way from the owner to the vector."""
    owners_VD = now.book[owners_V]
    fresh_VD = owners_VD + share * (vectors_VD - owners_VD)
    return put(now, replaced_V, fresh_VD, jnp.full_like(now.counts, start))


def split(greatest: bool, now: Averages, replaced_V, vectors_VD, owners_V, start) -> Averages:
    """1 / sqrt(D) of the way, and the owner shares its count and its sums with its heirs.

    The owner is the code that the vector chose, or one of the greatest, each of them taken once.
    """
    ways_VD = (vectors_VD - now.book[owners_V]) / vectors_VD.shape[-1] ** 0.5
    if greatest:
        owners_V = jnp.argsort(-now.counts)[jnp.cumsum(replaced_V) - 1]
    heirs_V = jnp.zeros_like(now.counts).at[owners_V].add(replaced_V)
    shared = Averages(now.book, now.sums / (1 + heirs_V)[:, None], now.counts / (1 + heirs_V))
    return put(shared, replaced_V, now.book[owners_V] + ways_VD, jnp.maximum(shared.counts[owners_V], start))


PACKAGE = "owner + way / √D (the package)"
RULES: dict[str, Callable] = {
    "batch vector": batch_vector,
    "owner + 0.1 way": partial(towards, 0.1),
    "owner + 0.2 way": partial(towards, 0.2),
    "owner + 0.5 way": partial(towards, 0.5),
    PACKAGE: codebook.reborn,
    "the same, owner's count shared": partial(split, False),
    "greatest code split": partial(split, True),
}
LEARNING = ((0.95, 0.5), (0.97, 0.3), (0.99, 0.02), (0.99, 0.3), (0.99, 0.74))


def songs(count: int, seconds: tuple[float, float]) -> list[np.ndarray]:
    """Songs [L, 1], L a whole number of frames."""
    found = corpus(count, seconds_range=seconds)
    wavs = [files.resample(song.mix.mean(1, keepdims=True), song.sample_rate, RATE) for song in found]
    return [wav[: len(wav) // TRUNK.hop * TRUNK.hop] for wav in wavs]


def crops(draw: np.random.Generator, songs: list[np.ndarray], length: int, unit: int = 1) -> np.ndarray:
    """CROPS stretches of this length, each beginning at a whole number of units."""
    chosen = [songs[i] for i in draw.integers(len(songs), size=CROPS)]
    starts = [unit * draw.integers((len(song) - length) // unit + 1) for song in chosen]
    return np.stack([song[start : start + length] for song, start in zip(chosen, starts, strict=True)])


def latents(wavs: list[np.ndarray], width: int, steps: int) -> list[np.ndarray]:
    """The songs' frames [T, width], from an autoencoder trained on all but the held-out songs."""
    trunk = dataclasses.replace(TRUNK, latent=width)

    def make():
        rngs = nnx.Rngs(0)
        return nnx.List([trunk.encoder(1, rngs=rngs), trunk.decoder(1, rngs=rngs)])

    graph, state = nnx.split(nnx.jit(make)())
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, min(20, steps - 1), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b1=0.5, b2=0.9))

    def loss(state, wav):
        encoder, decoder = nnx.merge(graph, state)
        return jnp.mean(jnp.abs(decoder(encoder(wav)) - wav))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(state, moments, wav):
        updates, moments = optimizer.update(jax.grad(loss)(state, wav), moments, state)
        return optax.apply_updates(state, updates), moments

    moments, draw = optimizer.init(state), np.random.default_rng(0)
    for _ in range(steps):
        state, moments = step(state, moments, crops(draw, wavs[HELD_OUT:], FRAMES // 2 * trunk.hop, trunk.hop))
    longest = max(map(len, wavs))  # one shape, one program
    encode = jax.jit(lambda state, wav: nnx.merge(graph, state)[0](wav))
    padded = [np.pad(wav, ((0, longest - len(wav)), (0, 0)))[None] for wav in wavs]
    return [np.asarray(encode(state, x))[0, : len(wav) // trunk.hop] for x, wav in zip(padded, wavs, strict=True)]


def fit(rule: Callable, config: QuantiserConfig, frames: list[np.ndarray], steps: int) -> tuple[np.ndarray, np.ndarray]:
    """SNR in dB of the held-out frames with the first 1, 2 ... K levels, and perplexity of each level's codes."""
    draw = np.random.default_rng(0)
    batches = np.stack([crops(draw, frames[HELD_OUT:], FRAMES) for _ in range(steps)])
    width = frames[0].shape[-1]
    graph, state = nnx.split(nnx.jit(lambda: ResidualQuantiser(width, config, rngs=nnx.Rngs(0)))())

    @jax.jit
    def run(state, batches, held_out):
        def step(state, batch):
            x, key = batch
            quantiser = nnx.merge(graph, state)
            quantiser(x, key=key, train=True)
            return nnx.state(quantiser), None

        state, _ = jax.lax.scan(step, state, (batches, jax.random.split(jax.random.key(0), steps)))
        quantiser = nnx.merge(graph, state)
        out = quantiser(held_out)
        return out.codes_BPS, jnp.mean(jnp.square(held_out)) / out.stats["commitment_K"]

    with mock.patch.object(codebook, "reborn", rule):
        codes_BTK, ratio_K = jax.tree.map(np.asarray, run(state, batches, np.concatenate(frames[:HELD_OUT])[None]))
    return 10 * np.log10(ratio_K), np.array([perplexity(codes, config.codes) for codes in codes_BTK[0].T])


def perplexity(codes: np.ndarray, count: int) -> float:
    share = np.bincount(codes, minlength=count) / len(codes)
    return float(np.exp(-np.sum(share * np.log(np.maximum(share, 1e-12)))))


def row(cells: list, rule: str, frames: list[np.ndarray], config: QuantiserConfig, steps: int) -> None:
    """Fits and prints one row."""
    snr_K, perplexity_K = fit(RULES[rule], config, frames, steps)
    snr = [f"{snr_K[k - 1]:.2f}" for k in DEPTHS if k <= config.levels]
    used = [f"{perplexity_K[k]:.0f}" for k in LEVELS if k < config.levels]
    print("| " + " | ".join([*map(str, cells), rule, " / ".join(snr), " / ".join(used)]) + " |", flush=True)


def heading(*shown: str) -> None:
    depths, levels = (" / ".join(map(str, numbers)) for numbers in (DEPTHS, LEVELS))
    cells = [*shown, "rule", f"SNR, dB, of {depths} levels", f"perplexity, level {levels}"]
    print("\n| " + " | ".join(cells) + " |\n" + "|---" * len(cells) + "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 32, 8], help="latent widths; all when left out")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    given = parser.parse_args()
    sizes = [(128, 64, 64), (128, 256, 16), (128, 1024, 8), (32, 64, 64), (8, 256, 8)]
    count, seconds, trunk_steps, steps = 12, (22.0, 28.0), 200, 100
    learning = LEARNING
    if given.quick:
        sizes, learning = [(8, 16, 8)], LEARNING[:1]
        count, seconds, trunk_steps, steps = HELD_OUT + 1, (2.0, 3.0), 2, 2
    sizes = [size for size in sizes if size[0] in given.widths]
    wavs = songs(count, seconds)
    frames = {width: latents(wavs, width, trunk_steps) for width in dict.fromkeys(width for width, *_ in sizes)}

    heading("width", "codes")
    for (width, codes, levels), rule in itertools.product(sizes, RULES):
        config = QuantiserConfig(levels=levels, codes=codes, decay=0.97, dead_share=0.3, kmeans_iterations=10)
        row([width, codes], rule, frames[width], config, steps)

    width = max(frames)
    sizes = [size for size in sizes if size[0] == width][:2]
    heading("width", "codes", "decay", "dead_share")
    for (_, codes, levels), (decay, dead), rule in itertools.product(sizes, learning, ("batch vector", PACKAGE)):
        config = QuantiserConfig(levels=levels, codes=codes, decay=decay, dead_share=dead, kmeans_iterations=10)
        row([width, codes, decay, dead], rule, frames[width], config, 2 * steps)


if __name__ == "__main__":
    main()
