"""EnCodec as it is at 48 kHz against transformers' class, on random weights: segments and their scales."""

import numpy as np
import pytest
import soundfile

import hiermusic
from hiermusic import cli
from hiermusic.codec.chunked import decode_long, encode_long
from hiermusic.systems import workdir

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

RATE, SECOND, STRIDE, HOP = 2400, 2400, 2376, 24  # a segment has 100 frames, of which its neighbour codes one again
FORM = {
    **{"sampling_rate": RATE, "audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01},
    **{"norm_type": "time_group_norm", "use_causal_conv": False, "num_filters": 4, "hidden_size": 8},
    **{"upsampling_ratios": [4, 3, 2], "codebook_size": 16, "target_bandwidths": [0.8, 1.6]},  # 4 levels
}
LENGTHS = {
    **{"a sample": 1, "two": 2, "less than a frame": HOP - 1, "a few frames": 5 * HOP + 3, "less than a segment": 2000},
    **{"up to the next": STRIDE, "a sample of the next": STRIDE + 1, "a segment": SECOND, "a bit more": SECOND + 1},
    **{"many": 13 * STRIDE + 700, "eight and a bit": 8 * STRIDE + 1},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """transformers' model, and the folder of what it saved, what was imported, and what was exported again."""
    torch.manual_seed(0)
    model = transformers.EncodecModel(transformers.EncodecConfig(**FORM)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        frames_TD = model.encoder(torch.randn(1, 2, 200 * HOP))[0].mT
        for k, layer in enumerate(model.quantizer.layers):
            drawn_VD = frames_TD[torch.randperm(len(frames_TD))[: len(layer.codebook.embed)]]
            layer.codebook.embed.copy_(0.5**k * (drawn_VD - (frames_TD.mean(0) if k else 0)))
    folder = tmp_path_factory.mktemp("48khz")
    model.save_pretrained(folder / "theirs")
    cli.main(["import", "encodec", str(folder / "theirs"), str(folder / "ours")])
    cli.main(["export", f"--workdir={folder / 'ours'}", f"--out={folder / 'back'}", "--format=transformers"])
    return model, folder


@pytest.fixture(scope="module")
def codec(both):
    return workdir.load_codec(both[1] / "ours")


def sound(length: int) -> np.ndarray:
    """Noise that swells: every segment has a loudness of its own."""
    rng = np.random.default_rng(length)
    swell_L1 = 0.3 * (1.1 + np.sin(np.arange(length) / 1500))[:, None]
    return (swell_L1 * rng.normal(size=(length, 2))).astype(np.float32)


def theirs(model, wav_LC: np.ndarray, levels: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes [T, K] without what fills the last segment up, scales [N], and the sound [L, C] as it comes of them."""
    bandwidth = model.config.target_bandwidths[-1] * levels / 4
    with torch.no_grad():
        found = model.encode(torch.tensor(wav_LC).mT[None], bandwidth=bandwidth)
        rest = {"last_frame_pad_length": found.last_frame_pad_length}
        wav = model.decode(found.audio_codes, found.audio_scales, **rest).audio_values[0].mT.numpy()
    codes_TK = np.concatenate([part[0].mT.numpy() for part in found.audio_codes])
    codes_TK = codes_TK[: len(codes_TK) - found.last_frame_pad_length]
    return codes_TK, np.asarray([float(scale) for scale in found.audio_scales]), wav


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_codes_scales_and_sound_are_theirs(both, codec, length):
    wav_LC = sound(length)
    expected_TK, expected_N, expected_LC = theirs(both[0], wav_LC)
    codes_TK, scales_N = encode_long(codec, wav_LC), workdir.scales(codec, wav_LC)
    np.testing.assert_array_equal(codes_TK, expected_TK)
    np.testing.assert_allclose(scales_N, expected_N, rtol=1e-5)
    assert len(codes_TK) == codec.config.packets(length)
    found_LC = decode_long(codec, codes_TK, scales_N=scales_N)
    np.testing.assert_allclose(found_LC, expected_LC, atol=1e-4 * np.abs(expected_LC).max())
    if length > SECOND:
        assert all(len(np.unique(expected_TK[:, k])) > 4 for k in range(4))


def test_fewer_levels_are_theirs(both, codec):
    wav_LC = sound(3 * STRIDE)
    expected_TK, _, expected_LC = theirs(both[0], wav_LC, 2)
    np.testing.assert_array_equal(encode_long(codec, wav_LC, levels=2), expected_TK)
    scales_N = workdir.scales(codec, wav_LC)
    found_LC = decode_long(codec, encode_long(codec, wav_LC), levels=2, scales_N=scales_N)
    np.testing.assert_allclose(found_LC, expected_LC, atol=1e-4 * np.abs(expected_LC).max())


def test_the_verbs_carry_the_scales(both, tmp_path):
    model, folder = both
    wav_LC = sound(2 * STRIDE + 77)
    soundfile.write(tmp_path / "in.wav", wav_LC, RATE, subtype="FLOAT")
    codes, out = str(tmp_path / "c.npz"), str(tmp_path / "out.wav")
    cli.main(["encode", f"--codec={folder / 'ours'}", str(tmp_path / "in.wav"), codes])
    cli.main(["decode", f"--codec={folder / 'ours'}", codes, out])
    expected_LC = theirs(model, wav_LC)[2][: len(wav_LC)]
    found_LC = soundfile.read(out, dtype="float32")[0]  # of 16 bits
    np.testing.assert_allclose(found_LC, expected_LC.clip(-1, 1), atol=1e-4 + 2**-15)
    loaded = hiermusic.load(folder / "ours")
    scales_N, codes_SP = loaded.scales(wav_LC, RATE), loaded.encode(wav_LC, RATE)
    found_LC = loaded.decode(codes_SP, length=len(wav_LC), scales_N=scales_N)
    np.testing.assert_allclose(found_LC, expected_LC, atol=1e-4 * np.abs(expected_LC).max())


def test_what_is_exported_is_what_was_imported(both):
    model, folder = both
    again, told = transformers.EncodecModel.from_pretrained(folder / "back", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    for name in ("normalize", "chunk_length", "chunk_stride", "num_quantizers", "frame_rate", "pad_mode"):
        assert getattr(again.config, name) == getattr(model.config, name), name
    for one, other in zip(theirs(model, sound(5000)), theirs(again, sound(5000)), strict=True):
        np.testing.assert_array_equal(one, other)
