"""Music in MIDI files, merged to six tracks and rendered by FluidSynth: PyramidCodec's data, of whatever scores.

The tracks and the programs that play them are Museformer's, whose data the paper takes after; which families of General
MIDI become which of them is told by neither, and is ours.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from hiermusic.data import sidecars
from hiermusic.data.file_sources import Listed, below, file_source, split_of, track_id
from hiermusic.data.sidecars import Meta
from hiermusic.data.stems import ALONE, INSTRUMENTAL, MIX, Sound
from hiermusic.data.tracks import Source, no_more
from hiermusic.errors import UserError, patiently, reading

if TYPE_CHECKING:
    from pretty_midi import Instrument, PrettyMIDI

SUFFIXES = (".mid", ".midi", ".kar")
RATE = 44100
DRUMS = "drums"
PROGRAMS = {"square synthesizer": 80, "piano": 0, "guitar": 25, "strings": 48, "bass": 43, DRUMS: 0}

# For each family of eight programs, which track plays it; sounds without a pitch of their own are left out.
_FAMILIES = (
    *("piano", "piano", "piano", "guitar", "bass", "strings", "strings", "square synthesizer"),
    *("square synthesizer", "square synthesizer", "square synthesizer", "strings", "strings", "guitar", None, None),
)
_OF_STEM = {"drums": {DRUMS}, "bass": {"bass"}, "other": PROGRAMS.keys() - {DRUMS, "bass"}}
_PEAK = 0.89  # as the built-in songs: room for what resampling adds
_LARGEST, _LONGEST = 1 << 21, 1800  # bytes of a file, seconds of a song
_INSTALL = "pip install 'hiermusic[midi]' and FluidSynth (apt install libfluidsynth3, brew install fluid-synth)"


def midi(name: str, options: dict[str, str], path: str, stems: Sequence[str], memory: Path | None = None) -> Source:
    """Every MIDI file below a folder, sorted by path, with sidecars and splits as `file_sources.folder` has them.

    Args:
      name: the folder.
      options: "soundfont", a .sf2 file; TimGM6mb, which pretty_midi brings, where it is left out.
      path: what errors call the source.
      stems: what is wanted of every track: the mix, instrumental, which is the same, drums, bass or other.
      memory: as `sources.open_source`.
    Raises:
      UserError: what renders is not installed, there is no such folder, MIDI file or SoundFont, or an unknown option.
    """
    pretty_midi, _ = _engine(path)
    soundfont = Path(options.pop("soundfont", "") or Path(pretty_midi.__file__).with_name("TimGM6mb.sf2"))
    no_more(options, "soundfont", path)
    root = Path(name)
    if not (name and root.is_dir()):
        raise UserError(f"{path}: {name or 'it'} is no folder: give midi:FOLDER, with MIDI files below it")
    known = (MIX, INSTRUMENTAL, *_OF_STEM)
    if missing := [stem for stem in stems if stem not in known]:
        raise UserError(f"{path} has no stem {missing[0]}: its songs have {', '.join(known)}")
    _check_soundfont(soundfont)
    files = sorted(file for file in below(root) if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    if not files:
        raise UserError(f"{path} holds no MIDI files ({' '.join(SUFFIXES)})")
    listed = [Listed(track_id(file, root), {MIX: [file]}, file, split_of(file, root)) for file in files]
    listed.sort(key=lambda one: one.id)
    loaders = [_Loader(one.stems, one.beside, soundfont, tuple(stems)) for one in listed]
    digest = hashlib.sha256(Path(__file__).read_bytes())  # other code, or another SoundFont, makes other songs
    with open(soundfont, "rb") as file:
        digest.update(hashlib.file_digest(file, "sha256").digest())
    return file_source(root.resolve().name, listed, loaders, memory, digest.digest())


def merged(score: "PrettyMIDI") -> dict[str, "Instrument"]:
    """The notes of a score on the paper's six tracks, those that play.

    Bends, pedals and controllers, which merged tracks would dispute, are left out.
    """
    from pretty_midi import Instrument

    tracks = {name: Instrument(program, name == DRUMS, name) for name, program in PROGRAMS.items()}
    for part in score.instruments:
        if name := DRUMS if part.is_drum else _FAMILIES[part.program // 8]:
            tracks[name].notes += part.notes
    return {name: track for name, track in tracks.items() if track.notes}


def _engine(path: str) -> tuple[ModuleType, ModuleType]:
    """What reads scores and what renders them."""
    try:
        import fluidsynth
        import pretty_midi
    except ImportError as error:
        raise UserError(f"{path} is rendered by pretty_midi and FluidSynth ({error}): {_INSTALL}") from None
    return pretty_midi, fluidsynth


def _check_soundfont(path: Path) -> None:
    with reading(path, "a SoundFont", "give soundfont=FILE.sf2"), open(path, "rb") as file:
        head = file.read(12)
    if (head[:4], head[8:]) != (b"RIFF", b"sfbk"):
        raise UserError(f"{path} is no SoundFont: give soundfont=FILE.sf2")


@dataclass(frozen=True)
class _Loader:
    stems: Mapping[str, Sequence[Path]]
    beside: Path
    soundfont: Path
    wanted: tuple[str, ...]

    def __call__(self) -> tuple[Sound, int, Meta]:
        return patiently(self._read)

    def _read(self) -> tuple[Sound, int, Meta]:
        score, tempo = _score(self.beside)
        tracks = merged(score)
        if not tracks:
            raise UserError("holds no notes of an instrument")
        end = max(note.end for track in tracks.values() for note in track.notes)
        if not end <= _LONGEST:
            raise UserError(f"lasts {end:.0f} s: at most {_LONGEST} s of a MIDI file are rendered")
        sounds = _render(tracks, self.soundfont, self.wanted)
        seconds = len(next(iter(sounds.values()))) / RATE
        own = sidecars.sidecars(self.beside, seconds)
        return (sounds[MIX] if self.wanted == ALONE else sounds), RATE, _facts(tracks, tempo) | own


def _score(file: Path) -> tuple["PrettyMIDI", float]:
    """What a file holds, and the tempo that most of it has."""
    pretty_midi, _ = _engine(str(file))
    if (size := file.stat().st_size) > _LARGEST:
        raise UserError(f"has {size:,} bytes, too many for one score")
    with reading("it", "MIDI"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tempi that stand on a later track, which are read all the same
        score = pretty_midi.PrettyMIDI(str(file))
        starts, tempi = score.get_tempo_changes()
        lasts = np.diff([*starts, max(score.get_end_time(), starts[-1])])
        tempo = float(tempi[lasts.argmax()])
        if not 0 < tempo < np.inf:
            raise ValueError(f"a tempo of {tempo} beats a minute")
        return score, round(tempo, 3)


def _render(
    tracks: Mapping[str, "Instrument"], soundfont: Path, wanted: Sequence[str]
) -> dict[str, Float32[np.ndarray, "L 1"]]:
    """The wanted stems of a song, of one length and at the level at which its mix reaches the peak of `_PEAK`."""
    _, fluidsynth = _engine(str(soundfont))
    synth = fluidsynth.Synth(samplerate=RATE)
    try:
        if (number := synth.sfload(str(soundfont))) < 0:
            raise UserError(f"cannot be rendered: FluidSynth does not read {soundfont}")
        played = {}
        for name, track in tracks.items():
            synth.system_reset()  # no track sounds on in the next
            played[name] = track.fluidsynth(synthesizer=synth, sfid=number).astype(np.float32)
    finally:
        synth.delete()
    length = max(map(len, played.values()))

    def added(names) -> np.ndarray:
        sum_L = np.zeros(length, np.float32)
        for name in names & played.keys():
            sum_L[: len(played[name])] += played[name]
        return sum_L[:, None]

    mix_LC = added(played.keys())
    if not (peak := float(abs(mix_LC).max())):
        raise UserError(f"makes no sound with {soundfont.name}")
    sounds = {stem: added(_OF_STEM[stem]) if stem in _OF_STEM else mix_LC for stem in wanted}
    return {stem: wav_LC * np.float32(_PEAK / peak) for stem, wav_LC in sounds.items()}


def _facts(tracks: Mapping[str, "Instrument"], tempo: float) -> Meta:
    """What is known of a score: who plays, how fast, how many notes each track has."""
    return {
        "tags": ", ".join([*tracks, f"{tempo:.0f} bpm", "instrumental"]),
        "instrumental": True,
        "truth": {"tempo": tempo, "notes": {name: len(track.notes) for name, track in tracks.items()}},
    }
