import dataclasses

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.mel_branch import REACH, DeepMelBranch, MelBranch
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.errors import UserError

RATE, HOP, BANDS = 8000, 50, 5
CONFIG = CodecConfig(
    sample_rate=RATE,
    channels=2,
    trunk=DacConfig(strides=(5, 10), dilations=(1,), encoder_width=4, decoder_width=16, latent=6),
    quantiser=QuantiserConfig(levels=2, codes=8, kmeans_iterations=2),
    mel_bands=BANDS,
)


@pytest.fixture(scope="module")
def codec():
    return nnx.jit(lambda: Codec(CONFIG, rngs=nnx.Rngs(0)))()


def _branch(channels=1, latent=6):
    return MelBranch(BANDS, channels, latent, HOP, RATE, rngs=nnx.Rngs(0))


def _noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _identity(branch, tap=1):
    """A branch that hands out the bands themselves, of the frame before (0), its own (1) or the next (2)."""
    kernel = np.zeros((3, BANDS, BANDS), np.float32)
    kernel[tap] = np.eye(BANDS)
    branch.conv = lambda x_BTD: jax.lax.conv_general_dilated(
        x_BTD, jnp.asarray(kernel), (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC")
    )
    return branch


@pytest.mark.parametrize("length", [HOP, 7 * HOP, 40 * HOP])
def test_a_frame_reads_the_bands_of_two_hops_round_it(length):
    wav = _noise(1, length, 1)
    made = _identity(_branch())(jnp.asarray(wav))[0]
    around = np.pad(wav[0, :, 0], (HOP // 2, HOP // 2), mode="reflect")
    power = np.abs(librosa.stft(around, n_fft=2 * HOP, hop_length=HOP, center=False)) ** 2
    bands = librosa.filters.mel(sr=RATE, n_fft=2 * HOP, n_mels=BANDS) @ power
    np.testing.assert_allclose(made, 0.5 * np.log10(1 + bands.T / 1e-5), rtol=1e-3, atol=1e-4)


def test_a_deep_branch_reads_two_hops_in_a_longer_transform():
    """As PyramidCodec's released code does: a frame of four hops, of which the window takes the middle two."""
    wav, width = _noise(1, 12 * HOP, 1), 6
    branch = DeepMelBranch(width, width, 1, width, HOP, RATE, rngs=nnx.Rngs(0))  # as wide as the latents: no block
    branch.conv = lambda level_BTM: level_BTM
    around = np.pad(wav[0, :, 0], (HOP + HOP // 2, HOP + HOP // 2), mode="reflect")
    sizes = np.abs(librosa.stft(around, n_fft=4 * HOP, hop_length=HOP, win_length=2 * HOP, center=False))
    bands = librosa.filters.mel(sr=RATE, n_fft=4 * HOP, n_mels=width, fmax=RATE / 2) @ sizes
    np.testing.assert_allclose(branch(jnp.asarray(wav))[0], np.log(np.maximum(bands.T, 1e-5)), rtol=1e-3, atol=1e-4)


def test_silence_is_nought_and_channels_are_kept_apart():
    wav = np.zeros((1, 10 * HOP, 2), np.float32)
    branch = _branch(channels=2)
    quiet = branch(jnp.asarray(wav))
    left, right = (branch(jnp.asarray(_noise(1, 10 * HOP, 1) * side)) for side in ([1.0, 0.0], [0.0, 1.0]))
    assert np.ptp(quiet, axis=1).max() < 1e-6
    assert np.abs(np.asarray(left - right)).max() > 1e-2


def test_no_frame_reads_further_than_its_reach():
    wav = _noise(1, 40 * HOP, 1)
    changed = wav.copy()
    changed[:, 20 * HOP : 21 * HOP] += 1
    branch = _branch()
    touched = np.flatnonzero(np.any(np.asarray(branch(jnp.asarray(wav)) != branch(jnp.asarray(changed))), axis=(0, 2)))
    assert (touched.min(), touched.max()) == (20 - REACH, 20 + REACH)


def test_a_codec_adds_the_branch_to_what_its_encoder_says(codec):
    wav = jnp.asarray(0.3 * _noise(2, 6 * HOP, 2))
    whole, alone = codec._latents(wav), codec.encoder(wav)
    np.testing.assert_allclose(whole - alone, codec.mel_branch(wav), atol=1e-5)
    assert np.abs(np.asarray(whole - alone)).max() > 1e-2


def test_the_branch_learns(codec):
    wav = jnp.asarray(0.3 * _noise(2, 6 * HOP, 2))

    @nnx.jit
    def gradient(codec):
        return nnx.grad(lambda codec: jnp.sum(jnp.square(codec.forward(wav, quantise=False).wav_BLC)))(codec)

    gradients = gradient(codec)
    assert all(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(gradients.mel_branch))


def test_a_windowed_codec_reads_no_other_window():
    codec = Codec(dataclasses.replace(CONFIG, windowed=True), rngs=nnx.Rngs(0))
    wav = 0.3 * _noise(1, 6 * HOP, 2)
    rows = np.concatenate([codec._latents(jnp.asarray(wav[:, i : i + HOP])) for i in range(0, 6 * HOP, HOP)], axis=1)
    np.testing.assert_allclose(codec._latents(jnp.asarray(wav)), rows, atol=1e-5)
    assert codec.config.encoder_margin == 0


def test_the_branch_can_widen_the_margin():
    flat = DacConfig(strides=(5,), dilations=(), encoder_width=4, decoder_width=16, latent=6)
    assert dataclasses.replace(CONFIG, trunk=flat).encoder_margin >= REACH


def test_bands_below_none_are_refused():
    with pytest.raises(UserError, match="mel_bands is -1"):
        CodecConfig(mel_bands=-1)
    assert not hasattr(
        nnx.eval_shape(lambda: Codec(dataclasses.replace(CONFIG, mel_bands=0), rngs=nnx.Rngs(0))), "mel_branch"
    )


@pytest.mark.parametrize("width", [5, 12])
def test_a_width_that_never_becomes_the_latents_is_told(width):
    with pytest.raises(UserError, match=rf"^model.mel_width={width}: doubled so many times it must be model.latent=6$"):
        DeepMelBranch(width, BANDS, 1, 6, HOP, RATE, rngs=nnx.Rngs(0))
