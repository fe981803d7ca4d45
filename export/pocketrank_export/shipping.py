"""Export a model in the form that keeps within a budget: make the variants, measure each, put one in place.

All are made of one float32 export, which is held to its own hard limit first. A variant may lose quality instead, but
no more than the budget says. Nothing is written where none fits.
"""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pocketrank import engines
from pocketrank.atomic import folder_beside
from pocketrank.bundle import Bundle
from pocketrank.errors import MissingExtra, PocketRankError, is_interrupt
from pocketrank_export import exporting
from pocketrank_export.examples import Builder
from pocketrank_export.exporting import Sign, parity_facts, parts_in, signed, tell, write_manifest
from pocketrank_export.fidelity import FP32, METRIC, Fidelity, fidelity
from pocketrank_export.report import table
from pocketrank_export.shared_weights import share_weights
from pocketrank_export.trained import Trained
from pocketrank_export.variants import WITH_WEIGHTS, calibration, write_variant

LOSS = 0.002
MB = 1e6
CALLED = {"ndcg_10": "NDCG@10", "log_loss": "log loss", "rmse": "RMSE"}


@dataclass(frozen=True)
class Budget:
    """What a variant may cost.

    Attributes:
        loss: of NDCG@10 at most, or more log loss or RMSE, by the model's head.
        mb: megabytes of all that an app ships, with the graphs of one engine; None for any number.
    """

    loss: float = LOSS
    mb: float | None = None


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        variant: its name.
        bytes: of "onnx" and "tflite" graphs, "items", and "rest": golden cases and manifest.
        kept: graph files that stay float32, being smaller so.
        of: what was measured, by engine; nothing where it was refused.
        refused: why it cannot be had; "" where it can.
    """

    variant: str
    bytes: Mapping[str, int] = field(default_factory=dict)
    kept: Sequence[str] = ()
    of: Mapping[str, Fidelity] = field(default_factory=dict)
    refused: str = ""

    def shipped(self, kind: str) -> int:
        """Bytes of all that an app ships which runs graphs of one format."""
        return self.bytes[kind] + self.bytes["items"] + self.bytes["rest"]

    @property
    def bundle(self) -> int:
        """The same of the format whose graphs are larger."""
        return max(self.shipped(kind) for kind in exporting.LEAST_ENGINE)

    @property
    def loss(self) -> float:
        """Of the engine that loses more."""
        return max(one.quality.loss for one in self.of.values())

    @property
    def distance(self) -> float:
        """The greatest difference of any output from the model's own."""
        return max(one.parity.max_abs_diff for one in self.of.values())

    def facts(self) -> dict[str, Any]:
        """As JSON shows it."""
        if self.refused:
            return {"refused": self.refused}
        of = {
            engine: {
                "parity": parity_facts(one.parity),
                "quality": one.quality.facts(),
                "request_ms": float(f"{one.request_ms:.2g}"),
            }
            for engine, one in self.of.items()
        }
        return {
            "bytes": {**self.bytes, "bundle": self.bundle},
            "kept_fp32": list(self.kept),
            "loss": round(self.loss, 5),
            "of": of,
        }


@dataclass(frozen=True)
class Shipped:
    """What was found.

    Attributes:
        rows: by variant.
        chosen: the variant that is in place now; "" where none fits.
        why: none fits, and what comes nearest.
    """

    rows: Mapping[str, Row]
    chosen: str
    why: str = ""


def ship(
    trained: Trained,
    builder: Builder,
    quality: Mapping[str, Any],
    folder: Path,
    variants: Sequence[str],
    budget: Budget,
    *,
    is_encoder_too: bool,
    sign: Sign | None = None,
    attributes: bytes = b"",
) -> Shipped:
    """Export the best of some variants.

    Args:
        trained: the model.
        builder: of its log.
        quality: what `evaluate` measured, for the manifest.
        folder: the bundle; an old one is replaced where a variant fits.
        variants: to choose from.
        budget: what it may cost.
        is_encoder_too: quantise the encoder as well, which gives another encoder_id.
        sign: makes a signature of the manifest's bytes; None leaves the bundle unsigned.
        attributes: content of `item_attributes.json`; empty for none.

    Raises:
        UsageError: the model has no fusion, so there is nothing to run on a phone.
        CheckFailed: an engine does not agree with the float32 graphs; nothing is written.
        MissingExtra: no engine is installed to measure variants on.
        NotReady: the log has nothing to ask.
    """
    there = engines.installed()
    if not there:
        raise MissingExtra("variants are measured on an engine; install one with: pip install 'pocketrank[onnx]'")
    names = [name for name in WITH_WEIGHTS if is_encoder_too or name != "encoder"]
    with tempfile.TemporaryDirectory(prefix="pocketrank-") as room:
        places = {FP32: Path(room) / FP32}
        places[FP32].mkdir()
        parity = exporting.fill(places[FP32], trained, builder, quality, attributes=attributes)
        kept: dict[str, list[str]] = {}
        refused: dict[str, str] = {}
        for variant in variants:
            if variant != FP32:
                places[variant] = Path(room) / variant
                made = _make(trained, variant, names, places[FP32], places[variant], there)
                kept[variant], refused[variant] = made
        bundles = {v: Bundle.open(place) for v, place in places.items() if not refused.get(v)}
        of = fidelity(trained, builder, bundles, there)
        rows = {}
        for variant in variants:
            found = {engine: of[variant, engine] for engine in there if (variant, engine) in of}
            reason = refused.get(variant, "") or _is_finite(found)
            if variant != FP32 and not reason:
                parity = {engine: parity_facts(one.parity) for engine, one in found.items()}
                told = {"against_fp32": {engine: one.quality.facts() for engine, one in found.items()}}
                write_manifest(places[variant], trained, {**quality, **told}, parity, variant)
            rows[variant] = (
                Row(variant, refused=reason)
                if reason
                else Row(variant, _bytes(places[variant]), kept.get(variant, ()), found)
            )
        chosen = choose(list(rows.values()), budget)
        if chosen is None:
            return Shipped(rows, "", none_fits(list(rows.values()), budget))
        with folder_beside(folder) as draft:
            shutil.copytree(places[chosen.variant], draft, dirs_exist_ok=True)
            signed(draft, sign)
    return Shipped(rows, chosen.variant)


def choose(rows: Sequence[Row], budget: Budget) -> Row | None:
    """The variant that keeps within a budget: with megabytes given the one that loses least, else the smallest.

    Of those that lose alike, the one nearest to the model's own numbers. None where none fits.
    """
    fit = [row for row in rows if not row.refused and row.loss <= budget.loss and _is_small(row, budget)]
    if budget.mb is None:
        return min(fit, key=lambda row: (row.bundle, row.distance), default=None)
    return min(fit, key=lambda row: (row.loss, row.distance), default=None)


def none_fits(rows: Sequence[Row], budget: Budget) -> str:
    """A line that says so, and what comes nearest: the smallest of those that lose little, or what loses least."""
    there = [row for row in rows if not row.refused]
    if not there:
        return f"export: {'; '.join(f'{row.variant} is refused: {row.refused}' for row in rows)}; nothing is written"
    good = [row for row in there if row.loss <= budget.loss]
    near = min(good, key=lambda row: row.bundle) if good else min(there, key=lambda row: row.loss)
    worst = max(near.of.values(), key=lambda one: one.quality.loss).quality
    called = CALLED[worst.metric]
    size = near.bundle / MB
    wanted = f"a loss of {budget.loss:g} {called}" + (f" and {budget.mb:g} MB" if budget.mb is not None else "")
    more = "--budget-mb" if good else "--budget-loss"
    return (
        f"export: no variant keeps within {wanted}; nearest is {near.variant}, {size:.3f} MB, which loses "
        f"{worst.loss:.4f} ± {worst.difference.error:.4f} {called}; raise {more}; nothing is written"
    )


def text(rows: Sequence[Row]) -> str:
    """The table of what was found, a line for each variant and engine."""
    metric = CALLED[next((one.quality.metric for row in rows for one in row.of.values()), METRIC["next_item"])]
    head = ["", "engine", "graphs MB", "items MB", "bundle MB", metric, "to fp32", "max diff", "best 20", "request ms"]
    lines, notes = [], []
    for row in rows:
        for engine, one in row.of.items():
            kind = engines.ENGINES[engine][0].suffix.removeprefix(".")
            apart = one.quality.difference
            lines.append(
                [
                    row.variant,
                    engine,
                    *(f"{n / MB:.3f}" for n in (row.bytes[kind], row.bytes["items"], row.shipped(kind))),
                    f"{one.quality.value:.4f}",
                    "" if row.variant == FP32 else f"{apart.mean:+.4f} ± {apart.error:.4f}",
                    f"{one.parity.max_abs_diff:.1e}",
                    f"{one.parity.order_same}/{one.parity.cases}",
                    f"{one.request_ms:.2g}",
                ]
            )
        if row.refused:
            notes.append(f"{row.variant} is refused: {row.refused}")
        if row.kept:
            notes.append(f"{row.variant}: {', '.join(row.kept)} would be larger, and stay float32")
    return "\n".join([table(head, lines), *notes])


def _make(
    trained: Trained, variant: str, names: Sequence[str], source: Path, place: Path, there: Sequence[str]
) -> tuple[list[str], str]:
    """A variant's folder; returns which files stay float32, and why it cannot be had, "" where it can."""
    shutil.copytree(source, place)
    bundle, kept = Bundle.open(source), list[str]()
    files = [f"{name}{suffix}" for name in names for suffix in (".onnx", ".tflite")]
    parts = [f"{name}.onnx" for name in parts_in(source)]
    for file in [*files, *parts]:
        if file in parts and "state.onnx" in kept:
            continue  # its weights are those of the file that stayed
        path = place / file
        try:
            tell(file, write_variant(variant, source / file, path, calibration(bundle, path.stem)))
            if file in parts:
                share_weights(path, place / "state.onnx")
        except Exception as error:  # what a converter raises is its own affair
            if is_interrupt(error):
                raise
            return kept, f"{file} cannot be made: {_told(error)}"
        if file in files and _is_larger(path, source / file):
            shutil.copy(source / file, path)
            kept.append(file)
    if len(kept) == len(files):
        return kept, f"{', '.join(kept)} would all be larger than in fp32"
    if reason := _cannot_run(place, there):
        return kept, reason
    write_manifest(place, trained, {}, {}, variant)
    return kept, ""


def _is_larger(path: Path, whole: Path) -> bool:
    return path.stat().st_size >= whole.stat().st_size


def _cannot_run(place: Path, there: Sequence[str]) -> str:
    for engine in there:
        for name in [*exporting.GRAPHS, *(parts_in(place) if engine == "onnx" else ())]:
            try:
                engines.load(place, name, engine)
            except PocketRankError as error:
                return f"{engine} does not load it: {_told(error)}"
    return ""


def _is_finite(found: Mapping[str, Fidelity]) -> str:
    wrong = [engine for engine, one in found.items() if not np.isfinite(one.parity.max_abs_diff)]
    return f"its outputs are not finite on {', '.join(wrong)}" if wrong else ""


def _bytes(place: Path) -> dict[str, int]:
    size = {path.name: path.stat().st_size for path in place.iterdir()}
    graphs = {kind: sum(n for name, n in size.items() if name.endswith(f".{kind}")) for kind in exporting.LEAST_ENGINE}
    items = size["items.safetensors"] + size["item_ids.json"]
    return {**graphs, "items": items, "rest": sum(size.values()) - sum(graphs.values()) - items}


def _is_small(row: Row, budget: Budget) -> bool:
    return budget.mb is None or row.bundle <= budget.mb * MB


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
