"""What public encoders make of sounds, written as arrays: of one file, or of every track of audio records."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.audio import files
from hiermusic.console import bar, warn
from hiermusic.data.ahead import ahead
from hiermusic.data.arrays import write_npz
from hiermusic.data.audio_records import AudioSource
from hiermusic.errors import UserError, replacing
from hiermusic.pretrained import encoder as encoders
from hiermusic.pretrained import export


def embed_file(folder: str, source: str, target: str, *, layer: int | None, window: float | None) -> dict[str, Any]:
    """Features [frames, D] of a sound, written as .npy.

    Args:
      folder: an imported encoder.
      source: an audio file.
      target: the .npy file.
      layer, window: as `encoder.load` and `encoder.embed` take them; None for their own.
    Returns:
      out, shape, seconds; frame_rate and layer where there are frames.
    Raises:
      UserError: no encoder, no sound, another ending than .npy, or a sound that is too short.
    """
    if not target.endswith(".npy"):
        raise UserError(f"{target}: features are written as .npy: name such a file")
    config = encoders.at_layer(encoders.read_config(folder), layer, folder)
    window = encoders.window_of(config, window, folder)
    wav_LC, rate = files.read(source)  # before the weights, which take longer
    model = encoders.load(folder, layer)
    wav_L = files.resample(files.to_channels(wav_LC, 1), rate, config.sample_rate)[:, 0]
    try:
        found_TD = encoders.embed(model, wav_L, window)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, found_TD)
    facts = {"out": target, "shape": list(found_TD.shape), "seconds": len(wav_LC) / rate}
    if isinstance(config, encoders.HubertConfig):
        facts |= {"frame_rate": config.sample_rate / config.hop, "layer": config.layer}
    return facts


def embed_tracks(folder: str, data: str, target: str, *, layer: int | None, window: float | None) -> dict[str, Any]:
    """The same of every track of audio records, written as .npz with an array for each track's id.

    Tracks that are too short are left out and counted; UserError where all are.
    """
    if not target.endswith(".npz"):
        raise UserError(f"{target}: features of tracks are written as .npz: name such a file")
    source = AudioSource(data)
    window = encoders.window_of(encoders.read_config(folder), window, folder)
    model = encoders.load(folder, layer)
    heard: list[str] = []
    skipped: list[str] = []
    told = ""

    def load(index: int) -> np.ndarray:
        wav_LC = files.to_channels(source.track(index), 1)
        return files.resample(wav_LC, source.sample_rate, model.config.sample_rate)[:, 0]

    def sounds() -> Iterator[np.ndarray]:
        nonlocal told
        with closing(ahead(load, range(len(source)))) as loaded:
            for track, wav_L in zip(source.tracks, loaded, strict=True):
                try:
                    encoders.check_length(model, len(wav_L))
                except UserError as error:
                    skipped.append(track["id"])
                    told = f"{data}, track {track['id']}: {error}"
                else:
                    heard.append(track["id"])
                    yield wav_L

    found: dict[str, np.ndarray] = {}
    with bar("track", len(source)) as shown:
        for vectors in encoders.embed_each(model, sounds(), window):
            found[heard[len(found)]] = vectors
            shown.update()
    if skipped and not found:
        raise UserError(told)
    if skipped:
        warn(
            f"{len(skipped)} of {len(source)} tracks are too short and have no vector: {', '.join(skipped[:3])}"
            + ", ..." * (len(skipped) > 3)
        )
    write_npz(target, found, export.licences(folder))
    return {"out": target, "tracks": len(found), "width": model.width, "skipped": skipped}
