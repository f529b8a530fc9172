"""What the compiler says when memory does not suffice."""

from hiermusic.parallel.aot import out_of_memory
from hiermusic.parallel.chips import CHIPS

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
