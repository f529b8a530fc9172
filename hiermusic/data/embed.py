"""What public encoders make of sounds, written as arrays: of one file, or of every track of audio records."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.audio import files
from hiermusic.console import bar
from hiermusic.data.audio_records import AudioSource
from hiermusic.errors import UserError, replacing
from hiermusic.pretrained import encoder as encoders


def embed_file(folder: str, source: str, target: str, *, layer: int | None, window: float) -> dict[str, Any]:
    """Features [frames, D] of a sound, written as .npy.

    Args:
      folder: an imported encoder.
      source: an audio file.
      target: the .npy file.
      layer, window: as `encoder.load` and `encoder.embed` take them.
    Returns:
      out, shape, seconds; frame_rate and layer where there are frames.
    Raises:
      UserError: no encoder, no sound, another ending than .npy, or a sound that is too short.
    """
    if not target.endswith(".npy"):
        raise UserError(f"{target}: features are written as .npy: name such a file")
    config = encoders.at_layer(encoders.read_config(folder), layer, folder)
    wav_LC, rate = files.read(source)  # before the weights, which take longer
    model = encoders.load(folder, layer)
    wav_L = files.resample(files.to_channels(wav_LC, 1), rate, config.sample_rate)[:, 0]
    try:
        found_TD = encoders.embed(model, wav_L, window)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    _save(target, found_TD)
    facts = {"out": target, "shape": list(found_TD.shape), "seconds": len(wav_LC) / rate}
    if isinstance(config, encoders.HubertConfig):
        facts |= {"frame_rate": config.sample_rate / config.hop, "layer": config.layer}
    return facts


def embed_tracks(folder: str, data: str, target: str, *, layer: int | None, window: float) -> dict[str, Any]:
    """The same of every track of audio records, written as .npz with an array for each track's id."""
    if not target.endswith(".npz"):
        raise UserError(f"{target}: features of tracks are written as .npz: name such a file")
    source, model = AudioSource(data), encoders.load(folder, layer)
    found: dict[str, np.ndarray] = {}
    with bar("track", len(source)) as shown:
        for index, track in enumerate(source.tracks):
            wav_LC = files.to_channels(source.track(index), 1)
            wav_L = files.resample(wav_LC, source.sample_rate, model.config.sample_rate)[:, 0]
            try:
                found[track["id"]] = encoders.embed(model, wav_L, window)
            except UserError as error:
                raise UserError(f"{data}, track {track['id']}: {error}") from error
            shown.update()
    _save(target, found)
    return {"out": target, "tracks": len(found), "width": model.width}


def _save(target: str, value: np.ndarray | Mapping[str, np.ndarray]) -> None:
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        if isinstance(value, np.ndarray):
            np.save(file, value)
            return
        with zipfile.ZipFile(file, "w") as packed:  # np.savez would take an id such as `file` for an argument
            for name, array in value.items():
                with packed.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
