"""Write a bundle: graphs in both formats, item table, vocabulary, golden cases, manifest. Reproducible.

Same model, same bytes, on one machine and engine version: headers in a fixed order, no clock, no paths.
"""

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pocketrank import engines, selftest, tensors
from pocketrank.atomic import folder_beside
from pocketrank.attributes import FILE_NAME as ATTRIBUTES
from pocketrank.bundle import FORMAT, Bundle, Items, Manifest
from pocketrank.errors import CheckFailed, UsageError
from pocketrank.quantise import dequantise, quantise
from pocketrank.segments import policy_settings
from pocketrank.signing import SIGNATURE
from pocketrank_cli.command import progress
from pocketrank_export.catalogue_graph import to_catalogue
from pocketrank_export.examples import Builder
from pocketrank_export.fusion import Causal
from pocketrank_export.golden import golden_cases
from pocketrank_export.graphs import PARTED, to_onnx, to_tflite
from pocketrank_export.shared_weights import share_weights
from pocketrank_export.trained import Trained

LEAST_RUNTIME = "0.1.0"
LEAST_ENGINE = {"onnx": "onnxruntime 1.19", "tflite": "tflite-runtime 2.14"}
GRAPHS = ("encoder", "state", "memory", "score")
Sign = Callable[[bytes], bytes]
ENCODER_FILES = ("encoder.onnx", "items.safetensors", "item_ids.json")


def write_bundle(
    trained: Trained,
    builder: Builder,
    quality: Mapping[str, Any],
    folder: Path,
    sign: Sign | None = None,
    ready: Path | None = None,
    attributes: bytes = b"",
) -> dict[str, Any]:
    """Export, hold every installed engine against the golden cases, and put the bundle in place.

    Args:
        trained: the model.
        builder: a history to take golden cases from.
        quality: what `evaluate` measured, for the manifest.
        folder: the bundle; an old one is replaced when the new one is whole.
        sign: makes a signature of the manifest's bytes; None leaves the bundle unsigned.
        ready: a folder of graphs of this very model that are not exported again; the golden cases hold them as well.
        attributes: content of `item_attributes.json`; empty for none.

    Returns:
        Parity by engine.

    Raises:
        UsageError: the model has no fusion, so there is nothing to run on a phone.
        CheckFailed: an engine does not agree with the model; nothing is written.
    """
    with folder_beside(folder) as draft:
        parity = fill(draft, trained, builder, quality, ready, attributes)
        signed(draft, sign)
    return parity


def hold_replaceable(folder: Path) -> None:
    """Refuse to put a bundle in the place of anything but a bundle.

    Raises:
        UsageError: something else is there.
    """
    if folder.is_dir() and (not any(folder.iterdir()) or (folder / "manifest.json").is_file()):
        return
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"export: {folder} is there, and no bundle, so it stays; give another folder: --out")


def signed(folder: Path, sign: Sign | None) -> None:
    """Put the signature of a whole bundle beside its manifest."""
    if sign is not None:
        (folder / SIGNATURE).write_bytes(sign((folder / "manifest.json").read_bytes()))


def fill(
    folder: Path,
    trained: Trained,
    builder: Builder,
    quality: Mapping[str, Any],
    ready: Path | None = None,
    attributes: bytes = b"",
) -> dict[str, Any]:
    """The same into an empty folder, which is nobody's bundle yet."""
    import torch  # noqa: PLC0415

    if trained.model.fusion is None:
        raise UsageError('[model] fusion is "none": a baseline, not a model to ship; choose another and train again')
    sizes, items = trained.sizes, item_table(trained)
    jobs = [(name, write) for name in GRAPHS for write in (to_onnx, to_tflite)]
    if isinstance(trained.model.fusion, Causal) and "state" in GRAPHS:
        jobs += [(name, to_onnx) for name in PARTED]
    for name, write in progress(jobs, len(jobs), "export", "graphs"):
        path = folder / f"{name}.{'onnx' if write is to_onnx else 'tflite'}"
        if ready is not None and (ready / path.name).is_file():
            shutil.copyfile(ready / path.name, path)
        else:
            tell(path.name, write(trained.model, sizes, name, path))
    for name in parts_in(folder):
        share_weights(folder / f"{name}.onnx", folder / "state.onnx")
    if sizes.H == 1:
        to_catalogue(sizes, folder / "catalogue.onnx")
    write_items(folder, items)
    if attributes:
        (folder / ATTRIBUTES).write_bytes(attributes)
    cases = golden_cases(trained.model, items, sizes, builder)
    reference = {"reference": f"torch {torch.__version__.partition('+')[0]}"}
    tensors.save(folder / "golden.safetensors", cases, reference)
    write_manifest(folder, trained, quality, {})
    parity = {name: parity_facts(_held(folder, name)) for name in engines.installed()}
    write_manifest(folder, trained, quality, parity)
    return parity


def parts_in(folder: Path) -> list[str]:
    """The graphs that a bundle's state graph is parted into; none where its fusion is not causal."""
    return [name for name in PARTED if (folder / f"{name}.onnx").is_file()]


def tell(name: str, remarks: Sequence[str]) -> None:
    """Say what a converter said of a file, a line each."""
    for remark in remarks or ():
        sys.stderr.write(f"pocketrank: export: {name}: its converter says: {remark}\n")


def parity_facts(parity: selftest.Parity) -> dict[str, Any]:
    """As a manifest shows it; the limit follows from the variant."""
    return {name: value for name, value in dataclasses.asdict(parity).items() if name != "limit"}


def item_table(trained: Trained) -> Items:
    """The int8 item table that every client reads."""
    weights = trained.model.item_vectors().detach().cpu().numpy()
    vectors, scales = quantise(weights)
    counts = trained.vocabulary.counts
    return Items(
        ids=trained.vocabulary.items,
        vectors=vectors[:-1],
        scales=scales[:-1],
        bias=trained.model.bias.detach().cpu().numpy(),
        popularity=(counts / counts.sum()).astype(np.float32),
        unknown=dequantise(vectors[-1], scales[-1]),
    )


def write_items(folder: Path, items: Items) -> None:
    """Write a bundle's item table and ids."""
    unknown, scale = quantise(items.unknown)
    table: tensors.Tensors = {
        "vectors": items.vectors,
        "scales": items.scales,
        "bias": items.bias,
        "popularity": items.popularity,
        "unknown_vector": unknown,
        "unknown_scale": scale[None],
    }
    tensors.save(folder / "items.safetensors", table, {})
    (folder / "item_ids.json").write_text(json.dumps(items.ids, ensure_ascii=False) + "\n", encoding="utf-8")


def _held(folder: Path, engine: str) -> selftest.Parity:
    parity = selftest.check(Bundle.open(folder), engine)
    if not parity.ok:
        raise CheckFailed(
            f"export: {engine} differs from the model by {parity.max_abs_diff:.1e} "
            f"({parity.excess:.1f} times the limit), the same order in {parity.order_same} of {parity.cases} cases; "
            "no bundle is written"
        )
    return parity


def write_manifest(
    folder: Path, trained: Trained, quality: Mapping[str, Any], parity: Mapping[str, Any], variant: str = "fp32"
) -> None:
    """Write what a bundle says of its model and of the files that lie there, the last one of them."""
    hashes = {
        path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.name not in ("manifest.json", SIGNATURE)
    }
    model_id, encoder_id = _digest(hashes.values()), _digest(hashes[name] for name in ENCODER_FILES)
    manifest = manifest_of(trained, model_id, encoder_id, hashes, quality, parity)
    manifest = dataclasses.replace(manifest, variant=variant, graphs=graphs_of(folder))
    (folder / "manifest.json").write_bytes(manifest.to_bytes())


def graphs_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes of the graphs by format, and the oldest engine that they were tried on."""
    import onnx  # noqa: PLC0415

    found: dict[str, dict[str, Any]] = {}
    for kind, least in LEAST_ENGINE.items():
        paths = sorted(folder.glob(f"*.{kind}"))
        if not paths:
            continue
        found[kind] = {"bytes": sum(path.stat().st_size for path in paths), "least_engine": least}
        if kind == "onnx":
            protos = [onnx.load(path, load_external_data=False) for path in paths]
            found[kind]["ir_version"] = max(proto.ir_version for proto in protos)
            found[kind]["opset"] = max(one.version for proto in protos for one in proto.opset_import if not one.domain)
    return found


def manifest_of(
    trained: Trained,
    model_id: str,
    encoder_id: str,
    files: Mapping[str, Mapping[str, Any]],
    quality: Mapping[str, Any],
    parity: Mapping[str, Any],
) -> Manifest:
    """What a bundle says of a model; arguments are fields of `Manifest`."""
    return Manifest(
        format=FORMAT,
        model_id=model_id,
        encoder_id=encoder_id,
        least_runtime=LEAST_RUNTIME,
        sizes=dataclasses.asdict(trained.sizes),
        behaviors=trained.vocabulary.behaviors,
        weights=trained.weights,
        policy=policy_settings(trained.policy),
        compaction=trained.compaction,
        lateness_s=trained.lateness_s,
        fusion=trained.config.fusion,
        memory_half_life_s=trained.half_life_s,
        files=files,
        quality=quality,
        parity=parity,
    )


def _digest(hashes: Any) -> str:
    return hashlib.sha256("".join(facts["sha256"] for facts in hashes).encode()).hexdigest()[:12]
