"""One table of several evaluated codecs: what each rebuilds of held-out music with all its levels, and how.

    hiermusic evaluate --workdir=out/sat/RUN       # for every run
    python benchmarks/codec_table.py out/sat/*/

Columns: tokens and bits a second (nominal, and by the entropy of the codes that were used), SI-SDR, mel and STFT
distance (means over held-out clips), perplexity of the coarsest, the middle and the finest level, share of codes used.
"""

import json
import sys
from pathlib import Path

COLUMNS = ("run", "tokens/s", "bit/s", "used bit/s", "SI-SDR, dB", "mel", "STFT", "perplexity", "codes used")


def row(workdir: Path) -> list[str]:
    """The cells of one evaluated codec."""
    result = json.loads((workdir / "evaluation" / "results.json").read_text())
    whole, levels = result["reconstruction"][-1], result["codes"]
    tokens = whole["bits_per_second"] / levels[0]["bits"]
    shown = [levels[k]["perplexity"] for k in (0, len(levels) // 2, -1)]
    used = sum(level["usage"] for level in levels) / len(levels)
    return [
        workdir.name,
        f"{tokens:.0f}",
        f"{whole['bits_per_second']:.0f}",
        f"{whole['effective_bits_per_second']:.0f}",
        *(f"{whole[name]['mean']:.2f}" for name in ("si_sdr", "mel", "stft")),
        ", ".join(f"{value:.0f}" for value in shown),
        f"{used:.0%}",
    ]


def main() -> None:
    folders = [Path(name) for name in sys.argv[1:]]
    found = [folder for folder in folders if (folder / "evaluation" / "results.json").is_file()]
    if not found:
        sys.exit("no evaluated codec among the arguments: run `hiermusic evaluate --workdir=DIR` on each first")
    for cells in (COLUMNS, ["---"] * len(COLUMNS), *(row(folder) for folder in found)):
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
