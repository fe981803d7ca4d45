"""What the segments view held at given moments: Feast's historical retrieval, asked in parts that fit in memory.

A row is there from its `closed_at` on; whoever asks takes off what passes until a phone has it. `composing.in_a_pack`
picks of the rows what a pack made at that moment would hold. Asked all at once, Feast carries the vectors of every
earlier row of every slot through one window: 100,000 moments of 32 slots took 6 GB and three times as long as in parts.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureStore

from pocketrank.groups import begins
from pocketrank_features.views import view_name

Int64Array = npt.NDArray[np.int64]

FEATURES = (
    "generation",
    "ordinal_first",
    "ordinal_last",
    "level",
    "segment_start",
    "segment_end",
    "n_events",
    "score_sum",
    "vectors",
)
ROWS_AT_ONCE = 500_000


def cached_at(
    store: FeatureStore,
    encoder_id: str,
    slots: int,
    asked: pa.Table,
    *,
    features: Sequence[str] = FEATURES,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Iterator[tuple[range, pa.Table]]:
    """Look up the newest row of each slot that closed at a moment or before it.

    Args:
        store: the Feast repo, with views of the encoder.
        encoder_id: whose segments.
        slots: S.
        asked: N rows of `user_id`; `asked_at`, timestamp[us, UTC]; and, where known, `earlier`, int64, segments that
            the user had by then, by which memory is bounded for users with very many. Sorted by user it is fastest.
        features: columns of the view.
        rows_at_once: rows of the view that one part may compare, about; 500,000 of 64 floats take half a GB.

    Yields:
        Part by part, which rows of `asked` it answers, and a table of `example`, int64, the row of `asked`, and the
        features: a row a slot that was filled, in no order.
    """
    view = view_name("segments", encoder_id)
    users, moments = asked["user_id"].to_pandas(), asked["asked_at"].cast(pa.timestamp("us", "UTC")).to_pandas()
    cost = np.full(len(asked), slots)
    if "earlier" in asked.column_names:
        cost = np.maximum(cost, asked["earlier"].to_numpy())
    for begin, end in _parts(cost, rows_at_once):
        size = end - begin
        entities = pd.DataFrame(
            {
                "example": np.repeat(np.arange(begin, end), slots),
                "user_id": users.iloc[begin:end].repeat(slots).to_numpy(),
                "slot": np.tile(np.arange(slots), size),
                # duckdb takes no nanoseconds here.
                "event_timestamp": moments.iloc[begin:end].repeat(slots).array.as_unit("us"),
            }
        )
        job = store.get_historical_features(entity_df=entities, features=[f"{view}:{name}" for name in features])
        found = job.to_arrow().select(["example", *features])
        yield range(begin, end), found.filter(pc.is_valid(found[features[0]]))


def _parts(cost: Int64Array, at_most: int) -> Iterator[tuple[int, int]]:
    """Ranges of things that cost about so much together; one that costs more is a range of its own."""
    part = (np.cumsum(cost) - cost) // at_most
    edges = np.append(np.flatnonzero(begins(part)), len(cost)) if len(cost) else np.zeros(0, np.int64)
    return zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)


def column(table: pa.Table, name: str, dtype: Any = np.int64) -> npt.NDArray[Any]:
    """(N,) a column of numbers or times, times in microseconds."""
    values = table[name]
    if pa.types.is_timestamp(values.type):
        values = values.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
    found: npt.NDArray[Any] = values.to_numpy().astype(dtype)
    return found
