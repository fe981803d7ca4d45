"""What is spoiled: two small bundles that differ in all they can, signed, and packs of their users."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pocketrank.attributes import FILE_NAME as ATTRIBUTES
from pocketrank.bundle import Bundle
from pocketrank.compaction import Kept
from pocketrank.pack import Pack
from pocketrank.quantise import quantise
from pocketrank.signing import new_keys, signer

from ..bundles import edit_manifest, write_bundle

START_S = 1_700_000_000


@dataclass(frozen=True)
class Seed:
    """A bundle, its files, and packs that it takes.

    Attributes:
        files: name -> content. key: the public key that signed it, PEM. packs: as files' contents.
    """

    files: dict[str, bytes]
    key: bytes
    packs: list[bytes]

    @property
    def graphs(self) -> list[str]:
        """Names of the graphs' files."""
        return sorted(name for name in self.files if name.endswith(".onnx"))


def make_seeds(folder: Path, given: Path | None = None) -> list[Seed]:
    """Write the bundles once, read them, and make packs; of one bundle alone where it is given."""
    new_keys(folder / "key.pem")
    if given is not None:
        return [_seed(Path(shutil.copytree(given, folder / "given")), folder)]
    ring = write_bundle(folder / "ring", [f"p-{number}" for number in range(12)], items_remembered=64)
    log = write_bundle(
        folder / "log",
        list(range(40, 60)),
        behaviors=("", "view", "buy", "like"),
        policy={"kind": "adaptive", "factor": 4, "lookback": 3, "min_gap_s": 600, "max_gap_s": 86400, "max_events": 6},
        compaction={"kind": "log", "levels": 2},
        slots=7,
        length=6,
        lateness_s=60,
        is_parted=True,
    )
    values = {"category": ["dairy", None, "bread", "fruit"] * 5, "labels": [["fresh"], [], None, ["a", "b"]] * 5}
    (log / ATTRIBUTES).write_text(json.dumps(values))
    return [_seed(bundle, folder) for bundle in (ring, log)]


def refreshed(files: dict[str, bytes]) -> dict[str, bytes]:
    """The same files, named by the manifest as they are now."""
    manifest = json.loads(files["manifest.json"])
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in files.items()
        if name not in ("manifest.json", "manifest.sig")
    }
    return {**files, "manifest.json": json.dumps(manifest).encode()}


def _seed(folder: Path, keys: Path) -> Seed:
    behaviors = json.loads((folder / "manifest.json").read_bytes())["behaviors"]
    edit_manifest(folder, weights={behaviors[-1]: 2.0}, quality={"users": 3, "ndcg_10": {"pocketrank": 0.25}})
    (folder / "manifest.sig").write_bytes(signer(keys / "key.pem")((folder / "manifest.json").read_bytes()))
    bundle, key = Bundle.open(folder), (keys / "key.pub.pem").read_bytes()
    return Seed(
        {path.name: path.read_bytes() for path in folder.iterdir()},
        key,
        [_pack(bundle, closed, items).to_bytes() for closed, items in ((0, 0), (1, 1), (5, 3), (40, 9))],
    )


def _pack(bundle: Bundle, closed: int, items: int) -> Pack:
    """The pack of a user with so many closed segments and remembered items."""
    rng = np.random.default_rng(closed)
    sizes, compaction = bundle.sizes, bundle.compaction
    ordinal = np.arange(closed)
    start_us = (START_S + 90_000 * ordinal) * 1_000_000
    vectors, scales = quantise(rng.normal(size=(closed, sizes.K, sizes.D)).astype(np.float32))
    new = Kept(
        vectors=vectors,
        scales=scales,
        start_us=start_us,
        end_us=start_us + 60_000_000,
        weight=rng.uniform(0, 9, closed).astype(np.float32),
        n_events=rng.integers(1, sizes.L, closed),
        ordinal_first=ordinal,
        ordinal_last=ordinal,
        level=0 * ordinal,
        top_items=rng.integers(-1, sizes.I, (closed, sizes.T)).astype(np.int32),
        behavior_counts=np.zeros((closed, 0), np.int64),
    )
    none, ends = Kept.none(sizes.K, sizes.D, sizes.T, 0), np.array([0, closed])
    kept = compaction.compact(none, np.array([0, 0]), new, ends, np.array([0])).kept
    last_us = int(kept.end_us.max(initial=0))
    first_s = np.full(items, START_S)
    return Pack(
        encoder_id=bundle.manifest.encoder_id,
        version=(1, last_us),
        through=(last_us, min(closed, 1)),
        vectors=kept.vectors,
        scales=kept.scales,
        start_s=kept.start_us // 1_000_000,
        end_s=kept.end_us // 1_000_000,
        weight=kept.weight,
        n_events=kept.n_events.astype(np.int32),
        level=kept.level.astype(np.int8),
        ordinal_first=kept.ordinal_first.astype(np.int32),
        ordinal_last=kept.ordinal_last.astype(np.int32),
        top_items=kept.top_items,
        memory_items=np.arange(items, dtype=np.int32),
        memory_counts=rng.integers(1, 9, items).astype(np.float32),
        memory_decayed=rng.uniform(0, 9, items).astype(np.float32),
        memory_first_s=first_s,
        memory_last_s=first_s + rng.integers(0, 10**6, items),
        recent_us=tuple(last_us - 1_000_000 * back for back in (2, 1, 0)) if closed > 1 else (),
    )
