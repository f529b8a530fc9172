"""What is told and measured of Khala's models."""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.audio import files
from hiermusic.codec.chunked import encode_long
from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.param import parameter_counts
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.pretrained import export
from hiermusic.pretrained.family import Imported
from hiermusic.systems import measures
from hiermusic.systems.khala import rows
from hiermusic.systems.khala.models import hierarchy, make_discriminator, make_model
from hiermusic.systems.lm import measures as lm
from hiermusic.tokens import sequence
from hiermusic.tokens.pattern import flatten
from hiermusic.tokens.prompt import Prompt, compose
from hiermusic.tokens.visibility import Visibility
from hiermusic.tokens.vocabulary import TextTokenizer

_HEARD = 10.0  # seconds of music that tell one release of a backbone from another

_MEASURED = {"superres": {"measured": rows.measured}}


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone."""
    if config.stage != "codec":
        return lm.inspect(config)
    model = nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0)))
    params, tokens = measures.counts(model), hierarchy(config)
    params["quantiser"] += math.prod(model.quantiser.codebooks.shape)  # moved by averages, not by gradients
    discriminator = nnx.eval_shape(lambda: make_discriminator(config)(nnx.Rngs(0)))
    params["discriminator"] = sum(parameter_counts(discriminator).values())
    params["total"] = sum(params.values())
    return measures.facts(config, dict(params), tokens, float(tokens.rates[0]), config.train.crop_frames)


def cross_entropy(config: ConfigDict, *arguments):
    """Teacher-forced cross-entropy of every level on held-out tracks; see `systems.lm.measures.cross_entropy`."""
    return lm.cross_entropy(config, *arguments, **_MEASURED.get(config.stage, {}))


def likelihood(config: ConfigDict, *arguments):
    """The same of tracks as they are and as they were changed; see `systems.lm.measures.likelihood`."""
    return lm.likelihood(config, *arguments, **_MEASURED.get(config.stage, {}))


def nats(codec: Imported, backbones: Mapping[int, Imported], words: TextTokenizer, audio: str) -> dict[int, float]:
    """Mean cross-entropy of the beginning of a piece of music, without a word, under several backbones.

    Args:
      codec: that makes the tokens.
      backbones: one model by different readings of its weights.
      words: of their prompts.
      audio: file of music.
    """
    c, sizes = codec.config, ("strides", "dilations", "encoder_width", "decoder_width", "latent")
    trunk = DacConfig(**{name: c[name] for name in sizes})
    config = CodecConfig(c["sample_rate"], c["channels"], trunk, QuantiserConfig(levels=c["levels"], codes=c["codes"]))
    coder = _filled(lambda: Codec(config, rngs=nnx.Rngs(0)), codec)
    wav_LC = files.read(audio, c["sample_rate"], c["channels"])[0][: round(_HEARD * c["sample_rate"])]
    found = {}
    for name, one in backbones.items():
        m = one.config
        codes_TK = encode_long(coder, wav_LC, levels=m["levels"]).astype(np.int32)
        ids = compose(Prompt(seconds=_HEARD), words)
        layout = flatten((len(codes_TK),) * m["levels"])
        length = len(ids) + layout.positions
        sizes = ("layers", "width", "heads", "kv_heads", "head_dim", "ffn_width", "rope_base")
        # float16 is no type to compute in, and float32 holds all of it
        dtype = "bfloat16" if one.weights["code_head"].dtype.name == "bfloat16" else "float32"
        trunk = {name: m[name] for name in sizes} | {"bias": "all", "dtype": dtype}
        lm_config = TokenLMConfig(
            TransformerConfig(**trunk),
            levels=m["levels"],
            codes=c["codes"],
            text_size=words.vocabulary.text_size,
        )
        model = _filled(lambda lm_config=lm_config: TokenLM(lm_config, rngs=nnx.Rngs(0)), one)
        batch = sequence.stack([sequence.pack(ids, layout, codes_TK.T, length)])
        batch.pop("text_targets")
        loss = jax.jit(lambda model, batch: model.loss(batch, visibility=Visibility.causal())[0])
        found[name] = float(loss(model, batch))
    return found


def _filled(make: Callable[[], nnx.Module], imported: Imported) -> nnx.Module:
    """A module with imported weights."""
    graph, state = nnx.split(nnx.eval_shape(make))
    flat = {name: jnp.asarray(np.asarray(weight)) for name, weight in imported.weights.items()}
    nnx.replace_by_pure_dict(state, export.nested(flat))
    return nnx.merge(graph, state)
