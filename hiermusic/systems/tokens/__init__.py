"""Token models of any records in any order of prediction: those of one codec in the order of another.

`systems/lm/` is what they are made of; here stands what a person asks of them. Flattened, delayed, parallel and
level-major codes are predicted one position after another, layer-wise and next-scale ones level after level.
"""

from hiermusic.systems.requests import WORDS
from hiermusic.systems.system import CODEC, SAMPLING, Flag, Rooms, System


def _rooms() -> Rooms:
    from hiermusic.systems.lm import measures, models, stages
    from hiermusic.systems.lm import songs as lm
    from hiermusic.systems.tokens import demo, songs

    return Rooms(
        make_model=models.make_model,
        stage=stages.stage,
        inspect=measures.inspect,
        cross_entropy=measures.cross_entropy,
        program=lm.program,
        generate=songs.generate,
        demo=demo.demo,
    )


SYSTEM = System(
    name="tokens",
    title="Tokens",
    stages=("lm",),
    sizes=frozenset("length text_limit layers width heads kv_heads head_dim ffn_width".split()),
    flags=(Flag("lm", "workdir of a trained lm", "model"), CODEC, *WORDS, *SAMPLING),
    uses={"lm": "hiermusic generate --lm=FOLDER --codec=CODEC --tags='pop, piano' --seconds=8 --out=songs"},
    examples={
        "train": "hiermusic train --config=configs/tokens/lm.py:tiny --workdir=out/lm --config.data.path=TOKENS "
        "--config.model.pattern=delay",
        "inspect": "hiermusic inspect --config=configs/tokens/lm.py:base --json",
        "compile": "hiermusic compile --config=configs/tokens/lm.py:base --topology=v6e:4x4 --config.mesh.fsdp=16",
        "generate": "hiermusic generate --lm=out/lm --tags='pop, piano' --seconds=8 --out=out/songs",
        "continue": "hiermusic continue --lm=out/lm --tags='pop, piano' --seconds=8 --out=out/songs in.wav",
    },
    load=_rooms,
)
