"""Layer-wise refinement: one parallel pass a level over the whole track, each reading all levels below it.

A request stands in positions `[prompt | frames | padding]` with the target level's marker in the place of the prompt's
last id (Khala, section 3). Keys depend on the sample's seed, the level and the frame only, so neither padding nor the
batch changes a token.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32

from hiermusic.errors import UserError
from hiermusic.generate.batching import bucket, check_batch, everywhere, padded, unconditional
from hiermusic.tokens.sampling import fold_keys, guide, sample, sample_keys
from hiermusic.tokens.visibility import Visibility


class _Request(NamedTuple):
    """What no pass changes; R is B, or 2 B with the unconditional half behind."""

    text_RS: Int[Array, "R S"]
    text_length_R: Int[Array, "R"]
    frames_B: Int[Array, "B"]
    seed_B: Int[Array, "B"]
    size_K: Int[Array, "K"]
    temperature_K: Float[Array, "K"]
    guidance: Array


def refine(
    model: nnx.Module,
    prompts: Sequence[Sequence[int]],
    codes: Sequence[Int32[np.ndarray, "T given"]],
    *,
    markers: Sequence[int],
    seeds: Sequence[int],
    sizes: Sequence[int],
    layers: int | None = None,
    temperature: float = 1.0,
    final_temperature: float | None = None,
    top_k: int = 10,
    top_p: float = 1.0,
    guidance: float = 1.0,
    unprompted: Sequence[Sequence[int]] | None = None,
    known: Int32[np.ndarray, "T0 K"] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Int32[np.ndarray, "T K"]]:
    """Draws the levels above those given, one after another.

    Args:
      model: a `TokenLM`, or anything with its `embed`, `level_logits` and `trunk`.
      prompts: B lists of text ids, each ending in the id whose place the marker takes.
      codes: B arrays int [T, given], the lower levels; T may differ, `given` may not.
      markers: K text ids, the one of level k marks that level k is to be predicted.
      seeds: B integers.
      sizes: number of codes of each of the K levels.
      layers: how many levels a song has in the end, the given ones among them; all K when left out.
      temperature, top_k, top_p: see `tokens.sampling.sample` (Khala: top-k 10 at temperature 1).
      final_temperature: of the last level; those between have what lies between, evenly. The finer a level, the less of
        it can be predicted, and what cannot be is noise when it is drawn; the same for all when left out.
      guidance: scale of classifier-free guidance; 1 = none.
      unprompted: B prompts of the unconditional predictions, each with its marker place.
      known: all levels of the first T0 frames of every sample (continuation); they are kept.
      progress: called with (levels drawn, levels to draw) after every pass.
    Returns:
      B arrays int32 [T, layers] that begin with the given levels.
    Raises:
      UserError: guidance without an unconditional prompt, more layers than levels, or none to draw.
      ValueError: lists of unequal length, an empty prompt, or nothing to draw.
    """
    codes_BTK, request = _lay_out(
        prompts,
        codes,
        markers=markers,
        seeds=seeds,
        sizes=sizes,
        temperature=temperature,
        final_temperature=final_temperature,
        guidance=guidance,
        unprompted=unprompted,
        known=known,
    )
    graphdef, weights = nnx.split(model)
    given, K = codes[0].shape[1], len(sizes)
    layers = K if layers is None else layers
    if not given < layers <= K:
        raise UserError(f"{layers} layers: choose from {given + 1} to {K}, {given} of them are given")
    for level in range(given, layers):
        codes_BTK = _pass(
            graphdef,
            weights,
            codes_BTK,
            request,
            np.int32(level),
            np.int32(markers[level]),
            top_k=top_k,
            top_p=top_p,
            guided=guidance != 1.0,
        )
        if progress is not None:
            codes_BTK.block_until_ready()
            progress(level + 1 - given, layers - given)
    drawn = zip(np.asarray(codes_BTK), request.frames_B, strict=True)
    return [codes_TK[:frames, :layers].copy() for codes_TK, frames in drawn]


def level_pass(
    model: nnx.Module,
    prompts: Sequence[Sequence[int]],
    codes: Sequence[Int32[np.ndarray, "T given"]],
    *,
    markers: Sequence[int],
    top_k: int = 10,
    top_p: float = 1.0,
    guidance: float = 1.0,
    **how,
) -> tuple[Callable, tuple]:
    """The program that `refine` runs for every level, to be lowered: a jitted function and its arguments.

    Args:
      model: may be abstract (`nnx.eval_shape`).
      prompts, codes, markers, top_k, top_p, guidance, how: as in `refine`.
    """
    codes_BTK, request = _lay_out(prompts, codes, markers=markers, guidance=guidance, **how)
    level = codes[0].shape[1]
    run = partial(_pass, top_k=top_k, top_p=top_p, guided=guidance != 1.0)
    return run, (*nnx.split(model), codes_BTK, request, np.int32(level), np.int32(markers[level]))


def _lay_out(
    prompts,
    codes,
    *,
    markers,
    seeds,
    sizes,
    temperature=1.0,
    final_temperature=None,
    guidance=1.0,
    unprompted=None,
    known=None,
) -> tuple[Int32[np.ndarray, "B T K"], _Request]:
    """Checks what `refine` was given and lays it out in arrays."""
    check_batch(prompts, codes=codes, seeds=seeds)
    check_batch(sizes, markers=markers)
    rows = unconditional(prompts, unprompted, guidance)
    given, K = codes[0].shape[1], len(sizes)
    if any(codes_TK.shape[1] != given for codes_TK in codes) or not given < K or not all(rows):
        raise ValueError(f"refinement needs prompts that are not empty and codes of one number of levels below {K}")
    last = temperature if final_temperature is None else final_temperature
    frames_B = np.array([len(codes_TK) for codes_TK in codes], np.int32)
    text_length_R = np.array([len(row) for row in rows], np.int32)
    T = bucket(int(frames_B.max()))
    S = bucket(int((text_length_R + np.resize(frames_B, len(rows))).max()))
    codes_BTK = np.full((len(codes), T, K), -1, np.int32)
    for b, codes_TK in enumerate(codes):
        codes_BTK[b, : len(codes_TK), :given] = codes_TK
        if known is not None:
            codes_BTK[b, : len(known)] = known
    request = _Request(
        text_RS=padded(rows, S, left=False),
        text_length_R=text_length_R,
        frames_B=frames_B,
        seed_B=np.asarray(seeds, np.int64).astype(np.uint32),
        size_K=np.asarray(sizes, np.int32),
        temperature_K=np.r_[np.zeros(given), np.linspace(temperature, last, K - given)].astype(np.float32),
        guidance=np.float32(guidance),
    )
    return codes_BTK, request


@partial(jax.jit, static_argnames=("graphdef", "top_k", "top_p", "guided"), donate_argnames="codes_BTK")
def _pass(graphdef, weights, codes_BTK, request: _Request, level, marker, *, top_k, top_p, guided):
    """Draws one level of every frame; `level` is traced, so all passes share one program."""
    model = nnx.merge(graphdef, weights)
    B, T, K = codes_BTK.shape
    R, S = request.text_RS.shape
    copies = R // B
    frames_R1 = jnp.tile(request.frames_B, copies)[:, None]
    text_length_R1 = request.text_length_R[:, None]
    frame_RS = jnp.arange(S) - text_length_R1
    text_RS = jnp.where(frame_RS == -1, marker, request.text_RS)
    reads_RSK = jnp.take_along_axis(
        jnp.tile(codes_BTK, (copies, 1, 1)), jnp.clip(frame_RS, 0, T - 1)[..., None], axis=1
    )
    is_frame_RS: Bool[Array, "R S"] = (frame_RS >= 0) & (frame_RS < frames_R1)
    reads_RSK = jnp.where(is_frame_RS[..., None] & (jnp.arange(K) < level), reads_RSK, -1)
    x_RSD = model.trunk(model.embed(text_RS, reads_RSK), visibility=Visibility.full(), valid_BS=frame_RS < frames_R1)
    # Only frames are looked at by the head, and both halves of a guided batch frame by frame.
    at_frame_RT = jnp.minimum(text_length_R1 + jnp.arange(T), S - 1)
    x_RTD = jnp.take_along_axis(x_RSD, at_frame_RT[..., None], axis=1)
    logits_RTV = model.level_logits(x_RTD, level)
    logits_BTV = guide(logits_RTV[:B], logits_RTV[B:], request.guidance) if guided else logits_RTV
    V = logits_BTV.shape[-1]
    keys_BT = jax.vmap(fold_keys, (None, 0), out_axes=1)(fold_keys(sample_keys(request.seed_B), level), jnp.arange(T))
    drawn_N = sample(
        logits_BTV.reshape(B * T, V),
        keys_BT.reshape(B * T),
        temperature=request.temperature_K[level],
        top_k=top_k,
        top_p=top_p,
        allowed=(jnp.arange(V) < request.size_K[level])[None],
    )
    known_BT = jax.lax.dynamic_index_in_dim(codes_BTK, level, axis=2, keepdims=False)
    drawn_BT = jnp.where(known_BT >= 0, known_BT, drawn_N.reshape(B, T))
    drawn_BT = jnp.where(jnp.arange(T) < request.frames_B[:, None], drawn_BT, -1)
    return everywhere(jax.lax.dynamic_update_index_in_dim(codes_BTK, drawn_BT, level, axis=2))
