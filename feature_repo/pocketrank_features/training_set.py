"""`pocketrank segment --training-set`: what a phone would have had cached as each segment began, for `train --set`.

An example is a segment that is not its user's first. Here are the file and the command; `moments` chooses the examples,
`point_in_time` looks up what was there. Which items came next is not in the file: whoever trains has the events.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore
from feast.errors import FeastObjectNotFoundException

from pocketrank.atomic import file_beside
from pocketrank.config import Project
from pocketrank.errors import BundleMismatch, NotReady, UsageError
from pocketrank.groups import starts
from pocketrank.quantise import quantise
from pocketrank.segments import MICROSECONDS
from pocketrank_cli.command import Bar, Report
from pocketrank_features.moments import Moments, moments_of
from pocketrank_features.pack_store.composing import in_a_pack
from pocketrank_features.point_in_time import cached_at, column
from pocketrank_features.replacement import in_use, room_on_disk
from pocketrank_features.row_files import RECORD_KEY, SET_KEY
from pocketrank_features.views import read_manifest, view_name

FORMAT = "pocketrank.training_set/1"
EXAMPLES = 100_000
# column -> feature, type of one, what the feature is divided by
COLUMNS: dict[str, tuple[str, Any, int]] = {
    "ordinal_first": ("ordinal_first", np.int32, 1),
    "ordinal_last": ("ordinal_last", np.int32, 1),
    "level": ("level", np.int8, 1),
    "start_s": ("segment_start", np.int64, MICROSECONDS),
    "end_s": ("segment_end", np.int64, MICROSECONDS),
    "n_events": ("n_events", np.int32, 1),
    "weight": ("score_sum", np.float32, 1),
}


def write_training_set(project: Project, file: Path, examples: int = EXAMPLES) -> Report:
    """Write a training set from the segments view of the bundle's encoder.

    Args:
        project: with rows, and `feast apply` done; `[segments] sync_delay_s` is what the phone lags behind.
        file: parquet; docs/formats.md, "Training set".
        examples: how many at most; of more, always the same ones are taken.

    Raises:
        UsageError: fewer than one example, or the file is a folder, or another file.
        NotReady: no bundle, no rows, nothing registered, or no user with a second segment.
        BadInput: a file of rows is damaged.
        BundleMismatch: vectors of another size than the bundle's.
    """
    began = time.perf_counter()
    if examples < 1:
        raise UsageError(f"--examples is {examples}, wanted 1 or more")
    if file.is_dir():
        raise UsageError(f"--training-set {file}: a folder; wanted a file to write, such as {file / 'set.parquet'}")
    if file.is_file() and not _is_set(file):
        raise UsageError(f"--training-set {file}: it is there, and no training set, so it stays; give another file")
    with in_use(project.root), room_on_disk(file.parent, "pocketrank segment --training-set"):
        return _written(project, file, examples, began)


def _is_set(file: Path) -> bool:
    try:
        return not file.stat().st_size or SET_KEY in (pq.read_metadata(file).metadata or {})
    except (pa.ArrowInvalid, OSError):
        return False


def _written(project: Project, file: Path, examples: int, began: float) -> Report:
    manifest, settings = read_manifest(project), project.segments
    store, source = _opened(project, manifest)
    moments = moments_of(source, examples)
    delay_s = max(settings.sync_delay_s, settings.lateness_s)  # before that the job has not written it
    sizes = {axis: int(manifest["sizes"][axis]) for axis in "SKD"}
    made_with = _record(source)
    said = {
        "format": FORMAT,
        "encoder_id": manifest["encoder_id"],
        "sizes": sizes,
        "sync_delay_s": delay_s,
        "max_age_s": settings.max_age_s,
        "policy": made_with.get("policy", {}),
        "compaction": made_with.get("compaction", {}),
    }
    rows = empty = 0
    bar = Bar(len(moments), "training set", "examples")
    with file_beside(file) as draft, pq.ParquetWriter(draft, _schema(moments.users.type, said)) as writer:
        for part, found in cached_at(store, manifest["encoder_id"], sizes["S"], moments.asked(delay_s)):
            table, filled = _examples(moments, part, _of_age(moments, found, settings.max_age_s), sizes, source)
            writer.write_table(table.cast(writer.schema))
            rows, empty = rows + int(filled.sum()), empty + int((filled == 0).sum())
            bar.add(len(part))
    bar.end()
    facts = {
        "encoder_id": manifest["encoder_id"],
        "examples": len(moments),
        "of": moments.of,
        "users": len(pc.unique(moments.users)),
        "sync_delay_s": delay_s,
        "rows": rows,
        "filled": round(rows / len(moments), 2),
        "empty": empty,
        "bytes": file.stat().st_size,
        "seconds": round(time.perf_counter() - began, 1),
        "file": str(file),
    }
    shown = {
        "examples": f"{len(moments):,} of {moments.of:,}",
        "of": "",
        "sync_delay_s": f"{delay_s:,}",
        "filled": f"{facts['filled']} of {sizes['S']} slots, mean",
        "empty": f"{empty:,} examples of which nothing was there yet",
        "seconds": f"{facts['seconds']} s",
    }
    return Report(facts, shown, verdict=f"next: pocketrank train --set {file}")


def _opened(project: Project, manifest: Mapping[str, Any]) -> tuple[FeatureStore, Path]:
    """The Feast repo, and the folder that its segments view reads."""
    if not manifest:
        raise NotReady(f"no manifest.json in {project.bundle_dir}; make a bundle with: pocketrank export")
    if not (project.root / "feature_store.yaml").is_file():
        raise NotReady(f"no feature_store.yaml in {project.root}; make a project with: pocketrank init")
    store = FeatureStore(repo_path=str(project.root))
    try:
        view = store.get_feature_view(view_name("segments", manifest["encoder_id"]))
    except FeastObjectNotFoundException:
        raise NotReady(
            f"{project.root}: Feast has no views of encoder {manifest['encoder_id']}; run, in the project folder: "
            "pocketrank segment; feast apply"
        ) from None
    source, own = Path(view.batch_source.path), project.rows_dir(view.name).resolve()
    if source != own:
        raise NotReady(
            f"{project.root}: Feast's view {view.name} reads {source}, not {own}, as in a project that was moved or "
            "copied; run, in the project folder: feast apply"
        )
    if not any(source.glob("*.parquet")):
        raise NotReady(f"{source}: no rows, though Feast has a view of them; write them again: pocketrank segment")
    return store, source


def _record(source: Path) -> dict[str, Any]:
    """What the newest rows were made with, as `runs` wrote it beside them."""
    newest = max(source.glob("*.parquet"), key=lambda path: path.name)
    found: dict[str, Any] = json.loads((pq.read_metadata(newest).metadata or {}).get(RECORD_KEY, b"{}"))
    return found


def _schema(users: pa.DataType, said: Mapping[str, Any]) -> pa.Schema:
    lists = {name: pa.list_(pa.from_numpy_dtype(dtype)) for name, (_, dtype, _) in COLUMNS.items()}
    columns = {
        "user_id": users,
        "ordinal": pa.int64(),
        "time": pa.timestamp("us", "UTC"),
        **lists,
        "vectors": pa.binary(),
        "scales": pa.list_(pa.float32()),
    }
    return pa.schema(columns).with_metadata({SET_KEY: json.dumps(said, sort_keys=True).encode()})


def _examples(
    moments: Moments, part: range, found: pa.Table, sizes: Mapping[str, int], source: Path
) -> tuple[pa.Table, Any]:
    """Some rows of the file, and how many slots of each are filled."""
    example = column(found, "example")
    spans = [column(found, name) for name in ("generation", "ordinal_first", "ordinal_last")]
    order = in_a_pack(example, spans[0], spans[1], spans[2], sizes["S"])
    filled = np.bincount(example[order] - part.start, minlength=len(part))
    begin, found = starts(filled), found.take(pa.array(order))
    vectors, scales = _vectors(found["vectors"], sizes, source)
    here = slice(part.start, part.stop)
    table = {
        "user_id": moments.users[here],
        "ordinal": pa.array(moments.ordinal[here]),
        "time": pa.array(moments.time_us[here]).cast(pa.timestamp("us", "UTC")),
    }
    for name, (feature, dtype, unit) in COLUMNS.items():
        values = column(found, feature, np.float32 if unit == 1 and dtype == np.float32 else np.int64)
        table[name] = _lists(begin, (values // unit if unit > 1 else values).astype(dtype))
    width = sizes["K"] * sizes["D"]
    packed = pa.py_buffer(vectors.tobytes())
    ends = pa.py_buffer((begin * width).astype(np.int32))
    table["vectors"] = pa.Array.from_buffers(pa.binary(), len(part), [None, ends, packed])
    table["scales"] = _lists(begin * sizes["K"], scales.ravel())
    return pa.table(table), filled


def _of_age(moments: Moments, found: pa.Table, max_age_s: int) -> pa.Table:
    """The rows that packs would not have left out for their age; see `[segments] max_age_s`."""
    if not max_age_s:
        return found
    oldest_us = moments.time_us[column(found, "example")] - max_age_s * MICROSECONDS
    return found.filter(pa.array(column(found, "segment_end") >= oldest_us))


def _vectors(column: pa.ChunkedArray, sizes: Mapping[str, int], source: Path) -> tuple[Any, Any]:
    """(N, K, D) int8 and (N, K) float32 scales, of rows that hold floats or these bytes."""
    K, D = sizes["K"], sizes["D"]
    values = column.combine_chunks()
    packed = pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type)
    wanted = K * D + 4 * K if packed else K * D
    lengths = pc.binary_length(values) if packed else pc.list_value_length(values)
    if (other := pc.unique(lengths.filter(pc.not_equal(lengths, wanted)))).to_pylist():
        raise BundleMismatch(
            f"{source}: vectors of a segment hold {other[0]} values, the bundle wants {wanted}; "
            "run: pocketrank segment --rebuild; feast apply"
        )
    if not packed:
        return quantise(values.flatten().to_numpy().reshape(-1, K, D))
    whole = np.frombuffer(b"".join(values.to_pylist()), np.uint8).reshape(-1, wanted)
    scales = np.ascontiguousarray(whole[:, K * D :]).view("<f4").astype(np.float32)
    return whole[:, : K * D].view(np.int8).reshape(-1, K, D), scales


def _lists(begin: Any, values: Any) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(begin, pa.int32()), pa.array(values))
