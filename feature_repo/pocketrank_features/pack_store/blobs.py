"""Where a store keeps its blobs: an owner has one under each of some names.

What a store asks of a database, and no more, so that one is as good as another: `sqlite_blobs` is a file, `redis_blobs`
a server. All that is changed of one owner is changed at once or not at all, whoever is killed and whoever else writes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

Held = Mapping[str, list[bytes | None]]
Changed = Mapping[str, list[bytes | None]]
Decide = Callable[[Sequence[bytes], Held], Changed]


class Blobs(Protocol):
    """The blobs of one Feast project. Any method may raise StoreFailed."""

    def read(self, name: str, owners: Sequence[bytes]) -> list[bytes | None]:
        """What owners have under a name, None for nothing; as of one moment for each owner."""

    def change(self, names: Sequence[str], owners: Sequence[bytes], decide: Decide) -> None:
        """Put what `decide` says in the place of what owners have under these names.

        Args:
            names: to be read.
            owners: distinct.
            decide: from some of the owners, and what they have under each name, to what they are to have under some
                of the names, or others; None for nothing. Called again for owners whom somebody else changed meanwhile.
        """

    def replace(self, owner: bytes, content: Mapping[str, bytes]) -> bool:
        """Remove all that an owner has and put this in its place; whether there was anything else than this."""

    def owners(self, name: str) -> Iterator[bytes]:
        """All that have something under a name, in any order."""

    def drop(self, names: Sequence[str]) -> None:
        """Remove what everybody has under these names."""

    def exists(self) -> bool:
        """False where nothing can be in it, since it was never made."""

    def remove_if_empty(self, but: Sequence[str]) -> None:
        """Remove the database itself if nobody has anything under a name that starts otherwise than these."""

    def size(self) -> int | None:
        """Bytes on disk, None where that cannot be told."""

    def close(self) -> None:
        """Give back what this holds."""
