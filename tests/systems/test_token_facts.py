"""What a token model learns of its tokens, by records that no codec has made."""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hiermusic import cli
from hiermusic.data.token_records import write_tokens
from hiermusic.errors import UserError
from hiermusic.systems import token_facts, workdir
from hiermusic.systems.aar import models as aar
from hiermusic.systems.lm import models as lm_models
from hiermusic.tokens.facts import TokenFacts

from .fakes import configuration

RESIDUAL = TokenFacts(16_000, 400, "residual", levels=5, codes=32, latent=6)
SCALES = TokenFacts(16_000, 400, "multiscale", 3, 32, 6, (1, 4, 20), "partial", 2, 5, 0.25)


def records(out: Path, facts: TokenFacts | None, codec: str = "/gone/codec@7", shown: TokenFacts = RESIDUAL) -> str:
    """Token records of two tracks by a codec that says these facts."""
    shown = facts or shown
    told = {"codec": codec, "sample_rate": shown.sample_rate} | ({"tokens": facts.to_json()} if facts else {})

    def encode(index: int):
        lengths = {rate: round(2 * rate) for rate in shown.hierarchy.rates}
        groups = tuple(np.zeros((length, shown.hierarchy.rates.count(rate)), int) for rate, length in lengths.items())
        entry = {"id": f"t{index}", "split": ("train", "valid")[index], "seconds": 2.0, "meta": {}}
        return groups if len(groups) > 1 else groups[0], entry

    write_tokens(2, partial(map, encode), out, shown.hierarchy, 1, settings=told, progress=False)
    return str(out)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("khala/backbone", RESIDUAL),
        ("khala/superres", RESIDUAL),
        ("aar/lm", SCALES),
        ("aar/ar_baseline", RESIDUAL),
    ],
)
def test_a_model_is_made_for_the_tokens_that_the_records_hold(tmp_path, name, facts):
    config = configuration(f"{name}:tiny")
    before = config.to_json()
    config.data.path = records(tmp_path / "tokens", facts)
    if name == "aar/lm":
        config.model.context = 10
    found = workdir.resolved(config)
    assert found.tokens.to_dict() == asdict(facts) and found.data.codec == "/gone/codec@7"
    assert token_facts.facts_of(found) == facts and config.to_json() != found.to_json()
    assert json.loads(before)["tokens"] == json.loads(config.to_json())["tokens"]  # what was given is left alone
    if name.startswith("khala"):
        lm = lm_models.token_lm_config(found)
        assert (lm.levels, lm.codes) == ({"khala/backbone": 2, "khala/superres": 5}[name], 32)
        assert lm_models.hierarchy(found).rates[0] == 40
    else:
        prior = aar.prior_config(found)
        assert (prior.lm.levels, prior.lm.codes, prior.latent) == (facts.levels, 32, 6)
        assert prior.quantiser.slots == facts.slots
        assert aar.window_seconds(found) == (20 if name == "aar/lm" else 75) / 40
    workdir.stage(found)
    token_facts.check_records(found, config.data.path)


def test_without_records_a_configuration_says_what_its_tokens_are(tmp_path):
    config = configuration("khala/superres:tiny")
    for path in ("", str(tmp_path / "nowhere")):
        config.data.path = path
        assert workdir.resolved(config).tokens == config.tokens
    with pytest.raises(UserError, match=r"data.path is empty: make token records with `hiermusic tokenize`"):
        token_facts.check_records(config, "")
    with pytest.raises(UserError, match=r"data.codec is empty: the model was not trained on token records"):
        token_facts.codec_of(config)


def test_a_codec_that_lies_elsewhere_now_keeps_its_step(tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    moved.mkdir()
    monkeypatch.chdir(tmp_path)
    config = configuration("aar/ar_baseline:tiny")
    config.data.path = records(tmp_path / "tokens", RESIDUAL)
    for given in (str(moved), f"{moved}@7", "moved", "moved@7"):
        config.data.codec = given
        found = workdir.resolved(config)
        assert found.data.codec == f"{moved}@7" and token_facts.codec_of(found) == (str(moved), 7)
    config.data.codec = f"{moved}@8"
    with pytest.raises(UserError, match=r"data.codec=.*moved@8: .*tokens was made at step 7; give .* without a step"):
        workdir.resolved(config)
    config.data.codec = ""
    with pytest.raises(UserError, match=r"no codec at /gone/codec, which made the tokens: put it back, or give its"):
        token_facts.codec_of(workdir.resolved(config))


def test_records_of_other_tokens_are_refused_in_one_line(tmp_path):
    config = configuration("khala/backbone:tiny", asdict(RESIDUAL))
    for name, facts, words in (
        ("codes", replace(RESIDUAL, codes=16), r"codes is 16 and not 32\)"),
        ("rate", replace(RESIDUAL, hop=200), r"hop is 200 and not 400\)"),
        ("levels", replace(RESIDUAL, levels=3), r"levels is 3 and not 5\)"),
        ("latent", replace(RESIDUAL, latent=4), r"latent is 4 and not 6\)"),
    ):
        with pytest.raises(UserError, match=rf"{name} holds other tokens than the model knows \({words}: take tokens"):
            token_facts.check_records(config, records(tmp_path / name, facts))
    old = records(tmp_path / "old", None)
    for use in (lambda: token_facts.check_records(config, old), lambda: workdir.resolved(changed(config, old))):
        with pytest.raises(UserError, match=r"old does not say what quantiser made its tokens: write it again by"):
            use()


def changed(config, path: str):
    config.data.path = path
    return config


def test_a_run_does_not_go_on_with_other_tokens(tmp_path):
    config, place = configuration("khala/backbone:tiny"), tmp_path / "tokens"
    config.data.path = records(place, RESIDUAL)
    first = workdir.stage(workdir.resolved(config))
    workdir.checkpoint.claim(tmp_path / "run", first.config.fields)
    workdir.checkpoint.check(tmp_path / "run", workdir.stage(workdir.resolved(config)).config.fields)
    kept = workdir.read(tmp_path / "run", "backbone")
    assert token_facts.facts_of(kept) == RESIDUAL and kept.data.codec == "/gone/codec@7"
    config.data.path = records(tmp_path / "others", replace(RESIDUAL, codes=64), "/gone/codec@9")
    other = workdir.stage(workdir.resolved(config))
    with pytest.raises(UserError, match=r"was trained with tokens.codes=32, not 64: take another workdir"):
        workdir.checkpoint.check(tmp_path / "run", other.config.fields)


def test_what_is_learnt_cannot_be_said_to_training(tmp_path, capsys):
    words = ["train", "--config=configs/khala/backbone.py:tiny", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit):
        cli.main([*words, "--config.tokens.codes=16", f"--config.data.path={records(tmp_path / 'tokens', RESIDUAL)}"])
    line = "hiermusic train: --config.tokens.codes: what the tokens are is learnt from their records: leave it out\n"
    assert capsys.readouterr().err == line and not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["khala/codec", "khala/superres", "khala/backbone", "aar/lm"])
def test_a_workdir_of_an_older_layout_is_one_line(tmp_path, name):
    config = configuration(f"{name}:tiny").to_dict()
    if name == "khala/codec":
        config["model"]["codebooks"] = config["model"].pop("levels")
    elif name == "khala/superres":
        config["sampling"]["layers"] = config["sampling"].pop("levels")
    else:
        config.pop("tokens")
        config["model"] |= {"codes": 256, "frame_rate": "22050/512"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    field = {"khala/codec": "levels", "khala/superres": "sampling.levels"}.get(name, "tokens")
    words = rf"config.json has no field {field}, as another version wrote it: train"
    with pytest.raises(UserError, match=words) as told:
        workdir.read(tmp_path)
    assert "\n" not in str(told.value)
