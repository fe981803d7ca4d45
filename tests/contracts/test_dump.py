"""What `pocketrank verify --dump` writes holds wherever it is read.

By a client that shares no code with ours, by ours on every engine, beside tflite-runtime and little else, and on arm64.
"""

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank import Bundle, Ranker, engines
from pocketrank.cache import Observed
from pocketrank.encoding import Encoder
from pocketrank.errors import BadBundle
from pocketrank.pack import Pack
from pocketrank.situation import situate
from pocketrank_cli.cli import main
from pocketrank_export import dump as dumping
from pocketrank_export.dump.bundles import KINDS, Kind

from .. import arm64
from .. import other_client as other
from ..replay import replay

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(1800)  # eight bundles are exported before the first test


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dump") / "dump"
    assert main(["verify", "--dump", str(folder)]) == 0
    return folder


def cases(dump: Path, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((dump / f"{name}.json").read_text(encoding="utf-8"))
    assert found
    return found


def test_the_index_names_every_file(dump: Path) -> None:
    index = json.loads((dump / "index.json").read_text(encoding="utf-8"))
    assert index["format"] == "pocketrank.dump/1"
    assert index["reference"].startswith("torch ")
    assert index["limits"] == {"score": 1e-5, "tie": 2e-5, "top": 20}
    there = {path.relative_to(dump).as_posix() for path in dump.rglob("*") if path.is_file()} - {"index.json"}
    assert there == set(index["files"])
    for name, facts in index["files"].items():
        content = (dump / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def test_every_cut_is_that_of_another_client_event_by_event(dump: Path) -> None:
    told = cases(dump, "cuts")
    assert {case["policy"]["kind"] for case in told} == {
        *("session_gap", "fixed_window", "fixed_count", "milestone", "adaptive")
    }
    for case in told:
        names = [case["behaviors"][place] for place in case["behavior"]]
        steps = other.steps(case["policy"], case["recent_us"], case["time_us"], names)
        for column, values in case["steps"].items():
            assert [step[column] for step in steps] == values, (case["name"], column)
        first = [place for place, step in enumerate(steps) if step["n_events"] == 1]
        last = [place - 1 for place in [*first[1:], len(steps)]] if first else []
        assert (case["first"], case["end"]) == (first, [place + 1 for place in last]), case["name"]
        assert case["closed_at_us"] == [steps[place]["closed_at_us"] for place in last], case["name"]
        closed = [place < len(steps) - 1 or steps[place]["closed"] for place in last]
        assert case["closed"] == closed, case["name"]
        for now_us, count in zip(case["clock_us"], case["closed_by_clock"], strict=True):
            at = case["closed_at_us"][-1] if last else None
            by_clock = bool(last) and not closed[-1] and at is not None and at <= now_us
            assert count == sum(closed) + by_clock, (case["name"], now_us)


def test_logs_of_cuts_reach_every_border(dump: Path) -> None:
    """Of each policy with a clock there is an event just before it, at it and after it would close a segment."""
    found = {}
    for case in cases(dump, "cuts"):
        closed_at_us, time_us = case["steps"]["closed_at_us"], case["time_us"]
        pairs = zip(closed_at_us, case["steps"]["closed"], time_us[1:], strict=False)
        off = {next_us - at for at, closed, next_us in pairs if at is not None and not closed}
        found.setdefault(case["policy"]["kind"], set()).update(off & {-1, 0, 1})
    clocks = "session_gap", "fixed_window", "adaptive"
    assert all(found[kind] == {-1, 0, 1} for kind in clocks)


def test_the_quantiser_rounds_half_to_even_for_another_client(dump: Path) -> None:
    values = other.read(dump / "quantiser.safetensors")
    halves = 0
    for x, vectors, scale, back in zip(*(values[name] for name in ("x", "vectors", "scales", "back")), strict=True):
        rounded, found = other.quantise(x)
        assert (rounded, found) == (vectors.tolist(), scale)
        assert [np.float32(value) * scale for value in rounded] == back.tolist()
        halves += sum(abs(abs(float(value / scale)) % 1 - 0.5) < 1e-9 for value in x)
    assert halves >= 20


def segment(values: dict[str, np.ndarray], part: str, place: int) -> dict[str, Any]:
    prefix = f"{part}."
    return {name.removeprefix(prefix): array[place] for name, array in values.items() if name.startswith(prefix)}


def same(found: dict[str, Any], wanted: dict[str, Any]) -> bool:
    return found.keys() == wanted.keys() and all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_every_merge_is_that_of_another_client(dump: Path) -> None:
    values = other.read(dump / "merges.safetensors")
    for place in range(len(values["merged.level"])):
        a, b, wanted = (segment(values, part, place) for part in ("older", "newer", "merged"))
        assert same(other.merge(a, b, 1), wanted), place


def test_what_slots_hold_is_what_another_client_holds_after_each_close(dump: Path) -> None:
    kinds = set()
    for case in cases(dump, "compaction"):
        values = other.read(dump / case["file"])
        slots = other.Slots(case["kind"], case["slots"], case.get("levels", 0))
        kinds.add(case["kind"])
        closed = 0
        for count in case["closed"]:
            for place in range(closed, count):
                slots.close(segment(values, "new", place))
            closed = count
            wanted = [segment(values, f"kept_{count}", place) for place in range(len(values[f"kept_{count}.level"]))]
            assert len(slots.kept) == len(wanted) <= case["slots"]
            assert all(map(same, slots.kept, wanted)), (case["file"], count)
        assert closed == len(values["new.level"])
    assert kinds == {"ring", "log"}


def test_the_item_memory_is_that_of_another_client(dump: Path) -> None:
    for case in cases(dump, "memory"):
        memory = other.remember(case["before"], case["rows"], case["time_us"], case["half_life_s"])
        after = case["after"]
        assert list(memory) == after["items"], case["name"]
        columns = list(zip(*memory.values(), strict=True)) or [(), (), (), ()]
        for column, name in zip(columns, ("counts", "decayed", "first_s", "last_s"), strict=True):
            np.testing.assert_allclose(column, after[name], rtol=1e-12, err_msg=case["name"])
        for now_s, wanted in zip(case["now_s"], case["features"], strict=True):
            found = [other.features(memory, row, now_s, case["half_life_s"]) for row in case["asked"]]
            np.testing.assert_allclose(found, wanted, rtol=2e-7, err_msg=case["name"])


def test_another_client_refuses_the_packs_that_are_to_be_refused_and_reads_the_others(dump: Path) -> None:
    told = cases(dump, "packs")
    for case in told:
        content = (dump / "packs" / case["file"]).read_bytes()
        if case["is_taken"]:
            facts = {name: value for name, value in case.items() if name not in ("file", "is_taken")}
            assert other.pack(content) == facts
        else:
            with pytest.raises(other.RefusedError):
                other.pack(content)
    assert len(told) > 50
    for path in sorted((dump / "rankings").glob("*/*.safetensors")):  # those do not fit their bundle, but are whole
        assert path.name == "values.safetensors" or other.pack(path.read_bytes())


def test_another_client_refuses_the_bundles_that_are_to_be_refused_and_opens_the_others(dump: Path) -> None:
    told, opened = cases(dump, "refused"), []
    for case in told:
        key = (dump / "refused" / case["verify_key"]).read_bytes() if case["verify_key"] else None
        with contextlib.suppress(other.RefusedError):
            other.bundle(dump / "refused" / case["folder"], key)
            opened.append(case["folder"])
    assert opened == [case["folder"] for case in told if case["is_taken"] or case["at"] == "graph"]
    assert len(told) - 100 > len(opened) > 10
    assert {path.name for path in (dump / "refused").iterdir() if path.is_dir()} == {case["folder"] for case in told}


def test_what_is_said_of_a_refused_bundle_is_what_a_device_says(dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dump / "refused")
    for case in cases(dump, "refused"):
        if not case["is_taken"]:
            with pytest.raises(BadBundle) as caught:
                ranked(case["folder"], case["verify_key"])
            assert str(caught.value) == case["said"]


def ranked(folder: str, verify_key: str | None) -> None:
    with Ranker.open(folder, engine="onnx", verify_key=verify_key) as ranker:
        ranker.rank()


@pytest.mark.parametrize("engine", ["onnx", "litert"])
def test_every_ranking_holds_on_every_engine(dump: Path, engine: str) -> None:
    found = replay(dump, engine)
    assert found["wrong"] == []
    assert found["rankings"] > 20 * len(KINDS)


@pytest.mark.parametrize("engine", ["onnx", "litert"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 40), has_pack=st.booleans())
def test_reasons_sum_to_the_score_whatever_the_fusion_and_the_engine(
    dump: Path, kind: Kind, engine: str, seed: int, count: int, has_pack: bool
) -> None:
    """Of the whole catalogue and of candidates, some of them unknown; `explain` says the same."""
    random, packs = np.random.default_rng(seed), dump / "rankings" / kind.name
    pack = packs / "full.safetensors" if has_pack else None
    with Ranker.open(dump / "bundles" / kind.name, pack=pack, engine=engine) as ranker:
        ids, names = ranker.bundle.items.ids, ranker.bundle.manifest.behaviors
        now_s = (
            1_700_000_000_000_000 if ranker._holding.pack is None else ranker._holding.pack.through[0]
        ) // 1_000_000
        for pause in random.choice([0, 20, 2700, 93_600], count).tolist():
            now_s += pause
            item = ids[random.integers(len(ids))] if random.random() < 0.9 else "gone"
            ranker.observe(item, names[random.integers(len(names))], at=now_s)
        asked = [ids[row] for row in random.permutation(len(ids))[:7]]
        for candidates in (None, [*asked, "no such item"]):
            for hit in ranker.rank(5, candidates, now=now_s + 3):
                assert abs(sum(one.added for one in hit.reasons) - hit.score) <= 1e-5 * max(1, abs(hit.score))
        told = ranker.explain(asked[0], now_s + 3)
        assert abs(sum(one.added for one in told.reasons) - told.score) <= 1e-5 * max(1, abs(told.score))


def test_state_inputs_are_those_of_a_phone_with_onnxruntime(dump: Path) -> None:
    """Vectors to the last bit: cases in which rounding would be decided by an engine's last bit are not in a dump."""
    for kind in KINDS:
        bundle, folder = Bundle.open(dump / "bundles" / kind.name), dump / "rankings" / kind.name
        values = other.read(folder / "values.safetensors")
        encoder = Encoder(bundle, engines.load(bundle.folder, "encoder", "onnx"), batch=1)
        fixed = engines.load(bundle.folder, "state", "litert")
        for case in cases(folder, "cases"):
            taken = [name for name in case["packs"] if name not in case["refused"]]
            pack = Pack.open(folder / f"{taken[-1]}.safetensors") if taken else None
            events = [Observed(e["at_us"], e["item"], e["behavior"], e["score"]) for e in case["events"]]
            events.sort(key=lambda event: event.time_us)
            situation = situate(bundle, encoder, pack, events, case["now_us"])
            found = situation.state_inputs(fixed, case["now_us"])
            for name, array in found.items():
                wanted = values[f"{case['name']}.{name}"]
                assert array[0].dtype == wanted.dtype
                if name == "scales":
                    np.testing.assert_allclose(array[0], wanted, rtol=2e-6)
                else:
                    assert np.array_equal(array[0], wanted), (kind.name, case["name"], name)


def test_hits_of_a_ranking_are_the_best_of_its_scores(dump: Path) -> None:
    ties = 0
    for kind in KINDS:
        ids = json.loads((dump / "bundles" / kind.name / "item_ids.json").read_text(encoding="utf-8"))
        values = other.read(dump / "rankings" / kind.name / "values.safetensors")
        for case in cases(dump / "rankings" / kind.name, "cases"):
            scores = dict(zip(ids, values[f"{case['name']}.scores"].tolist(), strict=True))
            seen = {event["item"] for event in case["events"]} if case["exclude_seen"] else set()
            rows = [row for row, item in enumerate(ids) if case["candidates"] is None or item in case["candidates"]]
            best = sorted(rows, key=lambda row: (-scores[ids[row]], ids[row].encode()))
            told = [hit["item"] for hit in case["hits"]]
            assert not seen & set(told)
            if not case["exclude_seen"]:
                assert told == [ids[row] for row in best][: case["k"]]
            assert [hit["score"] for hit in case["hits"]] == [scores[item] for item in told]
            ties += len(told) > len({scores[item] for item in told})
    assert ties >= len(KINDS)


def test_a_second_dump_has_the_same_bytes_and_another_seed_others(dump: Path, tmp_path: Path) -> None:
    dumping.write(tmp_path / "again", seed=0, kinds=KINDS[-1:])
    files = [path for path in (tmp_path / "again").rglob("*") if path.is_file() and path.name != "index.json"]
    of_one_bundle = {"packs", "packs.json", "refused", "refused.json"}
    kept = [path for path in files if not of_one_bundle & set(path.parts)]
    assert len(kept) > 30
    for path in kept:
        assert path.read_bytes() == (dump / path.relative_to(tmp_path / "again")).read_bytes(), path
    dumping.write(tmp_path / "other", seed=1, kinds=())
    for name in ("cuts.json", "memory.json", "merges.safetensors", "quantiser.safetensors"):
        assert (tmp_path / "other" / name).read_bytes() != (dump / name).read_bytes()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bundle2 --dump d", "--dump makes bundles of its own; leave BUNDLE, --engine and --verify-key out"),
        ("--engine onnx --dump d", "--dump makes bundles of its own; leave BUNDLE, --engine and --verify-key out"),
        ("--dump d --seed -1", "--seed is -1, wanted 0 or more"),
        ("--dump kept", "kept is there and is not a dump; give another folder, or remove it"),
    ],
)
def test_a_dump_that_cannot_be_written_is_one_line_and_nothing_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "mine").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["verify", *line.split()]) == 2
    assert capsys.readouterr().err == f"pocketrank: UsageError: verify: {message}\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "mine"]


@pytest.fixture(scope="module")
def tflite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of pocketrank[tflite] and nothing else: what brings tflite-runtime fits no other."""
    python = next(filter(is_python_3_11, (sys.executable, "python3.11", "python3")), None)
    if python is None:
        pytest.skip("no Python 3.11 here, and tflite-runtime is made for no later one")
    folder = tmp_path_factory.mktemp("tflite")
    uv = Path(sys.executable).parent / "uv"
    # Reinstalled: uv would take a wheel that it built before, as pyproject.toml has not changed since.
    fresh = ["--reinstall-package", "pocketrank", "--python", folder / "bin" / "python", f"{ROOT}[tflite]"]
    for command in (
        [uv, "venv", "-q", "--no-config", "--python", python, folder],
        [uv, "pip", "install", "-q", "--no-config", *fresh],
    ):
        subprocess.run(command, check=True)
    (there,) = folder.glob("lib/python*/site-packages/pocketrank")
    for source in (ROOT / "runtime" / "pocketrank").glob("*.py"):
        assert (there / source.name).read_bytes() == source.read_bytes()
    return folder / "bin"


def is_python_3_11(command: str) -> bool:
    """Whether it starts, too: a version manager's stand-in may be there and start nothing."""
    asks = "import sys; sys.exit(sys.version_info[:2] != (3, 11))"
    try:
        return subprocess.run([command, "-c", asks], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def typed(command: list[Any], folder: Path) -> "subprocess.CompletedProcess[str]":
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(word) for word in command], cwd=folder, env=bare, capture_output=True, text=True, check=False
    )


def test_the_extra_of_tflite_runtime_brings_an_old_numpy_safetensors_and_no_more(tflite: Path, tmp_path: Path) -> None:
    listed = "import importlib.metadata as m; print(*sorted(f'{d.name} {d.version}' for d in m.distributions()))"
    told = typed([tflite / "python", "-c", listed], tmp_path).stdout
    assert re.sub(r" \d[\d.]*", "", told).split() == ["numpy", "pocketrank", "safetensors", "tflite-runtime"]
    assert "numpy 1." in told


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_verify_passes_beside_tflite_runtime_and_little_else(
    dump: Path, tflite: Path, tmp_path: Path, kind: Kind
) -> None:
    run = typed([tflite / "pocketrank", "verify", dump / "bundles" / kind.name, "--json"], tmp_path)
    assert (run.returncode, run.stderr.count("Error")) == (0, 0), run.stderr
    facts = json.loads(run.stdout)
    assert facts["engines"][0].startswith("torch ")
    assert (facts["engines"][1:], facts["ok"], facts["cases"]) == (["tflite"], True, 64)
    assert facts["by_engine"]["tflite"]["order_same"] == 64
    assert 0 < facts["max_abs_diff"] < 1e-4


def test_every_ranking_holds_beside_tflite_runtime_and_little_else(dump: Path, tflite: Path, tmp_path: Path) -> None:
    run = typed([tflite / "python", ROOT / "tests" / "replay.py", dump, "tflite"], tmp_path)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["wrong"] == []
    assert found["rankings"] > 20 * len(KINDS)


def test_beside_tflite_runtime_a_dump_says_what_it_needs_in_a_line(tflite: Path, tmp_path: Path) -> None:
    run = typed([tflite / "pocketrank", "verify", "--dump", "d"], tmp_path)
    wanted = "pocketrank: `verify` needs torch; install it with: pip install 'pocketrank[export]'\n"
    assert (run.returncode, run.stdout, run.stderr) == (2, "", wanted)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def emulated() -> arm64.Arm64:
    try:
        return arm64.set_up()
    except arm64.Arm64MissingError as error:
        pytest.skip(f"no emulated arm64: {error}")


@pytest.mark.parametrize("engine", ["onnx", "litert"])
def test_every_ranking_holds_on_arm64(dump: Path, emulated: arm64.Arm64, engine: str) -> None:
    found = emulated.replay(dump, engine)
    assert found["machine"] == "aarch64"
    assert found["wrong"] == []
    assert found["rankings"] > 20 * len(KINDS)
    assert 0 < found["rankings_max_abs_diff"] < 1e-4


def test_an_arm64_that_cannot_be_set_up_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(arm64.set_up, "__defaults__", (tmp_path / "arm64",))
    assert arm64.main([]) == 1
    said = "no qemu-aarch64 here; install it (Debian, Ubuntu: apt install qemu-user-static)"
    assert capsys.readouterr().err == f"test-arm64: {said}\n"
    for name in ("qemu-aarch64-static", "apt-get", "dpkg-deb"):
        (tmp_path / "bin" / name).write_text("#!/bin/sh\necho 'E: The mirror is gone' >&2; exit 100\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    assert arm64.main([]) == 1
    said = "cannot fetch the package lists for arm64: E: The mirror is gone"
    assert capsys.readouterr().err == f"test-arm64: {said}\n"
