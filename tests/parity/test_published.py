"""Published codecs against the classes of transformers, on random weights: in by `import`, out by `export`."""

import json

import jax
import numpy as np
import pytest

from hiermusic import cli
from hiermusic.codec.chunked import decode_long, encode_long
from hiermusic.pretrained import export
from hiermusic.systems import workdir

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ENCODEC = {"num_filters": 4, "hidden_size": 8, "upsampling_ratios": [4, 3, 2], "codebook_size": 16}
FORMS = {
    # 3 levels of 4 bits at 334 frames a second; the last rate of the odd stride does not divide 8000
    "encodec_24khz": ENCODEC | {"sampling_rate": 8000, "target_bandwidths": [2.672, 4.008]},
    "encodec_32khz": ENCODEC
    | {"sampling_rate": 8000, "target_bandwidths": [4.008], "use_causal_conv": False, "use_conv_shortcut": False},
    "group": ENCODEC
    | {"sampling_rate": 8000, "target_bandwidths": [4.008], "use_causal_conv": False, "audio_channels": 2}
    | {"norm_type": "time_group_norm", "num_residual_layers": 2},
    "constant": ENCODEC
    | {"sampling_rate": 8000, "target_bandwidths": [4.008], "use_causal_conv": False}
    | {"pad_mode": "constant"},
    "dac": {
        "encoder_hidden_size": 4,
        "downsampling_ratios": [2, 5],
        "decoder_hidden_size": 16,
        "n_codebooks": 3,
        "codebook_size": 32,
        "codebook_dim": 4,
        "sampling_rate": 8000,
    },
}


def made(form: str):
    """One of transformers' models with weights, codes and averages that tell from each other."""
    torch.manual_seed(0)
    if form == "dac":
        model = transformers.DacModel(transformers.DacConfig(**FORMS[form])).eval()
        for name, weight in model.named_parameters():
            torch.nn.init.uniform_(weight, 0.5, 1.5) if "alpha" in name else torch.nn.init.normal_(weight, std=0.15)
        return model
    model = transformers.EncodecModel(transformers.EncodecConfig(**FORMS[form])).eval()
    with torch.no_grad():
        for weight in model.parameters():  # norms and biases away from what they start at
            weight.add_(0.1 * torch.randn_like(weight))
        frames_TD = model.encoder(torch.randn(1, model.config.audio_channels, 24 * 200))[0].mT
        for k, layer in enumerate(model.quantizer.layers):  # codes of which many are chosen
            book = layer.codebook
            drawn_VD = frames_TD[torch.randperm(len(frames_TD))[: len(book.embed)]]
            book.embed.copy_(0.5**k * (drawn_VD - (frames_TD.mean(0) if k else 0)))
            book.embed_avg.normal_()
            book.cluster_size.uniform_()
    return model


@pytest.fixture(scope="module", params=FORMS)
def both(request, tmp_path_factory):
    """The form, transformers' model, and the folders of: what it saved, what was imported, what was exported again."""
    folder = tmp_path_factory.mktemp(request.param)
    model = made(request.param)
    model.save_pretrained(folder / "theirs")
    kind = "dac" if request.param == "dac" else "encodec"
    cli.main(["import", kind, str(folder / "theirs"), str(folder / "ours")])
    cli.main(["export", f"--workdir={folder / 'ours'}", f"--out={folder / 'back'}", "--format=transformers"])
    return request.param, model, folder


@pytest.fixture(scope="module")
def codec(both):
    return workdir.load_codec(both[2] / "ours")


_encode = jax.jit(lambda codec, wav_BLC: codec.encode(wav_BLC))
_decode = jax.jit(lambda codec, codes_BTK: codec.decode(codes_BTK))


def sound(codec, length: int) -> np.ndarray:
    rng = np.random.default_rng(length)
    return (0.3 * rng.normal(size=(2, length, codec.channels))).astype(np.float32)


def their_codes(model, wav_BLC: np.ndarray) -> np.ndarray:
    """[B, T, K]; DAC's own preparation fills the last frame with silence."""
    with torch.no_grad():
        if isinstance(model, transformers.DacModel):
            wav_BLC = np.pad(wav_BLC, ((0, 0), (0, -wav_BLC.shape[1] % model.config.hop_length), (0, 0)))
            return model.encode(torch.tensor(wav_BLC).mT).audio_codes.mT.numpy()
        found = model.encode(torch.tensor(wav_BLC).mT, bandwidth=model.config.target_bandwidths[-1])
        return found.audio_codes[0].mT.numpy()


def their_sound(model, codes_BTK: np.ndarray) -> np.ndarray:
    """[B, L, C]"""
    codes = torch.tensor(np.asarray(codes_BTK)).long().mT
    with torch.no_grad():
        if isinstance(model, transformers.DacModel):
            return model.decode(audio_codes=codes).audio_values[..., None].numpy()
        return model.decode(codes[None], [None]).audio_values.mT.numpy()


@pytest.mark.parametrize("length", [1, 23, 1001])  # the first two less than a frame, the last in the middle of one
def test_codes_and_sound_are_theirs(both, codec, length):
    form, model, _ = both
    wav_BLC = sound(codec, length)
    expected_BTK = their_codes(model, wav_BLC)
    codes_BTK = _encode(codec, wav_BLC)
    np.testing.assert_array_equal(codes_BTK, expected_BTK)
    if length > 1000:
        assert all(len(np.unique(expected_BTK[..., k])) > 2 for k in range(expected_BTK.shape[2])), form
    found, expected = np.asarray(_decode(codec, codes_BTK)), their_sound(model, expected_BTK)
    size = np.abs(expected).max()
    np.testing.assert_allclose(found[:, : expected.shape[1]], expected, atol=1e-4 * size)
    assert found.shape[1] == codes_BTK.shape[1] * codec.hop and not found[:, expected.shape[1] :].any()
    assert np.std(expected) > 0.01


def test_latents_are_theirs(both, codec):
    _, model, _ = both
    wav_BLC = sound(codec, 25 * codec.hop)
    with torch.no_grad():
        expected = model.encoder(torch.tensor(wav_BLC).mT).mT.numpy()
    found = jax.jit(lambda codec, wav_BLC: codec.encoder(wav_BLC))(codec, wav_BLC)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_what_is_exported_is_what_was_imported(both, tmp_path):
    """In transformers' class, where every weight finds its place, and on the way in again, to the bit."""
    _, model, folder = both
    theirs, told = type(model).from_pretrained(folder / "back", output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"] and not told["mismatched_keys"]
    before, after = model.state_dict(), theirs.state_dict()
    assert set(before) == set(after)
    summed = {name for name in before if "bias_hh" in name or "bias_ih" in name}  # two that only act as their sum
    for name in set(before) - summed:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=0, msg=name)
    for name in summed:
        pair = [name.replace("bias_hh", "bias_ih"), name.replace("bias_ih", "bias_hh")]
        torch.testing.assert_close(sum(after[one] for one in pair), sum(before[one] for one in pair))
    for name in ("num_quantizers", "frame_rate", "hop_length", "chunk_length"):
        assert getattr(theirs.config, name, None) == getattr(model.config, name, None)

    kind = "dac" if isinstance(model, transformers.DacModel) else "encodec"
    cli.main(["import", kind, str(folder / "back"), str(tmp_path / "again")])
    first, again = export.load(folder / "ours"), export.load(tmp_path / "again")
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    configs = [json.loads((place / "config.json").read_text()) for place in (folder / "ours", tmp_path / "again")]
    assert configs[0]["model"] == configs[1]["model"]


def test_the_way_in_is_the_same_from_older_files(both, tmp_path):
    """From pytorch_model.bin, with PyTorch's older names of the weight norm, in either form that torch.save writes."""
    _, model, folder = both
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = {}
    for name, tensor in model.state_dict().items():
        for new, old in names.items():
            name = name.replace(new, old)
        state[name] = tensor
    kind = "dac" if isinstance(model, transformers.DacModel) else "encodec"
    for zipped in (True, False):
        old, out = tmp_path / f"old{zipped}", tmp_path / f"out{zipped}"
        old.mkdir()
        (old / "config.json").write_text((folder / "theirs" / "config.json").read_text())
        torch.save(state, old / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        cli.main(["import", kind, str(old), str(out)])
        first, again = export.load(folder / "ours"), export.load(out)
        assert all(np.array_equal(first[name], again[name]) for name in first) and first.keys() == again.keys()


def test_pieces_make_what_the_whole_makes(both, codec):
    """As the verbs code: a long sound in pieces, what it lacks of a frame included, beside transformers in one go."""
    form, model, _ = both
    if form == "group":  # a norm over all of a sound knows no pieces
        for length in (1, 23, 20 * codec.hop - 7):
            wav_LC = sound(codec, length)[0]
            np.testing.assert_array_equal(encode_long(codec, wav_LC), their_codes(model, wav_LC[None])[0])
        return
    wav_BLC = sound(codec, 700 * codec.hop - 5)
    expected_BTK = their_codes(model, wav_BLC)
    seconds = 400 * codec.hop / codec.sample_rate
    for wav_LC, expected_TK in zip(wav_BLC, expected_BTK, strict=True):
        found_TK = encode_long(codec, wav_LC, chunk_seconds=seconds)
        # an LSTM remembers without a bound
        assert np.mean(found_TK == expected_TK) > (0.999 if form == "dac" else 0.995), form
        assert np.array_equal(found_TK[-2:], expected_TK[-2:])
    if form != "dac":  # which a sound that is shorter than a piece meets filled up
        for length in (1, 2, 23, 3 * codec.hop - 7, 20 * codec.hop - 7):
            wav_LC = wav_BLC[0, :length]
            codes_TK = their_codes(model, wav_LC[None])[0]
            np.testing.assert_array_equal(encode_long(codec, wav_LC), codes_TK)
            found, expected = decode_long(codec, codes_TK), their_sound(model, codes_TK[None])[0]
            np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    found = decode_long(codec, expected_BTK[0], chunk_seconds=seconds)
    expected = their_sound(model, expected_BTK[:1])[0]
    np.testing.assert_allclose(found[: len(expected)], expected, atol=2e-3 * np.abs(expected).max())
