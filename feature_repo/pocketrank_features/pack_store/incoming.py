"""Rows as Feast hands them to an online store, made ready for rings: records of protobuf values, or an Arrow table.

An entity key is split into the owner, which is the key but for an integer `slot`, and the slot.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

from pocketrank.errors import BadInput
from pocketrank.groups import Int64Array
from pocketrank_features.pack_store.composing import EVENT_US
from pocketrank_features.pack_store.rings import NO_SLOT, SLOT, Rows
from pocketrank_features.pack_store.values import column_of, stored, values_of

Record = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
SLOT_KEY = "slot"
KEY_VERSION = 3
EPOCH = datetime(1970, 1, 1)
MICROSECOND = timedelta(microseconds=1)


def place_of(key: EntityKey) -> tuple[bytes, int]:
    """Owner and slot of an entity key; -1 where it has no slot."""
    slot, names, values = NO_SLOT, [], []
    for name, value in zip(key.join_keys, key.entity_values, strict=True):
        if name == SLOT_KEY and value.HasField("int64_val"):
            slot = value.int64_val
        else:
            names.append(name)
            values.append(value)
    return owner_of(names, values), slot


def owner_of(names: Sequence[str], values: Sequence[Value]) -> bytes:
    """The key of an owner."""
    key: bytes = serialize_entity_key(EntityKey(join_keys=names, entity_values=values), KEY_VERSION)
    return key


def rows_of_records(view: FeatureView, records: Sequence[Record]) -> Rows:
    """What `online_write_batch` is given; a time without a zone is UTC, as everywhere in Feast."""
    number: dict[bytes, int] = {}
    places = [place_of(key) for key, *_ in records]
    owner = np.array([number.setdefault(owner, len(number)) for owner, _ in places], np.int64)
    dtypes = {field.name: field.dtype for field in view.features}
    names = dict.fromkeys([*dtypes, *(name for _, values, *_ in records for name in values)])
    nothing = Value()
    columns = {
        name: column_of([values.get(name, nothing) for _, values, *_ in records], dtypes.get(name)) for name in names
    }
    slot = [slot for _, slot in places]
    event_us = [_microseconds(moment) for *_, moment, _ in records]
    return Rows(list(number), owner, _table(slot, event_us, columns))


def rows_of_table(view: FeatureView, table: pa.Table) -> Rows:
    """The same of a table that an offline store gave: a column each key, each feature, and the event time.

    Raises:
        BadInput: a column is missing or of a type that cannot be; or a key or a time is null.
    """
    source = view.batch_source
    wanted = [*(field.name for field in view.entity_columns + view.features), source.timestamp_field]
    if missing := [name for name in wanted if name not in table.column_names]:
        raise BadInput(f"{view.name}: the rows of {source.name} have no column {', '.join(missing)}; mend the source")
    kept = {field.name: _stored(view, table, field) for field in view.entity_columns + view.features}
    keys = {field.name: kept[field.name] for field in view.entity_columns}
    slot = keys.pop(SLOT_KEY) if SLOT_KEY in keys and pa.types.is_int64(keys[SLOT_KEY].type) else None
    times = table[source.timestamp_field].combine_chunks()
    if times.type == pa.timestamp("ns", getattr(times.type, "tz", None)):
        times = pc.floor_temporal(times, unit="microsecond")
    times = times.cast(pa.timestamp("us")).cast(pa.int64())
    for name, column in {**keys, SLOT_KEY: slot, source.timestamp_field: times}.items():
        if column is not None and column.null_count:
            raise BadInput(f"{view.name}: {column.null_count} rows of {source.name} have no {name}; mend the source")
    owners, owner = _owners(keys, len(table))
    slots = np.full(len(table), NO_SLOT) if slot is None else slot
    return Rows(owners, owner, _table(slots, times, {field.name: kept[field.name] for field in view.features}))


def _stored(view: FeatureView, table: pa.Table, field: Any) -> pa.Array:
    column = table[field.name].combine_chunks()
    return stored(column, field.dtype, f"{view.name}: column {field.name}")


def _owners(keys: Mapping[str, pa.Array], rows: int) -> tuple[list[bytes], Int64Array]:
    """The distinct owners, and the place of each row's among them."""
    encoded = {name: column.dictionary_encode() for name, column in keys.items()}
    codes = np.zeros((rows, 0), np.int64)
    if encoded:
        codes = np.stack([column.indices.to_numpy() for column in encoded.values()], axis=1)
    if len(encoded) == 1:
        owner, (column,) = codes[:, 0].astype(np.int64), encoded.values()
        distinct = np.arange(len(column.dictionary))[:, None]
    else:
        distinct, owner = np.unique(codes, axis=0, return_inverse=True)
    values = [
        values_of(column.dictionary.take(pa.array(distinct[:, place]))) for place, column in enumerate(encoded.values())
    ]
    of_each = zip(*values, strict=True) if values else [()] * min(rows, 1)
    return [owner_of(list(keys), found) for found in of_each], owner.reshape(-1)


def _table(slot: Any, event_us: Any, columns: Mapping[str, pa.Array]) -> pa.Table:
    place = [pa.array(slot, pa.int64()), pa.array(event_us, pa.int64())]
    return pa.table([*place, *columns.values()], names=[SLOT, EVENT_US, *columns])


def _microseconds(moment: datetime) -> int:
    naive = moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
    return (naive - EPOCH) // MICROSECOND
