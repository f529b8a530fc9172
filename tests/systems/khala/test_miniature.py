"""Khala end to end in miniature, and its numbers at the paper's size."""

import json
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from flax import nnx
from ml_collections import ConfigDict

from hiermusic import presets
from hiermusic.audio import files
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.evaluate.by_track import in_memory
from hiermusic.evaluate.tokens import per_token
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.khala import SYSTEM as system
from hiermusic.systems.khala import rows
from hiermusic.systems.lm import models as lm_models
from hiermusic.systems.lm import rows as lm_rows
from hiermusic.tokens.visibility import Visibility
from hiermusic.train import checkpoint

RATE, HOP = 22_050, 1024


def config(stage: str, preset: str) -> ConfigDict:
    return presets.read(f"configs/khala/{stage}.py:{preset}")


@cache
def facts_of(stage: str, preset: str) -> dict:
    return system.rooms.inspect(config(stage, preset))


@pytest.mark.parametrize(
    ("stage", "component", "millions"),
    [
        ("codec", "encoder", 78.56),
        ("codec", "decoder", 177.71),
        ("codec", "quantiser", 8.389),
        ("codec", "discriminator", 11.93),
        ("backbone", "total", 1617.0),
        ("superres", "total", 1876.0),
    ],
)
def test_paper_sizes(stage, component, millions):
    """The published parameter counts, within half a percent (khala.md 1.1, 1.2, 2.4)."""
    facts = facts_of(stage, "paper")
    assert facts["params"][component] == pytest.approx(millions * 1e6, rel=0.005)
    assert sum(facts["params"].values()) == 2 * facts["params"]["total"]
    assert facts["frame_rate_hz"] == pytest.approx(21.533, abs=1e-3)


def test_paper_lengths():
    assert facts_of("backbone", "paper")["sequence_length"] == 16_384
    assert facts_of("superres", "paper")["sequence_length"] == 8192
    assert facts_of("backbone", "paper")["tokens_per_second"] == pytest.approx(43.07, abs=0.01)


@pytest.mark.parametrize("stage", ["codec", "backbone", "superres"])
def test_every_preset_is_built(stage):
    beyond = ("3b", "7b")
    if stage == "codec":  # that of paper, by other names
        paper, *others = (config(stage, preset).to_dict() for preset in ("paper", *beyond))
        assert all(other | {"preset": "paper"} == paper for other in others)
        beyond = ()
    sizes = [facts_of(stage, preset)["params"]["total"] for preset in ("tiny", "small", "paper", *beyond)]
    assert sizes == sorted(sizes) and sizes[0] < 1e8
    with pytest.raises(UserError, match="small, paper, 3b or 7b"):
        config(stage, "huge")


# MARK: training rows


def trained(khala, name: str) -> ConfigDict:
    return workdirs.read(khala.__dict__[name])


def test_backbone_rows_hold_the_prompt_and_both_levels(khala):
    settings = trained(khala, "backbone")
    visibility, batch = lm_rows.batches(settings, "train", range(settings.train.batch_size))[0]
    assert visibility == Visibility.causal()
    ids = lm_models.tokenizer(settings.model).vocabulary
    for text, reads, targets, ends in zip(
        batch["text"], batch["reads"], batch["targets"], batch["text_targets"], strict=True
    ):
        boa = int(np.flatnonzero(text == ids.boa)[0])
        assert text[0] == ids.bos and (text[boa + 1 :] == -1).all() and (reads[boa] == -1).all()
        length = int((targets >= 0).sum())
        level = np.arange(length) % 2
        at = boa + np.arange(length)
        assert (targets[at, level] >= 0).all() and (targets[at, 1 - level] == -1).all()
        assert (reads[at[1:], level[:-1]] == targets[at[:-1], level[:-1]]).all()
        assert ends[boa + length] == ids.eos and (ends >= 0).sum() == 1


def test_batches_are_a_function_of_seed_and_step(khala):
    settings = trained(khala, "superres")
    one, two = (rows.batches(settings, "train", range(settings.train.batch_size)) for _ in range(2))
    for step in (0, 7, 123):
        (visibility, left), (same, right) = one[step], two[step]
        assert visibility == same
        assert all(np.array_equal(left[name], right[name]) for name in left)


def test_the_mixture_has_the_share_asked_for(khala):
    settings = trained(khala, "superres")
    settings.train.task0_share = 0.25
    batches = rows.batches(settings, "train", range(settings.train.batch_size))
    drawn = [batches[step] for step in range(200)]
    causal = [visibility == Visibility.causal() for visibility, _ in drawn]
    assert 0.15 < np.mean(causal) < 0.35
    refined = [batch["level"] for (_, batch), is_causal in zip(drawn, causal, strict=True) if not is_causal]
    size = settings.train.batch_size
    assert all(len(set(level_B)) == min(size, 5) for level_B in refined), "a batch leaves out no part of the hierarchy"
    counts = np.bincount(np.concatenate(refined), minlength=6)
    assert counts[0] == 0 and np.allclose(counts[1:] / counts.sum(), 1 / 5, atol=0.06)
    ids = lm_models.tokenizer(settings.model).vocabulary
    for (_, batch), is_causal in zip(drawn[:20], causal, strict=False):
        for row, level in enumerate(batch["level"].tolist()):
            assert is_causal == (level == 0)
            assert (batch["text"][row] == ids.task_marker(level)).sum() == 1
            assert (batch["targets"][row] >= 0).any()
            assert (batch["reads"][row, :, max(level, 1) :] == -1).all()


def test_rows_do_not_depend_on_who_makes_the_others(khala):
    settings = trained(khala, "superres")
    whole = rows.batches(settings, "train", range(settings.train.batch_size))
    alone = rows.batches(settings, "train", [1])
    for step in range(8):
        (task, batch), (same, one) = whole[step], alone[step]
        assert task == same
        assert all(np.array_equal(batch[name][1:2], one[name]) for name in one)


def test_level_distributions():
    assert rows.level_weights(64, "uniform")[1:] == pytest.approx(1 / 63)
    low = rows.level_weights(64, "low_biased")
    assert low[1] == 2 * low[20] == 4 * low[50] and low[0] == 0 and low.sum() == pytest.approx(1)
    with pytest.raises(UserError, match="uniform or low_biased"):
        rows.level_weights(64, "sideways")


# MARK: stages


def test_token_models_begin_with_what_the_codec_knows(khala):
    """Codes near each other in the codec are near each other in both tables, and heads predict their frequencies."""
    settings = trained(khala, "backbone")
    stage = system.rooms.stage(settings)
    module = stage.create(nnx.Rngs(0))
    stage.prepare(module)
    quantiser = workdirs.load_codec(khala.codec).quantiser
    counts_KV = np.asarray(quantiser.ema_counts[...][:2]) + 0.5
    bias_KV = np.asarray(module.model.code_bias[...])
    np.testing.assert_allclose(
        np.exp(bias_KV) / np.exp(bias_KV).sum(1, keepdims=True), counts_KV / counts_KV.sum(1, keepdims=True), rtol=1e-4
    )

    def apart(table_VD):
        return np.linalg.norm(table_VD[:, None] - table_VD[None], axis=-1)

    for level in range(2):
        book = apart(np.asarray(quantiser.codebooks[...][level]))
        for table in (module.model.code_embed, module.model.code_head):
            ours = apart(np.asarray(table[...][level]))
            np.testing.assert_allclose(ours / ours.max(), book / book.max(), atol=1e-3)


def test_tokens_whose_codec_is_gone_are_told_before_anything_is_drawn(khala, tmp_path):
    settings = trained(khala, "backbone")
    settings.data.codec = f"{tmp_path}/gone@4"
    with pytest.raises(UserError, match=r"no codec at .*gone, which made the tokens: put it back, or give its workdir"):
        system.rooms.stage(settings).open(tmp_path / "new")
    settings.model.codec_tables = False
    system.rooms.stage(settings).open(tmp_path / "new")


def test_superres_starts_from_the_backbone(khala):
    settings = trained(khala, "superres")
    settings.model.codec_tables = False
    stage = system.rooms.stage(settings)
    module = stage.create(nnx.Rngs(0))
    fresh = np.asarray(module.model.code_embed[...])
    stage.prepare(module)
    weights = checkpoint.load_weights(khala.backbone)
    embed = np.asarray(module.model.code_embed[...])
    assert np.array_equal(embed[:2], weights["code_embed"]) and np.array_equal(embed[2:], fresh[2:])
    assert np.array_equal(module.model.text_head[...], weights["text_head"])


def test_backbone_files_are_all_it_reads(khala, tmp_path):
    settings = trained(khala, "backbone")
    coarse_only = shutil.ignore_patterns("fine-*")
    settings.data.path = str(shutil.copytree(khala.tokens, tmp_path / "tokens", ignore=coarse_only))
    _, batch = lm_rows.batches(settings, "train", range(settings.train.batch_size))[3]
    assert (batch["targets"] >= 0).any()
    with pytest.raises(UserError, match="fine"):
        others = trained(khala, "superres")
        others.data.path = settings.data.path
        rows.batches(others, "train", range(others.train.batch_size))


@pytest.mark.parametrize("crop", ["start", "random"])
@pytest.mark.parametrize("stage", ["backbone", "superres"])
def test_what_is_measured_is_what_is_counted(khala, stage, crop):
    """A model that knows nothing spends as much on every code that is counted, and on no end of a track."""
    config, model = workdirs.load(getattr(khala, stage))
    config.data.crop = crop
    for head in filter(None, (model.code_head, model.code_bias, model.text_head)):
        head[...] = 0 * head[...]
    sums_NK, counts_NKV, trained_KV = system.rooms.cross_entropy(
        config, model, khala.tokens, 1, in_memory, lambda: None
    )
    sums_K, counts_KV = sums_NK[0], counts_NKV[0]
    choices_K = counts_KV.shape[1] + (np.arange(len(sums_K)) == 0) * (model.config.end is not None)
    np.testing.assert_allclose(per_token(sums_K, counts_KV), np.log(choices_K), rtol=1e-5)
    train = TokenSource(khala.tokens, slice(0, len(sums_K)), "train")
    assert (trained_KV.sum(1) == sum(len(train[i]["codes"]) for i in range(len(train)))).all()


# MARK: codes and songs


@pytest.mark.parametrize("samples", [1, HOP - 1, 25_001])
def test_encode_and_decode_keep_the_length(khala, run, tmp_path, samples):
    wav = 0.1 * np.random.default_rng(0).standard_normal((samples, 1)).astype(np.float32)
    files.write(tmp_path / "in.wav", wav, RATE)
    run("encode", f"--codec={khala.codec}", tmp_path / "in.wav", tmp_path / "codes.npz")
    stored = np.load(tmp_path / "codes.npz")
    assert stored["codes"].shape == (6, -(-samples // HOP)) and stored["codes"].dtype.kind == "u"
    run("decode", f"--codec={khala.codec}", tmp_path / "codes.npz", tmp_path / "out.wav")
    out, rate = soundfile.read(tmp_path / "out.wav", always_2d=True)
    assert out.shape == (samples, 1) and rate == RATE


def songs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.wav"))}


def test_generate_writes_what_was_asked(khala, run, tmp_path):
    run("generate", f"--superres={khala.superres}", f"--prompts={khala.prompts}", f"--out={tmp_path / 'a'}")
    facts = json.loads((tmp_path / "a" / "one.json").read_text())
    assert (
        facts["seed"] == 3 and facts["prompt"]["lyrics"] == "la la\nlu" and facts["sampling"]["superres"]["top_k"] == 10
    )
    out, _ = soundfile.read(tmp_path / "a" / "one.wav", always_2d=True)
    assert out.shape[1] == 1 and 0 < len(out) / RATE <= 1.5 + HOP / RATE
    assert facts["ended"] or abs(len(out) / RATE - 1.5) < HOP / RATE

    run("generate", f"--superres={khala.superres}", f"--prompts={khala.prompts}", f"--out={tmp_path / 'b'}")
    assert songs(tmp_path / "a") == songs(tmp_path / "b")

    lines = khala.prompts.read_text().splitlines()
    for line in lines:
        (tmp_path / "single.jsonl").write_text(line)
        run("generate", f"--superres={khala.superres}", f"--prompts={tmp_path}/single.jsonl", f"--out={tmp_path / 'c'}")
    assert songs(tmp_path / "a") == songs(tmp_path / "c")


def test_a_least_length_is_kept(khala, run, tmp_path):
    asked = {"one": 1.5, "two": 1.0}
    for share in (0.5, 1.0):
        out = tmp_path / str(share)
        model, least = f"--backbone={khala.backbone}", f"--min_share={share}"
        run("generate", model, f"--prompts={khala.prompts}", f"--out={out}", least)
        for name, seconds in asked.items():
            facts = json.loads((out / f"{name}.json").read_text())
            assert share * seconds - HOP / RATE < facts["seconds"] < seconds + HOP / RATE
            assert facts["ended"] == (facts["seconds"] < seconds - HOP / RATE)
            assert facts["sampling"]["backbone"]["min_share"] == share


def test_continue_keeps_the_codes_it_was_given(khala, run, tmp_path):
    wav = 0.1 * np.random.default_rng(1).standard_normal((RATE, 1)).astype(np.float32)
    files.write(tmp_path / "in.wav", wav, RATE)
    run(
        "continue",
        f"--superres={khala.superres}",
        "--tags=slow",
        "--seconds=2",
        f"--out={tmp_path}",
        tmp_path / "in.wav",
    )
    out, _ = soundfile.read(tmp_path / "song.wav", always_2d=True)
    assert len(out) > RATE
    run("encode", f"--codec={khala.codec}", tmp_path / "in.wav", tmp_path / "codes.npz")
    run("decode", f"--codec={khala.codec}", tmp_path / "codes.npz", tmp_path / "kept.wav")
    kept, _ = soundfile.read(tmp_path / "kept.wav", always_2d=True)
    # away from the seam, whose samples the new frames reach into
    assert np.abs(out[:10_000] - kept[:10_000]).max() < 1e-3
