"""Make packs, one user's segments and item memory, from the rows in the online store.

A ring may hold rows of an older generation, and rows that a merge has covered: they are left out here, so the job
never has to write empty ones. See docs/formats.md, "Pack".
"""

import argparse
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from feast.protos.feast.types.Value_pb2 import Value

from pocketrank import atomic
from pocketrank.command import Report, progress
from pocketrank.config import Project
from pocketrank.errors import BundleMismatch, NotReady, UsageError
from pocketrank.pack import Pack
from pocketrank.quantise import quantise
from pocketrank.times import from_us
from pocketrank_features.online_store import Row
from pocketrank_features.rings import SECOND_US, Rings, UserRows
from pocketrank_features.views import read_manifest

LONGEST_NAME = 180


def pack_from(rows: UserRows, encoder_id: str, sizes: Mapping[str, int]) -> Pack:
    """Make a pack from what the store holds of a user.

    Args:
        rows: the user's row and ring.
        encoder_id: the encoder whose rows these are.
        sizes: S, K, D and T of the bundle.

    Returns:
        At most S segments of the newest generation, none covered by another, oldest first.

    Raises:
        NotReady: the user's row and the ring are of different runs of the job.
        BundleMismatch: a row's vectors have another size than the bundle's.
    """
    ring = _current(rows.ring)[-sizes["S"] :]
    user = rows.row.values
    _check_same_run(rows, ring)
    order = np.argsort(_list(user, "memory_items", np.int32), kind="stable")
    K, D = sizes["K"], sizes["D"]
    vectors, scales = _vectors(rows, ring, K, D)
    return Pack(
        encoder_id=encoder_id,
        version=(_number(user, "generation"), max(map(_closed_at, ring), default=_closed_at(rows.row))),
        through=(_number(user, "through_us"), _number(user, "through_count")),
        vectors=vectors,
        scales=scales,
        start_s=_column(ring, "segment_start", np.int64),
        end_s=_column(ring, "segment_end", np.int64),
        weight=_column(ring, "score_sum", np.float32),
        n_events=_column(ring, "n_events", np.int32),
        level=_column(ring, "level", np.int8),
        ordinal_first=_column(ring, "ordinal_first", np.int32),
        ordinal_last=_column(ring, "ordinal_last", np.int32),
        top_items=_matrix(rows, ring, "top_items", sizes["T"], np.int32),
        memory_items=_list(user, "memory_items", np.int32)[order],
        memory_counts=_list(user, "memory_counts", np.float32)[order],
        memory_decayed=_list(user, "memory_decayed", np.float32)[order],
        memory_first_s=_list(user, "memory_first_s", np.int64)[order],
        memory_last_s=_list(user, "memory_last_s", np.int64)[order],
        recent_us=tuple(_list(user, "recent_us", np.int64).tolist()) if "recent_us" in user else (),
    )


def file_name(user: int | str) -> str:
    """Name of a user's pack file: safe for any id, and the id itself where that is letters, digits, `_.-~`."""
    name = quote(str(user), safe="")
    if len(name) > LONGEST_NAME:
        name = f"{name[:100]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return f"{name}.safetensors"


def run(arguments: argparse.Namespace) -> Report:
    """`pocketrank pack`: write the packs of some users, or of all.

    Raises:
        UsageError: neither users nor --all, or both.
        UnknownUser: the store lacks one of the users; nothing is written.
        NotReady: no bundle, or nothing materialised.
    """
    if bool(arguments.user) == arguments.all:
        raise UsageError("pack wants either user ids or --all; for instance: pocketrank pack 7")
    project = Project.open(arguments.project)
    out = arguments.out or project.packs_dir
    rings = Rings.open(project)
    users: Iterable[int | str] = list(rings.every_user()) if arguments.all else map(rings.user_id, arguments.user)
    manifest = read_manifest(project)
    if not arguments.all:
        # All are looked up before the first is written.
        users = [rings.read(user).user for user in users]
    users = list(users)
    total = segments = newest = 0
    for user in progress(users, len(users), "packs"):
        pack = pack_from(rings.read(user), manifest["encoder_id"], manifest["sizes"])
        content = pack.to_bytes()
        atomic.write_bytes(out / file_name(user), content)
        total, segments, newest = total + len(content), segments + len(pack), max(newest, pack.through[0])
    through = from_us(newest).isoformat()
    facts = {"packs": len(users), "bytes": total, "segments": segments, "through": through, "out": str(out)}
    return Report(facts)


def _current(ring: list[Row]) -> list[Row]:
    """Rows of the newest generation that no other row covers, oldest first."""
    newest = max((_number(row.values, "generation") for row in ring), default=0)
    kept: list[Row] = []
    reached = -1
    # Wider before narrower and newer before older: a row that ends within what is kept already is covered by it.
    for row in sorted((row for row in ring if _number(row.values, "generation") == newest), key=_span):
        if _number(row.values, "ordinal_last") > reached:
            kept.append(row)
            reached = _number(row.values, "ordinal_last")
    return kept


def _span(row: Row) -> tuple[int, int, int]:
    return _number(row.values, "ordinal_first"), -_number(row.values, "ordinal_last"), -row.event_us


def _check_same_run(rows: UserRows, ring: list[Row]) -> None:
    """A ring without its `through` would make a phone count events twice, or drop some."""
    if not ring:
        return
    held = (_number(ring[0].values, "generation"), max(_number(row.values, "segment_end") for row in ring))
    said = (_number(rows.row.values, "generation"), _number(rows.row.values, "through_us") // SECOND_US)
    if held != said:
        raise NotReady(
            f"user {rows.user!r}: segments are of generation {held[0]} up to second {held[1]}, the user's row is of "
            f"generation {said[0]} up to second {said[1]}; let the materialize end, or run: feast materialize START END"
        )


def _closed_at(row: Row) -> int:
    """Microseconds; from the feature where the rows have it, since some stores keep event times in whole seconds."""
    return _number(row.values, "closed_at_us") if "closed_at_us" in row.values else row.event_us


def _number(values: Mapping[str, Value], name: str) -> Any:
    kind = values[name].WhichOneof("val")
    return getattr(values[name], kind) if kind else 0


def _list(values: Mapping[str, Value], name: str, dtype: Any) -> npt.NDArray[Any]:
    kind = values[name].WhichOneof("val")
    return np.array(getattr(values[name], kind).val if kind else [], dtype)


def _column(ring: list[Row], name: str, dtype: Any) -> npt.NDArray[Any]:
    return np.array([_number(row.values, name) for row in ring], dtype)


def _vectors(rows: UserRows, ring: list[Row], K: int, D: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """(S, K, D) int8 and (S, K) scales, from rows with floats or with these bytes."""
    if not any(row.values["vectors"].WhichOneof("val") == "bytes_val" for row in ring):
        return quantise(_matrix(rows, ring, "vectors", K * D, np.float32).reshape(-1, K, D))
    found = [np.frombuffer(_number(row.values, "vectors") or b"", np.uint8) for row in ring]
    _check_width(rows, "vectors", [len(row) for row in found], K * D + 4 * K)
    whole = np.array(found)
    scales = np.ascontiguousarray(whole[:, K * D :]).view("<f4")
    return whole[:, : K * D].view(np.int8).reshape(-1, K, D), scales.astype(np.float32)


def _matrix(rows: UserRows, ring: list[Row], name: str, width: int, dtype: Any) -> npt.NDArray[Any]:
    found = [_list(row.values, name, dtype) for row in ring]
    _check_width(rows, name, [len(row) for row in found], width)
    return np.array(found, dtype).reshape(-1, width)


def _check_width(rows: UserRows, name: str, found: list[int], width: int) -> None:
    for length in found:
        if length != width:
            raise BundleMismatch(
                f"user {rows.user!r}: {name} of a segment holds {length} values, the bundle wants {width}; "
                "run: pocketrank segment; feast materialize START END"
            )
