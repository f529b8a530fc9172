"""Batches, configurations and traced steps of the models that `accelerator.py` runs."""

from accelerator_tools import Record, configuration


def token_batch(config, rows: int, seed: int = 0, ragged: bool = False) -> Record:
    """Rows of random text and codes that fill the model's context; every second one half of it where `ragged`."""
    import numpy as np

    from hiermusic.systems.lm.models import vocabulary
    from hiermusic.tokens import pattern, sequence

    model, ids, rng = config.model, vocabulary(config.model), np.random.default_rng(seed)
    text = rng.integers(256, size=min(model.text_limit // 2, model.length // 8, 256)).tolist()
    packed = []
    for row in range(rows):
        room = model.length // (2 if ragged and row % 2 else 1) - len(text) - 1
        if config.stage == "backbone":
            codes = rng.integers(config.tokens.codes, size=(model.levels, room // model.levels))
            layout = pattern.flatten((codes.shape[1],) * model.levels)
            packed.append(sequence.pack(text, layout, codes, model.length, end=ids.eos))
        else:
            codes = rng.integers(config.tokens.codes, size=(model.levels, room))
            layout = pattern.layer_pass((room,) * model.levels, model.levels // 2)
            packed.append(sequence.pack(text, layout, codes, model.length, level=model.levels // 2))
    return sequence.stack(packed)


def training_config(name: str, preset: str, rows: int):
    config = configuration(name, preset)
    config.model.dtype, config.model.dropout, config.train.batch_size = "bfloat16", 0.0, rows
    return config


def paper_step(name: str, rows: int, remat: str):
    """A training step at the size of `paper`, traced."""
    import jax

    from hiermusic.parallel.mesh import make_mesh
    from hiermusic.systems.khala import stages as khala

    config = training_config(name, "paper", rows)
    config.model.remat = remat
    mesh = make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        return traced(khala.stage(config), token_batch(config, rows), mesh)[0]


def traced(stage, batch: Record, mesh):
    """The last kind of step that the loop comes to, traced; what it takes besides state and batch; where states lie."""
    import jax
    import numpy as np

    from hiermusic.parallel.mesh import shardings
    from hiermusic.train.loop import LIMITS, abstract_state, make_update

    graphdef, abstract = abstract_state(stage, 0)
    placement = shardings(abstract, mesh)
    shapes = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, placement)
    rest = np.int32(0), np.full(LIMITS.shape, np.inf, np.float32)
    update = make_update(stage, graphdef, mesh, placement, 0)
    return update.trace(shapes, batch, *rest, stage.examples()[-1][0]), rest, placement
