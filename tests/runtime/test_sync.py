"""The phone's side of sync against a server that does what a test tells it to: what goes wrong changes nothing."""

import base64
import gzip
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pocketrank import Ranker, holding, transport
from pocketrank.bundle import Bundle
from pocketrank.cache import Cache
from pocketrank.errors import BadBundle, BadPack, UsageError
from pocketrank.release import Release, gone
from pocketrank.signing import new_keys, signer
from pocketrank.sync import Synced
from pocketrank_cli.cli import main

from ..bundles import edit_manifest
from .phones import START_S, US, Event, Slow

NOW_S = START_S + 10 * 86400
LOG = [Event(86400 * day + 10 * n, f"p-{(day + n) % 12}") for day in range(6) for n in range(3)]
TOKEN = ".".join(["e30", base64.urlsafe_b64encode(b'{"sub": "7"}').rstrip(b"=").decode(), "sig"])
Answer = tuple[int, dict[str, str], bytes]
Fault = Callable[["Handler"], bool]


class Handler(BaseHTTPRequestHandler):
    """Answers from its server's tables; a fault may answer instead."""

    protocol_version = "HTTP/1.1"
    server: "Fake"

    def do_GET(self) -> None:
        fake = self.server
        fake.asked.append((self.path, dict(self.headers)))
        if fake.faults and fake.faults.pop(0)(self):
            return
        status, headers, body = fake.answer(self.path)
        if status == 200 and headers.get("ETag") and self.headers.get("If-None-Match") == headers["ETag"]:
            status, body = 304, b""
        if status == 200 and (wanted := self.headers.get("Range")):
            begin = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers = {**headers, "Content-Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"}
            status, body = 206, body[begin:]
        self.reply(status, headers, body)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers)))
        if self.server.faults and self.server.faults.pop(0)(self):
            return
        events = json.loads(content)["events"]
        self.server.events += events
        self.reply(200, {}, json.dumps({"acknowledged": len(events), "refused": []}).encode())

    def reply(self, status: int, headers: dict[str, str], body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Fake(ThreadingHTTPServer):
    """A server of one user, 7, and one bundle."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.packs: dict[str, bytes] = {}
        self.status: dict[str, int] = {}
        self.release, self.files, self.issued_s = b"", dict[str, bytes](), 1000
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.faults: list[Fault] = []
        self.events: list[dict[str, Any]] = []

    def offer(self, folder: Path, **limits: Any) -> None:
        self.issued_s += 1
        release = Release.of(Bundle.open(folder), self.issued_s)
        self.release = Release(**{**vars(release), **limits}).to_bytes()
        self.files = {hashlib.sha256(path.read_bytes()).hexdigest(): path.read_bytes() for path in folder.iterdir()}

    def answer(self, path: str) -> Answer:
        if path == "/v1/bundle/manifest" and self.release:
            return 200, {"ETag": f'"{hashlib.sha256(self.release).hexdigest()[:8]}"'}, self.release
        if (content := self.files.get(path.rpartition("/")[2])) is not None:
            return 200, {}, content
        encoder = path.rpartition("=")[2]
        if path.startswith("/v1/pack?") and encoder in self.packs:
            body = self.packs[encoder]
            return self.status.get(encoder, 200), {"ETag": f'"{hashlib.sha256(body).hexdigest()[:8]}"'}, body
        return 404, {}, b"{}"

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@pytest.fixture
def fake() -> Iterator[Fake]:
    with Fake() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses between attempts, which nobody waits for here."""
    found: list[float] = []
    monkeypatch.setattr(transport, "pause", found.append)
    return found


@pytest.fixture
def phone(bundle_dir: Path, tmp_path: Path) -> Iterator[Ranker]:
    with Ranker.open(bundle_dir, cache=tmp_path / "phone.db") as ranker:
        yield ranker


def until(days: int) -> int:
    return (START_S + days * 86400) * US


def scores(ranker: Ranker) -> list[tuple[Any, float]]:
    return [(hit.item, hit.score) for hit in ranker.rank(k=12, now=NOW_S)]


def synced(ranker: Ranker, fake: Fake, **options: Any) -> Synced:
    return ranker.sync(fake.url, TOKEN, now=True, **options)


def newer(bundle_dir: Path, folder: Path, model_id: str = "m2", encoder_id: str = "e1") -> Path:
    """A bundle like the app's own but for its ids."""
    shutil.copytree(bundle_dir, folder)
    edit_manifest(folder, model_id=model_id, encoder_id=encoder_id)
    return folder


def test_a_pack_is_taken_once_and_asked_for_by_its_etag_after_that(phone: Ranker, fake: Fake, slow: Slow) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    assert synced(phone, fake).pack == "new"
    assert phone.stats(NOW_S)["segments"] == 3
    again = synced(phone, fake)
    assert (again.pack, again.bundle, again.ok, again.offline) == ("same", "none", True, False)
    assert fake.asked[-1][1]["If-None-Match"]
    assert fake.asked[-1][1]["Authorization"] == f"Bearer {TOKEN}"
    fake.packs["e1"] = slow.pack(LOG, until(5)).to_bytes()
    assert synced(phone, fake).pack == "new"
    assert phone.stats(NOW_S)["segments"] == 4


def test_a_sync_with_nothing_new_costs_little(phone: Ranker, fake: Fake, slow: Slow, bundle_dir: Path) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    fake.offer(bundle_dir)
    synced(phone, fake)
    again = synced(phone, fake)
    assert (again.pack, again.bundle) == ("same", "same")
    assert 0 < again.received < 500


def test_the_synced_pack_outlives_the_process(bundle_dir: Path, tmp_path: Path, fake: Fake, slow: Slow) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    with Ranker.open(bundle_dir, cache=tmp_path / "c") as ranker:
        synced(ranker, fake)
        before = scores(ranker)
    with Ranker.open(bundle_dir, cache=tmp_path / "c") as ranker:
        assert scores(ranker) == before
        assert synced(ranker, fake).pack == "same"


def close(handler: Handler) -> bool:
    handler.close_connection = True
    handler.connection.close()
    return True


def says(status: int, body: bytes = b"{}", **headers: str) -> Fault:
    def fault(handler: Handler) -> bool:
        handler.reply(status, {name.replace("_", "-"): value for name, value in headers.items()}, body)
        return True

    return fault


def truncated(handler: Handler) -> bool:
    _, _, body = handler.server.answer(handler.path)
    handler.reply(200, {}, body[: len(body) // 2], len(body))
    handler.close_connection = True
    return True


def flipped(handler: Handler) -> bool:
    status, headers, body = handler.server.answer(handler.path)
    handler.reply(status, headers, body[:-9] + b"\xff" * 9)
    return True


AWAY = [close, says(500), says(503, Retry_After="1"), says(429), truncated, says(200, b"x", Content_Encoding="gzip")]


@pytest.mark.parametrize("fault", AWAY[:5])
def test_who_does_not_answer_is_asked_again_after_a_pause(
    fault: Fault, phone: Ranker, fake: Fake, slow: Slow, pauses: list[float]
) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    fake.faults = [lambda _: False, fault, fault]  # the release is answered, the pack at the third attempt
    assert synced(phone, fake).pack == "new"
    assert len(pauses) == 2


@pytest.mark.parametrize("fault", AWAY[:5])
def test_offline_is_no_error_and_the_old_pack_serves(fault: Fault, phone: Ranker, fake: Fake, slow: Slow) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    synced(phone, fake)
    before = scores(phone)
    fake.packs["e1"] = slow.pack(LOG, until(5)).to_bytes()
    fake.faults = [fault] * 9
    if fault is truncated:
        fake.faults = [lambda _: False, *fake.faults]
    found = synced(phone, fake)
    assert (found.offline, found.ok, found.pack) == (True, True, "kept")
    assert scores(phone) == before


def test_no_server_at_all_is_offline_and_each_time_longer(phone: Ranker, fake: Fake) -> None:
    fake.server_close()
    waits = [synced(phone, fake).again_s for _ in range(9)]
    assert 15 <= waits[0] <= 30
    assert max(waits) <= 3600
    assert waits[8] > 1000
    asked = len(fake.asked)
    put_off = phone.sync(fake.url, TOKEN)
    assert put_off.offline
    assert put_off.again_s > 0
    assert len(fake.asked) == asked


def test_a_success_ends_the_waiting(phone: Ranker, fake: Fake, slow: Slow) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    fake.faults = [says(500)] * 3
    assert synced(phone, fake).again_s > 0
    assert synced(phone, fake).again_s == 0
    assert phone.sync(fake.url, TOKEN).pack == "same"


BAD: dict[str, tuple[Fault, str]] = {
    "flipped bytes": (flipped, "pack: http.*/v1/pack: "),
    "not gzip": (says(200, b"x", Content_Encoding="gzip"), "/v1/pack: "),
    "a page": (says(200, b"<html>" * 9), "/v1/pack: "),
    "too long": (says(200, b"x" * (1 << 21)), "more than 1,048,576 bytes"),
    "a bomb": (says(200, gzip.compress(b"x" * (1 << 26)), Content_Encoding="gzip"), "more than 1,048,576 bytes"),
    "no token wanted": (says(401), r"does not take the token \(401\); get a new one"),
    "forbidden": (says(403), r"does not take the token \(403\)"),
    "redirect": (
        says(302, Location="http://evil.example.org/x"),
        "redirects to evil.example.org, which is not followed",
    ),
    "gone, and no more": (says(410, b"<html>"), "answered 410, wanted a pack"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_not_a_pack_is_refused_and_the_old_one_serves(kind: str, phone: Ranker, fake: Fake, slow: Slow) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    synced(phone, fake)
    before = scores(phone)
    fake.packs["e1"] = slow.pack(LOG, until(5)).to_bytes()
    fault, said = BAD[kind]
    fake.faults = [lambda _: False, fault]
    found = synced(phone, fake)
    assert (found.pack, found.ok, found.offline) == ("kept", False, False)
    assert len(found.problems) == 1
    assert re.search(said, found.problems[0]), found.problems
    assert scores(phone) == before
    assert synced(phone, fake).pack == "new"


def test_a_token_is_not_sent_on_to_where_a_server_redirects(phone: Ranker, fake: Fake) -> None:
    with Fake() as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        fake.faults = [says(307, Location=other.url + "/v1/bundle/manifest"), says(307, Location=other.url + "/x")]
        found = synced(phone, fake)
        other.shutdown()
        thread.join()
    assert len(found.problems) == 2
    assert other.asked == []


def test_an_older_pack_is_refused(phone: Ranker, fake: Fake, slow: Slow) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(5)).to_bytes()
    synced(phone, fake)
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    found = synced(phone, fake)
    assert "is older than" in found.problems[0]
    assert phone.stats(NOW_S)["segments"] == 4


def test_a_pack_of_another_encoder_is_refused_by_name(phone: Ranker, fake: Fake, slow: Slow) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(5)).to_bytes().replace(b'"encoder_id":"e1"', b'"encoder_id":"e9"')
    found = synced(phone, fake)
    assert "encoded by e9, asked for e1; not taken" in found.problems[0]
    assert phone.stats(NOW_S)["segments"] == 0


def test_a_forgotten_user_is_forgotten_here_too_and_nothing_old_comes_back(
    phone: Ranker, fake: Fake, slow: Slow, tmp_path: Path
) -> None:
    old = fake.packs["e1"] = slow.pack(LOG, until(5)).to_bytes()
    for event in LOG:
        phone.observe(event.item, at=event.time_us / US)
    phone.observe("p-3", at=NOW_S)
    synced(phone, fake)
    fake.packs["e1"], fake.status["e1"] = gone(until(9)), 410
    assert synced(phone, fake).pack == "gone"
    stats = phone.stats(NOW_S)
    assert (stats["segments"], stats["pack_version"], stats["live_events"]) == (0, None, 1)
    assert old not in (tmp_path / "phone.db").read_bytes() + (tmp_path / "phone.db-wal").read_bytes()
    assert synced(phone, fake).pack == "gone"
    fake.packs["e1"], fake.status["e1"] = old, 200  # somebody between kept it
    found = synced(phone, fake)
    assert "a pack of before the user was forgotten" in found.problems[0]
    assert phone.stats(NOW_S)["pack_version"] is None
    later = [Event(9.5 * 86400 + n, "p-1") for n in range(3)]
    fake.packs["e1"] = slow.pack(later, until(10)).to_bytes()
    assert synced(phone, fake).pack == "new"


# The bundle


def test_a_new_bundle_is_fetched_but_for_what_is_there_and_counts_at_once_and_later(
    phone: Ranker, fake: Fake, slow: Slow, bundle_dir: Path, tmp_path: Path
) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    fake.offer(newer(bundle_dir, tmp_path / "m2"))
    before = phone.rank(k=3, now=NOW_S)
    found = synced(phone, fake)
    assert (found.bundle, found.pack, found.ok) == ("new", "new", True)
    assert [path for path in fake.paths() if "files" in path] == [
        f"/v1/bundle/files/{hashlib.sha256((tmp_path / 'm2' / 'manifest.json').read_bytes()).hexdigest()}"
    ]
    assert phone.stats(NOW_S)["model_id"] == "m2"
    assert before[0].reasons  # of a ranking by the bundle that was left
    after = scores(phone)
    with Ranker.open(bundle_dir, cache=tmp_path / "phone.db") as again:
        assert (again.stats(NOW_S)["model_id"], scores(again)) == ("m2", after)
    assert synced(phone, fake).bundle == "same"


def test_where_a_key_is_demanded_a_synced_bundle_must_be_signed_with_it_then_and_later(
    own_bundle: Path, tmp_path: Path, fake: Fake
) -> None:
    def signed(folder: Path, key: str = "ours") -> Path:
        manifest = (folder / "manifest.json").read_bytes()
        (folder / "manifest.sig").write_bytes(signer(tmp_path / f"{key}.pem")(manifest))
        return folder

    for name in ("ours", "theirs"):
        new_keys(tmp_path / f"{name}.pem")
    key, cache = tmp_path / "ours.pub.pem", tmp_path / "phone.db"
    with Ranker.open(signed(own_bundle), cache, verify_key=key) as phone:
        for name in ("unsigned", "theirs"):
            bundle = newer(own_bundle, tmp_path / name, name)
            (bundle / "manifest.sig").unlink()
            fake.offer(bundle if name == "unsigned" else signed(bundle, name))
            found = synced(phone, fake)
            assert (found.bundle, phone.stats(NOW_S)["model_id"]) == ("kept", "m1")
            assert re.search("not signed, and a key|the signature does not fit", found.problems[0])
        fake.offer(signed(newer(own_bundle, tmp_path / "signed", "m4")))
        assert synced(phone, fake).bundle == "new"
    with Ranker.open(own_bundle, cache, verify_key=key) as phone:
        assert phone.stats(NOW_S)["model_id"] == "m4"
    next(tmp_path.glob("phone.db.bundles/*/manifest.sig")).unlink()
    with Ranker.open(own_bundle, cache, verify_key=key) as phone:
        assert phone.stats(NOW_S)["model_id"] == "m1"
        assert "not signed" in phone.stats(NOW_S)["bundle_refused"]


def test_a_new_encoder_comes_with_its_pack_or_not_at_all(
    phone: Ranker, fake: Fake, slow: Slow, bundle_dir: Path, tmp_path: Path
) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    synced(phone, fake)
    before = scores(phone)
    fake.offer(newer(bundle_dir, tmp_path / "m2", encoder_id="e2"))
    waiting = synced(phone, fake)
    assert (waiting.bundle, waiting.pack, phone.stats(NOW_S)["model_id"]) == ("held back", "same", "m1")
    assert scores(phone) == before
    fake.packs["e2"] = fake.packs["e1"].replace(b'"encoder_id":"e1"', b'"encoder_id":"e2"')
    found = synced(phone, fake)
    assert (found.bundle, found.pack) == ("new", "new")
    stats = phone.stats(NOW_S)
    assert (stats["encoder_id"], stats["segments"], stats["pack_refused"]) == ("e2", 3, None)


def cut_at(length: int) -> Fault:
    """Sends so many bytes of a file, and then nothing."""

    def fault(handler: Handler) -> bool:
        _, _, body = handler.server.answer(handler.path)
        begin = int(handler.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        headers = {"Content-Range": f"bytes {begin}-{len(body) - 1}/{len(body)}"} if begin else {}
        handler.reply(206 if begin else 200, headers, body[begin : begin + length], len(body) - begin)
        handler.close_connection = True
        return True

    return fault


def altered(bundle_dir: Path, folder: Path) -> Path:
    """A bundle whose golden cases differ, which is a large file."""
    newer(bundle_dir, folder)
    path = folder / "golden.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\x80?")
    edit_manifest(folder, model_id="m2")
    return folder


def test_a_download_that_is_cut_off_goes_on_where_it_was(
    phone: Ranker, fake: Fake, bundle_dir: Path, tmp_path: Path
) -> None:
    fake.offer(altered(bundle_dir, tmp_path / "m2"))
    fake.faults = [lambda _: False, cut_at(1000), cut_at(500), close]
    first = synced(phone, fake)
    assert (first.offline, first.bundle, phone.stats(NOW_S)["model_id"]) == (True, "kept", "m1")
    fake.asked.clear()
    assert synced(phone, fake).bundle == "new"
    ranges = [headers.get("Range") for path, headers in fake.asked if "files" in path]
    assert ranges[0] == "bytes=1500-"
    assert phone.stats(NOW_S)["model_id"] == "m2"


@pytest.mark.parametrize("fault", [flipped, says(200, b"x"), says(404), truncated])
def test_a_file_that_is_not_right_is_not_kept_and_the_old_bundle_serves(
    fault: Fault, phone: Ranker, fake: Fake, bundle_dir: Path, tmp_path: Path
) -> None:
    fake.offer(altered(bundle_dir, tmp_path / "m2"))
    fake.faults = [lambda _: False, *[fault] * 3]
    found = synced(phone, fake)
    assert (found.bundle, phone.stats(NOW_S)["model_id"]) == ("kept", "m1")
    assert found.offline or found.problems
    fake.faults = []
    with Ranker.open(bundle_dir, cache=tmp_path / "phone.db") as again:
        assert again.stats(NOW_S)["model_id"] == "m1"
    assert synced(phone, fake).bundle == "new"


def test_a_bundle_that_is_none_is_refused_whatever_its_hashes(
    phone: Ranker, fake: Fake, bundle_dir: Path, tmp_path: Path
) -> None:
    folder = newer(bundle_dir, tmp_path / "m2")
    (folder / "state.onnx").write_bytes(b"no graph")
    edit_manifest(folder, model_id="m2")
    fake.offer(folder)
    before = scores(phone)
    found = synced(phone, fake)
    assert found.bundle == "kept"
    assert found.problems
    assert scores(phone) == before
    other = newer(bundle_dir, tmp_path / "m3", model_id="m3")
    fake.offer(other)
    fake.release = fake.release.replace(b'"model_id":"m3"', b'"model_id":"m4"')
    assert "the release says m4" in synced(phone, fake).problems[0]
    assert phone.stats(NOW_S)["model_id"] == "m1"


def test_an_older_release_is_refused(phone: Ranker, fake: Fake, bundle_dir: Path, tmp_path: Path) -> None:
    fake.offer(newer(bundle_dir, tmp_path / "m2"))
    stale = fake.release
    fake.offer(newer(bundle_dir, tmp_path / "m3", model_id="m3"))
    assert synced(phone, fake).bundle == "new"
    fake.release = stale
    found = synced(phone, fake)
    assert "an older release than was seen before" in found.problems[0]
    assert phone.stats(NOW_S)["model_id"] == "m3"


def test_servers_to_which_the_same_release_was_copied_one_after_the_other_offer_the_same(
    phone: Ranker, fake: Fake, bundle_dir: Path, tmp_path: Path
) -> None:
    folder = newer(bundle_dir, tmp_path / "m2")
    fake.offer(folder)
    early = fake.release
    fake.offer(folder)
    late = fake.release
    assert synced(phone, fake).bundle == "new"
    for release in (early, late, early):
        fake.release = release
        found = synced(phone, fake)
        assert (found.bundle, found.problems) == ("same", ())
    fake.offer(folder, paused=True)
    other = fake.release
    for issued_s, is_taken in ((fake.issued_s - 2, False), (fake.issued_s - 1, True)):  # as the early one, and the late
        fake.release = other.replace(str(fake.issued_s).encode(), str(issued_s).encode())
        assert synced(phone, fake).ok == is_taken
    fake.release = early
    assert "an older release than was seen before" in synced(phone, fake).problems[0]


def test_a_withdrawn_bundle_is_left_for_the_one_before_and_not_taken_again(
    phone: Ranker, fake: Fake, bundle_dir: Path, tmp_path: Path
) -> None:
    m2, m3 = newer(bundle_dir, tmp_path / "m2"), newer(bundle_dir, tmp_path / "m3", model_id="m3")
    fake.offer(m2)
    synced(phone, fake)
    fake.offer(m3)
    synced(phone, fake)
    fake.offer(m3, withdrawn=["m3"])
    assert (synced(phone, fake).bundle, phone.stats(NOW_S)["model_id"]) == ("went back", "m2")
    assert (synced(phone, fake).bundle, phone.stats(NOW_S)["model_id"]) == ("none", "m2")
    fake.offer(m3, withdrawn=["m3", "m2"])
    assert (synced(phone, fake).bundle, phone.stats(NOW_S)["model_id"]) == ("went back", "m1")
    fake.offer(m3, withdrawn=["m3", "m2", "m1"])
    assert "m1 was withdrawn, and so was every other that is here" in synced(phone, fake).problems[0]
    with Ranker.open(bundle_dir, cache=tmp_path / "phone.db") as again:
        assert again.stats(NOW_S)["model_id"] == "m1"


def test_a_withdrawn_encoder_is_left_although_nobody_gives_the_pack_of_the_one_before(
    phone: Ranker, fake: Fake, slow: Slow, bundle_dir: Path, tmp_path: Path
) -> None:
    old = slow.pack(LOG, until(3)).to_bytes()
    fake.packs["e2"] = old.replace(b'"encoder_id":"e1"', b'"encoder_id":"e2"')
    m2 = newer(bundle_dir, tmp_path / "m2", encoder_id="e2")
    fake.offer(m2)
    assert synced(phone, fake).bundle == "new"
    fake.offer(m2, withdrawn=["m2"])
    fake.faults = [lambda _: False, *[close] * 3]
    found = synced(phone, fake)
    assert (found.bundle, found.pack, found.offline) == ("went back", "kept", True)
    stats = phone.stats(NOW_S)
    assert (stats["model_id"], stats["segments"]) == ("m1", 0)
    assert "encoded by e2, this bundle's encoder is e1" in stats["pack_refused"]
    fake.packs["e1"] = old
    assert synced(phone, fake).pack == "new"


def test_a_roll_out_reaches_the_same_share_of_users_every_time() -> None:
    half = Release("x", 0, "m2", "e1", {}, rollout_percent=50)
    reached = {str(user) for user in range(4000) if half.reaches(str(user))}
    assert 1850 < len(reached) < 2150
    more = Release("x", 0, "m2", "e1", {}, rollout_percent=60)
    assert all(more.reaches(user) for user in reached)
    other = Release("x", 0, "m3", "e1", {}, rollout_percent=50)
    assert len({user for user in reached if other.reaches(user)}) < 1200
    none, everybody = (Release("x", 0, "m2", "e1", {}, rollout_percent=share) for share in (0, 100))
    assert not any(none.reaches(str(user)) for user in range(999))
    assert all(everybody.reaches(str(user)) for user in range(999))


@pytest.mark.parametrize("limits", [{"rollout_percent": 0.0}, {"paused": True}])
def test_who_is_not_reached_keeps_the_bundle(
    limits: dict[str, Any], phone: Ranker, fake: Fake, bundle_dir: Path, tmp_path: Path
) -> None:
    m2 = newer(bundle_dir, tmp_path / "m2")
    fake.offer(m2, **limits)
    assert synced(phone, fake).bundle == "held back"
    assert not [path for path in fake.paths() if "files" in path]
    fake.offer(m2)
    assert synced(phone, fake).bundle == "new"
    fake.offer(m2, **limits)
    assert synced(phone, fake).bundle == "same"


def test_a_damaged_synced_bundle_gives_way_to_the_apps_own_which_says_so(
    phone: Ranker, fake: Fake, bundle_dir: Path, tmp_path: Path
) -> None:
    fake.offer(newer(bundle_dir, tmp_path / "m2"))
    synced(phone, fake)
    phone.close()
    (folder,) = (path for path in (tmp_path / "phone.db.bundles").iterdir() if path.is_dir())
    (folder / "score.onnx").write_bytes(b"rust")
    with Ranker.open(bundle_dir, cache=tmp_path / "phone.db") as again:
        stats = again.stats(NOW_S)
        assert stats["model_id"] == "m1"
        assert "score.onnx: altered" in stats["bundle_refused"]
        assert synced(again, fake).bundle == "new"
        assert (again.stats(NOW_S)["model_id"], again.stats(NOW_S)["bundle_refused"]) == ("m2", None)


def test_an_update_of_the_app_takes_the_place_of_what_was_synced(
    phone: Ranker, fake: Fake, bundle_dir: Path, tmp_path: Path
) -> None:
    fake.offer(newer(bundle_dir, tmp_path / "m2"))
    synced(phone, fake)
    phone.close()
    with Ranker.open(newer(bundle_dir, tmp_path / "m5", "m5"), cache=tmp_path / "phone.db") as again:
        assert again.stats(NOW_S)["model_id"] == "m5"


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../evil": {"sha256": "0" * 64, "size": 1}}},
        {"files": {"manifest.json": {"sha256": "../../x", "size": 1}}},
        {"files": {"manifest.json": {"sha256": "0" * 64, "size": -1}}},
        {"files": {"manifest.json": {"sha256": "0" * 64, "size": 1 << 40}}},
        {"files": {f"f{n}": {"sha256": "0" * 64, "size": 1} for n in range(99)}},
        {"model_id": "../m"},
        {"rollout_percent": 101.0},
        {"withdrawn": "m1"},
        {"issued_s": "now"},
        {"format": "pocketrank.release/9"},
        {"surprise": 1},
    ],
)
def test_a_release_that_cannot_be_is_refused(
    change: dict[str, Any], phone: Ranker, fake: Fake, bundle_dir: Path, tmp_path: Path
) -> None:
    fake.offer(newer(bundle_dir, tmp_path / "m2"))
    fake.release = json.dumps({**json.loads(fake.release), **change}).encode()
    found = synced(phone, fake)
    assert found.bundle == "kept"
    assert found.problems[0].startswith("bundle: ")
    assert not (tmp_path / "phone.db.bundles").exists()
    assert not (tmp_path / "evil").exists()


# Events


def test_events_are_sent_once_acknowledged_and_dropped_when_the_pack_covers_them(
    phone: Ranker, fake: Fake, slow: Slow
) -> None:
    for event in LOG:
        phone.observe(event.item, at=event.time_us / US)
    before = scores(phone)
    fake.faults = [close, says(500), close]
    assert synced(phone, fake, upload=True).uploaded == 0
    assert len(phone._holding.cache.events()) == len(LOG)
    assert synced(phone, fake, upload=True).uploaded == len(LOG)
    assert [event["item"] for event in fake.events] == [event.item for event in LOG]
    assert len({event["id"] for event in fake.events}) == len(LOG)
    assert synced(phone, fake, upload=True).uploaded == 0
    assert len(phone._holding.cache.events()) == len(LOG)
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    found = synced(phone, fake, upload=True)
    assert found.dropped == 8  # the last one that the pack covers is at its very end: not passed yet
    assert len(phone._holding.cache.events()) == len(LOG) - 8
    after = scores(phone)
    assert [item for item, _ in after] == [item for item, _ in before]
    assert [score for _, score in after] == pytest.approx([score for _, score in before], abs=1e-4)


def test_what_was_not_acknowledged_or_is_late_stays(own_bundle: Path, tmp_path: Path, fake: Fake, slow: Slow) -> None:
    edit_manifest(own_bundle, lateness_s=86400)
    with Ranker.open(own_bundle, cache=tmp_path / "c") as phone:
        for event in LOG:
            phone.observe(event.item, at=event.time_us / US)
        fake.packs["e1"] = slow.pack(LOG, until(4)).to_bytes()
        assert synced(phone, fake).dropped == 0
        assert synced(phone, fake, server_sees_all=True).dropped == 8  # three days closed, the last of them too young
        assert len(phone._holding.cache.events()) == len(LOG) - 8
    with Ranker.open(own_bundle, cache=tmp_path / "d") as phone:
        for event in LOG:
            phone.observe(event.item, at=event.time_us / US)
        fake.faults = [says(200, b'{"acknowledged": 3, "refused": []}')]
        found = synced(phone, fake, upload=True)
        assert "did not acknowledge the events; they stay here" in found.problems[0]
        assert (found.dropped, len(phone._holding.cache.events())) == (0, len(LOG))


def test_an_event_that_comes_while_a_sync_is_under_way_is_kept(phone: Ranker, fake: Fake, slow: Slow) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()

    def observing(_: Handler) -> bool:
        phone.observe("p-5", at=NOW_S)
        return False

    fake.faults = [observing, observing]
    assert synced(phone, fake).pack == "new"
    assert len(phone._holding.cache.events()) == 2


def test_what_another_process_synced_is_ranked_by_at_the_next_request(
    phone: Ranker, fake: Fake, slow: Slow, bundle_dir: Path, tmp_path: Path
) -> None:
    """Its pack and its bundle; where that bundle cannot be opened the old one serves."""
    fake.packs = {"e1": slow.pack(LOG, until(3)).to_bytes()}
    fake.offer(newer(bundle_dir, tmp_path / "m2"))
    before = scores(phone)
    with Ranker.open(bundle_dir, tmp_path / "phone.db") as other:
        assert synced(other, fake).pack == "new"
        wanted = scores(other)
    assert scores(phone) == wanted != before
    assert phone.stats(NOW_S)["model_id"] == "m2"
    fake.offer(newer(bundle_dir, tmp_path / "m3", "m3"))
    with Ranker.open(bundle_dir, tmp_path / "phone.db") as other:
        assert synced(other, fake).bundle == "new"
    for folder in (tmp_path / "phone.db.bundles").iterdir():
        shutil.rmtree(folder)
    phone._holding.shipped = tmp_path / "nowhere"
    assert scores(phone) == wanted
    assert phone.stats(NOW_S)["model_id"] == "m2"


def test_a_second_sync_of_a_ranker_at_the_same_time_does_nothing(phone: Ranker, fake: Fake) -> None:
    found: list[Synced] = []
    fake.faults = [lambda _: (found.append(phone.sync(fake.url, TOKEN, now=True)), False)[1]]
    synced(phone, fake)
    assert "another sync of this ranker is at work" in found[0].problems[0]


def test_forgetting_on_the_phone_leaves_no_trace_of_syncing(phone: Ranker, fake: Fake, slow: Slow) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    phone.observe("p-1", at=NOW_S)
    synced(phone, fake, upload=True)
    phone.forget()
    facts = phone._holding.cache._file.do(phone._holding.cache._facts)
    assert facts.keys() <= {"bundle", "before", "release", "release_etag", "since"}
    assert synced(phone, fake).pack == "new"


def test_who_is_forgotten_while_a_pack_is_on_its_way_does_not_get_it(
    phone: Ranker, fake: Fake, slow: Slow, bundle_dir: Path, tmp_path: Path
) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()

    def by_somebody_else(_: Handler) -> bool:
        with Ranker.open(bundle_dir, cache=tmp_path / "phone.db") as other:
            other.forget()
        return False

    for forget in (lambda _: phone.forget(), by_somebody_else):
        fake.faults = [lambda _: False, forget]
        found = synced(phone, fake)
        assert (found.pack, found.problems) == ("kept", ("pack: the user was forgotten meanwhile; sync again",))
        assert (phone.stats(NOW_S)["segments"], phone._holding.cache.pack) == (0, None)
    assert synced(phone, fake).pack == "new"


def test_events_of_the_next_user_are_not_sent_in_the_name_of_the_one_before(phone: Ranker, fake: Fake) -> None:
    phone.observe("p-1", at=NOW_S)

    def another_user(_: Handler) -> bool:
        phone.forget()
        for n in range(3):
            phone.observe("p-2", behavior="of the next", at=NOW_S + n)
        return False

    fake.faults = [another_user]
    found = synced(phone, fake, upload=True)
    assert (found.uploaded, found.problems[0]) == (0, "events: the user was forgotten meanwhile; sync again")
    assert [event["behavior"] for event in fake.events] == ["view"]
    assert synced(phone, fake, upload=True).uploaded == 3


def test_a_sync_that_was_overtaken_does_not_put_its_older_pack_in_the_place_of_a_newer_one(
    phone: Ranker, fake: Fake, slow: Slow, bundle_dir: Path, tmp_path: Path
) -> None:
    newest, old = slow.pack(LOG, until(6)).to_bytes(), slow.pack(LOG, until(2)).to_bytes()

    def overtaken(handler: Handler) -> bool:
        fake.packs["e1"] = newest
        with Ranker.open(bundle_dir, cache=tmp_path / "phone.db") as other:
            assert synced(other, fake).pack == "new"
        handler.reply(200, {}, old)
        return True

    fake.faults = [lambda _: False, overtaken]
    assert "is older than" in synced(phone, fake).problems[0]
    assert phone._holding.cache.pack == newest


def test_a_bundle_that_another_process_syncs_while_this_one_is_opened_is_followed(
    phone: Ranker, fake: Fake, slow: Slow, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = newer(bundle_dir, tmp_path / "m2", encoder_id="e2")
    fake.packs["e2"] = Slow(folder).pack(LOG, until(3)).to_bytes()
    fake.offer(folder)
    graphs = holding.graphs_of

    def slowly(bundle: Bundle, engine: str) -> Any:
        found = graphs(bundle, engine)
        monkeypatch.setattr(holding, "graphs_of", graphs)
        assert synced(phone, fake).bundle == "new"
        return found

    monkeypatch.setattr(holding, "graphs_of", slowly)
    with Ranker.open(bundle_dir, cache=tmp_path / "phone.db") as other:
        stats = other.stats(NOW_S)
        assert (stats["model_id"], stats["segments"], stats["pack_refused"]) == ("m2", 3, None)


def test_a_synced_bundle_that_this_engine_cannot_load_gives_way_to_the_apps_own(
    phone: Ranker, fake: Fake, bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.offer(newer(bundle_dir, tmp_path / "m2"))
    synced(phone, fake)
    phone.close()
    graphs = holding.graphs_of

    def of_another_engine(bundle: Bundle, engine: str) -> Any:
        if bundle.manifest.model_id == "m2":
            raise BadBundle("score.tflite: missing")
        return graphs(bundle, engine)

    monkeypatch.setattr(holding, "graphs_of", of_another_engine)
    with Ranker.open(bundle_dir, cache=tmp_path / "phone.db") as again:
        stats = again.stats(NOW_S)
        assert (stats["model_id"], stats["bundle_refused"]) == ("m1", "score.tflite: missing")


@pytest.mark.parametrize("etag", ['"\xe9"', '"a\tb"'])
def test_an_etag_that_cannot_be_said_again_is_not_kept(phone: Ranker, fake: Fake, slow: Slow, etag: str) -> None:
    pack = slow.pack(LOG, until(3)).to_bytes()
    fake.packs["e1"] = pack
    fake.faults = [lambda _: False, lambda handler: (handler.reply(200, {"ETag": etag}, pack), True)[1]]
    assert synced(phone, fake).pack == "new"
    assert phone._holding.cache.fact("pack_etag") == ""
    assert synced(phone, fake).ok


@pytest.mark.parametrize("number", ["1e999", "Infinity", "1.5", '"9"', "1" * 5000])
def test_numbers_that_cannot_be_are_refused_in_whatever_an_answer_has(phone: Ranker, fake: Fake, number: str) -> None:
    phone.observe("p-1", at=NOW_S)
    fake.packs["e1"], fake.status["e1"] = f'{{"format": "pocketrank.gone/1", "until_us": {number}}}'.encode(), 410
    fake.faults = [says(200, f'{{"acknowledged": {number}, "refused": []}}'.encode())] if number != "1.5" else []
    found = synced(phone, fake, upload=True)
    assert "answered 410, wanted a pack" in found.problems[-1]
    assert len(phone._holding.cache.events()) == 1


def test_a_release_that_is_no_utf_8_is_refused(phone: Ranker, fake: Fake) -> None:
    fake.release = '{"format": "pocketrank.release/1"}'.encode("utf-16")
    assert "not a release" in synced(phone, fake).problems[0]


def test_a_pack_of_before_the_server_forgot_the_user_is_not_loaded_either(
    phone: Ranker, fake: Fake, slow: Slow, tmp_path: Path
) -> None:
    slow.pack(LOG, until(5)).save(tmp_path / "shipped.safetensors")
    fake.packs["e1"], fake.status["e1"] = gone(until(9)), 410
    synced(phone, fake)
    with pytest.raises(BadPack, match="of before the user was forgotten; somebody keeps it for too long"):
        phone.load(tmp_path / "shipped.safetensors")
    assert phone.stats(NOW_S)["segments"] == 0
    phone.forget()
    phone.load(tmp_path / "shipped.safetensors")


# The call


@pytest.mark.parametrize(
    ("url", "options", "line"),
    [
        ("https://x.example.org", {"token": None}, "give either the user's token"),
        ("https://x.example.org", {"name": "0" * 64}, "give either the user's token"),
        ("https://x.example.org", {"token": None, "name": "7"}, "the name of a published pack has 64"),
        ("https://x.example.org", {"token": None, "name": "0" * 64, "upload": True}, "events are sent to a server"),
        ("https://x.example.org", {"token": "a\nb"}, "the token has spaces or control characters"),
        ("http://x.example.org", {}, "wanted https, for packs and tokens are private"),
        ("ftp://x.example.org", {}, "wanted one such as https://sync.example.org"),
        ("https://me:pw@x.example.org", {}, "an address with a password in it"),
        ("https://x.example.org/?a=b", {}, "wanted one such as"),
        ("https://x.example.org:port", {}, "wanted one such as"),
    ],
)
def test_a_wrong_call_is_one_line(url: str, options: dict[str, Any], line: str, phone: Ranker) -> None:
    with pytest.raises(UsageError, match=line):
        phone.sync(url, **{"token": TOKEN, **options})


def test_the_command_says_what_came_of_it(
    bundle_dir: Path, tmp_path: Path, fake: Fake, slow: Slow, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    (tmp_path / "token").write_text(TOKEN + "\n")
    words = ["sync", fake.url, "--cache", str(tmp_path / "c"), "--bundle", str(bundle_dir)]
    assert main([*words, "--token-file", str(tmp_path / "token"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["pack"], facts["bundle"], facts["segments"], facts["problems"]) == ("new", "none", 3, [])
    fake.faults = [lambda _: False, says(401)]
    assert main([*words, "--token-file", str(tmp_path / "token")]) == 1
    assert "does not take the token" in capsys.readouterr().out
    whole, fake.packs = fake.packs, {}
    assert main([*words, "--token-file", str(tmp_path / "token")]) == 1
    said = f"{fake.url} has neither a bundle nor a pack of this user; check the address\n"
    assert capsys.readouterr().out.endswith(said)
    fake.packs, fake.faults = whole, [close] * 9
    assert main([*words, "--token-file", str(tmp_path / "token")]) == 0
    assert capsys.readouterr().out.endswith("offline; what was there goes on serving\n")
    assert main([*words, "--token-file", str(tmp_path / "no")]) == 1
    assert main(words) == 2
    with closing(Cache(tmp_path / "c")) as cache:
        assert cache.pack == fake.packs["e1"]


def test_a_device_can_sync(bundle_dir: Path, tmp_path: Path, fake: Fake, slow: Slow) -> None:
    import subprocess
    import sys

    fake.packs["e1"] = slow.pack(LOG, until(3)).to_bytes()
    words = [
        "sync",
        fake.url,
        "--cache",
        str(tmp_path / "c"),
        "--bundle",
        str(bundle_dir),
        "--token-file",
        "-",
        "--json",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pocketrank_cli.thin", *words, "--json"],
        input=TOKEN,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pack"] == "new"
