"""pocketrank.toml: every setting has its place and type, and what is wrong is named."""

from pathlib import Path

import pytest

from pocketrank.config import EventsConfig, MemoryConfig, Project, SegmentsConfig
from pocketrank.errors import BadConfig, NotReady
from pocketrank.parsing import parse
from pocketrank.segments import Adaptive, FixedCount, FixedWindow, Milestone, Policy, SessionGap


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
    ("text", "policy"),
    [
        ("gap_s = 5", SessionGap(5, 32)),
        ("policy = 'fixed_window'\nwindow_s = 60", FixedWindow(60, 32)),
        ("policy = 'milestone'", Milestone(("buy",), 32)),
        ("policy = 'milestone'\nbehaviors = ['buy', 'gift']\nmax_events = 9", Milestone(("buy", "gift"), 9)),
        ("policy = 'adaptive'", Adaptive(4, 8, 600, 86400, 32)),
        (
            "policy = 'adaptive'\nfactor = 2\nlookback = 3\nmin_gap_s = 4\nmax_gap_s = 5\nmax_events = 6",
            Adaptive(2, 3, 4, 5, 6),
        ),
    ],
)
def test_every_policy_can_be_set(tmp_path: Path, text: str, policy: Policy) -> None:
    assert project(tmp_path, f"[segments]\n{text}").segments.cutter() == policy


@pytest.mark.parametrize(
    ("text", "compaction"),
    [
        ("", {"kind": "ring"}),
        ("levels = 3", {"kind": "ring"}),
        ("compaction = 'log'\nlevels = 3", {"kind": "log", "levels": 3}),
    ],
)
def test_compaction_is_said_as_a_manifest_says_it(tmp_path: Path, text: str, compaction: dict[str, object]) -> None:
    assert project(tmp_path, f"[segments]\n{text}").segments.compactor() == compaction


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[segment]", " unknown section [segment]; did you mean 'segments'?"),
        ("[xyz]", " unknown section [xyz]; known are events, items, memory, model, segments, sync, training"),
        ("events = 3", " unknown section [events]; did you mean 'events'?"),
        ("[segments]\ngap = 3", " [segments]: unknown key 'gap'; did you mean 'gap_s'?"),
        ("[segments]\ngap_s = 'long'", " [segments] gap_s: found 'long', wanted int"),
        ("[segments]\ngap_s = true", " [segments] gap_s: found True, wanted int"),
        ("[segments]\ngap_s = 1.5", " [segments] gap_s: found 1.5, wanted int"),
        ("[segments]\nbehaviors = 'buy'", " [segments] behaviors: found 'buy', wanted list"),
        ("[segments]\nbehaviors = ['buy', 3]", " [segments] behaviors[1]: found 3, wanted str"),
        ("[segments]\nslots = 0", " [segments] slots: found 0, wanted 1 or more"),
        ("[segments]\nlevels = 0", " [segments] levels: found 0, wanted 1 or more"),
        ("[segments]\nlateness_s = -1", " [segments] lateness_s: found -1, wanted 0 or more"),
        ("[segments]\nsync_delay_s = -1", " [segments] sync_delay_s: found -1, wanted 0 or more"),
        ("[segments]\ncompaction = 'tree'", " [segments] compaction: found 'tree', wanted 'ring' or 'log'"),
        ("[events]\nbuckets = 0", " [events] buckets: found 0, wanted 1 or more"),
        ("[memory]\nitems = 0", " [memory] items: found 0, wanted 1 or more"),
        ("[memory]\nhalf_life_s = 0", " [memory] half_life_s: found 0.0, wanted above 0 and finite"),
        ("[memory]\nhalf_life_s = nan", " [memory] half_life_s: found nan, wanted above 0 and finite"),
        ("[memory]\nhalf_life_s = inf", " [memory] half_life_s: found inf, wanted above 0 and finite"),
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


def test_the_least_of_each_number_is_taken(tmp_path: Path) -> None:
    text = "[segments]\nslots = 1\nlevels = 1\nlateness_s = 0\n[events]\nbuckets = 1\n[memory]\nitems = 1"
    found = project(tmp_path, text)
    assert (found.segments.slots, found.segments.levels, found.events.buckets, found.memory.items) == (1, 1, 1, 1)


def test_a_policy_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match=r"^segments: gap_s of session_gap is 0, wanted a positive integer$"):
        project(tmp_path, "[segments]\ngap_s = 0")


def test_only_a_dataclass_can_be_parsed() -> None:
    with pytest.raises(TypeError):
        parse(dict, {}, "x")
