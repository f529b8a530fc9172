"""What the page of an evaluation plays."""

from types import SimpleNamespace

import numpy as np
import pytest

from hiermusic.evaluate import run


@pytest.mark.parametrize(
    ("depth", "heard"), [(64, [2, 8, 16, 32, 64]), (16, [2, 8, 16]), (10, [2, 8, 10]), (6, [2, 6]), (2, [2]), (1, [1])]
)
def test_a_codec_is_played_whole_whatever_its_depth(depth, heard, tmp_path, monkeypatch):
    asked = []

    def decode(codec, codes_RS, *, length, layers):
        asked.append(layers)
        return np.zeros((length, 1), np.float32)

    monkeypatch.setattr(run, "encode_long", lambda codec, wav_LC: None)
    monkeypatch.setattr(run, "decode_long", decode)
    codec = SimpleNamespace(sample_rate=8000, hierarchy=range(depth))
    players = run.reconstructions(codec, np.zeros((80, 1), np.float32), tmp_path, "clip")
    assert asked == heard
    assert [player.label for player in players] == ["truth", *(f"{n} layer{'s' * (n > 1)}" for n in heard)]
    assert (tmp_path / f"clip-{heard[-1]}-layer{'s' * (heard[-1] > 1)}.wav").is_file()
