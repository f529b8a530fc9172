"""Files of tensors that PyTorch reads without being asked to trust them."""

import numpy as np
import pytest

from hiermusic.pretrained import pickles

torch = pytest.importorskip("torch")


def test_torch_reads_what_is_written(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"a.b": rng.normal(size=(300, 4)).astype(np.float32), "whole": np.arange(6).reshape(1, 2, 3)}
    tensors |= {"one": np.float32(2.5).reshape(()), "none": np.zeros((0, 2), np.float32)}
    pickles.write(tmp_path / "x.pt", tensors)
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        assert found[name].shape == value.shape and found[name].is_contiguous()
        np.testing.assert_array_equal(found[name].numpy(), value)
