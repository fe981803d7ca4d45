"""Forgetting: nothing of a user is left, all others are as before, and nothing brings the user back but new events."""

import errno
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from feast import FeatureStore

from pocketrank.config import Project
from pocketrank.errors import BadInput, NotReady, PocketRankError
from pocketrank.pack import Pack
from pocketrank_cli.cli import main
from pocketrank_features import forgotten, replacement, segment_job
from pocketrank_features.batches import bucket_of
from pocketrank_features.erasure import rewrite_parquet, trace_in_parquet
from pocketrank_features.forgetting import forget
from pocketrank_features.runs import Workplace
from pocketrank_features.views import definitions

from ..bundles import write_bundle

pytestmark = [
    # ibis 12 on duckdb >= 1.5, within Feast's materialisation.
    pytest.mark.filterwarnings("ignore:fetch_arrow_table:DeprecationWarning"),
    # Feast tells of its own next release; its SQLite store uses a converter that Python 3.12 deprecates.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
]
IDS = [f"p-{n}" for n in range(8)]
START = datetime(2024, 1, 1, tzinfo=UTC)
DAY_10, DAY_20, DAY_30, DAY_40 = (f"2024-{month}T00:00:00" for month in ("01-11", "01-21", "01-31", "02-10"))
HEADER = "user_id,item_id,behavior,timestamp,score,event_id"
GONE = 3  # who is forgotten
ALL_TIME = datetime(1970, 1, 2, tzinfo=UTC)


def lines(seed: int, first_day: float, last_day: float, users: int = 8, events: int = 240) -> list[str]:
    """Rows of a log: bursts of a few events, some of items nobody knows, and a bad one of every user."""
    rng = random.Random(seed)
    rows = []
    for number in range(events):
        user, minute = rng.randrange(users), rng.choice([0, 5, 12, 200])
        day = first_day + (last_day - first_day) * (number // 4 * 4) / events
        moment = START + timedelta(days=day, minutes=minute)
        rows.append(
            f"{user},p-{rng.randrange(10)},{rng.choice(['view', 'buy'])},{moment.isoformat()},"
            f"{rng.choice([1, 2.5])},e{seed}-{number}"
        )
    end = START + timedelta(days=last_day)
    for user in range(users):  # one bad, one of a segment still open at the end, one ahead of that
        rows += [f"{user},p-1,view,yesterday,1,bad{seed}-{user}"]
        for number, minutes in enumerate((-10, 10)):
            moment = end + timedelta(minutes=minutes)
            rows += [f"{user},p-{number},view,{moment.isoformat()},1,end{seed}-{user}-{number}"]
    return rows


def without(rows: list[str], user: int = GONE) -> list[str]:
    return [row for row in rows if not row.startswith(f"{user},")]


class Shop:
    """A project, and its commands as a user types them."""

    def __init__(self, root: Path, encoders: tuple[str, ...] = ("e1",), *, is_repo: bool = False, rows: Any = None):
        root.mkdir(parents=True)
        if is_repo:
            rows.start_project(root)
        (root / "pocketrank.toml").write_text("[events]\nbuckets = 2\n")
        for encoder in encoders:
            merges = {"kind": "log", "levels": 2} if encoder == "e2" else None
            write_bundle(root / f"bundle-{encoder}", IDS, slots=5, encoder_id=encoder, compaction=merges)
        write_bundle(root / "bundle", IDS, slots=5, encoder_id=encoders[0])
        self.root, self.encoders = root, encoders
        self.project = Project.open(root)

    def ingest(self, name: str, rows: list[str]) -> None:
        log = self.root.parent / f"{self.root.name}-{name}.csv"
        log.write_text("\n".join([HEADER, *rows]) + "\n")
        self.run("ingest", str(log))

    def segment(self, as_of: str, *options: str) -> None:
        for encoder in self.encoders:
            self.run("segment", "--as-of", as_of, "--bundle", str(self.root / f"bundle-{encoder}"), *options)

    def run(self, *words: str, code: int = 0) -> None:
        assert main([*words, "--project", str(self.root)]) == code, words

    def serve(self) -> None:
        """Register what is there, and materialise all of it."""
        store = FeatureStore(repo_path=str(self.root))
        store.apply(definitions(self.project))
        store.materialize(ALL_TIME, datetime(2024, 12, 1, tzinfo=UTC))

    def packs(self) -> dict[str, bytes]:
        shutil.rmtree(self.root / "packs", ignore_errors=True)
        self.run("pack", "--all")
        return {path.stem: path.read_bytes() for path in (self.root / "packs").iterdir()}

    def files(self, pattern: str) -> list[Path]:
        return sorted((self.root / "data").glob(pattern))

    def rows(self, pattern: str) -> list[dict[str, Any]]:
        return [row for path in self.files(pattern) for row in pq.ParquetFile(path).read().to_pylist()]

    def states(self) -> list[dict[str, Any]]:
        files = self.files("segment_state_*/*.arrow")
        return [row for path in files for row in pa.ipc.open_file(path.read_bytes()).read_all().to_pylist()]

    def facts(self, capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        self.run(*words, "--json", code=code)
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found


ROWS = ("events/*/*.parquet", "rejected.parquet", "segments_*/*.parquet", "users_*/*.parquet", "late_*/*.parquet")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def of_others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if str(row["user_id"]) != str(GONE)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two encoders, each after two runs, with late events, open segments and refused rows; no Feast repo."""
    shop = Shop(tmp_path_factory.mktemp("prepared") / "shop", ("e1", "e2"))
    shop.ingest("a", lines(1, 0, 10))
    shop.segment(DAY_10)
    shop.ingest("b", lines(2, 9, 20))
    shop.segment(DAY_20)
    return shop.root


@pytest.fixture
def shop(prepared: Path, tmp_path: Path) -> Shop:
    return copied(prepared, tmp_path / "shop")


def copied(root: Path, to: Path) -> Shop:
    shutil.copytree(root, to)
    shop = Shop.__new__(Shop)
    shop.root, shop.encoders, shop.project = to, ("e1", "e2"), Project.open(to)
    return shop


def test_nothing_of_them_is_left_and_every_other_row_is_where_it_was(shop: Shop) -> None:
    (shop.root / "packs").mkdir()
    for name in ("3.safetensors", "4.safetensors"):
        (shop.root / "packs" / name).write_bytes(b"a pack")
    before = {pattern: shop.rows(pattern) for pattern in ROWS}
    states = shop.states()
    footers = {path: pq.read_metadata(path) for pattern in ROWS for path in shop.files(pattern)}
    kept = {path: path.read_bytes() for path in shop.files("events/bucket=*/*.parquet")}
    report = forget(shop.project, ["3"])
    gone = {pattern: len(rows) - len(of_others(rows)) for pattern, rows in before.items()}
    assert all(gone.values()), "the project has something of everything"
    counted = ("events", "rejected_rows", "segment_rows", "user_rows", "late_events")
    assert [report.facts[name] for name in counted] == list(gone.values())
    assert (report.facts["states"], report.facts["packs"], report.facts["online"]) == (2, 1, None)
    for pattern, rows in before.items():
        assert shop.rows(pattern) == of_others(rows)
    assert shop.states() == of_others(states)
    for path, footer in footers.items():
        assert settings_of(pq.read_metadata(path)) == settings_of(footer)
    other = 1 - bucket_of(GONE, 2)
    assert all(path.read_bytes() == kept[path] for path in shop.files(f"events/bucket={other:02d}/*.parquet"))
    assert sorted(path.name for path in (shop.root / "packs").iterdir()) == ["4.safetensors"]
    assert not (shop.root / "data" / ".replaced").exists()


def settings_of(footer: pq.FileMetaData) -> Any:
    columns = [footer.row_group(0).column(place) for place in range(footer.num_columns)] if footer.num_rows else []
    return footer.metadata, [(one.path_in_schema, one.compression, one.has_dictionary_page) for one in columns]


def test_the_job_goes_on_without_them_as_if_nothing_were(shop: Shop, prepared: Path, tmp_path: Path) -> None:
    never = Shop(tmp_path / "never", ("e1", "e2"))
    never.ingest("a", without(lines(1, 0, 10)))
    never.segment(DAY_10)
    never.ingest("b", without(lines(2, 9, 20)))
    never.segment(DAY_20)
    assert any(row["user_id"] == GONE and row["open_time_us"] for row in shop.states()), "a segment is still open"
    shop.run("forget", "3", "--at", DAY_20)
    for encoder in shop.encoders:
        counts = [Workplace(one.project, encoder).look().counts for one in (shop, never)]
        for one in counts:  # what a state does not tell
            one.pop("unknown"), one.pop("through_us")
        assert counts[0] == counts[1]
    for one in (shop, never):
        one.segment(DAY_30)
    for pattern in ("segments_*/*.parquet", "users_*/*.parquet"):
        written = [[(path.name, path.read_bytes()) for path in one.files(pattern)] for one in (shop, never)]
        assert written[0] == written[1]
    assert shop.rows("segments_e1/000003*.parquet"), "there was something to go on with"


def test_what_killed_commands_left_half_made_goes_but_for_the_only_copy(shop: Shop) -> None:
    left = ["data/.events.77.draft/bucket=00/a.parquet", ".ingest-x/work.duckdb", "packs/.3.safetensors.7.draft"]
    left += ["data/.rejected.parquet.8.draft", "data/.events.old/bucket=00/a.parquet", ".set.parquet.9.draft"]
    for name in [*left, "data/.swapped.old/a.parquet"]:
        (shop.root / name).parent.mkdir(parents=True, exist_ok=True)
        (shop.root / name).write_bytes(b"of user 3")
    shop.run("forget", "3")
    assert [name for name in left if (shop.root / name).exists()] == []
    assert (shop.root / "data" / ".swapped.old" / "a.parquet").exists(), "data/swapped is not there yet"


def test_a_run_under_way_is_dropped(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(segment_job, "committed", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            segment_job.segment(shop.project, segment_job.Wish(as_of=datetime(2024, 1, 31, tzinfo=UTC)))
    assert shop.files("segment_state_e1/run/segments/*")
    shop.run("forget", "3")
    assert not (shop.root / "data" / "segment_state_e1" / "run").exists()
    shop.segment(DAY_30)
    assert GONE not in {row["user_id"] for row in shop.rows("segments_e1/*.parquet")}


def test_only_new_events_bring_them_back_and_others_never_notice(
    tmp_path: Path, rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    log, more = lines(1, 0, 20), lines(2, 20, 30)
    new = [f"{GONE},p-{n},buy,2024-02-0{n}T12:00:00Z,1,new-{n}" for n in (1, 2, 5)]
    shop = Shop(tmp_path / "shop", is_repo=True, rows=rows)
    never = Shop(tmp_path / "never", is_repo=True, rows=rows)
    for one in (shop, never):
        mine = log if one is shop else without(log)
        one.ingest("log", mine)
        one.segment(DAY_20)
        one.serve()
        if one is shop:
            assert str(GONE) in one.packs()
            facts = one.facts(capsys, "forget", str(GONE), "--at", "2024-01-31T12:00:00")
            assert facts["online"] is True
            assert facts["refused_up_to"] == "2024-01-31T12:00:00+00:00"
        one.serve()
        one.run("ingest", str(tmp_path / f"{one.root.name}-log.csv"))  # the same again, and with more in it
        one.ingest("both", (mine + more) if one is shop else mine + without(more))
        one.segment(DAY_30)
        one.segment(DAY_30, "--rebuild")
        one.serve()
    assert GONE not in {row["user_id"] for pattern in ROWS[:1] + ROWS[2:] for row in shop.rows(pattern)}
    assert str(GONE) not in {row["user_id"] for row in shop.rows("rejected.parquet")}
    assert shop.packs() == never.packs() != {}
    assert str(GONE) not in shop.packs()
    shop.run("pack", str(GONE), code=1)
    shop.ingest("new", new)
    shop.segment(DAY_40)
    shop.serve()
    never.segment(DAY_40)
    never.serve()
    packs = shop.packs()
    back = Pack.from_bytes(packs.pop(str(GONE)), "back")
    assert packs == never.packs()
    assert (back.ordinal_first.tolist(), back.n_events.tolist()) == ([0, 1, 2], [1, 1, 1])
    assert back.memory_counts.sum() == 3
    (row,) = (row for row in shop.rows("users_e1/*.parquet") if row["user_id"] == GONE)
    assert row["n_events"] == 3


def test_ingest_refuses_their_old_events_and_keeps_nothing_of_them(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    until = shop.facts(capsys, "forget", "3", "--at", DAY_20)["refused_up_to"]
    after = (datetime.fromisoformat(until) + timedelta(microseconds=1)).isoformat()
    before = shop.rows("rejected.parquet")
    log = shop.root.parent / "c.csv"
    old = [f"3,p-1,buy,{until},1,c1", "3,p-1,buy,,1,c2", "3,p-1,buy,2123-01-01,1,c3", "3,,buy,2024-01-02,-1,c4"]
    others = ["4,p-1,buy,2024-01-02,1,c5", "4,p-1,buy,soon,1,c6"]
    log.write_text("\n".join([HEADER, *old, f"3,p-1,buy,{after},1,c7", *others]))
    facts = shop.facts(capsys, "ingest", str(log))
    assert (facts["accepted"], facts["reasons"]) == (2, {"user was forgotten": 4, "unreadable time": 1})
    assert [row["event_id"] for row in shop.rows("rejected.parquet")[len(before) :]] == ["c6"]
    stored = {row["event_id"] for row in shop.rows("events/*/*.parquet")}
    assert {"c5", "c7"} <= stored
    assert not {"c1", "c2", "c3", "c4"} & stored


def test_the_ledger_does_not_say_who(shop: Shop) -> None:
    shop.ingest("named", ["8800555,p-1,buy,2024-01-02,1,n1"])
    shop.run("forget", "8800555")
    assert "8800555" not in (shop.root / "data" / "forgotten.json").read_text()
    assert not any(b"8800555" in content for content in everything(shop.root).values())


def test_a_moment_is_never_before_their_newest_event(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    newest = max(row["timestamp"] for row in shop.rows("events/*/*.parquet") if row["user_id"] == GONE)
    said = datetime.fromisoformat(shop.facts(capsys, "forget", "3", "--at", DAY_10)["refused_up_to"])
    assert newest <= said < newest + timedelta(days=2)
    earlier = shop.facts(capsys, "forget", "3", "--at", "2023-01-01")
    assert datetime.fromisoformat(earlier["refused_up_to"]) == said
    now = datetime.fromisoformat(shop.facts(capsys, "forget", "3")["refused_up_to"])
    assert timedelta(0) <= datetime.now(UTC) - now < timedelta(minutes=5)


def test_a_second_time_says_so(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.run("forget", "3", "--at", DAY_20)
    before = everything(shop.root)
    assert capsys.readouterr().out.endswith(
        "the bundle is as it was; a model without their part takes: pocketrank train; pocketrank export\n"
    )
    shop.run("forget", "3", "--at", DAY_20)
    assert capsys.readouterr().out.endswith("forgotten before; there was nothing of them\n")
    assert everything(shop.root) == before


def test_a_log_of_theirs_alone_stays_known(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.ingest("theirs", ["3,p-1,buy,2024-01-22,1,t1"])
    shop.segment(DAY_30)
    shop.run("forget", "3")
    assert shop.facts(capsys, "ingest", str(shop.root.parent / "shop-theirs.csv"))["added"] is False
    shop.segment(DAY_40)
    shop.segment(DAY_40, "--rebuild")
    assert GONE not in {row["user_id"] for row in shop.rows("segments_*/*.parquet")}


def test_the_last_user_of_a_bucket_may_go(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "shop")
    shop.ingest("a", [f"3,p-{n},buy,2024-01-0{n},1,e{n}" for n in (1, 2, 3)])
    shop.segment(DAY_10)
    shop.run("forget", "3", "--at", DAY_10)
    assert not shop.files("segment_state_e1/*.arrow")
    shop.ingest("b", ["3,p-1,buy,2024-01-12,1,f1"])
    shop.segment(DAY_20)
    assert [(row["ordinal_first"], row["n_events"]) for row in shop.rows("segments_e1/*.parquet")] == [(0, 1)]


def test_a_training_set_loses_their_rows(shop: Shop) -> None:
    table = pa.table({"user_id": [1, GONE, 4, GONE], "ordinal": [5, 6, 7, 8]})
    for name, metadata in (("set", {"pocketrank.training_set": "{}"}), ("other", {"made": "by hand"})):
        for folder in (shop.root, shop.root / "data"):
            pq.write_table(table.replace_schema_metadata(metadata), folder / f"{name}.parquet")
    assert forget(shop.project, ["3"]).facts["training_rows"] == 4
    for folder in (shop.root, shop.root / "data"):
        found = pq.read_table(folder / "set.parquet")
        assert (found["ordinal"].to_pylist(), found.schema.metadata) == ([5, 7], {b"pocketrank.training_set": b"{}"})
        assert pq.read_table(folder / "other.parquet").num_rows == 4


def test_several_go_at_once_and_one_unknown_stops_all(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(shop.root)
    for users, line in (
        (["3", "99"], "UnknownUser: user 99: nothing of them in this project, neither in data/, packs/ nor the online"),
        (["3", "ann"], "UnknownUser: user 'ann': users here are integers; check the id"),
        (["9" * 20], "UnknownUser: user '99999999999999999999': users here are integers of 64 bits; check the id"),
    ):
        shop.run("forget", *users, code=1)
        said = capsys.readouterr().err
        assert said.startswith(f"pocketrank: {line}")
        assert said.count("\n") == 1
        assert everything(shop.root) == before
    facts = shop.facts(capsys, "forget", "3", "5", "3")
    assert (facts["users"], facts["states"]) == (2, 4)
    assert {row["user_id"] for row in shop.rows("segments_*/*.parquet")} == {0, 1, 2, 4, 6, 7}


@pytest.mark.parametrize("user", ["../../etc/passwd", "ü b", "0", "-"])
def test_any_string_is_an_id(tmp_path: Path, user: str) -> None:
    shop = Shop(tmp_path / "shop")
    rows = [f"{name},p-{n},buy,2024-01-0{n},1,e{n}{name}" for n in (1, 2) for name in (user, "someone", "00")]
    shop.ingest("a", [*rows, f"{user},p-1,buy,soon,1,bad"])
    shop.segment(DAY_10)
    assert main(["forget", "--project", str(shop.root), "--", user]) == 0
    assert {row["user_id"] for pattern in ROWS for row in shop.rows(pattern)} == {"someone", "00"}
    assert {row["user_id"] for row in shop.states()} == {"someone", "00"}


def test_nobody_else_is_at_work_meanwhile(shop: Shop, tmp_path: Path) -> None:
    before = everything(shop.root)
    with (
        Workplace(shop.project, "e1").held(),
        pytest.raises(NotReady, match=r"another pocketrank command is at work here; let it end"),
    ):
        forget(shop.project, ["3"])
    log = tmp_path / "more.csv"
    log.write_text(f"{HEADER}\n1,p-1,buy,2024-01-02,1,m1\n")
    with replacement.alone(shop.root):
        shop.run("segment", "--as-of", DAY_30, code=1)
        shop.run("ingest", str(log), code=1)
        shop.run("forget", "3", code=1)
    assert everything(shop.root) == before
    shop.run("forget", "3")
    shop.run("ingest", str(log))


@pytest.mark.parametrize(
    "pattern", ["events/bucket=00/*.parquet", "rejected.parquet", "users_e2/*.parquet", "segment_state_e1/*.arrow"]
)
def test_a_damaged_file_is_named_and_nothing_is_changed(shop: Shop, pattern: str) -> None:
    assert bucket_of(GONE, 2) == 0, "else the first pattern is of a bucket that nobody reads"
    bad = shop.files(pattern)[-1]
    bad.write_bytes(bad.read_bytes()[:200])
    before = everything(shop.root)
    with pytest.raises(BadInput, match=rf"^{re.escape(str(bad))}: "):
        forget(shop.project, ["3"])
    assert everything(shop.root) == before


def test_a_damaged_ledger_stops_ingest(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop.run("forget", "3")
    ledger = shop.root / "data" / "forgotten.json"
    log = tmp_path / "more.csv"
    log.write_text(f"{HEADER}\n3,p-1,buy,2024-01-02,1,m1\n")
    content = ledger.read_text()
    for damage in (content[:50], "[]", content.replace("forgotten/1", "forgotten/9")):
        ledger.write_text(damage)
        before = everything(shop.root)
        capsys.readouterr()
        shop.run("ingest", str(log), code=1)
        assert f"BadInput: {ledger}: damaged" in capsys.readouterr().err
        assert everything(shop.root) == before


def test_a_full_disk_is_said_in_one_line_and_the_next_time_it_is_done(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(shop.root)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("pocketrank_features.footprint.rewrite_states", full)
        shop.run("forget", "3", code=1)
    assert "No space left on device; nothing is lost or half written: make room, then run" in capsys.readouterr().err
    after = everything(shop.root)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"data/forgotten.json"}
    shop.run("forget", "3")
    assert GONE not in {row["user_id"] for row in shop.states()}


class Killed(BaseException):
    """Stands for `kill -9`: nothing that is written or moved after it happens."""


@pytest.fixture
def kill_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """After so many writes, moves and removals every further one raises, those of a clean-up too."""
    left = [10**9]

    def counted(before: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return before(*arguments, **options)

        return call

    for owner, names in (
        (Path, ("replace", "unlink", "write_bytes", "mkdir")),
        (os, ("fsync",)),
        (shutil, ("rmtree",)),
        (pq.ParquetWriter, ("write_table",)),
        (pa.RecordBatchFileWriter, ("write_batch",)),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, counted(getattr(owner, name)))

    def kill(steps: int) -> None:
        left[0] = steps

    yield kill
    left[0] = 10**9


def test_stopped_anywhere_the_next_command_or_the_same_again_finishes_it(
    prepared: Path, tmp_path: Path, kill_after: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forgotten.secrets, "token_hex", lambda _: "salt")
    at = datetime(2024, 1, 21, tzinfo=UTC)

    def end_of(shop: Shop) -> dict[str, bytes]:
        forget(shop.project, ["3"], at)
        shop.segment(DAY_30)
        return everything(shop.root / "data")

    wanted = end_of(copied(prepared, tmp_path / "wanted"))
    before = copied(prepared, tmp_path / "before")
    untouched = {pattern: of_others(before.rows(pattern)) for pattern in ROWS}
    half_way = steps = 0
    while True:
        shop = copied(prepared, tmp_path / f"{steps:03d}")
        kill_after(steps)
        try:
            forget(shop.project, ["3"], at)
            break
        except Killed:
            kill_after(10**9)
        for pattern, rows in untouched.items():
            assert of_others(shop.rows(pattern)) == rows, steps
        half_way += (shop.root / "data" / ".replaced" / "commit.json").is_file()
        if steps % 2:  # somebody else comes first, and must not complain of event files that changed
            shop.run("segment", "--as-of", DAY_20)
            assert not (shop.root / "data" / ".replaced" / "commit.json").is_file()
        assert end_of(shop) == wanted, steps
        shutil.rmtree(shop.root)
        steps += 1
    assert steps > 40
    assert half_way > 15


def test_a_commit_that_is_damaged_is_named(shop: Shop) -> None:
    side = shop.root / "data" / ".replaced"
    side.mkdir()
    (side / "commit.json").write_text("{")
    with pytest.raises(BadInput, match=r"commit.json: damaged .*; remove .*\.replaced, and forget those users again"):
        forget(shop.project, ["3"])
    shop.run("segment", "--as-of", DAY_30, code=1)


def test_row_groups_without_them_are_not_read_and_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, draft = tmp_path / "a.parquet", tmp_path / "b.parquet"
    users = [user for user in range(10) for _ in range(50)]
    table = pa.table({"user_id": users, "timestamp": range(500)}).replace_schema_metadata({"mine": "1"})
    pq.write_table(table, path, row_group_size=100, compression={"user_id": "NONE", "timestamp": "ZSTD"})
    read: list[int] = []
    whole = pq.ParquetFile.read_row_group

    def noted(self: Any, number: int, **options: Any) -> Any:
        read.append(number)
        return whole(self, number, **options)

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "read_row_group", noted)
        trace = trace_in_parquet(path, [4, 5, 77])
    assert read == [2]
    assert (dict(trace.rows), trace.others, trace.newest_us) == ({4: 50, 5: 50}, 400, 299)
    rewrite_parquet(trace_in_parquet(path, [4]), draft)
    footer = pq.read_metadata(draft)
    assert [footer.row_group(number).num_rows for number in range(5)] == [100, 100, 50, 100, 100]
    assert footer.metadata[b"mine"] == b"1"
    assert [footer.row_group(0).column(place).compression for place in (0, 1)] == ["UNCOMPRESSED", "ZSTD"]
    assert pq.read_table(draft).equals(table.filter([user != 4 for user in users]))


def test_a_store_that_cannot_forget_is_named_until_the_rows_are_gone(
    tmp_path: Path, rows: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path / "shop", is_repo=True, rows=rows)
    settings = yaml.safe_load((shop.root / "feature_store.yaml").read_text())
    settings["online_store"] = {"type": "sqlite", "path": "data/stock.db"}
    settings.pop("batch_engine", None)
    (shop.root / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    shop.ingest("log", lines(1, 0, 10))
    shop.segment(DAY_10)
    shop.serve()
    for _ in range(2):
        capsys.readouterr()
        shop.run("forget", "3", code=1)
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("still"))
        assert line == (
            "still in the online store: rows in segments_e1, users_e1, for sqlite cannot delete one; do it by its own "
            f"means, or run in {shop.root}: feast teardown; rm data/registry.db; feast apply; "
            "feast materialize 1970-01-02T00:00:00 END"
        )
        assert GONE not in {row["user_id"] for row in shop.rows("users_e1/*.parquet")}
    store = FeatureStore(repo_path=str(shop.root))
    store.teardown()
    shop.serve()
    assert shop.facts(capsys, "forget", "3")["left_online"] == []


def test_one_who_is_online_alone_is_known(tmp_path: Path, rows: Any, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Shop(tmp_path / "shop", is_repo=True, rows=rows)
    shop.ingest("log", lines(1, 0, 10))
    shop.segment(DAY_10)
    shop.serve()
    for folder in ("events", "segments_e1", "users_e1", "segment_state_e1"):
        shutil.rmtree(shop.root / "data" / folder)
    (shop.root / "data" / "rejected.parquet").unlink()
    (shop.root / "data" / "users_e1").mkdir()
    never = {"user_id": [1], "closed_at_us": [1]}
    pq.write_table(pa.table(never), shop.root / "data" / "users_e1" / "a.parquet")
    assert shop.facts(capsys, "forget", "3")["online"] is True
    assert shop.facts(capsys, "forget", "3")["online"] is False
    with pytest.raises(PocketRankError, match="user 99: nothing of them"):
        forget(shop.project, ["99"])
