"""`python -m benchmarks.sync`: `pocketrank serve` on loopback, asked by as many phones as two cores hold.

Every user has a token of their own, ES256; packs are full ones. A server knows a token that it has verified, so tokens
that it never saw are a stage of their own. The load generator is on the same cores, so a server alone does more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec
from feast import FeatureStore

from benchmarks.materialize import data
from benchmarks.processes import Claim, Facts, _memory, table
from benchmarks.segment.encoder import make_bundle
from benchmarks.sync.load import Found, load
from pocketrank.config import Project
from pocketrank.transport import Server
from pocketrank_features.views import definitions

STARTER = Path(__file__).parents[2] / "feature_repo" / "pocketrank_features" / "starter"
WANTED = 2_000
CLAIMS = {
    "packs_per_s": Claim("packs a second, the load on the same two cores", "/s", WANTED),
    "new_packs_per_s": Claim("packs a second where every token is seen for the first time", "/s", WANTED),
    "p50_ms": Claim("half of the answers within, at half of the 2,000/s that are wanted", "ms", 10, more=False),
    "p99_ms": Claim("99 of 100 answers within, at half of the 2,000/s that are wanted", "ms", 20, more=False),
    "half_p99_ms": Claim("99 of 100 answers within, at half of the packs a second that were had", "ms", 20, more=False),
    "errors": Claim("answers that were no packs", "", 0, more=False),
    "rss_growth_mb": Claim(
        "memory gained by the workers, from the first thousands of requests on", "MB", 20, more=False
    ),
    "bytes_304": Claim("a sync with nothing new, answers whole", "bytes", 500, more=False),
}
PHONES, DAY_S = 100_000_000, 86_400


def main() -> None:
    """Measure, then print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sync", description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--users", type=int, default=8_192, help="each with a full pack")
    parser.add_argument("--requests", type=int, default=225_000, help="in all, of which nine in ten are counted")
    parser.add_argument("--connections", type=int, default=32, help="kept open")
    parser.add_argument("--workers", type=int, default=2, help="processes of the server")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        found = measured(Path(temporary), options.users, options.requests, options.connections, options.workers)
    print(json.dumps(found) if options.json else table(found, CLAIMS))


def measured(work: Path, users: int, requests: int, connections: int, workers: int) -> Facts:
    """The numbers.

    Args:
        work: a folder for the project.
        users: with a pack each.
        requests: in all; a tenth to warm up, a tenth with tokens never seen, half as many as there is room for.
        connections: at once.
        workers: of the server.
    """
    root, tokens = _project(work, users, users + requests // 10)
    every = [
        f"GET /v1/pack?encoder_id={data.ENCODER} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: gzip\r\n"
        f"Authorization: Bearer {token}\r\n\r\n".encode()
        for token in tokens
    ]
    asked, new = every[:users], every[users:]
    command = [str(Path(sys.executable).parent / "pocketrank"), "serve", "--project", str(root), "--port", "0"]
    command += ["--workers", str(workers)]
    with subprocess.Popen(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            url = process.stderr.readline().split()[1].rstrip(";")
            host, _, port = url.removeprefix("http://").rpartition(":")
            address = host, int(port)
            _say("warming up")
            load(address, asked, requests // 10, connections)
            before, began = _memory(process.pid), _cpu_s(process.pid)
            _say("tokens never seen")
            first = load(address, new, len(new), connections)
            busy, own = _cpu_s(process.pid), time.process_time()
            new_us = (busy - began) / len(new) * 1e6
            _say("as many as there is room for")
            full = load(address, asked, requests // 2, connections)
            rate = full.statuses.get(200, 0) / full.seconds
            busy, own = _cpu_s(process.pid) - busy, time.process_time() - own
            _say(f"half of {rate:,.0f}/s")
            left = requests - requests // 10 - len(new) - requests // 2
            half = load(address, asked, left // 2, connections, rate / 2)
            _say(f"half of {WANTED:,}/s")
            wanted = load(address, asked, left - left // 2, connections, WANTED / 2)
            after = _memory(process.pid)
            small, whole, pack = _bytes(url, tokens[0])
        finally:
            process.terminate()
    cpu_us = {
        "server_cpu_us": round(busy / (requests // 2) * 1e6),
        "server_new_cpu_us": round(new_us),
        "load_cpu_us": round(own / (requests // 2) * 1e6),
    }
    return {**_facts(first, full, half, wanted, before, after, small, whole, pack), **cpu_us}


def _facts(
    first: Found, full: Found, half: Found, wanted: Found, before: int, after: int, small: int, whole: int, pack: int
) -> Facts:
    statuses: Counter[int] = sum((Counter(found.statuses) for found in (first, full, half, wanted)), Counter())
    rate, new_rate = (found.statuses.get(200, 0) / found.seconds for found in (full, first))
    return {
        "packs_per_s": round(rate),
        "new_packs_per_s": round(new_rate),
        "p50_ms": wanted.quantile_ms(0.5),
        "p99_ms": wanted.quantile_ms(0.99),
        "half_p99_ms": half.quantile_ms(0.99),
        "errors": sum(count for status, count in statuses.items() if status != 200),
        "rss_growth_mb": round((after - before) / 1e6, 1),
        "bytes_304": small,
        "bytes_full": whole,
        "bytes_pack": pack,
        "rss_mb": round(after / 1e6),
        "answers": sum(statuses.values()),
        "full_p50_ms": full.quantile_ms(0.5),
        "full_p99_ms": full.quantile_ms(0.99),
        "paper_machines": round(PHONES / DAY_S * 4 / new_rate, 1),
        "paper_egress_tb_month": round(PHONES * 30 * whole / 1e12, 1),
        "paper_packs_tb": round(PHONES * pack / 1e12, 2),
    }


def _project(work: Path, users: int, tokens: int) -> tuple[Path, list[str]]:
    """A Feast project with a full pack of every user, and so many tokens of them in turn, all different."""
    made = data.make(work, users * data.SLOTS)
    root = made.root
    _say(f"{users:,} packs")
    key = ec.generate_private_key(ec.SECP256R1())
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())) | {"kid": "k", "use": "sig"}
    (root / "keys.json").write_text(json.dumps({"keys": [jwk]}))
    limits = "user_per_minute = 1000000000\naddress_per_minute = 1000000000\n"
    (root / "pocketrank.toml").write_text(f'[sync]\njwks = "keys.json"\n{limits}')
    for name in ("feature_store.yaml", "definitions.py"):
        (root / name).write_bytes((STARTER / name).read_bytes())
    make_bundle(root / "bundle")
    path = root / "bundle" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"encoder_id": data.ENCODER}))
    store = FeatureStore(repo_path=str(root))
    with redirect_stdout(sys.stderr):
        store.apply(definitions(Project.open(root)))
        store.materialize(data.BEGIN, data.END)
    ends = int(datetime.now(UTC).timestamp()) + 86_400
    ids = made.user_ids().tolist()
    claims: list[dict[str, Any]] = [
        {"sub": str(ids[place % users]), "aud": "pocketrank", "exp": ends + place // users} for place in range(tokens)
    ]
    return root, [jwt.encode(one, key, "ES256", headers={"kid": "k"}) for one in claims]


def _bytes(url: str, token: str) -> tuple[int, int, int]:
    """Bytes of answers, heads and bodies, to a sync with nothing new and to one of a whole pack; and of that pack."""
    pack = f"/v1/pack?encoder_id={data.ENCODER}"
    server = Server(url, token, attempts=1)
    first, manifest = server.get(pack, 1 << 20), server.get("/v1/bundle/manifest", 1 << 20)
    begin = server.received
    assert server.get(pack, 1 << 20, first.etag).status == 304
    assert server.get("/v1/bundle/manifest", 1 << 20, manifest.etag).status == 304
    small, begin = server.received - begin, server.received
    server.get(pack, 1 << 20)
    whole = server.received - begin
    server.close()
    return small, whole, len(first.body)


def _cpu_s(pid: int) -> float:
    """Seconds that a process and all below it have worked."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    below = [
        int(child)
        for thread in Path(f"/proc/{pid}/task").iterdir()
        for child in (thread / "children").read_text().split()
    ]
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(_cpu_s, below))


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
