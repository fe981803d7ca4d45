"""Subcommands of the device: observe, rank, sync, verify, inspect. Light to import."""

import argparse
import re
from pathlib import Path
from typing import Any

from pocketrank.command import Command, Report
from pocketrank.errors import BadInput, UnknownItem, UsageError
from pocketrank.sync_command import SYNC
from pocketrank.times import from_us, moment


def _device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, default=Path("bundle"), help="the bundle's folder (default: bundle)")
    parser.add_argument("--cache", type=Path, help="SQLite file that keeps live events and the pack between calls")
    parser.add_argument("--pack", type=Path, help="a pack to take in first")
    parser.add_argument("--engine", choices=["onnx", "litert", "tflite"], help="default: the first one installed")


def _open(arguments: argparse.Namespace) -> Any:
    from pocketrank.ranker import Ranker  # noqa: PLC0415

    cache = arguments.cache or ":memory:"
    return Ranker.open(arguments.bundle, cache=cache, pack=arguments.pack, engine=arguments.engine)


def _item(ids: dict[Any, int], text: str) -> Any:
    """The item id as the vocabulary has it: a log of integers has integer ids."""
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UsageError(f"item {text!r} is not UTF-8; give it as UTF-8")
    number = int(text) if re.fullmatch("-?[0-9]{1,18}", text) else None
    return number if text not in ids and number in ids else text


def _observe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("item", nargs="+", help="item ids")
    parser.add_argument("--behavior", default="view", help="what the user did (default: view)")
    parser.add_argument("--score", type=float, help="how much it weighs (default: by the behaviour)")
    parser.add_argument("--at", type=moment, help="when, ISO 8601, UTC unless it has a zone (default: now)")
    _device_arguments(parser)


def _observe(arguments: argparse.Namespace) -> Report:
    if arguments.cache is None:
        raise UsageError("observe: no --cache; without one the event would be gone when this command ends")
    with _open(arguments) as ranker:
        ids = ranker.bundle.items.row
        items = [_item(ids, text) for text in arguments.item]
        unknown = [str(item) for item in items if item not in ids]
        for item in items:
            ranker.observe(item, arguments.behavior, arguments.score, arguments.at)
        facts = {"observed": len(items), "behavior": arguments.behavior, "unknown_items": unknown}
        if arguments.behavior not in ranker.bundle.manifest.behaviors:
            facts["unknown_behavior"] = (
                f"{arguments.behavior}; known are {', '.join(ranker.bundle.manifest.behaviors[1:])}"
            )
        facts |= _kept(ranker, arguments.at)
    return Report(facts, {} if unknown else {"unknown_items": ""})


def _kept(ranker: Any, now: Any) -> dict[str, Any]:
    stats = ranker.stats(now)
    return {name: stats[name] for name in ("segments", "live_events", "remembered_items")}


def _rank_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-k", type=int, default=10, help="hits wanted (default: 10)")
    parser.add_argument("--candidates", nargs="+", help="rank these items only (default: the whole catalogue)")
    parser.add_argument("--exclude-seen", action="store_true", help="leave out what the user has touched")
    parser.add_argument("--reasons", action="store_true", help="say what each past segment added")
    parser.add_argument("--now", type=moment, help="time of the request (default: now)")
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="time N more requests")
    _device_arguments(parser)


def _rank(arguments: argparse.Namespace) -> Report:
    with _open(arguments) as ranker:
        ids = ranker.bundle.items.row
        candidates = None
        if arguments.candidates is not None:
            candidates = [_item(ids, text) for text in arguments.candidates]
            for item in candidates:
                if item not in ids:
                    raise UnknownItem(f"rank: item {item!r} is not among the bundle's {len(ids):,}; see item_ids.json")
        options = {"k": arguments.k, "candidates": candidates, "exclude_seen": arguments.exclude_seen}
        ranking = ranker.rank(**options, now=arguments.now)
        hits = [_hit(place, hit, arguments.reasons) for place, hit in enumerate(ranking, 1)]
        facts: dict[str, Any] = {"basis": list(ranking.basis), "engine": ranker.engine, "hits": hits}
        if arguments.repeat:
            facts["rank_ms"], facts["cold_ms"] = _timed(ranker, options, arguments.now, arguments.repeat)
        if ranker.refused:
            facts["pack_refused"] = ranker.refused
    return Report(facts, {"hits": ""}, "\n".join(map(_line, hits)))


def _timed(ranker: Any, options: dict[str, Any], now: Any, times: int) -> tuple[float, float]:
    """Median milliseconds of a request: with the state kept, and with everything worked out again."""
    import time  # noqa: PLC0415
    from statistics import median  # noqa: PLC0415

    kept: list[float] = []
    cold: list[float] = []
    for _ in range(times):
        for sink in (cold, kept):
            if sink is cold:
                ranker.changed()
            begin = time.perf_counter()
            ranker.rank(**options, now=now)
            sink.append((time.perf_counter() - begin) * 1e3)
    return round(median(kept), 4), round(median(cold), 4)


def _hit(place: int, hit: Any, with_reasons: bool) -> dict[str, Any]:
    found = {"rank": place, "item": hit.item, "score": round(hit.score, 6)}
    if with_reasons:
        found["reasons"] = [
            {name: getattr(reason, name) for name in ("kind", "added", "start_s", "end_s")}
            | {"items": list(reason.items)}
            for reason in hit.reasons
        ]
    return found


def _line(hit: dict[str, Any]) -> str:
    from pocketrank.reasons import Reason  # noqa: PLC0415

    line = f"{hit['rank']:>3}  {hit['score']:8.3f}  {hit['item']}"
    told = [Reason(**{**reason, "items": tuple(reason["items"])}) for reason in hit.get("reasons", [])]
    told = [reason for reason in told if reason.kind not in ("base", "interaction")][:2]
    return line + "".join(f"\n{'':16}{reason}" for reason in told)


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("bundle"), help="default: bundle")
    parser.add_argument("--engine", choices=["onnx", "litert", "tflite"], help="default: all that are installed")


def _verify(arguments: argparse.Namespace) -> Report:
    from pocketrank import engines, selftest, tensors  # noqa: PLC0415
    from pocketrank.bundle import Bundle  # noqa: PLC0415

    bundle = Bundle.open(arguments.bundle)
    _, golden = tensors.read(bundle.folder / "golden.safetensors")
    names = [engines.choose(arguments.engine)] if arguments.engine else engines.installed() or [engines.choose(None)]
    found = {name: selftest.check(bundle, name) for name in names}
    first, worst = next(iter(found.values())), max(found.values(), key=lambda parity: parity.max_abs_diff)
    order, ok = min(parity.order_same for parity in found.values()), all(parity.ok for parity in found.values())
    facts = {
        "bundle": str(arguments.bundle),
        "cases": first.cases,
        "engines": [golden.get("reference", "reference"), *found],
        "max_abs_diff": worst.max_abs_diff,
        "excess": max(parity.excess for parity in found.values()),
        "order_same": order == first.cases,
        "ok": ok,
    }
    shown = {
        "cases": f"{first.cases}   {first.empty} of them without any history",
        "max_abs_diff": f"{worst.max_abs_diff:.1e}   limit {selftest.LIMIT:.0e} x max(1, |score|)",
        "excess": "",
        "order_same": f"{order}/{first.cases} the same best {selftest.TOP}",
        "ok": "",
    }
    return Report(facts, shown, ok=ok, verdict="OK" if ok else "DIFFERENT: do not ship this bundle")


def _inspect_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a bundle's folder, a pack, or a device's cache")


def _inspect(arguments: argparse.Namespace) -> Report:
    path: Path = arguments.path
    if path.is_dir():
        return _inspect_bundle(path)
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder; give a bundle, a pack or a cache")
    with path.open("rb") as head:
        is_cache = head.read(16) == b"SQLite format 3\x00"
    return _inspect_cache(path) if is_cache else _inspect_pack(path)


def _inspect_bundle(path: Path) -> Report:
    from pocketrank.bundle import Bundle  # noqa: PLC0415

    manifest = Bundle.open(path).manifest
    size = sum(facts["size"] for facts in manifest.files.values())
    facts = {
        "format": manifest.format,
        "model_id": manifest.model_id,
        "encoder_id": manifest.encoder_id,
        "variant": manifest.variant,
        "graphs": {name: dict(facts) for name, facts in manifest.graphs.items()},
        "fusion": manifest.fusion,
        "policy": dict(manifest.policy),
        "sizes": dict(manifest.sizes),
        "behaviors": manifest.behaviors[1:],
        "quality": dict(manifest.quality),
        "parity": dict(manifest.parity),
        "bytes": size,
        "files": {name: facts["size"] for name, facts in manifest.files.items()},
    }
    shown = {name: _pairs(facts[name]) for name in ("policy", "sizes", "quality", "parity", "files")}
    shown["graphs"] = "; ".join(f"{name}: {_pairs(found)}" for name, found in manifest.graphs.items())
    return Report(facts, shown)


def _inspect_pack(path: Path) -> Report:
    from pocketrank.pack import Pack  # noqa: PLC0415

    pack = Pack.open(path)
    through = from_us(pack.through[0])
    facts = {
        "encoder_id": pack.encoder_id,
        "version": list(pack.version),
        "through": through.isoformat(),
        "segments": len(pack),
        "events": int(pack.n_events.sum()),
        "remembered_items": len(pack.memory_items),
        "vectors": list(pack.vectors.shape),
        "bytes": path.stat().st_size,
    }
    return Report(facts)


def _inspect_cache(path: Path) -> Report:
    from pocketrank.cache import Cache  # noqa: PLC0415

    cache = Cache(path)
    events, pack = cache.events(), cache.pack
    cache.close()
    facts = {"live_events": len(events), "pack_bytes": len(pack or b""), "bytes": path.stat().st_size}
    return Report(facts)


def _pairs(mapping: Any) -> str:
    return ", ".join(f"{name} {value}" for name, value in mapping.items())


COMMANDS = (
    Command(
        "observe",
        "take in events on the device",
        "pocketrank observe --bundle bundle --cache cache.db p-17 --behavior click",
        _observe_arguments,
        _observe,
    ),
    Command(
        "rank",
        "rank items on the device",
        "pocketrank rank --bundle bundle --cache cache.db --pack packs/7.safetensors -k 5 --reasons",
        _rank_arguments,
        _rank,
    ),
    Command(
        "verify",
        "hold every engine against the bundle's golden cases",
        "pocketrank verify bundle",
        _verify_arguments,
        _verify,
    ),
    Command(
        "inspect",
        "say what is in a bundle, a pack or a cache",
        "pocketrank inspect bundle",
        _inspect_arguments,
        _inspect,
    ),
    SYNC,
)
