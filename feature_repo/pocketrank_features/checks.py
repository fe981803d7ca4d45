"""What each row of a raw log must be, as SQL: how its values are read and the reasons a row is refused for.

Nothing is mended here: a value either reads as what it should be or its row is refused. What is wrong with the log as a
whole (no such column, a column of the wrong type, seconds mixed with milliseconds) is a `BadEvents` before any row is.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb

from pocketrank.errors import BadConfig, BadEvents
from pocketrank_features.logfiles import SPARE_COLUMNS, literal, quoted

REQUIRED = ("user_id", "item_id", "timestamp")
OPTIONAL = ("behavior", "score", "event_id")
CANONICAL = ("user_id", "item_id", "behavior", "timestamp", "score", "event_id")
OPTION_OF = {
    "user_id": "--user-column",
    "item_id": "--item-column",
    "behavior": "--behavior-column",
    "timestamp": "--time-column",
    "score": "--score-column",
    "event_id": "--event-id-column",
}
ROW = "_pocketrank_row"  # the row number in the view `raw`, beside the columns of the log
REPEATED = "repeated event_id"
FORGOTTEN = "user was forgotten"
ID_MOST = 250  # bytes of an item's id: a bundle has room for 256 each
END_US = 4_102_444_800_000_000  # 2100-01-01
_PER_UNIT = {"s": 1_000_000, "ms": 1_000}
_UNITS = {"s": "seconds", "ms": "milliseconds"}
# Where a number must lie to look like a time between 1973 and 2100 in each unit; the ranges do not meet.
_LOOKS = {"seconds": (1e8, 4.2e9), "milliseconds": (1e11, 4.2e12), "microseconds": (1e14, 4.2e15)}
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_NUMBERS = (*_INTEGERS, "UBIGINT", "HUGEINT", "UHUGEINT", "FLOAT", "DOUBLE", "DECIMAL")
_TEXTS = ("VARCHAR", "ENUM", "UUID")
_TIMES = ("TIMESTAMP", "DATE")


@dataclass(frozen=True)
class RawLog:
    """The view `raw` of a duckdb connection, and which of its columns is which.

    Attributes:
        connection: has the view `raw`, with the 1-based row number in its column ROW.
        where: what messages call the log.
        types: duckdb's type of every column.
        columns: raw column of each canonical one that the log has.
        is_text: True for a CSV, where the types of the ids are up to the reader.
    """

    connection: duckdb.DuckDBPyConnection
    where: str
    types: Mapping[str, str]
    columns: Mapping[str, str]
    is_text: bool

    def sql(self, canonical: str) -> str:
        """The raw column as SQL; NULL where the log has none."""
        return f"raw.{quoted(self.columns[canonical])}" if canonical in self.columns else "NULL"

    def is_type(self, canonical: str, kinds: Sequence[str]) -> bool:
        """Whether the raw column is of one of these kinds of type."""
        kind = self.types[self.columns[canonical]]
        return kind in kinds or kind.partition("(")[0] in kinds

    def ask(self, query: str) -> tuple[Any, ...]:
        """The one row that a query over `raw` gives."""
        return run(self.connection, query)[0]

    def wrong_type(self, canonical: str, wanted: str) -> BadEvents:
        """The complaint that a whole column is of a type nothing can be read from."""
        column = self.columns[canonical]
        return BadEvents(
            f"{self.where}: column {column!r} is {self.types[column]}, wanted {wanted}; convert the column"
        )


def run(connection: duckdb.DuckDBPyConnection, statement: str) -> list[tuple[Any, ...]]:
    """Run a statement to its end: duckdb 2 refuses the next one while rows of the last are still unread."""
    rows: list[tuple[Any, ...]] = connection.execute(statement).fetchall()
    return rows


def match_columns(where: str, found: Sequence[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Which raw column is which.

    Args:
        where: what messages call the log.
        found: the columns the log has.
        mapping: raw column by canonical name, as [events.columns] or an option says; others go by their own name.

    Raises:
        BadConfig: the mapping names something that is no column of events.
        BadEvents: a column that is needed, or that the mapping names, is not there.
    """
    for name in mapping:
        if name not in CANONICAL:
            raise BadConfig(f"[events.columns]: unknown key {name!r}; known are {', '.join(CANONICAL)}")
    columns = {}
    for name in CANONICAL:
        wanted = mapping.get(name, name)
        if wanted in found:
            columns[name] = wanted
        elif name in REQUIRED or name in mapping:
            near = difflib.get_close_matches(wanted, found, 1)
            example = near[0] if near else "COLUMN"
            raise BadEvents(
                f"{where}: no column {wanted!r}{f' for {name}' if wanted != name else ''}; found {', '.join(found)}"
                f"{f'; nearest is {near[0]!r}' if near else ''}; "
                f'set [events.columns] {name} = "{example}" or pass {OPTION_OF[name]} {example}'
            )
    return columns


def id_type(log: RawLog, canonical: str, known: str | None) -> str:
    """Whether an id column is "int64" or "string".

    Args:
        log: the raw log.
        canonical: user_id or item_id.
        known: the type earlier batches have, if there are any.

    Raises:
        BadEvents: neither, or another type than the earlier batches have.
    """
    if log.is_type(canonical, _INTEGERS):
        kind = "int64"
    elif not log.is_type(canonical, _TEXTS):
        raise log.wrong_type(canonical, "integers of 64 bits or strings")
    elif not log.is_text or known == "string":
        kind = "string"
    else:  # text that reads as integers and writes back the same; 007 stays a string
        column = log.sql(canonical)
        plain = f"regexp_full_match({column}, '0|-?[1-9][0-9]*') AND TRY_CAST({column} AS BIGINT) IS NOT NULL"
        filled = f"trim({column}) <> ''"
        kind = "int64" if log.ask(f"SELECT bool_and({plain}) FROM raw WHERE {filled}")[0] else "string"  # noqa: S608
    if known not in (None, kind):
        raise BadEvents(
            f"{log.where}: {canonical} is {kind}, in the logs ingested before it is {known}; "
            "write the ids alike, or ingest into a project of its own"
        )
    return kind


def time_sql(log: RawLog, time_unit: str) -> str:
    """SQL for the time of a row in microseconds since 1970, NULL where it cannot be read.

    Args:
        log: the raw log.
        time_unit: "s" or "ms" for numbers, "" where none is said.

    Raises:
        BadEvents: numbers without a unit, of another unit than said, or of two units; or no times at all.
    """
    raw = log.sql("timestamp")
    # The connection's time zone is UTC, so a time without one is UTC, and one with another is converted.
    moment = f"epoch_us(TRY_CAST({raw} AS TIMESTAMPTZ))"
    if log.is_type("timestamp", _TIMES) or str(log.types[log.columns["timestamp"]]).startswith(_TIMES):
        return moment
    number = f"TRY_CAST({raw} AS DECIMAL(24, 6))"
    if log.is_type("timestamp", _TEXTS):
        counts = log.ask(f"SELECT count({moment}), count({number}) FROM raw")  # noqa: S608
        if counts[0] > counts[1] or counts == (0, 0):
            return moment
    elif not log.is_type("timestamp", _NUMBERS):
        raise log.wrong_type("timestamp", "a date and time, or integer seconds or milliseconds")
    _check_unit(log, number, time_unit)
    return f"TRY_CAST({number} * {_PER_UNIT[time_unit]} AS BIGINT)"


def _check_unit(log: RawLog, number: str, time_unit: str) -> None:
    """Refuse a column of numbers whose size speaks against its unit."""
    firsts = ", ".join(f"min({ROW}) FILTER ({number} >= {low} AND {number} < {high})" for low, high in _LOOKS.values())
    seen = {unit: row for unit, row in zip(_LOOKS, log.ask(f"SELECT {firsts} FROM raw"), strict=True) if row}  # noqa: S608
    where = f"{log.where}: column {log.columns['timestamp']!r}"
    if len(seen) > 1:
        rows = " and ".join(f"{unit} (first in row {row})" for unit, row in seen.items())
        raise BadEvents(f"{where} mixes {rows}, wanted one unit; write the column in one unit")
    if "microseconds" in seen:
        raise BadEvents(f"{where} looks like microseconds, wanted s or ms; write it as a date and time, or in ms")
    looks = next((short for short, unit in _UNITS.items() if unit in seen), "")
    if looks in (time_unit, "") and time_unit:
        return
    now = f'time_unit is "{time_unit}"' if time_unit else "holds numbers and no time_unit is set"
    hint = f"looks like {_UNITS[looks]}: " if looks else ""
    short = looks or "s"
    raise BadEvents(f'{where}: {now}; {hint}set [events] time_unit = "{short}" or pass --time-unit {short}')


def score_sql(log: RawLog, weights: Mapping[str, float]) -> str:
    """SQL for the score of a row as a double: the log's own, or else the weight of its behaviour, or else 1.

    Raises:
        BadConfig: a weight is not a finite number >= 0.
        BadEvents: the score column holds neither numbers nor text.
    """
    for behavior, weight in weights.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not is_number or not math.isfinite(weight) or weight < 0:
            raise BadConfig(f"[events.weights] {behavior}: found {weight!r}, wanted a finite number >= 0")
    cases = " ".join(f"WHEN {literal(name)} THEN {float(weight)!r}::DOUBLE" for name, weight in weights.items())
    by_behavior = f"CASE behavior {cases} ELSE 1.0::DOUBLE END" if cases else "1.0::DOUBLE"
    if "score" not in log.columns:
        return by_behavior
    if not log.is_type("score", (*_NUMBERS, *_TEXTS)):
        raise log.wrong_type("score", "numbers")
    return f"CASE WHEN raw_score IS NULL THEN {by_behavior} ELSE TRY_CAST(raw_score AS DOUBLE) END"


def checked_sql(log: RawLog, types: Mapping[str, str], time: str, score: str, behavior: str) -> str:
    """SQL that reads every row of `raw` and says why it is refused, NULL where it is not.

    Args:
        log: the raw log.
        types: "int64" or "string" for user_id and item_id.
        time: from `time_sql`.
        score: from `score_sql`.
        behavior: the behaviour where the log says none.

    Returns:
        A query with the columns row, user_id, item_id, behavior, time_us, score, event_id, fills_behavior, fills_score,
        reason.
    """
    spare = [column for column in SPARE_COLUMNS if column in log.types]
    too_many = " OR ".join(f"raw.{quoted(column)} IS NOT NULL" for column in spare) or "false"

    def text(canonical: str) -> str:
        column = log.sql(canonical)
        return f"CASE WHEN trim(CAST({column} AS VARCHAR)) <> '' THEN CAST({column} AS VARCHAR) END"

    cast = {name: "BIGINT" if types[name] == "int64" else "VARCHAR" for name in ("user_id", "item_id")}
    reasons = {
        "more fields than columns": "too_many",
        "missing user": "user_id IS NULL",
        "missing item": "item_id IS NULL",
        "item id too long": f"strlen(CAST(item_id AS VARCHAR)) > {ID_MOST}",
        "missing time": "raw_time IS NULL",
        "unreadable time": "time_us IS NULL",
        "time before 1970": "time_us < 0",
        "time after 2100": f"time_us >= {END_US}",
        "score not a number": "score IS NULL",
        "score not finite": "NOT isfinite(score) OR TRY_CAST(score AS FLOAT) IS NULL",
        "score negative": "score < 0",
    }
    cases = " ".join(f"WHEN {condition} THEN {literal(reason)}" for reason, condition in reasons.items())
    return f"""
        WITH read AS (
            SELECT raw.{ROW} AS "row", {too_many} AS too_many,
                CAST({text("user_id")} AS {cast["user_id"]}) AS user_id,
                CAST({text("item_id")} AS {cast["item_id"]}) AS item_id,
                {text("behavior")} AS raw_behavior, coalesce(raw_behavior, {literal(behavior)}) AS behavior,
                {text("timestamp")} AS raw_time, {time} AS time_us,
                {text("score")} AS raw_score, {text("event_id")} AS event_id
            FROM raw
        ), scored AS (SELECT *, {score} AS score FROM read)
        SELECT "row", user_id, item_id, behavior, time_us, score, event_id,
            {_fills(log, "behavior")} AS fills_behavior, {_fills(log, "score")} AS fills_score,
            CASE {cases} END AS reason
        FROM scored
    """  # noqa: S608


def _fills(log: RawLog, canonical: str) -> str:
    """Whether a row lacks a value that other rows of the log may have."""
    return f"raw_{canonical} IS NULL" if canonical in log.columns else "false"
