"""What measures of accompaniments say of true pairs, beside the same songs' accompaniments exchanged within a style.

    python benchmarks/true_pairs.py --songs=40

The built-in corpus knows its beats and chords; vocals and accompaniments are its own. Columns are the measures of
`evaluate/accompaniment.py`, each the mean over songs with its 95 % bootstrap interval. What lies between the first two
rows is what a measure has to tell a model's accompaniments by.
"""

import argparse
import sys

from hiermusic.audio.measure import is_silent
from hiermusic.data import corpus
from hiermusic.evaluate.accompaniment import MEASURES, OTHERS, OWN, Heard, Pair, measure, truth_of


def pairs(songs: int, seconds: float, seed: int) -> list[Pair]:
    """True pairs of the first so many songs in which somebody sings."""
    found, index = [], 0
    while len(found) < songs:
        song = corpus.nth_song(index, seed, (seconds, seconds))
        index += 1
        if not is_silent(song.vocals):
            print(f"measuring song {len(found) + 1} of {songs}", file=sys.stderr, flush=True)
            vocal, made = (Heard.of(wav_LC, song.sample_rate) for wav_LC in (song.vocals, song.instrumental))
            found.append(Pair(song.genre, vocal, made, truth=truth_of({"truth": corpus.truth(song)}, song.seconds)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--songs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each")
    parser.add_argument("--seed", type=int, default=7, help="of the corpus")
    given = parser.parse_args()
    results = measure(pairs(given.songs, given.seconds, given.seed))
    rows = {"true pairs": results["rows"][OWN], "exchanged within a style": results["rows"][OTHERS]}
    rows["what pairs gain"] = results["above"]
    for cells in (["", *MEASURES.values()], ["---"] * (1 + len(MEASURES))):
        print("| " + " | ".join(cells) + " |")
    for name, row in rows.items():
        cells = [f"{row[key]['mean']:.2f} ({row[key]['low']:.2f} to {row[key]['high']:.2f})" for key in MEASURES]
        print("| " + " | ".join([name, *cells]) + " |")


if __name__ == "__main__":
    main()
