"""Public encoders as folders of ours, and what they make of sounds of any length: [frames, D]."""

import json
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from hiermusic.errors import UserError, reading
from hiermusic.parallel.pieces import Whole, run_each, rung
from hiermusic.pretrained import export
from hiermusic.pretrained.clap import Clap, ClapConfig
from hiermusic.pretrained.hubert import Hubert, HubertConfig
from hiermusic.pretrained.vggish import Vggish, VggishConfig

STAGE = "encoder"  # in config.json, where other folders say what they were trained as
FAMILIES = {"hubert": HubertConfig, "clap": ClapConfig, "vggish": VggishConfig}
WINDOW = 10.0  # seconds that an encoder of frames hears at once
_AT_ONCE = 41.0  # seconds that a device hears at once: four windows, and what their last frames hear beyond

Config = HubertConfig | ClapConfig | VggishConfig
Encoder = Hubert | Clap | Vggish
T = TypeVar("T")


def to_fields(config: Config) -> dict[str, Any]:
    """What config.json holds of an encoder."""
    family = next(name for name, kind in FAMILIES.items() if isinstance(config, kind))
    return {"stage": STAGE, "family": family, "model": asdict(config)}


def read_config(folder: str | Path) -> Config:
    """The encoder that lies in a folder, without its weights.

    Raises:
      UserError: no folder that `hiermusic import` wrote, or that of something else.
    """
    path = Path(folder) / "config.json"
    with reading(path, "an encoder", "give a folder that `hiermusic import` wrote of HuBERT, CLAP or VGGish"):
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.get("stage") != STAGE:
            kind = f"a {told['stage']}" if "stage" in told else "not imported"
            raise UserError(f"{folder} is {kind}: give an imported encoder (HuBERT, CLAP or VGGish)")
        return of_fields(told)


def of_fields(told: Mapping[str, Any]) -> Config:
    """What `to_fields` made of an encoder; ValueError for anything else."""
    if told["family"] not in FAMILIES:
        raise ValueError(f"its family is {told['family']}, not {', '.join(FAMILIES)}")
    return _made(FAMILIES[told["family"]], told["model"])


def _made(kind: type[T], told: Mapping[str, Any]) -> T:
    """A frozen dataclass of a JSON object that has all of its fields and no other, each of its type."""
    hints = typing.get_type_hints(kind)
    names = {field.name for field in fields(kind)}
    if wrong := sorted(names ^ set(told)):
        raise ValueError(f"it has {'no field' if wrong[0] in names else 'an unknown field'} {wrong[0]}")
    values = {}
    for name in names:
        hint, value = hints[name], told[name]
        if is_dataclass(hint):
            value = _made(hint, value)
        elif isinstance(hint, types.GenericAlias):
            value = tuple(value)
            if not value or not all(type(one) is int and 0 < one < 1 << 24 for one in value):
                raise ValueError(f"its {name} is {value}")
        elif type(value) is not hint and not (hint is float and type(value) is int):
            raise ValueError(f"its {name} is {value!r}")
        elif hint in (int, float) and not 0 <= value < 1 << 24:
            raise ValueError(f"its {name} is {value!r}")
        values[name] = value
    return kind(**values)


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Every weight's shape by dotted name."""
    state = nnx.state(nnx.eval_shape(lambda: config.make(rngs=nnx.Rngs(0))))
    return {name: leaf.shape for name, leaf in export.dotted(nnx.to_pure_dict(state)).items()}


def filled(config: Config, weights: Mapping[str, np.ndarray]) -> Encoder:
    """The encoder with weights by dotted name, on the first device."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: config.make(rngs=nnx.Rngs(0))))
    flat = dict(nnx.to_flat_state(abstract))
    for path, variable in flat.items():
        variable.set_value(jax.numpy.asarray(weights[".".join(map(str, path))], variable.dtype))
    return nnx.merge(graphdef, nnx.from_flat_state(flat))


def load(folder: str | Path, layer: int | None = None) -> Encoder:
    """An imported encoder with its weights.

    Args:
      folder: what `hiermusic import` wrote.
      layer: of HuBERT, whose features are wanted; the folder's own when left out.
    Raises:
      UserError: no such folder or layer, or weights of other shapes than its config.json speaks of.
    """
    config = at_layer(read_config(folder), layer, folder)
    weights = export.load(folder)
    for name, shape in shapes(config).items():
        if name not in weights or weights[name].shape != shape:
            found = weights[name].shape if name in weights else "not there"
            raise UserError(
                f"{folder}: the weight {name} is {found}, its config.json asks for {shape}: import it again"
            )
    return filled(config, weights)


def at_layer(config: Config, layer: int | None, folder: str | Path) -> Config:
    """The same encoder with the features of another layer; UserError where it has none of that number."""
    if layer is None:
        return config
    if not isinstance(config, HubertConfig):
        raise UserError(f"--layer={layer}: {folder} gives vectors of its last layer alone: leave it out")
    if not 0 <= layer <= config.layers:
        raise UserError(f"--layer={layer}: {folder} has the layers 0 to {config.layers}")
    return replace(config, layer=layer)


def window_of(config: Config, window: float | None, folder: str | Path) -> float:
    """The seconds that an encoder hears at once; UserError where some are asked of one whose clips have a length."""
    if window is not None and not isinstance(config, HubertConfig):
        raise UserError(
            f"--window={window:g}: {folder} hears clips of one length and gives a vector for each: leave it out"
        )
    return WINDOW if window is None else window


def embed(encoder: Any, wav_L: Float[np.ndarray, "L"], window: float = WINDOW) -> Float[np.ndarray, "T D"]:
    """Features of a sound of any length.

    CLAP and VGGish give a vector for each of their clips. An encoder of frames hears `window` seconds at a time, each
    by itself: its frames lie where those of the whole sound would, but what it makes of them depends on the window, as
    every frame of HuBERT does on all that is heard with it. The last window ends where the sound does, and only
    frames that no other window has are taken from it.

    Args:
      encoder: of clips (`clips`), or of frames (`config.hop` and `config.span` samples; `config.local` where silence
        behind a clip changes none of them, as nothing of the clip but what is around a frame does).
      wav_L: mono, at the encoder's rate.
      window: seconds; 0 for the whole sound at once.
    Raises:
      UserError: a sound of less than one frame.
    """
    return next(embed_each(encoder, [wav_L], window))


def embed_each(
    encoder: Any, sounds: Iterable[np.ndarray], window: float = WINDOW
) -> Iterator[Float[np.ndarray, "T D"]]:
    """`embed` of sounds one after the other, several of which are heard at once, on all devices of this process."""
    graph, state = nnx.split(encoder)
    return hear_each(partial(_applied, graph), state, encoder, sounds, window)


def hear_each(
    run: partial, state: nnx.State, encoder: Any, sounds: Iterable[np.ndarray], window: float
) -> Iterator[np.ndarray]:
    """What a program makes of sounds one after the other, as `embed` has an encoder hear them; several at once.

    Args:
      run: as `pieces.run_each` takes it: clips [B, L] -> [B, ...] of an encoder's clips, [B, T, ...] of one of frames.
      encoder, sounds, window: as `embed` takes them.
    """
    clips = partial(_clips if hasattr(encoder, "clips") else _frames, encoder, window=window)
    return run_each(run, state, map(clips, sounds), round(_AT_ONCE * encoder.config.sample_rate))


def _clips(encoder: Any, wav_L: np.ndarray, window: float) -> Whole:
    clips_BL = encoder.clips(np.asarray(wav_L, np.float32))
    return Whole(clips_BL.shape[1], len(clips_BL), lambda i: (clips_BL[i],), np.stack)


def frame_count(config: Any, length: int) -> int:
    """Frames of a sound of so many samples: those that lie in it whole."""
    return (length - config.span) // config.hop + 1


def check_length(encoder: Any, length: int) -> None:
    """UserError where a sound of so many samples is too short for an encoder of frames; clips are filled up."""
    if not hasattr(encoder, "clips") and frame_count(encoder.config, length) < 1:
        raise UserError(
            f"a sound of {length} samples is shorter than one frame, which has {encoder.config.span}: take a longer one"
        )


def _frames(encoder: Any, wav_L: np.ndarray, window: float) -> Whole:
    c = encoder.config
    check_length(encoder, len(wav_L))
    total = frame_count(c, len(wav_L))
    most = max(round(window * c.sample_rate / c.hop), 1) if window else rung(total, 16)
    size = min(most, total)
    starts = [min(start, total - size) for start in range(0, total, size)]
    reach = (size - 1) * c.hop + c.span
    last = len(starts) * size - total  # frame of the last window that no other has
    if len(starts) == 1 and c.local:
        more = (min(rung(total, 16), most) - total) * c.hop  # few lengths, and so few programs
        reach, wav_L = reach + more, np.pad(wav_L[:reach], (0, more))
    elif len(starts) == 1:
        reach = len(wav_L)  # what is left over behind the last frame still bears on norms over the clip

    def cut(i: int) -> tuple[np.ndarray]:
        return (wav_L[starts[i] * c.hop : starts[i] * c.hop + reach].astype(np.float32),)

    def join(found: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([*found[:-1], found[-1][last:]])[:total]

    return Whole(reach, len(starts), cut, join)


@partial(jax.jit, static_argnums=0)
def _applied(graphdef: nnx.GraphDef, state: nnx.State, clips_BL: Float[np.ndarray, "B L"]):
    return nnx.merge(graphdef, state)(clips_BL)
