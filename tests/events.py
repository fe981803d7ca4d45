"""The events of a project as tests make them by hand: what `ingest` writes, in Arrow."""

import pyarrow as pa

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
