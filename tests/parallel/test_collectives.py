"""Collectives are read from HLO: from text, and from programs compiled for eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from hiermusic.parallel.collectives import Collective, collectives
from hiermusic.parallel.mesh import make_mesh

LOOP = """
HloModule jit_f, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%async_fusion (p: bf16[1,128]) -> bf16[4,128] {
  %p = bf16[1,128]{1,0:T(8,128)(2,1)} parameter(0)
  ROOT %gather.1 = bf16[4,128]{1,0} all-gather(%p), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%async_fusion.2 (q: bf16[1,128]) -> bf16[4,128] {
  %q = bf16[1,128]{1,0} parameter(0)
  ROOT %gather.2 = bf16[4,128]{1,0} all-gather(%q), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

%inner_body (t: (s32[], f32[64])) -> (s32[], f32[64]) {
  %t = (s32[]{:T(128)}, f32[64]{0:T(128)S(1)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%t), index=0
  %y = f32[64]{0:T(128)S(1)} get-tuple-element(%t), index=1
  %moved = (f32[64]{0}, f32[64]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%y), channel_id=3
  %done = f32[64]{0} collective-permute-done(%moved)
  ROOT %next.1 = (s32[]{:T(128)}, f32[64]{0:T(128)}) tuple(%j, %done)
}

%inner_condition (t: (s32[], f32[64])) -> pred[] {
  %end.1 = s32[]{:T(128)} constant(9)
  %t.1 = (s32[]{:T(128)}, f32[64]{0}) parameter(0)
  %j.1 = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  ROOT %less.1 = pred[]{:T(512)} compare(%j.1, %end.1), direction=LT
}

%body (s: (s32[], f32[64])) -> (s32[], f32[64]) {
  %s = (s32[]{:T(128)}, f32[64]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s), index=0
  %x = f32[64]{0:T(128)} get-tuple-element(%s), index=1
  %reduced = f32[64]{0} all-reduce(%x), channel_id=1, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}
  %one = s32[]{:T(128)} constant(1)
  %pair = (s32[]{:T(128)}, f32[64]{0:T(128)}) tuple(%one, %reduced)
  %while.1 = (s32[]{:T(128)}, f32[64]{0}) while(%pair), condition=%inner_condition, body=%inner_body
  ROOT %next = (s32[]{:T(128)}, f32[64]{0}) tuple(%i, %reduced)
}

%condition (s: (s32[], f32[64])) -> pred[] {
  %end = s32[]{:T(128)} constant(24)
  %s.1 = (s32[]{:T(128)}, f32[64]{0}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i.1, %end), direction=LT
}

ENTRY %main (v: f32[64], w: bf16[1,128]) -> f32[64] {
  %v = f32[64]{0:T(128)} parameter(0)
  %w = bf16[1,128]{1,0} parameter(1)
  %fusion.1 = bf16[4,128]{1,0} fusion(%w), kind=kCustom, calls=%async_fusion
  %fusion.2 = bf16[4,128]{1,0} fusion(%w), kind=kCustom, calls=%async_fusion.2
  %zero = s32[]{:T(128)} constant(START)
  %init = (s32[]{:T(128)}, f32[64]{0:T(128)}) tuple(%zero, %v)
  %while = (s32[]{:T(128)}, f32[64]{0:T(128)}) while(%init), condition=%condition, body=%body
  ROOT %out = f32[64]{0:T(128)} get-tuple-element(%while), index=1
}
"""


def test_loops_multiply_and_a_channel_counts_once():
    assert collectives(LOOP.replace("START", "0")) == [
        Collective("collective-permute", 0, 24 * 8, 24 * 8 * 256),
        Collective("all-reduce", 4, 24, 24 * 256),
        Collective("all-gather", 4, 1, 4 * 128 * 2),
    ]


def test_loops_of_unknown_length_count_once_and_are_told():
    text = LOOP.replace("constant(START)", "negate(%n)")
    rows = {row.kind: row for row in collectives(text)}
    assert (rows["all-reduce"].count, rows["all-reduce"].loops_known) == (1, False)
    assert (rows["collective-permute"].count, rows["collective-permute"].loops_known) == (8, False)
    assert rows["all-gather"].loops_known


@pytest.mark.parametrize(
    ("before", "after", "kind", "devices", "size"),
    [
        (P("tensor"), P(), "all-gather", 4, 4096),
        (P("data"), P(), "all-gather", 2, 4096),
        (P("tensor"), P(None, "tensor"), "all-to-all", 4, 1024),
    ],
)
def test_resharding_of_a_compiled_program(before, after, kind, devices, size):
    mesh = make_mesh({"data": 2, "tensor": 4})
    x = jax.ShapeDtypeStruct((32, 32), jnp.float32, sharding=NamedSharding(mesh, before))
    compiled = jax.jit(lambda x: x * 2, out_shardings=NamedSharding(mesh, after)).lower(x).compile()
    (row,) = collectives(compiled.as_text())
    assert (row.kind, row.devices, row.count, row.bytes) == (kind, devices, 1, size)


def test_a_scan_over_layers_reduces_once_a_layer():
    mesh = make_mesh({"tensor": 8})
    weights = jax.ShapeDtypeStruct((5, 16, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, None, "tensor")))

    def run(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w) @ w.T, None), x, weights)[0]

    x = jax.ShapeDtypeStruct((4, 16), jnp.float32, sharding=NamedSharding(mesh, P()))
    rows = collectives(jax.jit(run).lower(x, weights).compile().as_text())
    assert rows == [Collective("all-reduce", 8, 5, 5 * 4 * 16 * np.dtype(np.float32).itemsize)]
