"""One user's segments and item memory: what the phone syncs. Format `pocketrank.pack/1`, see docs/formats.md."""

import re
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank import tensors
from pocketrank.atomic import write_bytes
from pocketrank.errors import BadPack, BadTensors, one_line
from pocketrank.quantise import MOST
from pocketrank.segments import LAST_S, MICROSECONDS

FORMAT = "pocketrank.pack/1"
LARGEST = 2**24  # bytes; a hundred times what any user's pack has
_TENSORS: dict[str, tuple[type, str]] = {
    "vectors": (np.int8, "SKD"),
    "scales": (np.float32, "SK"),
    "start_s": (np.int64, "S"),
    "end_s": (np.int64, "S"),
    "weight": (np.float32, "S"),
    "n_events": (np.int32, "S"),
    "level": (np.int8, "S"),
    "ordinal_first": (np.int32, "S"),
    "ordinal_last": (np.int32, "S"),
    "top_items": (np.int32, "ST"),
    "memory_items": (np.int32, "F"),
    "memory_counts": (np.float32, "F"),
    "memory_decayed": (np.float32, "F"),
    "memory_first_s": (np.int64, "F"),
    "memory_last_s": (np.int64, "F"),
}


@dataclass(frozen=True, eq=False)
class Pack:
    """One user's closed segments, oldest first, and item memory. Filled slots only.

    Attributes:
        encoder_id: the encoder whose vectors these are.
        version: (generation, newest closed_at in microseconds); a phone keeps the greater one.
        through: (time in microseconds, number of this user's events at that very time) of the last event covered.
        vectors: (S, K, D) int8.
        scales: (S, K) float32.
        start_s: (S,) int64, first event of the segment, seconds since 1970.
        end_s: (S,) int64, last event.
        weight: (S,) float32, sum of the events' scores.
        n_events: (S,) int32.
        level: (S,) int8, 0 for a segment that was never merged.
        ordinal_first: (S,) int32, number of the oldest segment merged into this one.
        ordinal_last: (S,) int32, number of the newest.
        top_items: (S, T) int32 vocabulary rows, -1 where there are fewer.
        memory_items: (F,) int32 vocabulary rows, ascending.
        memory_counts: (F,) float32, events of this user with this item.
        memory_decayed: (F,) float32, the same with an event's weight halved every half-life, as of memory_last_s.
        memory_first_s: (F,) int64, first event with the item.
        memory_last_s: (F,) int64, last event with the item.
        recent_us: times of the last events covered, as many as the policy looks back; none with most policies.
    """

    encoder_id: str
    version: tuple[int, int]
    through: tuple[int, int]
    vectors: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    start_s: npt.NDArray[np.int64]
    end_s: npt.NDArray[np.int64]
    weight: npt.NDArray[np.float32]
    n_events: npt.NDArray[np.int32]
    level: npt.NDArray[np.int8]
    ordinal_first: npt.NDArray[np.int32]
    ordinal_last: npt.NDArray[np.int32]
    top_items: npt.NDArray[np.int32]
    memory_items: npt.NDArray[np.int32]
    memory_counts: npt.NDArray[np.float32]
    memory_decayed: npt.NDArray[np.float32]
    memory_first_s: npt.NDArray[np.int64]
    memory_last_s: npt.NDArray[np.int64]
    recent_us: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.end_s)

    def to_bytes(self) -> bytes:
        """The pack as a file's content; equal packs give equal bytes."""
        metadata = {
            "format": FORMAT,
            "encoder_id": self.encoder_id,
            "version": f"{self.version[0]},{self.version[1]}",
            "through": f"{self.through[0]},{self.through[1]}",
        }
        if self.recent_us:
            metadata["recent"] = ",".join(map(str, self.recent_us))
        return tensors.to_bytes({name: getattr(self, name) for name in _TENSORS}, metadata)

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> "Pack":
        """Read a pack.

        Args:
            content: the whole file.
            where: its name, for the error message.

        Raises:
            BadPack: too large, truncated, of another format, or with a tensor or a value that cannot be.
        """
        _check_size(len(content), where)
        try:
            arrays, metadata = tensors.from_bytes(content, where, tensors.HEADER_MOST)
            if metadata.get("format") != FORMAT:
                found = one_line(metadata.get("format", "no format"))
                raise BadPack(f"{where}: found {found}, wanted {FORMAT}; sync with a server of this version")
            tensors.checked(arrays, _TENSORS, where)
            _check_values(arrays, where)
        except BadTensors as error:
            raise BadPack(str(error)) from None
        known: dict[str, Any] = {name: arrays[name] for name in _TENSORS}
        try:
            version, through = _pair(metadata["version"]), _pair(metadata["through"])
            recent = metadata.get("recent", "")
            recent_us = tuple(map(_integer, recent.split(","))) if recent else ()
            if not all(abs(time) < LAST_S * MICROSECONDS for time in (through[0], *recent_us)) or through[1] < 0:
                raise ValueError(f"through is {metadata['through']}{f', recent {recent}' if recent else ''}")
            if any(later < time for time, later in pairwise((*recent_us, through[0]))):
                raise ValueError(f"through is {metadata['through']}, recent {recent}: not in ascending order")
            encoder_id = metadata["encoder_id"]
            if not (0 < len(encoder_id) <= 64 and encoder_id.isprintable()):
                raise ValueError(f"encoder_id is {encoder_id!r}")
            return cls(encoder_id, version, through, **known, recent_us=recent_us)
        except (KeyError, ValueError) as error:
            raise BadPack(f"{where}: metadata is damaged ({one_line(error)}); sync again") from None

    def save(self, path: Path) -> None:
        """Write the pack to a file that appears whole or not at all."""
        write_bytes(path, self.to_bytes())

    @classmethod
    def open(cls, path: Path) -> "Pack":
        """Read a pack from a file.

        Raises:
            BadPack: no such file, or not a whole pack.
        """
        if not path.is_file():
            raise BadPack(f"{path}: no such file; make one with: pocketrank pack USER")
        _check_size(path.stat().st_size, str(path))
        return cls.from_bytes(path.read_bytes(), str(path))


def _check_size(found: int, where: str) -> None:
    if found > LARGEST:
        raise BadPack(f"{where}: {found:,} bytes, a pack has at most {LARGEST:,}; sync again")


def _check_values(arrays: tensors.Tensors, where: str) -> None:
    """Refuse what would turn scores into NaN or be looked up wrongly; damage that keeps the shapes shows here."""
    for name, (dtype, _) in _TENSORS.items():
        array = arrays[name]
        if dtype is np.float32 and not ((array >= 0) & (array <= MOST)).all():
            raise BadPack(f"{where}: {name} has a value that is negative, not finite or over {MOST:.0e}; sync again")
        if dtype is np.int64 and not ((array > -LAST_S) & (array < LAST_S)).all():
            raise BadPack(f"{where}: {name} has a time after the year 9999; sync again")
    for name, step in (("end_s", 0), ("memory_items", 1)):
        if (np.diff(arrays[name]) < step).any():
            raise BadPack(f"{where}: {name} is not in ascending order; sync again")
    if arrays["memory_items"].min(initial=0) < 0 or arrays["top_items"].min(initial=0) < -1:
        raise BadPack(f"{where}: an item's row is negative; sync again")
    if (arrays["memory_counts"] < 1).any():
        raise BadPack(f"{where}: an item is remembered for no event; sync again")
    if (arrays["n_events"] < 1).any():
        raise BadPack(f"{where}: a segment holds no event; sync again")
    for first, last in (
        ("start_s", "end_s"),
        ("memory_first_s", "memory_last_s"),
        ("ordinal_first", "ordinal_last"),
    ):
        if (arrays[first] > arrays[last]).any():
            raise BadPack(f"{where}: {first} is after {last}; sync again")
    for name in ("level", "ordinal_first"):
        if arrays[name].min(initial=0) < 0:
            raise BadPack(f"{where}: {name} is negative; sync again")


def _pair(text: str) -> tuple[int, int]:
    first, second = text.split(",")
    return _integer(first), _integer(second)


def _integer(text: str) -> int:
    """A whole number of 64 bits as clients in any language write it."""
    if not re.fullmatch("-?[0-9]{1,19}", text) or not -(2**63) <= int(text) < 2**63:
        raise ValueError(f"{text!r} is not an integer of 64 bits")
    return int(text)
