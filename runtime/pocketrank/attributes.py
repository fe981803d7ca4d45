"""What a bundle says of its items beside their vectors, so that a request can ask for some: `item_attributes.json`.

Only what `[items] attributes` named when it was exported; a bundle without the file has none. Values are text.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from pocketrank import strict_json
from pocketrank.errors import BadBundle, BadInput, one_line

FILE_NAME = "item_attributes.json"
BYTES_AN_ITEM = 1024  # of the file, at most
Value = str | list[str] | None
Where = Mapping[str, str | Collection[str]]


class Attributes:
    """Of I items, by vocabulary row.

    Args:
        columns: name -> I values: one, several, or None where nothing is known.
        items: I.
    """

    def __init__(self, columns: Mapping[str, Sequence[Value]], items: int) -> None:
        self._items = items
        self._rows = {name: _rows_of(column) for name, column in columns.items()}  # once, and not in a request

    @classmethod
    def from_bytes(cls, content: bytes, items: int, where: str) -> "Attributes":
        """Those of a file, as its content was hashed.

        Raises:
            BadBundle: it is not an object of lists of as many values as there are items.
        """
        try:
            columns = strict_json.loads(content, len(content), deepest=3)
        except ValueError as error:
            raise BadBundle(f"{where}: not JSON ({one_line(error)}); export the bundle again") from None
        whole = isinstance(columns, dict) and all(
            isinstance(column, list) and len(column) == items and all(map(_is_value, column))
            for column in columns.values()
        )
        if not whole:
            raise BadBundle(f"{where}: not lists of text of {items:,} items; export the bundle again")
        return cls(columns, items)

    @property
    def names(self) -> list[str]:
        """What items can be asked for by."""
        return list(self._rows)

    def wanted(self, where: Where) -> npt.NDArray[np.bool_]:
        """Which items have, of each attribute named, one of the values.

        Args:
            where: name -> a value, or several.

        Returns:
            (I,) True for an item that has.

        Raises:
            BadInput: an attribute that the bundle does not have, or a value that is not text.
        """
        if not isinstance(where, Mapping):
            raise BadInput(f"rank: where is {where!r}, wanted values by attribute, such as {{'aisle': 'dairy'}}")
        found = np.ones(self._items, np.bool_)
        for name, values in where.items():
            if name not in self._rows:
                known = f"it has {one_line(', '.join(self.names))}" if self._rows else "it has none"
                raise BadInput(
                    f"rank: where names {name!r}, which this bundle does not say of its items ({known}); "
                    "name it in [items] attributes and export again"
                )
            several = [values] if isinstance(values, str) else values
            if not isinstance(several, Collection) or not all(isinstance(value, str) for value in several):
                raise BadInput(f"rank: where wants {name} to be {values!r}, wanted text or a list of it")
            has = np.zeros(self._items, np.bool_)
            for value in several:
                if value in self._rows[name]:
                    has[self._rows[name][value]] = True
            found &= has
        return found


def _rows_of(column: Sequence[Value]) -> dict[str, npt.NDArray[np.int64]]:
    """Value -> rows of the items that have it."""
    found: dict[str, list[int]] = {}
    for row, value in enumerate(column):
        for one in [value] if isinstance(value, str) else value or []:
            found.setdefault(one, []).append(row)
    return {value: np.array(rows, np.int64) for value, rows in found.items()}


def _is_value(value: object) -> bool:
    several = value if isinstance(value, list) else [value]
    return value is None or all(isinstance(one, str) for one in several)
