"""The multi-scale quantiser against PyTorch's own operations, at the paper's sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.multiscale import MultiscaleConfig, scale_matrices
from hiermusic.tokens.scales import schedule

torch = pytest.importorskip("torch")
F = torch.nn.functional


@pytest.mark.parametrize("kind", ["quadratic", "linear", "logarithmic"])
def test_pooling_and_interpolation_are_pytorchs(kind):
    scales = schedule(kind, 75, 16)
    # In double precision, as PyTorch's own positions are 1e-5 off in single.
    x = torch.randn(3, 5, 75, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k, n in enumerate(scales):
        down, up = (matrices[k] for matrices in scale_matrices(scales)[:2])
        pooled, coarse = F.adaptive_avg_pool1d(x, n), x[..., :n]
        np.testing.assert_allclose(x.numpy() @ down[:n].T, pooled, atol=1e-6)
        np.testing.assert_allclose(pooled, F.interpolate(x, size=n, mode="area"), atol=1e-6)
        stretched = F.interpolate(coarse, size=75, mode="linear", align_corners=False)
        np.testing.assert_allclose(coarse.numpy() @ up[:, :n].T, stretched, atol=1e-6)
        assert not down[n:].any() and not up[:, n:].any()


def test_the_whole_quantiser_gives_pytorchs_codes():
    config = MultiscaleConfig(latent=16, codes=256)
    rng = np.random.default_rng(0)

    @jax.jit
    def make(books):
        quantiser = config.make(16, rngs=nnx.Rngs(0))
        quantiser.codebooks[...] = books
        return quantiser

    # Codes as far apart as what is left over at their level, so that all levels choose among many.
    spread = (0.3 * 0.9 ** np.arange(16))[:, None, None]
    quantiser = make((spread * rng.normal(size=(16, 256, 16))).astype(np.float32))
    x = rng.normal(size=(4, 75, 16)).astype(np.float32)

    books, kernels, biases = (
        torch.tensor(np.asarray(v[...], np.float64)) for v in (quantiser.codebooks, quantiser.phi, quantiser.phi_bias)
    )
    residual, total, codes = torch.tensor(x).double().transpose(1, 2), 0, []
    for k, n in enumerate(config.scales):
        points = F.interpolate(residual, size=n, mode="area").transpose(1, 2)
        chosen = torch.cdist(points, books[k].expand(4, -1, -1), compute_mode="donot_use_mm_for_euclid_dist").argmin(-1)
        u = F.interpolate(books[k][chosen].transpose(1, 2), size=75, mode="linear")
        phi = config.phis[k]
        q = 0.5 * u + 0.5 * F.conv1d(u, kernels[phi].permute(2, 1, 0), biases[phi], padding=4)
        residual, total = residual - q, total + q
        codes.append(chosen)
    out = jax.jit(lambda x: quantiser(x))(jnp.asarray(x))
    np.testing.assert_array_equal(out.codes_BPS[:, 0], torch.cat(codes, 1))
    assert all(len(np.unique(part)) > 3 for part in codes[1:])
    np.testing.assert_allclose(out.z_q_BTD, total.transpose(1, 2), atol=1e-5)
