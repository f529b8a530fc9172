"""Khala (arXiv:2605.01790): a 64-layer codec, a causal backbone on layers 0 and 1, layer-wise super-resolution.

The backbone reads and predicts q0 q1 of every frame in turn (flatten, causal). The super-resolution model predicts
layer k of all frames at once from layers below k (layer-wise, full attention), trained together with causal
prediction of q0 so that it keeps listening to the words (Task 0).
"""

from hiermusic.systems.khala import demo, measures, models, songs, stages
from hiermusic.systems.system import USE_OF_A_CODEC, System

SYSTEM = System(
    name="khala",
    title="Khala",
    stages=("codec", "backbone", "superres"),
    sizes=models.SIZES,
    make_model=models.make_model,
    stage=stages.stage,
    inspect=measures.inspect,
    cross_entropy=measures.cross_entropy,
    program=songs.program,
    generate=songs.generate,
    flags=songs.FLAGS,
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
    demo=demo.demo,
    versions=("backbone",),
)
