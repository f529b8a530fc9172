"""Layer-wise refinement: one parallel pass a level over the whole track, each reading all levels below it.

A request stands in positions `[prompt | tokens | padding]` with the target level's marker in the place of the prompt's
last id (Khala, section 3), and, as in training rows, at positions that have no code to read. What a pass reads and
predicts is `tokens.pattern.layer_pass`. Keys depend on the sample's seed, the level and the token's place only, so
neither padding nor the batch changes a token.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Int32

from hiermusic.errors import UserError
from hiermusic.generate.batching import bucket, check_batch, check_dropped, everywhere, lacking, padded, unconditional
from hiermusic.tokens import packets
from hiermusic.tokens.pattern import layer_pass
from hiermusic.tokens.sampling import fold_keys, guide, sample, sample_keys, temperatures
from hiermusic.tokens.visibility import Visibility


class _Request(NamedTuple):
    """What no pass changes; R is B, or 2 B with the unconditional half behind."""

    seed_B: Int[Array, "B"]
    size_K: Int[Array, "K"]
    temperature_K: Float[Array, "K"]
    guidance: Array


class _Row(NamedTuple):
    """What a pass reads, in positions of the row and of the level, and how many tokens the level has."""

    text_RS: Int32[np.ndarray, "R S"]
    text_length_R: Int32[np.ndarray, "R"]
    reads_BTK: Int32[np.ndarray, "B T K"]
    length_B: Int32[np.ndarray, "B"]


def refine(
    model: nnx.Module,
    prompts: Sequence[Sequence[int]],
    codes: Sequence[packets.Streams],
    *,
    markers: Sequence[int],
    seeds: Sequence[int],
    sizes: Sequence[int],
    lengths: Sequence[Sequence[int]] | None = None,
    levels: int | None = None,
    temperature: float | Sequence[float] = 1.0,
    final_temperature: float | None = None,
    top_k: int = 10,
    top_p: float = 1.0,
    guidance: float = 1.0,
    unprompted: Sequence[Sequence[int]] | None = None,
    known: packets.Streams | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[packets.Streams]:
    """Draws the levels above those given, one after another.

    Args:
      model: a `TokenLM`, or anything with its `embed`, `level_logits` and `trunk`.
      prompts: B lists of text ids, each ending in the id whose place the marker takes.
      codes: of each sample the lower levels, int [T, given] or one array a level; T may differ, `given` may not.
      markers: K text ids, the one of level k marks that level k is to be predicted.
      seeds: B integers.
      sizes: number of codes of each of the K levels.
      lengths: tokens of each of the K levels of every sample; as many as its first level has when left out.
      levels: how many levels a song has in the end, the given ones among them; all K when left out.
      temperature, top_k, top_p: see `tokens.sampling.sample` (Khala: top-k 10 at temperature 1).
      temperature of several numbers, final_temperature: see `tokens.sampling.temperatures`.
      guidance: scale of classifier-free guidance; 1 = none.
      unprompted: B prompts of the unconditional predictions, each with its marker place.
      known: the first tokens of every level of every sample, int [T0, K] or one array a level (continuation); they
        are kept.
      progress: called with (levels drawn, levels to draw) after every pass.
    Returns:
      B arrays int32 [T, levels] that begin with the given levels; where these have different lengths, B tuples of one
      array a level.
    Raises:
      UserError: guidance that drops nothing of a sample's prompt, more levels than there are, or none to draw.
      ValueError: lists of unequal length, an empty prompt, or nothing to draw.
    """
    check_dropped(guidance, lacking(prompts, unprompted))
    work = _lay_out(
        prompts,
        codes,
        markers=markers,
        seeds=seeds,
        sizes=sizes,
        lengths=lengths,
        temperature=temperature,
        final_temperature=final_temperature,
        guidance=guidance,
        unprompted=unprompted,
        known=known,
    )
    graphdef, weights = nnx.split(model)
    given, K = work.given, len(sizes)
    levels = K if levels is None else levels
    if not given < levels <= K:
        raise UserError(f"{levels} levels: choose from {given + 1} to {K}, {given} of them are given")
    codes_BTK = work.codes_BTK
    for level in range(given, levels):
        codes_BTK = _pass(
            graphdef,
            weights,
            codes_BTK,
            work.request,
            work.row(level),
            np.int32(level),
            np.int32(markers[level]),
            top_k=top_k,
            top_p=top_p,
            guided=guidance != 1.0,
        )
        if progress is not None:
            codes_BTK.block_until_ready()
            progress(level + 1 - given, levels - given)
    return [work.cut(b, codes_TK, levels) for b, codes_TK in enumerate(np.asarray(codes_BTK))]


def level_pass(
    model: nnx.Module,
    prompts: Sequence[Sequence[int]],
    codes: Sequence[packets.Streams],
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
    work = _lay_out(prompts, codes, markers=markers, guidance=guidance, **how)
    run = partial(_pass, top_k=top_k, top_p=top_p, guided=guidance != 1.0)
    level = work.given
    rest = (work.codes_BTK, work.request, work.row(level), np.int32(level), np.int32(markers[level]))
    return run, (*nnx.split(model), *rest)


class _Work(NamedTuple):
    """A batch of requests in arrays, of which the first `given` levels are known."""

    rows: list[Sequence[int]]
    lengths: list[tuple[int, ...]]
    given: int
    codes_BTK: Int32[np.ndarray, "B T K"]
    request: _Request

    def row(self, level: int) -> _Row:
        """The pass of a level."""
        B, _, K = self.codes_BTK.shape
        length_B = np.array([lengths[level] for lengths in self.lengths], np.int32)
        text_length_R = np.array([len(row) for row in self.rows], np.int32)
        S = bucket(int((text_length_R + np.resize(length_B, len(self.rows))).max()))
        reads_BTK = np.full((B, bucket(int(length_B.max())), K), -1, np.int32)
        for reads_TK, lengths in zip(reads_BTK, self.lengths, strict=True):
            reads_TK[: lengths[level]] = layer_pass(lengths, level).reads_SK
        return _Row(padded(self.rows, S, left=False), text_length_R, reads_BTK, length_B)

    def cut(self, b: int, codes_TK: np.ndarray, levels: int) -> packets.Streams:
        """The first levels of a sample, each at its length."""
        lengths = self.lengths[b][:levels]
        if len(set(lengths)) == 1:
            return codes_TK[: lengths[0], :levels].copy()
        return tuple(codes_T[:length].copy() for codes_T, length in zip(codes_TK.T, lengths, strict=False))


def _lay_out(
    prompts,
    codes,
    *,
    markers,
    seeds,
    sizes,
    lengths=None,
    temperature=1.0,
    final_temperature=None,
    guidance=1.0,
    unprompted=None,
    known=None,
) -> _Work:
    """Checks what `refine` was given and lays it out in arrays."""
    check_batch(prompts, codes=codes, seeds=seeds, **({} if lengths is None else {"lengths": lengths}))
    check_batch(sizes, markers=markers)
    rows, K = unconditional(prompts, unprompted, guidance), len(sizes)
    levels = [packets.levels_of(one) for one in codes]
    given = len(levels[0])
    if any(len(one) != given for one in levels) or not given < K or not all(rows):
        raise ValueError(f"refinement needs prompts that are not empty and codes of one number of levels below {K}")
    if not given and lengths is None:
        raise ValueError("refinement from nothing needs the lengths of its levels")
    lengths = [(len(one[0]),) * K for one in levels] if lengths is None else [tuple(one) for one in lengths]
    if any(len(one) != K for one in lengths):
        raise ValueError(f"refinement needs a length of each of {K} levels")
    codes_BTK = np.full((len(codes), bucket(max(map(max, lengths))), K), -1, np.int32)
    for b, one in enumerate(levels):
        for part in (one, () if known is None else packets.levels_of(known)):
            for k, codes_T in enumerate(part):
                codes_BTK[b, : len(codes_T), k] = codes_T
    request = _Request(
        seed_B=np.asarray(seeds, np.int64).astype(np.uint32),
        size_K=np.asarray(sizes, np.int32),
        temperature_K=temperatures(temperature, final_temperature, K, given),
        guidance=np.float32(guidance),
    )
    return _Work(rows, lengths, given, codes_BTK, request)


@partial(jax.jit, static_argnames=("graphdef", "top_k", "top_p", "guided"), donate_argnames="codes_BTK")
def _pass(graphdef, weights, codes_BTK, request: _Request, row: _Row, level, marker, *, top_k, top_p, guided):
    """Draws one level of every sample; `level` is traced, so all passes of one size share one program."""
    model = nnx.merge(graphdef, weights)
    B, T, _ = row.reads_BTK.shape
    R, S = row.text_RS.shape
    copies = R // B
    length_R1 = jnp.tile(row.length_B, copies)[:, None]
    text_length_R1 = row.text_length_R[:, None]
    at_RS = jnp.arange(S) - text_length_R1
    is_token_RS1 = ((at_RS >= 0) & (at_RS < length_R1))[..., None]
    read_BTK = jnp.take_along_axis(codes_BTK, jnp.maximum(row.reads_BTK, 0), axis=1)
    read_BTK = jnp.where(row.reads_BTK >= 0, read_BTK, -1)
    read_RSK = jnp.take_along_axis(jnp.tile(read_BTK, (copies, 1, 1)), jnp.clip(at_RS, 0, T - 1)[..., None], axis=1)
    reads_RSK = jnp.where(is_token_RS1, read_RSK, -1)
    begins_RS = (at_RS == -1) | (is_token_RS1[..., 0] & (level == 0))
    text_RS = jnp.where(begins_RS, marker, row.text_RS)
    x_RSD = model.trunk(model.embed(text_RS, reads_RSK), visibility=Visibility.full(), valid_BS=at_RS < length_R1)
    # Only tokens are looked at by the head, and both halves of a guided batch token by token.
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
    known_BT = jax.lax.dynamic_index_in_dim(codes_BTK, level, axis=2, keepdims=False)[:, :T]
    drawn_BT = jnp.where(known_BT >= 0, known_BT, drawn_N.reshape(B, T))
    drawn_BT = jnp.where(jnp.arange(T) < row.length_B[:, None], drawn_BT, -1)
    return everywhere(jax.lax.dynamic_update_slice(codes_BTK, drawn_BT[..., None], (0, 0, level)))
