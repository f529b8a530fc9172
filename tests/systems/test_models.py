"""A field of a configuration's `model` becomes the field of the same name of what is built, and no other."""

import dataclasses

import pytest

from hiermusic import presets
from hiermusic.errors import UserError
from hiermusic.systems import catalogue
from hiermusic.systems.aar import models as aar
from hiermusic.systems.khala import models as khala
from hiermusic.systems.lm import models as lm
from hiermusic.systems.tokens import models as tokens

BUILT = {
    "khala/codec": lambda config: khala.codec_config(config.model),
    "khala/backbone": lm.token_lm_config,
    "khala/superres": lm.token_lm_config,
    "tokens/lm": lm.token_lm_config,
    "pyramid/lm": lm.token_lm_config,
    "aar/codec": lambda config: aar.codec_config(config.model),
    "aar/lm": aar.prior_config,
    "aar/ar_baseline": aar.prior_config,
}
# What makes no module: rows and prompts read it, or names the text side, which has tests of its own.
READ = {"duration_unit", "given", "keep_description", "length", "prompt_dropout", "references", "text_limit"}
READ |= {"tokenizer", "tokenizer_file", "separators", "as_released"}
# What means something behind a prefix alone (tests/systems/hafm/test_models.py).
READ |= {"open_heads", "prefix_dropout", "segments", "ticks"}
# Other values than the presets'; of a number that is not here, twice as much and one more.
OTHER = {
    **{
        "bias": "none",
        "dilations": (9,),
        "dtype": "bfloat16",
        "ffn": "gelu",
        "drop_path": 0.5,
        "fold": 8,
        "head": "full",
        "head_dim": 32,
        "init": "dac",
    },
    **{"kv_heads": 2, "noise_db": (0.0, 9.0), "norm": "layer", "pattern": "delay", "phi": "shared", "qk_norm": "rms"},
    **{"positions": "learned"},
    **{
        "quantiser": "residual",
        "quantiser_dropout": "uniform",
        "quantiser_objective": "running",
        "remat": "full",
        "scales": (5, 75),
    },
    **{"schedule": "linear", "straight_through": "per_level", "strides": (2, 2), "windowed": True},
}
# Fields of another name, or of more than one.
NAMES = {
    "code_latent": {"quantiser.latent"},
    "codec_tables": {"code_bias"},
    "context": {"context", "max_positions"},
    "depth": {"drop_path", "ffn_width", "heads", "init_std", "kv_heads", "layers", "width"},
    "latent": {"trunk.latent"},
    "drop_path": {"drop_path"},  # a share of it, by depth
    "head": {"head", "code_bias"},
    "levels": {"levels", "scales"},
    "pattern": {"max_positions"},
    "phi_kernel": {"kernel"},
    "quantiser": {"quantiser"},
    "quantiser_dropout": {"dropout"},
    "quantiser_objective": {"objective"},
    "scales": {"levels", "phi_count", "scales"},
    "schedule": {"scales"},
    "window": {"max_positions", "scales"},
}
# Orders of prediction: next scale alone goes with AAR's tokens, the others make rows (tests/systems/lm/test_rows.py).
ORDERS = {(stage, "pattern") for stage in BUILT if stage != "aar/ar_baseline"}
ORDERS.add(("pyramid/lm", "levels"))  # of which it knows all that there are
# Fields that go together: what others become.
TOGETHER = {"head": {"codec_tables": False}, "levels": {"given": 0}, "scales": {"levels": 2, "phi_count": 1}}
FIELDS = {stage: sorted(set(presets.read(f"configs/{stage}.py:tiny").model) - READ) for stage in BUILT}
SETTINGS = [(stage, field) for stage, fields in FIELDS.items() for field in fields if (stage, field) not in ORDERS]


def flat(value, place=""):
    if dataclasses.is_dataclass(value):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: one for key, part in fields.items() for name, one in flat(part, f"{place}.{key}").items()}
    return {place.lstrip("."): value}


def other(field, value):
    if field in OTHER and OTHER[field] != value:
        return OTHER[field]
    if field == "bias":
        return "all"
    return not value if isinstance(value, bool) else 2 * value + 1


@pytest.mark.parametrize(("stage", "field"), SETTINGS, ids=[f"{stage}-{field}" for stage, field in SETTINGS])
def test_a_setting_of_the_model_becomes_the_field_of_its_name(stage, field):
    config = presets.read(f"configs/{stage}.py:tiny")
    before, model = flat(BUILT[stage](config)), config.model
    model[field] = other(field, model[field])
    model.update({name: value for name, value in TOGETHER.get(field, {}).items() if name in model})
    after = flat(BUILT[stage](config))
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed
    ends = NAMES.get(field, {field})
    if field != "quantiser":
        assert all(any(f".{name}".endswith(f".{end}") for end in ends) for name in changed), changed
    if field not in NAMES:
        assert {after[name] for name in changed} == {model[field]}


@pytest.mark.parametrize("stage", sorted(stage for stage in BUILT if not stage.endswith("codec")))
@pytest.mark.parametrize(("name", "value"), [("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1)])
def test_sampling_that_draws_nothing_is_told_before_training(stage, name, value):
    config = presets.load(f"configs/{stage}.py:tiny", {f"sampling.{name}": value})
    with pytest.raises(UserError, match=rf"^sampling\.{name}='?{value}'?: give a "):  # among numbers nan is a word
        catalogue.systems()[config.system].rooms.make_model(config)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -1.0, 1e-9])
def test_segments_of_no_length_are_told(seconds):
    config = presets.load("configs/tokens/codec.py:encodec_48khz", {"model.segment_seconds": seconds})
    with pytest.raises(UserError, match=r"segments of .* samples .* give 1 to"):
        tokens.codec_config(config.model)
