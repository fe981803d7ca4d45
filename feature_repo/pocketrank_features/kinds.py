"""The three kinds of view an encoder has, and the columns of their rows: data that `views` makes Feast objects of."""

from dataclasses import dataclass
from typing import Any

from feast.types import Array, Float32, Int64, UnixTimestamp


@dataclass(frozen=True)
class Kind:
    """One of the three kinds of view an encoder has.

    Attributes:
        name: first part of the view's name.
        description: for people who browse the registry.
        keys: join keys.
        timestamp: column of the event time.
        created: column of the creation time, "" where there is none.
        features: column -> (type, description).
    """

    name: str
    description: str
    keys: tuple[str, ...]
    timestamp: str
    created: str
    features: dict[str, tuple[Any, str]]


KINDS = (
    Kind(
        "segments",
        "One row a closed segment of a user's history, encoded once, offline; and one a merge of two.",
        ("user_id", "slot"),
        "closed_at",
        "created",
        {
            "segment_start": (UnixTimestamp, "time of the segment's first event"),
            "segment_end": (UnixTimestamp, "time of its last event"),
            "ordinal_first": (Int64, "number of the oldest segment merged into this one"),
            "ordinal_last": (Int64, "number of the newest"),
            "level": (Int64, "0 for a segment as it was cut; one of level l spans 2^l ordinals, the highest more"),
            "generation": (Int64, "raised by a rebuild; only the newest is served"),
            "n_events": (Int64, "events in the segment"),
            "score_sum": (Float32, "sum of their scores: the segment's weight"),
            "behavior_counts": (Array(Int64), "events of each behaviour"),
            "top_items": (Array(Int64), "vocabulary rows of the heaviest items, -1 where there are fewer"),
            "vectors": (Array(Float32), "K vectors of D floats, dequantised int8; or bytes: the int8, and K scales"),
        },
    ),
    Kind(
        "users",
        "One row a user: activity, what the segments cover, and the memory of single items.",
        ("user_id",),
        "closed_at",
        "created",
        {
            "generation": (Int64, "raised by a rebuild"),
            "n_segments": (Int64, "segments closed so far, those that are not kept any more too"),
            "n_events": (Int64, "events of the user that they cover"),
            "first_event": (UnixTimestamp, "time of the first"),
            "last_event": (UnixTimestamp, "time of the last"),
            "through_us": (Int64, "time of the last event covered, microseconds since 1970"),
            "through_count": (Int64, "events of the user at that very time"),
            "memory_items": (Array(Int64), "vocabulary rows of the items remembered"),
            "memory_counts": (Array(Float32), "events with each"),
            "memory_decayed": (Array(Float32), "the same, older events counting less"),
            "memory_first_s": (Array(Int64), "first event with each, seconds since 1970"),
            "memory_last_s": (Array(Int64), "last event with each, seconds since 1970"),
        },
    ),
    Kind(
        "items",
        "One row an item: its vector, bias and popularity.",
        ("item_id",),
        "updated_at",
        "",
        {
            "vector": (Array(Float32), "D floats"),
            "bias": (Float32, "added to every score of the item"),
            "popularity": (Float32, "share of all events"),
        },
    ),
)

# Columns that rows may have besides. Stores such as Feast's own SQLite and Redis keep event times in whole seconds; and
# only some policies look back.
OPTIONAL = {
    "closed_at_us": (Int64, "closed_at again, exactly: microseconds since 1970"),
    "recent_us": (Array(Int64), "times of the last events covered, oldest first, microseconds since 1970"),
}
