"""Verbs on sounds and tokens: data, tokenize, encode, decode, embed."""

from functools import partial
from pathlib import Path

from hiermusic.console import say
from hiermusic.errors import UserError
from hiermusic.verbs.flags import (
    Values,
    Verb,
    answer,
    boolean,
    hosts,
    integer,
    need,
    number,
    positional,
    string,
    strings,
    together,
)


def _define_data(values: Values) -> None:
    string(
        values,
        "source",
        "folder, manifest (.csv, .jsonl, .jsonl.gz), tfds:NAME?split=train, midi:FOLDER or builtin:N?seconds=8-16",
    )
    string(values, "out", "folder for the records")
    integer(values, "sample_rate", "samples a second of the records", 44100, lower=1000, upper=1_000_000)
    integer(values, "channels", "channels of the records", 2, lower=1, upper=2)
    number(values, "valid_fraction", "share of tracks held out where no split is given", 0.1, lower=0.0, upper=1.0)
    string(values, "stems", "what is kept of a track, by commas: mix, vocals, instrumental, drums, bass, other", "mix")
    string(values, "sounding", "stems among these that must be heard: a track in which one is silent is skipped", "")
    boolean(values, "separate", "take mixes in files apart by demucs where they come without stems")
    string(values, "tfds", "also write the records as a TensorFlow Datasets data set below this folder")
    number(values, "segment_seconds", "seconds a record holds", 10.0, lower=0.1, upper=3600.0)
    boolean(values, "json", "print one JSON object")
    hosts(values)


def _data(values: Values, given: list[str]) -> None:
    positional(given)
    need(values, "source", "out")
    from hiermusic.data import audio_records, sources
    from hiermusic.data.stems import INSTRUMENTAL, VOCALS, parse
    from hiermusic.parallel.hosts import wait_for_all, workers

    wanted = parse(values.stems)
    sounding = parse(values.sounding, "sounding") if values.sounding else ()
    if strange := sorted(set(sounding).difference(wanted)):
        raise UserError(f"--sounding={values.sounding}: {strange[0]} is none of --stems={values.stems}: keep it too")
    if values.separate and {VOCALS, INSTRUMENTAL}.isdisjoint(wanted):
        made = f"{VOCALS} and {INSTRUMENTAL}"
        raise UserError(f"--separate makes {made}: keep them, as in --stems={VOCALS},{INSTRUMENTAL}")
    apart = Path(values.out) / "separated" if values.separate else None
    with together(values):
        opened = partial(sources.open_source, values.source, stems=wanted, separate=apart)
        first = opened() if workers()[0] == 0 else None
        wait_for_all("sources")  # one process takes mixes apart
        source = first or opened()
        audio_records.write_audio(
            source.tracks,
            values.out,
            values.sample_rate,
            values.channels,
            segment_seconds=values.segment_seconds,
            valid_fraction=values.valid_fraction,
            stems=wanted,
            sounding=sounding,
            fingerprint=source.fingerprint,
            worker=workers(),
        )
        wait_for_all("records")
        _tell(values)


def _tell(values: Values) -> None:
    """What the finished records hold; one process also writes them as a TFDS data set where that is asked for."""
    from hiermusic.data.records import read_summary
    from hiermusic.parallel.hosts import wait_for_all, workers

    if values.tfds and workers()[0] == 0:
        from hiermusic.data.tfds_builder import export_tfds

        say(f"written as a TFDS data set: {export_tfds(values.out, values.tfds)}")
    wait_for_all("export")
    summary = read_summary(values.out)
    answer(values, _facts(summary), [str(summary)])


def _facts(summary) -> dict:
    facts = {"out": str(summary.path), "tracks": summary.tracks, "seconds": summary.seconds, **summary.splits}
    if summary.division:
        facts["division"] = dict(summary.division)
    return facts | {"skipped": [list(entry) for entry in summary.skipped]}


def _define_tokenize(values: Values) -> None:
    string(values, "codec", "workdir of a trained codec, for one stream of the mix")
    strings(values, "stream", "STEM:TOKENIZER or STEM/WORD:TOKENIZER (vocals/semantic:out/codec), once for each stream")
    string(values, "data", "audio records, folder, manifest, tfds:NAME, midi:FOLDER or builtin:N")
    string(values, "out", "folder for the token records, or for one of each stream")
    string(values, "tfds", "also write the records as a TensorFlow Datasets data set below this folder")
    number(values, "vocal_noise", "deviation of Gaussian noise on streams of vocals", 0.0, lower=0.0, upper=1.0)
    integer(values, "split_at", "codec levels kept apart from the rest, for models that read only those", 2, lower=1)
    boolean(values, "json", "print one JSON object")
    hosts(values)


def _tokenize(values: Values, given: list[str]) -> None:
    positional(given)
    if values.stream and (values.codec or values.tfds):
        other = "--codec" if values.codec else "--tfds"
        raise UserError(f"{other} goes with one stream of the mix: leave it out beside --stream")
    need(values, "stream" if values.stream else "codec", "data", "out")
    from hiermusic.data import streams
    from hiermusic.data.stems import VOCALS
    from hiermusic.systems import workdir

    codecs = streams.parse(values.stream) if values.stream else {"": values.codec}
    if values.vocal_noise and not any(streams.stem_of(name) == VOCALS for name in codecs):
        raise UserError(f"--vocal_noise={values.vocal_noise:g} goes with a stream of vocals: give one by --stream")
    with together(values):
        how = {"split_at": values.split_at, "vocal_noise": values.vocal_noise}
        made = workdir.tokenise(codecs, values.data, values.out, **how)
        if not values.stream:
            _tell(values)
        else:
            facts = {name: _facts(summary) for name, summary in made.items()}
            answer(values, {"out": values.out, "streams": facts}, [str(summary) for summary in made.values()])


def _define_encode(values: Values) -> None:
    string(values, "codec", "workdir of a trained codec")
    integer(values, "levels", "codec levels to keep; all when left out", lower=1)
    boolean(values, "json", "print one JSON object")


def _encode(values: Values, given: list[str]) -> None:
    source, target = positional(given, "IN.wav", "CODES.npz")
    need(values, "codec")
    from hiermusic.systems import workdir

    result = workdir.encode_file(values.codec, source, target, levels=values.levels)
    answer(values, result, [f"{target}: codes {result['codes']} of {result['seconds']:.2f} s"])


def _decode(values: Values, given: list[str]) -> None:
    source, target = positional(given, "CODES.npz", "OUT.wav")
    need(values, "codec")
    from hiermusic.systems import workdir

    result = workdir.decode_file(values.codec, source, target, levels=values.levels)
    answer(values, result, [f"{target}: {result['seconds']:.2f} s"])


def _define_embed(values: Values) -> None:
    string(values, "model", "folder of an imported encoder: HuBERT, CLAP or VGGish")
    string(values, "data", "audio records, of all whose tracks OUT.npz gets an array, instead of IN.wav")
    integer(values, "layer", "of HuBERT: whose features, 0 = what enters the first; default: the folder's", lower=0)
    number(values, "window", "seconds that HuBERT hears at once, 0 = all; default: 10", lower=0.0)
    boolean(values, "json", "print one JSON object")


def _embed(values: Values, given: list[str]) -> None:
    need(values, "model")
    options = {"layer": values.layer, "window": values.window}
    if values.data:
        (target,) = positional(given, "OUT.npz")
        from hiermusic.data import embed

        result = embed.embed_tracks(values.model, values.data, target, **options)
        answer(values, result, [f"{target}: {result['tracks']} tracks, {result['width']} numbers a vector"])
        return
    source, target = positional(given, "IN.wav", "OUT.npy")
    from hiermusic.data import embed

    result = embed.embed_file(values.model, source, target, **options)
    answer(values, result, [f"{target}: {result['shape']} of {result['seconds']:.2f} s"])


VERBS = {
    "data": Verb(
        "turn music into sharded audio records",
        "hiermusic data --source=FOLDER_OF_MUSIC --out=out/corpus",
        _define_data,
        _data,
    ),
    "tokenize": Verb(
        "turn audio into token records with a trained codec",
        "hiermusic tokenize --codec=out/codec --data=out/corpus --out=out/tokens",
        _define_tokenize,
        _tokenize,
    ),
    "encode": Verb(
        "one audio file to codes",
        "hiermusic encode --codec=out/codec in.wav codes.npz",
        _define_encode,
        _encode,
        "IN.wav CODES.npz",
    ),
    "decode": Verb(
        "codes back to one audio file",
        "hiermusic decode --codec=out/codec codes.npz out.wav",
        _define_encode,
        _decode,
        "CODES.npz OUT.wav",
    ),
    "embed": Verb(
        "what an imported encoder makes of a sound: an array [frames, D]",
        "hiermusic embed --model=out/hubert --layer=9 in.wav out.npy",
        _define_embed,
        _embed,
        "IN.wav OUT.npy",
    ),
}
