"""Which tracks are trained on and which are held out: as the source says, else by a hash; copies on one side.

Everything here is a function of the tracks alone, so that whichever process of a run ends last divides them alike.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

# What data sets call their parts; not "eval", which some of them validate with and some test.
NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
TOLD = 3  # copies named in a summary


def named(name: object) -> str | None:
    """The split (train, valid or test) that a folder, column or data set means by a name; None for other names."""
    return NAMES.get(str(name).strip().lower())


def divide(entries: Sequence[dict], valid_fraction: float) -> dict:
    """Gives every track its split, in place, and returns what was done, as JSON values.

    Splits that the source gives stand. Without a valid one, recordings are drawn for it, ranked by a hash of the id:
    of the tracks without a split, where there are not two of them also of `train`. The rest is trained on. Exact copies
    lie on one side: of a recording that is held out by the source, the copies outside that split are left out (split
    None), so that the held-out set stays as it was given and training never hears it; other copies go together. What is
    drawn of an artist (`artist` of `meta`) is all that there is, where there are two recordings at least of those who
    are not in the source's `train`; where one alone has made everything, recordings are drawn.

    Args:
      entries: dicts with `id`, `split` (None where the source says nothing), `sha256` of the samples, perhaps `meta`.
      valid_fraction: share of the recordings that is drawn, copies counted once (at least one of two).
    Returns:
      `given` (tracks a split that the source names), `unsplit` (tracks without), `drawn` (tracks made valid), `copies`
      ([copy, the track it equals], both kept) and `left_out` ([copy, the held-out track it equals]).
    """
    told: dict = {"given": dict(sorted(Counter(entry["split"] for entry in entries if entry["split"]).items()))}
    told |= {"unsplit": sum(entry["split"] is None for entry in entries), "drawn": 0, "copies": [], "left_out": []}
    recordings = defaultdict(list)
    for entry in entries:
        recordings[entry["sha256"]].append(entry)
    valid_given = False
    unsplit = []
    train = []
    for copies in recordings.values():
        splits = {entry["split"] for entry in copies}
        split = next((name for name in ("test", "valid", "train") if name in splits), None)
        kept = [entry for entry in copies if entry["split"] == split]
        if split in ("test", "valid"):
            valid_given |= split == "valid"
            for entry in copies:
                if entry["split"] != split:
                    entry["split"] = None
                    told["left_out"].append([entry["id"], kept[0]["id"]])
        else:
            (train if split else unsplit).append(copies)
            kept = copies
            for entry in copies:
                entry["split"] = "train"
        told["copies"] += [[entry["id"], kept[0]["id"]] for entry in kept[1:]]
    if not valid_given:
        known = {name for copies in train for name in _artists(copies)}
        free = [copies for copies in unsplit if known.isdisjoint(_artists(copies))]
        pool = next((some for some in (free, unsplit) if len(some) > 1), unsplit + train)
        for copies in _drawn(pool, valid_fraction):
            told["drawn"] += len(copies)
            for entry in copies:
                entry["split"] = "valid"
    return told


def _drawn(recordings: list[list[dict]], fraction: float) -> list[list[dict]]:
    """Those held out: first such as are there once, so that a held-out measure does not count one song many times."""
    wanted = round(fraction * len(recordings))
    if fraction > 0 and len(recordings) > 1:
        wanted = max(1, wanted)

    def rank(group: list[list[dict]]) -> tuple[int, bytes]:
        first = min(entry["id"] for copies in group for entry in copies)
        return max(map(len, group)), hashlib.sha256(first.encode()).digest()

    drawn: list[list[dict]] = []
    groups = sorted(_by_artist(recordings), key=rank)
    for group in groups:
        if len(drawn) + len(group) <= wanted:
            drawn += group
    if wanted and not drawn:  # every artist has made more than is wanted
        drawn = min(groups, key=len)
    return drawn


def _by_artist(recordings: list[list[dict]]) -> list[list[list[dict]]]:
    """Recordings of one artist together, those of nobody each alone; all are where one artist has made them all."""
    groups: dict[object, list[list[dict]]] = defaultdict(list)
    for place, copies in enumerate(recordings):
        groups[min(_artists(copies), default=place)].append(copies)
    return list(groups.values()) if len(groups) > 1 else [[copies] for copies in recordings]


def _artists(copies: list[dict]) -> set[str]:
    """Who is said to have made a recording."""
    return {str(entry["meta"]["artist"]).casefold() for entry in copies if entry.get("meta", {}).get("artist")}


def describe(told: Mapping) -> list[str]:
    """What `divide` did, in lines for people; none where there were neither given splits nor copies."""
    lines = []
    if told["given"]:
        line = "splits given: " + ", ".join(f"{count} {name}" for name, count in told["given"].items())
        if told["unsplit"]:
            line += f"; tracks without one: {told['unsplit']}"
        lines.append(line + (f"; drawn for valid, which is not given: {told['drawn']}" if told["drawn"] else ""))
    for key, words in (
        ("copies", "exact copies of another track, kept on its side"),
        ("left_out", "exact copies of a held-out track, left out"),
    ):
        if told[key]:
            pairs = [f"{copy} = {original}" for copy, original in told[key][:TOLD]]
            more = f" and {len(told[key]) - TOLD} more" if len(told[key]) > TOLD else ""
            lines.append(f"{words}: {len(told[key])} ({', '.join(pairs)}{more})")
    return lines
