"""Blobs on a Redis server: a hash an owner, its fields the names.

Each write to an owner's hash is one script, which does nothing if somebody else has changed the hash since it was read;
then it is read, decided and written again. So any number of machines may write, and what one of them changes of an
owner is changed at once. Everything of an owner is under one key, as a cluster wants it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from pocketrank.errors import BadConfig, MissingExtra, StoreFailed
from pocketrank_features.pack_store.blobs import Decide

AT_ONCE = 256  # owners a round trip: some megabytes
WAIT_S = 30.0
READ_S = 4.0  # for one owner, whom a phone waits for
VERSION = "#"  # a field that every write counts up
WRITE = """
if (redis.call('HGET', KEYS[1], '#') or '') ~= ARGV[1] then return 0 end
for i = 2, #ARGV, 2 do
  if ARGV[i + 1] == '' then redis.call('HDEL', KEYS[1], ARGV[i])
  else redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
if redis.call('HINCRBY', KEYS[1], '#', 1) and redis.call('HLEN', KEYS[1]) == 1 then redis.call('DEL', KEYS[1]) end
return 1
"""
REPLACE = """
local version, others = redis.call('HGET', KEYS[1], '#') or 0, redis.call('HLEN', KEYS[1])
if others > 0 then others = others - 1 end
for i = 1, #ARGV, 2 do others = others - redis.call('HEXISTS', KEYS[1], ARGV[i]) end
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], '#', version + 1, unpack(ARGV))
return others
"""
DROP = """
redis.call('HDEL', KEYS[1], unpack(ARGV))
if redis.call('HLEN', KEYS[1]) == 1 then redis.call('DEL', KEYS[1]) end
"""


class RedisBlobs:
    """See `blobs.Blobs`."""

    def __init__(self, url: str, project: str) -> None:
        """Connect lazily.

        Args:
            url: redis://[[user]:password@]host[:port][/database], rediss:// for TLS, unix:// for a socket.
            project: the Feast project whose blobs these are; other programs may use the same database.

        Raises:
            MissingExtra: the Redis client is not installed.
            BadConfig: not such a URL.
        """
        try:
            import redis  # noqa: PLC0415
        except ImportError:
            raise MissingExtra("online_store url: no Redis client; run: pip install 'pocketrank[redis]'") from None
        self.where = url.rpartition("@")[2]  # without the password
        try:
            parts = urlsplit(url)
            self.where = f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
            self._redis: Any = redis.Redis.from_url(url, socket_timeout=WAIT_S, socket_connect_timeout=WAIT_S)
            self._quick: Any = redis.Redis.from_url(url, socket_timeout=READ_S, socket_connect_timeout=READ_S)
        except ValueError as error:
            raise BadConfig(f"online_store url {self.where}: {error}; write redis://HOST:PORT/DATABASE") from None
        self._failures = redis.RedisError
        self._prefix = f"pocketrank:{project}:".encode()
        self._write, self._replace, self._drop = map(self._redis.register_script, (WRITE, REPLACE, DROP))

    def read(self, name: str, owners: Sequence[bytes]) -> list[bytes | None]:
        """See `blobs.Blobs`."""
        with self._failing():
            if len(owners) == 1:
                return [self._quick.hget(self._prefix + owners[0], name)]
            return [found for some in _parts(owners) for (found,) in self._read([name], some)]

    def change(self, names: Sequence[str], owners: Sequence[bytes], decide: Decide) -> None:
        """See `blobs.Blobs`; each owner by itself."""
        with self._failing():
            for some in _parts(owners):
                left = list(some)
                while left:
                    left = self._changed(names, left, decide)

    def replace(self, owner: bytes, content: Mapping[str, bytes]) -> bool:
        """See `blobs.Blobs`."""
        with self._failing():
            others: int = self._replace([self._prefix + owner], [part for pair in content.items() for part in pair])
            return others > 0

    def owners(self, name: str) -> Iterator[bytes]:
        """See `blobs.Blobs`; those that come or go meanwhile may be in or not."""
        seen: set[bytes] = set()
        with self._failing():
            for some in self._every_owner():
                fresh = [owner for owner in dict.fromkeys(some) if owner not in seen]
                seen.update(fresh)
                pipe = self._redis.pipeline(transaction=False)
                for owner in fresh:
                    pipe.hexists(self._prefix + owner, name)
                has = pipe.execute()
                yield from (owner for owner, there in zip(fresh, has, strict=True) if there)

    def drop(self, names: Sequence[str]) -> None:
        """See `blobs.Blobs`."""
        if not names:
            return
        with self._failing():
            for some in self._every_owner():
                pipe = self._redis.pipeline(transaction=False)
                for owner in some:
                    self._drop([self._prefix + owner], names, client=pipe)
                pipe.execute()

    def exists(self) -> bool:
        """See `blobs.Blobs`; the server is there before us."""
        return True

    def remove_if_empty(self, but: Sequence[str]) -> None:
        """See `blobs.Blobs`; this project's keys, since the database is not ours."""
        with self._failing():
            kept = list(self._every_owner())
            pipe = self._redis.pipeline(transaction=False)
            for owner in (owner for some in kept for owner in some):
                pipe.hkeys(self._prefix + owner)
            if all(name.decode().startswith((*but, VERSION)) for names in pipe.execute() for name in names):
                for some in kept:
                    self._redis.unlink(*(self._prefix + owner for owner in some))

    def size(self) -> int | None:
        """See `blobs.Blobs`; a server does not tell of one program's keys."""
        return None

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()
        self._quick.close()

    def _read(self, names: Sequence[str], owners: Sequence[bytes]) -> list[list[bytes | None]]:
        pipe = self._redis.pipeline(transaction=False)
        for owner in owners:
            pipe.hmget(self._prefix + owner, names)
        found: list[list[bytes | None]] = pipe.execute()
        return found

    def _changed(self, names: Sequence[str], owners: list[bytes], decide: Decide) -> list[bytes]:
        """Change some owners; those that somebody else has changed meanwhile are left."""
        version, *columns = zip(*self._read([VERSION, *names], owners), strict=True)
        held = {name: list(column) for name, column in zip(names, columns, strict=True)}
        changed = decide(owners, held)
        pipe = self._redis.pipeline(transaction=False)
        asked = []
        for place, owner in enumerate(owners):
            fields = [
                (name, blobs[place] or b"")
                for name, blobs in changed.items()
                if name not in held or blobs[place] != held[name][place]
            ]
            if fields:
                said = [version[place] or b"", *(part for pair in fields for part in pair)]
                self._write([self._prefix + owner], said, client=pipe)
                asked.append(owner)
        return [owner for owner, done in zip(asked, pipe.execute(), strict=True) if not done]

    def _every_owner(self) -> Iterator[list[bytes]]:
        some: list[bytes] = []
        for key in self._redis.scan_iter(match=self._prefix + b"*", count=AT_ONCE):
            some.append(key[len(self._prefix) :])
            if len(some) == AT_ONCE:
                yield some
                some = []
        if some:
            yield some

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except self._failures as error:
            said = " ".join(str(error).split())
            raise StoreFailed(
                f"{self.where}: {said}; see that the server is up and has room, then run the command again; "
                "no user's rows are half written"
            ) from None


def _parts(owners: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (owners[begin : begin + AT_ONCE] for begin in range(0, len(owners), AT_ONCE))
