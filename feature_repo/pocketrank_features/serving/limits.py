"""How often somebody may ask: a count a minute for each user and each address, of each worker by itself."""

import math
import time
from collections.abc import Callable

MOST_KEPT = 200_000


class PerMinute:
    """Counts by key, forgotten every minute, so that it holds no more than came within one."""

    def __init__(self, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Allow so many a minute to each key."""
        self._limit, self._clock = limit, clock
        self._counts: dict[str, int] = {}
        self._until = clock() + 60

    def wait_s(self, key: str) -> int:
        """Count one more; 0 where it may pass, else seconds until the next may."""
        now = self._clock()
        if now >= self._until:
            self._counts, self._until = {}, now + 60
        count = self._counts.get(key, 0) + 1
        if count > self._limit:
            return max(1, math.ceil(self._until - now))
        if count > 1 or len(self._counts) < MOST_KEPT:  # when full, who is new is let through uncounted
            self._counts[key] = count
        return 0
