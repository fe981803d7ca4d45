"""Frozen dataclasses out of mappings: a config's sections, a manifest, a release; each key by its name and type."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pocketrank.errors import BadConfig

T = TypeVar("T")


def parse(cls: type[T], mapping: Mapping[str, Any], where: str) -> T:
    """Build a frozen dataclass from a mapping.

    Raises:
        BadConfig: a key is unknown or missing, or a value has another type than the field or one that cannot be.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls} is not a dataclass")
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for key, value in mapping.items():
        if key not in hints:
            raise BadConfig(f"{where}: unknown key {key!r}{nearest(key, hints)}")
        values[key] = _typed(value, hints[key], f"{where} {key}")
    for field_ in dataclasses.fields(cls):
        required = field_.default is dataclasses.MISSING and field_.default_factory is dataclasses.MISSING
        if required and field_.name not in values:
            raise BadConfig(f"{where}: key {field_.name!r} is missing")
    try:
        return cls(**values)
    except BadConfig as error:  # of its __post_init__, which does not know where the values come from
        raise BadConfig(f"{where} {error}") from None


def _typed(value: Any, hint: Any, where: str) -> Any:
    origin = typing.get_origin(hint) or hint
    if origin is types.UnionType:
        origin = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if origin is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, origin) or (isinstance(value, bool) and origin is not bool):
        raise BadConfig(f"{where}: found {value!r}, wanted {origin.__name__}")
    if isinstance(value, Mapping) and (inner := typing.get_args(hint)) and inner[1] is not Any:
        return {key: _typed(one, inner[1], f"{where} {key}") for key, one in value.items()}
    if isinstance(value, list) and (inner := typing.get_args(hint)):
        return [_typed(one, inner[0], f"{where}[{place}]") for place, one in enumerate(value)]
    return value


def hold(name: str, value: object, fits: bool, wanted: str) -> None:
    """Refuse a setting that does not fit, for a section's `__post_init__`; `parse` adds where it stands.

    Raises:
        BadConfig: it does not fit.
    """
    if not fits:
        raise BadConfig(f"{name}: found {value!r}, wanted {wanted}")


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """What to say after the name of a key that is unknown."""
    import difflib  # noqa: PLC0415  # a device hardly ever asks

    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
