"""PyramidCodec (EMNLP Findings 2024): a codec of levels at rising rates, and a model that goes from abstract to detail.

The codec codes music in levels of 10.77, 21.53 and 43.07 tokens a second, of which each finer one adds detail to what
the coarser ones give: a quarter of the band, half of it, all. The language model predicts a whole coarse level, then
the next (level-major, causal).
"""

from hiermusic.systems.requests import WORDS
from hiermusic.systems.system import CODEC, SAMPLING, USE_OF_A_CODEC, Flag, Rooms, System


def _rooms() -> Rooms:
    from hiermusic.systems.pyramid import demo, measures, models, songs, stages

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
    name="pyramid",
    title="PyramidCodec",
    stages=("codec", "lm"),
    sizes=frozenset(
        "sample_rate channels fold strides dilations encoder_width decoder_width latent books level_strides codes "
        "code_width length text_limit layers width heads kv_heads head_dim ffn_width".split()
    ),
    flags=(
        Flag("lm", "workdir of a trained lm", "model"),
        Flag("finer_lms", "workdirs of the lms of further levels, by commas, given those of --lm", "else"),
        CODEC,
        *WORDS,
        *SAMPLING,
        Flag("levels", "how many levels to make, coarse first; default: all", "sampling", int, 1),
        Flag("levels_too", "also write NAME.levels_1.wav and so on, the song after so many levels", "else", bool),
    ),
    uses={
        "codec": USE_OF_A_CODEC,
        "lm": "hiermusic generate --lm=FOLDER --codec=CODEC --seconds=8 --out=songs",
    },
    examples={
        "train": "hiermusic train --config=configs/pyramid/codec.py:tiny --workdir=out/codec "
        "--config.data.path=FOLDER_OF_MUSIC",
        "inspect": "hiermusic inspect --config=configs/pyramid/codec.py:paper --json",
        "compile": "hiermusic compile --config=configs/pyramid/codec.py:paper --topology=v6e:4x4 --config.mesh.fsdp=16",
        "generate": "hiermusic generate --lm=out/lm --seconds=8 --out=out/songs",
        "continue": "hiermusic continue --lm=out/lm --seconds=8 --out=out/songs in.wav",
    },
    load=_rooms,
    versions=tuple(f"levels_{number}" for number in range(1, 8)),
)
