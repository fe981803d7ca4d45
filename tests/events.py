"""The events of a project as tests make them by hand: what `ingest` writes, in Arrow."""

import pyarrow as pa

from pocketrank.segments import Adaptive, FixedCount, FixedWindow, Milestone, SessionGap

SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("item_id", pa.string()),
        ("behavior", pa.string()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("score", pa.float32()),
        ("arrival", pa.int64()),
    ]
)
POLICIES = [
    SessionGap(1800, 4),
    FixedWindow(3600, 4),
    FixedCount(3),
    Milestone(("buy",), 4),
    Adaptive(2, 3, 60, 7200, 4),
]
