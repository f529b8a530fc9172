"""What a token model knows of its tokens: learnt from token records and their codec, then kept in its configuration."""

import os
from dataclasses import asdict
from pathlib import Path

from ml_collections import ConfigDict

from hiermusic.data.streams import Tokenizer, read_stream
from hiermusic.errors import UserError
from hiermusic.pretrained import semantic
from hiermusic.tokens.facts import TokenFacts, difference


def learn(config: ConfigDict) -> None:
    """Lets a token model's configuration say of its tokens what the records at `data.path` say, in place.

    `tokens` become those of the records, and `data.codec` the codec that made them, WORKDIR@STEP, at the place that was
    given for it or else where it was; `prefix` becomes those of the records of `data.prefix`, and `data.prefix_codecs`
    what made these. Nothing is learnt where there are no records: what the configuration itself says serves to look at
    it.

    Raises:
      UserError: records that do not say what made them, or `data.codec` at another step.
    """
    if "tokens" not in config or not config.data.get("path", ""):
        return
    path = own_place(config, config.data.path)
    if not (Path(path) / "info.json").is_file():
        return
    config.tokens = ConfigDict(asdict(stored_facts(path)))
    made_by = read_stream(path).tokenizer
    given = Tokenizer.named(config.data.codec) if config.data.codec else made_by
    if given.step not in (None, made_by.step):
        raise UserError(
            f"data.codec={given}: {path} was made at step {made_by.step}; give the codec's workdir without a step"
        )
    config.data.codec = str(Tokenizer(os.path.abspath(given.workdir), made_by.step))
    if others := prefix_places(config, config.data.path):
        config.prefix = ConfigDict({str(i): asdict(stored_facts(other)) for i, other in enumerate(others)})
        made = [read_stream(other) for other in others]
        config.data.prefix_codecs = tuple(str(stream.tokenizer) for stream in made)
        config.data.prefix_noise = tuple(stream.noise for stream in made)


def own_place(config: ConfigDict, path: str) -> str:
    """Where the tokens lie that a model predicts, in token records or a folder of streams at `path`."""
    stream = config.data.get("stream", "")
    return os.path.join(path, stream) if path and stream else path


def prefix_places(config: ConfigDict, path: str) -> list[str]:
    """Where the streams lie that a model reads in front: `data.prefix`, seen from `path`."""
    return [os.path.abspath(os.path.join(path, other)) for other in config.data.get("prefix", ())]


def makers_of_prefix(config: ConfigDict) -> list[str]:
    """The workdirs of what made the streams that a token model reads in front of its own, as far as it knows them."""
    return [Tokenizer.named(maker).workdir for maker in config.data.get("prefix_codecs", ())]


def learn_features(config: ConfigDict) -> None:
    """Lets a tokenizer's configuration say what the encoder of `model.encoder` is made of, in place: `features`.

    Nothing is learnt where no encoder is named.

    Raises:
      UserError: no such encoder, or no such layer of it.
    """
    if "features" in config and (named := config.model.get("encoder", "")):
        found = semantic.features_of(named, config.model.layer)
        config.features = ConfigDict(semantic.to_fields(found))


def facts_of(config: ConfigDict) -> TokenFacts:
    """The tokens that a token model's configuration speaks of."""
    return TokenFacts.of(config.tokens)


def prefix_of(config: ConfigDict) -> list[TokenFacts]:
    """The tokens of the streams that a token model reads in front, in their order."""
    told = config.get("prefix", {})
    return [TokenFacts.of(told[name]) for name in sorted(told, key=int)]


def codec_of(config: ConfigDict) -> Tokenizer:
    """The codec that made a token model's tokens; UserError where its configuration does not know it, or it is gone."""
    if not config.data.codec:
        raise UserError("data.codec is empty: the model was not trained on token records, which tell of their codec")
    codec = Tokenizer.named(config.data.codec)
    if not Path(codec.workdir).is_dir():
        raise UserError(
            f"no codec at {codec.workdir}, which made the tokens: put it back, or give its workdir (train: "
            "--config.data.codec=DIR, generate: --codec=DIR)"
        )
    return codec


def stored_facts(path: str) -> TokenFacts:
    """The facts of the token records at `path`, which must be given.

    Raises:
      UserError: no path, no token records there, or records without facts.
    """
    if not path:
        raise UserError(
            "data.path is empty: make token records with `hiermusic tokenize`, then give --config.data.path=DIR"
        )
    if not (facts := read_stream(path).facts):
        raise UserError(f"{path} does not say what quantiser made its tokens: write it again by `hiermusic tokenize`")
    return facts


def check_records(config: ConfigDict, path: str) -> None:
    """UserError when the token records at `path` hold other tokens than a configuration's model knows."""
    known = facts_of(config), *prefix_of(config)
    paths = own_place(config, path), *prefix_places(config, path)
    if len(paths) != len(known):
        raise UserError(f"data.prefix has {len(paths) - 1} streams, the model reads {len(known) - 1}: name as many")
    for place, facts in zip(paths, known, strict=True):
        if told := difference(stored_facts(place), facts):
            do = "take tokens of the codec that it was made for"
            raise UserError(f"{place} holds other tokens than the model knows ({told}): {do}")


def check_codec(config: ConfigDict, run: str, makes: TokenFacts, codec: str) -> None:
    """UserError when what a codec, of the workdir `codec`, makes are other tokens than the model of a `run` knows."""
    if told := difference(makes, facts_of(config)):
        raise UserError(
            f"{codec} makes other tokens than {run} knows ({told}): give the codec that made them, WORKDIR, by "
            "--codec (to train: --config.data.codec)"
        )
