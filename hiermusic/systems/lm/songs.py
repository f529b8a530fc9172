"""The codes of songs from a token model: prompts, its pattern's engine, and the program that is compiled for it."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hiermusic.errors import UserError
from hiermusic.generate import autoregressive, layerwise, nextscale
from hiermusic.generate.autoregressive import Sample
from hiermusic.generate.batching import bucket
from hiermusic.systems import programs, songs
from hiermusic.systems.lm import models
from hiermusic.systems.lm.models import hierarchy, make_model, pattern_of, token_lm_config, tokenizer
from hiermusic.systems.requests import Request
from hiermusic.tokens import packets, sequence
from hiermusic.tokens.pattern import Pattern
from hiermusic.tokens.prompt import Prompt, compose
from hiermusic.tokens.vocabulary import TextTokenizer

_OVERLAP = 3  # of the context, the share that a window goes on from: ten seconds of thirty
_APART = 1_000_003  # between the seeds of a song's windows, which would otherwise draw alike


def ready(config: ConfigDict, model: nnx.Module) -> nnx.Module:
    """A token model as `draw` takes it; let go of what it was made of, or weights are in memory twice."""
    model = model.compact()
    return model if pattern_of(config).isolated else model.unstack()


def check_guidance(requests: Sequence[Request], config: ConfigDict, guidance: float) -> None:
    """UserError for a request whose prompt, for a token model of this configuration, holds nothing to be guided by."""
    words = tokenizer(config.model)
    if models.null_of(config) is not None:  # every song has a prefix, which can be left out
        return
    for request in requests if guidance != 1.0 else ():
        if prompt_of(config, words, request) == prompt_of(config, words, request, bare=True):
            raise UserError(
                f"{request.name}: guidance {guidance:g} of the {config.stage} has nothing to drop: the prompt holds no "
                "words that it reads; give some, or set guidance to 1"
            )


def check_levels(config: ConfigDict, levels: int) -> None:
    """UserError where a token model of this configuration cannot make the first `levels` levels alone; 0 for all."""
    order = pattern_of(config)
    if levels and not order.isolated and order.name != "level_major":
        raise UserError(f"levels={levels}: a {order.name} model makes all of its levels together")
    if levels and not order.given < levels <= len(order.slots):
        raise UserError(f"levels={levels}: give {order.given + 1} to {len(order.slots)}, of which this model makes any")


def need(requests: Sequence[Request], config: ConfigDict, guidance: float) -> songs.Need:
    """What `draw` takes of memory for songs as long as the longest of these."""
    order, trunk, make = pattern_of(config), token_lm_config(config).transformer, make_model(config)
    rate = hierarchy(config).rates[0] / order.slots[0]
    longest = max(_count(request, rate) for request in requests)
    if order.stepwise:
        longest = max(min(longest, order.most(config.model.length)), 1)
    elif not order.isolated:
        longest = models.window(config)
    positions = bucket(models.prompt_room(config) + order.positions(longest))
    row = trunk.pass_bytes(positions) if order.isolated else trunk.cache_bytes(positions)
    return songs.Need.of(lambda: make(nnx.Rngs(0)).compact(), row if guidance == 1.0 else 2 * row)


def draw(
    requests: Sequence[Request],
    config: ConfigDict,
    model: nnx.Module,
    sampling: dict,
    *,
    known: packets.Streams | None = None,
    given: Sequence[packets.Streams] | None = None,
    begun: Sequence[Sequence[np.ndarray]] | None = None,
    mesh: Mesh | None = None,
    name: str = "tokens",
) -> list[Sample]:
    """The codes of songs, by the engine of the model's pattern.

    Args:
      requests: what to make, at least one.
      config: of the token model.
      model: its weights, from `ready`.
      sampling: temperature, top_k, top_p, guidance, and what the engine takes besides; `min_share` of a song's length
        before which it may not end; `levels`, how many are made of those that go one after the other, 0 for all.
      known: the first tokens of each level of every song (continuation).
      given: of each song the levels that the model does not predict: those of other streams, then `model.given` of its
        own.
      begun: in place of `known`, of each song its own first tokens of each level that the model predicts.
      mesh: that the model is spread over; None for one device.
      name: what the progress bar says.
    """
    tell_cut(requests, config, given)
    heard = None if known is None else [packets.levels_of(known)[: len(hierarchy(config))]] * len(requests)
    if begun is not None:
        front = [np.zeros(0, np.int32)] * pattern_of(config).given
        heard = [[*front, *levels] for levels in begun]
    return _draw(requests, config, model, sampling, heard=heard, given=given, mesh=mesh, name=name)


def draw_long(
    requests: Sequence[Request],
    config: ConfigDict,
    model: nnx.Module,
    sampling: dict,
    *,
    known: packets.Streams | None = None,
    mesh: Mesh | None = None,
    name: str = "tokens",
) -> list[Sample]:
    """As `draw`, of songs longer than the model's context too: these are made in windows that fill it.

    Each window goes on from the last third of what there is, or from more where less is left to make, as if that were
    all of the song; its prompt asks for as many seconds as it lasts.

    Args:
      requests, config, model, sampling, known, mesh, name: as for `draw`; of a level-major model without given levels.
    """
    tell_cut(requests, config)
    order, tokens, words = pattern_of(config), hierarchy(config), tokenizer(config.model)
    rate, empty = tokens.rates[0] / order.slots[0], [np.zeros(0, np.int32)] * len(tokens)
    counts, most = [_count(request, rate) for request in requests], []
    for request in requests:
        prompt = prompt_of(config, words, request)
        _check_room(config, request, prompt, 1)
        most.append(_most(config, prompt))
    songs_KT = [empty if known is None else packets.levels_of(known)[: len(tokens)] for _ in requests]
    _check_begun(songs_KT, counts, order, rate)
    windows = 0
    while missing := [b for b, count in enumerate(counts) if _packets(songs_KT[b], order) < count]:
        keep, parts = [], []
        for b in missing:
            left = counts[b] - (there := _packets(songs_KT[b], order))
            keep.append(min(there, max(most[b] // _OVERLAP, most[b] - left)))
            prompt = replace(requests[b].prompt, seconds=float(min(keep[-1] + left, most[b]) / rate))
            parts.append(replace(requests[b], prompt=prompt, seed=(requests[b].seed + windows * _APART) % 2**32))
        before = [
            [codes_T[len(codes_T) - n * slot :] for codes_T, slot in zip(songs_KT[b], order.slots, strict=False)]
            for b, n in zip(missing, keep, strict=True)
        ]
        windows += 1
        shown = f"{name}, window {windows}" if max(counts) > min(most) else name
        start = before if any(keep) else None
        samples = _draw(parts, config, model, sampling, heard=start, mesh=mesh, name=shown)
        for b, n, sample in zip(missing, keep, samples, strict=True):
            new = zip(songs_KT[b], packets.levels_of(sample.codes), order.slots, strict=False)
            songs_KT[b] = [np.concatenate([codes_T, drawn_T[n * slot :]]) for codes_T, drawn_T, slot in new]
    return [Sample(tuple(levels), False) for levels in songs_KT]


def tell_cut(requests: Sequence[Request], config: ConfigDict, given: Sequence[packets.Streams] | None = None) -> None:
    """Says which prompts are longer than a model reads, where it is the one that begins."""
    if (words := tokenizer(config.model)) and given is None:
        songs.tell_cut(requests, words, models.prompting(config.model))


def _draw(
    requests: Sequence[Request],
    config: ConfigDict,
    model: nnx.Module,
    sampling: dict,
    *,
    heard: Sequence[Sequence[np.ndarray]] | None,
    given: Sequence[packets.Streams] | None = None,
    mesh: Mesh | None,
    name: str,
) -> list[Sample]:
    """`draw`, the known tokens of each song its own."""
    order, tokens, words = pattern_of(config), hierarchy(config), tokenizer(config.model)
    rate, sampling = tokens.rates[0] / order.slots[0], dict(sampling)
    prompts, unprompted = ([prompt_of(config, words, request, bare) for request in requests] for bare in (False, True))
    counts = [_count(request, rate) for request in requests]
    if given:
        counts = [_packets(packets.levels_of(codes), order) for codes in given]
    if not (order.isolated and given):  # what is given was made in a context of its own
        for request, prompt, count in zip(requests, prompts, counts, strict=True):
            _check_room(config, request, prompt, count)
    begun = _check_begun(heard or [[np.zeros(0)]] * len(requests), counts, order, rate)
    share, levels = sampling.pop("min_share", 0.0), sampling.pop("levels", 0) or len(tokens)
    seeds, sizes = [request.seed for request in requests], list(tokens.sizes)
    lengths = [order.lengths(count) for count in counts]
    both = {"seeds": seeds, "sizes": sizes, "unprompted": unprompted if words else None}
    with songs.progress(name) as show, jax.set_mesh(mesh) if mesh else nullcontext():
        if order.isolated:
            lower = given or [np.zeros((count, 0), np.int32) for count in counts]
            how = {
                "lengths": lengths,
                "markers": models.markers(config),
                "known": heard and heard[0],
                "levels": levels,
                "progress": show,
            }
            made = layerwise.refine(model, prompts, lower, **how, **both, **sampling)
            return [Sample(codes, False) for codes in made]
        front = [_front(order, b, heard, given) for b in range(len(requests))]
        front = front if any(front) else None
        if not order.stepwise:
            slots = order.lengths(models.window(config))
            how = {"lengths": lengths, "given": order.given, "known": front, "progress": show}
            made = nextscale.draw(model, prompts, slots, **how, **both, **sampling)
            return [Sample(codes, False) for codes in made]
        layouts = [order.layout(count) for count in counts]
        if levels != len(tokens):
            layouts = [layout.first(levels) for layout in layouts]
        places = [models.places(config, order, layout) for layout in layouts]
        made = autoregressive.generate(
            model,
            prompts,
            layouts,
            eos=models.end_of(config),
            min_frames=[
                order.slots[0] * max(there + 1, math.ceil(share * count))
                for there, count in zip(begun, counts, strict=True)
            ],
            given=front,
            null=models.nulls(config),
            places=None if places[0] is None else places,
            markers=models.markers(config) if order.separate else (),
            cache_dtype=jnp.dtype(config.model.dtype),
            progress=show,
            **both,
            **sampling,
        )
    if levels == len(tokens):
        return made
    return [replace(sample, codes=tuple(packets.levels_of(sample.codes)[:levels])) for sample in made]


def _count(request: Request, rate: Fraction) -> int:
    """Packets of a song."""
    return max(round(request.prompt.seconds * rate), 1)


def _packets(levels: Sequence[np.ndarray], order: Pattern) -> int | Fraction:
    """How many packets there are of a song."""
    return order.packets([len(codes_T) for codes_T in levels])


def _check_begun(
    heard: Sequence[Sequence[np.ndarray]], counts: Sequence[int], order: Pattern, rate: Fraction
) -> list[int]:
    """The packets that are known of each song, fewer than it will have."""
    begun = [_packets(levels, order) for levels in heard]
    for there, count in zip(begun, counts, strict=True):
        if there >= count:
            raise UserError(f"the audio lasts {float(there / rate):.1f} s: ask for more --seconds than that")
    return begun


def _front(
    order: Pattern, b: int, heard: Sequence[Sequence[np.ndarray]] | None, given: Sequence[packets.Streams] | None
) -> list[np.ndarray]:
    """What is known of a song: its given levels, and the first tokens of the others."""
    lower = packets.levels_of(given[b]) if given else []
    rest = heard[b][order.given :] if heard else []
    return [*lower, *rest]


def prompt_of(config: ConfigDict, words: TextTokenizer | None, request: Request, bare: bool = False) -> list[int]:
    """The ids of a request, as training rows have them; `bare` leaves all out but its length."""
    model, order = config.model, pattern_of(config)
    asked = Prompt(seconds=request.prompt.seconds) if bare else request.prompt
    ids = [sequence.START]
    if words:
        ids = compose(asked, words, **models.prompting(model))
    return ids if order.stepwise or order.isolated else models.fill(config, ids)


def _most(config: ConfigDict, prompt: Sequence[int]) -> int:
    """How many packets fit behind a prompt."""
    order, ends = pattern_of(config), models.end_of(config) is not None
    return order.most(sequence.room(prompt, config.model.length, stepwise=order.stepwise, end=ends))


def _check_room(config: ConfigDict, request: Request, prompt: Sequence[int], count: int) -> None:
    order, most = pattern_of(config), _most(config, prompt)
    if count > most:
        rate = hierarchy(config).rates[0] / order.slots[0]
        raise UserError(
            f"{request.name}: {request.prompt.seconds:g} s do not fit this {config.stage}, whose context of "
            f"{config.model.length} positions holds {float(most / rate):.1f} s behind this prompt"
        )


def program(config: ConfigDict, rows: int) -> programs.Generation:
    """The program that decoding spends its time in, in shapes: a chunk of steps, one pass, or all of a window.

    Args:
      config: of a token model; songs fill its context.
      rows: songs made at once.
    """
    model, order, tokens, make = config.model, pattern_of(config), hierarchy(config), make_model(config)
    trunk = token_lm_config(config).transformer
    rate = float(tokens.rates[0] / order.slots[0])
    room = 1 if model.tokenizer == "none" else model.text_limit
    prompts, count = [[0] * room] * rows, order.most(model.length - room)
    if count < 1:
        raise UserError(f"model.text_limit={room} leaves no room for music in model.length={model.length}")
    sampling = {name: value for name, value in config.sampling.items() if name != "levels"}
    options = {"seeds": range(rows), "sizes": list(tokens.sizes), "unprompted": prompts, **sampling}
    lengths = order.lengths(count)
    open_slots = order.slots[order.given :]
    if order.isolated:
        token_lm = nnx.eval_shape(lambda: make(nnx.Rngs(0)).compact())
        lower = [[np.zeros(length, np.int32) for length in lengths[: order.given]]] * rows
        markers, passes = [0] * len(tokens), len(open_slots)
        run, arguments = layerwise.level_pass(
            token_lm, prompts, lower, markers=markers, lengths=[lengths] * rows, **options
        )
        made = (rows * count * open_slots[0], rows * count / rate / passes)
        return programs.Generation("generate: one pass", run.func, arguments, run.keywords, model.length, *made, trunk)
    token_lm = nnx.eval_shape(lambda: make(nnx.Rngs(0)).compact().unstack())
    if not order.stepwise:
        run, arguments = nextscale.draw_program(token_lm, prompts, lengths, given=order.given, **options)
        made = (rows * count * sum(open_slots), rows * count / rate)
        return programs.Generation("generate: a window", run.func, arguments, run.keywords, model.length, *made, trunk)
    layouts = [order.layout(count)] * rows
    marked = {"markers": models.markers(config)} if order.separate else {}
    if (places := models.places(config, order, layouts[0])) is not None:
        marked["places"] = [places] * rows
    marked["null"] = models.nulls(config)
    run, arguments = autoregressive.chunk(
        token_lm, prompts, layouts, eos=token_lm.config.end, cache_dtype=model.dtype, **marked, **options
    )
    steps = autoregressive.CHUNK
    share = steps / layouts[0].positions
    made = (rows * share * count * sum(open_slots), rows * share * count / rate)
    return programs.Generation(f"generate: {steps} steps", run.func, arguments, run.keywords, steps, *made, trunk)
