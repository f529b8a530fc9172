"""Measures a trained workdir on held-out tracks: results.json and report.html."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from hiermusic.audio import files
from hiermusic.audio.bands import low_passed
from hiermusic.codec.chunked import decode_long, encode_long
from hiermusic.codec.codec import Codec
from hiermusic.console import bar, say
from hiermusic.data import pipeline
from hiermusic.data.audio_records import AudioSource
from hiermusic.data.stems import ALONE, MIX
from hiermusic.data.streams import read_stream
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError, write_atomically
from hiermusic.evaluate import continuation, frechet, report, sections, songs, verify
from hiermusic.evaluate.baselines import evaluate_baselines
from hiermusic.evaluate.by_track import Each, on_disk
from hiermusic.evaluate.codec import Coder, evaluate_codec, levels_name
from hiermusic.evaluate.music import MEASURES, anchored
from hiermusic.evaluate.scores import from_json, to_json
from hiermusic.evaluate.tokens import compare, losing
from hiermusic.parallel.hosts import wait_for_all, workers
from hiermusic.pretrained.encoder import read_config
from hiermusic.systems import token_facts
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.stages import stems_of
from hiermusic.systems.token_facts import own_place
from hiermusic.tokens import packets
from hiermusic.train.checkpoint import latest_step

HEARD_LEVELS = (1, 2, 8, 16, 32)  # of a codec, besides all it has
HEARD_SONGS = 12
DECODED_TRACKS = 4  # whose levels are listened to where tokens are verified

Chapters = Callable[[], list[report.Section]]
Measured = tuple[dict[str, Any], Chapters]  # results, and the chapters that show them


def evaluate(
    workdir: str, out: str, *, data: str | None, seconds: float, tracks: int, verify_tokens: bool = False
) -> dict[str, Any]:
    """Measures a codec's reconstruction or a token model's predictions on held-out tracks.

    The processes of a run share the tracks. What is measured of each lies in `out`/parts until all are, so that an
    evaluation that was killed goes on.

    Args:
      workdir: a trained codec or token model.
      out: folder for results.json, report.html and the sounds it plays.
      data: what to take the held-out tracks from; what it was trained on when left out.
      seconds: of each held-out track, from its middle, that a codec is measured on.
      tracks: at most so many.
      verify_tokens: of a token model, checks instead whether its tokens are what it and their codec take them for.
    Raises:
      UserError: no checkpoint, or no held-out track.
    """
    config = workdirs.read(workdir)
    if config.stage != "codec" and workdirs.makes_tokens(config):
        raise UserError(
            f"{workdir} is a tokenizer of meaning, which rebuilds nothing and predicts nothing: its held-out loss and "
            "use of clusters stand in metrics.jsonl"
        )
    if verify_tokens and config.stage == "codec":
        raise UserError(f"--verify_tokens asks a token model about its tokens, {workdir} is a codec: give that of one")
    measure = _codec if config.stage == "codec" else _verified if verify_tokens else _tokens
    results, chapters = measure(workdir, Path(out), data, seconds, tracks)
    results = {"workdir": workdir, "system": config.system, "stage": config.stage, **results}
    return _finish(Path(out), results, f"{config.system} {config.stage}, held-out tracks", workdir, chapters)


def evaluate_songs(
    folder: str, out: str, *, data: str | None, tracks: int, embedding: str | None = None
) -> dict[str, Any]:
    """Measures a folder of generated songs beside held-out songs of their corpus and the anchors; shared likewise.

    Args:
      folder: what `hiermusic generate` wrote.
      out: folder for results.json, report.html and the sounds it plays.
      data: the corpus; what the songs' codec was trained on when left out.
      tracks: at most so many held-out ones.
      embedding: an imported encoder, by whose vectors the Frechet distance is measured as well.
    Raises:
      UserError: no song, no corpus, or one without held-out tracks.
    """
    made = songs.read(folder)
    if embedding:
        read_config(embedding)  # what is none is told before anything is measured
    corpus = _corpus(made, data, Path(out))
    if not corpus.train or not corpus.valid:
        raise UserError(f"{corpus.path} has no held-out tracks: write it with --valid_fraction above 0")
    facts = {"songs": [song.facts for song in made], "data": corpus.info, "stem": corpus.stem, "tracks": tracks}
    facts |= {"embedding": embedding} if embedding else {}
    each = on_disk(Path(out) / "parts", facts)
    results = songs.evaluate_songs(made, corpus, tracks, say, each)
    results["continuation"] = continuation.evaluate(made, corpus, tracks, say, each)
    if embedding:
        results["frechet"] = frechet.evaluate_songs(made, corpus, tracks, embedding, say, each)
    results = {"folder": folder, "corpus": str(corpus.path), **results}
    return _finish(Path(out), results, "Generated songs", folder, lambda: _heard(results, made, corpus, Path(out)))


def _finish(out: Path, results: dict[str, Any], title: str, source: str, chapters: Chapters) -> dict[str, Any]:
    results = to_json(results)
    wait_for_all("all have read what was measured")
    if workers()[0] == 0:
        write_atomically(out / "results.json", json.dumps(results, indent=1) + "\n")
        report.write(report.Page(title, f"Measured from {source}.", chapters()), out / "report.html")
        shutil.rmtree(out / "parts")
    wait_for_all("evaluated")
    return results


def _each(workdir: str, out: Path, source: AudioSource | TokenSource, **settings: float | str) -> Each:
    """Measurements that are kept until the evaluation of this checkpoint on this data is whole."""
    facts = {"workdir": str(Path(workdir).absolute()), "step": latest_step(workdir), "data": source.info, **settings}
    return on_disk(out / "parts", facts)


def _corpus(made: Sequence[songs.Made], data: str | None, out: Path) -> AudioSource:
    """What generated songs are compared with, at whatever rate; new records at that of the songs.

    Of what their codec was trained on it is the first stem that the codec heard, of other records the mixes.
    """
    if data and (Path(data) / "tracks.jsonl").is_file():
        return AudioSource(data)
    sound = files.probe(next(iter(made[0].paths.values())))
    rate, channels = sound.sample_rate, sound.channels
    if data:
        return AudioSource(pipeline.resolve(data, out / "data", rate, channels))
    codec = made[0].facts.get("workdirs", {}).get("codec")
    if not codec:
        raise UserError(f"{made[0].name}.json does not say which codec made it: give the corpus with --data")
    config = workdirs.read(codec, "codec")
    return AudioSource(_codec_data(config, codec, None, rate, channels), stems_of(config)[0])


def _codec_data(config: ConfigDict, workdir: str, data: str | None, rate: int, channels: int) -> Path:
    """The audio records that a codec was trained on, or others, of which the mixes are heard, split as these."""
    return pipeline.resolve(
        data or config.data.path,
        Path(workdir) / "data",
        rate,
        channels,
        kind="auto" if data else config.data.kind,
        # as in training: with another share, tracks that were trained on would count as held out
        segment_seconds=config.data.segment_seconds,
        valid_fraction=config.data.valid_fraction,
        stems=ALONE if data else stems_of(config),
    )


def lines(results: dict[str, Any]) -> list[str]:
    """The results as a table of plain lines."""
    results = from_json(results)
    if "verdict" in results:
        return _song_lines(results)
    if "verification" in results:
        return [_check(check) for check in results["verification"]]
    if "reconstruction" in results:
        head = f"{'':<22} {'bit/s':>7} {'SI-SDR':>8} {'mel':>7} {'STFT':>7}"
        rows = [(f"{row['levels']} levels", row["bits_per_second"], row) for row in results["reconstruction"]]
        base = results["baselines"]
        rows += [("transform codec", row["bits_per_second"], row) for row in base["transform"]]
        rows += [(f"low-pass {row['cutoff'] / 1000:g} kHz", float("nan"), row) for row in base["low_pass"]]
        rows += [(name.replace("_", " "), float("nan"), row) for name, row in results["anchors"].items()]
        cells = ((name, rate, *(row[key]["mean"] for key in ("si_sdr", "mel", "stft"))) for name, rate, row in rows)
        scores = [f"{n:<22} {r:>7.0f} {a:>8.2f} {b:>7.3f} {c:>7.3f}" for n, r, a, b, c in cells]
        return [head, *scores, *_music_lines(results["music"])]
    kinds = ("model", "unigram", "uniform")
    head = f"{'level':<6} {' '.join(f'{k:>8}' for k in kinds)}  model - unigram (95 %)   bits a token, 'all': a second"
    rows = results["predictability"]
    cells = (f"{r['level']!s:<6} {' '.join(f'{r[k]:>8.3f}' for k in kinds)}  {_margin(r)}" for r in rows)
    lost = ", ".join(map(str, losing(rows))) or "none"
    return [head, *cells, f"levels on which counting is ahead: {lost}"]


def _check(check: Mapping[str, Any]) -> str:
    verdict = {True: "pass", False: "FAIL"}.get(check["passed"], "not measured")
    return f"{verdict}: {check['name']}: {check['figure']:.3f} {check['unit']}; wanted: {check['wanted']}"


def _margin(row: Mapping[str, Any]) -> str:
    mean, low, high = (row["difference"][key] for key in ("mean", "low", "high"))
    return f"{mean:>+8.3f} ({low:+.3f} … {high:+.3f})"


def _music_lines(rows: Mapping[str, Any]) -> list[str]:
    shown = {key: MEASURES[key] for key in MEASURES if any(key in row for row in rows.values())}
    words = [f"{'':<24}" + "".join(f" {heading.split(',')[0][:17]:>17}" for heading, _ in shown.values())]
    for name, row in rows.items():
        cells = (f" {row[key]['mean']:>17.{d}f}" if key in row else " " * 18 for key, (_, d) in shown.items())
        words.append(f"{name:<24}" + "".join(cells))
    return words


def _song_lines(results: dict[str, Any]) -> list[str]:
    words = [results["verdict"], *_music_lines(results["rows"])]
    for attribute, row in results["obedience"].items():
        one, known = row["songs"], row["corpus"]
        share, count, right = one["share"]["mean"], one["share"]["count"], known["share"]
        worth = f"{right['mean']:.0%} of held-out songs told rightly" if right["count"] else "measured"
        doubt = "" if row["trusted"] else ", no better than chance: this says nothing"
        words.append(
            f"{attribute}: {share:.0%} of {count} songs obey, {one['permuted']:.0%} under each other's prompts, "
            f"p = {one['p']:.3f} ({worth}{doubt})"
        )
    if frechet := results.get("frechet"):
        count, rows = frechet["reference"]["training_tracks"], frechet["rows"].items()
        words.append(f"Frechet distance to {count} training tracks by {frechet['family']}")
        words += [f"{name:<24} {row['distance']:>17.4g}  {row['windows']} windows" for name, row in rows]
    return words


def _heard(results: dict[str, Any], made: Sequence[songs.Made], corpus: AudioSource, out: Path) -> list[report.Section]:
    versions = sorted(made[0].paths, key=lambda version: version != results["best"])
    players = [
        report.Player(song.name if len(versions) == 1 else f"{song.name}, {version}", song.paths[version])
        for song in made[:HEARD_SONGS]
        for version in versions
    ]
    wav_LC = corpus.track(corpus.valid[0])
    anchor_players = []
    for name, sound_LC in anchored(wav_LC, corpus.sample_rate).items():
        path = out / "sounds" / f"{(name or 'held-out song').replace(' ', '-')}.wav"
        files.write(path, sound_LC, corpus.sample_rate)
        anchor_players.append(report.Player(name or "a held-out song", path))
    return [
        sections.music(results),
        *([sections.obedience(results["obedience"])] if results["obedience"] else []),
        *([sections.frechet(results["frechet"])] if "frechet" in results else []),
        *([sections.continuation(results["continuation"])] if results["continuation"] else []),
        *([sections.structure(alike)] if (alike := songs.structure(made, corpus.path, results["best"])) else []),
        report.Section("Songs", items=players),
        report.Section("What they are compared with", items=anchor_players),
    ]


def held_out(audio_dir: Path, seconds: float, tracks: int, stem: str = MIX) -> list[np.ndarray]:
    """The middle `seconds` of a stem of the held-out tracks of audio records, float32 [L, C] each."""
    source = AudioSource(audio_dir, stem)
    if not source.valid:
        raise UserError(f"{audio_dir} has no held-out tracks: write it with --valid_fraction above 0")
    clips = []
    for index in source.valid[:tracks]:
        wav_LC = source.track(index)
        start = max(len(wav_LC) - round(seconds * source.sample_rate), 0) // 2
        clips.append(wav_LC[start : start + round(seconds * source.sample_rate)])
    return clips


def _codec(workdir: str, out: Path, data: str | None, seconds: float, tracks: int) -> Measured:
    config, codec = workdirs.load(workdir, "codec")
    audio_dir = _codec_data(config, workdir, data, codec.sample_rate, codec.channels)
    stem = MIX if data else stems_of(config)[0]
    clips = held_out(audio_dir, seconds, tracks, stem)

    def decode(streams: packets.Streams, levels: int, clip_LC: np.ndarray) -> np.ndarray:
        codes_PS = packets.to_packets(streams, codec.slots)
        return decode_long(codec, codes_PS, levels=levels, scales_N=workdirs.scales(codec, clip_LC))

    coder = Coder(
        encode=lambda wav_LC: packets.to_streams(encode_long(codec, wav_LC), codec.slots),
        decode=decode,
        sample_rate=codec.sample_rate,
        channels=codec.channels,
        hierarchy=codec.hierarchy,
        targets={levels: partial(narrowed, factor=n) for levels, n in codec.resolutions.items() if n > 1},
    )
    each = _each(workdir, out, AudioSource(audio_dir, stem), seconds=seconds, stem=stem)
    results = evaluate_codec(coder, clips, progress=say, each=each)
    rates = [row["bits_per_second"] for row in results["reconstruction"]]
    results["baselines"] = evaluate_baselines(clips, codec.sample_rate, rates, progress=say, each=each)
    return results, lambda: [
        report.Section("One held-out clip", items=reconstructions(codec, clips[0], out / "sounds", "clip")),
        sections.reconstruction(results, results["baselines"]),
        sections.rebuilt_music(results),
        sections.code_use(results),
        *_training(config, workdir),
    ]


def _training(config: ConfigDict, workdir: str) -> list[report.Section]:
    """How the losses went, which nobody knows of a model that was imported."""
    log = Path(workdir) / "metrics.jsonl"
    return [sections.training({config.stage: log})] if log.is_file() else []


def narrowed(wav_LC: np.ndarray, factor: int) -> np.ndarray:
    """A waveform without all but the lowest `factor`-th of its band: what the first levels of a pyramid are held to."""
    return np.asarray(low_passed(wav_LC[None], factor))[0]


def reconstructions(codec: Codec, wav_LC: np.ndarray, folder: Path, name: str) -> list[report.Player]:
    """A clip, what its first levels make of it and what all do, written as wav files to be played."""
    folder.mkdir(parents=True, exist_ok=True)
    rate = codec.sample_rate
    depth = len(codec.hierarchy)
    codes_PS, how = encode_long(codec, wav_LC), {"length": len(wav_LC), "scales_N": workdirs.scales(codec, wav_LC)}
    sounds = {"truth": wav_LC}
    for levels in (*(n for n in HEARD_LEVELS if n < depth), depth):
        sounds[levels_name(levels)] = decode_long(codec, codes_PS, levels=levels, **how)
    players = []
    for label, sound_LC in sounds.items():
        path = folder / f"{name}-{label.replace(' ', '-')}.wav"
        files.write(path, sound_LC, rate)
        players.append(report.Player(label, path))
    return players


def _path(workdir: str, config: ConfigDict, data: str | None) -> str:
    """Where the tokens lie that a token model is measured on, which nobody knows of one that was imported."""
    if not (path := data or config.data.path):
        raise UserError(f"{workdir} does not know the tokens of any music: give token records with --data=DIR")
    return path


def _tokens(workdir: str, out: Path, data: str | None, seconds: float, tracks: int) -> Measured:
    config, model = workdirs.load(workdir)
    path = _path(workdir, config, data)
    own = own_place(config, path)
    valid = TokenSource(own, slice(0, 1), "valid")  # what is measured of it is read by the system
    if not len(valid):
        raise UserError(f"{path} has no held-out tracks")
    progress = bar("batch", label="levels")
    each = _each(workdir, out, valid)
    measured = workdirs.system(config).rooms.cross_entropy(config, model, path, tracks, each, progress.update)
    progress.close()
    table = compare(*measured, read_stream(own).hierarchy.select(0, measured[0].shape[1]))
    results = {"tracks": min(len(valid), tracks), "predictability": table}
    return results, lambda: [
        sections.predictability(table),
        *_training(config, workdir),
    ]


def _verified(workdir: str, out: Path, data: str | None, seconds: float, tracks: int) -> Measured:
    config, model = workdirs.load(workdir)
    ask = workdirs.system(config).rooms.likelihood
    if ask is None or config.model.get("tokenizer") == "none":
        raise UserError(f"{workdir} reads no words, which tokens are verified by: give a model that does")
    path = _path(workdir, config, data)
    valid = TokenSource(path, "all", "valid")
    if not len(valid):
        raise UserError(f"{path} has no held-out tracks")
    checks: list[verify.Check] = []
    if token_facts.facts_of(config).quantiser == "residual":
        codec = workdirs.load_codec(*token_facts.codec_of(config))
        heard = [_middle(valid[index]["codes"], codec, seconds) for index in range(min(len(valid), DECODED_TRACKS))]
        checks.append(verify.norms(np.asarray(codec.quantiser.codebooks[...]), heard))
        checks.append(verify.snr(lambda codes_TK, levels: decode_long(codec, codes_TK, levels=levels), heard))
    progress = bar("batch", label="changes")
    known = read_stream(path).hierarchy
    each = _each(workdir, out, valid, verified=1)
    levels = config.model.levels or len(known)
    nats = ask(config, model, path, tracks, each, progress.update, verify.changes(levels))
    progress.close()
    count = min(len(valid), tracks)
    checks += verify.prefers(nats, count)
    results = {"tracks": count, "verification": [check.to_json() for check in checks]}
    return results, lambda: [sections.verification(results["verification"])]


def _middle(codes_TK: np.ndarray, codec: Codec, seconds: float) -> np.ndarray:
    """The frames of so many seconds, where it is a codec of segments from the beginning of one on."""
    frames = max(round(seconds * float(codec.hierarchy.rates[0])), 1)
    start = max(len(codes_TK) - frames, 0) // 2
    if segments := codec.config.segments:
        start -= start % segments.frames
    return codes_TK[start : start + frames].astype(np.int32)
