"""Who was forgotten, and up to when, so that no log brings them back that is ingested later.

An id is kept as a hash with the ledger's own salt: enough to know a user again, not to read who it was. It is no secret
from somebody who has the file and tries ids, least of all where these are small numbers.
"""

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
import pyarrow as pa

from pocketrank.atomic import write_bytes
from pocketrank.config import Project
from pocketrank.errors import BadInput
from pocketrank_features.checks import END_US, FORGOTTEN, run

FORMAT = "pocketrank.forgotten/1"


def ledger_path(project: Project) -> Path:
    """Where a project keeps the ledger."""
    return project.root / "data" / "forgotten.json"


@dataclass(frozen=True)
class Forgotten:
    """The ledger.

    Attributes:
        salt: of the hashes, in hex.
        until_us: hash of a user -> events up to this time are refused, microseconds since 1970.
    """

    salt: str = field(default_factory=lambda: secrets.token_hex(16))
    until_us: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, project: Project) -> "Forgotten":
        """The project's ledger; an empty one where nobody was forgotten.

        Raises:
            BadInput: damaged; without it a log would bring back those it names.
        """
        path = ledger_path(project)
        if not path.is_file():
            return cls()
        try:
            record = json.loads(path.read_bytes())
            if record["format"] != FORMAT:
                raise ValueError(f"format is {record['format']!r}, wanted {FORMAT!r}")
            return cls(str(record["salt"]), {str(key): int(value) for key, value in record["until_us"].items()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(
                f"{path}: damaged ({error}); put back a copy of it, or remove it and forget those users again"
            ) from None

    def write(self, project: Project) -> None:
        """Take the place of the project's ledger."""
        record = {"format": FORMAT, "salt": self.salt, "until_us": dict(self.until_us)}
        write_bytes(ledger_path(project), json.dumps(record, sort_keys=True).encode())

    def of_user(self, user: int | str) -> int | None:
        """Up to when a user's events are refused; None for one who was not forgotten."""
        return self.until_us.get(self.key_of(user))

    def adding(self, users: Iterable[int | str], until_us: int) -> "Forgotten":
        """The ledger with more users; the later time counts of one who is in it."""
        more = {key: max(until_us, self.until_us.get(key, until_us)) for key in map(self.key_of, users)}
        return replace(self, until_us={**self.until_us, **more})

    def mark(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Give rows of those users in the table `checked` the reason FORGOTTEN, whatever else is wrong with them."""
        if not self.until_us:
            return
        connection.register("ledger", pa.table({"key": list(self.until_us), "until_us": list(self.until_us.values())}))
        run(
            connection,
            f"""
            UPDATE checked SET reason = '{FORGOTTEN}' FROM (
                SELECT user_id, until_us FROM (SELECT DISTINCT user_id FROM checked WHERE user_id IS NOT NULL) AS users
                JOIN ledger ON key = sha256('{self.salt}' || CAST(user_id AS VARCHAR))
            ) AS gone
            WHERE checked.user_id = gone.user_id
                AND (time_us IS NULL OR time_us <= until_us OR time_us >= {END_US})
            """,  # noqa: S608
        )
        connection.unregister("ledger")

    def key_of(self, user: int | str) -> str:
        """What the ledger knows a user by."""
        return hashlib.sha256(f"{self.salt}{user}".encode()).hexdigest()


class Ledger:
    """A project's ledger for as long as a process lives, read again when it was changed."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._read: tuple[int, Forgotten] = (-1, Forgotten())

    def now(self) -> Forgotten:
        """The ledger as it is; raises as `Forgotten.of`."""
        path = ledger_path(self._project)
        stamp = path.stat().st_mtime_ns if path.is_file() else 0
        if stamp != self._read[0]:
            self._read = stamp, Forgotten.of(self._project)
        return self._read[1]
