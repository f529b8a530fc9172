"""What a fresh model begins with: the weights of another run, and what a codec knows of its codes."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hiermusic.codec.codec import Codec
from hiermusic.errors import UserError
from hiermusic.nn.param import Adapter, Lent
from hiermusic.train import checkpoint

_BY_LEVEL = {"code_embed": 3, "code_head": 3, "code_bias": 2}  # dimensions of tables that have a row for each level


def from_run(source: str, model: nnx.Module) -> None:
    """Copies the weights of a run into a model, in place; nothing where `source` is empty.

    The run may know fewer levels than the model: rows of its tables (`_BY_LEVEL`) for the levels it does not know stay
    as they were. What the model only borrows, beside its adapters, the run must have whole.

    Args:
      source: WORKDIR or WORKDIR@STEP.
      model: fresh.
    Raises:
      UserError: a run of another model.
    """
    if not source:
        return
    weights = checkpoint.load_base(source)
    target = nnx.state(model)
    for path, variable in nnx.to_flat_state(target):
        if isinstance(variable, Adapter):
            continue
        found = weights
        for key in path:
            found = found.get(str(key), {}) if isinstance(found, dict) else {}
        if isinstance(found, dict):
            raise UserError(f"{source} has no weight {'.'.join(map(str, path))}: it is of another model")
        value = variable[...]
        rows = len(found) if value.ndim == _BY_LEVEL.get(path[-1]) else len(value) if value.ndim else None
        if found.shape[1:] != value.shape[1:] or (value.ndim and (len(found) != rows or rows > len(value))):
            name = ".".join(map(str, path))
            raise UserError(f"{source}: {name} is {found.shape}, this model's is {value.shape}")
        if isinstance(variable, Lent) and rows != (len(value) if value.ndim else None):
            name = ".".join(map(str, path))
            raise UserError(f"{source} knows {rows} of {len(value)} levels of {name}: add it to lora.beside")
        if value.ndim and rows < len(value):
            variable[...] = value.at[:rows].set(found)
        else:
            _fill(variable, found)
    nnx.update(model, target)


def from_codec(codec: Codec, model: nnx.Module, counts_KV: np.ndarray | None = None) -> None:
    """Lets a token model begin with what its codec knows, in place: what codes stand for and how often they are used.

    Codes that lie near each other begin near each other, in the table that is read and in the heads, and what is
    learned of one level serves the others, since all lie in the codec's one space of latent frames; heads begin at the
    codes' frequencies. Deep levels, each of which a short run sees a few times, would otherwise not get as far. A head
    that all levels share takes their frequencies alone: its row v stands for another code at each of them.

    Args:
      codec: with at least as many levels as the model's.
      model: a `TokenLM` with `code_bias`.
      counts_KV: how often each code stands in the tracks to learn from; the codec's averages when left out, which look
        back over too little where a batch holds a handful of a level's tokens.
    """
    levels, width = model.config.levels, model.config.transformer.width
    # on the host: the codec lies on one device, and the mesh in force may have more
    books_KVD = np.asarray(codec.quantiser.codebooks[...], np.float64)[:levels]
    if counts_KV is None:
        counts_KV = np.asarray(codec.quantiser.ema_counts[...], np.float64)[:levels]
    share_KV = (counts_KV + 0.5) / (counts_KV + 0.5).sum(1, keepdims=True)
    books_KVD = books_KVD - (share_KV[..., None] * books_KVD).sum(1, keepdims=True)
    size = max(width, books_KVD.shape[-1])
    # one rotation whatever the run's seed: tables of levels that a run adds lie as those that it begins with
    turn_DD = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    tables_KVD = books_KVD @ turn_DD[: books_KVD.shape[-1], :width]
    spread_K11 = np.sqrt(np.mean(np.square(tables_KVD), axis=(1, 2), keepdims=True)) + 1e-9
    drawn = float(jnp.std(model.code_head[...]))
    tables = {"code_bias": np.log(share_KV) - np.log(share_KV).mean(1, keepdims=True)}
    if model.config.head != "shared":  # the finer a level, the nearer its head begins to nothing but frequencies
        tables["code_head"] = drawn * tables_KVD / spread_K11[0]
    if model.config.reads:  # finer levels say less, but not as much less as their size
        tables["code_embed"] = drawn * tables_KVD / np.sqrt(spread_K11 * spread_K11[0])
    for name, table in tables.items():
        _fill(getattr(model, name), table)


def _fill(variable: nnx.Variable, array: np.ndarray) -> None:
    """Puts an array in the place of a variable's, without computing: that would take a program for each shape."""
    value = variable[...]
    whole = np.asarray(array, value.dtype)
    variable[...] = jax.make_array_from_callback(value.shape, value.sharding, lambda part: whole[part])
