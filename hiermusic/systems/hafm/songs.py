"""The accompaniment of a vocal: three token models in a chain, in codes; and the program that each compiles to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int
from ml_collections import ConfigDict

from hiermusic.data.streams import Tokenizer
from hiermusic.errors import UserError
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.lm import models
from hiermusic.systems.lm import songs as drawing
from hiermusic.systems.lm.models import pattern_of
from hiermusic.systems.lm.songs import program  # noqa: F401  the system's own as it is
from hiermusic.systems.requests import Request
from hiermusic.systems.token_facts import codec_of, facts_of, prefix_of
from hiermusic.tokens import packets
from hiermusic.tokens.facts import TokenFacts, difference
from hiermusic.tokens.pattern import Pattern
from hiermusic.tokens.prompt import Prompt
from hiermusic.tokens.sampling import check

STAGES = ("semantic", "coarse", "fine")
_APART = 1_000_003  # between the seeds of a window's stages, which would otherwise draw with one another's noise


class Accompaniment(NamedTuple):
    """What one window became, and what the next window's beginning can be given.

    Attributes:
      semantic_T: int32 [T_v], one token for every token of the vocal; none where there is no semantic stage.
      codes_TK: int32 [T_a, K], acoustic codes, T_a = `Accompanist.frames(T_v)`; 8 levels, or the coarse ones alone
        where there is no fine stage.
    """

    semantic_T: Int[np.ndarray, "T"]
    codes_TK: Int[np.ndarray, "T K"]


@dataclass(frozen=True)
class _Stage:
    """A trained stage: its workdir, what it says of itself, and its weights, ready to draw with."""

    workdir: str
    config: ConfigDict
    model: nnx.Module

    @property
    def order(self) -> Pattern:
        return pattern_of(self.config)


class Accompanist:
    """The trained stages of one HAFM, ready to play.

        accompanist = Accompanist.open(semantic="out/semantic", coarse="out/coarse", fine="out/fine")
        (made,) = accompanist.accompany([vocal_T], seeds=[0], guidance={"semantic": 3.0})

    Attributes:
      vocal, codes: `TokenFacts` of the vocal's tokens, and of the acoustic codes, of which `levels` are made.
      window: the most vocal tokens that all stages take at once.
      levels: how many levels of acoustic codes are made.
      sampling: of each stage, by its name, its workdir's temperature, top_k, top_p and guidance.
      noise: deviation of the noise that vocals were under when the stages' tokens were made of them.
    """

    def __init__(self, stages: Mapping[str, _Stage], mesh: Mesh | None = None):
        _check_chain(stages)
        self._stages, self._mesh = dict(stages), mesh
        coarse, last = stages["coarse"], stages.get("fine", stages["coarse"])
        self.vocal: TokenFacts = prefix_of(coarse.config)[0]
        self.codes: TokenFacts = facts_of(coarse.config)
        self.levels: int = len(models.own(last.config))
        self.noise: float = next(iter(coarse.config.data.prefix_noise), 0.0)
        self.sampling = {name: stage.config.sampling.to_dict() for name, stage in stages.items()}
        most = {
            name: stage.order.lengths(stage.order.most(stage.config.model.length)) for name, stage in stages.items()
        }
        self.window: int = min(most[name][0] for name in most if name != "fine")
        while "fine" in most and self.frames(self.window) > most["fine"][0]:
            self.window -= 1

    @classmethod
    def open(
        cls, *, coarse: str, semantic: str | None = None, fine: str | None = None, mesh: Mesh | None = None
    ) -> "Accompanist":
        """The stages of three workdirs, or of fewer.

        Args:
          coarse: workdir or export of the stage of this name.
          semantic: likewise; None where the coarse stage reads the vocal alone.
          fine: likewise; without it, the coarse levels are all there is.
          mesh: to spread the models over; None for the first device. All processes of a run must come here.
        Raises:
          UserError: a workdir of another stage, or stages of other tokens than each other's.
        """
        stages = {}
        for name, workdir in zip(STAGES, (semantic, coarse, fine), strict=True):
            if workdir:
                config = workdirs.read(workdir, name)
                if config.system != __package__.rpartition(".")[2]:
                    raise UserError(f"{workdir} is of the system {config.system}: give the workdir of a {name} stage")
                stages[name] = _Stage(workdir, config, None)
        _check_chain(stages)  # before weights are read, which takes longer
        for name, stage in stages.items():
            model = workdirs.load(stage.workdir, name, mesh=mesh)[1]
            stages[name] = _Stage(stage.workdir, stage.config, drawing.ready(stage.config, model))
        return cls(stages, mesh)

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """What made the tokens of "vocal" and "codes", and of "semantic" where there is such a stage.

        UserError where it is not known, or gone.
        """
        coarse = self._stages["coarse"]
        if not coarse.config.data.prefix_codecs:
            raise UserError(f"{coarse.workdir} does not say what made its vocal tokens")
        found = {"vocal": Tokenizer.named(coarse.config.data.prefix_codecs[0])}
        if "semantic" in self._stages:
            found["semantic"] = codec_of(self._stages["semantic"].config)
        return found | {"codes": codec_of(coarse.config)}

    def frames(self, vocal_tokens: int) -> int:
        """Frames of acoustic codes beside so many tokens of the vocal: int(T_v * 75 / 50) at HAFM's rates."""
        order = self._stages["coarse"].order
        return order.lengths(order.packets([vocal_tokens]))[-1]

    def accompany(
        self,
        vocals: Sequence[Int[np.ndarray, "T"]],
        *,
        seeds: Sequence[int],
        temperature: Mapping[str, float] | float | None = None,
        top_k: Mapping[str, int] | int | None = None,
        guidance: Mapping[str, float] | float | None = None,
        given: Sequence[Int[np.ndarray, "T K"] | None] | None = None,
        given_semantic: Sequence[Int[np.ndarray, "T"] | None] | None = None,
    ) -> list[Accompaniment]:
        """Accompaniments of a batch of windows, of one song or of several; each is what it would be alone.

        Args:
          vocals: of each window the vocal's tokens, at most `window` of them.
          seeds: one integer a window; the same seed draws the same tokens in any batch.
          temperature, top_k, guidance: of every stage, or by the names of stages ("semantic", "coarse", "fine"), of
            which those left out keep their workdir's; guidance 1 is none, and moves away from the same window whose
            prefix is left out.
          given: of each window the acoustic codes of its beginning, as many levels as are made, which are kept as they
            are; None for none.
          given_semantic: likewise its first semantic tokens, of stages that have a semantic one.
        Raises:
          UserError: codes that no token of these stages is, a window that is too long or too short, more codes given
            than it has, guidance of a stage that was trained without leaving its prefix out.
        """
        vocals = [np.asarray(vocal_T) for vocal_T in vocals]
        for number, vocal_T in enumerate(vocals):
            _check_codes(vocal_T[:, None], self.vocal.codes, f"the vocal of window {number}")
            if not 0 < len(vocal_T) <= self.window or not self.frames(len(vocal_T)):
                told = f"the vocal of window {number} has {len(vocal_T)} tokens"
                raise UserError(f"{told}: these stages take 1 to {self.window}, and enough for a frame of codes")
        told_TK = self._begun(given, [self.frames(len(vocal_T)) for vocal_T in vocals], self.levels, self.codes.codes)
        meant = [None if codes_T is None else np.asarray(codes_T)[:, None] for codes_T in given_semantic or ()]
        means = "semantic" in self._stages
        if not means and any(codes_T1 is not None and len(codes_T1) for codes_T1 in meant):
            raise UserError("given_semantic: there is no semantic stage here to go on from these tokens: leave it out")
        count = facts_of(self._stages["semantic"].config).codes if means else 0
        meant_T1 = self._begun(meant or None, list(map(len, vocals)), 1, count)
        settings = self._settings({"temperature": temperature, "top_k": top_k, "guidance": guidance})
        coarse = len(models.own(self._stages["coarse"].config))

        def draw(name: str, before: Sequence[Sequence[np.ndarray]], begun: Sequence[np.ndarray]) -> list[np.ndarray]:
            stage, apart = self._stages[name], STAGES.index(name) * _APART
            asked = [
                Request(str(number), Prompt(seconds=1.0), (seed + apart) % 2**32) for number, seed in enumerate(seeds)
            ]
            how = {"given": [tuple(levels) for levels in before], "begun": [list(codes_TK.T) for codes_TK in begun]}
            made = drawing.draw(asked, stage.config, stage.model, settings[name], mesh=self._mesh, name=name, **how)
            return [np.stack(packets.levels_of(one.codes)[stage.order.given :], axis=1) for one in made]

        front, semantic_T1 = [[vocal_T] for vocal_T in vocals], [np.zeros((0, 1), np.int32)] * len(vocals)
        if means:
            semantic_T1 = draw("semantic", front, meant_T1)
            front = [[vocal_T, codes_T1[:, 0]] for vocal_T, codes_T1 in zip(vocals, semantic_T1, strict=True)]
        codes_TK = draw("coarse", front, [codes_TK[:, :coarse] for codes_TK in told_TK])
        if "fine" in self._stages:
            fine_TK = draw("fine", [list(one_TK.T) for one_TK in codes_TK], [one_TK[:, coarse:] for one_TK in told_TK])
            codes_TK = [np.concatenate(pair, axis=1) for pair in zip(codes_TK, fine_TK, strict=True)]
        return [Accompaniment(one_T1[:, 0], one_TK) for one_T1, one_TK in zip(semantic_T1, codes_TK, strict=True)]

    def _begun(
        self, given: Sequence[np.ndarray | None] | None, lengths: Sequence[int], levels: int, codes: int
    ) -> list[Int[np.ndarray, "T K"]]:
        """What is given of each window, nothing as no frames."""
        found = []
        for number, (codes_TK, length) in enumerate(zip(given or [None] * len(lengths), lengths, strict=True)):
            codes_TK = np.zeros((0, levels), np.int32) if codes_TK is None else np.asarray(codes_TK)
            whose = f"what is given of window {number}"
            _check_codes(codes_TK, codes, whose)
            if codes_TK.shape[1] != levels or len(codes_TK) > length:
                told = f"{whose} has {len(codes_TK)} frames of {codes_TK.shape[1]} levels"
                raise UserError(f"{told}: give at most the {length} of the window, of {levels} levels")
            found.append(codes_TK.astype(np.int32))
        return found

    def _settings(self, asked: Mapping[str, Mapping[str, float] | float | None]) -> dict[str, dict[str, float]]:
        """How each stage draws; UserError for numbers by which none can, and for guidance by a prefix that a stage has
        not learnt to do without."""
        settings = {name: dict(sampling) for name, sampling in self.sampling.items()}
        for field, given in asked.items():
            values = given if isinstance(given, Mapping) else {} if given is None else dict.fromkeys(settings, given)
            if strange := sorted(set(values) - set(STAGES)):
                raise UserError(f"{field} of a stage '{strange[0]}': there are {', '.join(STAGES)}")
            for name in settings:
                settings[name] |= {} if values.get(name) is None else {field: values[name]}
        for name, stage in self._stages.items():
            check(settings[name], f"the {name} stage's ")
            guidance = settings[name]["guidance"]
            if guidance != 1.0 and models.null_of(stage.config) is None:
                raise UserError(
                    f"guidance {guidance:g} of the {name} stage has nothing to drop: {stage.workdir} was trained with "
                    "model.prefix_dropout=0; set it to 1"
                )
        return settings


def _check_chain(stages: Mapping[str, _Stage]) -> None:
    """UserError unless each stage reads the tokens that those before it make."""
    semantic, coarse, made = stages.get("semantic"), stages["coarse"], []
    before = () if semantic is None else (*prefix_of(semantic.config), facts_of(semantic.config))
    if len(reads := prefix_of(coarse.config)) != max(len(before), 1):
        raise UserError(
            f"{coarse.workdir} reads the vocal alone: leave {semantic.workdir} out, or take a coarse stage that reads "
            "what it means"
            if semantic
            else f"{coarse.workdir} reads what the accompaniment means, and there is no semantic stage beside it"
        )
    made += [(coarse, prefix, semantic, of) for prefix, of in zip(reads, before, strict=False)]
    if fine := stages.get("fine"):
        made.append((fine, facts_of(fine.config), coarse, facts_of(coarse.config)))
        if fine.config.model.given != (levels := len(models.own(coarse.config))):
            raise UserError(
                f"{fine.workdir} reads {fine.config.model.given} coarse levels and {coarse.workdir} makes {levels}: "
                "take stages that were made for each other"
            )
    for reader, reads, maker, makes in made:
        if told := difference(makes, reads):
            raise UserError(f"{reader.workdir} reads other tokens than those of {maker.workdir} ({told})")


def _check_codes(codes_TK: np.ndarray, codes: int, whose: str) -> None:
    """UserError for what are no tokens of so many codes."""
    if codes_TK.ndim != 2 or codes_TK.dtype.kind not in "iu":
        raise UserError(f"{whose} is an array {codes_TK.shape} of {codes_TK.dtype}: give tokens, as whole numbers")
    if codes_TK.size and not 0 <= codes_TK.min() <= codes_TK.max() < codes:
        raise UserError(
            f"{whose} holds {codes_TK.max() if codes_TK.max() >= codes else codes_TK.min()}, which is no token of "
            f"{codes} codes: take the tokenizer that the stages were trained with"
        )


def generate(*arguments, **how) -> list[dict]:
    """Nothing: there is no song without a vocal."""
    raise UserError("these stages play to a vocal: `hiermusic accompany` makes songs with them")
