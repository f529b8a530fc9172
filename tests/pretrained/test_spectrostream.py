"""SpectroStream against a reference in NumPy, which is written from the layout that is published, on random weights."""

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from hiermusic import cli, presets
from hiermusic.codec.chunked import decode_long, encode_long
from hiermusic.codec.spectro import SpectroConfig
from hiermusic.errors import UserError
from hiermusic.pretrained import export, pairs, spectrostream
from hiermusic.pretrained.later import Later
from hiermusic.pretrained.source import Source
from hiermusic.systems import workdir

STRIDES = ((1, 2), (1, 2), (1, 3), (1, 2), (1, 2), (2, 2), (2, 1))  # along time and frequency
RELEASE = SimpleNamespace(bins=480, width=32, latent=256, levels=64, codes=1024)
TINY = SimpleNamespace(bins=192, width=2, latent=12, levels=3, codes=16)
COUNTS = {"encoder": 9_251_904, "decoder": 35_684_546, "quantizer": 16_777_216}


def manifest(s: SimpleNamespace) -> dict[str, tuple[int, ...]]:
    """Names and shapes."""
    found, W = {"quantizer/embedding": (s.levels, s.codes, s.latent)}, s.width
    flat = s.bins // 96

    def conv(name, taps, inputs, outputs):
        found[f"{name}/conv/kernel"], found[f"{name}/conv/bias"] = (*taps, inputs, outputs), (outputs,)

    conv("encoder/base_conv_first", (7, 7), 2, W)
    ends = [(W, 2 * W), (2 * W, 2 * W), (2 * W, 4 * W), (4 * W, 4 * W), (4 * W, 4 * W), (4 * W, 8 * W), (16 * W, 8 * W)]
    taps = [(3, 4), (3, 4), (3, 6), (3, 4), (3, 4), (4, 4), (4, 3)]
    for i, (inputs, outputs) in enumerate(ends):
        conv(f"encoder/encoder_{i}/conv2d_3x3", (3, 3), inputs, inputs)
        conv(f"encoder/encoder_{i}/conv2d_{taps[i][0]}x{taps[i][1]}_a", taps[i], inputs, outputs)
        if i in (0, 2, 5, 6):
            conv(f"encoder/encoder_{i}/shortcut_layer/conv1x1", (1, 1), inputs, outputs)
    for name in ("conv2d_3x3", "conv2d_3x3_a"):
        conv(f"encoder/bottleneck/{name}", (3, 3), 8 * W, 8 * W)
        conv(f"decoder/input_layers_residual_unit/{name}", (3, 3), 16 * W, 16 * W)
    place = "encoder/output_convs"
    conv(f"{place}/conv1x1_last", (1, 1), flat * 8 * W, s.latent)
    conv(f"{place}/shortcut_layer/conv1x1_b1", (1, 1), flat * 8 * W, flat * 8 * W)
    conv(f"{place}/shortcut_layer/conv1x1_b2", (1, 1), flat * 8 * W, s.latent)
    place = "decoder/input_layer"
    conv(f"{place}/conv1x1_first", (1, 1), s.latent, flat * 16 * W)
    conv(f"{place}/shortcut_layer/conv1x1_b1", (1, 1), s.latent, flat * 16 * W)
    conv(f"{place}/shortcut_layer/conv1x1_b2", (1, 1), flat * 16 * W, flat * 16 * W)
    ends = [(16, 32), (16, 8), (8, 8), (8, 8), (8, 4), (4, 4), (4, 2)]
    for i, (inputs, outputs) in enumerate((W * a, W * b) for a, b in ends):
        up = taps[6 - i]
        conv(f"decoder/decoder_{i}/conv2dtranspose_{up[0]}x{up[1]}", up, inputs, outputs)
        conv(f"decoder/decoder_{i}/conv2d_3x3", (3, 3), outputs, outputs)
        if i in (0, 1, 4, 6):
            conv(f"decoder/decoder_{i}/shortcut_layer/conv1x1", (1, 1), inputs, outputs)
    conv("decoder/output_layer/base_conv_last", (7, 7), 2 * W, 2)
    return found


# MARK: what it computes, on x [time, frequency, channels]


def elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def correlate(x, kernel, bias, stride=(1, 1)):
    kt, kf = kernel.shape[:2]
    shape = [(n - k) // s + 1 for n, k, s in zip(x.shape, (kt, kf), stride, strict=False)]
    out = np.zeros((*shape, kernel.shape[3]))
    for i in range(kt):
        for j in range(kf):
            part = x[
                i : i + (shape[0] - 1) * stride[0] + 1 : stride[0], j : j + (shape[1] - 1) * stride[1] + 1 : stride[1]
            ]
            out += part @ kernel[i, j]
    return out + bias


def conv(w, name, x, stride=(1, 1)):
    kernel = w[f"{name}/conv/kernel"].astype(np.float64)
    left = max(kernel.shape[0] - stride[0], 0)
    freq = max(kernel.shape[1] - stride[1], 0)
    edges = ((left, kernel.shape[0] - 1 - left), (freq // 2, freq - freq // 2), (0, 0))
    return correlate(np.pad(x, edges), kernel, w[f"{name}/conv/bias"], stride)


def transposed(w, name, x, stride):
    kernel = w[f"{name}/conv/kernel"].astype(np.float64)
    apart = np.zeros(((x.shape[0] - 1) * stride[0] + 1, (x.shape[1] - 1) * stride[1] + 1, x.shape[2]))
    apart[:: stride[0], :: stride[1]] = x
    q = kernel.shape[1] + stride[1] - 2
    edges = ((kernel.shape[0] - 1, stride[0] - 1), (math.ceil(q / 2), q - math.ceil(q / 2)), (0, 0))
    return correlate(np.pad(apart, edges), kernel, w[f"{name}/conv/bias"])


def encode(w, s, wav_LC):
    """Latents [T, D] and codes [T, K]."""
    size, hop = 2 * s.bins, s.bins
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    frames = -(-len(wav_LC) // hop)
    halves = []
    for channel in wav_LC.T.astype(np.float64):
        padded = np.pad(channel, (0, size))
        bins = np.stack([np.fft.rfft(padded[n * hop : n * hop + size] * window)[:hop] for n in range(frames)])
        x = conv(w, "encoder/base_conv_first", np.stack([bins.real, bins.imag], -1))
        for i in range(6):
            x = down(w, i, x)
        halves.append(x)
    x = down(w, 6, np.concatenate(halves, -1))
    y = conv(w, "encoder/bottleneck/conv2d_3x3", elu(x))
    x = x + conv(w, "encoder/bottleneck/conv2d_3x3_a", elu(y))
    x = x.reshape(len(x), 1, -1)
    place = "encoder/output_convs"
    hidden = conv(w, f"{place}/shortcut_layer/conv1x1_b1", elu(x))
    x = conv(w, f"{place}/conv1x1_last", x) + conv(w, f"{place}/shortcut_layer/conv1x1_b2", elu(hidden))
    left, codes = x[:, 0], []
    for book in w["quantizer/embedding"].astype(np.float64):
        codes.append(np.argmin(((left[:, None] - book) ** 2).sum(-1), 1))
        left = left - book[codes[-1]]
    return x[:, 0], np.stack(codes, 1)


def down(w, i, x):
    stride, name = STRIDES[i], f"encoder/encoder_{i}"
    kernel = next(one for one in w if one.startswith(f"{name}/conv2d_") and one.endswith("_a/conv/kernel"))
    y = conv(w, kernel.removesuffix("/conv/kernel"), elu(conv(w, f"{name}/conv2d_3x3", elu(x))), stride)
    x = np.pad(x, ((0, -len(x) % stride[0]), (0, 0), (0, 0)))
    past = x.reshape(len(x) // stride[0], stride[0], x.shape[1] // stride[1], stride[1], -1).mean((1, 3))
    return y + (
        conv(w, f"{name}/shortcut_layer/conv1x1", past) if f"{name}/shortcut_layer/conv1x1/conv/bias" in w else past
    )


def decode(w, s, codes_TK):
    """The waveform [L, C], a latent frame shorter than the codes."""
    z = sum(w["quantizer/embedding"][k][codes_TK[:, k]].astype(np.float64) for k in range(codes_TK.shape[1]))[:, None]
    place = "decoder/input_layer"
    hidden = conv(w, f"{place}/shortcut_layer/conv1x1_b1", z)
    x = conv(w, f"{place}/conv1x1_first", z) + conv(w, f"{place}/shortcut_layer/conv1x1_b2", elu(hidden))
    x = x.reshape(len(x), s.bins // 96, -1)
    place = "decoder/input_layers_residual_unit"
    x = x + conv(w, f"{place}/conv2d_3x3", elu(conv(w, f"{place}/conv2d_3x3_a", elu(x))))
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(2 * s.bins) / (2 * s.bins))
    share = window / np.tile(window[: s.bins] ** 2 + window[s.bins :] ** 2, 2)
    wavs = []
    for y in np.split(up(w, 0, x), 2, -1):
        for i in range(1, 7):
            y = up(w, i, y)
        y = conv(w, "decoder/output_layer/base_conv_last", elu(y))[4:]
        wav = np.zeros((len(y) + 1) * s.bins)
        for n, frame in enumerate(y):
            whole = np.append(frame[:, 0] + 1j * frame[:, 1], 0)
            wav[n * s.bins : (n + 2) * s.bins] += np.fft.irfft(whole) * share
        wavs.append(wav[: -s.bins])
    return np.stack(wavs, 1)


def up(w, i, x):
    stride, name = STRIDES[6 - i], f"decoder/decoder_{i}"
    kernel = next(one for one in w if one.startswith(f"{name}/conv2dtranspose_") and one.endswith("kernel"))
    y = conv(w, f"{name}/conv2d_3x3", elu(transposed(w, kernel.removesuffix("/conv/kernel"), elu(x), stride)))
    past = conv(w, f"{name}/shortcut_layer/conv1x1", x) if f"{name}/shortcut_layer/conv1x1/conv/bias" in w else x
    return y + past.repeat(stride[0], 0).repeat(stride[1], 1)


# MARK: tests


@pytest.fixture(scope="module")
def made():
    rng, w = np.random.default_rng(0), {}
    for name, shape in manifest(TINY).items():
        value = rng.normal(size=shape) * (math.prod(shape[:3]) ** -0.5 if len(shape) == 4 else 0.1)
        w[name] = value.astype(np.float32)
    w["encoder/base_conv_first/conv/kernel"] *= np.float32(0.3)
    z_TD = encode(w, TINY, 0.3 * rng.normal(size=(8 * 4 * TINY.bins, 2)))[0]
    for k, book in enumerate(w["quantizer/embedding"]):  # codes of which many are chosen
        book[...] = rng.normal(size=book.shape) * z_TD.std(0) * 0.7**k + (0 if k else z_TD.mean(0))
    return w


def write(folder: Path, w: dict[str, np.ndarray]) -> Path:
    """The three files, each with other words in front of its names."""
    folder.mkdir(parents=True)
    front = {"encoder": "params/encoder/", "decoder": "params/soundstream/decoder/", "quantizer": ""}
    for part, words in front.items():
        own = {name.partition("/")[2]: value for name, value in w.items() if name.startswith(f"{part}/")}
        boxed = "/value" if part == "decoder" else ""
        save_file({f"{words}{name}{boxed}": value for name, value in own.items()}, folder / f"{part}.safetensors")
    return folder


@pytest.fixture(scope="module")
def imported(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spectrostream")
    write(folder / "hub" / "resources" / "spectrostream", made)
    cli.main(["import", "spectrostream", str(folder / "hub"), str(folder / "out")])
    return folder / "out"


@pytest.fixture(scope="module")
def codec(imported):
    return workdir.load_codec(imported)


def test_every_tensor_has_one_place():
    """At the published sizes, by shapes alone."""
    shapes = manifest(RELEASE)
    for part, count in COUNTS.items():
        assert sum(math.prod(shape) for name, shape in shapes.items() if name.startswith(part)) == count
    source = Source(Path("m"), {}, {name: Later(shape, np.dtype("float32"), None) for name, shape in shapes.items()})
    model = spectrostream._sizes(source)
    config = presets.read("configs/tokens/codec.py:spectrostream")
    assert {name: config.model[name] for name in model} == model
    abstract = nnx.eval_shape(lambda: workdir.system(config).rooms.make_model(config)(nnx.Rngs(0)))
    wanted = {name: leaf.shape for name, leaf in export.dotted(nnx.to_pure_dict(nnx.state(abstract))).items()}
    table = list(spectrostream._table(model))
    found = {pair.ours: pair.later(source).shape for pair in table}
    books = found["quantiser.codebooks"]
    found |= {"quantiser.ema_sums": books, "quantiser.ema_counts": books[:2], "quantiser.initialised": ()}
    assert found == wanted and Counter(pairs.named(table)) == Counter(shapes.keys())


def test_codes_and_sound_are_theirs(made, codec):
    T = 6
    wav_LC = (0.3 * np.random.default_rng(1).normal(size=(T * codec.hop, 2))).astype(np.float32)
    latents_TD, codes_TK = encode(made, TINY, wav_LC)
    found = jax.jit(lambda codec, wav: (codec.encoder(wav), codec.encode(wav)))(codec, wav_LC[None])
    np.testing.assert_allclose(found[0][0], latents_TD, atol=1e-4 * np.abs(latents_TD).max())
    np.testing.assert_array_equal(found[1][0], codes_TK)
    silent = np.pad(wav_LC, ((0, codec.hop), (0, 0)))  # as the release codes a clip to its end
    np.testing.assert_array_equal(encode(made, TINY, silent)[1][:T], codes_TK)
    assert all(len(np.unique(codes_T)) > 2 for codes_T in codes_TK.T)
    wav = jax.jit(lambda codec, codes: codec.decode(codes))(codec, codes_TK[None].astype(np.int32))[0]
    held = decode(made, TINY, np.concatenate([codes_TK, codes_TK[-1:]]))
    size = np.abs(held).max()
    assert wav.shape == (T * codec.hop, 2) == held.shape and size > 0.01
    np.testing.assert_allclose(wav, held, atol=1e-4 * size)
    np.testing.assert_allclose(wav[: -codec.hop], decode(made, TINY, codes_TK), atol=1e-4 * size)


def test_margins_are_what_is_heard(codec):
    """By perturbation: 14 frames back either way, a quarter of a frame ahead, and one on the way back."""
    assert (codec.config.encoder_margin, codec.config.decoder_margin) == (14, 14)
    T, at = 36, 18
    rng = np.random.default_rng(2)
    wav_LC = (0.3 * rng.normal(size=(T * codec.hop, 2))).astype(np.float32)
    other_LC = wav_LC.copy()
    other_LC[at * codec.hop : (at + 1) * codec.hop] += 0.5
    both = jax.jit(lambda codec, wav: codec.encoder(wav))(codec, np.stack([wav_LC, other_LC]))
    changed = np.flatnonzero(np.abs(both[0] - both[1]).max(-1) > 1e-6)
    assert changed[0] == at - 1 and changed[-1] <= at + 14
    z_BTD = np.stack([np.asarray(both[0])] * 2)
    z_BTD[1, at] += 1
    wavs = np.asarray(jax.jit(lambda codec, z: codec.decoder(z))(codec, z_BTD))
    frames = np.abs(wavs[0] - wavs[1]).reshape(T, -1).max(-1)
    changed = np.flatnonzero(frames > 1e-6)
    assert changed[0] == at - 1 and at + 10 < changed[-1] <= at + 14


def test_pieces_make_what_the_whole_makes(codec):
    T = 80
    wav_LC = (0.3 * np.random.default_rng(3).normal(size=(T * codec.hop - 100, 2))).astype(np.float32)
    seconds = 45 * codec.hop / codec.sample_rate
    whole_PS, parts_PS = (encode_long(codec, wav_LC, chunk_seconds=s) for s in (None, seconds))
    assert np.mean(whole_PS == parts_PS) > 0.999
    whole, parts = (decode_long(codec, whole_PS.astype(np.int32), chunk_seconds=s) for s in (None, seconds))
    np.testing.assert_allclose(parts, whole, atol=1e-4 * np.abs(whole).max())


def test_what_is_imported_is_trained_on_by_configuration_alone(imported):
    told = json.loads((imported / "config.json").read_text())
    assert (told["system"], told["stage"], told["licences"]) == ("tokens", "codec", ["cc-by-4.0"])
    weights = export.load(imported)
    np.testing.assert_array_equal(weights["quantiser.ema_sums"], weights["quantiser.codebooks"])
    assert (weights["quantiser.ema_counts"] == 1).all()
    facts = workdir.load_codec(imported).facts
    assert (facts.quantiser, facts.levels, facts.hop) == ("residual", 3, 768)
    for stage in ("backbone", "superres"):  # token models of a system with a codec of its own know its tokens
        config = presets.read(f"configs/khala/{stage}.py:tiny")
        config.model.codec_tables = False
        config.tokens.update(facts.to_json())
        model = nnx.eval_shape(lambda c=config: workdir.system(c).rooms.make_model(c)(nnx.Rngs(0)))
        assert model.config.codes == 16
        workdir.stage(config)


def test_bad_sources_are_one_line_and_leave_nothing(made, tmp_path, capsys):
    def changed(name: str, **changes) -> str:
        new = {one: value for one, value in (made | changes).items() if value is not None}
        return str(write(tmp_path / "sources" / name, new))

    bias = "encoder/encoder_3/conv2d_3x3/conv/bias"
    (tmp_path / "sources" / "empty").mkdir(parents=True)
    cases = {
        "has no encoder.safetensors": str(tmp_path / "sources" / "empty"),
        f"has no weight {bias}": changed("less", **{bias: None}),
        f"{bias} is (9,)": changed("wide", **{bias: np.ones(9, np.float32)}),
        "has the weight decoder/params/soundstream/decoder/more": changed("more", **{"decoder/more": np.ones(1)}),
        "has no strided convolution in encoder/encoder_4": changed(
            "flat", **{"encoder/encoder_4/conv2d_3x4_a/conv/kernel": None}
        ),
    }
    for words, place in cases.items():
        with pytest.raises(SystemExit):
            cli.main(["import", "spectrostream", place, str(tmp_path / "out")])
        err = capsys.readouterr().err.strip()
        assert words in err and "\n" not in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["sources"]


@pytest.mark.parametrize(
    ("change", "words"), [({"strides": (2, 2)}, "7 each"), ({"spectrum": 100}, "model.spectrum=100 is no multiple")]
)
def test_sizes_that_do_not_fit_are_told(change, words):
    with pytest.raises(UserError, match=words):
        SpectroConfig(**change)
