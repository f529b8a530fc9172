"""HAFM (arXiv 2604.09054): a vocal in, its accompaniment out.

Three causal models, each of them a pattern behind a prefix: what the vocal means gives what the accompaniment means,
both give its coarse codes, and these its fine ones.
"""

from hiermusic.systems.system import Rooms, System


def _rooms() -> Rooms:
    from hiermusic.systems.hafm import demo, measures, models, songs, stages

    return Rooms(
        make_model=models.make_model,
        stage=stages.stage,
        inspect=measures.inspect,
        cross_entropy=measures.cross_entropy,
        program=songs.program,
        generate=songs.generate,
        demo=demo.demo,
        accompanist=lambda stages: songs.Accompanist.open(**stages),
    )


_STAGES = ("semantic", "coarse", "fine")
_USE = "hiermusic accompany vocal.wav --workdir=STAGES --out=songs"  # STAGES/{semantic,coarse,fine}

SYSTEM = System(
    name="hafm",
    title="HAFM",
    stages=_STAGES,
    tokenizers=(),
    sizes=frozenset("length layers width heads kv_heads head_dim ffn_width ticks".split()),
    flags=(),
    uses=dict.fromkeys(_STAGES, _USE),
    examples={
        "train": "hiermusic train --config=configs/hafm/semantic.py:tiny --workdir=out/semantic "
        "--config.data.path=STREAMS",
        "inspect": "hiermusic inspect --config=configs/hafm/coarse.py:paper --json",
        "compile": "hiermusic compile --config=configs/hafm/coarse.py:paper --topology=v6e:4x4 --config.mesh.fsdp=16",
    },
    load=_rooms,
    chain=_STAGES,
    spare=("semantic", "fine"),
)
