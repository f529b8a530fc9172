"""A k-means that somebody else has trained, as scikit-learn's files hold it; and what is none."""

import os
import pickle

import joblib
import numpy as np
import pytest
from sklearn.cluster import KMeans, MiniBatchKMeans

from hiermusic.errors import UserError
from hiermusic.pretrained import centroids


def trained(kind, dtype=np.float32):
    """A k-means with what `fit` leaves in it."""
    model = kind(4, random_state=np.random.RandomState(3))
    model.cluster_centers_ = np.random.default_rng(0).normal(size=(4, 5)).astype(dtype)
    model.labels_, model.inertia_, model.n_iter_ = np.arange(6, dtype=np.int32), np.float64(2.5), 3
    model.random_state_, model._counts = np.random.RandomState(4), np.ones(4)
    return model


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_joblib_wrote_of_a_mini_batch_k_means(tmp_path, protocol, dtype):
    model = trained(MiniBatchKMeans, dtype)
    joblib.dump(model, tmp_path / "km.bin", protocol=protocol)
    np.testing.assert_array_equal(centroids.read(tmp_path / "km.bin"), model.cluster_centers_.astype(np.float32))


def test_what_pickle_and_numpy_wrote(tmp_path):
    model = trained(KMeans)
    model.cluster_centers_ = np.asfortranarray(model.cluster_centers_)
    (tmp_path / "km.pkl").write_bytes(pickle.dumps(model))
    np.save(tmp_path / "km.npy", model.cluster_centers_.astype(">f8"))
    joblib.dump(model, tmp_path / "km.joblib")
    for name in ("km.pkl", "km.npy", "km.joblib"):
        np.testing.assert_array_equal(centroids.read(tmp_path / name), model.cluster_centers_)


def test_an_array_of_more_bytes_than_a_machines_number_counts_is_too_large():
    with pytest.raises(ValueError, match="larger than any k-means has"):
        centroids._bytes((1 << 32, 1 << 32), centroids._Stand("f4"))


class Program:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def refused(path, words):
    with pytest.raises(UserError, match=words) as told:
        centroids.read(path)
    assert "\n" not in str(told.value) and len(str(told.value)) <= 1000


def test_what_is_no_k_means_is_told_and_nothing_of_it_runs(tmp_path):
    model = trained(KMeans)
    path = tmp_path / "km.bin"
    model.extra = Program(str(tmp_path / "made"))
    joblib.dump(model, path)
    refused(path, r"km.bin asks for (posix|nt)\.mkdir, which is nothing of a k-means: nothing of it was run")
    assert not (tmp_path / "made").exists()
    del model.extra
    model.odd = np.array([Program(str(tmp_path / "made"))], object)
    joblib.dump(model, path)
    refused(path, "km.bin (cannot be read as a k-means|asks for)")
    assert not (tmp_path / "made").exists()
    del model.odd
    joblib.dump(model, path)
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(share * len(whole))])
        refused(path, "km.bin cannot be read as a k-means")
    joblib.dump(model, path, compress=3)
    refused(path, "km.bin cannot be read as a k-means .* give scikit-learn's, as joblib.dump writes it uncompressed")
    joblib.dump({"a": 1}, path)
    refused(path, "holds no cluster_centers_")
    for centres in (np.zeros(5), np.zeros((3, 5), int), np.full((3, 5), np.nan)):
        np.save(tmp_path / "km.npy", centres)
        refused(tmp_path / "km.npy", "km.npy cannot be read as a k-means .its centres are")
    refused(tmp_path / "none.bin", "No such file")
