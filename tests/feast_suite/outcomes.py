"""A pytest plugin: say why a test of Feast's does not apply to our store, and write down how each ended."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

STAND_INS = {"sqlite", "redis", "mongodb"}
DYNAMO = "DynamoDB's own: makes its store itself, in Docker"
NOT_OURS = {
    "test_entity_ttl_online_store": "sets key_ttl_seconds, an option of Feast's Redis store alone",
    "test_async_online_retrieval_with_event_timestamps_dynamo": DYNAMO,
    "test_push_features_and_read_async_dynamodb": DYNAMO,
}
_ended: dict[str, dict[str, str]] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    once: dict[tuple[str, str], pytest.Item] = {}
    for item in items:
        marker = item.get_closest_marker("universal_online_stores")
        only = set(marker.kwargs.get("only", STAND_INS)) if marker else STAND_INS
        reason = NOT_OURS.get(_test(item.nodeid))
        if not only & STAND_INS:
            reason = f"Feast runs it on {' and '.join(sorted(only))} alone"
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason), append=False)
        # A test for two of the names has two cases that are one.
        given = getattr(item, "callspec", None)
        once.setdefault((_test(item.nodeid), str(given.params if given else "")), item)
    items[:] = once.values()


def pytest_collection_finish() -> None:
    # Set, it keeps the import of cloud stores away; but at run time it makes some tests return before they test.
    os.environ["FEAST_IS_LOCAL_TEST"] = "False"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    before = _ended.get(report.nodeid, {}).get("outcome")
    if report.when == "call" or report.outcome != "passed":
        outcome = "failed" if "failed" in (before, report.outcome) else report.outcome
        _ended[report.nodeid] = {"test": _test(report.nodeid), "outcome": outcome, "reason": _reason(report)}


def pytest_sessionfinish() -> None:
    Path(os.environ["POCKETRANK_OUTCOMES"]).write_text(json.dumps(list(_ended.values())))


def _test(nodeid: str) -> str:
    return nodeid.partition("[")[0].rpartition("::")[2]


def _reason(report: Any) -> str:
    if report.outcome == "passed":
        return ""
    said = report.longrepr
    line = said[2] if isinstance(said, tuple) else str(getattr(said, "reprcrash", said)).splitlines()[-1]
    return str(line).removeprefix("Skipped: ")
