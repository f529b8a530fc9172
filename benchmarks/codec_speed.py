"""What coding costs: a codec in pieces, as songs are coded, beside the whole file at once and beside transformers.

    pip install torch transformers
    python benchmarks/codec_speed.py
    python benchmarks/codec_speed.py --codecs=dac --seconds=10,13,30,60,120 --contenders=whole,ours

Shapes of EnCodec (24 kHz, mono) and of DAC (44.1 kHz, mono), random weights. Columns: CPU and wall seconds of one file,
median (lowest-highest); CPU time over the first contender's; seconds until the first file is there (imports, weights,
compiling); peak memory in GiB. The contenders are processes of their own on the same cores, taking turns.
"""

import argparse
import os
import sys

from side_by_side import compare, contend, row, tick

NAMES = ("transformers", "ours", "whole")
RATES = {"encodec": 24_000, "dac": 44_100}
LEVELS = {"encodec": 32, "dac": 9}


def _codec(case: dict):
    """Ours in the shape of the codec that is asked for, and noise to be coded: a waveform and codes."""
    import jax
    import numpy as np
    from flax import nnx

    from hiermusic.codec.codec import Codec, CodecConfig
    from hiermusic.codec.dac import DacConfig
    from hiermusic.codec.residual import QuantiserConfig
    from hiermusic.codec.seanet import SeanetConfig

    name = case["codec"]
    trunk = {
        "encodec": SeanetConfig(latent=128),
        "dac": DacConfig(strides=(2, 4, 8, 8), encoder_width=64, decoder_width=1536, latent=1024),
    }[name]
    config = CodecConfig(
        sample_rate=RATES[name],
        channels=1,
        trunk=trunk,
        quantiser=QuantiserConfig(levels=LEVELS[name], codes=1024),
    )
    codec = jax.jit(lambda: Codec(config, rngs=nnx.Rngs(jax.random.key(0, impl="rbg"))))()
    draw = np.random.default_rng(0)
    wav_LC = draw.uniform(-0.5, 0.5, (round(case["seconds"] * RATES[name]), 1)).astype(np.float32)
    return codec, wav_LC, draw.integers(0, 1024, (-(-len(wav_LC) // codec.packet), LEVELS[name])).astype(np.uint16)


def ours(case: dict) -> None:
    from hiermusic.codec.chunked import decode_long, encode_long

    codec, wav_LC, codes_PS = _codec(case)
    while True:
        encode_long(codec, wav_LC) if case["way"] == "encode" else decode_long(codec, codes_PS)
        tick()


def whole(case: dict) -> None:
    import jax
    import numpy as np
    from flax import nnx

    codec, wav_LC, codes_PS = _codec(case)
    graph, state = nnx.split(codec)

    @jax.jit
    def run(state, given):
        codec = nnx.merge(graph, state)
        return codec.encode(given) if case["way"] == "encode" else codec.decode(given)

    given = wav_LC[None] if case["way"] == "encode" else codes_PS[None].astype(np.int32)
    while True:
        np.asarray(run(state, given))
        tick()


def transformers(case: dict) -> None:
    import torch
    from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    name = case["codec"]
    model = (EncodecModel(EncodecConfig()) if name == "encodec" else DacModel(DacConfig())).eval()
    wav_BCL = torch.rand(1, 1, round(case["seconds"] * RATES[name])) - 0.5
    every = {"bandwidth": 24.0} if name == "encodec" else {}
    codes = model.encode(wav_BCL, **every).audio_codes
    while True:
        if case["way"] == "encode":
            model.encode(wav_BCL, **every)
        elif name == "encodec":
            model.decode(codes, [None])
        else:
            model.decode(audio_codes=codes)
        tick()


def main() -> None:
    if sys.argv[1:2] == ["--contender"]:
        import json

        name, case = sys.argv[2], json.loads(sys.argv[3])
        contend(lambda: globals()[name](case))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codecs", default="encodec,dac")
    parser.add_argument("--seconds", default="10,60")
    parser.add_argument("--ways", default="encode,decode")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", default="0", help="the cores that all share")
    parser.add_argument("--contenders", default=",".join(NAMES))
    given = parser.parse_args()
    names = given.contenders.split(",")
    print(f"| case | CPU, s | wall, s | CPU / {names[0]} | first file, s | peak, GiB |")
    print("|---|---|---|---|---|---|")
    for codec in given.codecs.split(","):
        for seconds in map(float, given.seconds.split(",")):
            for way in given.ways.split(","):
                case = {"codec": codec, "seconds": seconds, "way": way}
                found = compare(__file__, dict.fromkeys(names, case), given.repeats, given.cores)
                for name in names:
                    title = f"{codec}, {way} {seconds:g} s: {name}"
                    print(row(title, found[name], found[names[0]], 1, 1.0), flush=True)


if __name__ == "__main__":
    main()
