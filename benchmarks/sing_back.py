"""Whether Khala's token models know a song by heart: what greedy decoding from its prompt alone gives back of it.

    python benchmarks/sing_back.py --tokens=out/song-tokens --backbone=out/song-backbone --superres=out/song-superres

Super-resolution reads what the backbone has made. Tokens that are missing, as where a song ends too soon, count as
wrong. Beside each share stands what the most frequent code of each level would give.
"""

import argparse
import json

import numpy as np

from hiermusic.data.token_records import TokenSource
from hiermusic.systems import workdir
from hiermusic.systems.lm import songs
from hiermusic.systems.requests import Request
from hiermusic.tokens.prompt import Prompt

GREEDY = {
    "backbone": {"temperature": 0.0, "top_k": 0},
    "superres": {"temperature": 0.0, "final_temperature": 0.0, "levels": 0},
}


def sung(tokens: str, backbone: str, superres: str, track: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The codes of a track [T, K], and what the backbone and super-resolution make of its prompt."""
    example = TokenSource(tokens)[track]
    words = {name: example["meta"][name] for name in Prompt.__dataclass_fields__ if name in example["meta"]}
    request = Request(name=str(example["meta"]["id"]), prompt=Prompt.from_json(words), seed=0)
    made: list[np.ndarray] = []
    for stage, run in (("backbone", backbone), ("superres", superres)):
        config, model = workdir.load(run, stage)
        sampling = config.sampling.to_dict() | GREEDY[stage]
        given = [made[0][:, : config.model.given]] if made else None
        made.append(songs.draw([request], config, songs.ready(config, model), sampling, given=given)[0].codes)
    return example["codes"], *made


def agreement(true_TK: np.ndarray, made_TK: np.ndarray) -> np.ndarray:
    """Share of each made level's tokens that are the true ones [K]."""
    frames, levels = min(len(true_TK), len(made_TK)), made_TK.shape[1]
    return (true_TK[:frames, :levels] == made_TK[:frames]).sum(0) / len(true_TK)


def commonest(true_TK: np.ndarray) -> float:
    """What the most frequent code of each level would give."""
    return float(np.mean([np.bincount(codes_T).max() / len(codes_T) for codes_T in true_TK.T]))


def main(given: list[str] | None = None) -> None:
    """Prints the shares as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("tokens", "backbone", "superres"):
        parser.add_argument(f"--{name}", required=True)
    values = parser.parse_args(given)
    true_TK, coarse_TK, whole_TK = sung(values.tokens, values.backbone, values.superres)
    shares_K = agreement(true_TK, whole_TK)
    told = {
        "tokens": int(true_TK.size),
        "backbone": float(agreement(true_TK, coarse_TK).mean()),
        "all_levels": float(shares_K.mean()),
        "worst_level": float(shares_K.min()),
        "most_frequent_code": commonest(true_TK),
    }
    print(json.dumps({name: round(value, 4) for name, value in told.items()}))


if __name__ == "__main__":
    main()
