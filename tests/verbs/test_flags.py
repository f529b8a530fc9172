"""Each flag of each verb changes what is asked of the rooms below, as the table says, and nothing else of it."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from absl import flags

from hiermusic import cli

from .calls import called, record
from .cases import CODEC, GONE
from .table import CASES

HOSTS = {"coordinator": "h:1", "processes": 3, "process": 2, "start_timeout": 9.0}
PROMPTS = [{"tags": "a", "seconds": 2}, {"name": "x", "seconds": 2, "seed": 3, "like": "clip.wav"}, {}]
ROWS = [(name, flag) for name, case in CASES.items() for flag in case.flags]


def flags_of(verb: str) -> set[str]:
    values = cli.Values()
    cli.VERBS[verb].define(values)
    return set(values)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with the files that the table names; what a verb does to the process is undone."""
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
    Path("c/khala").mkdir(parents=True)
    Path("c/khala/codec.py").touch()
    sweep = f"CONFIG = '{CODEC}:tiny'\ndef get_hyper(hyper): pass\n"
    Path("one.py").write_text(sweep)
    Path("other.py").write_text(sweep + "SCALING = True\n")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_flag_has_a_row(verb):
    rows = {flag for name, case in CASES.items() if name.split()[0] == verb for flag in case.flags}
    defined = flags_of(verb)
    shared = {"json"} | (set(HOSTS) if "coordinator" in defined else set())
    assert rows == defined - shared


@pytest.mark.parametrize(("name", "flag"), ROWS, ids=[f"{name}-{flag}" for name, flag in ROWS])
def test_a_flag_changes_the_call(name, flag, monkeypatch, capsys):
    case, verb = CASES[name], name.split()[0]
    calls = record(monkeypatch, case.below)
    plain = called(capsys, calls, verb, *case.words)
    words, changes = case.flags[flag]
    gone = tuple(f"{place}." for place, value in changes.items() if value is GONE)
    expected = {place: value for place, value in plain.items() if not place.startswith(gone or "\0")}
    expected |= {place: value for place, value in changes.items() if value is not GONE}
    files = set(Path().rglob("*"))
    found = called(capsys, calls, verb, *case.words, *words)
    if "written" in expected:
        found["written"] = {str(path) for path in set(Path().rglob("*")) - files if path.is_file()}
    assert found == expected
    assert found != plain


# What numbers a flag takes, the least and the most; of each verb that has it where the verb is not named.
BOUNDS = {
    **{"channels": (1, 2), "sample_rate": (1000, 10**6), "segment_seconds": (0.1, 3600), "valid_fraction": (0, 1)},
    **{"split_at": (1, None), "levels": (1, None), "tracks": (1, None), "chips": (1, None), "mfu": (0.001, 1)},
    **{"seconds": (0.1, None), "evaluate seconds": (1, None), "guidance": (0, None), "min_share": (0, 1)},
    **{"temperature": (0, None), "top_k": (0, None), "top_p": (0.01, 1), "step": (0, None), "rows": (1, None)},
    **{"process": (0, None), "processes": (1, None), "start_timeout": (1, None)},
    **{"layer": (0, None), "window": (0, None), "vocal_noise": (0, 1), "bias": (1, 2)},
    **{"overlap": (0, 3600), "noise": (0, 1), "accompany seed": (0, 2**32 - 1)},
}
ANY = {"seed", "slices"}  # whose values are judged elsewhere, where the verb is not named above


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_number_is_taken_up_to_its_bounds(verb):
    values = cli.Values()
    cli.VERBS[verb].define(values)
    numbers = [name for name in values if isinstance(values[name].parser, flags.FloatParser | flags.IntegerParser)]
    for name in sorted(name for name in numbers if name not in ANY or f"{verb} {name}" in BOUNDS):
        least, most = BOUNDS.get(f"{verb} {name}", BOUNDS.get(name))
        step = 1 if isinstance(values[name].parser, flags.IntegerParser) else 1e-4
        for bound, beyond in ((least, -step), (most, step)):
            if bound is not None:
                values[name].parse(str(bound))
                with pytest.raises(flags.IllegalFlagValueError):
                    values[name].parse(str(bound + beyond))


@pytest.mark.parametrize("name", [name for name in CASES if "json" in flags_of(name.split()[0])])
def test_json_is_one_object_with_what_came_back(name, monkeypatch, capsys):
    case = CASES[name]
    calls = record(monkeypatch, case.below)
    out = called(capsys, calls, name.split()[0], *case.words, "--json")["out"]
    assert isinstance(json.loads(out), dict)


@pytest.mark.parametrize("name", [name for name in CASES if "coordinator" in flags_of(name.split()[0])])
def test_processes_of_one_run_are_joined_before_anything_is_asked(name, monkeypatch, capsys):
    case, joined = CASES[name], []
    calls = record(monkeypatch, case.below)
    later = ("sources.open_source", "workdir.", "run.", "loop.")

    def join(*place):
        joined.append(place)
        assert not any(key.startswith(later) for key in calls)
        return nullcontext()

    monkeypatch.setattr("hiermusic.parallel.hosts.joined", join)
    called(capsys, calls, name.split()[0], *case.words, *(f"--{flag}={value}" for flag, value in HOSTS.items()))
    assert joined == [tuple(HOSTS.values())] and calls
