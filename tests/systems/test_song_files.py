"""Which songs count as made."""

import json

import pytest

from hiermusic.systems import songs


@pytest.mark.parametrize("left", [b"", None])
@pytest.mark.parametrize("name", ["a.wav", "a.npz", "a.backbone.wav", "a.json"])
def test_a_song_that_a_power_cut_emptied_is_made_again(tmp_path, name, left):
    for sound in ("a.wav", "a.npz", "a.backbone.wav"):
        (tmp_path / sound).write_bytes(b"RIFF")
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "seed": 1, "versions": {"backbone": {}}}))
    assert songs._stands(tmp_path, {"name": "a", "seed": 1}, versions=("backbone",))
    if left is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(left)
    assert not songs._stands(tmp_path, {"name": "a", "seed": 1}, versions=("backbone",))


@pytest.mark.parametrize("versions", [None, {}, {"other": {}}, 3, ["backbone"]])
def test_a_song_of_which_a_version_is_not_told_is_made_again(tmp_path, versions):
    for sound in ("a.wav", "a.npz", "a.backbone.wav"):
        (tmp_path / sound).write_bytes(b"RIFF")
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "versions": versions}))
    assert songs._stands(tmp_path, {"name": "a"}, ())
    assert not songs._stands(tmp_path, {"name": "a"}, ("backbone",))
