"""What the app ships: graphs, item table, vocabulary, golden cases, manifest. No user data. `pocketrank.bundle/1`.

Opening a bundle holds it against the manifest, `bundle_files` its files, this module what they say; nothing in a bundle
is trusted before that.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank import __version__, attributes, bundle_files, strict_json, tensors
from pocketrank.attributes import Attributes
from pocketrank.compaction import Compaction, compaction_from
from pocketrank.errors import BadBundle, BadConfig, BadTensors, one_line
from pocketrank.parsing import hold, parse
from pocketrank.quantise import MOST, FloatArray, dequantise
from pocketrank.segments import LAST_S, BoolArray, Policy, milestones, missing_behaviors, policy_from
from pocketrank.signing import Key

FORMAT = "pocketrank.bundle/1"
FORMATS = (FORMAT,)  # what this version reads, the newest last
ItemId = str | int
Int64Array = npt.NDArray[np.int64]


# Elements that an array of these axes has at most, so that hostile sizes take no more memory than 200 MB.
PRODUCTS: dict[tuple[str, ...], int] = {
    ("S", "K", "D"): 2**22,
    ("S", "T"): 2**20,
    ("L", "D"): 2**20,
    ("H", "D"): 2**22,
    ("F",): 2**20,
    ("score_chunk", "D"): 2**24,
    ("encoder_batch", "L", "D"): 2**26,
}


@dataclass(frozen=True)
class Sizes:
    """Axis lengths a bundle's graphs were made for.

    Attributes:
        S: segments. K: vectors a segment. L: events of a segment. D: width. H: state vectors. I: items.
        F: remembered items. T: top items a segment. encoder_batch: segments the encoder takes at once offline.
        score_chunk: candidates the TFLite score graph takes at once.
    """

    S: int
    K: int
    L: int
    D: int
    H: int
    I: int  # noqa: E741
    F: int
    T: int
    encoder_batch: int
    score_chunk: int

    def __post_init__(self) -> None:
        """Refuse what no model has and memory would be set aside for: numbers below 1, or some products too great."""
        for name, size in asdict(self).items():
            hold(name, size, size >= 1, "1 or more")
        for axes, most in PRODUCTS.items():
            product = math.prod(getattr(self, axis) for axis in axes)
            hold(" x ".join(axes), product, product <= most, f"at most {most}")


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`: what is in the bundle and how it was measured; see docs/formats.md."""

    format: str
    model_id: str
    encoder_id: str
    least_runtime: str
    sizes: Mapping[str, int]
    behaviors: list[str]
    weights: Mapping[str, float]
    policy: Mapping[str, Any]
    compaction: Mapping[str, Any]
    lateness_s: int
    fusion: str
    memory_half_life_s: float
    files: Mapping[str, Mapping[str, Any]]
    quality: Mapping[str, Any] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    variant: str = "fp32"
    graphs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that would make scores infinite, and names that would make a line of two."""
        for name in ("model_id", "encoder_id", "fusion"):
            value = getattr(self, name)
            hold(name, value, 0 < len(value) <= 64 and value.isprintable(), "up to 64 printable characters")
        once = len(set(self.behaviors)) == len(self.behaviors) > 0
        hold("behaviors", self.behaviors, once, "different names, the first for unknown ones")
        for name, weight in self.weights.items():
            hold(f"weights {name}", weight, 0 <= weight <= MOST, f"0 to {MOST:.0e}")
        hold("lateness_s", self.lateness_s, 0 <= self.lateness_s < LAST_S, "0 or more seconds, below the year 10000")
        half_life_s = self.memory_half_life_s
        hold("memory_half_life_s", half_life_s, 1e-6 <= half_life_s <= 1e30, "1e-06 to 1e+30")

    def to_bytes(self) -> bytes:
        """The manifest as the file's content; equal manifests give equal bytes."""
        return (json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


@dataclass(frozen=True, eq=False)
class Items:
    """The item table; row = place in the vocabulary.

    Attributes:
        ids: I item ids, as the log had them.
        vectors: (I, D) int8.
        scales: (I,) float32.
        bias: (I,) float32.
        popularity: (I,) float32, share of events.
        unknown: (D,) float32, stands for an item that the vocabulary lacks.
    """

    ids: list[ItemId]
    vectors: npt.NDArray[np.int8]
    scales: FloatArray
    bias: FloatArray
    popularity: FloatArray
    unknown: FloatArray

    @cached_property
    def row(self) -> dict[ItemId, int]:
        """Item id -> vocabulary row."""
        return {item: row for row, item in enumerate(self.ids)}

    @cached_property
    def place(self) -> Int64Array:
        """(I,) each item's place by id: integers first, then strings by code point; decides between equal scores."""
        ids = self.ids
        numbers, texts = ([row for row, item in enumerate(ids) if isinstance(item, kind)] for kind in (int, str))
        place = np.empty(len(ids), np.int64)
        place[sorted(numbers, key=ids.__getitem__) + sorted(texts, key=ids.__getitem__)] = np.arange(len(ids))
        return place

    def embed(self, rows: npt.NDArray[Any]) -> FloatArray:
        """Vectors of items as the graphs read them.

        Args:
            rows: (...) vocabulary rows; -1 for an unknown item.

        Returns:
            (..., D) float32.
        """
        known = np.maximum(rows, 0)
        found = dequantise(self.vectors[known], self.scales[known])
        return np.where((rows >= 0)[..., None], found, self.unknown).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Bundle:
    """An opened bundle: its manifest and item table; the graphs are files for `engines` to load.

    Attributes:
        signed_by: fingerprint of the key that it was demanded to be signed with; None where none was.
        attributes: what it says of its items beside their vectors.
    """

    folder: Path
    manifest: Manifest
    items: Items
    signed_by: str | None = None
    attributes: Attributes = field(default_factory=lambda: Attributes({}, 0))

    @classmethod
    def open(cls, folder: str | Path, verify_key: Key | None = None) -> "Bundle":
        """Open a bundle: check the signature, the manifest, every file against it, and the item table.

        Args:
            folder: the bundle.
            verify_key: a public key in PEM, its bytes or its path, that must have signed it; None asks for none.

        Raises:
            BadBundle: no bundle there, not signed with that key, another format, made for a newer pocketrank, a file
                missing, altered, not named or not a regular one, or numbers that disagree or cannot be.
            BadKey: the key is not a public P-256 key.
            MissingExtra: a key is given, and `cryptography` is not installed.
        """
        folder = Path(folder)
        content = bundle_files.read_manifest(folder)
        signer = None if verify_key is None else bundle_files.check_signature(folder, content, verify_key)
        manifest = _manifest(folder / bundle_files.MANIFEST, content)
        sizes = _sizes(folder, manifest)
        optional = [attributes.FILE_NAME] if attributes.FILE_NAME in manifest.files else []
        kept = bundle_files.check_files(folder, manifest.files, [*NEEDED, *optional], _largest(sizes))
        opened = cls(folder, manifest, _items(folder, kept), signer, _attributes(folder, kept, sizes.I))
        opened._check_table()
        return opened

    @cached_property
    def sizes(self) -> Sizes:
        """Axis lengths of the graphs."""
        return parse(Sizes, self.manifest.sizes, f"{self.folder / 'manifest.json'} sizes")

    @cached_property
    def policy(self) -> Policy:
        """The rule that closes segments."""
        return policy_from(self.manifest.policy)

    @cached_property
    def compaction(self) -> Compaction:
        """Which closed segments are kept, and in which slots."""
        return compaction_from(self.manifest.compaction, self.sizes.S)

    def _check_table(self) -> None:
        """Hold the manifest's sizes against the item table."""
        found = (len(self.items.ids), *self.items.vectors.shape)
        if found != (self.sizes.I, self.sizes.I, self.sizes.D):
            raise BadBundle(
                f"{self.folder}: {found[0]} ids and item vectors {found[1:]}, the manifest says I={self.sizes.I}, "
                f"D={self.sizes.D}; export the bundle again"
            )

    def behavior_ids(self, names: list[str]) -> npt.NDArray[np.int32]:
        """(E,) places of behaviours in the manifest's list; 0 stands for one that training never saw."""
        place = {name: number for number, name in enumerate(self.manifest.behaviors)}
        return np.array([place.get(name, 0) for name in names], np.int32)

    def closing(self, behavior: npt.NDArray[np.int32]) -> BoolArray | None:
        """What `policy.cut` wants to know of the events' behaviours.

        Args:
            behavior: (E,) places in the manifest's list of behaviours.

        Returns:
            (E,) True where an event of that behaviour closes its segment; None where the policy reads no behaviours.
        """
        return milestones(self.policy, self.manifest.behaviors, behavior)


NEEDED = ("item_ids.json", "items.safetensors")
ITEM_TENSORS: dict[str, tuple[type, str]] = {
    "vectors": (np.int8, "ID"),
    "scales": (np.float32, "I"),
    "bias": (np.float32, "I"),
    "popularity": (np.float32, "I"),
    "unknown_vector": (np.int8, "D"),
    "unknown_scale": (np.float32, "1"),
}


def _manifest(path: Path, content: bytes) -> Manifest:
    try:
        found = strict_json.loads(content, bundle_files.MANIFEST_MOST, deepest=16)
        if not isinstance(found, dict):
            raise ValueError(f"a {type(found).__name__}, wanted an object")
    except ValueError as error:
        raise BadBundle(f"{path}: not JSON ({error}); fetch or export the bundle again") from None
    form = found.get("format")
    if form not in FORMATS:
        raise BadBundle(
            f"{path}: format is {one_line(repr(form))}, this version reads {FORMAT!r}; "
            "update pocketrank or export again"
        )
    _check_runtime(path, found.get("least_runtime"))
    try:
        return parse(Manifest, found, str(path))
    except BadConfig as error:
        raise BadBundle(f"{one_line(error)}; export the bundle again") from None


def _check_runtime(path: Path, least: Any) -> None:
    """Refuse a bundle made for a newer version before its other entries are read: some may be new, too."""
    wanted, own = _version(least), _version(__version__)
    if least is not None and wanted is None:
        raise BadBundle(
            f"{path} least_runtime: found {one_line(repr(least))}, wanted a version such as {__version__}; "
            "export the bundle again"
        )
    if wanted is not None and own is not None and wanted > own:
        raise BadBundle(f"{path}: wants pocketrank {least} or newer, this is {__version__}; update pocketrank")


def _version(text: Any) -> tuple[int, ...] | None:
    found = re.fullmatch(r"([0-9]{1,6})\.([0-9]{1,6})\.([0-9]{1,6})", text) if isinstance(text, str) else None
    return tuple(map(int, found.groups())) if found else None


def _sizes(folder: Path, manifest: Manifest) -> Sizes:
    """The manifest's sizes, held against its policy, compaction and behaviours."""
    try:
        sizes = parse(Sizes, manifest.sizes, f"{folder / bundle_files.MANIFEST} sizes")
        policy, _ = policy_from(manifest.policy), compaction_from(manifest.compaction, sizes.S)
    except BadConfig as error:
        raise BadBundle(f"{one_line(error)}; export the bundle again") from None
    if policy.max_events > sizes.L:
        raise BadBundle(
            f"{folder}: segments hold up to {policy.max_events} events, the encoder takes {sizes.L}; "
            "export the bundle again"
        )
    for name in missing_behaviors(policy, manifest.behaviors):
        raise BadBundle(
            f"{folder}: {one_line(repr(name))} is to close segments and is not among its behaviours; "
            "export the bundle again"
        )
    return sizes


def _largest(sizes: Sizes) -> dict[str, int]:
    """Bytes that the files which are read whole can have: so many an item, and of a table eight a number."""
    table = 8 * (sizes.I + 1) * (sizes.D + 3)
    return {
        "item_ids.json": 256 * sizes.I + 64,
        "items.safetensors": table + tensors.HEADER_MOST,
        attributes.FILE_NAME: attributes.BYTES_AN_ITEM * sizes.I,
    }


def _attributes(folder: Path, content: Mapping[str, bytes], items: int) -> Attributes:
    if attributes.FILE_NAME not in content:
        return Attributes({}, items)
    return Attributes.from_bytes(content[attributes.FILE_NAME], items, str(folder / attributes.FILE_NAME))


def _items(folder: Path, content: Mapping[str, bytes]) -> Items:
    where = str(folder / "items.safetensors")
    try:
        table, _ = tensors.from_bytes(content["items.safetensors"], where, tensors.HEADER_MOST)
        tensors.checked(table, ITEM_TENSORS, where, {"1": 1})
    except BadTensors as error:
        raise BadBundle(f"{folder}: {error}") from None
    for name, (dtype, _) in ITEM_TENSORS.items():
        least = -MOST if name == "bias" else 0
        if dtype is np.float32 and not ((table[name] >= least) & (table[name] <= MOST)).all():
            raise BadBundle(
                f"{where}: {name} has a value that is not finite or not from {least:.0e} to {MOST:.0e}; "
                "export the bundle again"
            )
    ids = _item_ids(folder, content["item_ids.json"])
    unknown = dequantise(table["unknown_vector"], table["unknown_scale"][0])
    items = Items(ids, table["vectors"], table["scales"], table["bias"], table["popularity"], unknown)
    if len(items.row) != len(ids):  # it is needed at any rate, and a set would be as large
        raise BadBundle(f"{folder}: {_DIFFERENT}; export it again")
    return items


_DIFFERENT = "item_ids.json is not a list of different strings or integers"


def _item_ids(folder: Path, content: bytes) -> list[ItemId]:
    try:
        ids = strict_json.loads(content, len(content), deepest=1)
    except ValueError as error:
        raise BadBundle(f"{folder}: {_DIFFERENT} ({one_line(error)}); export it again") from None
    if not isinstance(ids, list) or not all(type(item) in (str, int) for item in ids):
        raise BadBundle(f"{folder}: {_DIFFERENT}; export it again")
    return ids
