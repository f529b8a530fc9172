"""AAR's model of one window of codes, and the vanilla model it is compared with (arXiv 2408.09027).

Both are a `TokenLM` conditioned on a vector that says what the window should sound like. The vector is made from other
windows of the same track by a small encoder that learns along (`Listener`), or precomputed by CLAP.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from hiermusic.codec.codebook import Codebooks
from hiermusic.codec.multiscale import MultiscaleConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.nn import param
from hiermusic.nn.conv import Conv
from hiermusic.nn.norms import unit
from hiermusic.nn.token_lm import Metrics, TokenLM, TokenLMConfig
from hiermusic.tokens import pattern, sequence
from hiermusic.tokens.visibility import Visibility


def freeze(module: Codebooks) -> Codebooks:
    """A quantiser with all its parameters frozen, and without the averages that only its own training needs."""

    def still(variable: nnx.Variable) -> nnx.Variable:
        value = variable.get_value()
        axes = variable.get_metadata().get("axes", (None,) * value.ndim)
        return (param.Frozen if isinstance(variable, nnx.Param) else type(variable))(value, axes=axes)

    module = jax.tree.map(still, module, is_leaf=lambda x: isinstance(x, nnx.Variable))
    module.ema_sums = module.ema_counts = module.initialised = None
    return module


@dataclass(frozen=True)
class PriorConfig:
    """What a model of one window is made of.

    Args:
      lm: the token model.
      quantiser: whose codes it models; with a multi-scale one the model predicts scale after scale, reading latents.
      latent: channels of what that quantiser's codes add up to.
      context: last frames of the window before that a next-scale model reads in front of its own; 0 = none.
      context_dropout: share of training rows that are told of no window before.
      listener: width of the encoder of reference windows; 0 = rows bring their condition along.
      cond_dropout: share of training rows that are conditioned on nothing, for classifier-free guidance.
    """

    lm: TokenLMConfig
    quantiser: MultiscaleConfig | QuantiserConfig
    latent: int
    context: int = 0
    context_dropout: float = 0.1
    listener: int = 0
    cond_dropout: float = 0.1

    @property
    def next_scale(self) -> bool:
        return self.lm.inputs > 0

    @property
    def visibility(self) -> Visibility:
        """Context, if any, before the scales; causal without scales."""
        if not self.next_scale:
            return Visibility.causal()
        return pattern.next_scale(self.quantiser.slots).behind(self.context)


class Listener(nnx.Module):
    """Latent frames of a clip to one vector of unit length: three convolutions, their mean over time, a projection."""

    def __init__(self, inputs: int, width: int, outputs: int, *, rngs: nnx.Rngs):
        self.convs = nnx.List(
            [Conv(inputs if i == 0 else width, width, (5,), stride=(2,), init="fan_in", rngs=rngs) for i in range(3)]
        )
        self.out = param.weight(rngs, (width, outputs), (None, None), jax.nn.initializers.lecun_normal())

    def __call__(self, x_BTE: Float[Array, "B T E"]) -> Float[Array, "B U"]:
        for conv in self.convs:
            x_BTE = jax.nn.gelu(conv(x_BTE))
        return unit(jnp.mean(x_BTE.astype(jnp.float32), axis=1) @ self.out[...])


class Prior(nnx.Module):
    """A conditioned token model, and the frozen quantiser that tells it what codes sound like."""

    def __init__(self, config: PriorConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.lm = TokenLM(config.lm, rngs=rngs)
        self.quantiser = freeze(config.quantiser.make(config.latent, rngs=rngs))
        wide = config.lm.cond
        self.listener = Listener(config.latent, config.listener, wide, rngs=rngs) if config.listener else None
        # The release's unconditional vector is drawn once and not trained either.
        self.unconditional = param.Frozen(jax.random.normal(param.key(rngs), (wide,)) / np.sqrt(wide), axes=(None,))

    def take_quantiser(self, trained: nnx.Module) -> None:
        """Copies the codebooks (and what else is frozen here) of a codec's trained quantiser."""
        target = nnx.state(self.quantiser)
        found = dict(nnx.to_flat_state(nnx.state(trained)))
        for path, variable in nnx.to_flat_state(target):
            # through the host: the codec lies on one device, this model perhaps on many
            variable[...] = jax.device_put(np.asarray(found[path].get_value()), variable.get_value().sharding)
        nnx.update(self.quantiser, target)

    def listen(self, reference_BPS: Int[Array, "B P S"]) -> Float[Array, "B U"]:
        """Condition vectors of reference clips, given as packets of codes."""
        return self.listener(jax.lax.stop_gradient(self.quantiser.decode(reference_BPS)))

    def loss(
        self, batch: Mapping[str, Array], *, visibility: Visibility, key: Array | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Mean cross-entropy of a window's codes, see `TokenLM.loss`.

        Args:
          batch: `reference` [B, P, S] packets of codes, or `cond` [B, U]; and for next-scale prediction `codes` [B, S]
            of the window and `before` [B, S] of the one before it, -1 where there is none; otherwise what `TokenLM`
            reads.
          visibility: who sees whom.
          key: of dropout, of conditions and contexts too; None for none.
        """
        cond_BU = self.listen(batch["reference"]) if self.listener else batch["cond"]
        lm_key = None
        if key is not None:
            cond_key, context_key, lm_key = jax.random.split(key, 3)
            dropped_B = jax.random.bernoulli(cond_key, self.config.cond_dropout, cond_BU.shape[:1])
            cond_BU = jnp.where(dropped_B[:, None], self.unconditional[...], cond_BU)
        if self.config.next_scale:
            told_B = batch["before"][:, 0] >= 0
            if key is not None:
                told_B &= jax.random.bernoulli(context_key, 1 - self.config.context_dropout, told_B.shape)
            rows = self._scales(batch["codes"], batch["before"], told_B)
        else:
            rows = {name: batch[name] for name in ("text", "reads", "targets")}
        return self.lm.loss({**rows, "cond": cond_BU}, visibility=visibility, key=lm_key)

    def context(self, codes_BS: Int[Array, "B S"]) -> Float[Array, "B c E"]:
        """What the next window reads of one: its last latent frames."""
        return self.quantiser.decode(codes_BS[:, None])[:, self.config.quantiser.frames - self.config.context :]

    def _scales(self, codes_BS: Array, before_BS: Array, told_B: Bool[Array, "B"]) -> dict[str, Array]:
        """A next-scale row: the context, then for every scale what the coarser ones add up to."""
        slots, context = self.config.quantiser.slots, self.config.context
        text_S, levels_S = sequence.window(pattern.next_scale(slots), context)
        context_BcE = jnp.where(told_B[:, None, None], self.context(before_BS), 0)
        inputs_BSE = jnp.concatenate([context_BcE, self.quantiser.inputs(codes_BS)], axis=1)
        codes_BS = jnp.pad(codes_BS, ((0, 0), (context, 0)), constant_values=-1)
        return {
            "text": jnp.broadcast_to(text_S, codes_BS.shape),
            "inputs": jax.lax.stop_gradient(inputs_BSE),
            "levels": jnp.asarray(levels_S)[None],
            "targets": jnp.where(levels_S[:, None] == np.arange(len(slots)), codes_BS[..., None], -1),
        }
