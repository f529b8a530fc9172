"""What is told and measured of the toy's model."""

from fractions import Fraction

import numpy as np
from ml_collections import ConfigDict

from hiermusic.data.token_records import TokenSource
from hiermusic.systems import measures
from hiermusic.tokens.hierarchy import Hierarchy


def hierarchy(config: ConfigDict) -> Hierarchy:
    return Hierarchy.uniform(1, Fraction(config.model.rate), config.model.codes)


def inspect(config: ConfigDict) -> dict:
    params = {"follows": config.model.codes**2}
    return measures.facts(config, params, hierarchy(config), config.model.rate, config.model.length)


def cross_entropy(config: ConfigDict, model, path: str, tracks: int, each, step):
    train, valid = (TokenSource(path, slice(0, 1), split) for split in ("train", "valid"))
    p_VV = np.exp(np.asarray(model.follows[...], np.float64))
    log_p_VV = np.log(p_VV / p_VV.sum(1, keepdims=True))

    def counts(codes_T) -> np.ndarray:
        return np.bincount(codes_T, minlength=config.model.codes)[None]

    def measure(index: int) -> dict[str, np.ndarray]:
        codes_T = valid[index]["codes"][:, 0]
        step()
        return {"sums": -log_p_VV[codes_T[:-1], codes_T[1:]].sum(keepdims=True), "counts": counts(codes_T[1:])}

    measured = each("tokens", min(len(valid), tracks), measure)
    trained_KV = sum(counts(train[index]["codes"][:, 0]) for index in range(len(train)))
    return *(np.stack([track[name] for track in measured]) for name in ("sums", "counts")), trained_KV
