"""Token models of any records in any order of prediction, and the codecs that the world has: EnCodec and DAC.

`systems/lm/` is what token models are made of; here stands what a person asks of them. Flattened, delayed, parallel and
level-major codes are predicted one position after another, layer-wise and next-scale ones level after level.
"""

from hiermusic.systems.requests import WORDS
from hiermusic.systems.system import CODEC, SAMPLING, USE_OF_A_CODEC, Flag, Rooms, System


def _rooms() -> Rooms:
    from hiermusic.systems.tokens import demo, measures, models, songs, stages

    return Rooms(
        make_model=models.make_model,
        stage=stages.stage,
        inspect=measures.inspect,
        cross_entropy=measures.cross_entropy,
        likelihood=measures.likelihood,
        program=songs.program,
        generate=songs.generate,
        demo=demo.demo,
    )


SYSTEM = System(
    name="tokens",
    title="Tokens",
    stages=("codec", "semantic", "lm"),
    sizes=frozenset(
        "sample_rate channels fold strides dilations encoder_width decoder_width latent kernel last_kernel "
        "residual_kernel compress codes code_width length text_limit layers width heads kv_heads head_dim "
        "ffn_width".split()
    ),
    flags=(Flag("lm", "workdir of a trained lm", "model"), CODEC, *WORDS, *SAMPLING),
    uses={
        "codec": USE_OF_A_CODEC,
        "semantic": "hiermusic tokenize --stream=vocals/semantic:FOLDER --data=CORPUS --out=TOKENS",
        "lm": "hiermusic generate --lm=FOLDER --codec=CODEC --tags='pop, piano' --seconds=8 --out=songs",
    },
    examples={
        "train": "hiermusic train --config=configs/tokens/lm.py:tiny --workdir=out/lm --config.data.path=TOKENS "
        "--config.model.pattern=delay",
        "inspect": "hiermusic inspect --config=configs/tokens/lm.py:base --json",
        "compile": "hiermusic compile --config=configs/tokens/lm.py:base --topology=v6e:4x4 --config.mesh.fsdp=16",
        "generate": "hiermusic generate --lm=out/lm --tags='pop, piano' --seconds=8 --out=out/songs",
        "continue": "hiermusic continue --lm=out/lm --tags='pop, piano' --seconds=8 --out=out/songs in.wav",
    },
    load=_rooms,
    tokenizers=("codec", "semantic"),
    places=("model.encoder",),
)
