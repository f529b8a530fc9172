"""Songs are made once, and again when what decided them changes."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from hiermusic.errors import UserError
from hiermusic.systems import requests, songs


@pytest.fixture
def produce(tmp_path, monkeypatch):
    """(audio) -> how many songs were made for it."""
    monkeypatch.setattr(songs, "decode_long", lambda codec, codes_RS, length: np.zeros((10, 1), np.float32))
    asked, codes_RS = requests.single("slow", None, False, 1.0, 0), np.zeros((1, 2))

    def run(audio: str | None) -> int:
        made = []

        def make(wanted):
            made.extend(wanted)
            return [songs.Song(codes_RS, True, SimpleNamespace(sample_rate=8000)) for _ in wanted]

        songs.produce(asked, tmp_path / "out", make, {}, {}, audio, False)
        return len(made)

    return run


def test_a_continuation_is_made_again_when_its_audio_changes(produce, tmp_path):
    audio = tmp_path / "in.wav"
    soundfile.write(audio, np.zeros((8000, 1)), 8000)
    assert [produce(None), produce(None)] == [1, 0]
    assert [produce(str(audio)), produce(str(audio))] == [1, 0]
    soundfile.write(audio, np.full((8000, 1), 0.5), 8000)
    assert [produce(str(audio)), produce(str(audio))] == [1, 0]
    audio.write_text("la")
    with pytest.raises(UserError, match="not readable as audio"):
        produce(str(audio))
