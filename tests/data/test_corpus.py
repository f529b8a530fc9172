import itertools
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest

from hiermusic.audio import files
from hiermusic.data import composer, corpus, synth, voice
from hiermusic.data.composer import NAMES, Hit, Note, compose
from hiermusic.data.lyrics import LEXICON
from hiermusic.errors import UserError

GOLDEN = Path(__file__).with_name("golden") / "songs.json"  # HIERMUSIC_GOLDEN=write writes it anew


@pytest.fixture(scope="module")
def songs():
    """Eight songs of 8 seconds, some of them instrumental."""
    return [corpus.song(seed, 8.0) for seed in range(8)]


@pytest.fixture(scope="module")
def sung(songs):
    return [song for song in songs if not song.is_instrumental]


def decibels(wav_LC):
    return 10 * np.log10(np.mean(np.square(wav_LC, dtype=np.float64)) + 1e-20)


def pitch(wav_L, rate):
    """MIDI number of the shortest period at which the sound agrees best with itself."""
    window_L = np.hanning(len(wav_L))
    lags_L, norm_L = (
        np.fft.irfft(np.abs(np.fft.rfft(x_L, 4 * len(wav_L))) ** 2)[: len(wav_L) // 2]
        for x_L in ((wav_L - wav_L.mean()) * window_L, window_L)
    )
    agreement_L = lags_L / norm_L
    shortest, longest = rate // 900, rate // 80
    lag = shortest + int(np.argmax(agreement_L[shortest:longest] > 0.9 * agreement_L[shortest:longest].max()))
    while agreement_L[lag + 1] > agreement_L[lag]:
        lag += 1
    return 69 + 12 * np.log2(rate / lag / 440)


def test_a_song_is_a_function_of_its_arguments(songs):
    again = corpus.song(3, 8.0)
    np.testing.assert_array_equal(again.mix, songs[3].mix)
    np.testing.assert_array_equal(again.vocals, songs[3].vocals)
    assert corpus.truth(again) == corpus.truth(songs[3])
    for one, other in itertools.combinations(songs, 2):
        assert np.abs(one.mix - other.mix).max() > 0.1


@pytest.mark.parametrize("seconds, rate", [(3, 44100), (7.77, 24000), pytest.param(60, 16000, marks=pytest.mark.slow)])
def test_any_length_is_exact(seconds, rate):
    song = corpus.song(11, seconds, rate)
    assert song.mix.shape == song.vocals.shape == song.instrumental.shape == (round(seconds * rate), 2)
    assert song.seconds == pytest.approx(seconds, abs=1 / rate)
    np.testing.assert_allclose(song.mix, song.vocals + song.instrumental, atol=1e-6)


def test_sound_is_clean(songs):
    for song in songs:
        assert song.mix.dtype == song.vocals.dtype == song.instrumental.dtype == np.float32
        np.testing.assert_allclose(song.mix, song.vocals + song.instrumental, atol=1e-6)
        assert 0.5 < np.abs(song.mix).max() <= 1.0
        assert -22 < decibels(song.mix) < -9
        assert np.abs(song.mix.mean(axis=0)).max() < 1e-3
        assert np.abs(song.mix[[0, -1]]).max() < 1e-2  # no click at the edges
        assert decibels(song.mix[:, 0] - song.mix[:, 1]) > -60  # stereo


def test_instrumental_songs_are_a_share_and_have_no_voice(songs):
    instrumental = [song for song in songs if song.is_instrumental]
    assert instrumental and len(instrumental) < len(songs)
    for song in instrumental:
        assert not song.vocals.any() and not song.lines and not song.lyrics


def test_voice_is_as_loud_as_the_band(sung):
    for song in sung:
        time_L = np.arange(len(song.mix)) / song.sample_rate
        singing_L = np.any([(time_L >= line.start) & (time_L < line.end) for line in song.lines], axis=0)
        assert -3 < decibels(song.vocals[singing_L]) - decibels(song.instrumental[singing_L]) < 5
        assert decibels(song.vocals[singing_L]) > decibels(song.vocals[~singing_L]) + 6


@pytest.mark.parametrize("seconds", [1, 3, 10.5, 33, 60])
def test_scores_are_consistent(seconds):
    for seed in range(25):
        score = compose(np.random.default_rng(seed), seconds)
        np.testing.assert_allclose(np.diff(score.beats), 60 / score.tempo, rtol=1e-9)
        assert score.beats[0] == 0 and score.beats[-1] < seconds
        for spans in (score.sections, score.chords):
            assert spans[0].start == 0 and spans[-1].end == pytest.approx(seconds, abs=0.06)
            for one, following in itertools.pairwise(spans):
                assert one.end == pytest.approx(following.start) and one.start < one.end
        slots = [slot for line in score.lines for slot in line.slots]
        for one, following in itertools.pairwise(slots):
            assert one.end <= following.start + 1e-9
        assert all(0 <= slot.start < slot.end <= seconds for slot in slots)
        steps = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}[score.mode]
        scale = {(score.tonic + step) % 12 for step in steps}
        notes = [n.pitch for role, part in score.parts.items() if role != "bass" for n in part]
        assert all(p % 12 in scale for p in notes + [slot.pitch for slot in slots])


def test_lyrics_are_what_is_sung(sung):
    for song in sung:
        words = {word.text: word for kind in LEXICON.values() for word in kind}
        for line in song.lines:
            phones = [phones for word in line.text.split() for phones in words[word].phones]
            assert [s.phones for s in line.syllables] == phones
            assert "".join(s.text for s in line.syllables) == line.text.replace(" ", "")
            assert all(0 <= s.start <= s.onset < s.end <= song.seconds for s in line.syllables)
        rows = song.lyrics.split("\n")
        assert [row for row in rows if not row.startswith("[")] == [line.text for line in song.lines]
        assert rows[0] in ("[Verse]", "[Chorus]")


def test_every_phone_can_be_sung():
    known = set(voice.VOWELS) | set(voice.CONSONANTS)
    for word in itertools.chain(*LEXICON.values()):
        assert len(word.syllables) == len(word.phones)
        for phones in word.phones:
            assert set(phones) <= known and any(phone in voice.VOWELS for phone in phones)


def test_a_vowel_glides_late_and_each_of_those_behind_it_has_the_same_time():
    for phones, starts in ((("aa", "ih"), [0, 0.7]), (("aa", "ih", "er"), [0, 0.7, 0.85])):
        segments = voice._segments([voice.Sung(phones, 50, 2.0, 3.0)])
        assert [start for start, _, _ in segments] == pytest.approx([*(2 + start for start in starts), 3])


def test_sung_pitch_is_the_note(sung):
    errors = []
    for song in sung:
        for syllable in itertools.chain(*(line.syllables for line in song.lines)):
            first, last = (round(t * song.sample_rate) for t in (syllable.onset + 0.06, syllable.end - 0.05))
            if last - first > 3000:
                middle_L = song.vocals[first : min(last, first + 6000)].mean(axis=1)
                errors.append(abs(pitch(middle_L, song.sample_rate) - syllable.pitch))
    assert len(errors) > 10 and np.median(errors) < 0.2 and np.mean(np.asarray(errors) < 1.0) > 0.85


def test_vowels_sound_different():
    def bands(vowel):
        wav_L = voice.sing(np.random.default_rng(0), [voice.Sung((vowel,), 50, 0.1, 0.9)], 1.0, 1.0)
        spectrum_F = np.abs(np.fft.rfft(wav_L[8820:35280] * np.hanning(26460)))
        edges = (np.asarray([100, 350, 520, 800, 1200, 1700, 2150, 2800]) * 26460 / voice.RATE).astype(int)
        return 20 * np.log10([np.sqrt(np.mean(part**2)) for part in np.split(spectrum_F, edges)[1:-1]])

    shapes = {vowel: bands(vowel) for vowel in voice.VOWELS}
    for one, other in itertools.combinations(shapes, 2):
        assert np.abs((shapes[one] - shapes[one].mean()) - (shapes[other] - shapes[other].mean())).max() > 3


@pytest.mark.slow
def test_tempo_and_chords_can_be_heard():
    import librosa

    song = corpus.song(101, 12.0, 22050)
    assert song.genre == "pop"
    wav_L = song.mix.mean(axis=1)
    tempo, beats = librosa.beat.beat_track(y=wav_L, sr=22050, start_bpm=100, units="time")
    assert float(np.squeeze(tempo)) == pytest.approx(song.tempo, rel=0.04)
    assert np.median(np.abs(beats[:, None] - song.beats).min(axis=1)) < 0.05
    chroma_CF = librosa.feature.chroma_stft(y=song.instrumental.mean(axis=1), sr=22050, n_fft=8192, hop_length=512)
    agreements = []
    for chord in song.chords:
        root, third = NAMES.index(chord.name.split(":")[0]), 4 if chord.name.endswith("maj") else 3
        heard_C = chroma_CF[:, int(chord.start * 22050 / 512) : int(chord.end * 22050 / 512)].mean(axis=1)
        triad_C = np.isin(np.arange(12), [(root + step) % 12 for step in (0, third, 7)])
        agreements.append(np.corrcoef(heard_C, triad_C)[0, 1])
    assert np.mean(agreements) > 0.5


def test_tags_describe_the_sound():
    scores = [compose(np.random.default_rng(seed), 20) for seed in range(80)]
    tagged = [(set(corpus._tags(score)), score) for score in scores]
    for tags, score in tagged:
        assert ("slow" in tags) == (score.tempo < 86) and ("fast" in tags) == (score.tempo >= 118)
        assert ("drums" in tags) == bool(score.hits)
        assert ("happy" in tags) == (score.mode == "major")
        assert all(score.parts[role] for role, name in score.instruments.items() if name in tags)
    middle = {
        kind: np.mean([s.pitch for tags, score in tagged if kind in tags for line in score.lines for s in line.slots])
        for kind in ("female voice", "male voice")
    }
    assert middle["female voice"] > middle["male voice"] + 7


def test_corpus_is_a_sequence_that_does_not_depend_on_its_length():
    (one,), (first, second) = (corpus.corpus(n, seed=5, seconds_range=(2, 4)) for n in (1, 2))
    np.testing.assert_array_equal(one.mix, first.mix)
    assert first.seed != second.seed and 2 <= second.seconds <= 4


def test_export_writes_what_a_person_would_keep(tmp_path, sung):
    path = corpus.export(sung[0], tmp_path / "songs", "one", stems=tmp_path / "stems")
    assert sorted(p.name for p in path.parent.iterdir()) == ["one.json", "one.txt", "one.wav"]
    wav_LC, rate = files.read(path)
    assert rate == 44100 and np.abs(wav_LC - sung[0].mix).max() < 1e-4
    stems = sum(files.read(p)[0] for p in (tmp_path / "stems").iterdir())
    assert np.abs(stems - sung[0].mix).max() < 1e-4
    assert (path.parent / "one.txt").read_text().rstrip("\n") == sung[0].lyrics
    assert json.loads((path.parent / "one.json").read_text())["language"] == "English"


def test_beats_are_drawn_on_the_mix_and_syllables_on_the_vocals(monkeypatch, sung):
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **how: drawn.append(figure))
    corpus.plot(sung[0], "song.png")
    mix, vocals = drawn[0].axes
    (beats,) = mix.collections
    np.testing.assert_allclose([line[0, 0] for line in beats.get_segments()], sung[0].beats)
    syllables = [syllable.text for line in sung[0].lines for syllable in line.syllables]
    assert [text.get_text() for text in vocals.texts] == syllables and not vocals.collections


def test_plot_draws(tmp_path, sung):
    corpus.plot(sung[0], tmp_path / "song.png")
    assert (tmp_path / "song.png").stat().st_size > 10_000


@pytest.mark.parametrize("arguments", [(0, 0.5), (0, float("nan")), (-1, 5)])
def test_impossible_songs_are_refused(arguments):
    with pytest.raises(UserError):
        corpus.song(*arguments)


def test_tempi_are_those_that_are_given_and_leave_the_songs_lengths_alone():
    tempi = (71.78, 107.67, 129.2)
    songs = list(corpus.corpus(6, seed=1, seconds_range=(2, 3), genres=("ballad", "pop", "dance"), tempi=tempi))
    for song in songs:
        (style,) = composer.styles((song.genre,))
        assert song.tempo in tempi and style.tempo[0] <= song.tempo <= style.tempo[1]
        assert f"{song.tempo:.0f} bpm" in song.tags
        np.testing.assert_allclose(np.diff(song.beats), 60 / song.tempo)
    assert len({song.tempo for song in songs}) > 1
    plain = list(corpus.corpus(6, seed=1, seconds_range=(2, 3), genres=("ballad", "pop", "dance")))
    assert [song.seconds for song in songs] == [song.seconds for song in plain]


def test_a_style_that_plays_none_of_the_tempi_is_named():
    with pytest.raises(UserError, match="style 'pop' plays none of the tempi: give one from 98 to 118"):
        composer.styles(("dance", "pop"), (129.2,))


def golden(name, found):
    """What was found before under a name."""
    held = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else {}
    if os.environ.get("HIERMUSIC_GOLDEN") == "write":
        held |= {name: found}
        lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in held[name].items())
        parts = {key: json.dumps(value) for key, value in held.items() if key != name} | {name: None}
        parts[name] = "{\n" + ",\n".join(lines) + "\n}"
        GOLDEN.write_text("{\n" + ",\n".join(f"{json.dumps(key)}: {parts[key]}" for key in sorted(parts)) + "\n}\n")
    assert held[name].keys() == found.keys()
    return held[name]


def plain(value):
    """A part of a score as text, to the millisecond."""
    if isinstance(value, float | np.floating):
        return f"{value:.3f}"
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    return plain(vars(value)) if hasattr(value, "__dict__") else str(value)


def test_what_is_composed_is_what_it_was():
    """A seed names a song: whoever measures on seeds of last year's measures the same music."""
    found = {}
    for seed in range(60):
        score = json.dumps(plain(compose(np.random.default_rng(seed), 10.0 + seed % 7)))
        found[str(seed)] = f"{zlib.crc32(score.encode()):08x}"
    assert golden("scores", found) == found


def levels(wav_CL):
    """Decibels of each side, of each third, and of each octave from 63 Hz on."""
    wav_CL = np.atleast_2d(np.asarray(wav_CL, np.float64))
    power_F = (np.abs(np.fft.rfft(wav_CL)) ** 2).sum(axis=0) / wav_CL.size
    edges = (62.5 * 2.0 ** np.arange(9) * wav_CL.shape[1] / synth.RATE).astype(int)
    parts = [*wav_CL, *np.array_split(wav_CL, 3, axis=1)]
    powers = [np.mean(part**2) for part in parts] + [part.sum() / power_F.size for part in np.split(power_F, edges)[1:]]
    return [round(10 * np.log10(power + 1e-8), 2) for power in powers]


def test_every_sound_is_what_it_was():
    notes = [Note(0.0, 0.3, 60), Note(0.2, 0.2, 67, 0.5), Note(0.6, 2.0, 60)]
    found = {name: levels(synth.play(name, notes, 1.0)) for name in synth.INSTRUMENTS}
    for name in ("kick", "snare", "hat", "crash"):
        found[name] = levels(synth.drum(np.random.default_rng(0), [Hit(name, 0.1, 0.7)], 0.6))
    found["room"] = levels(synth.room(np.random.default_rng(0), 0.5))
    phones = [(phone,) for phone in voice.VOWELS] + [(phone, "aa", phone) for phone in voice.CONSONANTS]
    for phone in phones:
        sung = [voice.Sung(phone, 52, 0.2, 0.5), voice.Sung(phone, 57, 0.75, 0.95)]
        found[f"sung {phone[0]}"] = levels(voice.sing(np.random.default_rng(1), sung, 1.0, 1.1))
    for seed in range(3):
        song = corpus.song(seed, 2.0)
        found[f"song {seed}"] = levels(song.mix.T) + levels(song.vocals.T)
    for name, values in golden("sounds", found).items():
        assert found[name] == pytest.approx(values, abs=0.05), name
