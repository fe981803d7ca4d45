"""`pocketrank.toml`: one file that every command of a project reads.

A project is a folder: a Feast repo with this file in it. Sections are frozen dataclasses, parsed once at the edge;
an unknown key is refused by name with the nearest known one.
"""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pocketrank.errors import BadConfig, NotReady
from pocketrank.parsing import hold, nearest, parse
from pocketrank.segments import Policy, policy_from

FILE_NAME = "pocketrank.toml"
T = TypeVar("T")


@dataclass(frozen=True)
class EventsConfig:
    """[events]: how a raw log becomes events.

    Attributes:
        columns: raw column name for each of user_id, item_id, behavior, timestamp, score, event_id.
        time_unit: "s" or "ms" where the timestamp is an integer; "" where it is a date and time.
        behavior: the behaviour of every event where the log has no such column.
        weights: score of an event by its behaviour, where the log has no score.
        buckets: files the log is split into by a hash of the user.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    time_unit: str = ""
    behavior: str = "view"
    weights: Mapping[str, float] = field(default_factory=dict)
    buckets: int = 8

    def __post_init__(self) -> None:
        hold("buckets", self.buckets, self.buckets >= 1, "1 or more")


@dataclass(frozen=True)
class SegmentsConfig:
    """[segments]: when a segment closes and how many a user keeps.

    Attributes:
        policy: "session_gap", "fixed_window", "fixed_count", "milestone" or "adaptive".
        gap_s: seconds without an event that close a segment (session_gap).
        window_s: seconds of a window, counted from 1970 UTC; a segment closes at its end (fixed_window).
        behaviors: behaviours whose events close the segment they are in (milestone).
        factor: the pause that closes a segment, in mean pauses of the user's last events (adaptive).
        lookback: pauses that this mean is taken of; until a user has had as many, max_gap_s closes (adaptive).
        min_gap_s: seconds that such a pause is at least (adaptive).
        max_gap_s: and at most (adaptive).
        max_events: events a segment holds at most; the encoder's L.
        slots: segments a user keeps, S.
        compaction: what gives way to a new segment: "ring", the oldest falls out; "log", the oldest merge.
        levels: of merging, each spanning twice the one before; what the last gives up joins one rest (log).
        lateness_s: seconds a segment waits for late events before the clock may close it.
        sync_delay_s: seconds from a segment's close until it is on the phone (--training-set).
        max_age_s: packs leave out segments that ended longer ago (ring); 0 leaves none out.
        vectors: how rows hold vectors: "float32"; or "int8", with their scales, in a quarter of the room.
    """

    policy: str = "session_gap"
    gap_s: int = 1800
    window_s: int = 86400
    behaviors: list[str] = field(default_factory=lambda: ["buy"])
    factor: int = 4
    lookback: int = 8
    min_gap_s: int = 600
    max_gap_s: int = 86400
    max_events: int = 32
    slots: int = 32
    compaction: str = "ring"
    levels: int = 4
    lateness_s: int = 0
    sync_delay_s: int = 0
    max_age_s: int = 0
    vectors: str = "float32"

    def __post_init__(self) -> None:
        hold("vectors", self.vectors, self.vectors in ("float32", "int8"), "'float32' or 'int8'")
        hold("slots", self.slots, self.slots >= 1, "1 or more")
        hold("compaction", self.compaction, self.compaction in ("ring", "log"), "'ring' or 'log'")
        hold("levels", self.levels, self.levels >= 1, "1 or more")
        hold("max_age_s", self.max_age_s, self.max_age_s >= 0, "0 or more")
        if self.max_age_s and self.compaction != "ring":
            raise BadConfig(
                'max_age_s: a log reaches back to the first event; leave it out, or take compaction = "ring"'
            )
        hold("lateness_s", self.lateness_s, self.lateness_s >= 0, "0 or more")
        hold("sync_delay_s", self.sync_delay_s, self.sync_delay_s >= 0, "0 or more")

    def cutter(self) -> Policy:
        """The segmentation policy these settings name."""
        return policy_from({"kind": self.policy, **asdict(self)})

    def compactor(self) -> dict[str, Any]:
        """The compaction these settings name, as a manifest says it."""
        return {"kind": "log", "levels": self.levels} if self.compaction == "log" else {"kind": self.compaction}


@dataclass(frozen=True)
class MemoryConfig:
    """[memory]: what the phone remembers of single items.

    Attributes:
        items: items remembered a user, F.
        half_life_s: seconds for a past event to count half.
    """

    items: int = 64
    half_life_s: float = 60 * 86400.0

    def __post_init__(self) -> None:
        hold("items", self.items, self.items >= 1, "1 or more")
        hold("half_life_s", self.half_life_s, 0 < self.half_life_s < math.inf, "above 0 and finite")


@dataclass(frozen=True)
class ItemsConfig:
    """[items]: what a bundle says of items beside their vectors.

    Attributes:
        attributes: columns of the items file, of text or lists of it, that requests may ask for (`where`).
    """

    attributes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SyncConfig:
    """[sync]: whom `serve` gives packs, how often, and which phones are offered the bundle.

    Attributes:
        audience: that a token must be for.
        issuer: that a token must be of; "" asks for none.
        jwks: public keys of who signs tokens, a file or an https URL; ES256 and RS256.
        leeway_s: seconds that clocks may differ.
        user_per_minute: requests of one user that each worker answers.
        address_per_minute: requests of one address, before its token is looked at.
        uploads: whether phones may send events.
        rollout_percent: of users who are offered the bundle, 0 to 100.
        paused: nobody is offered the bundle.
        withdrawn: model_ids that phones go back from, to the bundle they had before.
    """

    audience: str = "pocketrank"
    issuer: str = ""
    jwks: str = ""
    leeway_s: int = 30
    user_per_minute: int = 60
    address_per_minute: int = 600
    uploads: bool = False
    rollout_percent: float = 100.0
    paused: bool = False
    withdrawn: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        hold("audience", self.audience, bool(self.audience), "a name, such as pocketrank")
        hold("leeway_s", self.leeway_s, 0 <= self.leeway_s <= 600, "0 to 600")
        hold("user_per_minute", self.user_per_minute, self.user_per_minute >= 1, "1 or more")
        hold("address_per_minute", self.address_per_minute, self.address_per_minute >= 1, "1 or more")
        hold("rollout_percent", self.rollout_percent, 0 <= self.rollout_percent <= 100, "0 to 100")
        is_web = "://" in self.jwks
        hold("jwks", self.jwks, not is_web or self.jwks.startswith("https://"), "a file, or an https URL")


@dataclass(frozen=True)
class Project:
    """A folder with `pocketrank.toml`, and where each command reads and writes below it."""

    root: Path
    sections: Mapping[str, Mapping[str, Any]]

    @classmethod
    def open(cls, root: Path) -> "Project":
        """Read the configuration of a project.

        Raises:
            NotReady: the folder has no pocketrank.toml.
            BadConfig: it is not TOML, has an unknown section, or a key or value of a section that is read here
                ([model] and [training] are the exporter's) is wrong.
        """
        path = root / FILE_NAME
        if not path.is_file():
            raise NotReady(f"no {FILE_NAME} in {root}; make a project with: pocketrank init {root}")
        try:
            sections = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadConfig(f"{path}: not TOML ({error}); mend the line it names") from None
        known = {"events", "segments", "memory", "items", "model", "training", "sync"}
        for name, value in sections.items():
            if name not in known or not isinstance(value, dict):
                raise BadConfig(f"{path}: unknown section [{name}]{nearest(name, known)}")
        project = cls(root, sections)
        # All of them at once, so that a slip in one stops the first command and not the one that comes to need it.
        _ = project.events, project.memory, project.items, project.segments.cutter(), project.sync
        return project

    def section(self, name: str, cls: type[T]) -> T:
        """One section as its dataclass; defaults where the file is silent."""
        return parse(cls, self.sections.get(name, {}), f"{self.root / FILE_NAME} [{name}]")

    @cached_property
    def events(self) -> EventsConfig:
        """The [events] section."""
        return self.section("events", EventsConfig)

    @cached_property
    def segments(self) -> SegmentsConfig:
        """The [segments] section."""
        return self.section("segments", SegmentsConfig)

    @cached_property
    def memory(self) -> MemoryConfig:
        """The [memory] section."""
        return self.section("memory", MemoryConfig)

    @cached_property
    def items(self) -> ItemsConfig:
        """The [items] section."""
        return self.section("items", ItemsConfig)

    @cached_property
    def sync(self) -> SyncConfig:
        """The [sync] section."""
        return self.section("sync", SyncConfig)

    @property
    def events_dir(self) -> Path:
        """Partitioned parquet of valid events, written by `ingest`."""
        return self.root / "data" / "events"

    @property
    def rejected_path(self) -> Path:
        """Rows that `ingest` refused, each with its reason."""
        return self.root / "data" / "rejected.parquet"

    @property
    def items_path(self) -> Path:
        """What is known of items beside the events, written by `ingest --items`."""
        return self.root / "data" / "items.parquet"

    @property
    def rejected_items_path(self) -> Path:
        """Rows that `ingest --items` refused, each with its reason."""
        return self.root / "data" / "rejected_items.parquet"

    @property
    def model_dir(self) -> Path:
        """Checkpoints and metrics, written by `train`."""
        return self.root / "model"

    @property
    def bundle_dir(self) -> Path:
        """What the app ships, written by `export`."""
        return self.root / "bundle"

    @property
    def packs_dir(self) -> Path:
        """What phones sync, written by `pack`."""
        return self.root / "packs"

    def rows_dir(self, view: str) -> Path:
        """Rows of one Feast view, written by `segment`."""
        return self.root / "data" / view
