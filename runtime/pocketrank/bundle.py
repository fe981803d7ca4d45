"""What the app ships: graphs, item table, vocabulary, golden cases, manifest. No user data. `pocketrank.bundle/1`.

Opening a bundle checks every file it names against its hash; nothing in a bundle is trusted before that.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank import tensors
from pocketrank.compaction import Compaction, compaction_from
from pocketrank.config import parse
from pocketrank.errors import BadBundle, BadConfig, BadTensors
from pocketrank.quantise import dequantise
from pocketrank.segments import BoolArray, Policy, milestones, missing_behaviors, policy_from

FORMAT = "pocketrank.bundle/1"
ItemId = str | int
Int64Array = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


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


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`: what is in the bundle and how it was measured; see docs/formats.md."""

    format: str
    model_id: str
    encoder_id: str
    least_runtime: str
    sizes: Mapping[str, int]
    behaviors: list  # type: ignore[type-arg]
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
    """An opened bundle: its manifest and item table; the graphs are files for `engines` to load."""

    folder: Path
    manifest: Manifest
    items: Items

    @classmethod
    def open(cls, folder: str | Path) -> "Bundle":
        """Open a bundle and check every file against the manifest.

        Raises:
            BadBundle: no bundle there, another format, a file missing, altered or not named, or sizes or behaviours
                that disagree.
        """
        folder = Path(folder)
        manifest = _manifest(folder)
        _check_files(folder, manifest)
        opened = cls(folder, manifest, _items(folder))
        opened._check_numbers()
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

    def _check_numbers(self) -> None:
        """Hold the manifest's numbers and names against the item table and each other."""
        try:
            sizes, policy, _ = self.sizes, self.policy, self.compaction
        except BadConfig as error:
            raise BadBundle(f"{error}; export the bundle again") from None
        found = (len(self.items.ids), *self.items.vectors.shape)
        if found != (sizes.I, sizes.I, sizes.D):
            raise BadBundle(
                f"{self.folder}: {found[0]} ids and item vectors {found[1:]}, the manifest says I={sizes.I}, "
                f"D={sizes.D}; export the bundle again"
            )
        if policy.max_events > sizes.L:
            raise BadBundle(
                f"{self.folder}: segments hold up to {policy.max_events} events, the encoder takes {sizes.L}; "
                "export the bundle again"
            )
        for name in missing_behaviors(policy, self.manifest.behaviors):
            raise BadBundle(
                f"{self.folder}: {name!r} is to close segments and is not among its behaviours; export the bundle again"
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


def _manifest(folder: Path) -> Manifest:
    path = folder / "manifest.json"
    if not path.is_file():
        raise BadBundle(f"{folder}: no manifest.json in it, so not a bundle; make one with: pocketrank export")
    try:
        found = json.loads(path.read_bytes())
        form = found.get("format")
    except (ValueError, AttributeError) as error:
        raise BadBundle(f"{path}: not JSON ({error}); fetch or export the bundle again") from None
    if form != FORMAT:
        raise BadBundle(f"{path}: format is {form!r}, this version reads {FORMAT!r}; update pocketrank or export again")
    try:
        return parse(Manifest, found, str(path))
    except (BadConfig, TypeError) as error:
        raise BadBundle(f"{error}; export the bundle again") from None


def _items(folder: Path) -> Items:
    try:
        table, _ = tensors.read(folder / "items.safetensors")
        tensors.checked(table, ITEM_TENSORS, str(folder / "items.safetensors"), {"1": 1})
        ids = json.loads((folder / "item_ids.json").read_text(encoding="utf-8"))
    except (BadTensors, ValueError) as error:
        raise BadBundle(f"{folder}: {error}") from None
    if not isinstance(ids, list) or not all(type(item) in (str, int) for item in ids) or len(set(ids)) != len(ids):
        raise BadBundle(f"{folder}: item_ids.json is not a list of different strings or integers; export it again")
    unknown = dequantise(table["unknown_vector"], table["unknown_scale"][0])
    return Items(ids, table["vectors"], table["scales"], table["bias"], table["popularity"], unknown)


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Every file that is named is whole, and every file that would be read is named."""
    read = {path.name for kind in ("*.onnx", "*.tflite", "*.safetensors") for path in folder.glob(kind)}
    for name in sorted({*NEEDED, *read} - set(manifest.files)):
        raise BadBundle(f"{folder / name}: the manifest does not name it; fetch or export the bundle again")
    for name, facts in manifest.files.items():
        _check_file(folder / name, facts)


def _check_file(path: Path, facts: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise BadBundle(f"{path}: missing, the manifest names it; fetch or export the bundle again")
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != facts.get("sha256") or len(content) != facts.get("size"):
        wanted = str(facts.get("sha256"))
        raise BadBundle(
            f"{path}: altered: sha256 {found[:12]} ({len(content)} bytes), wanted {wanted[:12]} "
            f"({facts.get('size')} bytes); fetch or export the bundle again"
        )
