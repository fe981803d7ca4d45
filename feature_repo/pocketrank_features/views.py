"""The Feast objects of a project: entities, and per encoder its sources, views and service.

An encoder has views once `pocketrank segment` has written rows of it; two encoders with rows have two sets, so that
both can be served during a roll-out. Id types are those of the rows. A project with no rows has entities alone.
"""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Bytes, Int64, String

from pocketrank.config import FILE_NAME, Project
from pocketrank.errors import BadBundle, BadInput, UsageError
from pocketrank_features.kinds import KINDS, OPTIONAL, Kind
from pocketrank_features.row_files import RECORD_KEY

OWNER = "pocketrank"
SERVICE = "on_device_ranking"
DEFINITIONS = "definitions.py"
PACKAGE = Path(__file__).resolve().parent


def view_name(kind: str, encoder_id: str) -> str:
    """Name of a view and of the folder its rows are in: `segments_<encoder_id>` and so on."""
    return f"{kind}_{encoder_id}"


def read_manifest(project: Project) -> dict[str, Any]:
    """The bundle's manifest; empty where the project has no bundle.

    Raises:
        BadBundle: the manifest is not a JSON object, or lacks encoder_id or sizes.
    """
    path = project.bundle_dir / "manifest.json"
    if not path.is_file():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = {"encoder_id": manifest["encoder_id"], "sizes": dict(manifest["sizes"])}
    except (ValueError, TypeError, KeyError) as error:
        raise BadBundle(f"{path}: not a manifest ({error!r}); make the bundle again: pocketrank export") from None
    return {**manifest, **known}


def define(imported: Path) -> list[Any]:
    """The Feast objects of the project that `feast apply` is run for.

    Feast changes into the repo and appends it to sys.path, so a module of the same name that stands earlier on the
    path wins: an installed copy would be registered instead. Such a copy serves only when its content is the same.

    Args:
        imported: the definitions.py that was imported.

    Raises:
        UsageError: it, or this package, is another copy than the one in the repo.
        BadInput: rows lack a column, or an id is neither an integer nor a string.
    """
    here = Path.cwd()
    root = here if (here / "feature_store.yaml").is_file() else imported.resolve().parent
    own, clone = root / DEFINITIONS, root / PACKAGE.name
    if own.is_file() and own.read_bytes() != imported.read_bytes():
        raise UsageError(
            f"feast in {root} imported {imported}, not its own {DEFINITIONS}; run: PYTHONPATH=. feast apply"
        )
    if (clone / "views.py").is_file() and clone.resolve() != PACKAGE:
        raise UsageError(
            f"feast in {root} imported the package from {PACKAGE}, not from {clone}; run: pip install -e .."
        )
    return definitions(Project.open(root) if (root / FILE_NAME).is_file() else Project(root, {}))


def definitions(project: Project) -> list[Any]:
    """Entities, and the views and service of every encoder that has rows in the project.

    Raises:
        BadInput: rows lack a column or what they were made with, or an id is neither an integer nor a string.
        BadBundle: the manifest cannot be read.
    """
    manifest = read_manifest(project)
    data = project.rows_dir("segments_").parent
    encoders = sorted(path.name.removeprefix("segments_") for path in data.glob("segments_*"))
    found = {
        (encoder_id, kind.name): _schema(files[-1], kind)
        for encoder_id in encoders
        for kind in KINDS
        if (files := sorted(project.rows_dir(view_name(kind.name, encoder_id)).glob("*.parquet")))
    }
    entities = {entity.name: entity for entity in _entities(list(found.values()))}
    objects: list[Any] = list(entities.values())
    for encoder_id in encoders:
        schemas = [found[encoder_id, kind.name] for kind in KINDS if (encoder_id, kind.name) in found]
        if not schemas:
            continue
        tags = _tags(encoder_id, manifest, _record(schemas[0]))
        made = {
            kind.name: _view(_source(project, kind, tags), kind, found[encoder_id, kind.name], entities)
            for kind in KINDS
            if (encoder_id, kind.name) in found
        }
        objects += made.values()
        if {"segments", "users"} <= made.keys():
            objects.append(_service([made["segments"], made["users"]], tags))
    return objects


def _tags(encoder_id: str, manifest: dict[str, Any], record: dict[str, Any]) -> dict[str, str]:
    """What people who browse the registry may ask, and `composing.Layout`."""
    compaction = record["compaction"]
    return {
        "encoder_id": encoder_id,
        "in_bundle": str(encoder_id == manifest.get("encoder_id")).lower(),
        **{axis: str(size) for axis, size in record["sizes"].items()},
        "policy": record["policy"]["kind"],
        "compaction": compaction["kind"],
        **({"levels": str(compaction["levels"])} if "levels" in compaction else {}),
    }


def _record(schema: pa.Schema) -> dict[str, Any]:
    """What a file says its rows were made with."""
    record: dict[str, Any] = json.loads((schema.metadata or {}).get(RECORD_KEY, b"{}"))
    return record


def _entities(schemas: list[pa.Schema]) -> list[Entity]:
    kinds = {"slot": ValueType.INT64}
    for schema in schemas:
        for name in ("user_id", "item_id"):
            if name in schema.names:
                kinds[name] = _id_type(schema.field(name).type).to_value_type()
    about = {
        "user_id": "whose history it is",
        "slot": "place of a segment in its user's ring, 0 to S-1",
        "item_id": "what is ranked",
    }
    return [
        Entity(name=name, value_type=kinds.get(name, ValueType.STRING), description=text, owner=OWNER)
        for name, text in about.items()
    ]


def _source(project: Project, kind: Kind, tags: dict[str, str]) -> FileSource:
    name = view_name(kind.name, tags["encoder_id"])
    return FileSource(
        name=name,
        # The folder, not a glob: Feast checks that the path exists, and warns about a glob at every apply.
        path=str(project.rows_dir(name).resolve()),
        file_format=ParquetFormat(),
        timestamp_field=kind.timestamp,
        created_timestamp_column=kind.created,
        description=f"Written by `pocketrank segment`. {kind.description}",
        tags=tags,
        owner=OWNER,
    )


def _view(source: FileSource, kind: Kind, schema: pa.Schema, entities: dict[str, Entity]) -> FeatureView:
    columns = kind.features | {column: about for column, about in OPTIONAL.items() if column in schema.names}
    keys = [Field(name=key, dtype=_id_type(schema.field(key).type)) for key in kind.keys]
    # Rows hold vectors as floats, or, with [segments] vectors = "int8", as bytes.
    features = [
        Field(name=name, dtype=Bytes if pa.types.is_binary(schema.field(name).type) else dtype, description=text)
        for name, (dtype, text) in columns.items()
    ]
    return FeatureView(
        name=source.name,
        source=source,
        schema=keys + features,
        entities=[entities[key] for key in kind.keys],
        ttl=timedelta(0),
        online=True,
        description=kind.description,
        tags=source.tags,
        owner=OWNER,
    )


def _service(views: list[FeatureView], tags: dict[str, str]) -> FeatureService:
    return FeatureService(
        name=view_name(SERVICE, tags["encoder_id"]),
        features=views,
        tags=tags,
        description="What a phone needs of its user: the segments and the user's row.",
        owner=OWNER,
    )


def _schema(file: Path, kind: Kind) -> pa.Schema:
    schema = pq.read_schema(file)
    wanted = {*kind.keys, kind.timestamp, *kind.features} | ({kind.created} if kind.created else set())
    if missing := sorted(wanted - set(schema.names)):
        raise BadInput(f"{file}: no column {', '.join(missing)}; write it again: pocketrank segment")
    for key in kind.keys:
        found = schema.field(key).type
        if not (pa.types.is_int64(found) or pa.types.is_string(found)):
            raise BadInput(f"{file}: {key} is {found}, wanted int64 or string; write it again: pocketrank segment")
    if missing := sorted({"compaction", "policy", "sizes"} - _record(schema).keys()):
        raise BadInput(
            f"{file}: does not say by which {', '.join(missing)} it was made, as rows of this version do; "
            "write it again: pocketrank segment --rebuild"
        )
    return schema


def _id_type(dtype: pa.DataType) -> Any:
    return Int64 if pa.types.is_int64(dtype) else String
