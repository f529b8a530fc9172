"""Verbs shared by two processes leave the bytes that one leaves, whatever is killed on the way."""

import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hiermusic.data import pipeline

spec = importlib.util.spec_from_file_location("systems", Path(__file__).parents[1] / "systems" / "conftest.py")
systems = importlib.util.module_from_spec(spec)
spec.loader.exec_module(systems)
khala, aar, narrow = systems.khala, systems.aar, systems.narrow
run, miniature = systems.run, systems.miniature

SONGS = "--source=builtin:18?seconds=1-2"  # two shards, one for each process
RECORDS = ("--sample_rate=8000", "--channels=1")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def well(processes):
    """Standard output of process 0, all having ended well and the others having printed nothing."""
    ends = processes.end(300)
    assert [status for status, _, _ in ends] == [0] * len(ends), ends
    assert [out for _, out, _ in ends[1:]] == [""] * (len(ends) - 1), ends
    return json.loads(ends[0][1])


def test_two_write_the_records_of_one(verb, run, tmp_path):
    two, one = tmp_path / "two", tmp_path / "one"
    killed = verb(2, "data", SONGS, f"--out={two}", *RECORDS)
    while not list(two.glob("*.tmp")) and all(process.poll() is None for process in killed.all):
        time.sleep(0.005)
    for process in killed.all:
        process.kill()
    ends = killed.end()
    assert not (two / "info.json").exists() and list(two.rglob("*.tmp")), ends
    (two / "parts" / "00000.jsonl.0123abcd.tmp").touch()

    answer = well(verb(2, "data", SONGS, f"--out={two}", *RECORDS, "--json"))
    run("data", SONGS, f"--out={one}", *RECORDS)
    assert answer["tracks"] == 18 and answer["train"] + answer["valid"] == 18
    assert contents(two) == contents(one)


@pytest.mark.slow
def test_two_make_the_tokens_songs_and_measures_of_one(verb, run, khala, tmp_path):
    def commands(at):
        yield "tokenize", f"--codec={khala.codec}", "--data=builtin:18?seconds=1-2", f"--out={at}/tokens"
        yield "generate", f"--superres={khala.superres}", f"--prompts={khala.prompts}", f"--out={at}/songs"
        for stage in ("codec", "backbone", "superres"):
            yield "evaluate", f"--workdir={khala.root / stage}", f"--out={at}/{stage}", "--seconds=1"

    systems.work(*commands(tmp_path / "one"))
    for command in commands(tmp_path / "two"):
        well(verb(2, *command, "--json"))
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys() and len(one) > 20
    for name in one:
        ours, theirs = one[name].replace(b"/one/", b"/two/"), two[name]
        assert ours == theirs, name

    _, generate, *_ = commands(tmp_path / "spread")
    run(*generate, "--mesh=fsdp=4,data=2")
    spread = contents(tmp_path / "spread" / "songs")
    for name in spread:
        assert spread[name].replace(b"/spread/", b"/two/") == two[f"songs/{name}"], name


@pytest.mark.slow
@pytest.mark.parametrize("which", ["khala", "aar"])
def test_two_processes_of_four_devices_make_the_songs_of_one_device(request, verb, run, tmp_path, which):
    at, prompts = request.getfixturevalue(which), tmp_path / "prompts.jsonl"
    soundfile.write(tmp_path / "clip.wav", np.sin(np.arange(8000) * 0.2), 4000)
    told = {"khala": {"tags": "slow"}, "aar": {"like": str(tmp_path / "clip.wav")}}[which]
    songs = [{"name": name, "seconds": seconds, **told} for name, seconds in (("a", 1.2), ("b", 0.6), ("c", 0.9))]
    prompts.write_text("".join(json.dumps(song) + "\n" for song in songs))
    model = f"--superres={at.superres}" if which == "khala" else f"--lm={at.lm}"
    generate = ("generate", model, f"--prompts={prompts}", "--guidance=1.5", "--rows=2")
    run(*generate, f"--out={tmp_path / 'one'}")
    well(verb(2, *generate, f"--out={tmp_path / 'two'}", "--mesh=fsdp=4,data=2", "--json", devices=4))
    one, two = (contents(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == two.keys() and len(one) == 9
    for name in one:
        assert one[name].replace(b"/one/", b"/two/") == two[name], name


@pytest.mark.slow
def test_a_killed_evaluation_goes_on(verb, run, khala, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    arguments = ("evaluate", f"--workdir={khala.codec}", "--seconds=1")
    first = verb(2, *arguments, f"--out={killed}")
    while not list(killed.rglob("codec-*.npz")) and all(process.poll() is None for process in first.all):
        time.sleep(0.005)
    for process in first.all:
        process.kill()
    first.end()
    measured = {path: path.stat().st_mtime_ns for path in killed.rglob("*.npz")}
    assert measured and not (killed / "results.json").exists()
    second = verb(2, *arguments, f"--out={killed}")
    while not list(killed.rglob("baselines-*.npz")) and second.all[0].poll() is None:
        time.sleep(0.005)
    kept = {path: path.stat().st_mtime_ns for path in measured if path.exists()}
    assert kept.items() <= measured.items()
    assert [status for status, _, _ in second.end(300)] == [0, 0]
    run(*arguments, f"--out={whole}")
    assert contents(killed) == contents(whole)


@pytest.mark.parametrize("parts", [2, 4])
def test_rows_do_not_depend_on_who_reads_the_others(run, tmp_path, parts):
    corpus = tmp_path / "corpus"
    run("data", "--source=builtin:3?seconds=1-2", f"--out={corpus}", *RECORDS)
    batch = pipeline.waveform_batches(corpus, "train", 4000, 8, seed=5)[1_000_003]
    for which in range(parts):
        rows = range(which * 8 // parts, (which + 1) * 8 // parts)
        np.testing.assert_array_equal(
            pipeline.waveform_batches(corpus, "train", 4000, 8, seed=5, rows=rows)[1_000_003], batch[list(rows)]
        )


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["backbone", "superres"])
def test_token_batches_do_not_depend_on_who_reads_the_others(khala, stage):
    from hiermusic.systems import workdir
    from hiermusic.systems.khala import rows as khala_rows
    from hiermusic.systems.lm import rows as lm_rows

    config = workdir.read(khala.root / stage)
    config.train.batch_size = 8
    batches = {"backbone": lm_rows.batches, "superres": khala_rows.batches}[stage]
    task, whole = batches(config, "train", range(8))[1_000_003]
    for parts in (2, 4):
        for which in range(parts):
            rows = range(which * 8 // parts, (which + 1) * 8 // parts)
            same, batch = batches(config, "train", rows)[1_000_003]
            assert same == task
            for name, value in batch.items():
                np.testing.assert_array_equal(value, whole[name][list(rows)] if np.ndim(value) else whole[name])
