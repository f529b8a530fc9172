"""SAT and AAR (arXiv 2408.09027): a multi-scale audio tokenizer, and a model that predicts scale after scale.

SAT codes a window (one second) in 16 scales of 1 to 75 tokens. AAR predicts all tokens of a scale at once from the
coarser ones, in 16 passes (next-scale, block-causal). The baseline is the same transformer over the residual codes of
the same trunk, one token after another (flatten or delay, causal). Longer music is windows one after another: AAR's
windows read the last latent frames of the one before, the baseline's begin with its last codes.
"""

from dataclasses import replace

from hiermusic.systems.requests import LIKE, TEXT
from hiermusic.systems.system import CODEC, SAMPLING, USE_OF_A_CODEC, Flag, Rooms, System


def _rooms() -> Rooms:
    from hiermusic.systems.aar import demo, measures, models, published, songs, stages

    return Rooms(
        make_model=models.make_model,
        stage=stages.stage,
        inspect=measures.inspect,
        cross_entropy=measures.cross_entropy,
        program=songs.program,
        generate=songs.generate,
        demo=demo.demo,
        families=published.FAMILIES,
    )


_GENERATE = "hiermusic generate --lm=FOLDER --codec=CODEC --like=clip.wav --seconds=6 --out=songs"

SYSTEM = System(
    name="aar",
    title="AAR",
    stages=("codec", "lm", "ar_baseline"),
    sizes=frozenset(
        "sample_rate channels fold strides width latent code_latent codes levels window depth cond phi_kernel".split()
    ),
    flags=(
        Flag("lm", "workdir of a trained lm or ar_baseline", "model"),
        CODEC,
        LIKE,
        TEXT,
        Flag("clap", "folder of an imported CLAP: what --text, or a clip, means to a model that takes vectors", "else"),
        *SAMPLING[:-1],
        replace(SAMPLING[-1], text="guidance scale, 1 = none; grown to from coarse to fine; default: the workdir's"),
    ),
    uses={"codec": USE_OF_A_CODEC, "lm": _GENERATE, "ar_baseline": _GENERATE},
    examples={
        "train": "hiermusic train --config=configs/aar/codec.py:tiny --workdir=out/sat "
        "--config.data.path=FOLDER_OF_MUSIC",
        "inspect": "hiermusic inspect --config=configs/aar/lm.py:paper --json",
        "compile": "hiermusic compile --config=configs/aar/lm.py:paper --topology=v6e:4x4 --config.mesh.fsdp=16",
        "generate": "hiermusic generate --lm=out/aar --like=clip.wav --seconds=6 --out=out/songs",
        "continue": "hiermusic continue --lm=out/aar --seconds=6 --out=out/songs in.wav",
    },
    load=_rooms,
    places=("data.clap",),
    kinds=("sat", "aar"),
)
