"""What a system offers. The rest of the package asks it through this and knows no system by name."""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hiermusic.errors import UserError, brief

if TYPE_CHECKING:
    import numpy as np
    from flax import nnx
    from ml_collections import ConfigDict

    from hiermusic.generate.windows import Player
    from hiermusic.pretrained.family import Family
    from hiermusic.systems.demos import Demo
    from hiermusic.systems.programs import Generation
    from hiermusic.train.stage import Stage


LARGEST = 1e12  # of a number that a flag takes: what is multiplied by a rate must stay one, and NaN passes other bounds
_TAKEN = {
    str: ("text", (str, os.PathLike)),
    bool: ("True or False", bool),
    int: ("a whole number", Integral),
    float: ("a number", Real),
}


@dataclass(frozen=True)
class Flag:
    """A flag of `hiermusic generate` and `continue` that a system understands.

    Args:
      name, text: of the flag, and what help says of it.
      of: what it sets: a "model" (the workdir of one; that which begins stands first and tells the system), a word of
        the "prompt", the "sampling" of the model that begins, or "else".
      kind: of its value; a bool is False where it is not given, all others None.
      lower, upper: of a number.
    """

    name: str
    text: str
    of: Literal["model", "prompt", "sampling", "else"]
    kind: type[str] | type[int] | type[float] | type[bool] = str
    lower: float | None = None
    upper: float | None = None

    def of_python(self, value: Any) -> str | int | float | bool:
        """A value from Python as the command line would have read it; UserError for one that it would not take."""
        words, kinds = _TAKEN[self.kind]
        least, most = (-LARGEST if self.lower is None else self.lower), (LARGEST if self.upper is None else self.upper)
        if isinstance(value, kinds) and isinstance(value, bool) == (self.kind is bool):
            read = os.fspath(value) if self.kind is str else self.kind(value)
            if self.kind in (str, bool) or (math.isfinite(read) and least <= read <= most):
                return read
        bounds = (("least", self.lower), ("most", self.upper))
        told = " and ".join(f"at {word} {bound:g}" for word, bound in bounds if bound is not None)
        raise UserError(f"{self.name}={brief(repr(value), 40)}: give {', '.join(filter(None, (words, told)))}")


CODEC = Flag("codec", "workdir of a trained codec; default: the one that made the model's tokens", "else")
SAMPLING = (
    Flag("temperature", "temperature of the model that begins; default: its workdir's", "sampling", float, 0.0),
    Flag("top_k", "its top-k; default: its workdir's", "sampling", int, 0),
    Flag("top_p", "its top-p; default: its workdir's", "sampling", float, 0.01, 1.0),
    Flag("guidance", "guidance scale, 1 = none; default: the workdir's", "sampling", float, 0.0),
)
ROWS = Flag(
    "rows",
    "songs made at once, each on disk before the next are begun; default: 64, or as many as there is memory for",
    "else",
    int,
    1,
)
USE_OF_A_CODEC = "hiermusic encode --codec=FOLDER in.wav codes.npz\nhiermusic decode --codec=FOLDER codes.npz out.wav"


@dataclass(frozen=True)
class Rooms:
    """What is done with a system's stages.

    Args:
      make_model: configuration -> the constructor of what its stage trains.
      stage: configuration -> its training stage, the data still to be opened.
      inspect: configuration -> parameters by component, rates, sequence length, from abstract shapes alone.
      cross_entropy: (configuration of a token model, its weights, token records, at most so many tracks,
        (name, tracks, measurement of a track) -> what was measured of every track, what is called after every step) ->
        teacher-forced, of each held-out track, nats of all predicted tokens of each level [N, K] and how often each
        code was one of them [N, K, V]; and how often it stands in the training tracks [K, V].
      likelihood: (as `cross_entropy`, and by name what becomes of a track) -> nats a token of each track as it is and
        as it was changed [N], for models that read words; None for a system without.
      program: (configuration, songs made at once) -> the program that generating with its model spends its time in.
      generate: (requests, folder, options=sampling settings that were given, audio=file to go on from or None,
        mesh=axis -> devices, rows=songs made at once, and by its name each flag of "model" or "else" that was given) ->
        songs as JSON objects, each written as NAME.wav, NAME.npz and NAME.json.
      demo: (folder for all it makes, folder of configurations) -> everything of the system once, small.
      families: what its authors have published, by kind.
      formats: by name, what writes models as its authors publish them: (folder, of each model the configuration, its
        weights by dotted name and its folder) -> the names of the files.
      accompanist: workdirs of its chain's stages, by their names -> what plays windows of an accompaniment
        (`generate.windows.Player`), with the `tokenizers` that made its tokens, the `noise` that vocals were under,
        the `levels` that it makes and its `sampling`; None of a system that accompanies nothing.
    """

    make_model: "Callable[[ConfigDict], Callable[[nnx.Rngs], nnx.Module]]"
    stage: "Callable[[ConfigDict], Stage]"
    inspect: "Callable[[ConfigDict], dict[str, Any]]"
    cross_entropy: "Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]"
    program: "Callable[[ConfigDict, int], Generation]"
    generate: Callable[..., list[dict[str, Any]]]
    demo: "Callable[[Path, Path], Demo]"
    families: "Mapping[str, Family]" = field(default_factory=dict)
    formats: Mapping[str, Callable[..., list[str]]] = field(default_factory=dict)
    accompanist: "Callable[[Mapping[str, str]], Player] | None" = None
    likelihood: "Callable[..., dict[str, np.ndarray]] | None" = None


@dataclass(frozen=True)
class System:
    """A system: what is told of it without JAX, as help and the command line need it, and how to come by its rooms.

    Args:
      name: in the field `system` of configurations, behind --system, and of the folder in configs/.
      title: as a sentence names it.
      stages: in the field `stage`; the one named `codec` trains a codec, the others token models.
      sizes: fields of `model` that mean nothing unless they are whole numbers of 1 or more.
      flags: of generation.
      uses: stage -> the command that a model card shows.
      examples: verb -> the command that its help shows; of `generate` and `continue` none where its songs do not begin
        with a prompt.
      load: imports the rooms, which is much to load.
      tokenizers: of the stages, those whose models make tokens of sound.
      versions: sounds that may lie beside NAME.wav, as NAME.VERSION.wav.
      chain: stages that together accompany a vocal, in their order.
      spare: those of them that may be left out.
      places: fields, besides `data.path`, `data.codec` and `init_from`, that name files or folders.
      kinds: of published models that `hiermusic import` takes.
      formats: of `hiermusic export`: what its help says of each, by name.
    """

    name: str
    title: str
    stages: tuple[str, ...]
    sizes: frozenset[str]
    flags: tuple[Flag, ...]
    uses: Mapping[str, str]
    examples: Mapping[str, str]
    load: Callable[[], Rooms]
    tokenizers: tuple[str, ...] = ("codec",)
    versions: tuple[str, ...] = ()
    chain: tuple[str, ...] = ()
    spare: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def rooms(self) -> Rooms:
        return self.load()
