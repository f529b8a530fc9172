"""Which songs count as made."""

import json

import pytest

from hiermusic.systems import songs


@pytest.mark.parametrize("left", [b"", None])
@pytest.mark.parametrize("name", ["a.wav", "a.backbone.wav", "a.json"])
def test_a_song_that_a_power_cut_emptied_is_made_again(tmp_path, name, left):
    for sound in ("a.wav", "a.backbone.wav"):
        (tmp_path / sound).write_bytes(b"RIFF")
    (tmp_path / "a.json").write_text(json.dumps({"name": "a", "seed": 1}))
    assert songs._stands(tmp_path, {"name": "a", "seed": 1}, coarse_too=True)
    if left is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(left)
    assert not songs._stands(tmp_path, {"name": "a", "seed": 1}, coarse_too=True)
