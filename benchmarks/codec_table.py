"""Several evaluated codecs side by side: what each rebuilds of held-out music, and what it gains over the first.

    hiermusic evaluate --workdir=out/sat/RUN       # for every run
    python benchmarks/codec_table.py out/sat/*/

First table: tokens and bits a second (nominal, and by the entropy of the codes that were used), SI-SDR, SDR (of the
waveform as it is), mel and STFT distance (means over held-out clips), perplexity of the coarsest, the middle and the
finest level, share of codes used. Second: the differences from the first run, clip by clip, with 95 % bootstrap
intervals; "yes" where the whole interval is on the better side of zero, "no" where it is on the worse. Third, of codecs
whose first levels have targets of their own: how near they come to these.
"""

import json
import sys
from pathlib import Path

from hiermusic.evaluate.scores import SCORES, difference, from_json

SHOWN = {"si_sdr": "SI-SDR, dB", "sdr": "SDR, dB", "mel": "mel", "stft": "STFT"}
COLUMNS = ("run", "tokens/s", "bit/s", "used bit/s", *SHOWN.values(), "perplexity", "codes used")


def row(name: str, result: dict) -> list[str]:
    """The cells of one evaluated codec in the first table."""
    whole, levels = result["reconstruction"][-1], result["codes"]
    tokens = whole["bits_per_second"] / levels[0]["bits"]
    shown = [levels[k]["perplexity"] for k in (0, len(levels) // 2, -1)]
    used = sum(level["usage"] for level in levels) / len(levels)
    return [
        name,
        f"{tokens:.0f}",
        f"{whole['bits_per_second']:.0f}",
        f"{whole['effective_bits_per_second']:.0f}",
        *(f"{whole[key]['mean']:.2f}" for key in SHOWN),
        ", ".join(f"{value:.0f}" for value in shown),
        f"{used:.0%}",
    ]


def gains(name: str, result: dict, first: dict) -> list[str]:
    """The cells of one evaluated codec in the second table."""
    cells = [name]
    for key in SHOWN:
        gain = difference(result["reconstruction"][-1][key], first["reconstruction"][-1][key])
        low, high = sorted(bound if SCORES[key][2] else -bound for bound in (gain["low"], gain["high"]))
        verdict = "yes" if low > 0 else "no" if high < 0 else "open"
        cells.append(f"{gain['mean']:+.2f} ({gain['low']:+.2f} … {gain['high']:+.2f}) {verdict}")
    return cells


def parts(name: str, result: dict) -> list[list[str]]:
    """The rows of one evaluated codec in the third table."""
    rows = []
    for one in result["reconstruction"]:
        if own := one.get("own_target"):
            scores = [f"{own[key]['mean']:.2f} ({own[key]['low']:.2f} … {own[key]['high']:.2f})" for key in SHOWN]
            rows.append([name, str(one["levels"]), f"{one['bits_per_second']:.0f}", *scores])
    return rows


def table(*rows: list[str]) -> None:
    """Prints rows, the first of them the heading."""
    for cells in (rows[0], ["---"] * len(rows[0]), *rows[1:]):
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    files = {Path(name).name: Path(name) / "evaluation" / "results.json" for name in sys.argv[1:]}
    results = {name: from_json(json.loads(path.read_text())) for name, path in files.items() if path.is_file()}
    if not results:
        sys.exit("no evaluated codec among the arguments: run `hiermusic evaluate --workdir=DIR` on each first")
    table(list(COLUMNS), *(row(name, result) for name, result in results.items()))
    (base, first), *others = results.items()
    for name, result in others:
        if any(result[key] != first[key] for key in ("clips_hash", "protocol_hash")):
            sys.exit(f"{name} was not measured on the clips of {base}: evaluate both alike (--data, --seconds)")
    if others:
        print(f"\nBetter than {base}?\n")
        table(["run", *SHOWN.values()], *(gains(name, result, first) for name, result in others))
    if partial := [row for name, result in results.items() for row in parts(name, result)]:
        print("\nThe first levels beside targets of their own\n")
        table(["run", "codebooks", "bit/s", *SHOWN.values()], *partial)


if __name__ == "__main__":
    main()
