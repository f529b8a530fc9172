"""Fine-tuning Khala's token models on other music: in full, or by LoRA's adapters beside weights that stay.

    hiermusic train --config=configs/khala/finetune.py:style --workdir=out/mine --config.data.path=TOKENS \\
      --config.init_from=out/released-backbone

| preset | what                                     | ends                                                          |
|--------|------------------------------------------|---------------------------------------------------------------|
| song   | one song, until decoding sings it back   | when three losses in a row are under `stop_loss`; 400 steps   |
| style  | songs that belong together, for one pass | when the held-out loss is above that of step 0; 2,600 steps   |

Words behind it, joined by `_`, say of what: `superres` in place of the backbone; `lora` by adapters in place of all
weights; and the size of the model that is started from, `tiny`, `small`, `3b` or `7b` in place of `paper`, whose
architecture it must be. So `style_superres_lora_tiny`. Behind them `@RUN`, a WORKDIR or WORKDIR@STEP, stands for
`init_from`, and the model is then of that run's stage and sizes: `style_lora@out/khala/backbone`. docs/finetuning.md
goes through all of it.

Rates, warm-up and batch are those with which others have tuned Khala's release (2e-5, of LoRA 1e-4; betas 0.9 and 0.95,
no decay); the tiny ones are for minutes on two CPU cores.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from hiermusic.configs import common
from hiermusic.configs.khala import backbone, superres
from hiermusic.data.streams import Tokenizer
from hiermusic.errors import UserError, reading

SIZES = ("tiny", "small", "paper", "3b", "7b")


def get_config(preset: str = "style") -> ConfigDict:
    """The configuration of a preset: song or style, the words behind it, and what is started from."""
    words, at, run = preset.partition("@")
    recipe, *words = words.split("_")
    size = words.pop() if words and words[-1] in SIZES else "paper"
    lora = bool(words) and words[-1] == "lora" and bool(words.pop())
    of = words.pop() if words and words[-1] == "superres" else ""
    if recipe not in ("song", "style") or words:
        raise UserError(
            f"unknown preset '{preset}' of configs/khala/finetune.py: choose song or style, and behind it, joined by "
            "_, superres, lora and a size"
        )
    begun = _read(run) if at else {}
    if begun and of not in ("", begun["stage"]):
        raise UserError(f"{preset}: {run} is a {begun['stage']}: leave {of} out")
    of = of or begun.get("stage", "backbone")
    config = {"backbone": backbone, "superres": superres}[of].get_config(size)
    config.preset = preset
    if begun:
        config.init_from = run
        with reading(run, "a run of this version", "train or import it anew"):
            config.model.update(begun["model"])
            config.tokens.update(begun["tokens"])

    config.train.optimiser = "adamw"
    config.train.learning_rate = 2e-5
    config.train.warmup_steps = 50
    config.train.weight_decay = 0.0
    config.train.ema_decay = 0.0

    if lora:
        config.lora.rank = 16
        config.lora.alpha = 32.0
        config.train.learning_rate = 1e-4

    match recipe:
        case "song":
            config.train.steps = 400
            config.train.batch_size = 1
            config.train.learning_rate *= 2.5
            config.train.schedule = "constant"
            config.train.stop_loss = 5e-5
            config.train.spike_sigma = 0.0  # where every batch is the same, one that is skipped comes again
            config.train.valid_every = 0
            config.train.checkpoint_every = 100
            config.sampling.temperature = 0.0
        case "style":
            config.train.steps = 2600
            config.train.batch_size = 8
            config.train.valid_every = 325
            config.train.valid_batches = 0
            config.train.checkpoint_every = 325
            config.train.stop_worse = 1

    if of == "superres" and recipe == "song":
        config.train.task0_share = 0.0  # every step is of what is to be sung back
        config.train.batch_size = 8
        config.sampling.levels = 0
    if size == "tiny":
        config.train.warmup_steps = 10
        config.train.log_every = 10
        config.train.learning_rate = 2e-3 if recipe == "song" else 2e-4
        if recipe == "song":
            config.train.stop_loss = 0.02
            if lora and of == "superres":  # 62 levels by heart: more adapters, a higher rate, and its fall
                config.lora.rank = 32
                config.lora.targets = (*common.TARGETS, "code_embed", "code_head")
                config.train.learning_rate = 5e-3
                config.train.schedule = "cosine"
                config.train.final_share = 0.02
                config.train.steps = 300
                config.train.stop_loss = 0.003
        else:
            config.train.steps = 60
            config.train.batch_size = 4
            config.train.valid_every = 10
            config.train.checkpoint_every = 10
    return config


def _read(run: str) -> Mapping[str, Any]:
    """What a run of WORKDIR or WORKDIR@STEP was trained with; UserError where it is none of Khala's token models."""
    if not run:
        raise UserError("no run is named behind @: give a workdir or an exported folder")
    place = Path(Tokenizer.named(run).workdir) / "config.json"
    what, do = "the configuration of a workdir", "name a run behind @"
    with reading(place, what, do):
        told = json.loads(place.read_bytes())
        system, stage = told["system"], told["stage"]
    if system != "khala" or stage not in ("backbone", "superres"):
        raise UserError(f"{run} is the {stage} of {system}: name a backbone or a super-resolution model of Khala's")
    with reading(place, what, do):
        return {"stage": stage, **{part: dict(told[part]) for part in ("model", "tokens")}}
