"""pocketrank.toml: every setting has its place and type, and what is wrong is named."""

from pathlib import Path

import pytest

from pocketrank.config import EventsConfig, MemoryConfig, Project, SegmentsConfig, parse
from pocketrank.errors import BadConfig, NotReady
from pocketrank.segments import FixedCount, SessionGap


def project(root: Path, text: str) -> Project:
    (root / "pocketrank.toml").write_text(text, encoding="utf-8")
    return Project.open(root)


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    found = project(tmp_path, "")
    assert (found.events, found.segments, found.memory) == (EventsConfig(), SegmentsConfig(), MemoryConfig())
    assert found.segments.cutter() == SessionGap(1800, 32)


def test_settings_are_read(tmp_path: Path) -> None:
    found = project(
        tmp_path,
        '[events]\ncolumns = {user_id = "who"}\nweights = {buy = 3}\n[segments]\npolicy = "fixed_count"\n'
        "max_events = 7\n[memory]\nhalf_life_s = 60\n[model]\nfusion = 'mean'\n",
    )
    assert found.events == EventsConfig(columns={"user_id": "who"}, weights={"buy": 3.0})
    assert found.segments.cutter() == FixedCount(7)
    assert isinstance(found.memory.half_life_s, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[segment]", " unknown section [segment]; did you mean 'segments'?"),
        ("[xyz]", " unknown section [xyz]; known are events, memory, model, segments, training"),
        ("events = 3", " unknown section [events]; did you mean 'events'?"),
        ("[segments]\ngap = 3", " [segments]: unknown key 'gap'; did you mean 'gap_s'?"),
        ("[segments]\ngap_s = 'long'", " [segments] gap_s: found 'long', wanted int"),
        ("[segments]\ngap_s = true", " [segments] gap_s: found True, wanted int"),
        ("[segments]\ngap_s = 1.5", " [segments] gap_s: found 1.5, wanted int"),
        ("[memory]\nhalf_life_s = true", " [memory] half_life_s: found True, wanted float"),
        ("[events]\nweights = {buy = 'much'}", " [events] weights buy: found 'much', wanted float"),
        ("[events]\ncolumns = ['a']", " [events] columns: found ['a'], wanted Mapping"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadConfig) as caught:  # by opening alone, before a command asks for the section
        project(tmp_path, text)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/pocketrank.toml")
    assert said.removeprefix(f"{tmp_path}/pocketrank.toml").removeprefix(":") == message


@pytest.mark.parametrize("content", [b"[events", b"\xff"])
def test_what_is_not_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pocketrank.toml").write_bytes(content)
    with pytest.raises(BadConfig, match=r"pocketrank\.toml: not TOML \(.*\); mend the line it names$"):
        Project.open(tmp_path)


def test_a_folder_without_settings_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(NotReady) as caught:
        Project.open(tmp_path)
    assert str(caught.value) == f"no pocketrank.toml in {tmp_path}; make a project with: pocketrank init {tmp_path}"


def test_a_policy_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"^segments: gap_s of session_gap is 0, wanted a positive integer$"):
        project(tmp_path, "[segments]\ngap_s = 0")


def test_only_a_dataclass_can_be_parsed() -> None:
    with pytest.raises(TypeError):
        parse(dict, {}, "x")
