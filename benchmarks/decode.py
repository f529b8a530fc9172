"""What a step of decoding costs: ours beside transformers and a cached torch loop written by hand.

    pip install torch transformers
    python benchmarks/decode.py
    python benchmarks/decode.py --sizes=2x768 --positions=8192 --batches=1 --repeats=9

The same Llama-like sizes in all three, random weights, top-50 sampling, codes of two levels in turn. A song's first
half is known, and a piece is 64 steps about its middle, so that what grows with the position counts as it does over a
whole song. Columns: CPU and wall milliseconds of a step, median (lowest-highest); CPU time over that of the loop;
seconds until the first 64 steps are there (imports, weights, compiling, the known half); peak memory in GiB.
The three are processes of their own on the same cores, taking turns.
"""

import argparse
import os
import sys

from side_by_side import compare, contend, row, tick

STEPS = 64  # of a piece
CODES = 1024
TOP_K = 50
SIZES = {  # layers, width, heads, key-value heads, ffn width
    "4x512": (4, 512, 8, 4, 1408),
    "12x768": (12, 768, 12, 4, 2048),
    "2x768": (2, 768, 12, 4, 2048),
}
HEAD_DIM, BASE, EPS = 64, 10_000.0, 1e-6
NAMES = ("loop", "ours", "transformers")


def begin(case: dict) -> int:
    """How many positions are known: the pieces that are timed lie around the middle."""
    return max(case["positions"] // 2 - STEPS * (case["repeats"] // 2 + 2), STEPS) // STEPS * STEPS


def ours(case: dict) -> None:
    import jax
    import numpy as np
    from flax import nnx

    from hiermusic.generate import autoregressive
    from hiermusic.nn.config import TransformerConfig
    from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
    from hiermusic.tokens import pattern

    layers, width, heads, kv_heads, ffn = SIZES[case["size"]]
    trunk = TransformerConfig(
        layers, width, heads, kv_heads, HEAD_DIM, ffn, norm_eps=EPS, rope_base=BASE, dtype=case["dtype"]
    )
    config = TokenLMConfig(trunk, levels=2, codes=CODES, text_size=2)
    model = jax.jit(lambda: TokenLM(config, rngs=nnx.Rngs(jax.random.key(0, impl="rbg"))).unstack())()
    B, frames = case["batch"], case["positions"] // 2
    known = np.random.default_rng(0).integers(0, CODES, (B, 2, begin(case) // 2))
    autoregressive.generate(
        model,
        [[0]] * B,
        [pattern.flatten((frames, frames))] * B,
        seeds=range(B),
        sizes=(CODES, CODES),
        top_k=TOP_K,
        given=list(known),
        progress=lambda done, total: tick(),
    )


def _torch(case: dict):
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    return torch, getattr(torch, case["dtype"])


def loop(case: dict) -> None:
    torch, dtype = _torch(case)
    import torch.nn.functional as F

    layers, D, N, M, ffn = SIZES[case["size"]]
    B, S, H = case["batch"], case["positions"], HEAD_DIM
    G = N // M

    def weight(*shape):
        return torch.randn(shape).mul_(0.02).to(dtype)

    tables, heads = weight(2, CODES, D), weight(2, CODES, D)
    blocks = [
        {
            "norms": torch.ones(2, D, dtype=dtype),
            "qkv": weight((N + 2 * M) * H, D),
            "out": weight(D, N * H),
            "up": weight(2 * ffn, D),
            "down": weight(D, ffn),
            "keys": torch.zeros(B, M, S, H, dtype=dtype),
            "values": torch.zeros(B, M, S, H, dtype=dtype),
        }
        for _ in range(layers)
    ]
    last_norm = torch.ones(D, dtype=dtype)
    angles = torch.arange(S)[:, None] * BASE ** (-torch.arange(0, H, 2) / H)
    cos, sin = (f(angles).to(dtype) for f in (torch.cos, torch.sin))

    def rotate(x, start):
        left, right = x.chunk(2, -1)
        c, s = cos[start : start + x.shape[2]], sin[start : start + x.shape[2]]
        return torch.cat((left * c - right * s, right * c + left * s), -1)

    def forward(x, start):
        s = x.shape[1]
        stop = start + s
        for block in blocks:
            qkv = F.linear(F.rms_norm(x, (D,), block["norms"][0], EPS), block["qkv"]).view(B, s, N + 2 * M, H)
            q, k, v = qkv.transpose(1, 2).split((N, M, M), 1)
            block["keys"][:, :, start:stop], block["values"][:, :, start:stop] = rotate(k, start), v
            keys, values = block["keys"][:, :, :stop], block["values"][:, :, :stop]
            q = rotate(q, start)
            if s == 1:  # the heads of a group are the rows of one product: no key is repeated
                weights = (q.reshape(B, M, G, H) @ keys.transpose(-1, -2)).mul_(H**-0.5)
                y = (weights.softmax(-1) @ values).reshape(B, 1, N * H)
            else:
                y = F.scaled_dot_product_attention(q, keys, values, is_causal=True, enable_gqa=True)
                y = y.transpose(1, 2).reshape(B, s, N * H)
            x = x + F.linear(y, block["out"])
            gate, up = F.linear(F.rms_norm(x, (D,), block["norms"][1], EPS), block["up"]).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, block["down"])
        return F.rms_norm(x[:, -1], (D,), last_norm, EPS)

    first = begin(case)
    known = torch.randint(CODES, (B, first))
    levels = torch.arange(first) % 2
    x = forward(tables[levels, known], 0)
    for position in range(first, S):
        level = position % 2
        values, indices = F.linear(x, heads[level]).float().topk(TOP_K, -1)
        code = indices.gather(1, torch.multinomial(values.softmax(-1), 1))
        x = forward(tables[level, code], position)
        if (position + 1 - first) % STEPS == 0:
            tick()


def transformers(case: dict) -> None:
    torch, dtype = _torch(case)
    from transformers import LlamaConfig, LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

    layers, width, heads, kv_heads, ffn = SIZES[case["size"]]
    config = LlamaConfig(
        vocab_size=2 * CODES,
        hidden_size=width,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=case["positions"],
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).to(dtype).eval()

    class Ticking(StoppingCriteria):
        def __call__(self, ids, scores, **_):
            if (ids.shape[1] - first) % STEPS == 0:
                tick()
            return torch.zeros(len(ids), dtype=torch.bool)

    first = begin(case)
    known = torch.randint(2 * CODES, (case["batch"], first))
    model.generate(
        known,
        attention_mask=torch.ones_like(known),
        max_new_tokens=case["positions"] - first,
        do_sample=True,
        top_k=TOP_K,
        stopping_criteria=StoppingCriteriaList([Ticking()]),
    )


def main() -> None:
    if sys.argv[1:2] == ["--contender"]:
        import json

        name, case = sys.argv[2], json.loads(sys.argv[3])
        contend(lambda: globals()[name](case))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="4x512,12x768", help=f"of {', '.join(SIZES)}")
    parser.add_argument("--positions", default="1024,8192")
    parser.add_argument("--batches", default="1,8", help="songs at once; only one is made of 8,192 positions")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cores", default="0", help="the cores that all share")
    parser.add_argument("--contenders", default=",".join(NAMES))
    given = parser.parse_args()
    names = given.contenders.split(",")
    print("| case | CPU, ms a step | wall, ms a step | CPU / loop | first 64 steps, s | peak, GiB |")
    print("|---|---|---|---|---|---|")
    for size in given.sizes.split(","):
        for positions in map(int, given.positions.split(",")):
            for batch in map(int, given.batches.split(",")):
                if batch > 1 and positions > 4096:
                    continue
                case = {"size": size, "positions": positions, "batch": batch, "dtype": given.dtype}
                case["repeats"] = given.repeats
                found = compare(__file__, dict.fromkeys(names, case), given.repeats, given.cores)
                for name in names:
                    title = f"{size}, {positions:,} positions, B={batch}: {name}"
                    print(row(title, found[name], found[names[0]], STEPS), flush=True)


if __name__ == "__main__":
    main()
