"""The same segments in pandas and in polars: session gap, at most so many events, the same columns.

Both are spared what the job does besides: they trust the files' order, keep no state, and know one policy. Each imports
its library itself, since a rival's import is no part of its time, nor of the other's memory.

polars: bucket after bucket through the streaming engine was the fastest of what was tried (all files in one query took
1.6 times as long; so did the top items by `sort_by` or `top_k_by` within the groups, or without packing the key).
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from pocketrank.bundle import Bundle
from pocketrank.segments import SessionGap

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

COLUMNS = [
    *("user_id", "slot", "closed_at", "segment_start", "segment_end", "ordinal_first", "ordinal_last", "level"),
    *("generation", "n_events", "score_sum", "behavior_counts", "top_items"),
]
READ = ["user_id", "item_id", "behavior", "timestamp", "score"]


def with_pandas(files: Sequence[Path], bundle: Bundle, as_of: datetime, out: Path) -> None:
    """Cut one user at a time: `groupby("user_id").apply`, as most would write it first.

    Args:
        files: whole users, one file each bucket.
        bundle: its vocabulary, behaviours, policy (a session gap) and sizes; lateness 0, a ring.
        as_of: events before it count, and the clock stands there.
        out: the parquet file to write.
    """
    import pandas as pd

    rows = pd.Series(range(len(bundle.items.ids)), index=bundle.items.ids)
    events = pd.concat([pd.read_parquet(path, columns=READ) for path in files], ignore_index=True)
    events = events[events["timestamp"] < as_of]
    events["row"] = events["item_id"].map(rows).fillna(-1).astype("int64")
    known = events["behavior"].isin(bundle.manifest.behaviors)
    events["behavior"] = events["behavior"].where(known, bundle.manifest.behaviors[0])
    events["score"] = events["score"].astype("float64")
    found = events.groupby("user_id").apply(_one_user, bundle, as_of, include_groups=False)
    found = found.reset_index(level="user_id")[COLUMNS]
    found.astype({"score_sum": "float32"}).to_parquet(out, index=False)


def _one_user(events: "pd.DataFrame", bundle: Bundle, as_of: datetime) -> "pd.DataFrame":
    """The closed segments of one user."""
    policy, sizes = _session_gap(bundle), bundle.sizes
    gap = timedelta(seconds=policy.gap_s)
    run = (events["timestamp"].diff() >= gap).cumsum()
    ordinal = (events.groupby(run).cumcount() % policy.max_events == 0).cumsum().rename("ordinal_first") - 1
    segments = events.groupby(ordinal)
    found = segments.agg(
        segment_start=("timestamp", "first"),
        segment_end=("timestamp", "last"),
        n_events=("row", "size"),
        score_sum=("score", "sum"),
    ).reset_index()
    counts = events.groupby([ordinal, "behavior"]).size().unstack(fill_value=0)
    counts = counts.reindex(columns=bundle.manifest.behaviors, fill_value=0)
    found["behavior_counts"] = counts.to_numpy().tolist()
    known = events["row"] >= 0
    totals = events[known].groupby([ordinal[known], "row"])["score"].sum().reset_index()
    best = totals.sort_values(["ordinal_first", "score", "row"], ascending=[True, False, True])
    lists = best.groupby("ordinal_first")["row"].apply(lambda rows: (rows.tolist() + [-1] * sizes.T)[: sizes.T])
    lists = lists.reindex(found.index)
    found["top_items"] = [item if isinstance(item, list) else [-1] * sizes.T for item in lists]
    full = found["n_events"] == policy.max_events
    found["closed_at"] = found["segment_end"].where(full, found["segment_end"] + gap)
    found["slot"] = found["ordinal_first"] % sizes.S
    found["ordinal_last"] = found["ordinal_first"]
    found["level"] = found["generation"] = 0
    live = (found["ordinal_first"] == len(found) - 1) & ~full & (found["closed_at"] > as_of)
    return found[~live]


def with_polars(files: Sequence[Path], bundle: Bundle, as_of: datetime, out: Path, engine: str) -> None:
    """Cut a bucket at a time, in expressions.

    Args:
        files: whole users, one file each bucket.
        bundle: as for `with_pandas`.
        as_of: as for `with_pandas`.
        out: the folder for a parquet file each bucket.
        engine: "streaming" or "in-memory".
    """
    import polars as pl

    ids = bundle.items.ids
    rows = pl.LazyFrame({"item_id": ids, "row": range(len(ids))})
    for path in files:
        found = _polars_rows(pl.scan_parquet(path), rows, bundle, as_of)
        found.sink_parquet(out / f"{path.parent.name}.parquet", engine=engine, compression="snappy")


def _polars_rows(events: "pl.LazyFrame", rows: "pl.LazyFrame", bundle: Bundle, as_of: datetime) -> "pl.LazyFrame":
    import polars as pl

    policy, sizes = _session_gap(bundle), bundle.sizes
    index, gap = pl.int_range(pl.len()), pl.duration(seconds=policy.gap_s)

    def changes(*names: str) -> pl.Expr:
        """True where a row differs from the one before."""
        return pl.any_horizontal((pl.col(name) != pl.col(name).shift()).fill_null(True) for name in names)

    def since(start: pl.Expr) -> pl.Expr:
        """Rows since the last one where `start` is true."""
        return index - pl.when(start).then(index).forward_fill()

    pause = changes("user_id") | (pl.col("timestamp").diff() >= gap)
    events = (
        events.filter(pl.col("timestamp") < as_of)
        .select("user_id", "item_id", "behavior", "timestamp", pl.col("score").cast(pl.Float64))
        .with_columns(segment=(since(pause) % policy.max_events == 0).cum_sum().cast(pl.Int64))
    )
    # The first behaviour of a manifest stands for all that it does not name.
    known = {name: (pl.col("behavior") == name).sum().cast(pl.Int64) for name in bundle.manifest.behaviors[1:]}
    segments = events.group_by("segment").agg(
        pl.col("user_id").first(),
        pl.col("timestamp").min().alias("segment_start"),
        pl.col("timestamp").max().alias("segment_end"),
        pl.len().cast(pl.Int64).alias("n_events"),
        pl.col("score").sum().cast(pl.Float32).alias("score_sum"),
        **known,
    )
    wide = 1 << len(bundle.items.ids).bit_length()
    tops = (
        events.join(rows, on="item_id")
        .group_by(pl.col("segment") * wide + pl.col("row"))
        .agg(pl.col("score").sum())
        .select(pl.col("segment") // wide, (pl.col("segment") % wide).alias("row"), (-pl.col("score")).alias("worst"))
        .sort("segment", "worst", "row")
        .filter(since(changes("segment")) < sizes.T)
        .group_by("segment")
        .agg(pl.col("row").alias("top_items"))
    )
    nothing = pl.lit([-1] * sizes.T, pl.List(pl.Int64))
    full = pl.col("n_events") == policy.max_events
    last = (pl.col("user_id") != pl.col("user_id").shift(-1)).fill_null(True)
    end, first = pl.col("segment_end"), pl.col("segment")
    return (
        segments.join(tops, on="segment", how="left")
        .sort("segment")
        .with_columns(
            ordinal=first - pl.when(changes("user_id")).then(first).forward_fill(),
            closed_at=pl.when(full).then(end).otherwise(end + gap),
            live=last & ~full,
            behavior_counts=pl.concat_list(pl.col("n_events") - pl.sum_horizontal(*known), *known),
            top_items=pl.coalesce("top_items", nothing).list.concat(nothing).list.head(sizes.T),
            level=pl.lit(0, pl.Int64),
            generation=pl.lit(0, pl.Int64),
        )
        .filter(~pl.col("live") | (pl.col("closed_at") <= as_of))
        .with_columns(slot=pl.col("ordinal") % sizes.S, ordinal_first="ordinal", ordinal_last="ordinal")
        .select(COLUMNS)
    )


def _session_gap(bundle: Bundle) -> SessionGap:
    if not isinstance(bundle.policy, SessionGap):
        raise TypeError(f"{bundle.folder}: cuts by {bundle.policy}, the rivals know session gaps alone")
    return bundle.policy
