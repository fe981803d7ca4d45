"""The device's commands as a user types them: what they print, what they exit with, and one line when they cannot."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from pocketrank import engines
from pocketrank_cli import cli
from pocketrank_cli.cli import main
from pocketrank_cli.command import Command, Report

from ..bundles import edit_manifest, write_bundle
from .conftest import IDS
from .phones import START_S, US, Slow
from .test_ranker import DAY, NOW_S

Run = Callable[..., tuple[int, str, str]]
AT = "2023-11-14T22:13:20"  # START_S
NOW = "2023-11-15T06:41:40Z"  # NOW_S
BIN = Path(sys.executable).parent / "pocketrank"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle_dir: Path) -> Run:
    """Run a command line in a folder with a bundle; give exit code, stdout, stderr."""
    shutil.copytree(bundle_dir, tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)

    def ran(line: str, *more: str) -> tuple[int, str, str]:
        try:
            code = main([*line.split(), *more])
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return ran


@pytest.fixture
def facts(run: Run) -> Callable[..., dict[str, Any]]:
    """Run a command with --json; give its facts."""

    def ran(line: str, *more: str) -> dict[str, Any]:
        code, out, err = run(line, *more, "--json")
        assert (code, err, out.count("\n")) == (0, "", 1)
        found: dict[str, Any] = json.loads(out)
        return found

    return ran


def refused(answer: tuple[int, str, str], code: int = 1) -> str:
    """The one line on stderr."""
    found, out, err = answer
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert err.startswith("pocketrank: ")
    return err.removeprefix("pocketrank: ").removesuffix("\n")


def test_observe_then_rank_then_observe_again(facts: Any, slow: Slow) -> None:
    for event in DAY:
        when = datetime.fromtimestamp(event.time_us / US, UTC).isoformat()
        facts("observe --cache c.db --behavior", event.behavior, event.item, "--score", str(event.score), "--at", when)
    found = facts("rank --cache c.db -k 12 --now", NOW)
    wanted = dict(zip(IDS, slow.scores(DAY, NOW_S * US), strict=True))
    assert found["basis"] == ["segments", "live", "memory", "popularity"]
    assert found["engine"] == "onnx"
    assert [hit["rank"] for hit in found["hits"]] == list(range(1, 13))
    assert [hit["item"] for hit in found["hits"]] == sorted(IDS, key=lambda item: -wanted[item])
    assert {hit["item"]: hit["score"] for hit in found["hits"]} == pytest.approx(wanted, abs=2e-5)


def test_observe_says_what_the_phone_now_has(run: Run, facts: Any) -> None:
    assert facts("observe --cache c.db p-1 new") == {
        "observed": 2,
        "behavior": "view",
        "unknown_items": ["new"],
        "segments": 0,
        "live_events": 2,
        "remembered_items": 1,
    }
    odd = facts("observe --cache other.db p-1 --behavior steal")["unknown_behavior"]
    assert odd.startswith("steal; known are ")
    code, out, err = run("observe --cache c.db p-1 --behavior buy")
    assert (code, err) == (0, "")
    assert (
        out
        == "observed          1\nbehavior          buy\nsegments          0\nlive events       3\nremembered items  1\n"
    )


def test_rank_prints_hits_and_reasons_for_people(run: Run) -> None:
    assert run("observe --cache c.db p-3 p-4 --behavior buy --at", AT)[0] == 0
    code, out, err = run("rank --cache c.db -k 12 --reasons --now 2023-11-15")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0].startswith("  1  ")
    place = next(place for place, line in enumerate(lines) if line.endswith("  p-3"))
    told = {re.sub(r" [+-]\d+\.\d\d$", "", line.strip()) for line in lines[place + 1 : place + 3]}
    assert told == {"2023-11-14 p-3, p-4", "memory"}
    assert lines[-2:] == ["basis   past segments, item memory and popularity", "engine  onnx"]


def test_rank_with_a_pack_candidates_and_reasons(facts: Any, slow: Slow, tmp_path: Path) -> None:
    slow.pack(DAY, (START_S + 25_000) * US).save(tmp_path / "7.safetensors")
    line = "rank --pack 7.safetensors --cache c.db --candidates p-1 p-11 --reasons --now"
    found = facts(line, NOW)
    assert {hit["item"] for hit in found["hits"]} == {"p-1", "p-11"}
    assert found["basis"] == ["segments", "memory", "popularity"]
    for hit in found["hits"]:
        assert sum(reason["added"] for reason in hit["reasons"]) == pytest.approx(hit["score"], abs=1e-5)
    assert facts(line, NOW) == found  # the same pack again is no error
    again = facts("rank --cache c.db --candidates p-1 p-11 --reasons --now", NOW)
    assert again == found
    left = facts("rank --cache c.db --exclude-seen --now", NOW)
    assert {hit["item"] for hit in left["hits"]} == set(IDS) - {event.item for event in DAY[:14]}


def test_rank_leaves_out_what_is_blocked_takes_variety_and_says_what_a_deadline_cut(facts: Any, run: Run) -> None:
    facts("observe --cache c.db p-3 p-4 --behavior buy --at", AT)
    plain = [hit["item"] for hit in facts("rank --cache c.db -k 4 --now", NOW)["hits"]]
    blocked = facts("rank --cache c.db -k 4 --now", NOW, "--exclude", plain[0], "p-99")["hits"]
    assert [hit["item"] for hit in blocked][:3] == plain[1:]
    varied = [hit["item"] for hit in facts("rank --cache c.db -k 4 --diversity 1 --now", NOW)["hits"]]
    assert (varied[0], varied == plain) == (plain[0], False)
    assert "cut" not in facts("rank --cache c.db -k 4 --deadline-ms 10000 --now", NOW)
    assert refused(run("rank --diversity 2")) == "BadInput: rank: diversity is 2.0, wanted 0 to 1"


def test_explain_says_why_in_words(run: Run, facts: Any) -> None:
    assert run("observe --cache c.db p-3 p-4 --behavior buy --at", AT)[0] == 0
    code, out, err = run("explain p-3 --cache c.db --noun basket --now", NOW)
    assert (code, err) == (0, "")
    first, *lines = out.splitlines()
    assert re.fullmatch(r"p-3: -?\d+\.\d\d, from past segments, item memory and popularity", first)
    said = {line.split("  ", 1)[1] for line in lines}
    assert {"your basket of 14 November: p-3, p-4", "once before, last on 14 November"} <= said
    found = facts("explain p-3 --cache c.db --noun basket --now", NOW)
    assert {reason["words"] for reason in found["reasons"]} == said
    assert sum(reason["added"] for reason in found["reasons"]) == pytest.approx(found["score"], abs=2e-5)
    assert "popularity alone" in run("explain p-3")[1]


def test_rank_says_in_words_that_nothing_is_known(run: Run) -> None:
    assert "\nbasis   popularity alone: nothing is known of this user\n" in run("rank")[1]


def test_rank_times_requests(facts: Any) -> None:
    found = facts("rank --repeat 3")
    assert found["rank_ms"] > 0
    assert found["cold_ms"] > 0


def test_rank_says_that_the_cached_pack_is_of_another_model(facts: Any, slow: Slow, tmp_path: Path) -> None:
    slow.pack(DAY, NOW_S * US).save(tmp_path / "7.safetensors")
    facts("rank --cache c.db --pack 7.safetensors")
    write_bundle(tmp_path / "next", IDS, encoder_id="e2")
    found = facts("rank --cache c.db --bundle next")
    assert found["pack_refused"] == "the cached pack: encoded by e1, this bundle's encoder is e2; sync again"
    assert found["basis"] == ["popularity"]


def test_integer_ids_are_found_by_their_digits(facts: Any, tmp_path: Path) -> None:
    write_bundle(tmp_path / "numbers", [30, -10, 20])
    found = facts("observe --bundle numbers --cache c.db 30 -10 ² 99")
    assert (found["unknown_items"], found["remembered_items"]) == (["²", "99"], 2)
    assert [hit["item"] for hit in facts("rank --bundle numbers --candidates 20")["hits"]] == [20]


def test_verify_passes_and_fails(run: Run, facts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = run("verify --engine onnx")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "bundle        bundle"
    assert lines[1] == "cases         6   1 of them without any history"
    assert lines[2] == "engines       numpy, onnx"
    assert lines[3].startswith("max abs diff  ")
    assert lines[3].endswith("   limit 1e-05 x max(1, |score|)")
    assert lines[4:] == ["order same    6/6 the same best 20", "OK"]
    found = facts("verify bundle --engine onnx")
    assert (found["ok"], found["cases"], found["order_same"]) == (True, 6, True)
    assert found["by_engine"] == {
        "onnx": {"cases": 6, "empty": 1, "order_same": 6, "limit": 1.0, "ok": True}
        | {name: found[name] for name in ("max_abs_diff", "excess")}
    }
    run_graph = engines.OnnxGraph.run
    wrong = lambda graph, inputs: {name: -array for name, array in run_graph(graph, inputs).items()}  # noqa: E731
    monkeypatch.setattr(engines.OnnxGraph, "run", wrong)
    code, out, err = run("verify --engine onnx")
    assert (code, err) == (1, "")
    assert re.fullmatch(
        r"DIFFERENT: onnx is off by [1-9]\S* \(\S+ times the limit\), with the same best 20 in [0-5] of 6 cases; "
        "do not ship this bundle",
        out.splitlines()[-1],
    )
    code, out, _ = run("verify --engine onnx --json")
    assert (code, json.loads(out)["ok"]) == (1, False)


def test_inspect_tells_a_bundle_a_pack_and_a_cache_apart(facts: Any, slow: Slow, tmp_path: Path, run: Run) -> None:
    bundle = facts("inspect bundle")
    assert (bundle["model_id"], bundle["encoder_id"], bundle["behaviors"]) == ("m1", "e1", ["view", "buy"])
    assert bundle["bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "bundle").iterdir() if path.name != "manifest.json"
    )
    slow.pack(DAY, (START_S + 25_000) * US).save(tmp_path / "p")
    pack = facts("inspect p")
    assert (pack["segments"], pack["events"], pack["vectors"]) == (4, 10, [4, 1, 8])
    assert pack["through"] == "2023-11-15T03:46:40+00:00"
    facts("observe --cache c.db p-1 p-2")
    assert facts("inspect c.db")["live_events"] == 2
    for path in ("bundle", "p", "c.db"):
        code, out, err = run(f"inspect {path}")
        assert (code, err) == (0, "")
        assert out


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("rank -k 0", 1, "BadInput: rank: k is 0, wanted a whole number of at least 1"),
        (
            "rank --candidates p-1 p-99",
            1,
            "UnknownItem: rank: item 'p-99' is not among the bundle's 12; see item_ids.json",
        ),
        ("explain p-99", 1, "UnknownItem: explain: item 'p-99' is not among the bundle's 12; see item_ids.json"),
        ("rank --pack nowhere", 1, "BadPack: nowhere: no such file; make one with: pocketrank pack USER"),
        (
            "rank --bundle nowhere",
            1,
            "BadBundle: nowhere: no manifest.json in it, so not a bundle; make one with: pocketrank export",
        ),
        (
            "verify nowhere",
            1,
            "BadBundle: nowhere: no manifest.json in it, so not a bundle; make one with: pocketrank export",
        ),
        (
            "rank --engine litert",
            1,
            "BadBundle: bundle/state.tflite: missing, engine litert needs it; "
            "take another engine or export the bundle again",
        ),
        (
            "rank --engine tflite",
            2,
            "MissingExtra: engine tflite needs tflite_runtime; install it with: pip install 'pocketrank[tflite]'",
        ),
        (
            "rank --cache bundle",
            1,
            "StoreFailed: bundle: the cache cannot be used (unable to open database file); "
            "check the path, its rights and the disk",
        ),
        (
            "observe p-1",
            2,
            "UsageError: observe: no --cache; without one the event would be gone when this command ends",
        ),
        (
            "observe --cache c.db --score nan p-1",
            1,
            "BadInput: observe: score is nan, wanted a number of 0 to 1e+12",
        ),
        (
            "observe --cache c.db --score -1 p-1",
            1,
            "BadInput: observe: score is -1.0, wanted a number of 0 to 1e+12",
        ),
        ("rank --repeat -1", 2, "UsageError: rank: --repeat -1: wanted 0, for none, or more"),
        ("observe --cache c.db \udcff", 2, "UsageError: item '\\udcff' is not UTF-8; give it as UTF-8"),
        ("observe --cache c.db p-1 --behavior \udcff", 1, "BadInput: '\\udcff' is not Unicode text; give it as UTF-8"),
        ("inspect nowhere", 1, "BadInput: nowhere: no such file or folder; give a bundle, a pack or a cache"),
        ("inspect bundle/item_ids.json", 1, None),
        (
            "rank --pack bundle/items.safetensors",
            1,
            "BadPack: bundle/items.safetensors: found no format, wanted pocketrank.pack/1; "
            "sync with a server of this version",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(run: Run, line: str, code: int, message: str | None) -> None:
    said = refused(run(line), code)
    assert (
        said == message if message else said.startswith("BadPack: bundle/item_ids.json: not a whole safetensors file (")
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("rank --at now", "unrecognized arguments: --at now"),
        ("rank --now yesterday", "'yesterday' is not a time such as 2026-11-23T12:00:00"),
        ("rank --now 0001-01-01T00:00:00+14:00", "is not a time such as 2026-11-23T12:00:00"),
        ("rank -k many", "argument -k: invalid int value: 'many'"),
        ("rank --engine gpu", "invalid choice: 'gpu'"),
        ("observe", "the following arguments are required: item"),
        ("", "the following arguments are required: COMMAND"),
        ("rnak", "invalid choice: 'rnak'"),
    ],
)
def test_wrong_usage_exits_with_two(run: Run, line: str, message: str) -> None:
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_torchrun_may_start_what_its_processes_share_and_nothing_else(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    train, tune = (
        Command(name, "", "", lambda _: None, lambda _, name=name: (ran.append(name), Report({}))[1], is_shared)
        for name, is_shared in (("train", True), ("tune", False))
    )
    known = {"train": train, "tune": tune}
    assert (main(["tune"], known), main(["train"], known)) == (0, 0)
    capsys.readouterr()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert main(["tune"], known) == 2
    said = "torchrun: `tune` is not shared, each process would do it all; start it alone"
    assert capsys.readouterr().err == f"pocketrank: UsageError: {said}\n"
    assert main(["train"], known) == 0
    assert ran == ["tune", "train", "train"]
    assert [name for name, command in cli.commands().items() if command.is_shared] == ["train"]


@pytest.mark.parametrize("command", ["observe", "rank", "explain", "verify", "inspect"])
def test_help_shows_an_example(run: Run, command: str) -> None:
    code, out, _ = run(f"{command} --help")
    assert code == 0
    assert f"example:\n  pocketrank {command}" in out
    assert "--json" in out


def test_a_torn_pack_is_one_line_and_the_cache_goes_on(run: Run, facts: Any, slow: Slow, tmp_path: Path) -> None:
    whole = slow.pack(DAY, (START_S + 25_000) * US)
    whole.save(tmp_path / "7")
    before = facts("rank --cache c.db --pack 7 --now", NOW)
    (tmp_path / "torn").write_bytes(whole.to_bytes()[:-1])
    said = refused(run("rank --cache c.db --pack torn --now", NOW))
    assert said.startswith("BadPack: torn: not a whole safetensors file (")
    assert facts("rank --cache c.db --now", NOW) == before


def test_a_file_that_cannot_be_read_is_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "7").touch()
    read = Path.read_bytes

    def denied(path: Path) -> bytes:
        if path.name == "7":
            raise PermissionError(13, "Permission denied", "7")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert refused(run("rank --pack 7")) == "PermissionError: [Errno 13] Permission denied: '7'"


def test_a_name_with_a_line_break_is_one_line_all_the_same(run: Run) -> None:
    assert refused(run("rank --pack", "a\nb")) == "BadPack: a b: no such file; make one with: pocketrank pack USER"


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def interrupt_a_library(*_: Any, **__: Any) -> None:
    """As torch.onnx does when Ctrl-C comes while it imports: one error in the handler, another made of that one."""
    try:
        try:
            interrupt()
        finally:
            _ = {}["not imported yet"]
    except KeyError as error:
        raise RuntimeError("failed to export") from error


@pytest.mark.parametrize("ends", [interrupt, interrupt_a_library])
def test_interrupted_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, ends: Any) -> None:
    monkeypatch.setattr("pocketrank.ranker.Ranker.rank", ends)
    assert refused(run("rank"), 130) == "interrupted; run the same `pocketrank rank` again to go on"


def test_interrupted_before_the_command_is_known_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "commands", interrupted)
    assert cli.main(["rank"]) == 130
    assert capsys.readouterr().err == "pocketrank: interrupted\n"


def test_an_altered_bundle_is_one_line(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bundle" / "state.onnx").write_bytes(b"x")
    for line in ("rank", "verify", "inspect bundle", "observe --cache c.db p-1"):
        assert refused(run(line)).startswith("BadBundle: bundle/state.onnx: altered: 1 bytes, wanted ")
    edit_manifest(tmp_path / "bundle")
    assert refused(run("rank")).startswith("BadBundle: bundle/session.onnx: engine onnx cannot load it (")


def typed(line: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    words = [str(BIN), *line.split()]
    return subprocess.run(words, cwd=folder, text=True, capture_output=True, check=False, env=dict(os.environ))


def test_as_a_user_types_it(own_bundle: Path) -> None:
    folder = own_bundle.parent
    own_bundle.rename(folder / "bundle")
    said = typed("observe --cache c.db p-3 --behavior buy --json", folder)
    assert (said.returncode, said.stderr, json.loads(said.stdout)["live_events"]) == (0, "", 1)
    said = typed("rank --cache c.db -k 1", folder)
    assert (said.returncode, said.stderr, said.stdout.split()[2]) == (0, "", "p-3")
    said = typed("rank --cache c.db --pack none", folder)
    wanted = "pocketrank: BadPack: none: no such file; make one with: pocketrank pack USER\n"
    assert (said.returncode, said.stdout, said.stderr) == (1, "", wanted)
