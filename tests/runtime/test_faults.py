"""What a phone's disk and other processes do to a ranker: ranking goes on, and nothing is lost in silence."""

import gc
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from pocketrank import Bundle, Ranker, cache_file
from pocketrank.cache import Cache, Observed
from pocketrank.errors import BadInput, StoreFailed
from pocketrank_cli.cli import main

from ..bundles import edit_manifest
from .phones import START_S, US, Slow

NOW_S = START_S + 86_400


def scores(ranker: Ranker) -> list[tuple[object, float]]:
    return [(hit.item, hit.score) for hit in ranker.rank(k=12, now=NOW_S)]


def filled(path: Path, events: int = 300) -> Path:
    with closing(Cache(path)) as cache:
        for number in range(events):
            cache.add(Observed(number, f"p-{number}", "view", 1.0))
        cache.pack = b"x" * 9000
    return path


def spoil(path: Path, begin: int = 4096) -> bytes:
    """Overwrite all but the first page."""
    content = path.read_bytes()
    damaged = content[:begin] + b"\xa5" * (len(content) - begin)
    path.write_bytes(damaged)
    return damaged


# Damage


def test_a_damaged_cache_is_moved_aside_and_said_and_another_begun(bundle_dir: Path, tmp_path: Path) -> None:
    path = filled(tmp_path / "c")
    damaged = spoil(path)
    with Ranker.open(bundle_dir, path) as ranker:
        said = ranker.stats(NOW_S)["cache_damaged"]
        assert said == f"{path}: damaged (database disk image is malformed); moved to c.corrupt, and begun anew"
        ranker.observe("p-1", at=NOW_S)
    assert (tmp_path / "c.corrupt").read_bytes() == damaged
    with Ranker.open(bundle_dir, path) as ranker:
        stats = ranker.stats(NOW_S)
        assert (stats["live_events"], stats["cache_damaged"]) == (1, None)
        ranker.forget()
    assert [found.name for found in tmp_path.iterdir()] == ["c"]  # what was moved aside was the user's, too


def test_commands_say_that_a_cache_was_damaged(
    bundle_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    device = ["--bundle", str(bundle_dir), "--cache", "c"]
    for words in (
        ["observe", *device, "p-1"],
        ["rank", *device, "-k", "1"],
        ["explain", *device, "p-1"],
        ["inspect", "c"],
    ):
        spoil(filled(Path("c")))
        assert main(words) == 0
        assert "cache damaged" in (out := capsys.readouterr().out)
        assert "c: damaged (database disk image is malformed); moved to c.corrupt, and begun anew" in out
        Path("c").unlink()


def test_damage_while_it_is_in_use_is_moved_aside_as_well(bundle_dir: Path, tmp_path: Path) -> None:
    path = filled(tmp_path / "c", 3000)
    with Ranker.open(bundle_dir, path) as ranker:
        spoil(path)
        ranker.observe("p-1", at=NOW_S)
        assert ranker.stats(NOW_S)["live_events"] == 1
        assert "moved to c.corrupt" in ranker.stats(NOW_S)["cache_damaged"]
    with closing(Cache(path)) as cache:
        assert [event.item for event in cache.events()] == ["p-1"]


def test_a_row_that_is_none_is_damage(tmp_path: Path) -> None:
    for content in (b"[1, 2]", b"{", b'["1", "p", "view", 1.0]', b"[1, {}, 3, 1.0]", *SCORES, "text", 7):
        path = filled(tmp_path / "c", 3)
        with closing(sqlite3.connect(path)) as db:
            db.execute("UPDATE events SET content = ? WHERE arrival = 2", (content,))
            db.commit()
        with closing(Cache(path)) as cache:
            assert cache.events() == []
            assert cache.set_aside == f"{path}: damaged ({WHY.get(content, 'event 2 is not one')}); {MOVED}"


SCORES = (b'[1, "p", "view", null]', b'[1, "p", "view", "1"]', b'[1, "p", "view", -1]', b'[1, "p", "view", NaN]')
SCORES = (*SCORES, b'[1%s, "p", "view", 1]' % (b"0" * 30))
WHY, MOVED = dict.fromkeys(["text", 7], "what is at events/2 is no bytes"), "moved to c.corrupt, and begun anew"


def test_facts_that_are_none_are_damage(tmp_path: Path) -> None:
    path = filled(tmp_path / "c", 3)
    with closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE kept SET content = ? WHERE name = 'facts'", (b"[]",))
        db.commit()
    with closing(Cache(path)) as cache:
        assert cache.fact("device") is None
        assert "damaged (its facts are none)" in (cache.set_aside or "")


def test_a_cache_of_zeros_as_a_loss_of_power_leaves_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(bytes(8192))
    with closing(Cache(path)) as cache:
        cache.add(Observed(1, "p", "view", 1.0))
        assert "file is not a database" in (cache.set_aside or "")


def test_another_process_that_moved_it_aside_is_followed(tmp_path: Path) -> None:
    path = filled(tmp_path / "c")
    with closing(Cache(path)) as one, closing(Cache(path)) as two:
        assert len(two.events()) == 300
        spoil(path)
        with closing(Cache(path)) as three:
            assert three.events() == []
        for number, cache in enumerate([one, two]):
            cache.add(Observed(number, "p", "view", 1.0))
        assert one.events() == two.events()
        assert len(one.events()) == 2
    with closing(Cache(path)) as cache:
        assert len(cache.events()) == 2


def test_a_file_that_was_removed_is_begun_anew(tmp_path: Path) -> None:
    path = filled(tmp_path / "c")
    with closing(Cache(path)) as cache:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink()
        cache.add(Observed(1, "p", "view", 1.0))
        assert len(cache.events()) == 1
    with closing(Cache(path)) as cache:
        assert len(cache.events()) == 1


# A disk that is full, or cannot be written to


def refused(ranker: Ranker, events: int = 4000) -> str:
    """Observe until it is refused."""
    for number in range(events):
        before = len(ranker._holding.cache.events())
        try:
            ranker.observe(f"p-{number % 12}", at=NOW_S - 1)
        except StoreFailed as error:
            assert len(ranker._holding.cache.events()) == before
            return str(error)
    raise AssertionError("none was refused")


def test_a_full_disk_refuses_the_event_and_ranking_goes_on(bundle_dir: Path, tmp_path: Path) -> None:
    with Ranker.open(bundle_dir, tmp_path / "c") as ranker:
        ranker.observe("p-3", at=NOW_S - 60)
        ranker._holding.cache._file.do(lambda db: db.execute("PRAGMA max_page_count = 12"))
        said = refused(ranker)
        assert (
            said
            == f"{tmp_path}/c: the cache cannot be used (database or disk is full); check the path, its rights "
            + ("and the disk")
        )
        there, before = len(ranker._holding.cache.events()), scores(ranker)
        assert len(before) == 12
        ranker._holding.cache._file.do(lambda db: db.execute("PRAGMA max_page_count = 100000"))
        ranker.observe("p-4", at=NOW_S)
        assert len(ranker._holding.cache.events()) == there + 1
        assert scores(ranker) != before
    with closing(Cache(tmp_path / "c")) as cache:
        assert len(cache.events()) == there + 1


def test_a_disk_that_does_not_take_what_is_written_refuses_the_event(bundle_dir: Path, tmp_path: Path) -> None:
    with Ranker.open(bundle_dir, tmp_path / "c") as ranker:
        ranker.observe("p-3", at=NOW_S - 60)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        try:
            assert "the cache cannot be used (" in refused(ranker)
            found = ranker.sync("http://127.0.0.1:9", "t", attempts=1, now=True)  # nobody is there
            there = len(ranker._holding.cache.events())
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert len(scores(ranker)) == 12
        assert found.offline
        ranker.observe("p-4", at=NOW_S)
    with closing(Cache(tmp_path / "c")) as cache:
        assert len(cache.events()) == there + 1


@contextmanager
def nobody() -> Iterator[Path]:
    """A folder of a user who may not do everything, as root may."""
    folder = Path(tempfile.mkdtemp())
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize("what", ["file", "folder", "both"])
@pytest.mark.parametrize("is_closed", [True, False], ids=["closed", "killed"])
def test_what_cannot_be_written_to_is_ranked_by_and_events_are_refused(
    bundle_dir: Path, what: str, is_closed: bool
) -> None:
    opened = Ranker.open(bundle_dir)  # by who may read it
    with nobody() as folder:
        with closing(Cache(folder / "d")) as cache:
            for number in range(5):
                cache.add(Observed((NOW_S - 60) * US, f"p-{number}", "view", 1.0))
            for path in folder.iterdir() if not is_closed else ():  # as a killed process leaves them
                shutil.copyfile(path, path.with_name(path.name.replace("d", "c", 1)))
        if is_closed:
            (folder / "d").rename(folder / "c")
        if what != "folder":
            for path in folder.iterdir():
                path.chmod(0o444)
        if what != "file":
            folder.chmod(0o555)
        with closing(Cache(folder / "c")) as cache:
            opened._holding.cache, opened._holding.lock = cache, cache.lock
            assert opened.stats(NOW_S)["remembered_items"] == 5
            if (what, is_closed) != ("folder", False):  # where all is there that is written to
                with pytest.raises(StoreFailed, match="the cache cannot be used"):
                    opened.observe("p-9", at=NOW_S)
                assert opened.stats(NOW_S)["remembered_items"] == 5
            assert len(scores(opened)) == 12


def test_a_disk_where_no_cache_can_be_made_is_said() -> None:
    with nobody() as folder:
        folder.chmod(0o555)
        with pytest.raises(
            StoreFailed, match=r"unable to open database file\); check the path, its rights and the disk"
        ):
            Cache(folder / "c")


# Other processes


OTHERS = """
import os, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on a fork of a process with threads is told of
from pocketrank import Ranker
from pocketrank.cache import Cache, Observed
from pocketrank_cli.cli import main

def observe(cache, who, number):
    for n in range(number):
        cache.add(Observed(1000 * who + n, f"p-{who}-{n}", "view", 1.0))

path, bundle = sys.argv[1:3]
"""


def typed(script: str, *words: object) -> str:
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-c", OTHERS + script, *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_cache_that_somebody_locks_is_not_read_past_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_file, "PATIENCE_S", 0.05)
    path = filled(tmp_path / "c", 3)
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("DELETE FROM kept")
        db.commit()
        with pytest.raises(StoreFailed, match="database is locked"):
            Cache(path)
    with closing(Cache(path)) as cache:
        cache.add(Observed(4, "p", "view", 1.0))
        assert len(cache.events()) == 4


def test_processes_that_write_to_one_cache_at_once_lose_nothing(tmp_path: Path, bundle_dir: Path) -> None:
    path, script = tmp_path / "c", "observe(Cache(path), int(sys.argv[3]), 200)"
    started = [
        subprocess.Popen([sys.executable, "-c", OTHERS + script, str(path), str(bundle_dir), str(who)])
        for who in range(4)
    ]
    assert [process.wait(120) for process in started] == [0] * 4
    with closing(Cache(path)) as cache:
        assert len(cache.events()) == len({event.item for event in cache.events()}) == 800


def test_a_fork_ranks_and_observes_by_its_parents_ranker(tmp_path: Path, bundle_dir: Path) -> None:
    """Threads that write meanwhile hold locks as it is forked; parent and children then write at once."""
    script = """
ranker = Ranker.open(bundle, path)
ranker.observe("p-1", at=1000)
before = [hit.item for hit in ranker.rank(now=2000)]
observe(ranker._holding.cache, 0, 100)
children = []
for who in range(1, 4):
    if (child := os.fork()) == 0:
        code = 1
        try:
            assert ranker.stats(2000)["remembered_items"] in (1, 2)  # a child before may be done already
            observe(ranker._holding.cache, who, 100)
            mine = [e for e in ranker._holding.cache.events() if str(e.item).startswith(f"p-{who}-")]
            ranker.observe("p-2", at=1500)
            assert len(ranker.rank(now=2000)) == 10 and len(mine) == 100
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    children.append(child)
observe(ranker._holding.cache, 4, 100)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
assert ranker.stats(2000)["remembered_items"] == 2
print(len(ranker._holding.cache.events()))
"""
    assert typed(script, tmp_path / "c", bundle_dir).split() == ["504"]
    with closing(Cache(tmp_path / "c")) as cache:
        assert len(cache.events()) == 504


def test_a_fork_while_threads_write_finds_no_lock_held(tmp_path: Path, bundle_dir: Path) -> None:
    script = """
import threading
cache = Cache(path)
done = threading.Event()
def write():
    number = 0
    while not done.is_set():
        cache.add(Observed(number, "p", "view", 1.0))
        number += 1
thread = threading.Thread(target=write)
thread.start()
for _ in range(20):
    if (child := os.fork()) == 0:
        cache.add(Observed(0, "child", "view", 1.0))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
done.set()
thread.join()
print(sum(event.item == "child" for event in cache.events()))
"""
    assert typed(script, tmp_path / "c", bundle_dir).split() == ["20"]


def test_threads_that_fork_at_once_leave_no_lock_held(tmp_path: Path) -> None:
    with closing(Cache(tmp_path / "c")) as cache:
        forked = threading.Event()

        def fork() -> None:
            cache_file._before_fork()
            cache_file._after_fork()
            forked.set()

        cache_file._before_fork()
        other = threading.Thread(target=fork)
        other.start()
        assert not forked.wait(0.1)
        cache_file._after_fork()
        other.join(10)
        assert forked.is_set()
        added = threading.Thread(target=cache.add, args=(Observed(1, "p-1", "view", 1.0),), daemon=True)
        added.start()
        added.join(10)
        assert not added.is_alive()


def test_a_child_that_outlives_its_parent_keeps_what_it_observes(tmp_path: Path, bundle_dir: Path) -> None:
    script = """
cache, parent = Cache(path), os.getpid()
observe(cache, 0, 50)
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.01)
    observe(cache, 1, 50)
    cache.close()
    print("done", flush=True)
    os._exit(0)
observe(cache, 2, 50)
"""
    assert typed(script, tmp_path / "c", bundle_dir) == "done\n"  # what it prints is waited for
    with closing(Cache(tmp_path / "c")) as cache:
        assert len(cache.events()) == 150


def test_a_bundle_that_is_swapped_while_threads_rank_is_ranked_by_whole(
    bundle_dir: Path, own_bundle: Path, tmp_path: Path, slow: Slow
) -> None:
    """Every ranking is one bundle's: its items, its vectors and its pack."""
    edit_manifest(own_bundle, model_id="m2", encoder_id="e2", memory_half_life_s=5.0)
    with Ranker.open(bundle_dir, tmp_path / "c") as ranker:
        ranker.observe("p-3", at=NOW_S - 60)
        bundles, found, failed = [ranker.bundle, Bundle.open(own_bundle)], list[list](), list[BaseException]()
        done = threading.Event()

        def rank() -> None:
            try:
                while not done.is_set():
                    found.append(scores(ranker))
            except BaseException as error:
                failed.append(error)

        wanted = []
        for bundle in bundles[::-1]:
            ranker._holding.take({}, bundle)
            wanted.append(scores(ranker))
        assert wanted[0] != wanted[1]
        threads = [threading.Thread(target=rank) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(30):
            ranker._holding.take({}, bundles[turn % 2])
        done.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert len(found) > 10
    assert all(one in wanted for one in found)


def test_a_bundle_that_was_left_stays_for_a_ranking_by_it_and_no_longer(bundle_dir: Path, own_bundle: Path) -> None:
    with Ranker.open(bundle_dir) as ranker:
        ranker.observe("p-3", at=NOW_S - 60)
        ranking, left = ranker.rank(2, now=NOW_S), weakref.ref(ranker.bundle)
        ranker._holding.take({}, Bundle.open(own_bundle))
        assert sum(reason.added for reason in ranking[0].reasons) == pytest.approx(ranking[0].score, abs=1e-5)
        del ranking
        gc.collect()
        assert left() is None


def test_a_cache_of_one_user_is_refused_to_another_until_it_is_forgotten(bundle_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "c"
    with Ranker.open(bundle_dir, path, user=700_001) as ranker:
        ranker.observe("p-1", at=NOW_S)
    with Ranker.open(bundle_dir, path, user=np.int64(700_001)) as ranker:
        assert ranker.stats(NOW_S)["live_events"] == 1
    for user in (700_002, "700001"):
        with pytest.raises(
            BadInput, match=r"c: another user's cache; forget\(\) that one, or give each user their own$"
        ):
            Ranker.open(bundle_dir, path, user=user)
    assert b"700001" not in path.read_bytes()
    with Ranker.open(bundle_dir, path) as ranker:
        ranker.forget()
    with Ranker.open(bundle_dir, path, user="700001") as ranker:
        assert ranker.stats(NOW_S)["live_events"] == 0


@pytest.mark.parametrize(("durable", "wanted"), [("kill", 1), ("power", 2)])
def test_what_an_event_outlives_is_a_setting(bundle_dir: Path, tmp_path: Path, durable: str, wanted: int) -> None:
    with Ranker.open(bundle_dir, tmp_path / "c", durable=durable) as ranker:
        found = ranker._holding.cache._file.do(lambda db: db.execute("PRAGMA synchronous").fetchone()[0])
        assert found == wanted
