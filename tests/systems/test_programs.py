"""What a program of generation asks of a mesh, told from shapes alone."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec import chunked
from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.codec.seanet import SeanetConfig
from hiermusic.codec.segments import SegmentsConfig
from hiermusic.parallel.mesh import make_mesh
from hiermusic.parallel.roofline import Load
from hiermusic.systems import programs

from .fakes import configuration


def load(sizes: dict[str, int], **model) -> Load:
    """Of one pass of Khala's second model over four songs."""
    config = configuration("khala/superres:tiny", **model)
    config.train.batch_size = 4
    (job,) = programs.generation(config, make_mesh(sizes, jax.devices()[: math.prod(sizes.values())]))
    return job.load()


def test_a_mesh_shares_the_work_and_adds_none_to_it():
    one, four = load({"data": 1}), load({"data": 2, "fsdp": 2})
    assert (four.flops, four.tokens, four.seconds) == (one.flops, one.tokens, one.seconds) and one.flops > 0


def test_what_travels_is_of_the_type_that_is_computed_in():
    moved = {}
    for dtype in ("float32", "bfloat16"):
        transfers = load({"tensor": 2}, dtype=dtype, kv_heads=2).transfers
        moved[dtype] = sum(transfer.bytes for transfer in transfers if transfer.axis == "tensor")
    assert moved["float32"] == 2 * moved["bfloat16"] > 0


def test_segments_are_decoded_as_many_at_once_as_decoding_takes(batches):
    """What is compiled for eight devices has the shapes of what a long song runs there."""
    segments = SegmentsConfig(samples=240, overlap=0.05, hop=12, loudness=0.2)
    trunk = SeanetConfig(strides=(2, 6), width=4, latent=6, norm="group", ragged=True, lstm_layers=0)
    config = CodecConfig(1200, 1, trunk, QuantiserConfig(levels=3, codes=16), segments=segments)
    made = programs.decoding(config, 8)
    codec = Codec(config, rngs=nnx.Rngs(0))
    wav_LC = chunked.decode_long(codec, np.zeros((20 * 100, 3), np.uint16))
    codes, ends = made.arguments[2:]
    assert batches == [codes.shape] * 2 and ends.shape == codes.shape[:1]
    assert made.tokens == 64 * 20 * 3 and made.positions == 20
    assert made.seconds == pytest.approx(len(wav_LC) / 1200 * 64 / 100, rel=0.01)
