"""What `feast apply` registers, and which copy of it."""

import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from feast import FeatureStore
from feast.repo_operations import get_repo_files
from feast.types import Array, Float32, Int64, String

from pocketrank.config import Project
from pocketrank.errors import BadBundle, BadInput, UsageError
from pocketrank_features.views import define, definitions

# Feast tells of its own next release.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:feast")
ROOM = Path(__file__).parents[2] / "feature_repo"
STARTER = ROOM / "pocketrank_features" / "starter"


def test_a_fresh_clone_applies_with_entities_alone(applied: Any) -> None:
    code, said = applied.said["fresh"]
    assert code == 0, said
    assert "Traceback" not in said
    store = FeatureStore(repo_path=str(applied.fresh))
    assert {entity.name for entity in store.list_entities()} == {"user_id", "slot", "item_id"}
    assert store.list_feature_views() == []


def test_feasts_own_commands_go_through_and_warn_of_nothing_of_ours(applied: Any) -> None:
    for name, (code, said) in applied.said.items():
        assert code == 0, said
        assert "Traceback" not in said, name
        assert "WARNING" not in said, said


def test_an_encoder_has_three_views_and_a_service(applied: Any, rows: Any) -> None:
    store = FeatureStore(repo_path=str(applied.root))
    views = {view.name: view for view in store.list_feature_views()}
    assert sorted(views) == [f"{kind}_{rows.encoder}" for kind in ("items", "segments", "users")]
    segments = views[f"segments_{rows.encoder}"]
    assert {column.name: column.dtype for column in segments.entity_columns} == {"user_id": Int64, "slot": Int64}
    assert {field.name: field.dtype for field in segments.features}["vectors"] == Array(Float32)
    assert segments.ttl == timedelta(0)
    assert segments.tags["encoder_id"] == rows.encoder
    assert (segments.tags["S"], segments.tags["compaction"], segments.tags["in_bundle"]) == ("4", "ring", "true")
    assert (segments.batch_source.timestamp_field, segments.batch_source.created_timestamp_column) == (
        "closed_at",
        "created",
    )
    assert [column.dtype for column in views[f"items_{rows.encoder}"].entity_columns] == [String]
    assert [service.name for service in store.list_feature_services()] == [f"on_device_ranking_{rows.encoder}"]
    assert all(thing.description and thing.owner for thing in [*views.values(), *store.list_entities()])


def test_ids_may_become_strings_after_an_empty_apply(tmp_path: Path, rows: Any) -> None:
    project = Project.open(rows.start_project(tmp_path))
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply(definitions(project))
    rows.write(tmp_path, "segments", "a", [rows.segment(1, 0, 0, 0)])
    store.apply(definitions(project))
    shutil.rmtree(tmp_path / "data" / f"segments_{rows.encoder}")
    rows.write(tmp_path, "segments", "a", [{**rows.segment(1, 0, 0, 0), "user_id": "ann"}])
    store.apply(definitions(project))
    view = store.get_feature_view(f"segments_{rows.encoder}")
    assert {column.name: column.dtype for column in view.entity_columns} == {"user_id": String, "slot": Int64}


def test_rows_without_a_column_are_refused_by_its_name(tmp_path: Path, rows: Any) -> None:
    row = rows.segment(1, 0, 0, 0)
    del row["ordinal_last"]
    rows.write(tmp_path, "segments", "a", [row])
    with pytest.raises(BadInput, match=r"a\.parquet: no column ordinal_last; write it again: pocketrank segment"):
        definitions(Project(tmp_path, {}))


def test_rows_that_do_not_say_how_they_were_made_are_refused(tmp_path: Path, rows: Any) -> None:
    rows.write(tmp_path, "segments", "a", [rows.segment(1, 0, 0, 0)])
    (file,) = (tmp_path / "data" / f"segments_{rows.encoder}").iterdir()
    pq.write_table(pq.read_table(file).replace_schema_metadata({b"pocketrank.segment": b'{"sizes": {}}'}), file)
    with pytest.raises(BadInput, match=r"a\.parquet: does not say by which compaction, policy .* --rebuild"):
        definitions(Project(tmp_path, {}))


def test_a_damaged_manifest_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "manifest.json").write_text('{"sizes": 3}')
    with pytest.raises(BadBundle, match=r"manifest\.json: not a manifest .*; make the bundle again: pocketrank export"):
        definitions(Project(tmp_path, {}))


def test_another_definitions_file_than_the_repos_is_refused(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.start_project(tmp_path))
    assert define(ROOM / "definitions.py"), "a copy with the same content serves"
    with (tmp_path / "definitions.py").open("a") as own:
        own.write("mine = 1\n")
    with pytest.raises(UsageError, match=r"not its own definitions\.py; run: PYTHONPATH=\. feast apply"):
        define(ROOM / "definitions.py")


def test_a_clone_beside_an_installed_package_is_refused(
    tmp_path: Path, rows: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rows.start_project(tmp_path))
    (tmp_path / "pocketrank_features").mkdir()
    shutil.copyfile(ROOM / "pocketrank_features" / "views.py", tmp_path / "pocketrank_features" / "views.py")
    with pytest.raises(UsageError, match=r"imported the package from .*; run: pip install -e \.\."):
        define(tmp_path / "definitions.py")


def test_feast_imports_the_definitions_of_the_clone_and_of_a_project_and_nothing_below(
    tmp_path: Path, rows: Any
) -> None:
    rows.start_project(tmp_path)
    (tmp_path / "notebooks" / "deep").mkdir(parents=True)
    for path in ("notebooks/a.py", "notebooks/deep/b.py"):
        (tmp_path / path).write_text("raise RuntimeError")
    assert get_repo_files(tmp_path) == [tmp_path / "definitions.py"]
    assert get_repo_files(ROOM) == [ROOM / "definitions.py"]


@pytest.mark.parametrize(
    ("own", "starter"),
    [
        ("definitions.py", "definitions.py"),
        ("feature_store.yaml", "feature_store.yaml"),
        (".feastignore", "feastignore"),
    ],
)
def test_the_clone_is_a_project_like_any_other(own: str, starter: str) -> None:
    assert (ROOM / own).read_bytes() == (STARTER / starter).read_bytes()
