"""A Feast project with synthetic rows, made with Feast's own commands as a user types them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ..redis_server import LACKING, find_program, running
from .serving import Issuer, Served, Shop, served

STARTER = Path(__file__).parents[2] / "feature_repo" / "pocketrank_features" / "starter"
BIN = Path(sys.executable).parent
ENCODER = "3f9a"
S, K, D, T = 4, 2, 8, 4
HOUR = 3_600_000_000
START_US = 1_700_000_000_000_000
SIZES = {"S": S, "K": K, "D": D, "F": 64, "T": T}
# What `pocketrank segment` says of its rows.
RECORD = {
    "encoder_id": ENCODER,
    "sizes": {"S": S, "K": K, "L": 8, "D": D, "T": T},
    "policy": {"kind": "session_gap"},
    "compaction": {"kind": "ring"},
}


def vectors_of(user: int, last: int) -> np.ndarray:
    """(K, D) float32 that int8 holds exactly."""
    rng = np.random.default_rng([user, last])
    whole = rng.integers(-127, 128, (K, D))
    whole[:, 0] = 127
    return whole.astype(np.float32) * np.float32(0.003)


def segment(user: int, slot: int, first: int, last: int, generation: int = 0) -> dict[str, Any]:
    """One row; ordinal n ends n hours and 7 us a user after the start, and closes half an hour later."""
    end = START_US + last * HOUR + 7 * user
    closed = end + HOUR // 2
    return {
        "user_id": user,
        "slot": slot,
        "closed_at": closed,
        "created": closed,
        "closed_at_us": closed,
        "segment_start": START_US + first * HOUR - 60_000_000,
        "segment_end": end,
        "ordinal_first": first,
        "ordinal_last": last,
        "level": 0,
        "generation": generation,
        "n_events": 3 + last,
        "score_sum": 0.5 + last,
        "behavior_counts": [3, last, 0],
        "top_items": [last, 100 + user, -1, -1],
        "vectors": vectors_of(user, last).ravel().tolist(),
    }


def user_row(user: int, last: int, generation: int = 0) -> dict[str, Any]:
    end = START_US + last * HOUR + 7 * user
    return {
        "user_id": user,
        "closed_at": end + HOUR // 2,
        "created": end + HOUR // 2,
        "closed_at_us": end + HOUR // 2,
        "generation": generation,
        "n_segments": last + 1,
        "n_events": 30,
        "first_event": START_US,
        "last_event": end,
        "through_us": end,
        "through_count": 2,
        "memory_items": [9, 4],
        "memory_counts": [1.0, 3.0],
        "memory_decayed": [0.25, 2.5],
        "memory_first_s": [90, 40],
        "memory_last_s": [95, 45],
    }


def item_row(item: int) -> dict[str, Any]:
    return {"item_id": f"p-{item}", "updated_at": START_US, "vector": [0.5] * D, "bias": 0.1, "popularity": 0.2}


MOMENT = pa.timestamp("us", "UTC")
TYPES = {
    **dict.fromkeys(("closed_at", "created", "segment_start", "segment_end", "first_event", "last_event"), MOMENT),
    **dict.fromkeys(("behavior_counts", "top_items", "memory_items", "memory_first_s"), pa.list_(pa.int64())),
    **dict.fromkeys(("vectors", "vector", "memory_counts", "memory_decayed"), pa.list_(pa.float32())),
    **dict.fromkeys(("score_sum", "bias", "popularity"), pa.float32()),
    "updated_at": MOMENT,
    "memory_last_s": pa.list_(pa.int64()),
    "item_id": pa.string(),
}


def write_rows(root: Path, kind: str, name: str, rows: list[dict[str, Any]]) -> None:
    """Add one parquet file to a view's folder."""
    folder = root / "data" / f"{kind}_{ENCODER}"
    folder.mkdir(parents=True, exist_ok=True)
    ids = pa.string() if rows and isinstance(rows[0].get("user_id"), str) else pa.int64()
    fields = [(column, ids if column == "user_id" else TYPES.get(column, pa.int64())) for column in rows[0]]
    table = pa.Table.from_pylist(rows, pa.schema(fields, {b"pocketrank.segment": json.dumps(RECORD).encode()}))
    pq.write_table(table, folder / f"{name}.parquet")


def write_bundle(root: Path) -> None:
    (root / "bundle").mkdir(exist_ok=True)
    (root / "bundle" / "manifest.json").write_text(json.dumps({"encoder_id": ENCODER, "sizes": SIZES}))


def start_project(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "pocketrank.toml").touch()
    for name in ("definitions.py", "feature_store.yaml"):
        shutil.copyfile(STARTER / name, root / name)
    shutil.copyfile(STARTER / "feastignore", root / ".feastignore")
    return root


class Rows:
    """The makers above, for test modules."""

    encoder = ENCODER
    segment = staticmethod(segment)
    user = staticmethod(user_row)
    vectors = staticmethod(vectors_of)
    write = staticmethod(write_rows)
    write_bundle = staticmethod(write_bundle)
    start_project = staticmethod(start_project)


@dataclass(frozen=True)
class Applied:
    """A project that went through Feast's commands.

    Attributes:
        root: the folder.
        fresh: another one, to which `feast apply` was put before anything was encoded.
        said: what each command printed, its exit code first.
        pack: `pocketrank pack 2 3 --json`, under way while other tests run, and the folder it writes to.
    """

    root: Path
    fresh: Path
    said: dict[str, tuple[int, str]]
    pack: "tuple[subprocess.Popen[str], Path]"


@pytest.fixture(scope="session")
def rows() -> Rows:
    return Rows()


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where a Redis server of our own listens on 127.0.0.1; it has nothing in it at first."""
    program = find_program()
    if not program:
        if os.environ.get("CI"):
            pytest.fail(LACKING)
        pytest.skip(LACKING)
    with running(program, tmp_path_factory.mktemp("redis")) as port:
        yield port


@pytest.fixture(scope="session")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Applied]:
    """Users 1 to 5 with six segments in four slots; first the four oldest are materialised, then the rest.

    User 3 did nothing after the first. User 4 was rebuilt: generation 1 has fewer rows. User 6 has a row, and segments
    that were not written yet.
    """
    root = start_project(tmp_path_factory.mktemp("shop") / "shop")
    fresh = start_project(tmp_path_factory.mktemp("clone") / "clone")
    write_bundle(root)
    write_rows(root, "segments", "early", [segment(u, n % S, n, n) for u in range(1, 6) for n in range(4)])
    late = [segment(u, n % S, n, n) for u in (1, 2, 5) for n in (4, 5)]
    rebuilt = [segment(4, 0, 0, 0, generation=1), segment(4, 1, 1, 1, generation=1)]
    for row in rebuilt:  # by another policy, which made fewer segments of the same time
        row["segment_end"] += 4 * HOUR
        row["closed_at"] = row["created"] = row["closed_at_us"] = row["segment_end"] + HOUR // 2
    late += rebuilt
    write_rows(root, "segments", "late", late)
    write_rows(root, "users", "early", [user_row(u, 3) for u in range(1, 6)])
    write_rows(root, "users", "late", [user_row(u, 5) for u in (1, 2, 5, 6)] + [user_row(4, 5, 1) | {"n_segments": 2}])
    write_rows(root, "items", "all", [item_row(n) for n in range(3)])
    said = {}
    beside = _feast(fresh, "apply")
    said["apply"] = _ended(_feast(root, "apply"))
    said["materialize"] = _ended(_feast(root, "materialize", "2023-11-14T00:00:00", "2023-11-15T02:00:00"))
    said["fresh"] = _ended(beside)
    said["incremental"] = _ended(_feast(root, "materialize-incremental", "2024-01-01T00:00:00"))
    out = tmp_path_factory.mktemp("phone")
    command = [BIN / "pocketrank", "pack", "2", "3", "--json", "--out", out]
    with subprocess.Popen(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as pack:
        yield Applied(root, fresh, said, (pack, out))


@pytest.fixture(scope="module")
def issuer(shop: Shop) -> Issuer:
    """Who signs tokens for the users of a module's `shop`."""
    return Issuer(shop.root / "keys.json")


@pytest.fixture(scope="module")
def server(shop: Shop, issuer: Issuer) -> Iterator[Served]:
    """That shop's `pocketrank serve`."""
    with served(shop.root) as found:
        yield found


def _feast(root: Path, *arguments: str) -> "subprocess.Popen[str]":
    # Another time zone than UTC: windows must not move with the machine's.
    surroundings = {**os.environ, "TZ": "America/New_York"}
    return subprocess.Popen(
        [BIN / "feast", *arguments],
        cwd=root,
        env=surroundings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    said, _ = process.communicate(timeout=120)
    return process.returncode, said
