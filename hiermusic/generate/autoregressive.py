"""Step-by-step decoding of any causal layout (flatten, delay, parallel, level-major) with a cache.

A request stands in slots `[prompt without its last id | layout positions]`, prompts padded on the left so that the
layout's position s is slot p + s of every sample; as in training rows, the layout's position `begin`, mostly its first,
carries the prompt's last id. Keys depend on the sample's seed, the position and the level only, so a sample draws the
same tokens in any batch, bucket or chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32

from hiermusic.generate.batching import (
    bucket,
    check_batch,
    check_dropped,
    everywhere,
    lacking,
    longer,
    padded,
    reaching,
    spread,
    unconditional,
)
from hiermusic.generate.plan import CHUNK, Plan, known
from hiermusic.tokens.pattern import Layout
from hiermusic.tokens.sampling import fold_keys, guide, sample, sample_keys, temperatures
from hiermusic.tokens.visibility import Visibility


@dataclass(frozen=True)
class Sample:
    """What one request became.

    Args:
      codes: int32 [T, K] where all levels have one length, else one array [T_k] a level.
      ended: the model ended the music itself, before the layout did.
    """

    codes: np.ndarray | tuple[np.ndarray, ...]
    ended: bool


class _State(NamedTuple):
    """What steps change: the cache, the tokens so far (-1 = not yet), the frames there are (fewer once EOS came)."""

    cache: object
    codes_BKT: Int[Array, "B K T"]
    length_B: Int[Array, "B"]


class _Dropped(NamedTuple):
    """How many codes of each level are left out, and which code the unconditional half reads in place of them."""

    given_BK: Int[Array, "B K"]
    null_K: Int[Array, "K"]


class _Fixed(NamedTuple):
    """What no step changes; R is B, or 2 B with the unconditional half behind."""

    start_R: Int[Array, "R"]
    begin_R: Int[Array, "R"]
    valid_RS: Bool[Array, "R S"]
    first_slot: Int[Array, ""]
    shift_R: Int[Array, "R"]
    seed_B: Int[Array, "B"]
    size_K: Int[Array, "K"]
    temperature_K: Float[Array, "K"]
    guidance: Array
    min_frames_B: Int[Array, "B"]
    dropped: _Dropped | None


class _Condition(NamedTuple):
    """The condition of every row, worked out; None where the model takes none."""

    cond_RD: Float[Array, "R D"] | None
    adapted: object


class _Static(NamedTuple):
    """What a program is compiled for."""

    eos: int | None
    top_k: int
    top_p: float
    guided: bool


class _Work(NamedTuple):
    """A batch of requests in arrays; steps from `first` on have tokens to draw."""

    plan: Plan
    codes_BKT: Int32[np.ndarray, "B K T"]
    length_B: Int32[np.ndarray, "B"]
    prompt_Rp: Int32[np.ndarray, "R p"]
    cond_RU: Float[np.ndarray, "R U"] | None
    first: int
    fixed: _Fixed
    static: _Static

    @property
    def slots(self) -> int:
        return self.fixed.valid_RS.shape[1]

    def reach(self, positions: int) -> int:
        """The length of a cache for so many positions."""
        return reaching(positions, self.slots, len(self.fixed.start_R))

    def within(self, reach: int) -> _Fixed:
        """What no step changes, as far as a cache of `reach` positions goes."""
        return self.fixed._replace(valid_RS=self.fixed.valid_RS[:, :reach])


def generate(
    model: nnx.Module,
    prompts: Sequence[Sequence[int]],
    layouts: Sequence[Layout],
    *,
    seeds: Sequence[int],
    sizes: Sequence[int],
    eos: int | None = None,
    min_frames: int | Sequence[int] = 1,
    temperature: float | Sequence[float] = 1.0,
    final_temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    guidance: float = 1.0,
    unprompted: Sequence[Sequence[int]] | None = None,
    cond: Float[np.ndarray, "B U"] | None = None,
    uncond: Float[np.ndarray, "U"] | None = None,
    given: Sequence[Sequence[np.ndarray]] | None = None,
    null: Sequence[int | None] | None = None,
    markers: Sequence[int] = (),
    places: Sequence[Int32[np.ndarray, "S"]] | None = None,
    cache_dtype: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Sample]:
    """Draws the tokens that layouts predict.

    Args:
      model: a `TokenLM`, or anything with its `unstack`, `embed`, `level_logits`, `text_logits`, `trunk.init_cache`
        and `trunk.extend` (with a condition also `condition` and `trunk.adapt`); one that is unstacked already saves a
        copy of its weights.
      prompts: B lists of text ids; the last id of each is where the first token is predicted. May be empty.
      layouts: B causal layouts with one number of levels; their lengths are the most that is generated.
      seeds: B integers.
      sizes: number of codes of each level.
      eos: text id that ends the music, legal in place of a level-0 token; None = every layout is filled.
      min_frames: level-0 tokens before which EOS is not legal: one number, or B of them.
      temperature, top_k, top_p: see `tokens.sampling.sample`.
      temperature of several numbers, final_temperature: see `tokens.sampling.temperatures`.
      guidance: scale of classifier-free guidance; 1 = none.
      unprompted: B prompts of the unconditional predictions; the same prompts where `uncond` or `null` is given.
      cond: condition vectors, for a model that takes them.
      uncond: that of the unconditional predictions; the sample's own where only `unprompted` is given.
      given: B times K code arrays that are known (continuation); they are kept as the first tokens of each level.
      null: of each level the code that the unconditional predictions read in place of what is given, one that the model
        has learned to read so, or -1 for none; None of a level, or of all, of which they read what is given.
      markers: the id of each level that stands where the layouts have a mark.
      places: where the positions of each layout stand (`Pattern.places`), for a model that is told; by index when left
        out.
      cache_dtype: of cached keys and values; the model's compute type by default.
      progress: called with (positions done, positions at most) after every chunk of steps.
    Returns:
      B samples, each cut at its end.
    Raises:
      UserError: guidance that drops nothing of a sample: no prompt, condition or prefix; a condition of another width
        than the model's.
      ValueError: lists of unequal length, a layout that is not causal, EOS in a layout that cannot stop early.
    """
    vectors = cond is not None and uncond is not None
    check_dropped(
        guidance,
        lacking(prompts, unprompted),
        lacking(cond, np.broadcast_to(uncond, np.shape(cond))) if vectors else None,
        null and given and [_left_out(codes, null) for codes in given],
    )
    work = _lay_out(
        prompts,
        layouts,
        seeds=seeds,
        sizes=sizes,
        eos=eos,
        min_frames=min_frames,
        temperature=temperature,
        final_temperature=final_temperature,
        top_k=top_k,
        top_p=top_p,
        guidance=guidance,
        unprompted=unprompted,
        cond=cond,
        uncond=uncond,
        given=given,
        null=null,
        markers=markers,
        places=places,
    )
    graphdef, weights = nnx.split(model.unstack())
    prompt_Rp, first = work.prompt_Rp, work.first
    p, last = prompt_Rp.shape[1], max(layout.positions for layout in layouts)
    reach = work.reach(p + first + CHUNK)
    state, fixed = _begin(model, work, cache_dtype, reach), work.within(reach)
    condition = _condition(graphdef, weights, work.cond_RU)
    if p + first:
        heard = (prompt_Rp, work.plan.marks_BS[:, :first], work.plan.front(p, first), work.plan.reads_BSK[:, :first])
        state = _prefill(graphdef, weights, state, fixed, condition, *heard)

    for s in range(first, last, CHUNK):
        if p + s + CHUNK > reach:
            reach = work.reach(p + s + CHUNK)
            state, fixed = state._replace(cache=longer(state.cache, reach)), work.within(reach)
        state = _decode(graphdef, weights, state, fixed, condition, work.plan.steps(s), static=work.static)
        if progress is not None:
            state.length_B.block_until_ready()
            progress(min(s + CHUNK, last), last)
        if eos is not None and not work.plan.due(s + CHUNK, np.asarray(state.length_B)):
            break
    return _samples(layouts, np.asarray(state.codes_BKT), np.asarray(state.length_B))


def chunk(
    model: nnx.Module,
    prompts: Sequence[Sequence[int]],
    layouts: Sequence[Layout],
    *,
    cache_dtype: str | None = None,
    **how,
) -> tuple[Callable, tuple]:
    """The program that `generate` runs for the last `CHUNK` steps, to be lowered: a jitted function and its arguments.

    Args:
      model: unstacked, may be abstract (`nnx.eval_shape`); then so are the arguments (`jax.ShapeDtypeStruct`).
      prompts, layouts, cache_dtype, how: as in `generate`.
    """
    work = _lay_out(prompts, layouts, **how)
    graphdef, weights = nnx.split(model)
    state = jax.eval_shape(lambda: _begin(model, work, cache_dtype, work.slots))
    condition = jax.eval_shape(lambda weights: _condition(graphdef, weights, work.cond_RU), weights)
    return partial(_decode, static=work.static), (graphdef, weights, state, work.fixed, condition, work.plan.steps(0))


def _lay_out(
    prompts,
    layouts,
    *,
    seeds,
    sizes,
    eos=None,
    min_frames=1,
    temperature=1.0,
    final_temperature=None,
    top_k=0,
    top_p=1.0,
    guidance=1.0,
    unprompted=None,
    cond=None,
    uncond=None,
    given=None,
    null=None,
    markers=(),
    places=None,
) -> _Work:
    """Checks what `generate` was given and lays it out in arrays."""
    optional = {"given": given, "cond": cond, "places": places}
    check_batch(prompts, layouts=layouts, seeds=seeds, **{k: v for k, v in optional.items() if v is not None})
    for layout in layouts:
        _check_layout(layout, len(sizes), eos is not None)
    plan = Plan.of(layouts, markers, places)
    codes_BKT = known(layouts, given)
    told_alike = unprompted is None and (uncond is not None or null is not None)
    rows = unconditional(prompts, prompts if told_alike else unprompted, guidance)
    heads = [row[:-1] for row in rows]
    p = bucket(max(len(head) for head in heads))
    slots = bucket(p + plan.reads_BSK.shape[1])
    pad_R = np.array([p - len(head) for head in heads])
    fixed = _Fixed(
        start_R=np.array([row[-1] if len(row) else -1 for row in rows], np.int32),
        begin_R=np.resize([layout.begin for layout in layouts], len(rows)).astype(np.int32),
        valid_RS=np.arange(slots) >= pad_R[:, None],
        first_slot=np.int32(p),
        shift_R=-pad_R.astype(np.int32),
        seed_B=np.asarray(seeds, np.int64).astype(np.uint32),
        size_K=np.asarray(sizes, np.int32),
        temperature_K=temperatures(temperature, final_temperature, len(sizes), layouts[0].given),
        guidance=np.float32(guidance),
        min_frames_B=np.broadcast_to(np.asarray(min_frames, np.int32), len(layouts)),
        dropped=None if null is None or guidance == 1.0 else _dropped(codes_BKT, null),
    )
    return _Work(
        plan,
        codes_BKT,
        length_B=np.array([max(layout.lengths) for layout in layouts], np.int32),
        prompt_Rp=padded(heads, p, left=True),
        cond_RU=_conditions(cond, uncond, len(rows)),
        first=plan.first_unknown(codes_BKT) // CHUNK * CHUNK,
        fixed=fixed,
        static=_Static(eos, top_k, top_p, guidance != 1.0),
    )


def _begin(model: nnx.Module, work: _Work, cache_dtype: str | None, reach: int) -> _State:
    """The state before the first step, with room for `reach` positions."""
    empty = partial(model.trunk.init_cache, len(work.fixed.start_R), reach, cache_dtype)
    if jax.sharding.get_abstract_mesh().empty:
        return _State(empty(), jnp.asarray(work.codes_BKT), jnp.asarray(work.length_B))

    @jax.jit  # so that no device ever holds all of the cache
    def begin(codes_BKT, length_B):
        return _State(spread(empty()), everywhere(codes_BKT), everywhere(length_B))

    return begin(work.codes_BKT, work.length_B)


def _conditions(cond, uncond, rows: int) -> Float[np.ndarray, "R U"] | None:
    """The condition of every row, the unconditional half behind."""
    if cond is None:
        return None
    cond_BU = np.asarray(cond, np.float32)
    other_BU = cond_BU if uncond is None else np.broadcast_to(np.asarray(uncond, np.float32), cond_BU.shape)
    return np.concatenate([cond_BU, other_BU])[:rows]


def _check_layout(layout: Layout, levels: int, may_end: bool) -> None:
    if layout.begin is None or layout.visibility != Visibility.causal() or len(layout.lengths) != levels:
        raise ValueError(f"step-by-step decoding needs causal layouts of {levels} levels")
    if may_end and layout.end is None:
        raise ValueError("EOS can only end a layout that goes by time, its levels of one length: pass eos=None")


def _left_out(codes: Sequence[np.ndarray], null: Sequence[int | None]) -> bool:
    """Whether the unconditional predictions of a sample lack anything that is given."""
    return any(len(codes_T) and code is not None for codes_T, code in zip(codes, null, strict=False))


def _dropped(codes_BKT: Int32[np.ndarray, "B K T"], null: Sequence[int | None]) -> _Dropped:
    is_kept_K = np.array([code is None for code in null])
    given_BK = np.where(is_kept_K, 0, (codes_BKT >= 0).sum(axis=2))
    return _Dropped(given_BK.astype(np.int32), np.array([-1 if code is None else code for code in null], np.int32))


def _samples(layouts: Sequence[Layout], codes_BKT: np.ndarray, length_B: np.ndarray) -> list[Sample]:
    samples = []
    for layout, codes_KT, length in zip(layouts, codes_BKT, length_B, strict=True):
        if len(set(layout.lengths)) == 1:
            codes = codes_KT[:, :length].T.copy()
        else:
            codes = tuple(codes_T[:stop].copy() for codes_T, stop in zip(codes_KT, layout.lengths, strict=True))
        samples.append(Sample(codes, bool(length < max(layout.lengths))))
    return samples


def _read(codes_BKT: Int[Array, "B K T"], reads_BsK: Int[Array, "B s K"], fixed: _Fixed) -> Int[Array, "R s K"]:
    """The codes that positions read, for both halves of a guided batch."""
    index_BKs = reads_BsK.swapaxes(1, 2)
    codes_BKs = jnp.where(index_BKs >= 0, jnp.take_along_axis(codes_BKT, jnp.maximum(index_BKs, 0), axis=2), -1)
    codes_BsK = codes_BKs.swapaxes(1, 2)
    if fixed.dropped is None:
        return jnp.tile(codes_BsK, (len(fixed.start_R) // len(codes_BKT), 1, 1))
    is_given_BsK = (reads_BsK >= 0) & (reads_BsK < fixed.dropped.given_BK[:, None])
    return jnp.concatenate([codes_BsK, jnp.where(is_given_BsK, fixed.dropped.null_K, codes_BsK)])


@partial(jax.jit, static_argnames="graphdef")
def _condition(graphdef, weights, cond_RU) -> _Condition:
    """What no step needs to work out again: the share of the condition in embeddings and in adaptive norms."""
    if cond_RU is None:
        return _Condition(None, None)
    model = nnx.merge(graphdef, weights)
    cond_RD = model.condition(cond_RU)
    return _Condition(cond_RD, model.trunk.adapt(cond_RD))


@partial(jax.jit, static_argnames="graphdef", donate_argnames="state")
def _prefill(
    graphdef, weights, state: _State, fixed: _Fixed, condition: _Condition, text_Rp, marks_Bs, places_BS, reads_BsK
) -> _State:
    """Prompts and the positions whose tokens are all given, at once."""
    model, state = nnx.merge(graphdef, weights), state._replace(cache=spread(state.cache))
    R, p = text_Rp.shape
    s, K = reads_BsK.shape[1:]
    marks_Rs = jnp.tile(marks_Bs, (R // len(marks_Bs), 1))
    first_Rs = jnp.where(jnp.arange(s) == fixed.begin_R[:, None], fixed.start_R[:, None], marks_Rs)
    reads_RSK = jnp.concatenate([jnp.full((R, p, K), -1, jnp.int32), _read(state.codes_BKT, reads_BsK, fixed)], axis=1)
    x_RSD = model.embed(jnp.concatenate([text_Rp, first_Rs], axis=1), reads_RSK, cond_BD=condition.cond_RD)
    places_1S = jnp.arange(p + s)[None] if places_BS is None else jnp.tile(places_BS, (R // len(places_BS), 1))
    positions_RS = jnp.maximum(places_1S + fixed.shift_R[:, None], 0)
    _, cache = model.trunk.extend(
        x_RSD,
        state.cache,
        0,
        positions_Bs=positions_RS,
        visibility=Visibility.causal(),
        valid_BS=fixed.valid_RS,
        adapted=condition.adapted,
    )
    return state._replace(cache=cache)


@partial(jax.jit, static_argnames=("graphdef", "static"), donate_argnames="state")
def _decode(
    graphdef, weights, state: _State, fixed: _Fixed, condition: _Condition, steps, *, static: _Static
) -> _State:
    """A chunk of steps, laid out by `Plan.steps`."""
    model, state = nnx.merge(graphdef, weights), state._replace(cache=spread(state.cache))
    K = fixed.size_K.shape[0]

    def step(state: _State, now):
        s, reads_BK, predicts_BK, marks_B, places_B, level = now
        marks_R = jnp.tile(marks_B, len(fixed.start_R) // len(marks_B))
        text_R1 = jnp.where(s == fixed.begin_R, fixed.start_R, marks_R)[:, None]
        x_R1D = model.embed(text_R1, _read(state.codes_BKT, reads_BK[:, None], fixed), cond_BD=condition.cond_RD)
        slot = fixed.first_slot + s
        at_R = fixed.first_slot + fixed.shift_R + (s if places_B is None else jnp.resize(places_B, fixed.start_R.shape))
        x_R1D, cache = model.trunk.extend(
            x_R1D,
            state.cache,
            slot,
            positions_Bs=at_R[:, None],
            visibility=Visibility.causal(),
            valid_BS=fixed.valid_RS,
            adapted=condition.adapted,
        )
        state = state._replace(cache=cache)
        keys_B = fold_keys(sample_keys(fixed.seed_B), s)
        for k in range(K) if level is None else (level,):
            state = _draw(model, x_R1D[:, 0], state, fixed, keys_B, predicts_BK[:, k], k, static)
        return state, None

    state = jax.lax.scan(step, state, steps)[0]
    return state._replace(codes_BKT=everywhere(state.codes_BKT), length_B=everywhere(state.length_B))


def _draw(model, x_RD, state: _State, fixed: _Fixed, keys_B, t_B, level, static: _Static) -> _State:
    """Draws, or takes from what is given, the tokens at frames t_B of one level; -1 = none is due."""
    B, _, T = state.codes_BKT.shape
    logits_RV = model.level_logits(x_RD, level)
    V = logits_RV.shape[-1]
    allowed_BV = jnp.broadcast_to(jnp.arange(V) < fixed.size_K[level], (B, V))
    if static.eos is not None:
        eos_R1 = model.text_logits(x_RD, jnp.array([static.eos]))
        logits_RV = jnp.concatenate([logits_RV, eos_R1], axis=-1)
        may_end_B = (level == 0) & (t_B >= fixed.min_frames_B)
        allowed_BV = jnp.concatenate([allowed_BV, may_end_B[:, None]], axis=-1)
    if static.guided:
        logits_RV = guide(logits_RV[:B], logits_RV[B:], fixed.guidance)
    drawn_B = sample(
        logits_RV,
        fold_keys(keys_B, level),
        temperature=fixed.temperature_K[level],
        top_k=static.top_k,
        top_p=static.top_p,
        allowed=allowed_BV,
    )
    given_B = state.codes_BKT[jnp.arange(B), level, jnp.maximum(t_B, 0)]
    token_B = jnp.where(given_B >= 0, given_B, drawn_B)
    due_B = (t_B >= 0) & (t_B < state.length_B)
    ends_B = due_B & (token_B == V)
    where_B = jnp.where(due_B & ~ends_B, t_B, T)  # T lies outside and is dropped
    codes_BKT = state.codes_BKT.at[jnp.arange(B), level, where_B].set(token_B, mode="drop")
    return state._replace(codes_BKT=codes_BKT, length_B=jnp.where(ends_B, t_B, state.length_B))
