"""What tokenising gains where several songs are heard at once, on one device of a process and on several.

    python benchmarks/tokenise_together.py --cores=0,1
    python benchmarks/tokenise_together.py --tokenizers=hubert --songs=8 --seconds=30 --cores=0,1
    python benchmarks/tokenise_together.py --ways=before,together --before=ANOTHER_CHECKOUT --cores=0,1

Built-in songs, which end with a bar, so that those of about 5 s have many lengths. Tokenizers of random weights:
clusters of chroma, of log-mel bands, and of a HuBERT of 4 layers and a width of 256; `encodec` is EnCodec's shape at
24 kHz. Each is asked for the tokens of one song after the other and of all of them, the latter also as another checkout
of the project does it, in processes with one device and with --devices (of a CPU, whose cores all share). Columns:
seconds for all songs, the first time, with what is loaded and compiled, and then wall and CPU, median (lowest-highest);
CPU beside that of the first line, turn by turn; peak memory in GiB; the share of codes that are the first line's.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from side_by_side import compare, contend, tick


def _tokenizer(name: str, wav_LC: np.ndarray):
    import jax
    from flax import nnx

    from hiermusic import presets
    from hiermusic.pretrained.hubert import HubertConfig
    from hiermusic.pretrained.plain import FEATURES
    from hiermusic.pretrained.semantic import Semantic, SemanticConfig
    from hiermusic.systems.tokens import models

    if name == "encodec":
        make = models.make_model(presets.load("configs/tokens/codec.py:encodec_24khz"))
        return jax.jit(lambda: make(nnx.Rngs(0)))()
    small = HubertConfig(width=256, layers=4, heads=4, ffn_width=1024, conv_widths=(128,) * 7, layer=4)
    features = small if name == "hubert" else FEATURES[name]()
    model = nnx.jit(lambda: Semantic(SemanticConfig(features, 128), rngs=nnx.Rngs(0)))()
    frames_ND = np.asarray(model.points(wav_LC[None, :, 0]))
    model.clusters.codebooks[...] = np.random.default_rng(0).choice(frames_ND, 128)[None]
    return model


def tokenise(case: dict) -> None:
    """All songs, over and over; the codes are kept to be compared."""
    from hiermusic.systems import workdir

    songs = [np.load(path) for path in sorted(Path(case["folder"]).glob("*-song.npy"))]
    model = _tokenizer(case["tokenizer"], songs[0])
    while True:
        if case["way"] == "one by one":
            found = [workdir.encoded(model, wav_LC) for wav_LC in songs]
        else:
            found = list(workdir.encoded_each(model, songs))
        np.save(Path(case["folder"]) / f"{case['name']}.npy", np.concatenate([np.ravel(codes) for codes in found]))
        tick()


def _songs(folder: str, count: int, seconds: float, rate: int) -> None:
    from hiermusic.audio import files
    from hiermusic.data import corpus

    for index, song in enumerate(corpus.corpus(count, seconds_range=(seconds, seconds))):
        wav_LC = files.resample(files.to_channels(song.mix, 1), song.sample_rate, rate)
        np.save(Path(folder) / f"{index:04d}-song.npy", wav_LC)


def main() -> None:
    if sys.argv[1:2] == ["--contender"]:
        case = json.loads(sys.argv[3])
        sys.path.insert(0, case["project"])
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={case['devices']}"
        contend(lambda: tokenise(case))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokenizers", default="log_mel,chroma,hubert")
    parser.add_argument("--songs", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each song, about")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--ways", default="one by one,together")
    parser.add_argument("--before", help="the folder of another checkout of the project")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cores", default="0", help="the cores that all share")
    given = parser.parse_args()
    print("| tokens | first, s | wall, s | CPU, s | CPU / first line | peak, GiB | codes alike |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for tokenizer in given.tokenizers.split(","):
        with tempfile.TemporaryDirectory() as folder:
            _songs(folder, given.songs, given.seconds, 24_000 if tokenizer == "encodec" else 16_000)
            cases = {}
            for devices, way in itertools.product((1, given.devices), given.ways.split(",")):
                name = f"{way}, {devices} device{'s' * (devices > 1)}"
                project = given.before if way == "before" else str(Path(__file__).parents[1])
                case = {"tokenizer": tokenizer, "folder": folder, "name": name, "way": way, "project": project}
                cases[name] = case | {"devices": devices}
            found = compare(__file__, cases, given.repeats, given.cores)
            codes = {name: np.load(Path(folder) / f"{name}.npy") for name in cases}
            first = next(iter(cases))
            for name, times in found.items():
                wall, cpu = (f"{statistics.median(v):.3g} ({min(v):.3g}-{max(v):.3g})" for v in (times.wall, times.cpu))
                ratio = statistics.median(a / b for a, b in zip(times.cpu, found[first].cpu, strict=True))
                alike = np.mean(codes[name] == codes[first])
                facts = f"{times.first:.1f} | {wall} | {cpu} | {ratio:.2f} | {times.peak / 2**30:.2f} | {alike:.2%}"
                print(f"| {tokenizer}, {name} | {facts} |", flush=True)


if __name__ == "__main__":
    main()
