"""A cache at rest: nothing of the user can be read without the key, and nothing is left of one who was forgotten."""

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from pocketrank import Ranker
from pocketrank.cache import Cache, Observed
from pocketrank.errors import BadKey, MissingExtra, StoreFailed
from pocketrank.sealing import Altered, Seal, key_from
from pocketrank_cli.cli import main

from .phones import START_S, US, Event, Slow

KEY, OTHER = bytes(range(32)), bytes(32)
NOW_S = START_S + 86_400
SECRETS = ["secret-shoes", "secret-behaviour", "secret-etag", "seven-seven-seven"]


def filled(path: Path, slow: Slow, key: bytes | None) -> bytes:
    """A cache with something secret in every part of it; the pack's content."""
    pack = slow.pack([Event(10 * n, f"p-{n}") for n in range(9)], (START_S + 86_400) * US)
    with closing(Cache(path, key)) as cache:
        for number in range(200):
            cache.add(Observed((START_S + number) * US, f"secret-shoes-{number}", "secret-behaviour", 1.0))
        cache.commit({"pack_etag": "secret-etag", "bundle": "x" * 40}, pack=pack.to_bytes())
        cache.belong_to("seven-seven-seven")
    return pack.to_bytes()


def on_disk(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.iterdir()))


def traces(content: bytes, pack: bytes) -> list[str]:
    """What of the user can be found in some bytes."""
    told = [secret for secret in SECRETS if secret.encode() in content]
    told += ["time"] * (str(START_S)[:7].encode() in content)
    parts = [pack[at : at + 64] for at in range(0, len(pack) - 64, 64)]
    return told + ["pack"] * any(part in content for part in parts if part.strip(b"\0 "))


def test_without_the_key_nothing_can_be_read(tmp_path: Path, slow: Slow) -> None:
    for name, key in (("plain", None), ("sealed", KEY)):
        folder = tmp_path / name
        folder.mkdir()
        pack = filled(folder / "c", slow, key)
        with closing(Cache(folder / "c", key)) as cache:
            cache.add(Observed(START_S * US, "secret-shoes", "view", 1.0))
            assert {path.name for path in folder.iterdir()} == {"c", "c-wal", "c-shm"}
            found = traces(on_disk(folder), pack)
            assert cache.pack == pack
            assert (len(cache.events()), cache.fact("pack_etag")) == (201, "secret-etag")
        assert found == ([] if key else [*SECRETS[:3], "time", "pack"])
        assert traces(on_disk(folder), pack) == found


def test_the_key_is_demanded_and_the_file_left_as_it_is(tmp_path: Path, slow: Slow, bundle_dir: Path) -> None:
    path, plain = tmp_path / "c", tmp_path / "plain"
    filled(path, slow, KEY)
    filled(plain, slow, None)
    before = [one.read_bytes() for one in (path, plain)]
    for where, key, line in (
        (path, None, "the cache is encrypted; open it with its key"),
        (path, OTHER, "the cache is encrypted with another key; give that one"),
        (plain, KEY, "the cache is not encrypted, and a key is given; leave it out, or give another path"),
    ):
        with pytest.raises(BadKey) as caught:
            Ranker.open(bundle_dir, where, key=key)
        assert str(caught.value) == f"{where}: {line}"
    assert [one.read_bytes() for one in (path, plain)] == before
    assert {one.name for one in tmp_path.iterdir()} == {"c", "plain"}


def test_an_encrypted_cache_ranks_as_a_plain_one(tmp_path: Path, bundle_dir: Path, slow: Slow) -> None:
    found = []
    slow.pack([Event(10 * n, f"p-{n}") for n in range(9)], (START_S + 7200) * US).save(tmp_path / "pack")
    for name, key in (("plain", None), ("sealed", KEY)):
        with Ranker.open(bundle_dir, tmp_path / name, pack=tmp_path / "pack", key=key) as ranker:
            for number in range(6):
                ranker.observe(f"p-{number % 3}", at=NOW_S - number)
        with Ranker.open(bundle_dir, tmp_path / name, key=key) as ranker:
            found.append([(hit.item, hit.score) for hit in ranker.rank(now=NOW_S)])
    assert found[0] == found[1]


def test_no_row_can_stand_in_the_place_of_another(tmp_path: Path, slow: Slow) -> None:
    """Nor in another table or another file, nor be altered."""
    filled(tmp_path / "other", slow, KEY)
    with closing(sqlite3.connect(tmp_path / "other")) as db:
        foreign = db.execute("SELECT content FROM events WHERE arrival = 2").fetchone()[0]
    changes = {
        "swapped": "UPDATE events SET content = (SELECT content FROM events WHERE arrival = 3) WHERE arrival = 2",
        "from another table": "UPDATE kept SET content = (SELECT content FROM events LIMIT 1) WHERE name = 'pack'",
        "from another file": f"UPDATE events SET content = x'{foreign.hex()}' WHERE arrival = 2",
        "cut": "UPDATE kept SET content = x'00' WHERE name = 'facts'",
    }
    for name, change in changes.items():
        path = tmp_path / name
        filled(path, slow, KEY)
        with closing(sqlite3.connect(path)) as db:
            db.execute(change)
            db.commit()
        with closing(Cache(path, KEY)) as cache:
            assert (cache.events() and cache.pack and cache.fact("device")) is None or cache.events() == []
            assert "was not sealed for it); moved to" in (cache.set_aside or ""), name


def test_a_nonce_is_never_used_twice_and_equal_events_do_not_look_alike(tmp_path: Path) -> None:
    with closing(Cache(tmp_path / "c", KEY)) as cache:
        for _ in range(500):
            cache.add(Observed(1, "p", "view", 1.0))
    with closing(sqlite3.connect(tmp_path / "c")) as db:
        rows = [row for (row,) in db.execute("SELECT content FROM events")]
    assert len({row[:12] for row in rows}) == len({row[12:] for row in rows}) == 500


def test_lengths_tell_little_of_an_item(tmp_path: Path) -> None:
    with closing(Cache(tmp_path / "c", KEY)) as cache:
        for item in ("p", "p-1234", "p-12345678"):
            cache.add(Observed(START_S * US, item, "view", 1.0))
    with closing(sqlite3.connect(tmp_path / "c")) as db:
        assert len({len(row) for (row,) in db.execute("SELECT content FROM events")}) == 1


@pytest.mark.parametrize("key", [None, KEY], ids=["plain", "sealed"])
def test_who_was_forgotten_has_left_no_trace_in_any_file(
    tmp_path: Path, bundle_dir: Path, slow: Slow, key: bytes | None
) -> None:
    """Of a sealed cache not even what was sealed."""
    folder = tmp_path / "phone"
    folder.mkdir()
    pack = filled(folder / "c", slow, key)
    with closing(sqlite3.connect(folder / "c")) as db:
        rows = [bytes(row) for (row,) in db.execute("SELECT content FROM events UNION SELECT content FROM kept")]
    (folder / "c.corrupt").write_bytes(b"secret-shoes")
    with (
        Ranker.open(bundle_dir, folder / "c", key=key) as ranker,
        Ranker.open(bundle_dir, folder / "c", key=key) as other,
    ):
        assert other.stats(NOW_S)["segments"]
        ranker.observe("secret-shoes", "secret-behaviour", at=NOW_S)
        ranker.forget()
        content = on_disk(folder)
        assert traces(content, pack) == []
        kept = [row for row in rows if row in content]
        assert len(kept) == (0 if key is None else 1)  # what the key is known by
        assert other.stats(NOW_S)["segments"] == 0
        assert other.stats(NOW_S)["pack_version"] is None
    assert [one.name for one in folder.iterdir()] == ["c"]


def test_what_a_sync_says_is_gone_leaves_no_trace_either(tmp_path: Path, slow: Slow) -> None:
    pack = filled(tmp_path / "c", slow, None)
    with closing(Cache(tmp_path / "c")) as cache:
        cache.commit({"pack_etag": None, "user": None}, gone_until_us=(START_S + 500) * US)
        cache.erase()
        assert traces(on_disk(tmp_path), pack) == []


def test_a_reader_in_the_way_of_forgetting_is_said(tmp_path: Path, slow: Slow, bundle_dir: Path) -> None:
    """And nobody is ranked for who was forgotten."""
    filled(tmp_path / "c", slow, None)
    with Ranker.open(bundle_dir, tmp_path / "c") as ranker, closing(sqlite3.connect(tmp_path / "c")) as reader:
        cache = ranker._holding.cache
        ranker.observe("p-1", at=NOW_S)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM events").fetchone()
        cache._file.do(lambda db: db.execute("PRAGMA busy_timeout = 10"))
        with pytest.raises(StoreFailed, match="forgotten, but another process reads what was there; forget once more"):
            ranker.forget()
        assert ranker.rank(now=NOW_S).basis == ("popularity",)
        reader.execute("ROLLBACK")
        ranker.forget()


# Keys


def test_a_key_may_be_bytes_or_a_file_of_them(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(KEY)
    (tmp_path / "hex").write_text(KEY.hex() + "\n")
    (tmp_path / "short").write_bytes(b"hello\n")
    (tmp_path / "long").write_bytes(KEY * 2)
    for given in (KEY, tmp_path / "raw", str(tmp_path / "hex")):
        assert key_from(given, "c") == KEY
    wanted = "wanted 32 such as of os.urandom(32), or their 64 hexadecimal digits"
    for given, line in (
        (b"hello", f"the cache's key: 5 bytes, {wanted}"),
        (tmp_path / "short", f"{tmp_path}/short: 5 bytes, {wanted}"),
        (tmp_path / "long", f"{tmp_path}/long: 64 bytes, {wanted}"),
        (
            tmp_path / "no",
            f"{tmp_path}/no: cannot be read (No such file or directory); name a file with 32 bytes in it",
        ),
    ):
        with pytest.raises(BadKey) as caught:
            key_from(given, "c")
        assert str(caught.value) == line


def test_a_key_from_the_os_keyring_is_made_once_and_is_of_one_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import keyring
    from keyring.backend import KeyringBackend
    from keyring.errors import KeyringLocked

    class InMemory(KeyringBackend):
        priority = 1.0
        kept: dict[tuple[str, str], str] = {}  # noqa: RUF012

        def get_password(self, service: str, username: str) -> str | None:
            return self.kept.get((service, username))

        def set_password(self, service: str, username: str, password: str) -> None:
            self.kept[service, username] = password

    class Locked(InMemory):
        def get_password(self, service: str, username: str) -> str | None:
            raise KeyringLocked("it is locked")

    before = keyring.get_keyring()
    keyring.set_keyring(InMemory())
    try:
        for name in ("a", "b"):
            with closing(Cache(tmp_path / name, "keyring")) as cache:
                cache.add(Observed(1, "secret-shoes", "view", 1.0))
            with closing(Cache(tmp_path / name, "keyring")) as cache:
                assert [event.item for event in cache.events()] == ["secret-shoes"]
        assert len(set(InMemory.kept.values())) == 2
        assert b"secret-shoes" not in on_disk(tmp_path)
        keyring.set_keyring(Locked())
        with pytest.raises(BadKey, match=r"the OS keyring gives no key for .*/a \(it is locked\); give one$"):
            Cache(tmp_path / "a", "keyring")
    finally:
        keyring.set_keyring(before)


@pytest.mark.parametrize(("package", "key"), [("cryptography", KEY), ("keyring", "keyring")])
def test_a_missing_package_is_named_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, key: Any
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=f"needs {package}; install it with: pip install"):
        Cache(tmp_path / "c", key)
    assert list(tmp_path.iterdir()) == []


def test_a_seal_opens_what_it_sealed_and_nothing_else() -> None:
    seal = Seal(KEY, b"salt")
    sealed = seal.seal("events/1", b"shoes")
    assert seal.open("events/1", sealed) == b"shoes"
    flipped = [bytes([*sealed[:n], sealed[n] ^ 1, *sealed[n + 1 :]]) for n in range(len(sealed))]
    others = [Seal(KEY, b"other").seal("events/1", b"shoes"), Seal(OTHER, b"salt").seal("events/1", b"shoes")]
    for wrong in (*flipped, *others, b"", sealed[:20], seal.seal("events/11", b"shoes")):
        with pytest.raises(Altered):
            seal.open("events/1", wrong)


# The commands


def test_commands_take_the_key_of_a_cache(
    tmp_path: Path, bundle_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("key").write_bytes(KEY)
    device = ["--bundle", str(bundle_dir), "--cache", "c.db"]
    assert main(["observe", *device, "--cache-key", "key", "p-1"]) == 0
    assert main(["rank", *device, "--cache-key", "key", "-k", "1"]) == 0
    assert main(["inspect", "c.db", "--cache-key", "key"]) == 0
    assert "live events  1" in capsys.readouterr().out
    for words in (["rank", *device], ["inspect", "c.db"]):
        assert main(words) == 1
        assert capsys.readouterr().err == "pocketrank: BadKey: c.db: the cache is encrypted; open it with its key\n"
