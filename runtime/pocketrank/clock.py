"""The clock of a ranker: which time a caller means, and how often a state is worked out again as it ages."""

import time
from datetime import datetime

import numpy as np

from pocketrank.errors import BadInput
from pocketrank.segments import LAST_S, MICROSECONDS
from pocketrank.times import to_us

CLOCK_STEP_S = 60
Time = datetime | int | float | None


def clock_us(at: Time) -> int:
    """Microseconds since 1970 of what a caller calls a time; of now where it is None.

    Raises:
        BadInput: a datetime without a zone, or no time of this world.
    """
    if isinstance(at, np.generic):
        at = at.item()  # its own products may not fit its own type
    if at is None:
        return time.time_ns() // 1000
    if isinstance(at, datetime):
        if at.tzinfo is None:
            raise BadInput(f"time {at} has no zone; give one, such as datetime(..., tzinfo=UTC)")
        return to_us(at)
    if not isinstance(at, int | float) or not abs(at) < LAST_S:
        raise BadInput(f"time is {at!r}, wanted a datetime with a zone or seconds since 1970 (not milliseconds)")
    return round(at * MICROSECONDS)
