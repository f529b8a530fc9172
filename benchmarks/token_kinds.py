"""What the tokens of several codecs cost a language model: bits per second of audio, song by song.

    python benchmarks/token_kinds.py out/lm out/dac_lm        # token models of codecs over the same corpus

Teacher-forced, of all levels, on the same held-out songs; beside it what counting codes costs. Figures of different
codecs compare only beside what their sound is worth (`hiermusic evaluate` on each). The last column is what a model
spends less the first one, song by song, with a 95 % bootstrap interval over songs.
"""

import argparse
import math

import numpy as np

from hiermusic.data.token_records import TokenSource
from hiermusic.evaluate.by_track import in_memory
from hiermusic.evaluate.scores import difference, interval
from hiermusic.evaluate.tokens import unigram
from hiermusic.systems import workdir
from hiermusic.systems.lm.models import hierarchy, pattern_of

COLUMNS = ("model", "tokens/s", "nominal bit/s", "bit/s", "of counting", "saved", "less the first")


def measured(at: str, tracks: int) -> dict:
    """Bits per second of each held-out song, by a model and by counting, and what its tokens are."""
    config, model = workdir.load(at, "lm")
    if given := pattern_of(config).given:
        raise SystemExit(f"{at} is given {given} of its levels and predicts the others alone: take a model of all")
    rooms, path, tokens = workdir.system(config).rooms, config.data.path, hierarchy(config)
    sums_NK, counts_NKV, trained_KV = rooms.cross_entropy(config, model, path, tracks, in_memory, lambda: None)
    rates_K, held_NK = np.array([float(rate) for rate in tokens.rates]), counts_NKV.sum(-1)
    spent, counted = (
        interval((rates_K * nats_NK / held_NK).sum(1) / math.log(2))
        for nats_NK in (sums_NK, unigram(trained_KV, counts_NKV))
    )
    songs = [track["id"] for track in TokenSource(path, split="valid").tracks[:tracks]]
    bits = float(sum(rates_K * np.log2([float(size) for size in tokens.sizes])))
    return {"songs": songs, "rate": rates_K.sum(), "nominal": bits, "spent": spent, "counted": counted}


def cells(name: str, found: dict, first: dict) -> list[str]:
    """A row of the table."""
    spent, counted = found["spent"], found["counted"]
    more = difference(spent, first["spent"])
    return [
        name,
        f"{found['rate']:.1f}",
        f"{found['nominal']:.0f}",
        f"{spent['mean']:.0f} ({spent['low']:.0f} … {spent['high']:.0f})",
        f"{counted['mean']:.0f}",
        f"{1 - spent['mean'] / counted['mean']:.0%}",
        "" if found is first else f"{more['mean']:+.0f} ({more['low']:+.0f} … {more['high']:+.0f})",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", help="of trained token models")
    parser.add_argument("--tracks", type=int, default=48, help="held-out songs at most")
    given = parser.parse_args()
    found = {at: measured(at, given.tracks) for at in given.workdirs}
    first = next(iter(found.values()))
    for at, one in found.items():
        if one["songs"] != first["songs"]:
            parser.error(f"{at} holds out other songs than {given.workdirs[0]}: take tokens of one corpus")
    rows = [COLUMNS, ["---"] * len(COLUMNS), *(cells(at, one, first) for at, one in found.items())]
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))


if __name__ == "__main__":
    main()
