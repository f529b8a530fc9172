"""How far what an imported encoder hears of one set of sounds lies from what it hears of another (FAD, 1812.08466).

The distance is that of the Gaussians fitted to both sets of vectors. It depends on the encoder, on how sounds are cut
into windows and on how many there are, so a figure means something beside others of the same table only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from hiermusic.audio import files
from hiermusic.data.audio_records import AudioSource
from hiermusic.evaluate.by_track import Each, in_memory
from hiermusic.evaluate.music import anchored
from hiermusic.evaluate.songs import CORPUS, TRAINING_TRACKS, Made
from hiermusic.pretrained import encoder as encoders

_ANCHORED = 8  # held-out songs that anchors are made of


def distance(one_ND: Float[np.ndarray, "N D"], other_MD: Float[np.ndarray, "M D"]) -> float:
    """|mean - mean'|^2 + tr C + tr C' - 2 tr (C C')^(1/2), of the covariances C and C' (over N - 1) of two sets.

    The last trace is the sum of the singular values of X X'^T, where C = X^T X and C' = X'^T X': no root is taken of a
    matrix that has none where there are fewer vectors than numbers in each.
    """
    (mean, factor), (other_mean, other_factor) = _gaussian(one_ND), _gaussian(other_MD)
    apart = np.square(mean - other_mean).sum()
    common = np.linalg.norm(factor @ other_factor.T, "nuc")
    return float(max(apart + np.square(factor).sum() + np.square(other_factor).sum() - 2 * common, 0.0))


def _gaussian(x_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean, and a factor of the covariance with as few rows as may be."""
    x_ND = np.asarray(x_ND, np.float64)
    mean = x_ND.mean(axis=0)
    return mean, np.linalg.qr((x_ND - mean) / np.sqrt(max(len(x_ND) - 1, 1)), mode="r")


def evaluate_songs(
    songs: Sequence[Made],
    corpus: AudioSource,
    tracks: int,
    folder: str,
    progress: Callable[[str], None] = lambda words: None,
    each: Each = in_memory,
) -> dict[str, Any]:
    """The distance of generated songs from the training tracks of their corpus, beside those of held-out songs and of
    two anchors made of these.

    Args:
      songs: from `songs.read`.
      corpus: what they were learnt from.
      tracks: held-out tracks, at most.
      folder: an imported encoder.
      progress: called with one line of words a step.
      each: how the sounds are gone through (see `by_track`).
    Returns:
      JSON-able {embedding, protocol, reference, rows: {name: {distance, windows}}}
    """
    model = encoders.load(folder)
    held_out, training = corpus.valid[:tracks], corpus.train[:TRAINING_TRACKS]

    def hear(wav_LC: np.ndarray, rate: int) -> np.ndarray:
        wav_L = files.resample(files.to_channels(wav_LC, 1), rate, model.config.sample_rate)[:, 0]
        return encoders.embed(model, wav_L)

    def song(index: int) -> dict[str, np.ndarray]:
        progress(f"embedding song {index + 1} of {len(songs)}")
        return {name: hear(*files.read(path)) for name, path in songs[index].paths.items()}

    def real(index: int) -> dict[str, np.ndarray]:
        progress(f"embedding held-out track {index + 1} of {len(held_out)}")
        wav_LC = corpus.track(held_out[index])
        sounds = anchored(wav_LC, corpus.sample_rate, index) if index < _ANCHORED else {"": wav_LC}
        return {name or CORPUS: hear(sound_LC, corpus.sample_rate) for name, sound_LC in sounds.items()}

    def learnt(index: int) -> dict[str, np.ndarray]:
        progress(f"embedding training track {index + 1} of {len(training)}")
        return {"sound": hear(corpus.track(training[index]), corpus.sample_rate)}

    wanted = (("song", len(songs), song), ("held-out", len(held_out), real), ("training", len(training), learnt))
    made, known, trained = (each(f"frechet-{name}", count, measure) for name, count, measure in wanted)
    reference = _joined(trained)["sound"]
    rows = {name: _row(vectors, reference) for name, vectors in (_joined(made) | _joined(known)).items()}
    return {
        **_told(folder, model),
        "reference": {"training_tracks": len(training), "windows": len(reference)},
        "rows": rows,
    }


def _joined(measured: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for one in measured for name in one)
    return {name: np.concatenate([one[name] for one in measured if name in one]) for name in names}


def _row(vectors_ND: np.ndarray, reference_MD: np.ndarray) -> dict[str, Any]:
    return {"distance": distance(vectors_ND, reference_MD), "windows": len(vectors_ND)}


def _told(folder: str, model: encoders.Encoder) -> dict[str, Any]:
    """What a distance has to be read with: whose vectors they are, and of which windows."""
    config = model.config
    family = encoders.to_fields(config)["family"]
    cut = {
        "vggish": "0.96 s side by side, torchvggish's spectra, neither PCA nor the last ReLU",
        "clap": "10 s side by side, the last ending with the sound, shorter ones repeated; unit length",
        "hubert": "frames of 20 ms, 10 s heard at a time",
    }[family]
    protocol = f"mono at {config.sample_rate} Hz by soxr; {cut}; covariances over n - 1; hiermusic's own figures"
    return {"embedding": str(folder), "family": family, "protocol": protocol}
