"""What tokenising music costs: EnCodec at 24 kHz and DAC at 44.1 kHz as they are imported, beside transformers.

    pip install torch transformers
    python benchmarks/tokenise_speed.py --minutes=60 --codecs=encodec
    python benchmarks/tokenise_speed.py --minutes=60 --codecs=dac --beside=12
    python benchmarks/tokenise_speed.py --minutes=1 --song=20 --codecs=encodec

Published sizes, random weights: transformers saves a model, `hiermusic import` reads it, and both make tokens of all
levels of the same built-in songs, transformers of a song in one go. Columns: songs; tokens a second of wall time, over
all of them; how much faster than the music plays; CPU seconds a song, median (lowest-highest); seconds until the first
song's tokens are there (imports, weights, compiling); peak memory in GiB, each in a process of its own; the share of
the first song's codes that are the first contender's. The contenders share the same cores and take turns, song by song;
with --beside=12 transformers has but one turn of twelve.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from side_by_side import compare, contend, tick

NAMES = ("transformers", "ours")
RATES = {"encodec": 24_000, "dac": 44_100}


def _songs(folder: Path):
    """The songs in a folder, mono [L, 1], over and over."""
    while True:
        for path in sorted(folder.glob("*.npy")):
            yield np.load(path)


def _tokenise(case: dict, name: str, encode) -> None:
    """Song after song, from samples to codes [T, K]; those of the first are kept to be compared."""
    for number, wav_LC in enumerate(_songs(Path(case["folder"]) / "songs")):
        codes_TK = encode(wav_LC)
        if number == 0:
            np.save(Path(case["folder"]) / f"codes-{name}.npy", codes_TK)
        tick()


def ours(case: dict) -> None:
    from hiermusic.systems import workdir

    codec = workdir.load_codec(Path(case["folder"]) / "ours")
    _tokenise(case, "ours", lambda wav_LC: workdir.encoded(codec, wav_LC))


def transformers(case: dict) -> None:
    import torch
    from transformers import DacModel, EncodecModel

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)
    torch.set_grad_enabled(False)
    is_dac = case["codec"] == "dac"
    model = (DacModel if is_dac else EncodecModel).from_pretrained(Path(case["folder"]) / "theirs").eval()

    def encode(wav_LC: np.ndarray) -> np.ndarray:
        wav_BCL = torch.from_numpy(wav_LC.T[None])
        if not is_dac:
            return model.encode(wav_BCL, bandwidth=model.config.target_bandwidths[-1]).audio_codes[0, 0].T.numpy()
        wav_BCL = torch.nn.functional.pad(wav_BCL, (0, -wav_BCL.shape[-1] % model.config.hop_length))
        return model.encode(wav_BCL).audio_codes[0].T.numpy()

    _tokenise(case, "transformers", encode)


def prepare(case: dict) -> None:
    """The songs, transformers' model of random weights, and what is imported of it."""
    import torch
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

    from hiermusic import cli
    from hiermusic.audio import files
    from hiermusic.data import corpus

    folder, rate, seconds = Path(case["folder"]), RATES[case["codec"]], case["song"]
    (folder / "songs").mkdir()
    for index, song in enumerate(corpus.corpus(case["songs"], seconds_range=(seconds, seconds))):
        wav_LC = files.resample(files.to_channels(song.mix, 1), song.sample_rate, rate)
        wav_LC = np.resize(wav_LC, (round(seconds * rate), 1))  # songs end with a bar: all of one length here
        np.save(folder / "songs" / f"{index:04d}.npy", wav_LC)
    torch.manual_seed(0)
    if case["codec"] == "dac":
        model = DacModel(DacConfig(sampling_rate=rate, downsampling_ratios=[2, 4, 8, 8], codebook_size=1024))
    else:
        model = EncodecModel(EncodecConfig())
        with torch.no_grad():  # frames of the first song, so that codes differ
            wav_LC = np.load(folder / "songs" / "0000.npy")[: 10 * rate]
            frames_TD = model.encoder(torch.from_numpy(wav_LC.T[None]))[0].mT
            for k, layer in enumerate(model.quantizer.layers):
                drawn_T = torch.randint(len(frames_TD), (len(layer.codebook.embed),))
                layer.codebook.embed.copy_(0.8**k * (frames_TD[drawn_T] - (frames_TD.mean(0) if k else 0)))
    model.save_pretrained(folder / "theirs")
    cli.main(["import", case["codec"], str(folder / "theirs"), str(folder / "ours")])


def _measure(case: dict, names: list[str], cores: str, beside: int) -> None:
    subprocess.run([sys.executable, __file__, "--prepare", json.dumps(case)], check=True, stdout=subprocess.DEVNULL)
    found = compare(__file__, dict.fromkeys(names, case), case["songs"], cores, {"transformers": beside})
    codes = {name: np.load(Path(case["folder"]) / f"codes-{name}.npy") for name in names}
    tokens = codes[names[0]].size
    for name in names:
        times = found[name]
        cpu = f"{statistics.median(times.cpu):.3g} ({min(times.cpu):.3g}-{max(times.cpu):.3g})"
        rate, speed = (one * len(times.wall) / sum(times.wall) for one in (tokens, case["song"]))
        same = np.mean(codes[name] == codes[names[0]])
        facts = f"{rate:,.0f} | {speed:.3g} | {cpu} | {times.first:.1f} | {times.peak / 2**30:.2f} | {same:.2%}"
        print(f"| {case['codec']}: {name} | {len(times.wall)} | {facts} |", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--prepare"]:
        return prepare(json.loads(sys.argv[2]))
    if sys.argv[1:2] == ["--contender"]:
        name, case = sys.argv[2], json.loads(sys.argv[3])
        contend(lambda: globals()[name](case))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="of music, in all")
    parser.add_argument("--song", type=float, default=60.0, help="seconds of each song")
    parser.add_argument("--codecs", default="encodec,dac")
    parser.add_argument("--cores", default="0", help="the cores that all share")
    parser.add_argument("--beside", type=int, default=1, help="transformers takes one song of so many")
    parser.add_argument("--contenders", default=",".join(NAMES))
    given = parser.parse_args()
    print("| codec | songs | tokens/s | times real time | CPU, s a song | first song, s | peak, GiB | codes alike |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    if given.beside < 1:
        parser.error(f"--beside={given.beside}: give 1 or more")
    songs = max(round(given.minutes * 60 / given.song), 1)
    for codec in given.codecs.split(","):
        with tempfile.TemporaryDirectory() as folder:
            case = {"codec": codec, "song": given.song, "songs": songs, "folder": folder}
            _measure(case, given.contenders.split(","), given.cores, given.beside)


if __name__ == "__main__":
    main()
