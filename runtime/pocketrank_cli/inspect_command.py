"""`pocketrank inspect`: what a bundle, a pack or a device's cache says of itself, checked as a device checks it."""

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketrank.errors import BadInput, BadPack, UsageError, one_line
from pocketrank.times import from_us
from pocketrank_cli.command import Command, Report, cache_key_argument, verify_key_argument

if TYPE_CHECKING:
    from pocketrank.pack import Pack


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a bundle's folder, a pack, or a device's cache")
    verify_key_argument(parser)
    cache_key_argument(parser)


def _inspect(arguments: argparse.Namespace) -> Report:
    path: Path = arguments.path
    if path.is_dir():
        return _bundle(path, arguments.verify_key)
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; give a bundle, a pack or a cache")
    if arguments.verify_key is not None:
        raise UsageError(f"--verify-key is of bundles, and {path} is a file; leave it out")
    with path.open("rb") as head:
        is_cache = head.read(16) == b"SQLite format 3\x00"
    return _cache(path, arguments.cache_key) if is_cache else _pack(path)


def _bundle(path: Path, key: Path | None) -> Report:
    from pocketrank.bundle import Bundle  # noqa: PLC0415
    from pocketrank.signing import SIGNATURE  # noqa: PLC0415
    from pocketrank_cli import graph_files  # noqa: PLC0415

    bundle = Bundle.open(path, key)
    said = asdict(bundle.manifest)
    files: dict[str, dict[str, Any]] = said.pop("files")
    graphs = {name: graph_files.facts(path / name) for name in files if name.endswith((".onnx", ".tflite"))}
    signature = "valid" if bundle.signed_by else "present, not checked" if (path / SIGNATURE).exists() else "none"
    facts = {
        **said,
        "behaviors": bundle.manifest.behaviors[1:],
        "signature": signature,
        "signed_by": bundle.signed_by,
        "graph_files": graphs,
        "bytes": sum(found["size"] for found in files.values()),
        "files": {name: {"size": found["size"], "sha256": found["sha256"]} for name, found in files.items()},
    }
    shown = {name: one_line(_pairs(said[name])) for name in ("sizes", "policy", "compaction", "weights")}
    shown |= {name: _table(said[name]) for name in ("graphs", "quality", "parity")}
    shown |= {"behaviors": one_line(", ".join(facts["behaviors"])), "signed_by": bundle.signed_by or ""}
    shown["signature"] = signature + (": give --verify-key" if signature.startswith("present") else "")
    shown["graph_files"] = _table(graphs)
    shown["files"] = "".join(f"\n  {name:<22}{f['size']:>12,}  sha256 {f['sha256'][:12]}" for name, f in files.items())
    return Report(facts, shown, verdict=f"whole: {len(files)} files, each as the manifest says")


def _pack(path: Path) -> Report:
    from pocketrank.pack import Pack  # noqa: PLC0415

    pack = Pack.open(path)
    facts = {
        **_pack_facts(pack),
        "vectors": list(pack.vectors.shape),
        "bytes": path.stat().st_size,
    }
    return Report(facts, {"vectors": "S {} x K {} x D {}".format(*pack.vectors.shape)})


def _pack_facts(pack: "Pack") -> dict[str, Any]:
    from pocketrank.pack import FORMAT  # noqa: PLC0415

    ends = {"first_event": pack.start_s.min(), "last_event": pack.end_s.max()} if len(pack) else {}
    return {
        "format": FORMAT,
        "encoder_id": pack.encoder_id,
        "version": list(pack.version),
        "through": _time(pack.through[0]),
        "segments": len(pack),
        "merged_segments": int((pack.level > 0).sum()),
        **{name: _time(int(at_s) * 1_000_000) for name, at_s in ends.items()},
        "events": int(pack.n_events.sum(dtype=int)),
        "remembered_items": len(pack.memory_items),
    }


def _cache(path: Path, key: str | None) -> Report:
    from pocketrank.cache import Cache  # noqa: PLC0415
    from pocketrank.pack import Pack  # noqa: PLC0415

    cache = Cache(path, key)
    try:
        events, content, damaged = cache.events(), cache.pack, cache.set_aside
    finally:
        cache.close()
    facts: dict[str, Any] = {"live_events": len(events)}
    if events:
        facts |= {"first_event": _time(events[0].time_us), "last_event": _time(events[-1].time_us)}
    facts["pack_bytes"] = len(content or b"")
    if content is not None:
        try:
            facts["pack"] = _pack_facts(Pack.from_bytes(content, "the cached pack"))
        except BadPack as error:
            facts["pack_refused"] = str(error)
    facts["bytes"] = path.stat().st_size
    if damaged:
        facts["cache_damaged"] = damaged
    return Report(facts, {"pack": _table({"": facts["pack"]}) if "pack" in facts else ""})


def _time(time_us: int) -> str:
    try:
        return from_us(time_us).isoformat()
    except OverflowError:  # before the year 1
        return f"{time_us} us"


def _pairs(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in mapping.items())


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"({_pairs(value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(mapping: Mapping[str, Any]) -> str:
    """A line of its own for each entry, below the name; empty where there are none."""
    width = max(map(len, mapping), default=0) + 2
    lines = [
        f"\n  {one_line(name):<{width}}{one_line(_pairs(value) if isinstance(value, Mapping) else _short(value))}"
        for name, value in mapping.items()
    ]
    return "".join(lines)


INSPECT = Command(
    "inspect",
    "say what is in a bundle, a pack or a cache",
    "pocketrank inspect bundle --verify-key signing.pub.pem",
    _arguments,
    _inspect,
)
