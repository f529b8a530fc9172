"""How much memory the devices have for what grows with a batch."""

import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from hiermusic.parallel.hosts import wait_for_all

DEVICE_SHARE = 0.85  # of what an accelerator says it has; programs need the rest for themselves
HOST_SHARE = 0.5  # of a host's memory, which its devices share where they do not say what they have


def room() -> int:
    """Bytes of each device of this process that may be filled."""
    devices = jax.local_devices()
    if limit := (devices[0].memory_stats() or {}).get("bytes_limit"):
        return int(DEVICE_SHARE * limit)
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return int(HOST_SHARE * host) // (len(devices) * jax.process_count())


def least(number: int) -> int:
    """The least of the numbers that all processes have come to here with."""
    wait_for_all("the least of a number")  # Gloo waits less long for another
    return int(np.min(multihost_utils.process_allgather(np.int32(number))))
