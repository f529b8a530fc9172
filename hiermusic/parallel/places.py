"""Which processes run together: what the flags ask for, or what a cluster says of itself."""

import os
import warnings
from dataclasses import dataclass

from hiermusic.errors import UserError


@dataclass(frozen=True)
class Place:
    """Where a process stands among the others; `devices` are the local ones it may use, all when None."""

    coordinator: str
    processes: int
    process: int
    devices: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def asked(coordinator: str | None, processes: int | None, process: int | None) -> Place | None:
    """The place that the flags name; None without flags."""
    flags = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in flags.items() if value is None]
    if len(missing) == 3 or (processes == 1 and coordinator is None and not process):
        return None
    if missing:
        raise UserError(f"{', '.join(missing)} is needed too: --coordinator, --processes and --process go together")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator={coordinator}: give HOST:PORT, the same for every process")
    if processes < 1:
        raise UserError(f"--processes={processes}: there is at least one")
    if not 0 <= process < processes:
        raise UserError(f"--process={process}: with --processes={processes} it must lie in 0..{processes - 1}")
    return Place(coordinator, processes, process)


def detected(timeout: float) -> Place | None:
    """The place that the cluster gives this process, as JAX recognises it; None outside of one."""
    # any other pod of Kubernetes, such as a notebook, is no cluster
    addresses = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH"}
    told = {"JOB_COMPLETION_INDEX", "SLURM_JOB_ID", *addresses}
    if "KUBERNETES_SERVICE_HOST" in os.environ and not told & os.environ.keys():
        return None
    try:
        # what jax.distributed.initialize asks when it is given nothing; no public name of JAX tells without starting
        from jax._src.clusters import ClusterEnv

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(timeout))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the cluster does not say which processes run together ({reason}): give --coordinator, --processes and "
            "--process, or --processes=1 for this one alone"
        ) from error
    coordinator, processes, process, devices = found
    if coordinator is None:
        return None
    if os.environ.get("SLURM_STEP_NUM_NODES") == str(processes):
        devices = None  # one process a node has all of the node's devices; JAX would give it one
    return Place(coordinator, processes, process, devices and tuple(devices))
