"""HuBERT and CLAP against transformers on random weights: in, out again, and the front ends."""

import json
from dataclasses import replace

import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.pretrained import clap, encoder, encoders
from hiermusic.pretrained.hubert import HubertConfig
from hiermusic.pretrained.source import read_source

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTHS = (400, 719, 8123)  # one frame, one sample short of two, twenty-five with some left over
TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
AUDIO = {
    "hidden_size": 16,
    "patch_embeds_hidden_size": 8,
    "depths": [2, 2],
    "num_attention_heads": [2, 4],
    "num_mel_bins": 16,
    "spec_size": 64,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "window_size": 8,
    "num_hidden_layers": 2,
}
TEXT = {**TINY, "vocab_size": 50, "max_position_embeddings": 20, "pad_token_id": 1}


def stirred(model):
    """The same model with no bias at 0, no scale at 1 and no table at 0."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.dtype.is_floating_point:
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def near(found, wanted):
    wanted = np.asarray(wanted)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


layers = nnx.jit(lambda ours, wav_BL, layer: ours(wav_BL, layer), static_argnames="layer")
hear = nnx.jit(lambda ours, mel_BTM: ours.hear(mel_BTM))
read = nnx.jit(lambda ours, ids_BS: ours.read(ids_BS))


def taken(imported):
    return encoder.filled(encoder.of_fields(json.loads(json.dumps(imported.config))), imported.weights)


@pytest.fixture(scope="module", params=["base", "large"])
def hubert(request, tmp_path_factory):
    torch.manual_seed(1)
    large = request.param == "large"
    more = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True} if large else {}
    sizes = {"conv_dim": [12] * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
    theirs = stirred(transformers.HubertModel(transformers.HubertConfig(**TINY, **sizes, **more)))
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return theirs, folder, encoders.read_hubert(read_source(folder))


def test_hubert_is_transformers_at_every_layer_and_length(hubert):
    theirs, _, imported = hubert
    ours = taken(imported)
    for length in LENGTHS:
        wav_BL = 0.3 * noise(2, length, seed=length)
        heard_BL = wav_BL
        if ours.config.normalise:
            heard_BL = (wav_BL - wav_BL.mean(1, keepdims=True)) / np.sqrt(wav_BL.var(1, keepdims=True) + 1e-5)
        with torch.no_grad():
            wanted = theirs(torch.tensor(heard_BL), output_hidden_states=True).hidden_states
        assert wanted[0].shape[1] == encoder.frame_count(ours.config, length)
        for layer in range(3):
            near(layers(ours, wav_BL, layer=layer), wanted[layer])
    assert ours.config.normalise == (theirs.config.feat_extract_norm == "layer")
    near(layers(ours, wav_BL[1:], layer=2)[0], layers(ours, wav_BL, layer=2)[1])  # a batch is its single clips


def test_hubert_goes_back_to_transformers(hubert, tmp_path):
    theirs, _, imported = hubert
    fields, tensors = encoders.write_hubert(imported)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    from safetensors.numpy import save_file

    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, told = transformers.HubertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    wav = torch.tensor(0.3 * noise(1, 3000))
    with torch.no_grad():
        assert torch.equal(theirs(wav).last_hidden_state, again.eval()(wav).last_hidden_state)
    back = encoders.read_hubert(read_source(tmp_path))
    assert back.config == imported.config
    for name, weight in imported.weights.items():
        np.testing.assert_array_equal(back.weights[name], weight)


def test_windows_lie_where_the_whole_does(hubert):
    """Ten seconds are 499 frames; windows give as many, and each is what its window alone gives."""
    ours = taken(hubert[2])
    assert encoder.frame_count(HubertConfig(), 160_000) == 499
    wav_L = 0.3 * noise(320 * 24 + 123)
    whole_TD = encoder.embed(ours, wav_L, window=0.0)
    windows_TD = encoder.embed(ours, wav_L, window=0.2)
    assert whole_TD.shape == windows_TD.shape == (24, 32)
    near(windows_TD[:10], encoder.embed(ours, wav_L[: 9 * 320 + 400]))
    near(windows_TD[10:20], encoder.embed(ours, wav_L[3200 : 3200 + 9 * 320 + 400]))
    near(windows_TD[20:], encoder.embed(ours, wav_L[14 * 320 : 23 * 320 + 400])[6:])
    near(encoder.embed(ours, wav_L[:4000], window=10.0), layers(ours, wav_L[None, :4000], layer=2)[0])


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    torch.manual_seed(2)
    config = transformers.ClapConfig(text_config=TEXT, audio_config=AUDIO, projection_dim=12)
    theirs = stirred(transformers.ClapModel(config))
    folder = tmp_path_factory.mktemp("clap")
    theirs.save_pretrained(folder)
    return theirs, folder, encoders.read_clap(read_source(folder))


@pytest.mark.parametrize("frames", [256, 130])
def test_clap_hears_what_transformers_does(both, frames):
    theirs, _, imported = both
    ours = taken(imported)
    mel_BTM = 20 * noise(2, frames, 16, seed=frames) - 30
    with torch.no_grad():
        wanted = theirs.get_audio_features(torch.tensor(mel_BTM)[:, None]).pooler_output.numpy()
    near(hear(ours, mel_BTM), wanted)
    if frames == 256:
        near(hear(ours, mel_BTM[1:])[0], wanted[1])
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3


def test_clap_reads_what_transformers_does(both):
    theirs, _, imported = both
    ours = taken(imported)
    ids_BS = np.array([[0, 7, 9, 30, 2], [0, 41, 2, 1, 1]])
    with torch.no_grad():
        mask = torch.tensor((ids_BS != 1).astype(int))
        wanted = theirs.get_text_features(torch.tensor(ids_BS), attention_mask=mask).pooler_output.numpy()
    near(read(ours, ids_BS), wanted)
    near(read(ours, ids_BS[1:, :3])[0], wanted[1])
    assert np.abs(wanted[0] - wanted[1]).max() > 1e-3


def test_clap_goes_back_to_transformers(both, tmp_path):
    theirs, _, imported = both
    fields, tensors = encoders.write_clap(imported)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    from safetensors.numpy import save_file

    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, told = transformers.ClapModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not told["unexpected_keys"]
    mel, ids = torch.tensor(20 * noise(1, 1, 256, 16)), torch.tensor([[0, 5, 2]])
    with torch.no_grad():
        for ask, given in (("audio", mel), ("text", ids)):
            here, there = (getattr(model.eval(), f"get_{ask}_features")(given) for model in (theirs, again))
            assert torch.equal(here.pooler_output, there.pooler_output)
    back = encoders.read_clap(read_source(tmp_path))
    assert back.config == imported.config
    assert all(np.array_equal(back.weights[name], weight) for name, weight in imported.weights.items())


@pytest.mark.parametrize("length", [1, 24_001, 479_999, 480_000])
def test_claps_front_end_is_transformers(length):
    config = clap.ClapConfig(audio=clap.SwinConfig(width=8, depths=(1,), heads=(2,)), fmin=50.0)
    wav_L = 0.3 * noise(length, seed=length)
    front = transformers.ClapFeatureExtractor(**{name: value for name, value in clap.preprocessor(config).items()
                                                 if name != "feature_extractor_type"})  # fmt: skip
    wanted = front(wav_L, sampling_rate=48000, return_tensors="np")["input_features"][0, 0]
    clips_BL = clap.Clap.clips(type("Ear", (), {"config": config}), wav_L)
    assert clips_BL.shape == (1, 480_000)
    found_TM = clap.Clap.mel(type("Ear", (), {"config": config}), clips_BL)[0]
    assert found_TM.shape == (1001, 64)
    loud = wanted > -60  # of silence's floor only that it is one
    np.testing.assert_allclose(np.asarray(found_TM)[loud], wanted[loud], atol=0.02)
    assert np.all(np.asarray(found_TM)[wanted <= -99] < -90)


def test_what_is_no_clap_is_told(both):
    _, folder, _ = both
    source = read_source(folder)
    with pytest.raises(UserError, match=r"config\.json is of a clap, not of a hubert"):
        encoders.read_hubert(source)
    bias = "text_model.pooler.dense.bias"
    cut = {name: tensor for name, tensor in source.tensors.items() if name != bias}
    with pytest.raises(UserError, match=rf"has no weight {bias}"):
        encoders.read_clap(replace(source, tensors=cut))
    with pytest.raises(UserError, match=rf"{bias} is \(33,\), this model's is \(32,\)"):
        encoders.read_clap(replace(source, tensors={**source.tensors, bias: np.zeros(33, np.float32)}))
    fused = {**source.config, "audio_config": {**source.config["audio_config"], "enable_fusion": True}}
    with pytest.raises(UserError, match="this is a fused CLAP"):
        encoders.read_clap(replace(source, config=fused))
