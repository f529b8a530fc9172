"""Arrays from a person's file: taken whole, or refused in one line before they fill the memory."""

import zipfile

import numpy as np
import pytest

from hiermusic.data import arrays
from hiermusic.errors import UserError

DO = "write it again"


def npz(path, **more):
    np.savez_compressed(path, codes=np.arange(1000), **more)
    return path


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("codes.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (300 << 20,)})
        for _ in range(300):
            file.write(bytes(1 << 20))
    return path


def broken_deflate(path):
    data = bytearray(npz(path).read_bytes())
    data[90:400] = b"\xff" * 310
    path.write_bytes(data)
    return path


def encrypted(path):
    data = bytearray(npz(path).read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + flags] |= 1
    path.write_bytes(data)
    return path


def huge_shape(path):
    with zipfile.ZipFile(path, "w") as packed, packed.open("codes.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 58,)})
    return path


def of_objects(path):
    return npz(path, objects=np.array([{}], object))


def text(path):
    path.write_text("codes")
    return path


def test_arrays_come_back(tmp_path):
    (name,) = arrays.read_npz(npz(tmp_path / "a.npz"), "a codes file", DO)
    assert name == "codes"
    np.save(tmp_path / "a.npy", np.eye(3))
    np.testing.assert_array_equal(arrays.read_npy(tmp_path / "a.npy", "a vector", DO), np.eye(3))


@pytest.mark.parametrize("make", [bomb, broken_deflate, encrypted, huge_shape, of_objects, text])
def test_a_bad_archive_is_refused_in_one_line(tmp_path, make):
    with pytest.raises(UserError, match=r"a\.npz cannot be read as a codes file \(.*\): write it again"):
        arrays.read_npz(make(tmp_path / "a.npz"), "a codes file", DO)


def test_a_vector_is_no_archive_and_claims_no_more_than_it_holds(tmp_path):
    npz(tmp_path / "a.npz").rename(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"cannot be read as a vector \(it is an .npz file\)"):
        arrays.read_npy(tmp_path / "a.npy", "a vector", DO)
    with open(tmp_path / "b.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    with pytest.raises(UserError, match="cannot be read as a vector"):
        arrays.read_npy(tmp_path / "b.npy", "a vector", DO)


def test_arrays_of_any_name_are_written_with_their_licences(tmp_path):
    whole = {"file": np.arange(3), "self": np.float32([[1, 2]]), "length": 7}
    for licences in ((), ("cc-by-nc-4.0", "unknown")):
        arrays.write_npz(tmp_path / "new" / "x.npz", whole, licences)
        found = arrays.read_npz(tmp_path / "new" / "x.npz", "arrays", DO)
        assert list(found) == list(whole) and all(
            found[name].tolist() == np.array(whole[name]).tolist() for name in whole
        )
        assert arrays.licences_of(tmp_path / "new" / "x.npz") == list(licences)


def test_of_arrays_that_cannot_be_written_nothing_stays(tmp_path):
    with pytest.raises(ValueError, match="pickle"):
        arrays.write_npz(tmp_path / "x.npz", {"a": np.arange(3), "b": np.array([object()])})
    assert not list(tmp_path.iterdir())
