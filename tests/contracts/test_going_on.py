"""A phone goes on where its pack stops, and comes to what the server comes to: policy, encoder, compaction, memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from pocketrank import Ranker
from pocketrank.bundle import Bundle
from pocketrank.config import Project
from pocketrank.errors import BadPack
from pocketrank.pack import Pack
from pocketrank.segments import policy_settings
from pocketrank.times import from_us
from pocketrank_features.pack_store.composing import Layout, composed
from pocketrank_features.segment_job import Wish, segment

from ..bundles import write_bundle
from ..events import POLICIES

US = 1_000_000
START = 1_700_000_000 * US
IDS = [f"p-{n}" for n in range(8)]
COMPACTIONS = [{"kind": "ring"}, {"kind": "log", "levels": 2}]
SLOTS = 5


def history(seed: int, events: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    times = START + rng.choice([0, 1, 60, 600, 1800, 3600, 9000], events).cumsum() * US
    kinds = rng.choice(["view", "buy", "dream"], events)
    return [
        {
            "user_id": 7,
            "item_id": f"p-{rng.integers(10)}",
            "behavior": str(kind),
            "timestamp": int(time),
            "score": float(rng.choice([0.5, 1.0, 2.0])),
            "arrival": arrival,
        }
        for arrival, (time, kind) in enumerate(zip(times, kinds, strict=True))
    ]


def deliver(project: Project, name: str, log: list[dict[str, Any]]) -> None:
    kinds = (pa.int64(), pa.string(), pa.string(), pa.timestamp("us", "UTC"), pa.float32(), pa.int64())
    schema = pa.schema(list(zip(log[0], kinds, strict=True)))
    path = project.events_dir / "bucket=00" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(log, schema), path)


def synced(project: Project, bundle: Bundle, now_us: int) -> Pack:
    """Segment, keep the newest row of each slot as an online store does, make the pack."""
    segment(project, Wish(bundle.folder, from_us(now_us)))
    newest: list[pa.Table] = []
    for view in ("segments", "users"):
        files = sorted(project.rows_dir(f"{view}_e1").glob("*.parquet"))
        table = pa.concat_tables([pq.ParquetFile(file).read() for file in files]).sort_by(
            [("closed_at", "ascending"), ("created", "ascending")]
        )
        slots = table["slot"].to_pylist() if view == "segments" else [-1] * len(table)
        kept = table.take(pa.array(sorted({slot: row for row, slot in enumerate(slots)}.values())))
        newest.append(kept.append_column("__event_us", kept["closed_at"].cast(pa.int64())))
    record = json.loads(table.schema.metadata[b"pocketrank.segment"])
    tags = {axis: str(size) for axis, size in record["sizes"].items()} | {"encoder_id": "e1"}
    tags |= {"compaction": record["compaction"]["kind"], "levels": str(record["compaction"].get("levels", 0))}
    layout = Layout.of(tags)
    assert layout is not None
    (pack,) = composed(newest[1], in_seconds(newest[0]), np.zeros(len(newest[0]), np.int64), layout, [7])
    assert isinstance(pack, Pack), pack
    return pack


def in_seconds(table: pa.Table) -> pa.Table:
    """Times as Feast keeps them online."""
    for name in ("segment_start", "segment_end"):
        whole = pc.floor_temporal(table[name], unit="second").cast(pa.timestamp("s"))
        table = table.set_column(table.schema.get_field_index(name), name, whole)
    return table


@pytest.mark.parametrize("compaction", COMPACTIONS, ids=["ring", "log"])
@pytest.mark.parametrize("policy", POLICIES, ids=[policy.kind for policy in POLICIES])
def test_a_phone_comes_to_what_the_server_comes_to(tmp_path: Path, policy: Any, compaction: dict[str, Any]) -> None:
    folder = write_bundle(tmp_path / "bundle", IDS, policy=policy_settings(policy), slots=SLOTS, compaction=compaction)
    bundle, grew = Bundle.open(folder), 0
    for seed, (events, at) in enumerate([(60, 30), (90, 13), (40, 39), (90, 70)]):
        log = history(seed, events)
        project = Project(tmp_path / str(seed), {})
        reached, end = log[at]["timestamp"], log[-1]["timestamp"] + 30 * 86400 * US
        deliver(project, "a", log)
        early = synced(project, bundle, reached)
        early.save(tmp_path / "early")
        late = synced(project, bundle, end)
        assert early.through <= late.through
        grew += early.through < late.through
        with Ranker.open(folder, pack=tmp_path / "early") as ranker:
            for row in log:  # the phone saw all of it, and counts nothing twice
                ranker.observe(row["item_id"], row["behavior"], row["score"], from_us(row["timestamp"]))
            known = ranker._holding.state(end).situation
        closed = known.closed
        assert len(closed) == len(late)
        for name in ("vectors", "scales", "weight", "n_events", "level", "ordinal_first", "ordinal_last", "top_items"):
            assert np.array_equal(getattr(closed, name), getattr(late, name)), name
        assert np.array_equal(closed.start_us // US, late.start_s)
        assert np.array_equal(closed.end_us // US, late.end_s)
        if not len(known.live):  # F is 3: the phone cannot know what the pack left out
            counts = dict(zip(late.memory_items.tolist(), late.memory_counts.tolist(), strict=True))
            here = dict(zip(known.memory.items.tolist(), known.memory.counts.tolist(), strict=True))
            for item in {*early.memory_items.tolist()} & {*counts}:
                assert here[item] == counts[item]
    assert grew >= 3


def test_a_phone_knows_the_pace_of_events_that_only_the_server_saw(tmp_path: Path) -> None:
    """A minute between events makes half an hour a long pause, and the pack says that it was a minute."""
    folder = write_bundle(tmp_path / "bundle", IDS, policy=policy_settings(POLICIES[-1]), slots=SLOTS)
    log = history(0, 11)
    for number, row in enumerate(log):
        row["timestamp"] = START + (60 * number + (1740 if number > 8 else 0)) * US
    project = Project(tmp_path, {})
    deliver(project, "a", log)
    bundle = Bundle.open(folder)
    synced(project, bundle, log[8]["timestamp"] + US).save(tmp_path / "early")
    late = synced(project, bundle, START + 10**6 * US)
    assert late.n_events.tolist() == [4, 4, 1, 2]
    with Ranker.open(folder, pack=tmp_path / "early") as ranker:
        for row in log[8:]:
            ranker.observe(row["item_id"], row["behavior"], row["score"], from_us(row["timestamp"]))
        assert ranker._holding.state(START + 10**6 * US).situation.closed.n_events.tolist() == [4, 4, 1, 2]


@pytest.mark.parametrize("compaction", COMPACTIONS, ids=["ring", "log"])
def test_rows_with_int8_vectors_make_the_same_packs(tmp_path: Path, compaction: dict[str, Any]) -> None:
    bundle = Bundle.open(write_bundle(tmp_path / "bundle", IDS, slots=SLOTS, compaction=compaction))
    packs, sizes = [], []
    for kind in ("float32", "int8"):
        project = Project(tmp_path / kind, {"segments": {"vectors": kind}})
        deliver(project, "a", history(0, 90))
        packs.append(synced(project, bundle, START + 10**9 * US).to_bytes())
        (file,) = project.rows_dir("segments_e1").glob("*.parquet")
        sizes.append(pq.ParquetFile(file).schema_arrow.field("vectors").type)
    assert packs[0] == packs[1]
    assert sizes == [pa.list_(pa.float32()), pa.binary()]


def test_a_pack_of_another_compaction_is_refused_by_name(tmp_path: Path) -> None:
    ring = Bundle.open(write_bundle(tmp_path / "ring", IDS, slots=SLOTS))
    log = write_bundle(tmp_path / "log", IDS, slots=SLOTS, compaction=COMPACTIONS[1])
    project = Project(tmp_path, {})
    deliver(project, "a", history(0, 90))
    synced(project, ring, START + 10**9 * US).save(tmp_path / "pack")
    with pytest.raises(
        BadPack, match=r"its 5 segments are not what a log of 5 slots leaves, as this bundle wants it; sync"
    ):
        Ranker.open(log, pack=tmp_path / "pack")
