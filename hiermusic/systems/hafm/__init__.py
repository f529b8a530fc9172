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
    )


_USE = "hiermusic accompany --semantic={} --coarse={} --fine={} vocal.wav --out=songs"

SYSTEM = System(
    name="hafm",
    title="HAFM",
    stages=("semantic", "coarse", "fine"),
    tokenizers=(),
    sizes=frozenset("length layers width heads kv_heads head_dim ffn_width ticks".split()),
    flags=(),
    uses={
        "semantic": _USE.format("FOLDER", "COARSE", "FINE"),
        "coarse": _USE.format("SEMANTIC", "FOLDER", "FINE"),
        "fine": _USE.format("SEMANTIC", "COARSE", "FOLDER"),
    },
    examples={
        "train": "hiermusic train --config=configs/hafm/semantic.py:tiny --workdir=out/semantic "
        "--config.data.path=STREAMS",
        "inspect": "hiermusic inspect --config=configs/hafm/coarse.py:paper --json",
        "compile": "hiermusic compile --config=configs/hafm/coarse.py:paper --topology=v6e:4x4 --config.mesh.fsdp=16",
    },
    load=_rooms,
)
