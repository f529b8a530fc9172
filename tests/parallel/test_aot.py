"""What the compiler says: when memory does not suffice, and when its program cannot be read back."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from hiermusic.parallel.aot import Job, examine, out_of_memory
from hiermusic.parallel.chips import CHIPS
from hiermusic.parallel.mesh import make_mesh
from hiermusic.parallel.roofline import Load

HBM = (
    "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
    "temporaries (17.20G) exceeds available HBM (15.75G). HLO module: jit_update.\nSee https://openxla.org/xla/errors"
)


def test_words_of_the_compiler():
    told = out_of_memory(HBM, CHIPS["v5e"])
    assert told == {"memory": "HBM", "wanted": 17.20 * 2**30, "available": 15.75 * 2**30}
    older = "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 31.05M of 16.00M vmem."
    assert out_of_memory(older, CHIPS["v5e"]) == {"memory": "VMEM", "wanted": 31.05 * 2**20, "available": 2.0**24}
    assert out_of_memory("RESOURCE_EXHAUSTED", CHIPS["v5e"]) == {"memory": "HBM", "wanted": None, "available": None}


def test_devices_that_share_a_chip_are_added_up():
    assert out_of_memory(HBM, CHIPS["tpu7x"])["available"] == 2 * 15.75 * 2**30


def test_a_program_that_cannot_be_read_back_is_measured_all_the_same():
    compiled = jax.jit(lambda x: x + 1).lower(jnp.ones(8)).compile()

    def unreadable():
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure")

    lowered = SimpleNamespace(
        compile=lambda: SimpleNamespace(memory_analysis=compiled.memory_analysis, as_text=unreadable)
    )
    job = Job("add", lambda: lowered, lambda: Load(8.0, 0.0, 64.0, (), 8.0, 1.0))
    facts = examine(job, make_mesh({"data": 8}), CHIPS["v5e"])
    assert facts["fits"] and facts["collectives"] is None
    assert facts["bytes_per_chip"]["arguments"] == 32 and facts["prediction"]["step_seconds"] > 0
