"""A fifth system, as small as one can be: the levels of a sound's samples, each drawn by the one before it."""

from hiermusic.systems.demos import Demo
from hiermusic.systems.system import Rooms, System

from . import measures, models, songs, stages

SYSTEM = System(
    name="toy",
    title="Toy",
    stages=("chain",),
    sizes=frozenset({"codes", "length"}),
    flags=songs.FLAGS,
    uses={"chain": "hiermusic generate --chain=FOLDER --seconds=1 --out=songs"},
    examples={"generate": "hiermusic generate --chain=out/toy --seconds=1 --out=out/songs"},
    load=lambda: Rooms(
        make_model=models.make_model,
        stage=stages.stage,
        inspect=measures.inspect,
        cross_entropy=measures.cross_entropy,
        program=lambda config, rows: NotImplemented,
        generate=songs.generate,
        demo=lambda folder, configs: Demo("Toy", "", {}, [], {}, {}),
    ),
    versions=("echo",),
    places=("data.seeds",),
)
