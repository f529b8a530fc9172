"""What the measures of music say of built-in songs, of noise shaped like them and of their frames shuffled.

    python benchmarks/measures.py --songs=24

Last line: the share of songs whose tempo is told within 4 %, without and with half and double counted as right.
"""

import argparse

import numpy as np

from hiermusic.audio import files, music
from hiermusic.data import corpus
from hiermusic.evaluate.music import MEASURES, anchored, describe, table
from hiermusic.evaluate.obedience import TEMPO_TOLERANCE, tempo_matches


def main() -> None:
    parser = argparse.ArgumentParser(description="measures of built-in songs and of their anchors")
    parser.add_argument("--songs", type=int, default=24)
    rows, tempi = {}, []
    for index, song in enumerate(corpus.corpus(parser.parse_args().songs, seconds_range=(5, 10))):
        wav_LC = files.resample(files.to_channels(song.mix, 1), song.sample_rate, music.RATE)
        for name, sound_LC in anchored(wav_LC, music.RATE, index).items():
            rows.setdefault(name or "songs", []).append(describe(sound_LC, music.RATE))
        tempi.append((music.tempo(wav_LC, music.RATE), song.tempo))
    shown = ("tonality", "chroma_entropy", "onset_regularity")
    print("| | " + " | ".join(MEASURES[key][0] for key in shown) + " |\n" + "|---" * (len(shown) + 1) + "|")
    for name, found in table(rows).items():
        print(f"| {name} | " + " | ".join(f"{found[key]['mean']:.2f}" for key in shown) + " |")
    strict = np.mean([abs(heard / true - 1) <= TEMPO_TOLERANCE for heard, true in tempi])
    print(f"tempo: {strict:.0%} told, {np.mean([tempo_matches(*pair) for pair in tempi]):.0%} with half and double")


if __name__ == "__main__":
    main()
