"""Khala (arXiv:2605.01790): a 64-level codec, a causal backbone on levels 0 and 1, layer-wise super-resolution.

The backbone reads and predicts q0 q1 of every frame in turn (flatten, causal). The super-resolution model predicts
level k of all frames at once from levels below k (layer-wise, full attention), trained together with causal
prediction of q0 so that it keeps listening to the words (Task 0).
"""

from hiermusic.systems.requests import WORDS
from hiermusic.systems.system import CODEC, SAMPLING, USE_OF_A_CODEC, Flag, Rooms, System


def _rooms() -> Rooms:
    from hiermusic.systems.khala import demo, measures, models, published, songs, stages

    return Rooms(
        make_model=models.make_model,
        stage=stages.stage,
        inspect=measures.inspect,
        cross_entropy=measures.cross_entropy,
        likelihood=measures.likelihood,
        program=songs.program,
        generate=songs.generate,
        demo=demo.demo,
        families={"khala": published.FAMILY},
        formats={"shao": published.write},
    )


SYSTEM = System(
    name="khala",
    title="Khala",
    stages=("codec", "backbone", "superres"),
    sizes=frozenset(
        "sample_rate channels fold strides dilations encoder_width decoder_width latent "
        "codes length text_limit layers width heads kv_heads head_dim ffn_width".split()
    ),
    flags=(
        Flag("superres", "workdir of a super-resolution model; without it the backbone's levels only", "model"),
        Flag("backbone", "workdir of a backbone; default: the one --superres was started from", "model"),
        CODEC,
        *WORDS,
        *SAMPLING,
        Flag(
            "min_share",
            "share of the asked length before which no song may end; default: 0",
            "sampling",
            float,
            0.0,
            1.0,
        ),
        Flag("backbone_too", "also write NAME.backbone.wav, the backbone's levels alone", "else", bool),
    ),
    uses={
        "codec": USE_OF_A_CODEC,
        "backbone": "hiermusic generate --backbone=FOLDER --codec=CODEC --tags='pop, piano' --seconds=8 --out=songs",
        "superres": "hiermusic generate --superres=FOLDER --backbone=BACKBONE --codec=CODEC --tags='pop, piano' "
        "--seconds=8 --out=songs",
    },
    examples={
        "train": "hiermusic train --config=configs/khala/codec.py:tiny --workdir=out/codec "
        "--config.data.path=FOLDER_OF_MUSIC",
        "inspect": "hiermusic inspect --config=configs/khala/backbone.py:paper --json",
        "compile": "hiermusic compile --config=configs/khala/backbone.py:paper --topology=v6e:16x16 "
        "--config.mesh.fsdp=16",
        "generate": "hiermusic generate --superres=out/superres --tags='pop, piano' --lyrics='la la' --seconds=8 "
        "--out=out/songs",
        "continue": "hiermusic continue --superres=out/superres --tags='pop, piano' --seconds=8 --out=out/songs in.wav",
    },
    load=_rooms,
    versions=("backbone",),
    kinds=("khala",),
    formats={"shao": "the files of Khala's release, of each model that is named"},
)
