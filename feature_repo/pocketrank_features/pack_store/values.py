"""Feast's values as Arrow columns, and back: what a feature is in a store that keeps rows as Arrow.

A scalar or a list of plain type has an Arrow type of its own, one for each kind of value, so nothing needs to be
remembered beside the column. What Arrow has no such type for (maps, sets, JSON, UUIDs, nested lists) is kept as the
serialised value itself. A missing value, and NaN as Feast reads it, is null.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import python_values_to_proto_values
from feast.types import FeastType

from pocketrank.errors import BadInput

SERIALISED = pa.large_binary()
_SCALARS = {
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "bytes": pa.binary(),
}
ARROW_OF = {
    **{f"{name}_val": kind for name, kind in _SCALARS.items()},
    **{f"{name}_list_val": pa.list_(kind) for name, kind in _SCALARS.items()},
    "unix_timestamp_val": pa.timestamp("s"),
}
_KIND_OF = {arrow: kind for kind, arrow in ARROW_OF.items()}
_PLAIN = {"UNIX_TIMESTAMP": "unix_timestamp_val"} | {
    f"{name.upper()}{suffix.upper()}": f"{name}{suffix}_val" for name in _SCALARS for suffix in ("", "_list")
}


def column_of(values: Sequence[Value], dtype: FeastType | None = None) -> pa.Array:
    """Values of one feature as a column; of their common kind where there is one that Arrow has a type for.

    Args:
        values: N of them.
        dtype: what they should be; says the type of a column with no value in it.
    """
    kinds: list[str | None] = [value.WhichOneof("val") for value in values]
    found = {kind for kind in kinds if kind} or {_PLAIN.get(dtype.to_value_type().name, "") if dtype else ""}
    kind = found.pop()
    if found or kind not in ARROW_OF:
        whole = [value.SerializeToString() if known else None for value, known in zip(values, kinds, strict=True)]
        return pa.array(whole, SERIALISED)
    if kind.endswith("_list_val"):
        lists = [list(getattr(v, kind).val) if known else None for v, known in zip(values, kinds, strict=True)]
        return pa.array(lists, ARROW_OF[kind])
    return pa.array(
        [getattr(v, kind) if known else None for v, known in zip(values, kinds, strict=True)], ARROW_OF[kind]
    )


def values_of(column: pa.Array) -> list[Value]:
    """What `column_of` was given, or would have been; an empty value for null."""
    if column.type == SERIALISED:
        return [Value.FromString(found) if found is not None else Value() for found in column.to_pylist()]
    kind = _KIND_OF[column.type]
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    plain: list[Any] = column.to_pylist()
    if kind.endswith("_list_val"):
        plain = [None if found is None else {"val": found} for found in plain]
    return [Value() if found is None else Value(**{kind: found}) for found in plain]


def stored(column: pa.Array, dtype: FeastType, where: str) -> pa.Array:
    """A column of an offline store as it is kept online.

    Args:
        column: N values, of a type that fits the feature's.
        dtype: the feature's or the entity's.
        where: names both in the error.

    Raises:
        BadInput: the column is of a type that cannot be the feature's.
    """
    value_type = dtype.to_value_type()
    kind = _PLAIN.get(value_type.name)
    holds_nulls = pa.types.is_list(column.type) and column.flatten().null_count
    if kind is None or holds_nulls:  # which Feast has rules of its own for
        return column_of(python_values_to_proto_values(column.to_numpy(zero_copy_only=False), value_type))
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    try:
        if pa.types.is_timestamp(column.type):
            column = pc.floor_temporal(column, unit="second").cast(pa.timestamp("s"))
        return column.cast(ARROW_OF[kind])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        said = " ".join(str(error).split())[:200]
        raise BadInput(
            f"{where}: found {column.type}, wanted {value_type.name} ({said}); "
            "write the column as the feature view says, or mend its schema"
        ) from None
