"""VGGish against its definition in NumPy, from torchvggish's names on."""

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.pretrained import encoder, encoders, vggish
from hiermusic.pretrained.source import Source

CHANNELS, HIDDEN, WIDTH = (2, 3, 4, 4, 5, 3), 6, 7
FRAMES, BANDS = 96, 64


@pytest.fixture(scope="module")
def tensors():
    dice, found = np.random.default_rng(0), {}
    for place, pair in zip((0, 3, 6, 8, 11, 13), zip((1, *CHANNELS), CHANNELS, strict=False), strict=True):
        found[f"features.{place}.weight"] = dice.normal(size=(pair[1], pair[0], 3, 3)) * 0.4
        found[f"features.{place}.bias"] = dice.normal(size=pair[1]) * 0.1
    sizes = (FRAMES * BANDS // 256 * CHANNELS[-1], HIDDEN, HIDDEN, WIDTH)
    for i in range(3):
        found[f"embeddings.{2 * i}.weight"] = dice.normal(size=(sizes[i + 1], sizes[i])) * sizes[i] ** -0.5
        found[f"embeddings.{2 * i}.bias"] = dice.normal(size=sizes[i + 1]) * 0.1
    return {name: array.astype(np.float32) for name, array in found.items()}


def network(w, x_TM):
    """PyTorch's own order of dimensions: channels, time, bands."""
    x = np.asarray(x_TM, np.float64)[None]
    for place, pooled in {0: True, 3: True, 6: False, 8: True, 11: False, 13: True}.items():
        kernel, padded = w[f"features.{place}.weight"], np.pad(x, ((0, 0), (1, 1), (1, 1)))
        seen = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        x = np.einsum("itmhw,oihw->otm", seen, kernel) + w[f"features.{place}.bias"][:, None, None]
        x = np.maximum(x, 0)
        if pooled:
            x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2).max(axis=(2, 4))
    x = x.transpose(1, 2, 0).reshape(-1)
    for i in (0, 2, 4):
        x = w[f"embeddings.{i}.weight"] @ x + w[f"embeddings.{i}.bias"]
        x = np.maximum(x, 0) if i < 4 else x
    return x


def log_mel(wav_L):
    """Frame by frame and band by band, as the original's mel_features.py has it."""

    def mel(hertz):
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    window = 0.5 - 0.5 * np.cos(2 * np.pi / 400 * np.arange(400))
    edges = np.linspace(mel(125.0), mel(7500.0), BANDS + 2)
    rows = []
    for start in range(0, len(wav_L) - 399, 160):
        size_F = abs(np.fft.rfft(wav_L[start : start + 400] * window, 512))
        row = []
        for band in range(BANDS):
            low, middle, high = edges[band : band + 3]
            total = 0.0
            for f in range(1, 257):
                at = mel(f * 16000 / 512)
                total += size_F[f] * max(0.0, min((at - low) / (middle - low), (high - at) / (high - middle)))
            row.append(total)
        rows.append(row)
    return np.log(np.array(rows) + 0.01)


def test_vggish_is_its_definition(tensors):
    imported = encoders.read_vggish(Source(Path("vggish.pth"), {}, tensors))
    ours = encoder.filled(encoder.of_fields(imported.config), imported.weights)
    wav_L = 0.3 * np.random.default_rng(1).normal(size=2 * 15360 + 240).astype(np.float32)
    spectrum_TM = log_mel(wav_L)
    np.testing.assert_allclose(vggish.log_mel(wav_L[None])[0], spectrum_TM, atol=2e-4)
    wanted = np.stack([network(tensors, spectrum_TM[at : at + FRAMES]) for at in (0, FRAMES)])
    found = encoder.embed(ours, wav_L)
    assert np.abs(wanted[0] - wanted[1]).max() > 0.01 and (wanted < 0).any()  # no ReLU at the end
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(("samples", "count"), [(1, 1), (15_599, 1), (30_959, 1), (30_960, 2), (160_000, 10)])
def test_ten_seconds_are_ten_stretches(samples, count):
    ours = type("Of", (), {"config": vggish.VggishConfig()})
    clips_BL = vggish.Vggish.clips(ours, np.arange(samples, dtype=np.float32))
    assert clips_BL.shape == (count, 15_600)
    assert clips_BL[-1, 0] == 15_360 * (count - 1) and clips_BL[0, min(samples, 15_600) - 1] == min(samples, 15_600) - 1


def test_what_is_no_vggish_is_told(tensors):
    def read(**changed):
        found = {name: array for name, array in {**tensors, **changed}.items() if array is not None}
        return encoders.read_vggish(Source(Path("vggish.pth"), {}, found))

    assert read(**{"pproc.pca_means": np.zeros(3, np.float32)}).weights.keys() == read().weights.keys()
    with pytest.raises(UserError, match=r"vggish.pth cannot be understood .KeyError: 'features.8.weight'"):
        read(**{"features.8.weight": None})
    with pytest.raises(UserError, match=r"vggish.pth has no weight features.8.bias"):
        read(**{"features.8.bias": None})
    with pytest.raises(UserError, match=r"embeddings.2.weight is \(5, 6\), this model's is \(6, 6\)"):
        read(**{"embeddings.2.weight": np.zeros((5, 6), np.float32)})
    with pytest.raises(UserError, match=r"has the weight head.weight, which this model has not"):
        read(**{"head.weight": np.zeros(3, np.float32)})
    assert nnx.state(encoder.filled(encoder.of_fields(read().config), read().weights))
