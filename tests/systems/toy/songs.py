"""Sounds from the toy's model, and backwards beside them."""

import json
from pathlib import Path

import numpy as np

from hiermusic.audio import files
from hiermusic.errors import write_atomically
from hiermusic.systems import workdir
from hiermusic.systems.requests import Request
from hiermusic.systems.system import SAMPLING, Flag

FLAGS = (Flag("chain", "workdir of a chain", "model"), SAMPLING[0], Flag("echo", "backwards too", "else", bool))


def generate(
    requests: list[Request], out: Path, *, chain: str, options, audio, mesh, rows, echo: bool = False
) -> list[dict]:
    config, model = workdir.load(chain, "chain")
    rate, codes = config.model.rate, config.model.codes
    temperature = (config.sampling.to_dict() | dict(options))["temperature"]
    p_VV = np.exp(np.asarray(model.follows[...], np.float64) / temperature)
    p_VV /= p_VV.sum(1, keepdims=True)
    told = []
    for request in requests:
        rng, levels = np.random.default_rng(request.seed), [0]
        while len(levels) < request.prompt.seconds * rate:
            levels.append(int(rng.choice(codes, p=p_VV[levels[-1]])))
        wav_LC = (np.array(levels)[:, None] / codes - 0.5).astype(np.float32)
        path = out / f"{request.name}.wav"
        fact = {"name": request.name, "prompt": {"seconds": request.prompt.seconds}, "seed": request.seed}
        fact |= {"wav": str(path), "seconds": len(levels) / rate, "sampling": {"chain": {"temperature": temperature}}}
        files.write(path, wav_LC, rate)
        if echo:
            files.write(path.with_suffix(".echo.wav"), wav_LC[::-1], rate)
            fact["versions"] = {"echo": {}}
        write_atomically(path.with_suffix(".json"), json.dumps(fact))
        told.append(fact)
    return told
