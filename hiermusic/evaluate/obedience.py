"""Whether songs are what their prompts asked for, beside the same songs under each other's prompts."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from operator import eq, itemgetter
from typing import Any

import numpy as np

from hiermusic.evaluate.detectors import BASIS, Features, fit
from hiermusic.evaluate.scores import interval

FEWEST_SONGS = 8  # with fewer, no share says anything
DRAWS = 1000  # permutations
TEMPO_TOLERANCE, LENGTH_TOLERANCE = 0.04, 0.2

_TAGS = {
    "drums": {"yes": {"drums"}, "no": {"no drums"}},
    "mode": {"major": {"happy", "major"}, "minor": {"sad", "minor"}},
    "pace": {"slow": {"slow"}, "medium": {"medium", "medium tempo"}, "fast": {"fast"}},
}
_SUNG = re.compile(r"\b(fe)?male\b|\bvoice\b|\bvocals?\b|\bsinger\b")
_TEMPO = re.compile(r"\b(\d+(?:\.\d+)?) ?bpm\b")


def asked(words: Mapping[str, Any]) -> dict[str, str | float]:
    """What a prompt, or the metadata of a track, says of the attributes that can be heard; of the others nothing.

    Args:
      words: tags (separated by commas), lyrics, instrumental, seconds; of tracks also truth, with their tempo.
    Returns:
      Of drums "yes" or "no", voice "yes" or "no", mode "major" or "minor", pace "slow", "medium" or "fast", tempo in
      beats a minute and length in seconds those that are said.
    """
    text = (words.get("tags") or "").lower()
    tags = {tag.strip() for tag in text.split(",")}
    found = {}
    for attribute, answers in _TAGS.items():
        said = [answer for answer, names in answers.items() if tags & names]
        if len(said) == 1:
            found[attribute] = said[0]
    if words.get("instrumental") or "instrumental" in tags:
        found["voice"] = "no"
    elif words.get("lyrics") or _SUNG.search(text):
        found["voice"] = "yes"
    tempo = (words.get("truth") or {}).get("tempo") or next(iter(_TEMPO.findall(text)), None)
    return found | ({"tempo": float(tempo)} if tempo else {}) | _length(words)


def _length(words: Mapping[str, Any]) -> dict[str, float]:
    return {"length": float(words["seconds"])} if words.get("seconds") else {}


def tempo_matches(heard: float, wanted: float) -> bool:
    """Within 4 % of the tempo, its double or its half: which of them is the beat, listeners do not agree on either."""
    return any(abs(heard / (wanted * times) - 1) <= TEMPO_TOLERANCE for times in (0.5, 1, 2))


def length_matches(heard: float, wanted: float) -> bool:
    """Within a fifth of the length asked for."""
    return abs(heard / wanted - 1) <= LENGTH_TOLERANCE


def agreement(
    heard: Sequence[Any], wanted: Sequence[Any], match: Callable[[Any, Any], bool], seed: int = 0
) -> dict[str, Any]:
    """How many songs are what was asked for, beside what the same songs score under each other's prompts.

    Args:
      heard, wanted: of each song.
      match: whether what is heard is what is wanted.
      seed: of the permutations and the bootstrap.
    Returns:
      {share, permuted, gain, p}: the share that agree; the mean share of all permutations; what one gains over
      the other; the share of 1,000 random permutations that do as well. The first and third are `scores.interval`s
      over songs. Of no songs NaN, and p 1.
    """
    if not heard:
        return {"share": interval([]), "permuted": math.nan, "gain": interval([]), "p": 1.0}
    matches_NN = np.array([[match(here, there) for there in wanted] for here in heard], float)
    own_N = np.diagonal(matches_NN)
    draw = np.random.default_rng(seed)
    shares = [np.mean(matches_NN[np.arange(len(own_N)), draw.permutation(len(own_N))]) for _ in range(DRAWS)]
    permuted_N = matches_NN.mean(axis=1)
    as_well = int(np.sum(np.array(shares) >= own_N.mean() - 1e-9))
    return {
        "share": interval(own_N, seed),
        "permuted": float(permuted_N.mean()),
        "gain": interval(own_N - permuted_N, seed),
        "p": (1 + as_well) / (1 + DRAWS),
    }


Heard = Sequence[tuple[Features, dict[str, str | float]]]  # what is heard of each song, and what is asked or true of it


def measure(songs: Heard, training: Heard, held_out: Heard, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Prompt by prompt, what songs made of what was asked; and what the same detectors make of songs that are known.

    Args:
      songs: that were generated, with what was asked of them.
      training: songs of the corpus from which detectors are learnt, with what is true of them.
      held_out: others of the corpus, on which the detectors are tried.
      seed: of permutations and bootstrap.
    Returns:
      of each attribute that some prompt states {songs, corpus, trusted}: two `agreement`s, of which that of the
      corpus says what the detector is worth, and whether its gain there is beyond doubt. Attributes that no detector
      can be had of are left out.
    """
    rows = {}
    for attribute in ("tempo", "length", *BASIS):
        if attribute in BASIS:
            detect = fit([one for one, _ in training], [true.get(attribute) for _, true in training], attribute)
            match = eq
        else:
            detect = itemgetter(attribute)
            match = {"tempo": tempo_matches, "length": length_matches}[attribute]
        if detect is None:
            continue
        row = {}
        for name, group in (("songs", songs), ("corpus", held_out)):
            stated = [(one, said[attribute]) for one, said in group if attribute in said]
            row[name] = agreement([detect(one) for one, _ in stated], [said for _, said in stated], match, seed)
        if row["songs"]["share"]["count"]:
            rows[attribute] = row | {"trusted": attribute == "length" or row["corpus"]["gain"]["low"] > 0}
    return rows
