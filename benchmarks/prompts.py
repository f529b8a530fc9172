"""Prompts whose truth is known, to see whether songs are what was asked for: those of a corpus's held-out tracks.

    python benchmarks/prompts.py --data=out/corpus --count=40 --out=out/prompts.jsonl
    hiermusic generate --superres=out/superres --prompts=out/prompts.jsonl --out=out/asked --backbone_too
    hiermusic evaluate --songs=out/asked --data=out/corpus

A prompt has its track's tags, lyrics, language and length. Where there are fewer tracks than prompts, they are asked
for again with other seeds. --data takes records written by `hiermusic data`, of which the held-out tracks are taken, or
any of its sources (builtin:40?seconds=5-10&seed=7), of which all are.
"""

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from hiermusic.data.audio_records import AudioSource
from hiermusic.data.sources import open_source
from hiermusic.errors import write_atomically

FIELDS = ("tags", "genre", "language", "lyrics", "instrumental")


def tracks(data: str, count: int) -> Iterator[tuple[float, dict]]:
    """(seconds, metadata) of tracks that no model was trained on."""
    if (Path(data) / "tracks.jsonl").is_file():
        source = AudioSource(data)
        yield from ((source.tracks[index]["seconds"], source.tracks[index]["meta"]) for index in source.valid)
    else:
        for track in open_source(data).tracks[:count]:
            wav_LC, rate, meta = track.load()
            yield len(wav_LC) / rate, meta


def prompts(known: Iterable[tuple[float, dict]], count: int) -> list[dict]:
    """As many prompts, each with a name and a seed of its own."""
    asked = []
    for seed, (seconds, meta) in zip(range(count), itertools.cycle(known), strict=False):
        words = {name: meta[name] for name in FIELDS if meta.get(name)}
        asked.append({"name": f"prompt-{seed:03d}", **words, "seconds": round(seconds, 1), "seed": seed})
    return asked


def main() -> None:
    parser = argparse.ArgumentParser(description="prompts from the held-out tracks of a corpus")
    parser.add_argument("--data", required=True)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    asked = prompts(tracks(given.data, given.count), given.count)
    write_atomically(Path(given.out), "".join(json.dumps(prompt, ensure_ascii=False) + "\n" for prompt in asked))
    print(f"{given.out}: {len(asked)} prompts")


if __name__ == "__main__":
    main()
