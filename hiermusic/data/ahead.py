"""Reading ahead: what comes next is made on threads while what came before is used."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

# Decoding, resampling and rendering leave Python's lock to each other.
THREADS = min(4, os.cpu_count() or 1)
T = TypeVar("T")


def ahead(load: Callable[[int], T], indices: Iterable[int]) -> Generator[T, None, None]:
    """`map(load, indices)`, made ahead on THREADS threads: as many results wait in memory, and one.

    What `load` raises is raised where its result would have come. Close the generator when not all is taken.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for index in indices:
                waiting.append(pool.submit(load, index))
                if len(waiting) > THREADS:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
