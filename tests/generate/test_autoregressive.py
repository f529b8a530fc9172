"""Cached decoding against the plainest loop there is, in NumPy: the whole row anew for every position."""

import dataclasses
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.generate import autoregressive, batching, layerwise, nextscale
from hiermusic.generate.autoregressive import CHUNK, generate
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.tokens import pattern

from .conftest import TRUNK

EOS, SIZES, MARKERS = 1, (12, 12, 12), (22, 23, 24)
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21]]
SEEDS = [3, 1, 4]
CUT = {"top_k": 4, "top_p": 0.8}
SAME = {"sizes": SIZES, **CUT}  # few different settings, so that few programs are compiled
LAYOUTS = {
    "flatten": [pattern.flatten((n, n, n)) for n in (4, 7, 5)],
    "flatten unequal": [pattern.flatten((n, 2 * n, 4 * n)) for n in (1, 3, 2)],
    "delay": [pattern.delay((n, n, n)) for n in (4, 9, 6)],
    "parallel": [pattern.parallel((n, n, n)) for n in (4, 9, 6)],
    "level major with marks": [pattern.level_major((n, 2 * n, 3 * n), separate=True) for n in (1, 3, 2)],
    "level major": [pattern.level_major((n, 2 * n, 3 * n)) for n in (1, 3, 2)],
}


@pytest.fixture(scope="module")
def plain(reference, model):
    """One sample in NumPy: no cache, the whole row anew for every position, layouts filled to the end."""
    config, w = model.config, reference.weights_of(model)

    def decode(prompt, layout, seed, given=(), *, unprompted=None, guidance=1.0, places=None, config=config, **options):
        codes = [np.full(n, -1) for n in layout.lengths]
        for codes_T, known_T in zip(codes, given, strict=False):
            codes_T[: len(known_T)] = known_T
        for s in range(layout.positions):
            drawn = [(k, t) for k, t in enumerate(layout.predicts_SK[s]) if t >= 0 and codes[k][t] < 0]
            if not drawn:
                continue
            reads_SK, hidden = layout.build(codes)[0][: s + 1], []
            for words in [prompt] if unprompted is None else [prompt, unprompted]:
                marks_S = layout.marked(MARKERS)
                text_S = [*words[:-1], *[words[-1] if at == layout.begin else marks_S[at] for at in range(s + 1)]]
                before_SK = np.full((len(words) - 1, len(codes)), -1)
                rows = np.concatenate([before_SK, reads_SK])
                how = {"sees_SS": np.tri(len(text_S), dtype=bool)}
                if places is not None:
                    how["at_S"] = [*range(len(words) - 1), *len(words) - 1 + places[: s + 1]]
                hidden.append(reference.row(config, w, text_S, rows, **how)[-1])
            for k, t in drawn:
                logits = [reference.code_logits(config, w, x, k) for x in hidden]
                if len(logits) == 2:
                    logits[0] = logits[1] + guidance * (logits[0] - logits[1])
                codes[k][t] = reference.draw(logits[0], reference.key_of(seed, s, k), **options)
        return codes

    return decode


def by_level(sample):
    return list(sample.codes.T) if isinstance(sample.codes, np.ndarray) else list(sample.codes)


def same(a, b):
    for one, other in zip(by_level(a), by_level(b), strict=True):
        np.testing.assert_array_equal(one, other)
    assert a.ended == b.ended


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_batch_of_unequal_requests_equals_plain_decoding_of_each(model, plain, name):
    samples = generate(model, PROMPTS, LAYOUTS[name], seeds=SEEDS, temperature=1.5, markers=MARKERS, **SAME)
    for made, prompt, layout, seed in zip(samples, PROMPTS, LAYOUTS[name], SEEDS, strict=True):
        assert not made.ended
        for drawn, expected in zip(by_level(made), plain(prompt, layout, seed, temperature=1.5, **CUT), strict=True):
            np.testing.assert_array_equal(drawn, expected)


def test_given_levels_are_read_before_the_prompts_last_id(model, plain):
    """In steps, and, where so much is known of what follows that the first steps need not be made, at once."""
    for frames, heard in ((6, 0), (68, 66)):
        layouts = [pattern.prefixed(pattern.flatten((n,)), pattern.delay((frames, frames))) for n in (4, 7, 5)]
        given = [[np.arange(layout.lengths[0]) % 12, *[np.arange(heard) % 7] * 2] for layout in layouts]
        samples = generate(model, PROMPTS, layouts, given=given, seeds=SEEDS, temperature=1.5, **SAME)
        for made, *request in zip(samples, PROMPTS, layouts, SEEDS, given, strict=True):
            for drawn, expected in zip(by_level(made), plain(*request, temperature=1.5, **CUT), strict=True):
                np.testing.assert_array_equal(drawn, expected)


def test_levels_that_are_given_and_heard_are_read_at_their_places(model, plain):
    """The first level is given, of the second so much is known that the first steps are made at once, marks and all."""
    layouts = [pattern.level_major((n, 2 * n, m), separate=True, given=1) for n, m in ((24, 6), (30, 8), (26, 7))]
    given = [[np.arange(layout.lengths[0]) % 12, np.arange(42) % 7, np.arange(3)] for layout in layouts]
    samples = generate(
        model, PROMPTS, layouts, given=given, seeds=SEEDS, temperature=1.5, markers=MARKERS, guidance=2.0,
        unprompted=[[2, 3]] * 3, **SAME,
    )  # fmt: skip
    for made, *request in zip(samples, PROMPTS, layouts, SEEDS, given, strict=True):
        expected = plain(*request, temperature=1.5, guidance=2.0, unprompted=[2, 3], **CUT)
        for drawn_T, expected_T in zip(by_level(made), expected, strict=True):
            np.testing.assert_array_equal(drawn_T, expected_T)


def test_the_first_levels_alone_are_those_of_all(model):
    """And of the others there is nothing."""
    layouts = [pattern.level_major((n, 2 * n, 3 * n), separate=True) for n in (1, 3, 2)]
    whole = generate(model, PROMPTS, layouts, seeds=SEEDS, markers=MARKERS, **SAME)
    part = generate(model, PROMPTS, [one.first(2) for one in layouts], seeds=SEEDS, markers=MARKERS, **SAME)
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(np.concatenate(one.codes[:2]), np.concatenate(other.codes[:2]))
        assert (other.codes[2] == -1).all() and (one.codes[2] >= 0).all()


def test_none_of_the_cuts_is_idle(plain):
    """Leaving one out draws other tokens, so that decoding which agrees with all of them makes all of them."""
    how, request = {"temperature": 1.5, **CUT}, (PROMPTS[0], LAYOUTS["flatten"][0], SEEDS[0])
    for name in how:
        less = {key: value for key, value in how.items() if key != name}
        assert not np.array_equal(plain(*request, **how), plain(*request, **less)), name


def test_greedy_and_guided_equal_plain_decoding(model, plain):
    greedy = generate(model, PROMPTS, LAYOUTS["flatten"], seeds=SEEDS, temperature=0.0, **SAME)
    options = {"temperature": 0.0, "guidance": 2.5, "unprompted": [2, 3]}
    each = options | {"unprompted": [[2, 3]] * len(PROMPTS)}
    guided = generate(model, PROMPTS, LAYOUTS["flatten"], seeds=SEEDS, **SAME, **each)
    for one, other, prompt, layout in zip(greedy, guided, PROMPTS, LAYOUTS["flatten"], strict=True):
        np.testing.assert_array_equal(one.codes.T, plain(prompt, layout, 0, temperature=0.0))
        np.testing.assert_array_equal(other.codes.T, plain(prompt, layout, 0, **options))
    assert any((a.codes != b.codes).any() for a, b in zip(greedy, guided, strict=True))


def test_batch_members_and_longer_padding_change_nothing(model):
    layouts = [pattern.flatten((n, n, n)) for n in (20, 21, 10)]
    together = generate(model, PROMPTS, layouts, seeds=SEEDS, eos=EOS, **SAME)
    for b in range(3):
        alone = generate(model, PROMPTS[b : b + 1], layouts[b : b + 1], seeds=SEEDS[b : b + 1], eos=EOS, **SAME)
        same(alone[0], together[b])
    long_prompt, long_layout = list(range(2, 39)) * 3, pattern.flatten((50, 50, 50))
    wide = generate(model, [*PROMPTS, long_prompt], [*layouts, long_layout], seeds=[*SEEDS, 9], eos=EOS, **SAME)
    for narrow, wider in zip(together, wide, strict=False):
        same(narrow, wider)


def test_the_seed_decides(model):
    layouts = [pattern.flatten((9, 9, 9))] * 3
    made = generate(model, [PROMPTS[0]] * 3, layouts, seeds=[7, 8, 7], **SAME)
    np.testing.assert_array_equal(made[0].codes, made[2].codes)
    assert (made[0].codes != made[1].codes).any()


class Ending(TokenLM):
    """Wants EOS, and codes that the levels do not have, above everything."""

    def level_logits(self, x, level):
        logits = super().level_logits(x, level)
        return logits + jnp.where(jnp.arange(logits.shape[-1]) >= 5, 1e4, 0)

    def text_logits(self, x, ids):
        return jnp.full((*x.shape[:-1], len(ids)), 1e5)


@pytest.mark.parametrize("make", [pattern.flatten, pattern.delay, pattern.parallel])
def test_an_adversarial_head_draws_nothing_illegal_and_ends_at_the_least_length(model, make):
    ending, heard = Ending(model.config, rngs=nnx.Rngs(0)), []
    layouts, sizes = [make((n, n, n)) for n in (4, 130, 6)], (5, 3, 4)
    made = generate(
        ending,
        PROMPTS,
        layouts,
        seeds=SEEDS,
        sizes=sizes,
        eos=EOS,
        min_frames=5,
        **CUT,
        progress=lambda *done: heard.append(done),
    )
    for one, frames, ended in zip(made, (4, 5, 5), (False, True, True), strict=True):
        assert one.codes.shape == (frames, 3) and one.ended == ended
        assert (one.codes >= 0).all() and (one.codes < sizes).all()
    assert heard == [(64, layouts[1].positions)]  # all had ended, so nothing more was decoded


class Hasty(TokenLM):
    """Wants EOS above everything, except where a frame begins."""

    def level_logits(self, x, level):
        Hasty.level = level
        return super().level_logits(x, level)

    def text_logits(self, x, ids):
        return jnp.full((*x.shape[:-1], len(ids)), jnp.where(jnp.asarray(Hasty.level) == 0, -1e5, 1e5))


@pytest.mark.parametrize("make", [pattern.flatten, pattern.parallel])
def test_a_song_ends_only_where_a_frame_begins(model, make):
    """And what is due right behind a chunk of steps is made."""
    hasty, frames = Hasty(model.config, rngs=nnx.Rngs(0)), {pattern.flatten: 9, pattern.parallel: CHUNK + 1}[make]
    (made,) = generate(hasty, [PROMPTS[0]], [make((frames,) * 3)], seeds=[3], eos=EOS, min_frames=0, **SAME)
    assert not made.ended and made.codes.shape == (frames, 3) and (made.codes >= 0).all()


def test_every_sample_has_its_own_least_length(model):
    ending, layouts = Ending(model.config, rngs=nnx.Rngs(0)), [pattern.flatten((9, 9, 9))] * 3
    made = generate(ending, PROMPTS, layouts, seeds=SEEDS, sizes=(5, 3, 4), eos=EOS, min_frames=[2, 9, 5], **CUT)
    assert [len(one.codes) for one in made] == [2, 9, 5]


def test_without_an_end_every_layout_is_filled_with_legal_tokens(model):
    sizes = (5, 3, 4)
    for name in ("delay", "level major"):
        made = generate(model, PROMPTS, LAYOUTS[name], seeds=SEEDS, sizes=sizes, temperature=5.0, **CUT)
        for one, layout in zip(made, LAYOUTS[name], strict=True):
            assert tuple(len(codes) for codes in by_level(one)) == layout.lengths
            assert all((codes >= 0).all() and (codes < n).all() for codes, n in zip(by_level(one), sizes, strict=True))


@pytest.mark.parametrize("name", ["flatten", "delay", "level major"])
def test_a_continuation_keeps_what_is_given_and_goes_on_as_before(model, name):
    whole = generate(model, PROMPTS, LAYOUTS[name], seeds=SEEDS, **SAME)
    given = [[codes[:n] for codes in by_level(one)] for one, n in zip(whole, (0, 2, 1), strict=True)]
    given[1] = [(codes + 1) % 12 for codes in given[1]]
    made = generate(model, PROMPTS, LAYOUTS[name], seeds=SEEDS, given=given, **SAME)
    for one, known in zip(made, given, strict=True):
        for codes, kept in zip(by_level(one), known, strict=True):
            np.testing.assert_array_equal(codes[: len(kept)], kept)
    same(made[0], whole[0])
    same(made[2], whole[2])
    assert any((a[2:] != b[2:]).any() for a, b in zip(by_level(made[1]), by_level(whole[1]), strict=True))


def test_levels_may_stand_side_by_side_in_time(model, plain):
    """Behind prompts of unequal lengths, of which the half that is not prompted has others."""
    config = dataclasses.replace(model.config, transformer=dataclasses.replace(TRUNK, positions="rotary_aligned"))
    timed = nnx.merge(nnx.graphdef(TokenLM(config, rngs=nnx.Rngs(0))), nnx.state(model))
    order = pattern.Pattern("level_major", (1, 2, 4), separate=True)
    layouts = [order.layout(packets) for packets in (1, 3, 2)]
    places = [order.places(layout, (4, 2, 1)) for layout in layouts]
    assert places[0].tolist() == [0, 0, 0, 2, 2, 0, 1, 2, 3]
    others, given = [[5], [10, 6, 7], [12]], [[np.array([3]), np.array([4, 1])]] * 3
    how = {"temperature": 1.5, "guidance": 1.5}
    asked = {"unprompted": others, "given": given, "places": places, "markers": MARKERS}
    made = generate(timed, PROMPTS, layouts, seeds=SEEDS, **asked, **how, **SAME)
    for sample, prompt, layout, seed, other, at_S in zip(made, PROMPTS, layouts, SEEDS, others, places, strict=True):
        expected = plain(prompt, layout, seed, given[0], unprompted=other, places=at_S, config=config, **how, **CUT)
        for drawn, codes_T in zip(by_level(sample), expected, strict=True):
            np.testing.assert_array_equal(drawn, codes_T)


def test_finer_levels_may_be_drawn_cooler(model):
    """The last as its likeliest codes, given those before it; where levels are given, from the first that is not."""
    layout, how = pattern.level_major((6, 12, 24)), {"sizes": SIZES, "seeds": SEEDS[:1]}
    hot, cooling = (
        by_level(generate(model, PROMPTS[:1], [layout], **how, final_temperature=last)[0]) for last in (None, 0.0)
    )
    np.testing.assert_array_equal(cooling[0], hot[0])
    assert (cooling[1] != hot[1]).any(), "half as warm"
    (cold,) = generate(model, PROMPTS[:1], [layout], given=[[*cooling[:2], []]], temperature=0.0, **how)
    np.testing.assert_array_equal(by_level(cold)[2], cooling[2])
    behind, known = pattern.level_major((6, 12, 24), given=1), [[hot[0], [], []]]
    (whole,) = generate(model, PROMPTS[:1], [behind], given=known, **how, final_temperature=0.0)
    np.testing.assert_array_equal(by_level(whole)[1], hot[1])


def test_a_long_continuation_is_prefilled_at_once(model):
    layouts, heard = [pattern.flatten((n, n, n)) for n in (60, 50)], []
    whole = generate(model, PROMPTS[:2], layouts, seeds=SEEDS[:2], **SAME)
    given = [list(one.codes[:45].T) for one in whole]
    made = generate(
        model, PROMPTS[:2], layouts, seeds=SEEDS[:2], given=given, **SAME, progress=lambda *done: heard.append(done)
    )
    assert heard == [(180, 180)]
    for one, other in zip(made, whole, strict=True):
        same(one, other)


def test_guidance_over_a_prefix_moves_away_from_what_does_without_it(model, reference):
    """Against the whole row anew, in whose unconditional half a null stands, or nothing, where codes are given."""
    layout, known, k_of = pattern.flatten((4, 4, 4)), np.random.default_rng(0).integers(0, 12, (3, 2)), range(3)
    how = {"seeds": [3], "given": [list(known)], "temperature": 0.0, **SAME}
    made = {}
    for name, guidance, null in (("none", 1.0, [-1] * 3), ("absent", 3.0, [-1] * 3), ("learned", 3.0, [5, 7, 9])):
        (sample,) = generate(model, [[2, 3]], [layout], guidance=guidance, null=null, **how)
        made[name] = sample.codes.T
        codes = [np.r_[known[k], [-1, -1]] for k in k_of]
        for s in range(6, layout.positions):
            rows = [layout.build(codes)[0][: s + 1]]
            rows.append(layout.build([np.r_[[null[k]] * 2, codes[k][2:]] for k in k_of])[0][: s + 1])
            logits, k = [], int(layout.predicts_SK[s].argmax())
            for reads_SK in rows:
                reads_SK = np.concatenate([np.full((1, 3), -1), reads_SK])
                sees_SS = np.tri(s + 2, dtype=bool)
                x_SD = reference.row(
                    model.config, reference.weights_of(model), [2, 3, *[-1] * s], reads_SK, sees_SS=sees_SS
                )
                logits.append(reference.code_logits(model.config, reference.weights_of(model), x_SD[-1], k))
            guided = logits[1] + guidance * (logits[0] - logits[1])
            codes[k][layout.predicts_SK[s, k]] = int(guided.argmax())
        np.testing.assert_array_equal(made[name], codes)
    assert (made["none"] != made["absent"]).any() and (made["absent"] != made["learned"]).any()


def test_a_prefix_is_left_out_and_what_was_begun_is_kept(reference):
    """Against the whole row anew, of positions that stand in time: one half reads the null where the other is told."""
    trunk = dataclasses.replace(TRUNK, positions="t5_aligned", segments=2, t5_buckets=8, t5_max_distance=20)
    config = TokenLMConfig(trunk, levels=3, codes=12, text_size=1, given=1, segments=(0, 1, 1), null=True)
    model = reference.drawn(nnx.eval_shape(lambda: TokenLM(config, rngs=nnx.Rngs(0))))
    order, weights = pattern.Pattern("flatten", (2, 3, 3), 1, (1,), units=(2, 3)), reference.weights_of(model)
    layouts = [order.layout(Fraction(tokens, 2)) for tokens in (5, 3)]
    places, dice = [order.places(layout, (3, 2, 2)) for layout in layouts], np.random.default_rng(0)
    given = [[dice.integers(0, 12, n) for n in (layout.lengths[0], 2, 1)] for layout in layouts]
    how = {"seeds": [3, 1], "given": given, "null": [12, None, None], "places": places, "temperature": 0.0, **SAME}
    made = generate(model, [[0], [0]], layouts, guidance=2.0, **how)
    for sample, layout, known, at_S in zip(made, layouts, given, places, strict=True):
        codes = [
            np.r_[known_T, np.full(n - len(known_T), -1)] for known_T, n in zip(known, layout.lengths, strict=True)
        ]
        for s in range(layout.begin, layout.positions):
            k = int(layout.predicts_SK[s].argmax())
            if codes[k][layout.predicts_SK[s, k]] >= 0:
                continue
            text_S = np.where(np.arange(s + 1) == layout.begin, 0, -1)
            logits = []
            for vocal_T in (codes[0], np.full_like(codes[0], 12)):
                reads_SK = layout.build([vocal_T, *codes[1:]])[0][: s + 1]
                how = {"sees_SS": np.tri(s + 1, dtype=bool), "at_S": at_S[: s + 1]}
                x_SD = reference.row(config, weights, text_S, reads_SK, **how)
                logits.append(reference.code_logits(config, weights, x_SD[-1], k))
            codes[k][layout.predicts_SK[s, k]] = int((logits[1] + 2.0 * (logits[0] - logits[1])).argmax())
        for drawn, expected in zip(by_level(sample), codes, strict=True):
            np.testing.assert_array_equal(drawn, expected)
    with pytest.raises(UserError, match=r"^guidance 2.0 has nothing to drop[^\n]+$"):
        generate(model, [[0]], layouts[:1], guidance=2.0, seeds=[3], given=given[:1], null=[None] * 3, **SAME)


@pytest.mark.parametrize(
    "what", [{}, {"unprompted": [[1]]}, {"null": [-1] * 3}, {"null": [-1] * 3, "given": [[np.zeros(0, int)] * 3]}]
)
def test_guidance_that_drops_nothing_is_refused_in_one_line(what):
    with pytest.raises(UserError, match=r"^guidance 3.0 has nothing to drop[^\n]+$"):
        generate(None, [[1]], [pattern.flatten((2, 2, 2))], seeds=[0], guidance=3.0, **what, **SAME)


@pytest.mark.parametrize(
    "engine",
    [
        lambda rows, others: generate(
            None, rows, [pattern.flatten((2, 2, 2))] * 2, seeds=[0, 1], guidance=3.0, unprompted=others, **SAME
        ),
        lambda rows, others: layerwise.refine(
            None, rows, [[[0]]] * 2, markers=[0] * 3, seeds=[0, 1], sizes=[9] * 3, guidance=3.0, unprompted=others
        ),
        lambda rows, others: nextscale.draw(
            None, rows, (2, 2), seeds=[0, 1], sizes=[9] * 2, guidance=3.0, unprompted=others
        ),
        lambda rows, others: nextscale.generate(
            None, None, np.array(rows, float), seeds=[0, 1], guidance=3.0, uncond_U=np.array(others[0], float)
        ),
    ],
)
def test_no_engine_guides_a_sample_by_nothing_whatever_the_others_drop(engine):
    words = r"^guidance 3.0 has nothing to drop: there is no prompt, condition or prefix of sample 1 that [^\n]+$"
    with pytest.raises(UserError, match=words):
        engine([[5, 6], [5, 7]], [[5, 7], [5, 7]])


@pytest.mark.parametrize(("rows", "shortest", "grows"), [(1, 128, [128, 192, 256]), (8, 512, [128, 192, 256])])
def test_a_cache_that_grows_changes_nothing(model, monkeypatch, rows, shortest, grows):
    """That of many rows begins with a quarter."""
    layout, how, lengths = pattern.flatten((60, 60, 60)), {"seeds": range(rows), "temperature": 1.5, **SAME}, []
    whole = generate(model, [PROMPTS[0]] * rows, [layout] * rows, **how)
    decode = autoregressive._decode

    def seen(graphdef, weights, state, *others, **static):
        lengths.append(state.cache.keys[0].shape[1])
        return decode(graphdef, weights, state, *others, **static)

    monkeypatch.setattr(batching, "SHORTEST", shortest)
    monkeypatch.setattr(autoregressive, "_decode", seen)
    grown = generate(model, [PROMPTS[0]] * rows, [layout] * rows, **how)
    for one, other in zip(whole, grown, strict=True):
        same(one, other)
    assert lengths == grows


def test_no_text_at_all(model):
    made = generate(model, [[], []], [pattern.delay((5, 5, 5))] * 2, seeds=[1, 1], **SAME)
    np.testing.assert_array_equal(made[0].codes, made[1].codes)
    assert made[0].codes.shape == (5, 3)


def test_what_cannot_work_is_refused(model):
    with pytest.raises(UserError, match="guidance"):
        generate(model, [[1]], [pattern.flatten((2, 2, 2))], seeds=[0], guidance=3.0, **SAME)
    for layout in (pattern.layer_wise((2, 2, 2)), pattern.flatten((2, 2))):
        with pytest.raises(ValueError, match="causal"):
            generate(model, [[1]], [layout], seeds=[0], **SAME)
    with pytest.raises(ValueError, match="EOS"):
        generate(model, [[1]], [pattern.level_major((2, 2, 2))], seeds=[0], eos=EOS, **SAME)
    with pytest.raises(ValueError, match="batch"):
        generate(model, [[1]], [pattern.flatten((2, 2, 2))], seeds=[0, 1], **SAME)


def test_few_programs_serve_many_lengths(model):
    before = autoregressive._decode._cache_size()
    for n in (3, 8, 15, 20):
        prompt, layout = list(range(2, 2 + n)), pattern.flatten((n, n, n))
        generate(model, [prompt], [layout], seeds=[n], eos=EOS, **SAME)
    assert autoregressive._decode._cache_size() - before <= 1


def test_a_condition_reaches_prefill_and_every_step(conditioned, reference):
    """Against the whole row anew, guided from one condition to another."""
    lm = conditioned(12, levels=2)
    draw = np.random.default_rng(2)
    cond, uncond = draw.normal(size=(2, 6)).astype(np.float32), draw.normal(size=6).astype(np.float32)
    layouts, same = [pattern.flatten((n, n)) for n in (6, 4)], {"sizes": (12, 12), "temperature": 4.0}
    how = {"seeds": [3, 1], "guidance": 2.5, "cond": cond, "uncond": uncond, **same}
    made = generate(lm, [[0], [0]], layouts, **how)
    config, w = lm.config, reference.weights_of(lm)
    for b, layout in enumerate(layouts):
        codes = [np.full(n, -1) for n in layout.lengths]
        for s in range(layout.positions):
            row = {"text_S": [0, *[-1] * s], "reads_SK": layout.build(codes)[0][: s + 1]}
            k = int(layout.predicts_SK[s].argmax())
            told, untold = (
                reference.code_logits(
                    config, w, reference.row(config, w, **row, sees_SS=np.tri(s + 1, dtype=bool), cond_U=vector)[-1], k
                )
                for vector in (cond[b], uncond)
            )
            logits, key = untold + 2.5 * (told - untold), reference.key_of(how["seeds"][b], s, k)
            codes[k][layout.predicts_SK[s, k]] = reference.draw(logits, key, temperature=4.0)
        np.testing.assert_array_equal(made[b].codes.T, codes)
    plainly = generate(lm, [[0], [0]], layouts, seeds=[3, 1], cond=cond, **same)
    assert any((one.codes != other.codes).any() for one, other in zip(made, plainly, strict=True))
    run, arguments = autoregressive.chunk(nnx.eval_shape(lambda: lm.unstack()), [[0], [0]], layouts, **how)
    assert run.func.lower(*arguments, **run.keywords).out_info.codes_BKT.shape[:2] == (2, 2)


def test_conditions_are_prefilled_with_what_is_given(conditioned):
    lm = conditioned(180, levels=2)
    cond, layouts = np.random.default_rng(2).normal(size=(1, 6)), [pattern.flatten((90, 90))]
    how = {"seeds": [3], "sizes": (12, 12), "temperature": 4.0, "cond": cond}
    whole = generate(lm, [[0]], layouts, **how)
    made = generate(lm, [[0]], layouts, given=[list(whole[0].codes[:70].T)], **how)
    np.testing.assert_array_equal(made[0].codes, whole[0].codes)
