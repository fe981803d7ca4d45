"""What a bundle carries of the items file, so that requests can ask for some items: `[items] attributes`."""

import json

from pocketrank.attributes import BYTES_AN_ITEM
from pocketrank.bundle import ItemId
from pocketrank.config import FILE_NAME, Project
from pocketrank.errors import BadConfig
from pocketrank_export.features import ItemTable


def attributes_of(project: Project, items: list[ItemId]) -> bytes:
    """The bundle's `item_attributes.json`; nothing where the project names no attributes.

    Args:
        project: whose `[items] attributes` and items file.
        items: I ids, in the order of the vocabulary.

    Raises:
        NotReady: there is no items file. BadInput: it is damaged, or its ids are of another type.
        BadConfig: a name that is no column of it, or one of numbers; or all of it is more than a bundle may carry.
    """
    names = project.items.attributes
    if not names:
        return b""
    where = f"{project.root / FILE_NAME} [items] attributes"
    table = ItemTable.read(project.items_path).checked(items, str(project.events_dir))
    usable = table.of_text
    for name in names:
        if name not in usable:
            raise BadConfig(f"{where}: found {name!r}, wanted columns of text: {', '.join(usable) or 'there are none'}")
    place = {item: row for row, item in enumerate(table.ids)}
    values = {name: table.columns[name].to_pylist() for name in names}
    known = {
        name: [column[place[item]] if item in place else None for item in items] for name, column in values.items()
    }
    content = (json.dumps(known, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n").encode()
    if len(content) > BYTES_AN_ITEM * len(items):
        raise BadConfig(
            f"{where}: {len(content):,} bytes, wanted at most {BYTES_AN_ITEM} for each of {len(items):,} items; "
            "name fewer"
        )
    return content
