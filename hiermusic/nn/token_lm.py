"""A transformer over text ids, codes of a hierarchy and continuous inputs: their sums in, softmaxes over codes out.

Letters: B batch, S positions, K levels, D width, V codes of a level, Z text ids, E width of an input, U of a condition.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.param import in_type, weight, zeros
from hiermusic.nn.transformer import Transformer
from hiermusic.parallel.mesh import AXES, Rules, gathered
from hiermusic.tokens.visibility import Visibility

Batch = Mapping[str, Array]
Metrics = dict[str, Array]

_ROWS = 512  # positions whose full-vocabulary logits exist at once


@dataclass(frozen=True)
class TokenLMConfig:
    """A token model over `levels` levels of `codes` codes each, and `text_size` text ids.

    Args:
      transformer: the trunk.
      levels, codes: of the hierarchy; levels with fewer codes leave rows unused.
      text_size: 0 for no text.
      head: "window": the softmax of a target runs over the codes of its level, and over `end` besides at level 0;
        "full": over all text ids and all codes of all levels; "shared": over V codes, by one head with a bias for all
        levels (AAR), of which a position predicts one.
      end: text id that ends a song in the window form; None for models that predict no end.
      z_loss: weight of the squared log-normaliser.
      head_init: factor on the heads' initial spread (AAR: 0.02).
      reads: positions read codes.
      shared_embed: all levels read from one table, in which a code is the same whatever its level.
      inputs: E, width of a vector that positions without text id read (AAR: of the latents decoded so far); 0 = none.
      level_embed: positions are told the level that they belong to.
      code_bias: a bias for each code of each level, where how often a code is used can stand; in the shared form in
        place of the one bias for all levels.
      cond: U, width of a vector that conditions a whole row: it is added wherever a text id is read, and drives the
        norms of an adaptive transformer; 0 = none.
      given: the first levels that are read and never predicted, which have no heads.
      segments: the segment that each level belongs to, of a model that is told: a position belongs to that of the code
        that it reads, and to the last where it reads a text id; () = untold.
      null: positions may read `codes` in place of a code: that there is one, which is left out.
    Raises:
      UserError: for an unknown head, an `end` that is no text id or that the head cannot predict, a `code_bias` of
        the full form, an adaptive transformer without a condition, given levels whose heads stand where they cannot be
        left out.
    """

    transformer: TransformerConfig
    levels: int
    codes: int
    text_size: int = 0
    head: str = "window"
    end: int | None = None
    z_loss: float = 0.0
    head_init: float = 1.0
    reads: bool = True
    shared_embed: bool = False
    inputs: int = 0
    level_embed: bool = False
    code_bias: bool = False
    cond: int = 0
    given: int = 0
    segments: tuple[int, ...] = ()
    null: bool = False

    def __post_init__(self):
        if self.head not in ("window", "full", "shared"):
            raise UserError(f"token model head is '{self.head}': choose from window, full, shared")
        if self.end is not None and not 0 <= self.end < self.text_size:
            raise UserError(f"end id {self.end} is not one of the {self.text_size} text ids")
        if self.end is not None and self.head == "shared":
            raise UserError("a shared head predicts no end: choose head window or full, or end None")
        if self.code_bias and self.head == "full":
            raise UserError("code_bias belongs to the window and shared forms: the head is 'full'")
        if self.transformer.adaptive and not self.cond:
            raise UserError("an adaptive transformer needs a condition: set cond to its width")
        if self.given and (self.head != "window" or self.code_bias or self.end is not None):
            raise UserError("heads of predicted levels alone go with the window form without code_bias and end")

    @property
    def predicts_text(self) -> bool:
        """Whether text ids have a head: a shared one knows codes only, and a lone id that is no end starts a row."""
        return self.head != "shared" and (self.text_size > 1 or self.end is not None)

    def flops(self, positions: int, visibility: Visibility, heads: int) -> float:
        """Floating-point operations of one row's forward pass in `heads` level heads, two for a multiplication and its
        addition; of attention only the pairs that see each other count."""
        D = self.transformer.width
        ends = heads * 2.0 * positions * D * self.codes + 2.0 * positions * self.inputs * D
        condition = 2.0 * (self.cond * D + D * D) if self.cond else 0.0
        return self.transformer.flops(positions, visibility) + ends + condition


class TokenLM(nnx.Module):
    """Tables and projections of what is read, a transformer, and untied heads."""

    def __init__(self, config: TokenLMConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        D, K, V, Z = c.transformer.width, c.levels, c.codes, c.text_size
        std, share = c.transformer.init_std, c.transformer.width_share
        init, head_init = initializers.normal(std), initializers.normal(std * c.head_init)
        self.text_embed = weight(rngs, (Z, D), ("vocab", "embed"), init, decay=Z > 1) if Z else None
        tables = (1 if c.shared_embed else K, V, D)
        self.code_embed = weight(rngs, tables, ("levels", "codes", "embed"), init) if c.reads else None
        self.input_proj = weight(rngs, (c.inputs, D), (None, "embed"), init) if c.inputs else None
        self.input_bias = zeros(rngs, (D,), ("embed",)) if c.inputs else None
        self.level_embed = weight(rngs, (K + 1, D), ("levels", "embed"), init, decay=False) if c.level_embed else None
        segments = (max(c.segments) + 1, D) if c.segments else ()
        self.segment_embed = weight(rngs, segments, (None, "embed"), init, decay=False) if segments else None
        self.null_embed = weight(rngs, (D,), ("embed",), init, decay=False) if c.null else None
        if c.cond:
            hidden = initializers.normal(std * math.sqrt(share))
            self.cond_in = weight(rngs, (c.cond, D), (None, "embed"), init)
            self.cond_out = weight(rngs, (D, D), ("embed", None), hidden, share)
        self.trunk = Transformer(c.transformer, rngs=rngs)
        self.text_head = weight(rngs, (Z, D), ("vocab", "embed"), head_init) if c.predicts_text else None
        if c.head == "shared":
            self.code_head = weight(rngs, (V, D), ("codes", "embed"), head_init)
        else:
            self.code_head = weight(rngs, (K - c.given, V, D), ("levels", "codes", "embed"), head_init)
        if c.code_bias:
            self.code_bias = zeros(rngs, (K, V), ("levels", "codes"))
        else:
            self.code_bias = zeros(rngs, (V,), ("codes",)) if c.head == "shared" else None

    def condition(self, cond_BU: Float[Array, "B U"]) -> Float[Array, "B D"]:
        """Condition vectors as `embed` and the transformer take them, float32.

        Raises:
          UserError: when they have another width than the model's.
        """
        if cond_BU.shape[-1] != self.config.cond:
            raise UserError(
                f"a condition of {cond_BU.shape[-1]} numbers does not fit a model of {self.config.cond}: "
                "make it with the encoder that the model was trained with"
            )
        hidden_BD = jax.nn.gelu(cond_BU.astype(jnp.float32) @ self.cond_in[...])
        return hidden_BD @ self.cond_out[...]

    def embed(
        self,
        text_BS: Int[Array, "B S"],
        reads_BSK: Int[Array, "B S K"] | None = None,
        *,
        inputs_BSE: Float[Array, "B S E"] | None = None,
        levels_BS: Int[Array, "B S"] | None = None,
        cond_BD: Float[Array, "B D"] | None = None,
    ) -> Float[Array, "B S D"]:
        """The sum of all that each position reads; zeros where that is nothing.

        Args:
          text_BS: text ids, -1 for none.
          reads_BSK: codes of each level, -1 for none, `codes` for one that is left out.
          inputs_BSE: vectors, read where no text id is; None for none anywhere.
          levels_BS: the level of each position, K for what belongs to none (context), -1 for unsaid; B may be 1.
          cond_BD: from `condition`, added where a text id is read.
        """
        dtype = self.config.transformer.dtype
        x_BSD = jnp.zeros((*text_BS.shape, self.config.transformer.width), jnp.float32)
        if self.text_embed is not None:
            x_BSD = x_BSD + _text_rows(self.text_embed, text_BS)
        is_text_BS1 = (text_BS >= 0)[..., None]
        if cond_BD is not None:
            x_BSD = x_BSD + jnp.where(is_text_BS1, cond_BD[:, None], 0)
        if inputs_BSE is not None:
            read_BSD = inputs_BSE.astype(jnp.float32) @ self.input_proj[...] + self.input_bias[...]
            x_BSD = x_BSD + jnp.where(is_text_BS1, 0, read_BSD)
        if self.level_embed is not None:
            x_BSD = x_BSD + _rows(_whole(self.level_embed), levels_BS)
        if reads_BSK is None:
            return x_BSD.astype(dtype)

        if self.segment_embed is not None:
            x_BSD = x_BSD + _rows(_whole(self.segment_embed), self._segments(text_BS, reads_BSK))
        if self.null_embed is not None:
            is_null_BSK = reads_BSK == self.config.codes
            x_BSD = x_BSD + jnp.where(is_null_BSK.any(-1, keepdims=True), self.null_embed[...], 0)
            reads_BSK = jnp.where(is_null_BSK, -1, reads_BSK)

        # Level by level: all levels at once would be [B, S, K, D], gigabytes for a 64-level hierarchy.
        def add(x_BSD, level):
            table_VD, reads_BS = level
            return x_BSD + _rows(table_VD, reads_BS.astype(jnp.int32)), None  # they may come in fewer bits

        K = reads_BSK.shape[-1]
        tables_KVD = jnp.broadcast_to(_whole(self.code_embed), (K, *self.code_embed.shape[1:]))
        inputs = (tables_KVD, jnp.moveaxis(reads_BSK, -1, 0))
        x_BSD, _ = jax.lax.scan(jax.checkpoint(add), x_BSD, inputs)
        return x_BSD.astype(dtype)

    def _segments(self, text_BS: Int[Array, "B S"], reads_BSK: Int[Array, "B S K"]) -> Int[Array, "B S"]:
        """The segment that each position belongs to, -1 where nothing is read."""
        segment_K = jnp.asarray(self.config.segments)
        read_BS = jnp.where(reads_BSK >= 0, segment_K, -1).max(-1)
        return jnp.where(text_BS >= 0, segment_K[-1], read_BS)

    def hidden(self, batch: Batch, *, visibility: Visibility, key: Array | None = None) -> Float[Array, "B S D"]:
        """The trunk's output at every position of a batch as in `loss`."""
        cond_BD = self.condition(batch["cond"]) if self.config.cond else None
        x_BSD = self.embed(
            batch["text"],
            batch.get("reads"),
            inputs_BSE=batch.get("inputs"),
            levels_BS=batch.get("levels"),
            cond_BD=cond_BD,
        )
        return self.trunk(
            x_BSD,
            visibility=visibility,
            positions_BS=batch.get("positions"),
            valid_BS=batch.get("valid"),
            cond_BD=cond_BD if self.config.transformer.adaptive else None,
            key=key,
        )

    def level_logits(self, x: Float[Array, "*p D"], level: int | Array) -> Float[Array, "*p V"]:
        """Logits of the codes of one level, float32; `level` may be traced."""
        if self.config.head == "shared":
            bias_V = self.code_bias[level] if self.config.code_bias else self.code_bias[...]
            return self._logits(x, _whole(self.code_head)) + bias_V
        head_VD = jax.lax.dynamic_index_in_dim(self.code_head[...], level - self.config.given, keepdims=False)
        logits = self._logits(x, gathered(head_VD, self.code_head.get_metadata()["axes"][1:]))
        return logits if self.code_bias is None else logits + self.code_bias[level]

    def row_logits(self, x_BSD: Float[Array, "B S D"], level_B: Int[Array, "B"]) -> Float[Array, "B S V"]:
        """Logits of the codes of each row's own level, float32; not of a shared head."""
        # whole along `fsdp`, as the table that is read: rows of one batch want most of the levels
        head_BVD = _whole(self.code_head).astype(x_BSD.dtype)[level_B - self.config.given]
        logits_BSV = jnp.einsum("bsd,bvd->bsv", x_BSD, head_BVD, preferred_element_type=jnp.float32)
        logits_BSV = logits_BSV * self.config.transformer.width_share
        return logits_BSV if self.code_bias is None else logits_BSV + self.code_bias[...][level_B][:, None]

    def text_logits(self, x: Float[Array, "*p D"], ids: Int[Array, "n"]) -> Float[Array, "*p n"]:
        """Logits of some text ids, float32."""
        return self._logits(x, self.text_head[...][jnp.asarray(ids)])

    def compact(self) -> "TokenLM":
        """The same model for inference, the same to the bit: the trunk's matrices and the heads in the compute type.

        They are multiplied in nothing else; tables stay float32, in which their rows are summed.
        """
        other = jax.tree.map(lambda x: x, self)
        dtype = self.config.transformer.dtype
        other.trunk = self.trunk.compact()
        other.code_head = in_type(self.code_head, dtype)
        if self.text_head is not None:
            other.text_head = in_type(self.text_head, dtype)
        return other

    def unstack(self) -> "TokenLM":
        """The same model with its trunk's weights layer by layer, for decoding."""
        other = jax.tree.map(lambda x: x, self)
        other.trunk = self.trunk.unstack()
        return other

    def loss(
        self, batch: Batch, *, visibility: Visibility, key: Array | None = None
    ) -> tuple[Float[Array, ""], Metrics]:
        """Mean cross-entropy of the predicted tokens.

        Args:
          batch: `text` [B, S] ids read and `targets` [B, S, K] codes predicted, int with -1 for none; what the model
            reads besides: `reads` [B, S, K] codes with -1 for none, `inputs` [B, S, E], `levels` [B, S] and `cond`
            [B, U] as in `embed` and `condition`; and optionally `text_targets` [B, S] text ids predicted, -1 none (in
            the window form only the end), `valid` [B, S] bool, `positions` [B, S], and `level` [B]: then each row
            predicts that level alone, `targets` are [B, S], and no other head is computed for it.
          visibility: who sees whom.
          key: of dropout; None for none.
        Returns:
          the loss, and `loss`, `accuracy`, and of every level `ce_K` (0 where it has no targets) and `count_K`; level 0
          counts text targets too.
        """
        x_BSD = self.hidden(batch, visibility=visibility, key=key)
        ends_BS = batch.get("text_targets")
        if ends_BS is None:
            ends_BS = jnp.full(batch["text"].shape, -1, jnp.int32)
        targets_BSK, level_B = batch["targets"], batch.get("level")
        if level_B is not None:
            own_BSK = jnp.arange(self.config.levels) == level_B[:, None, None]
            targets_BS, targets_BSK = targets_BSK, jnp.where(own_BSK, targets_BSK[..., None], -1)
        if self.config.head == "full":
            sums = self._full(x_BSD, targets_BSK, ends_BS)
        elif self.config.head == "shared":
            sums = self._shared(x_BSD, targets_BSK, ends_BS)
        elif level_B is not None:
            per_B = jax.checkpoint(self._window)(x_BSD, level_B, targets_BS, ends_BS)
            sums = jax.tree.map(lambda value_B: jnp.zeros(self.config.levels).at[level_B].add(value_B), per_B)
        else:

            def each(_, inputs):
                return None, jax.tree.map(jnp.sum, self._window(x_BSD, *inputs, ends_BS))

            given = self.config.given
            levels, targets_KBS = jnp.arange(given, self.config.levels), jnp.moveaxis(targets_BSK, -1, 0)[given:]
            _, sums = jax.lax.scan(jax.checkpoint(each), None, (levels, targets_KBS))
            sums = jax.tree.map(lambda value_K: jnp.pad(value_K, (given, 0)), sums)
        ce_K, z_K, hits_K, count_K = sums
        count = jnp.maximum(count_K.sum(), 1)
        loss = (ce_K.sum() + self.config.z_loss * z_K.sum()) / count
        metrics = {
            "loss": loss,
            "accuracy": hits_K.sum() / count,
            "ce_K": ce_K / jnp.maximum(count_K, 1),
            "count_K": count_K,
        }
        return loss, metrics

    def _logits(self, x: Float[Array, "*p D"], head: Float[Array, "*rows D"]) -> Float[Array, "..."]:
        logits = jnp.tensordot(x, head.astype(x.dtype), (-1, -1), preferred_element_type=jnp.float32)
        return logits * self.config.transformer.width_share

    def _window(self, x_BSD, level, targets_BS, ends_BS):
        """Of each row, sums over its targets of one level: cross-entropy, squared log-normaliser, hits, count.

        `level` is [] or [B].
        """
        of = self.row_logits if jnp.ndim(level) else self.level_logits
        logits_BSV, first_B1 = of(x_BSD, level), jnp.reshape(level == 0, (-1, 1))
        normaliser_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
        picked_BS, best_BS = _pick(logits_BSV, targets_BS), jnp.argmax(logits_BSV, axis=-1)
        hit_BS, counted_BS = best_BS == targets_BS, targets_BS >= 0
        if self.config.end is not None:
            end_BS = self.text_logits(x_BSD, jnp.array([self.config.end]))[..., 0]
            is_end_BS, beats_BS = first_B1 & (ends_BS >= 0), end_BS > logits_BSV.max(axis=-1)
            normaliser_BS = jnp.where(first_B1, jnp.logaddexp(normaliser_BS, end_BS), normaliser_BS)
            picked_BS = jnp.where(is_end_BS, end_BS, picked_BS)
            hit_BS = jnp.where(is_end_BS, beats_BS, hit_BS & ~(first_B1 & beats_BS))
            counted_BS = counted_BS | is_end_BS
        per_BS = (normaliser_BS - picked_BS, jnp.square(normaliser_BS), hit_BS)
        return *(jnp.where(counted_BS, v, 0).sum(1) for v in per_BS), counted_BS.sum(1).astype(jnp.float32)

    def _shared(self, x_BSD, targets_BSK, ends_BS):
        """Sums for each level, in one pass: a position has one target at most."""
        logits_BSV, target_BS = self._logits(x_BSD, _whole(self.code_head)), targets_BSK.max(-1)
        if self.config.code_bias:
            own_BSK = (targets_BSK >= 0).astype(jnp.float32)
            logits_BSV = logits_BSV + jnp.einsum("bsk,kv->bsv", own_BSK, self.code_bias[...])
        else:
            logits_BSV = logits_BSV + self.code_bias[...]
        normaliser_BS = jax.nn.logsumexp(logits_BSV, axis=-1)
        hit_BS = jnp.argmax(logits_BSV, axis=-1) == target_BS
        ce_BS, squared_BS = normaliser_BS - _pick(logits_BSV, target_BS), jnp.square(normaliser_BS)
        per_BS = (ce_BS, squared_BS, hit_BS, jnp.ones_like(ce_BS))
        return tuple(_per_level(value_BS[..., None], 0.0, targets_BSK, ends_BS) for value_BS in per_BS)

    def _full(self, x_BSD, targets_BSK, ends_BS):
        """Sums for each level, over the softmax of all rows; some positions at a time."""
        B, S = x_BSD.shape[:2]
        n = -(-S // _ROWS)
        size = -(-S // n)

        def blocks(x, fill):
            x = jnp.pad(x, [(0, 0), (0, n * size - S)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
            return x.reshape(B, n, size, *x.shape[2:]).swapaxes(0, 1)

        def one(_, inputs):
            x_BsD, targets_BsK, ends_Bs = inputs
            logits_BsKV = self._logits(x_BsD, self.code_head[...])
            normaliser_Bs = jax.nn.logsumexp(logits_BsKV, axis=(-2, -1))
            picked_BsK = _pick(logits_BsKV, targets_BsK)
            best_Bs = logits_BsKV.max(axis=(-2, -1))
            picked_end_Bs = jnp.zeros(ends_Bs.shape)
            if self.text_head is not None:
                logits_BsZ = self._logits(x_BsD, self.text_head[...])
                normaliser_Bs = jnp.logaddexp(normaliser_Bs, jax.nn.logsumexp(logits_BsZ, axis=-1))
                picked_end_Bs = _pick(logits_BsZ, ends_Bs)
                best_Bs = jnp.maximum(best_Bs, logits_BsZ.max(axis=-1))
            return None, (
                _per_level(normaliser_Bs[..., None] - picked_BsK, normaliser_Bs - picked_end_Bs, targets_BsK, ends_Bs),
                _per_level(jnp.square(normaliser_Bs)[..., None], jnp.square(normaliser_Bs), targets_BsK, ends_Bs),
                _per_level(picked_BsK >= best_Bs[..., None], picked_end_Bs >= best_Bs, targets_BsK, ends_Bs),
                _per_level(1.0, 1.0, targets_BsK, ends_Bs),
            )

        inputs = (blocks(x_BSD, 0), blocks(targets_BSK, -1), blocks(ends_BS, -1))
        _, sums = jax.lax.scan(jax.checkpoint(one), None, inputs)
        return jax.tree.map(lambda value_nK: value_nK.sum(0), sums)


def _per_level(value_BsK, end_Bs, targets_BsK, ends_Bs):
    """Sums of a value over each level's targets, text targets counted with level 0."""
    sums_K = jnp.where(targets_BsK >= 0, value_BsK, 0).sum((0, 1), dtype=jnp.float32)
    return sums_K.at[0].add(jnp.where(ends_Bs >= 0, end_Bs, 0).sum(dtype=jnp.float32))


def _whole(table: nnx.Param) -> Array:
    """A table with whole rows to look up: gathered once, instead of the activations being shuffled."""
    return gathered(table[...], table.get_metadata()["axes"])


def _text_rows(table: nnx.Param, ids_BS: Array) -> Float[Array, "B S D"]:
    """As `_rows`, from the text table, which is too large to be gathered where `fsdp` splits it.

    Every device looks its columns up for all rows of its `fsdp` group, and these exchange columns for rows.
    """
    (Z, D), (B, S), mesh = table.shape, ids_BS.shape, jax.sharding.get_abstract_mesh()
    sizes = mesh.shape if set(AXES) <= set(mesh.axis_names) else dict.fromkeys(AXES, 1)
    groups = sizes["data"] * sizes["fsdp"]
    if sizes["fsdp"] == 1 or Z % sizes["tensor"] or D % sizes["fsdp"] or B % groups or S % sizes["context"]:
        return _rows(_whole(table), ids_BS)

    def local(table_rd, ids_bs):
        ids_BS = jax.lax.all_gather(ids_bs, "fsdp", tiled=True) - jax.lax.axis_index("tensor") * len(table_rd)
        rows_BSd = _rows(table_rd, jnp.where(ids_BS < len(table_rd), ids_BS, -1))
        rows_BSd = jax.lax.psum(rows_BSd, "tensor")
        return jax.lax.all_to_all(rows_BSd, "fsdp", 0, 2, tiled=True)

    batch, positions = Rules.batch, Rules.positions
    split = {"in_specs": (P(Rules.vocab, Rules.embed), P(batch, positions)), "out_specs": P(batch, positions, None)}
    return jax.shard_map(local, **split, check_vma=False)(table[...], ids_BS)


def _rows(table_ZD: Array, ids_BS: Array) -> Float[Array, "B S D"]:
    """Rows of a table in float32, zeros where the id is negative."""
    return jnp.where(ids_BS[..., None] >= 0, table_ZD[jnp.maximum(ids_BS, 0)].astype(jnp.float32), 0)


def _pick(logits: Float[Array, "*p V"], ids: Int[Array, "*p"]) -> Float[Array, "*p"]:
    """The logit of each id (0 where negative), by comparison: a gather would break a vocabulary split over devices."""
    match = jnp.arange(logits.shape[-1]) == ids[..., None]
    return jnp.where(match, logits, 0).sum(-1)
