"""Next-scale decoding: one pass a level over its whole stretch of a window, each seeing all coarser levels (AAR).

The passes of `tokens.pattern.next_scale` differ in shape, so all of them are unrolled in one program, with every offset
into the cache known to the compiler. Keys depend on the sample's seed, the window, the level and the position only, so
a sample draws the same tokens in any batch.

`generate` is for models that read latents: a window stands in slots `[context | level 0 | level 1 | ...]`. Level 0
reads the start, where the condition is added; a later level reads the latents decoded so far, brought to its length.
Longer music is windows one after another, each with the last latents of the one before as its context. `draw` is for
models that read codes, behind a prompt.

Letters: c frames of context, E width of a latent, U of a condition, n tokens of a level, S slots or tokens of a window,
p positions of a prompt.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Int32

from hiermusic.generate.batching import check_batch, check_dropped, everywhere, lacking, spread, unconditional
from hiermusic.tokens import packets, pattern, sequence
from hiermusic.tokens.sampling import fold_keys, guide, sample, sample_keys, temperatures
from hiermusic.tokens.visibility import Visibility


class _Request(NamedTuple):
    """What all windows have in common; R is B, or 2 B with the unconditional half behind."""

    cond_RU: Float[Array, "R U"]
    seed_B: Int[Array, "B"]
    temperature: Array
    guidance: Array


def generate(
    model: nnx.Module,
    quantiser: nnx.Module,
    cond_BU: Float[np.ndarray, "B U"],
    *,
    seeds: Sequence[int],
    windows: int = 1,
    context: int = 0,
    before_BcE: Float[np.ndarray, "B c E"] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float = 1.0,
    uncond_U: Float[np.ndarray, "U"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Int32[np.ndarray, "B W S"]:
    """Draws the codes of windows that follow one another.

    Args:
      model: a `TokenLM` with inputs and a condition, or anything with its `unstack`, `condition`, `embed`,
        `level_logits`, `trunk.adapt`, `trunk.init_cache` and `trunk.extend`; one that is unstacked already saves a copy
        of its weights.
      quantiser: a `MultiscaleQuantiser`, or anything with its `add`, `view` and, in `config`, `slots`, `codes`,
        `frames` and `latent`.
      cond_BU: a condition for all windows of each sample.
      seeds: B integers.
      windows: W.
      context: c, frames of the window before that a window sees, as in training.
      before_BcE: those latents for the first window; zeros when left out.
      temperature, top_k, top_p: see `tokens.sampling.sample`.
      guidance: scale of classifier-free guidance of the last level, to which it grows linearly from 1 at the first;
        1 = none.
      uncond_U: the condition of the unconditional predictions.
      progress: called with (windows drawn, W) after every window.
    Returns:
      codes, those of level 0 first in each window of S = sum(slots).
    Raises:
      UserError: guidance that drops nothing of a sample's condition, a condition of another width than the model's.
      ValueError: lists of unequal length, a context of another length or longer than a window.
    """
    check_dropped(guidance, None if uncond_U is None else lacking(cond_BU, [uncond_U] * len(cond_BU)))
    request, context_BcE, static = _lay_out(
        quantiser,
        cond_BU,
        seeds=seeds,
        context=context,
        before_BcE=before_BcE,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        guidance=guidance,
        uncond_U=uncond_U,
    )
    graphdef, weights = nnx.split((model.unstack(), quantiser))
    drawn = []
    for window in range(windows):
        codes_BS, context_BcE = _window(graphdef, weights, request, context_BcE, np.int32(window), **static)
        drawn.append(np.asarray(codes_BS))
        context_BcE = np.asarray(context_BcE)  # from the host like the first, or a mesh would compile once more
        if progress is not None:
            progress(window + 1, windows)
    return np.stack(drawn, axis=1)


def program(
    model: nnx.Module, quantiser: nnx.Module, cond_BU: Float[np.ndarray, "B U"], **how
) -> tuple[Callable, tuple]:
    """The program that `generate` runs for every window, to be lowered: a jitted function and its arguments.

    Args:
      model: unstacked; it and the quantiser may be abstract (`nnx.eval_shape`).
      cond_BU, how: as in `generate`.
    """
    request, context_BcE, static = _lay_out(quantiser, cond_BU, **how)
    return partial(_window, **static), (*nnx.split((model, quantiser)), request, context_BcE, np.int32(0))


def _lay_out(
    quantiser,
    cond_BU,
    *,
    seeds,
    context=0,
    before_BcE=None,
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    guidance=1.0,
    uncond_U=None,
) -> tuple[_Request, Float[np.ndarray, "B c E"], dict]:
    """Checks what `generate` was given and lays it out: the request, the first context, what is static."""
    cond_RU = np.asarray(cond_BU, np.float32)
    sizes = quantiser.config
    shape = (len(cond_BU), context, sizes.latent)
    context_BcE = np.zeros(shape, np.float32) if before_BcE is None else np.asarray(before_BcE, np.float32)
    check_batch(cond_BU, seeds=seeds)
    if context > sizes.frames or context_BcE.shape != shape:
        raise ValueError(f"latents {context_BcE.shape} are no context of {context} frames of {sizes.frames}: {shape}")
    if guidance != 1.0:
        cond_RU = np.concatenate([cond_RU, np.broadcast_to(np.asarray(uncond_U, np.float32), cond_RU.shape)])
    request = _Request(
        cond_RU=cond_RU,
        seed_B=np.asarray(seeds, np.int64).astype(np.uint32),
        temperature=np.float32(temperature),
        guidance=np.float32(guidance),
    )
    return request, context_BcE, {"top_k": top_k, "top_p": top_p}


@partial(jax.jit, static_argnames=("graphdef", "top_k", "top_p"))
def _window(
    graphdef, weights, request: _Request, context_BcE, window, *, top_k: int, top_p: float
) -> tuple[Int[Array, "B S"], Float[Array, "B c E"]]:
    """One window's codes, and the context of the next."""
    model, quantiser = nnx.merge(graphdef, weights)
    (B, c, E), R = context_BcE.shape, request.cond_RU.shape[0]
    slots, K = quantiser.config.slots, len(quantiser.config.slots)
    text_S, levels_S = sequence.window(pattern.next_scale(slots), c)
    cond_RD = model.condition(request.cond_RU)
    adapted, cache = model.trunk.adapt(cond_RD), spread(model.trunk.init_cache(R, c + sum(slots)))
    keys_B = fold_keys(sample_keys(request.seed_B), window)
    total_BTE = jnp.zeros((B, quantiser.config.frames, E), jnp.float32)
    codes = []
    start = 0
    for level, n in enumerate(slots):
        if level == 0:  # its pass takes the context along
            inputs_BsE, visibility = jnp.pad(context_BcE, ((0, 0), (0, n), (0, 0))), Visibility.block_causal((c, n))
        else:  # all that is cached is seen, so there is no mask
            inputs_BsE, visibility = quantiser.view(total_BTE, level), Visibility.full()
        stop = start + inputs_BsE.shape[1]
        x_RsD = model.embed(
            jnp.broadcast_to(text_S[start:stop], (R, stop - start)),
            inputs_BSE=jnp.tile(inputs_BsE, (R // B, 1, 1)),
            levels_BS=levels_S[None, start:stop],
            cond_BD=cond_RD,
        )
        x_RsD, cache = model.trunk.extend(x_RsD, cache, start, visibility=visibility, adapted=adapted)
        x_RnD, start = x_RsD[:, -n:], stop
        if R == B or level == 0:  # without guidance only the cache of the unconditional half matters
            logits_BnV = model.level_logits(x_RnD[:B], level)
        else:
            logits_RnV = model.level_logits(x_RnD, level)
            logits_BnV = guide(logits_RnV[:B], logits_RnV[B:], 1 + (request.guidance - 1) * level / (K - 1))
        codes_Bn = _draw(
            logits_BnV[..., : quantiser.config.codes],
            fold_keys(keys_B, level),
            temperature=request.temperature,
            top_k=top_k,
            top_p=top_p,
        )
        total_BTE = quantiser.add(total_BTE, codes_Bn, level)
        codes.append(codes_Bn)
    return everywhere(jnp.concatenate(codes, axis=1)), everywhere(total_BTE[:, quantiser.config.frames - c :])


def _draw(logits_BnV, keys_B, **how) -> Int[Array, "B n"]:
    """The codes of one level, each position with a key of its own."""
    B, n, V = logits_BnV.shape
    keys_Bn = jax.vmap(fold_keys, (None, 0), out_axes=1)(keys_B, jnp.arange(n))
    return sample(logits_BnV.reshape(B * n, V), keys_Bn.reshape(B * n), **how).reshape(B, n)


# MARK: models that read codes


class _Prompted(NamedTuple):
    """A batch of requests; R is B, or 2 B with the unconditional half behind."""

    text_Rp: Int32[np.ndarray, "R p"]
    known: tuple[Int32[np.ndarray, "B T"], ...]
    length_BK: Int32[np.ndarray, "B K"]
    seed_B: Int[Array, "B"]
    temperature_K: Float[Array, "K"]
    guidance: Array


def draw(
    model: nnx.Module,
    prompts: Sequence[Sequence[int]],
    window: Sequence[int],
    *,
    seeds: Sequence[int],
    sizes: Sequence[int],
    lengths: Sequence[Sequence[int]] | None = None,
    given: int = 0,
    known: Sequence[packets.Streams] | None = None,
    temperature: float | Sequence[float] = 1.0,
    final_temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float = 1.0,
    unprompted: Sequence[Sequence[int]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[packets.Streams]:
    """Draws the codes of a window behind a prompt.

    Args:
      model: a `TokenLM` that reads codes; one that is unstacked already saves a copy of its weights.
      prompts: B lists of text ids, all of one length as in training; the last id is read where there is no code.
      window: tokens of each of the K levels of a training row.
      seeds: B integers.
      sizes: number of codes of each level.
      lengths: tokens of each level of every sample, at most the window's, which they are when left out.
      given: the first levels that are known beforehand and not predicted.
      known: of each sample the first tokens of each level, int [T, K] or one array a level; they are kept.
      temperature, top_k, top_p: see `tokens.sampling.sample`.
      temperature of several numbers, final_temperature: see `tokens.sampling.temperatures`.
      guidance: scale of classifier-free guidance; 1 = none.
      unprompted: B prompts of the unconditional predictions.
      progress: called with (1, 1) at the end.
    Returns:
      B arrays int32 [T, K] where the sample's levels have one length, else B tuples of one array a level.
    Raises:
      UserError: guidance that drops nothing of a sample's prompt.
      ValueError: lists of unequal length, prompts of different lengths.
    """
    check_dropped(guidance, lacking(prompts, unprompted))
    request, static = _prompted(
        prompts,
        window,
        seeds=seeds,
        sizes=sizes,
        lengths=lengths,
        given=given,
        known=known,
        temperature=temperature,
        final_temperature=final_temperature,
        top_k=top_k,
        top_p=top_p,
        guidance=guidance,
        unprompted=unprompted,
    )
    drawn = [np.asarray(codes_BT) for codes_BT in _draw_all(*nnx.split(model.unstack()), request, **static)]
    if progress is not None:
        progress(1, 1)
    samples = []
    for b, length_K in enumerate(request.length_BK):
        codes = [codes_BT[b, :length] for codes_BT, length in zip(drawn, length_K, strict=True)]
        samples.append(np.stack(codes, 1) if len(set(length_K.tolist())) == 1 else tuple(codes))
    return samples


def draw_program(model: nnx.Module, prompts, window, **how) -> tuple[Callable, tuple]:
    """The program that `draw` runs, to be lowered: a jitted function and its arguments.

    Args:
      model: unstacked, may be abstract (`nnx.eval_shape`).
      prompts, window, how: as in `draw`.
    """
    request, static = _prompted(prompts, window, **how)
    return partial(_draw_all, **static), (*nnx.split(model), request)


def _prompted(
    prompts,
    window,
    *,
    seeds,
    sizes,
    lengths=None,
    given=0,
    known=None,
    temperature=1.0,
    final_temperature=None,
    top_k=0,
    top_p=1.0,
    guidance=1.0,
    unprompted=None,
) -> tuple[_Prompted, dict]:
    """Checks what `draw` was given and lays it out: the request, what is static."""
    optional = {"lengths": lengths, "known": known}
    check_batch(prompts, seeds=seeds, **{name: one for name, one in optional.items() if one is not None})
    check_batch(window, sizes=sizes)
    rows = unconditional(prompts, unprompted, guidance)
    if len({len(row) for row in rows}) > 1 or not rows[0]:
        raise ValueError("next-scale decoding needs prompts of one length, at least one id")
    codes = tuple(np.full((len(prompts), n), -1, np.int32) for n in window)
    for b, one in enumerate(known or ()):
        for codes_BT, codes_T in zip(codes, packets.levels_of(one), strict=False):
            codes_BT[b, : len(codes_T)] = codes_T[: codes_BT.shape[1]]
    request = _Prompted(
        text_Rp=np.asarray(rows, np.int32),
        known=codes,
        length_BK=np.asarray([window] * len(prompts) if lengths is None else lengths, np.int32),
        seed_B=np.asarray(seeds, np.int64).astype(np.uint32),
        temperature_K=temperatures(temperature, final_temperature, len(sizes), given),
        guidance=np.float32(guidance),
    )
    static = {"sizes": tuple(sizes), "given": given, "top_k": top_k, "top_p": top_p, "guided": guidance != 1.0}
    return request, static


@partial(jax.jit, static_argnames=("graphdef", "sizes", "given", "top_k", "top_p", "guided"))
def _draw_all(
    graphdef,
    weights,
    request: _Prompted,
    *,
    sizes: tuple[int, ...],
    given: int,
    top_k: int,
    top_p: float,
    guided: bool,
) -> list[Int[Array, "B T"]]:
    """The codes of every level, -1 behind a sample's end."""
    model, codes = nnx.merge(graphdef, weights), list(request.known)
    (R, p), B, K = request.text_Rp.shape, len(request.length_BK), len(sizes)
    window = tuple(codes_BT.shape[1] for codes_BT in codes)
    cache, start = spread(model.trunk.init_cache(R, p + sum(window[given:]))), 0
    for level in range(given, K):
        n, reads_nK = window[level], pattern.layer_pass(window, level).reads_SK
        is_there_Bn = jnp.arange(n) < request.length_BK[:, level, None]
        columns = [codes[j][:, reads_nK[:, j]] if j < level else jnp.full((B, n), -1, jnp.int32) for j in range(K)]
        reads_RnK = jnp.tile(jnp.stack(columns, axis=-1), (R // B, 1, 1))
        begins_Rn = jnp.tile(is_there_Bn, (R // B, 1)) & (reads_RnK < 0).all(-1)
        text_Rs, reads_RsK = jnp.where(begins_Rn, request.text_Rp[:, -1:], -1), reads_RnK
        visibility = Visibility.full()  # all that is cached is seen, so there is no mask
        if not start:  # the first pass takes the prompt along
            text_Rs = jnp.concatenate([request.text_Rp, text_Rs], axis=1)
            reads_RsK = jnp.pad(reads_RnK, ((0, 0), (p, 0), (0, 0)), constant_values=-1)
            visibility = Visibility.block_causal((p, n))
        x_RsD, cache = model.trunk.extend(model.embed(text_Rs, reads_RsK), cache, start, visibility=visibility)
        start += text_Rs.shape[1]
        logits_RnV = model.level_logits(x_RsD[:, -n:], level)
        logits_BnV = guide(logits_RnV[:B], logits_RnV[B:], request.guidance) if guided else logits_RnV
        drawn_Bn = _draw(
            logits_BnV[..., : sizes[level]],
            fold_keys(sample_keys(request.seed_B), level),
            temperature=request.temperature_K[level],
            top_k=top_k,
            top_p=top_p,
        )
        drawn_Bn = jnp.where(codes[level] >= 0, codes[level], drawn_Bn)
        codes[level] = jnp.where(is_there_Bn, drawn_Bn, -1)
    return [everywhere(codes_BT) for codes_BT in codes]
