"""A pair learns one song by heart and sings it back, in full and by adapters; faults in tokens are minded."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

from ..conftest import CONFIGS, RECORDS, TOKEN_LM

SING = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "sing_back.py"))
TABLES = "--config.lora.targets=('query','key','value','out','gate','up','down','code_embed','code_head')"


def test_what_is_sung_is_counted_level_by_level():
    true_TK = np.array([[1, 2, 3], [1, 5, 6], [1, 8, 6], [7, 9, 6]])
    made_TK = np.array([[1, 2], [1, 0], [1, 8]])  # a level that is not made is nobody's, a frame that is missing wrong
    assert SING["agreement"](true_TK, made_TK).tolist() == [0.75, 0.5]
    assert SING["commonest"](true_TK) == pytest.approx((0.75 + 0.25 + 0.75) / 3)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [(), ("--config.lora.rank=8", "--config.lora.alpha=16", TABLES)], ids=["full", "lora"])
def test_a_song_is_sung_back(khala, run, tmp_path, lora):
    song, tokens = tmp_path / "song", tmp_path / "tokens"
    run("data", "--source=builtin:1?seconds=2&seed=7", f"--out={song}", "--valid_fraction=0", *RECORDS)
    run("tokenize", f"--codec={khala.codec}", f"--data={song}", f"--out={tokens}")
    sizes = [flag for flag in TOKEN_LM if flag.startswith("--config.model")]
    how = (f"--config.data.path={tokens}", "--noprogress", "--config.train.learning_rate=0.02", *sizes, *lora)
    how += ("--config.train.batch_size=8",)  # the song for each device
    how += ("--config.train.schedule=cosine", "--config.train.final_share=0.02", "--config.train.stop_loss=0.002")
    for stage, words in (("backbone", ""), ("superres", "superres_")):
        config = f"--config={CONFIGS}/finetune.py:song_{words}tiny"
        base = f"--config.init_from={getattr(khala, stage)}"
        run("train", config, f"--workdir={tmp_path / stage}", base, *how)
    true_TK, coarse_TK, whole_TK = SING["sung"](str(tokens), str(tmp_path / "backbone"), str(tmp_path / "superres"))
    assert SING["agreement"](true_TK, coarse_TK).mean() > 0.95
    assert SING["agreement"](true_TK, whole_TK).mean() > 0.95 > 0.6 > SING["commonest"](true_TK)


@pytest.mark.slow
def test_tokens_are_verified_by_a_model_that_reads_them(khala, run, tmp_path, capsys):
    run("evaluate", f"--workdir={khala.backbone}", "--verify_tokens", f"--out={tmp_path}", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((tmp_path / "results.json").read_text())
    assert len(told["verification"]) == 6 and {check["passed"] for check in told["verification"]} <= {True, False, None}
    assert "Verifying the tokens" in (tmp_path / "report.html").read_text()
