"""What phones are offered: one bundle, to how many of them, and which bundles are taken back. `pocketrank.release/1`.

Read by the phone and written by whoever serves it; a bundle's own manifest is signed and stays as it is.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pocketrank import strict_json
from pocketrank.bundle import Bundle
from pocketrank.errors import BadConfig, BadRelease
from pocketrank.parsing import parse

FORMAT = "pocketrank.release/1"
GONE = "pocketrank.gone/1"
MANIFEST = "manifest.json"
MOST_FILES, MOST_BYTES = 64, 1 << 30
GONE_MOST, DEEPEST = 1000, 8
_NAME, _SHA256, _ID = re.compile(r"[A-Za-z0-9][\w.-]{0,99}"), re.compile("[0-9a-f]{64}"), re.compile(r"[\w.-]{1,100}")


@dataclass(frozen=True)
class Release:
    """The document.

    Attributes:
        format: FORMAT.
        issued_s: when it was last changed, seconds since 1970; a phone keeps to the newest that it has seen.
        model_id: the bundle that is offered; "" for none.
        encoder_id: its encoder.
        files: name -> sha256 and size, the manifest and its signature among them.
        rollout_percent: of users who take it.
        paused: nobody takes it for now; who has it keeps it.
        withdrawn: model_ids that are to be left for the bundle before.
    """

    format: str
    issued_s: int
    model_id: str = ""
    encoder_id: str = ""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rollout_percent: float = 100.0
    paused: bool = False
    withdrawn: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, bundle: Bundle, issued_s: int) -> "Release":
        """The release of an opened bundle, to everybody."""
        names = [MANIFEST, *(name for name in ("manifest.sig",) if (bundle.folder / name).is_file())]
        contents = {name: (bundle.folder / name).read_bytes() for name in names}
        seals = {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for name, content in contents.items()
        }
        named = {name: {key: facts[key] for key in ("sha256", "size")} for name, facts in bundle.manifest.files.items()}
        manifest = bundle.manifest
        return cls(FORMAT, issued_s, manifest.model_id, manifest.encoder_id, named | seals)

    def to_bytes(self) -> bytes:
        """The document; equal releases give equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, content: bytes, where: str) -> "Release":
        """Read a document.

        Raises:
            BadRelease: not one, of another format, or with a name, hash or size that cannot be.
        """
        try:
            found = strict_json.loads(content, len(content), DEEPEST)
            if not isinstance(found, dict) or found.get("format") != FORMAT:
                said = found.get("format", "no format") if isinstance(found, dict) else "no object"
                raise BadRelease(
                    f"{where}: found {str(said)[:60]}, wanted {FORMAT}; check the address, or update the app"
                )
            release = parse(cls, found, where)
        except (ValueError, BadConfig) as error:
            raise BadRelease(f"{where}: not a release ({error}); check the address") from None
        release._check(where)
        return release

    def reaches(self, who: str) -> bool:
        """Whether a user is among those who take the bundle: the same ones for as long as it is offered."""
        seal = hashlib.sha256(f"{self.model_id}\n{who}".encode("utf-8", "surrogatepass")).digest()
        return not self.paused and int.from_bytes(seal[:8], "big") < self.rollout_percent / 100 * 2**64

    def _check(self, where: str) -> None:
        known = bool(self.model_id)
        ids = (self.model_id, self.encoder_id) if known else ()
        sound = (
            all(map(_ID.fullmatch, ids))
            and 0 <= self.rollout_percent <= 100
            and len(self.files) <= MOST_FILES
            and all(_NAME.fullmatch(name) and _is_seal(facts) for name, facts in self.files.items())
            and (MANIFEST in self.files) == known
        )
        if not sound or sum(facts["size"] for facts in self.files.values()) > MOST_BYTES:
            raise BadRelease(f"{where}: a name, hash, size or share in it cannot be; check the address")


def gone(until_us: int) -> bytes:
    """What stands in the place of the pack of a user who was forgotten: nothing up to this time is to be kept."""
    return json.dumps({"format": GONE, "until_us": until_us}, sort_keys=True).encode()


def gone_until(content: bytes) -> int | None:
    """The time in such a document; None for what is none, such as a pack."""
    if not content.startswith(b"{") or len(content) > GONE_MOST:
        return None
    try:
        found = strict_json.loads(content, GONE_MOST, DEEPEST)
        until_us = found["until_us"]
        return until_us if found["format"] == GONE and type(until_us) is int else None
    except (ValueError, KeyError, TypeError):
        return None


def _is_seal(facts: Mapping[str, Any]) -> bool:
    sha256, size = facts.get("sha256"), facts.get("size")
    return isinstance(sha256, str) and bool(_SHA256.fullmatch(sha256)) and type(size) is int and size >= 0
