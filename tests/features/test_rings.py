"""Rings, packs and values against slow references: one row, one user, one value at a time, in plain Python."""

import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import (
    Array,
    Bool,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    Json,
    Map,
    Set,
    String,
    UnixTimestamp,
    Uuid,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.compaction import Kept, Log, Ring
from pocketrank.errors import BadInput, BundleMismatch, NotReady
from pocketrank.pack import Pack
from pocketrank.quantise import dequantise
from pocketrank_features.pack_store import ring_store
from pocketrank_features.pack_store.composing import EVENT_US, Layout, composed, trimmed
from pocketrank_features.pack_store.rings import SLOT, Rows, fingerprint_in, merged, opened
from pocketrank_features.pack_store.values import column_of, stored, values_of

# Feast tells of its own next release.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:feast")

# ---------------------------------------------------------------------------------------------------------------------
# Rings

# What a feature is in a view's schema at some time; None where the view has no such feature.
KINDS = {"int64_val": pa.int64(), "string_val": pa.string(), "float_list_val": pa.list_(pa.float32())}
SAMPLES = {
    "int64_val": st.integers(-3, 3),
    "string_val": st.sampled_from(["", "a", "ü"]),
    "float_list_val": st.lists(st.sampled_from([0.5, -1.0]), max_size=2),
}
Schema = dict[str, str]  # feature -> kind
Written = tuple[int, int, int, dict[str, Any]]  # owner, slot, time, values
Held = dict[int, tuple[int, dict[str, Any]]]  # slot -> time, protobuf values


@st.composite
def rounds(draw: st.DrawFn) -> list[tuple[Schema, list[Written]]]:
    """Writes to one view, whose schema changes from one to the next."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        schema = {
            name: kind
            for name, kind in {
                "generation": draw(st.sampled_from(["int64_val", "int64_val", "int64_val", None])),
                "a": draw(st.sampled_from([*KINDS, None])),
                "b": draw(st.sampled_from(["int64_val", "int64_val", "string_val"])),
            }.items()
            if kind
        }
        row = st.tuples(
            st.integers(0, 3),
            st.sampled_from([-1, 0, 1, 7]),
            st.integers(-2, 2),
            st.fixed_dictionaries({name: st.none() | SAMPLES[kind] for name, kind in schema.items()}),
        )
        found.append((schema, draw(st.lists(row, min_size=1, max_size=12))))
    return found


def proto(kind: str, value: Any) -> Value:
    if value is None:
        return Value()
    return Value(**{kind: {"val": value} if kind.endswith("_list_val") else value})


def as_rows(schema: Schema, written: list[Written]) -> tuple[Rows, list[int]]:
    """What `incoming` would make of them, and who the owners are."""
    owners = list(dict.fromkeys(owner for owner, *_ in written))
    columns = {name: pa.array([values[name] for *_, values in written], KINDS[kind]) for name, kind in schema.items()}
    place = {
        SLOT: pa.array([slot for _, slot, *_ in written], pa.int64()),
        EVENT_US: pa.array([time for _, _, time, _ in written], pa.int64()),
    }
    number = np.array([owners.index(owner) for owner, *_ in written], np.int64)
    return Rows([b"%d" % owner for owner in owners], number, pa.table({**place, **columns})), owners


def write_slowly(held: dict[int, Held], schema: Schema, written: list[Written]) -> None:
    """The reference: one dict an owner; whoever is written to has the columns of the newest schema alone."""
    for owner in {owner for owner, *_ in written}:
        for slot, (time, values) in held.setdefault(owner, {}).items():
            held[owner][slot] = (time, {name: values.get(name, Value()) for name in schema})
    for owner, slot, time, values in written:
        row = (time, {name: proto(kind, values[name]) for name, kind in schema.items()})
        there = held[owner].get(slot)
        if there is None or (row[1].get("generation", Value()).int64_val, time) >= (
            there[1].get("generation", Value()).int64_val,
            there[0],
        ):
            held[owner][slot] = row


def read(batch: pa.RecordBatch) -> Held:
    features = [name for name in batch.schema.names if name not in (SLOT, EVENT_US)]
    columns = {name: values_of(batch.column(name)) for name in features}
    places = zip(batch.column(SLOT).to_pylist(), batch.column(EVENT_US).to_pylist(), strict=True)
    assert batch.column(SLOT).to_pylist() == sorted(set(batch.column(SLOT).to_pylist())), "by slot, and each once"
    return {slot: (time, {name: columns[name][n] for name in features}) for n, (slot, time) in enumerate(places)}


@settings(max_examples=200)
@given(rounds())
def test_rings_are_what_writing_row_by_row_into_dicts_gives(writes: list[tuple[Schema, list[Written]]]) -> None:
    wanted: dict[int, Held] = {}
    blobs: dict[int, bytes] = {}
    schemas: dict[bytes, pa.Schema] = {}

    def batch_of(owner: int) -> pa.RecordBatch | None:
        return opened(blobs[owner], schemas[fingerprint_in(blobs[owner])]) if owner in blobs else None

    for schema, written in writes:
        write_slowly(wanted, schema, written)
        rows, owners = as_rows(schema, written)
        rings = merged([batch_of(owner) for owner in owners], rows)
        for owner, blob in zip(owners, rings.blobs(), strict=True):
            assert blob is not None
            schemas[fingerprint_in(blob)] = rings.batch.schema
            blobs[owner] = blob
        assert {owner: read(batch) for owner in blobs if (batch := batch_of(owner)) is not None} == wanted


@given(rounds(), st.data())
def test_what_is_in_a_ring_does_not_hang_on_who_else_is_written(
    writes: list[tuple[Schema, list[Written]]], data: st.DataObject
) -> None:
    schema, written = writes[0]
    rows, owners = as_rows(schema, written)
    together = merged([None] * len(owners), rows)
    one = data.draw(st.integers(0, len(owners) - 1))
    alone = merged([None], rows.of([rows.owners[one]]))
    assert alone.batch.equals(together.part(np.array([one])).batch)
    for blob in (alone.blobs()[0], together.blobs()[one]):
        assert blob is not None
        assert opened(blob, together.batch.schema).equals(alone.batch)


def test_rows_that_all_were_refused_leave_no_blob() -> None:
    rows, _ = as_rows({"b": "int64_val"}, [(1, 0, 5, {"b": 1}), (2, 0, 5, {"b": 2})])
    nothing = Rows(rows.owners, rows.owner[:0], rows.table.slice(0, 0))
    assert merged([None, None], nothing).blobs() == [None, None]


def test_every_flipped_bit_of_a_blob_is_noticed() -> None:
    rows, _ = as_rows({"b": "int64_val"}, [(1, 0, 5, {"b": 1}), (1, 3, 5, {"b": None})])
    rings = merged([None], rows)
    (blob,) = rings.blobs()
    assert blob is not None
    for place in range(len(blob)):
        damaged = bytearray(blob)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(BadInput, match="damaged"):
            opened(bytes(damaged), rings.batch.schema)
    for length in range(len(blob)):
        with pytest.raises(BadInput, match="damaged"):
            opened(blob[:length], rings.batch.schema)
    assert opened(blob, rings.batch.schema).equals(rings.batch)


@given(st.lists(st.integers(0, 6), max_size=40), st.integers(1, 5), st.integers(1, 4))
def test_steps_hold_whole_owners_and_no_more_than_they_may(owner: list[int], rows_at: int, owners_at: int) -> None:
    owners = sorted(set(owner))
    place = np.array([owners.index(one) for one in owner], np.int64)
    table = pa.table({"n": pa.array(range(len(owner)), pa.int64())})
    rows = Rows([b"%d" % one for one in owners], place, table)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring_store, "ROWS_AT_ONCE", rows_at)
        patch.setattr(ring_store, "OWNERS_AT_ONCE", owners_at)
        parts = list(ring_store._parts(rows)) if owners else []
    assert [one for part in parts for one in part.owners] == rows.owners
    found: dict[bytes, list[int]] = {}
    for part in parts:
        assert len(part.owners) <= owners_at
        assert len(part.owner) <= rows_at or len(part.owners) == 1
        for one, number in zip(part.owner.tolist(), part.table["n"].to_pylist(), strict=True):
            found.setdefault(part.owners[one], []).append(number)
    assert found == {b"%d" % one: [n for n, other in enumerate(owner) if other == one] for one in owners}


# ---------------------------------------------------------------------------------------------------------------------
# Packs

K, D, T = 2, 3, 2
SECOND = 1_000_000


@dataclass
class Run:
    """What a run of the segment job left of one user.

    Attributes:
        rows: those it wrote to the segments view, by slot.
        users_row: that of the users view.
        kept: all segments the user has after it, oldest first: what the pack must hold.
    """

    rows: list[dict[str, Any]]
    users_row: dict[str, Any]
    kept: list[dict[str, Any]]


def fresh(rng: np.random.Generator, first: int, ends: list[int]) -> Kept:
    """Segments as they were cut; the int8 are such that quantising the floats again gives them back."""
    n = len(ends)
    vectors = rng.integers(-127, 128, (n, K, D)).astype(np.int8)
    vectors[..., 0] = 127
    vectors[rng.random((n, K)) < 0.1] = 0
    scales = np.where(vectors.any(axis=-1), rng.choice([0.003, 0.5, 2.0], (n, K)), 1).astype(np.float32)
    ordinal = np.arange(first, first + n)
    return Kept(
        vectors=vectors,
        scales=scales,
        start_us=np.array(ends, np.int64) - rng.integers(0, 3 * SECOND, n),
        end_us=np.array(ends, np.int64),
        weight=rng.integers(0, 9, n).astype(np.float32) / 2,
        n_events=rng.integers(1, 20, n),
        ordinal_first=ordinal,
        ordinal_last=ordinal,
        level=np.zeros(n, np.int64),
        top_items=rng.integers(-1, 9, (n, T)).astype(np.int32),
        behavior_counts=rng.integers(0, 5, (n, 2)),
    )


def row_of(kept: Kept, at: int, closed_at_us: dict[int, int], generation: int) -> dict[str, Any]:
    return {
        EVENT_US: closed_at_us[int(kept.ordinal_last[at])],
        "closed_at_us": closed_at_us[int(kept.ordinal_last[at])],
        "segment_start": int(kept.start_us[at]) // SECOND,
        "segment_end": int(kept.end_us[at]) // SECOND,
        "ordinal_first": int(kept.ordinal_first[at]),
        "ordinal_last": int(kept.ordinal_last[at]),
        "level": int(kept.level[at]),
        "generation": generation,
        "n_events": int(kept.n_events[at]),
        "score_sum": float(kept.weight[at]),
        "top_items": kept.top_items[at].tolist(),
        "vectors": dequantise(kept.vectors[at], kept.scales[at]).ravel().tolist(),
    }


def history(rng: np.random.Generator, compaction: Ring | Log, sizes: list[list[int]]) -> list[Run]:
    """The runs of one user: of each generation, how many segments closed in each of its runs."""
    runs = []
    for generation, closed in enumerate(sizes):
        held, end, clock = Kept.none(K, D, T, 2), int(rng.integers(-9, 9)) * SECOND, 0
        closed_at_us: dict[int, int] = {}
        number = 0
        for n in closed:
            ends = []
            for _ in range(n):
                # Segments often end in one second, for a long basket is cut in two, and close at one time.
                end += int(rng.choice([0, 5, SECOND, 40 * SECOND]))
                clock = max(clock, end) + int(rng.choice([0, 1, SECOND]))
                closed_at_us[number + len(ends)] = clock
                ends.append(end)
            new = fresh(rng, number, ends)
            done = compaction.compact(held, np.array([0, len(held)]), new, np.array([0, n]), np.array([number]))
            held, number = done.kept, number + n
            # Rows of one time in one slot differ in `created`; the store has the later one, which stands later.
            rows = [
                {SLOT: int(done.slot[at]), **row_of(done.written, at, closed_at_us, generation)}
                for at in range(len(done.written))
            ]
            items = rng.permutation(9)[: rng.integers(0, 4)].tolist()
            users_row = {
                EVENT_US: clock,
                "closed_at_us": clock,
                "generation": generation,
                "n_segments": number,
                "through_us": end,
                "through_count": int(rng.integers(1, 4)),
                "memory_items": items,
                "memory_counts": [float(rng.integers(1, 9)) for _ in items],
                "memory_decayed": [float(rng.random()) for _ in items],
                "memory_first_s": [int(rng.integers(-9, 9)) for _ in items],
                "memory_last_s": [int(rng.integers(9, 99)) for _ in items],
            }
            runs.append(Run(rows, users_row, [row_of(held, at, closed_at_us, generation) for at in range(len(held))]))
    return runs


def written_partly(rng: np.random.Generator, runs: list[Run]) -> tuple[list[dict[str, Any]], list[dict[str, Any]], Run]:
    """Rows in the slots, in any order, where some writes of the newest run did not happen or happened before others'.

    Returns:
        What the slots hold; what the last run of the users row's kept; that run.
    """
    slots: dict[int, dict[str, Any]] = {}
    last = int(rng.integers(len(runs)))
    for number, run in enumerate(runs[: last + 1]):
        rows = run.rows
        if number == last and rng.random() < 0.5:
            rows = [row for row in rows if rng.random() < 0.7]
        for row in rows:
            there = slots.get(row[SLOT])
            if there is None or (row["generation"], row[EVENT_US]) >= (there["generation"], there[EVENT_US]):
                slots[row[SLOT]] = row
    if rng.random() < 0.1 and slots:
        del slots[int(rng.choice(list(slots)))]
    whose = runs[int(rng.integers(max(0, last - 1), min(len(runs), last + 2)))]
    found = [slots[slot] for slot in rng.permutation(list(slots))] if slots else []
    return found, whose.kept, whose


def covers(wide: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether a row has in it what another one has, and is the one to keep."""
    outside = wide["ordinal_first"] <= row["ordinal_first"] and wide["ordinal_last"] >= row["ordinal_last"]
    size = [one["ordinal_last"] - one["ordinal_first"] for one in (wide, row)]
    return outside and (size[0] > size[1] or wide["closed_at_us"] > row["closed_at_us"])


def composed_slowly(slots: list[dict[str, Any]], kept: list[dict[str, Any]], whose: Run) -> Pack | None:
    """The reference: a pack of exactly what the users row's run kept, or none."""
    generation = whose.users_row["generation"]
    if any(row["generation"] > generation for row in slots):
        return None
    mine = [row for row in slots if row["generation"] == generation]
    current = [row for row in mine if not any(covers(other, row) for other in mine)]
    current.sort(key=lambda row: row["ordinal_first"])
    if not current or [{**row, SLOT: 0} for row in current] != [{**row, SLOT: 0} for row in kept]:
        return None
    memory = sorted(
        zip(*(whose.users_row[name] for name in MEMORY), strict=True),
        key=lambda item: item[0],
    )
    columns = list(zip(*memory, strict=True)) or [()] * len(MEMORY)
    vectors = [[quantised_slowly(row["vectors"][k * D : k * D + D]) for k in range(K)] for row in current]
    return Pack(
        encoder_id="e",
        version=(generation, max(row["closed_at_us"] for row in current)),
        through=(whose.users_row["through_us"], whose.users_row["through_count"]),
        vectors=np.array([[vector for vector, _ in row] for row in vectors], np.int8),
        scales=np.array([[scale for _, scale in row] for row in vectors], np.float32),
        start_s=np.array([row["segment_start"] for row in current], np.int64),
        end_s=np.array([row["segment_end"] for row in current], np.int64),
        weight=np.array([row["score_sum"] for row in current], np.float32),
        n_events=np.array([row["n_events"] for row in current], np.int32),
        level=np.array([row["level"] for row in current], np.int8),
        ordinal_first=np.array([row["ordinal_first"] for row in current], np.int32),
        ordinal_last=np.array([row["ordinal_last"] for row in current], np.int32),
        top_items=np.array([row["top_items"] for row in current], np.int32),
        memory_items=np.array(columns[0], np.int32),
        memory_counts=np.array(columns[1], np.float32),
        memory_decayed=np.array(columns[2], np.float32),
        memory_first_s=np.array(columns[3], np.int64),
        memory_last_s=np.array(columns[4], np.int64),
    )


MEMORY = ("memory_items", "memory_counts", "memory_decayed", "memory_first_s", "memory_last_s")


def quantised_slowly(vector: list[float]) -> tuple[list[int], float]:
    """docs/formats.md, "Quantiser", in exact arithmetic but for the scale, which float32 rounds."""
    peak = max(abs(x) for x in vector)
    scale = float(np.float32(peak) / np.float32(127)) if peak else 1.0
    return [round(Fraction(x) / Fraction(scale)) for x in vector], scale


RING_KINDS = {
    **dict.fromkeys((SLOT, EVENT_US, "closed_at_us", "ordinal_first", "ordinal_last"), pa.int64()),
    **dict.fromkeys(("level", "generation", "n_events"), pa.int64()),
    **dict.fromkeys(("segment_start", "segment_end"), pa.timestamp("s")),
    "score_sum": pa.float32(),
    "top_items": pa.list_(pa.int64()),
    "vectors": pa.list_(pa.float32()),
}
USER_KINDS = {
    **dict.fromkeys((EVENT_US, "closed_at_us", "generation", "n_segments", "through_us", "through_count"), pa.int64()),
    **dict.fromkeys(("memory_items", "memory_first_s", "memory_last_s"), pa.list_(pa.int64())),
    **dict.fromkeys(("memory_counts", "memory_decayed"), pa.list_(pa.float32())),
}


def table_of(rows: Sequence[dict[str, Any]], kinds: dict[str, pa.DataType]) -> pa.Table:
    return pa.table({name: pa.array([row.get(name) for row in rows], kind) for name, kind in kinds.items()})


def as_bytes(rings: pa.Table) -> pa.Table:
    """Vectors as rows have them with [segments] vectors = "int8"."""
    whole = []
    for floats in rings["vectors"].to_pylist():
        parts = [quantised_slowly(floats[k * D : k * D + D]) for k in range(K)]
        packed = [struct.pack(f"<{D}b", *vector) for vector, _ in parts]
        whole.append(b"".join([*packed, *(struct.pack("<f", scale) for _, scale in parts)]))
    place = rings.column_names.index("vectors")
    return rings.set_column(place, "vectors", pa.array(whole, pa.binary()))


COMPACTIONS = st.sampled_from([Ring(3), Ring(1), Log(3, 1), Log(5, 2), Log(6, 2)])
GENERATIONS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3)


@settings(max_examples=200)
@given(COMPACTIONS, st.lists(GENERATIONS, min_size=1, max_size=4), st.integers(0, 2**32 - 1), st.booleans())
def test_packs_are_made_of_the_rows_a_run_left_and_of_nothing_else(
    compaction: Ring | Log, users: list[list[list[int]]], seed: int, packed: bool
) -> None:
    rng = np.random.default_rng(seed)
    stores = [written_partly(rng, history(rng, compaction, sizes)) for sizes in users]
    owner = np.repeat(np.arange(len(stores)), [len(slots) for slots, *_ in stores])
    rings = table_of([row for slots, *_ in stores for row in slots], RING_KINDS)
    rows = table_of([whose.users_row for *_, whose in stores], USER_KINDS)
    layout = Layout("e", K, D, T, compaction)
    found = composed(rows, as_bytes(rings) if packed else rings, owner, layout, list(range(len(stores))))
    wanted = [composed_slowly(*stored) for stored in stores]
    for user, (pack, reference) in enumerate(zip(found, wanted, strict=True)):
        if reference is None:
            assert isinstance(pack, NotReady)
            assert str(pack).startswith(f"user {user}: ")
        else:
            assert isinstance(pack, Pack)
            assert pack.to_bytes() == reference.to_bytes()
            assert compaction.fits(Kept.none(K, D, T, 0)) or len(pack) <= compaction.slots


def test_those_histories_lead_to_packs_and_to_none_in_good_measure() -> None:
    """Guards the test above: that it sees whole rings, merged rows, rebuilt and half-written ones."""
    rng = np.random.default_rng(3)
    made = merged_rows = several = missing = 0
    for _ in range(300):
        runs = history(rng, Log(5, 2), [[3, 4], [2, 5]])
        slots, kept, whose = written_partly(rng, runs)
        pack = composed_slowly(slots, kept, whose)
        made += pack is not None
        missing += pack is None
        merged_rows += pack is not None and bool(pack.level.any())
        several += pack is not None and pack.version[0] > 0
    assert min(made, missing, merged_rows, several) > 30


def test_segments_that_end_in_the_second_of_the_users_row_but_closed_later_make_no_pack_of_two_runs() -> None:
    """A basket of more events than a segment holds: the first part closes at once, the second when the gap is over."""
    rng = np.random.default_rng(1)
    first, second = history(rng, Ring(4), [[1, 1]])
    first.users_row["through_us"] = second.users_row["through_us"]
    for row in (*first.rows, *second.rows):
        row["segment_end"] = second.users_row["through_us"] // SECOND
    layout = Layout("e", K, D, T, Ring(4))
    both = table_of([*first.rows, *second.rows], RING_KINDS)
    (pack,) = composed(table_of([first.users_row], USER_KINDS), both, np.zeros(2, np.int64), layout, ["ann"])
    assert isinstance(pack, NotReady)
    (pack,) = composed(table_of([second.users_row], USER_KINDS), both, np.zeros(2, np.int64), layout, ["ann"])
    assert isinstance(pack, Pack)


def test_segments_that_closed_at_one_time_make_no_pack_until_the_last_of_them_is_there() -> None:
    """Receipts of one moment, every event of which closes a segment."""
    (run,) = history(np.random.default_rng(2), Ring(32), [[20]])
    for row in (*run.rows, run.users_row):
        row["closed_at_us"] = row[EVENT_US] = run.users_row["closed_at_us"]
    layout, users = Layout("e", K, D, T, Ring(32)), table_of([run.users_row], USER_KINDS)
    for there in range(1, 21):
        rings = table_of(run.rows[:there], RING_KINDS)
        (pack,) = composed(users, rings, np.zeros(there, np.int64), layout, ["ann"])
        assert isinstance(pack, Pack if there == 20 else NotReady)


def test_no_pack_is_made_of_older_rows_beside_rows_of_a_newer_generation() -> None:
    first, rebuilt = history(np.random.default_rng(4), Ring(3), [[1], [2]])
    layout = Layout("e", K, D, T, Ring(3))
    rows = [*first.rows, rebuilt.rows[1]]  # the other one is on its way, into the slot of the older
    users = table_of([first.users_row], USER_KINDS)
    (pack,) = composed(users, table_of(rows[:1], RING_KINDS), np.zeros(1, np.int64), layout, ["ann"])
    assert isinstance(pack, Pack)
    (pack,) = composed(users, table_of(rows, RING_KINDS), np.zeros(2, np.int64), layout, ["ann"])
    assert isinstance(pack, NotReady)


@pytest.mark.parametrize("bad", [[1.0], None, [1.0, 2.0, 3.0]])
def test_a_users_row_with_a_memory_of_unlike_lengths_is_told_of_its_user_alone(bad: Any) -> None:
    runs = [history(np.random.default_rng(n), Ring(3), [[4]])[0] for n in range(3)]
    for run in runs:
        run.users_row.update({name: [1, 2] for name in MEMORY})
    wanted = [dict(run.users_row) for run in runs]
    runs[1].users_row["memory_counts"] = bad
    rows = table_of([row for run in runs for row in run.rows[-3:]], RING_KINDS)
    layout, users = Layout("e", K, D, T, Ring(3)), table_of([run.users_row for run in runs], USER_KINDS)
    ann, bob, eve = composed(users, rows, np.repeat(np.arange(3), 3), layout, ["ann", "bob", "eve"])
    assert isinstance(bob, BundleMismatch)
    assert str(bob).startswith("user 'bob': the columns of the item memory are not of one length; run: pocketrank seg")
    for pack, row in ((ann, wanted[0]), (eve, wanted[2])):
        assert isinstance(pack, Pack)
        assert pack.memory_counts.tolist() == row["memory_counts"]


@pytest.mark.parametrize(("column", "bad"), [("vectors", [1.0]), ("vectors", None), ("top_items", [1, 2, 3])])
def test_a_row_of_another_size_is_told_of_its_user_alone(column: str, bad: Any) -> None:
    rng = np.random.default_rng(2)
    runs = [history(rng, Ring(3), [[4]])[0] for _ in range(3)]
    rows = [row for run in runs for row in run.rows[-3:]]
    rows[4] = {**rows[4], column: bad}
    owner = np.repeat(np.arange(3), 3)
    users = table_of([run.users_row for run in runs], USER_KINDS)
    layout = Layout("e", K, D, T, Ring(3))
    ann, bob, eve = composed(users, table_of(rows, RING_KINDS), owner, layout, ["ann", "bob", "eve"])
    assert isinstance(bob, BundleMismatch)
    assert "user 'bob': vectors or top_items of a segment are not of K, D, T = 2, 3, 2; run: " in str(bob)
    for pack, run in ((ann, runs[0]), (eve, runs[2])):
        assert isinstance(pack, Pack)
        assert pack.through == (run.users_row["through_us"], run.users_row["through_count"])


@given(st.integers(0, 2**32 - 1), st.integers(-30, 400))
def test_trimming_leaves_out_what_ended_before_and_nothing_else(seed: int, oldest_s: int) -> None:
    rng = np.random.default_rng(seed)
    run = history(rng, Ring(5), [[7]])[0]
    pack = composed_slowly(run.kept, run.kept, run)
    assert pack is not None
    found = trimmed(pack, oldest_s)
    stay = [n for n, end in enumerate(pack.end_s.tolist()) if end >= oldest_s]
    assert (found.version, found.through, found.encoder_id) == (pack.version, pack.through, pack.encoder_id)
    for name in ("vectors", "scales", "start_s", "end_s", "weight", "n_events", "level", "ordinal_first", "top_items"):
        assert getattr(found, name).tolist() == getattr(pack, name)[stay].tolist()
    assert found.ordinal_last.tolist() == pack.ordinal_last[stay].tolist()
    assert found.memory_items.tolist() == pack.memory_items.tolist()
    assert Pack.from_bytes(found.to_bytes(), "pack").end_s.tolist() == pack.end_s[stay].tolist()


def test_a_stored_pack_is_read_as_it_is_unless_something_in_it_is_too_old() -> None:
    run = history(np.random.default_rng(5), Ring(3), [[3]])[0]
    for row in run.kept:
        row["segment_end"] += 100 * row["ordinal_last"]
    pack = composed_slowly(run.kept, run.kept, run)
    assert pack is not None
    blob, oldest = ring_store._blob(pack), int(pack.end_s[0])
    for not_before in (None, oldest - 1, oldest):
        assert ring_store._served(blob, not_before, b"ann") == pack.to_bytes()
    for not_before in (oldest + 1, 10**6):
        assert ring_store._served(blob, not_before, b"ann") == trimmed(pack, not_before).to_bytes()
    negative = replace(pack, end_s=pack.end_s - 10**6)
    assert ring_store._served(ring_store._blob(negative), oldest - 10**6, b"ann") == negative.to_bytes()
    for place in range(len(blob)):
        damaged = bytearray(blob)
        damaged[place] ^= 16
        with pytest.raises(BadInput, match=r"pack of the entity whose key is b'ann' is damaged; write it anew: feast"):
            ring_store._served(bytes(damaged), None, b"ann")
    assert zlib.crc32(blob[4:]).to_bytes(4, "little") == blob[:4]


# ---------------------------------------------------------------------------------------------------------------------
# Values

FLOATS = st.floats(width=32, allow_nan=False) | st.just(math.nan)
SCALARS: dict[str, tuple[FeastType, pa.DataType, st.SearchStrategy[Any]]] = {
    "int32": (Int32, pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    "int64": (Int64, pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "float": (Float32, pa.float32(), FLOATS),
    "double": (Float64, pa.float64(), st.floats()),
    "bool": (Bool, pa.bool_(), st.booleans()),
    "string": (String, pa.string(), st.text(st.characters(codec="utf-8"), max_size=5)),
    "bytes": (Bytes, pa.binary(), st.binary(max_size=5)),
}
MOMENTS = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1)).map(lambda moment: moment.replace(tzinfo=UTC))


def same(found: Value, wanted: Value) -> bool:
    """Bit by bit, and all NaN alike: Feast's lists may hold some."""
    return found.SerializeToString(deterministic=True) == wanted.SerializeToString(deterministic=True)


def both_ways(column: pa.Array, dtype: FeastType) -> Iterator[tuple[Value, Value]]:
    """Each value as it comes out of a ring, and as Feast's own engine hands it to a store."""
    wanted = python_values_to_proto_values(column.to_numpy(zero_copy_only=False), dtype.to_value_type())
    through_arrow = values_of(stored(column, dtype, "view: column"))
    through_protobuf = values_of(column_of(wanted, dtype))
    assert all(same(*pair) for pair in zip(through_protobuf, wanted, strict=True))
    return zip(through_arrow, wanted, strict=True)


@pytest.mark.parametrize("name", SCALARS)
@pytest.mark.parametrize("shape", ["scalar", "list", "list with nulls"])
@settings(max_examples=40)
@given(data=st.data())
def test_plain_values_are_feasts_own(name: str, shape: str, data: st.DataObject) -> None:
    dtype, kind, values = SCALARS[name]
    if shape != "scalar":
        values = st.lists(values if shape == "list" or name == "float" else values | st.none(), max_size=3)
        dtype, kind = Array(dtype), pa.list_(kind)
    found = data.draw(st.lists(values, min_size=1, max_size=5))
    column = pa.array([*found, None] if data.draw(st.booleans()) and name != "int64" else found, kind)
    if any(isinstance(one, list) and None in one for one in found) and name in ("int32", "int64", "bool"):
        return  # Feast reads them as floats or objects, and refuses those
    if name == "bytes" and not any(found):
        return  # a column of nothing but empty bytes is one of nulls to Feast, and one more row makes them bytes
    assert all(same(*pair) for pair in both_ways(column, dtype))


@given(st.lists(MOMENTS, min_size=1, max_size=5), st.sampled_from(["s", "ms", "us"]), st.sampled_from([None, "UTC"]))
def test_times_are_whole_seconds_as_feast_has_them(moments: list[datetime], unit: str, zone: str | None) -> None:
    column = pa.array(moments, pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, "UTC"), safe=False)
    column = column if zone else column.cast(pa.timestamp(unit))
    assert all(same(*pair) for pair in both_ways(column, UnixTimestamp))


def test_a_moment_before_1970_is_the_second_it_is_in() -> None:
    moment = datetime(1969, 12, 31, 23, 59, 58, 999_999, tzinfo=UTC)
    (found,) = values_of(stored(pa.array([moment], pa.timestamp("us", "UTC")), UnixTimestamp, "view: column"))
    assert found.unix_timestamp_val == -2
    assert moment - timedelta(microseconds=999_999) == datetime.fromtimestamp(-2, UTC)


@pytest.mark.parametrize(
    ("dtype", "column"),
    [
        (Map, pa.array([{"a": 1, "b": "x"}, None], pa.struct([("a", pa.int64()), ("b", pa.string())]))),
        (Map, pa.array(['{"a": {"b": [1, 2]}}', None])),
        (Json, pa.array(['{"a": 1}', None, "[]"])),
        (Set(String), pa.array([["b", "a", "b"], None, []], pa.list_(pa.string()))),
        (Set(Int64), pa.array([[2, 1, 2], []], pa.list_(pa.int64()))),
        (Uuid, pa.array(["6ba7b810-9dad-11d1-80b4-00c04fd430c8", None])),
        (Array(UnixTimestamp), pa.array([[datetime(1969, 12, 31)], [], None], pa.list_(pa.timestamp("us")))),
        (Array(Array(Int64)), pa.array([[[1], [2, 3]], None, []], pa.list_(pa.list_(pa.int64())))),
    ],
)
def test_what_arrow_has_no_type_for_is_kept_as_feast_has_it(dtype: FeastType, column: pa.Array) -> None:
    pairs = list(both_ways(column, dtype))
    assert all(same(*pair) for pair in pairs)
    assert pairs[0][1].WhichOneof("val") is not None


def test_a_column_of_another_type_is_refused_with_both_types() -> None:
    with pytest.raises(BadInput, match=r"shop: column price: found string, wanted INT64 \(.*; write the col"):
        stored(pa.array(["cheap"]), Int64, "shop: column price")
    with pytest.raises(BadInput, match=r"shop: column price: found list<item: int64>, wanted FLOAT"):
        stored(pa.array([[1]]), Float32, "shop: column price")


def test_a_column_without_a_value_keeps_the_type_of_its_feature() -> None:
    assert column_of([Value(), Value()], Array(Float32)).type == pa.list_(pa.float32())
    assert [value.WhichOneof("val") for value in values_of(column_of([Value()], Int64))] == [None]
