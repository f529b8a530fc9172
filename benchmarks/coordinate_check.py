"""Coordinate check: does the size of activations depend on width once training has begun?

    python benchmarks/coordinate_check.py --out=out/coordinates.png

Trains a small token model of growing width for a few steps at one learning rate, with and without `base_width`, and
tells how mean |activation| after every layer, mean |logit|, and mean |change| of both since the start grow with width:
the slope of log(size) against log(width), 0 for a rule that carries over (Tensor Programs V, arXiv:2203.03466,
figure 5 and appendix D.1). Logits at the start shrink like width^-1/2 under muP by design; their change does not.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.tokens.visibility import Visibility
from hiermusic.train.optimiser import OptimiserConfig

HEAD_DIM, LEVELS, CODES, ROWS, LENGTH = 16, 2, 32, 8, 32


def model_of(width: int, base_width: int, layers: int, seed: int) -> TokenLM:
    """A token model whose heads and feed-forward width grow with its width."""
    heads = width // HEAD_DIM
    trunk = TransformerConfig(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=heads,
        head_dim=HEAD_DIM,
        ffn_width=2 * width,
        dtype="float32",
        base_width=base_width,
    )
    return TokenLM(TokenLMConfig(trunk, levels=LEVELS, codes=CODES), rngs=nnx.Rngs(seed))


def batch_of(seed: int) -> dict[str, jax.Array]:
    """Random codes, each predicting the next, levels in turn."""
    codes_BS = np.random.default_rng(seed).integers(CODES, size=(ROWS, LENGTH + 1))
    turn_SK = np.arange(LENGTH)[:, None] % LEVELS == np.arange(LEVELS)
    reads_BSK = np.where(turn_SK, codes_BS[:, :-1, None], -1)
    targets_BSK = np.where(np.roll(turn_SK, 1, axis=1), codes_BS[:, 1:, None], -1)
    text_BS = np.full((ROWS, LENGTH), -1)
    return {name: jnp.asarray(v) for name, v in (("text", text_BS), ("reads", reads_BSK), ("targets", targets_BSK))}


def coordinates(model: TokenLM, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The residual stream after every layer, before the final norm, and the logits of level 0."""
    x_BSD = model.embed(batch["text"], batch["reads"])
    found = {"embedding": x_BSD}
    trunk = model.trunk.unstack()
    layers = list(trunk.layers)
    trunk.final_norm = lambda x_BSD: x_BSD
    for count in range(1, len(layers) + 1):
        trunk.layers = nnx.List(layers[:count])
        found[f"layer {count}"] = trunk(x_BSD, visibility=Visibility.causal())
    hidden_BSD = model.trunk(x_BSD, visibility=Visibility.causal())
    return found | {"logits": model.level_logits(hidden_BSD, 0)}


def sizes(
    width: int, base_width: int, *, steps: int, layers: int, learning_rate: float, optimiser: str, seed: int
) -> list[dict[str, float]]:
    """Mean |x| of every coordinate after 0, 1, ... `steps` updates, and from the first on mean |x - x at the start|."""
    model, batch = model_of(width, base_width, layers, seed), batch_of(seed)
    config = OptimiserConfig(
        optimiser=optimiser, learning_rate=learning_rate, warmup_steps=0, schedule="constant", weight_decay=0.0
    )
    state = nnx.Optimizer(model, config.transform(model, steps), wrt=nnx.Param)

    @nnx.jit
    def update(model, state):
        def loss(model):
            return model.loss(batch, visibility=Visibility.causal())[0]

        state.update(model, nnx.grad(loss)(model))

    look = nnx.jit(lambda model: coordinates(model, batch))
    start = look(model)
    rows = [{name: float(jnp.abs(x).mean()) for name, x in start.items()}]
    for _ in range(steps):
        update(model, state)
        now = look(model)
        size = {name: float(jnp.abs(x).mean()) for name, x in now.items()}
        change = {f"change of {name}": float(jnp.abs(x - start[name]).mean()) for name, x in now.items()}
        rows.append(size | change)
    return rows


def slope(widths: list[int], values: list[float]) -> float:
    """Of log(value) against log(width)."""
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


def table(widths: list[int], runs: list[list[dict[str, float]]]) -> list[str]:
    """One line for each step and coordinate: its size at every width, and the slope."""
    lines = [f"| step | mean absolute | {' | '.join(map(str, widths))} | slope |", "|---" * (len(widths) + 3) + "|"]
    for step in range(len(runs[0])):
        for name in runs[0][step]:
            values = [run[step][name] for run in runs]
            cells = " | ".join(f"{value:.3g}" for value in values)
            lines.append(f"| {step} | {name} | {cells} | {slope(widths, values):+.2f} |")
    return lines


def draw(widths: list[int], results: dict[str, list[list[dict[str, float]]]], path: Path) -> None:
    """One panel a rule: the size of the last layer and the change of the logits against width, a line for each step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in next(iter(results.values()))[0][-1] if name.startswith("change of layer")][-1:]
    names += ["change of logits"]
    figure, axes = plt.subplots(len(names), len(results), figsize=(9, 7), sharex=True, sharey="row", squeeze=False)
    for column, (title, runs) in zip(axes.T, results.items(), strict=True):
        for axis, name in zip(column, names, strict=True):
            for step in range(1, len(runs[0])):
                axis.loglog(widths, [run[step][name] for run in runs], marker="o", label=f"step {step}")
            axis.set_title(f"{title}: {name}", fontsize=10)
            axis.set_xticks(widths, [str(width) for width in widths])
            axis.minorticks_off()
    axes[0, 0].legend(fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("width")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--base_width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=3e-3)
    parser.add_argument("--optimiser", default="adamw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("out/coordinates.png"))
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("steps", "layers", "learning_rate", "optimiser", "seed")}
    results = {}
    for title, base in (("without base_width", 0), (f"base_width={options.base_width}", options.base_width)):
        results[title] = [sizes(width, base, **settings) for width in options.widths]
        print(f"\n{title}\n")
        print("\n".join(table(options.widths, results[title])))
    draw(options.widths, results, options.out)
    print(f"\n{options.out}")


if __name__ == "__main__":
    main()
