"""Which position may attend to which: structural and static, so that a kernel can be chosen by it."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int


@dataclass(frozen=True)
class Visibility:
    """A rule over positions; hashable, so it can be a static argument.

    Args:
      kind: "causal" (a position sees itself and those before), "full" (all see all), or "groups".
      groups: for "groups" only, the group of each position: i sees j iff groups[j] <= groups[i].
    """

    kind: str
    groups: tuple[int, ...] = ()

    @classmethod
    def causal(cls) -> "Visibility":
        return cls("causal")

    @classmethod
    def full(cls) -> "Visibility":
        return cls("full")

    @classmethod
    def of_groups(cls, groups: Sequence[int]) -> "Visibility":
        """The rule of a group for each position, named causal or full where it is that."""
        steps_S = np.diff(groups)
        if (steps_S > 0).all():
            return cls.causal()
        if not steps_S.any():
            return cls.full()
        return cls("groups", tuple(int(group) for group in groups))

    @classmethod
    def prefix(cls, n: int, total: int) -> "Visibility":
        """The first `n` of `total` positions see each other; the rest see everything before them."""
        return cls.of_groups(np.maximum(np.arange(total) - n + 1, 0))

    @classmethod
    def block_causal(cls, sizes: Sequence[int]) -> "Visibility":
        """Blocks of the given sizes: a position sees its own block and all blocks before it."""
        return cls.of_groups(np.repeat(np.arange(len(sizes)), sizes))

    def pairs(self, positions: int) -> int:
        """How many (query, key) pairs of so many positions see each other."""
        if self.kind == "causal":
            return positions * (positions + 1) // 2
        if self.kind == "full":
            return positions * positions
        sizes = np.bincount(self.groups[:positions])
        return int((sizes * np.cumsum(sizes)).sum())

    def mask(self, q_S: Int[Array, "*q"], k_S: Int[Array, "*k"]) -> Bool[Array, "*q_k"]:
        """True where a query position sees a key position.

        Args:
          q_S: query positions [q] (may be traced).
          k_S: key positions [k].
        Returns:
          bool [q, k].
        """
        q_S1, k_1S = jnp.asarray(q_S)[..., :, None], jnp.asarray(k_S)[..., None, :]
        if self.kind == "causal":
            return k_1S <= q_S1
        if self.kind == "full":
            return jnp.broadcast_to(True, jnp.broadcast_shapes(q_S1.shape, k_1S.shape))
        groups_S = jnp.asarray(self.groups, jnp.int32)
        return groups_S[k_1S] <= groups_S[q_S1]
