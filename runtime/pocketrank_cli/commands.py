"""Subcommands of the device: observe, rank, explain, verify; others have modules of their own. Light to import."""

import argparse
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pocketrank.errors import UnknownItem, UsageError
from pocketrank.times import moment
from pocketrank_cli.command import Command, Report, cache_key_argument, verify_key_argument
from pocketrank_cli.inspect_command import INSPECT
from pocketrank_cli.keys_command import KEYS
from pocketrank_cli.sync_command import SYNC


def _device_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, default=Path("bundle"), help="the bundle's folder (default: bundle)")
    parser.add_argument("--cache", type=Path, help="SQLite file that keeps live events and the pack between calls")
    parser.add_argument("--pack", type=Path, help="a pack to take in first")
    parser.add_argument("--engine", choices=["onnx", "litert", "tflite"], help="default: the first one installed")
    verify_key_argument(parser)
    cache_key_argument(parser)


def _open(arguments: argparse.Namespace) -> Any:
    from pocketrank.ranker import Ranker  # noqa: PLC0415

    cache, key = arguments.cache or ":memory:", arguments.verify_key
    return Ranker.open(arguments.bundle, cache, arguments.pack, arguments.engine, key, key=arguments.cache_key)


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
    names = ("segments", "live_events", "remembered_items", *(["cache_damaged"] if stats["cache_damaged"] else []))
    return {name: stats[name] for name in names}


def _rank_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-k", type=int, default=10, help="hits wanted (default: 10)")
    parser.add_argument("--candidates", nargs="+", help="rank these items only (default: the whole catalogue)")
    parser.add_argument("--exclude-seen", action="store_true", help="leave out what the user has touched")
    parser.add_argument("--exclude", nargs="+", default=[], metavar="ITEM", help="leave out these items")
    parser.add_argument(
        "--where", nargs="+", default=[], metavar="NAME=VALUE", help="items that have it; of one name, either value"
    )
    parser.add_argument("--diversity", type=float, default=0.0, help="how far hits are to differ, 0 to 1 (default: 0)")
    parser.add_argument("--deadline-ms", type=float, help="leave out what does not fit into so many milliseconds")
    parser.add_argument("--reasons", action="store_true", help="say what each past segment added")
    parser.add_argument("--now", type=moment, help="time of the request (default: now)")
    parser.add_argument("--repeat", type=int, default=0, metavar="N", help="time N more requests")
    _device_arguments(parser)


def _rank(arguments: argparse.Namespace) -> Report:
    from pocketrank.words import basis  # noqa: PLC0415

    if arguments.repeat < 0:
        raise UsageError(f"rank: --repeat {arguments.repeat}: wanted 0, for none, or more")
    with _open(arguments) as ranker:
        ids = ranker.bundle.items.row
        candidates = None
        if arguments.candidates is not None:
            candidates = [_item(ids, text) for text in arguments.candidates]
            for item in candidates:
                if item not in ids:
                    raise UnknownItem(f"rank: item {item!r} is not among the bundle's {len(ids):,}; see item_ids.json")
        options = {
            "k": arguments.k,
            "candidates": candidates,
            "exclude_seen": arguments.exclude_seen,
            "exclude": [_item(ids, text) for text in arguments.exclude],
            "where": _where(arguments.where),
            "deadline_ms": arguments.deadline_ms,
            "diversity": arguments.diversity,
        }
        ranking = ranker.rank(**options, now=arguments.now)
        hits = [_hit(place, hit, arguments.reasons) for place, hit in enumerate(ranking, 1)]
        facts: dict[str, Any] = {"basis": list(ranking.basis), "engine": ranker.engine, "hits": hits}
        if ranking.cut:
            facts["cut"] = asdict(ranking.cut)
        if arguments.repeat:
            facts["rank_ms"], facts["cold_ms"] = _timed(ranker, options, arguments.now, arguments.repeat)
        facts |= _refused(ranker, arguments.now)
    shown = {"hits": "", "basis": basis(ranking.basis), "cut": str(ranking.cut)}
    return Report(facts, shown, "\n".join(map(_line, hits)))


def _refused(ranker: Any, now: Any) -> dict[str, str]:
    """What is not ranked by, and why."""
    stats = ranker.stats(now)
    return {name: stats[name] for name in ("pack_refused", "cache_damaged") if stats[name]}


def _where(pairs: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UsageError(f"rank: --where {pair}: wanted NAME=VALUE, such as --where category=dairy")
        found.setdefault(name, []).append(value)
    return found


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
        found["reasons"] = [_told(reason) for reason in hit.reasons]
    return found


def _told(reason: Any) -> dict[str, Any]:
    parts = {name: getattr(reason, name) for name in ("kind", "added", "start_s", "end_s")}
    return {**parts, "items": list(reason.items)}


def _line(hit: dict[str, Any]) -> str:
    from pocketrank.reasons import Reason  # noqa: PLC0415

    line = f"{hit['rank']:>3}  {hit['score']:8.3f}  {hit['item']}"
    told = [Reason(**{**reason, "items": tuple(reason["items"])}) for reason in hit.get("reasons", [])]
    told = [reason for reason in told if reason.kind not in ("base", "interaction")][:2]
    return line + "".join(f"\n{'':16}{reason}" for reason in told)


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("item", help="item id")
    parser.add_argument("--noun", help='what a segment is to people, such as "basket" (default: by the policy)')
    parser.add_argument("--now", type=moment, help="time of the question, days as in UTC (default: now, days as here)")
    _device_arguments(parser)


def _explain(arguments: argparse.Namespace) -> Report:
    with _open(arguments) as ranker:
        item = _item(ranker.bundle.items.row, arguments.item)
        found = ranker.explain(item, arguments.now, arguments.noun)
        facts: dict[str, Any] = {
            "item": found.item,
            "score": round(found.score, 6),
            "basis": found.basis,
            "reasons": [
                {**_told(reason), "words": words} for reason, words in zip(found.reasons, found.words, strict=True)
            ],
        }
        shown = dict.fromkeys(facts, "")
        facts |= _refused(ranker, arguments.now)
    return Report(facts, shown, str(found))


def _verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("bundle"), help="default: bundle")
    parser.add_argument("--engine", choices=["onnx", "litert", "tflite"], help="default: all that are installed")
    verify_key_argument(parser)


def _verify(arguments: argparse.Namespace) -> Report:
    from pocketrank import engines, selftest, tensors  # noqa: PLC0415
    from pocketrank.bundle import Bundle  # noqa: PLC0415

    bundle = Bundle.open(arguments.bundle, arguments.verify_key)
    _, golden = tensors.read(bundle.folder / "golden.safetensors")
    names = [engines.choose(arguments.engine)] if arguments.engine else engines.installed() or [engines.choose(None)]
    found = {name: selftest.check(bundle, name) for name in names}
    first, worst = next(iter(found.values())), max(found.values(), key=lambda parity: parity.max_abs_diff)
    order, wrong = min(parity.order_same for parity in found.values()), [n for n, one in found.items() if not one.ok]
    facts = {
        "bundle": str(arguments.bundle),
        "cases": first.cases,
        "engines": [golden.get("reference", "reference"), *found],
        "max_abs_diff": worst.max_abs_diff,
        "excess": max(parity.excess for parity in found.values()),
        "order_same": order == first.cases,
        "by_engine": {name: {**asdict(parity), "ok": parity.ok} for name, parity in found.items()},
        "ok": not wrong,
    }
    each = [f"{name} {one.max_abs_diff:.1e} {one.order_same}/{one.cases}" for name, one in found.items()]
    shown = {
        "cases": f"{first.cases}   {first.empty} of them without any history",
        "max_abs_diff": f"{worst.max_abs_diff:.1e}   limit {selftest.LIMIT * first.limit:.0e} x max(1, |score|)",
        "excess": "",
        "order_same": f"{order}/{first.cases} the same best {selftest.TOP}",
        "by_engine": ", ".join(each) if len(each) > 1 else "",
        "ok": "",
    }
    told = [f"{name} is {found[name].told}" for name in wrong]
    verdict = f"DIFFERENT: {'; '.join(told)}; do not ship this bundle" if wrong else "OK"
    return Report(facts, shown, ok=not wrong, verdict=verdict)


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
        "explain",
        "say why an item has the score it has",
        "pocketrank explain p-17 --bundle bundle --cache cache.db --noun basket",
        _explain_arguments,
        _explain,
    ),
    Command(
        "verify",
        "hold every engine against the bundle's golden cases",
        "pocketrank verify bundle",
        _verify_arguments,
        _verify,
    ),
    INSPECT,
    KEYS,
    SYNC,
)
