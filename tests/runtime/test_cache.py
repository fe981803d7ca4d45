"""The phone's SQLite file: what it keeps, and files that are none."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from pocketrank.cache import Cache, Observed
from pocketrank.errors import BadInput, StoreFailed

EVENTS = [Observed(5, "p-1", "view", 1.0), Observed(3, 7, "buy", 0.25), Observed(5, "é\ud800", "view", 2.0)]


def refusal(path: Path) -> str:
    with pytest.raises((BadInput, StoreFailed)) as caught, closing(Cache(path)) as cache:
        cache.events()
    return str(caught.value)


def test_events_come_back_by_time_then_arrival(tmp_path: Path) -> None:
    with closing(Cache(tmp_path / "c")) as cache:
        for event in EVENTS:
            cache.add(event)
        cache.pack = b"old"
        cache.pack = b"new"
    with closing(Cache(tmp_path / "c")) as cache:
        assert cache.events() == [EVENTS[1], EVENTS[0], EVENTS[2]]
        assert cache.pack == b"new"
        cache.clear()
        assert (cache.events(), cache.pack) == ([], None)


def test_clearing_leaves_a_file_like_a_new_one(tmp_path: Path) -> None:
    for name, events in (("new", 0), ("used", 2000)):
        with closing(Cache(tmp_path / name)) as cache:
            for number in range(events):
                cache.add(Observed(number, f"p-{number}", "view", 1.0))
            cache.clear()
            cache.erase()
        with closing(sqlite3.connect(tmp_path / name)) as db:
            assert db.execute("SELECT * FROM sqlite_sequence").fetchall() == []  # it would tell how many there were
    assert (tmp_path / "used").stat().st_size == (tmp_path / "new").stat().st_size


def test_two_caches_of_one_file_see_each_others_events(tmp_path: Path) -> None:
    with closing(Cache(tmp_path / "c")) as one, closing(Cache(tmp_path / "c")) as two:
        one.add(EVENTS[0])
        two.add(EVENTS[1])
        assert one.events() == two.events() == [EVENTS[1], EVENTS[0]]


def test_what_is_not_sqlite_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(b"dear diary " * 500)
    assert refusal(path) == f"{path}: not a cache (file is not a database); give another path, or remove the file"
    assert path.read_bytes() == b"dear diary " * 500


def test_somebody_elses_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE photos (name TEXT)")
    before = path.read_bytes()
    assert refusal(path) == f"{path}: not a cache (it has a table 'photos'); give another path, or remove the file"
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["photos.db"]


def test_a_cache_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    Cache(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 4")
    before = path.read_bytes()
    assert "not a cache (version 4, this pocketrank reads 3)" in refusal(path)
    assert path.read_bytes() == before


def test_a_folder_in_its_place_is_one_line(tmp_path: Path) -> None:
    wanted = "the cache cannot be used (unable to open database file); check the path, its rights and the disk"
    assert refusal(tmp_path) == f"{tmp_path}: {wanted}"
    assert refusal(tmp_path / "no" / "c") == f"{tmp_path}/no/c: {wanted}"


def test_a_cache_torn_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with closing(Cache(path)) as cache:
        for number in range(300):
            cache.add(Observed(number, f"p-{number}", "view", 1.0))
        cache.pack = b"x" * 9000
    content = path.read_bytes()
    assert len(content) > 4 * 4096
    for place in range(100, len(content), 1500):
        for torn in (content[:place], content[:place] + b"\xa5" * 600 + content[place + 600 :]):
            path.write_bytes(torn)
            try:
                with closing(Cache(path)) as cache:
                    assert len(cache.events()) <= 300
                    assert cache.pack is None or len(cache.pack) <= 9000
            except BadInput as error:
                assert str(error).startswith(f"{path}: ")  # noqa: PT017


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    with closing(Cache(tmp_path / "c")) as cache:
        with pytest.raises(BadInput, match=r"is not Unicode text; give it as UTF-8$"):
            cache.add(Observed(1, "p", "\udcff", 1.0))
        assert cache.events() == []
