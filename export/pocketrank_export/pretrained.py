"""`pocketrank train --init-from FILE`: start from vectors and an encoder that were trained elsewhere.

FILE is safetensors; of what docs/model.md names, it holds what it has: item vectors, an encoder, or both. A project's
own `model/weights.safetensors` is such a file. What it lacks starts as without it; what it has must fit.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketrank import tensors
from pocketrank.errors import BadConfig, BadTensors
from pocketrank.quantise import FloatArray
from pocketrank_export.history import Vocabulary
from pocketrank_export.model import Model
from pocketrank_export.trained import WEIGHTS, Trained

ITEMS = ("items", "model.items.weight")
ENCODER = ("encoder.", "model.encoder.")
BEHAVIOR = "behavior.weight"
CONTENT = "model.content."
FREEZABLE = ("items", "encoder")


@dataclass(frozen=True, eq=False)
class Pretrained:
    """What a file has to start from.

    Attributes:
        path: the file. sha256: of its content.
        items: (N, D) float32, or None. item_ids: N ids of them.
        unknown: (D,) float32 that stands for an unknown item, or None.
        encoder: tensors of an encoder by their names in it; empty where there is none.
        behaviors: what the rows of its behaviour embedding stand for; None where the file does not say.
    """

    path: Path
    sha256: str
    items: FloatArray | None
    item_ids: list[Any]
    unknown: FloatArray | None
    encoder: dict[str, FloatArray]
    behaviors: list[str] | None

    @classmethod
    def read(cls, path: Path) -> "Pretrained":
        """Read a file.

        Raises:
            BadTensors: no such file, not whole, nothing to start from in it, or not what its names promise.
        """
        arrays, metadata = tensors.read(path)
        said = _said(path, metadata)
        items = next((_floats(path, name, arrays[name]) for name in ITEMS if name in arrays), None)
        if any(name.startswith(CONTENT) for name in arrays):
            items = _with_content(path)
        encoder = {
            name.removeprefix(prefix): _floats(path, name, array)
            for prefix in ENCODER
            for name, array in arrays.items()
            if name.startswith(prefix)
        }
        if items is None and not encoder:
            found = ", ".join(sorted(arrays)[:3]) or "none"
            raise BadTensors(
                f"{path}: tensors are {found}{' ...' if len(arrays) > 3 else ''}, wanted 'items' or 'encoder.*'; "
                "see docs/model.md, Starting from what is there"
            )
        ids, unknown = said.get("item_ids", []), None
        if items is not None:
            if (
                ITEMS[0] not in arrays and len(items) == len(ids) + 1
            ):  # a project's own table ends with the unknown item
                items, unknown = items[:-1], items[-1]
            if items.ndim != 2 or len(items) != len(ids):
                raise BadTensors(
                    f"{path}: items are {items.shape} and there are {len(ids)} item_ids, wanted one a row; "
                    "write their list into the metadata, item_ids, as JSON"
                )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(path, digest, items, ids, unknown, encoder, said.get("behaviors"))

    def into(self, model: Model, vocabulary: Vocabulary) -> dict[str, Any]:
        """Overwrite a model's fresh weights.

        Returns:
            What was taken, for the run's record: file, sha256, items (how many of the vocabulary), encoder (whether).

        Raises:
            BadTensors: another width, no item of the vocabulary, or another encoder than [model] names.
        """
        taken = 0
        if self.items is not None:
            taken = self._items_into(model, self.items, vocabulary)
        if self.encoder:
            self._encoder_into(model, vocabulary)
        return {"file": str(self.path), "sha256": self.sha256, "items": taken, "encoder": bool(self.encoder)}

    def _items_into(self, model: Model, items: FloatArray, vocabulary: Vocabulary) -> int:
        width = model.config.width
        if items.shape[1] != width:
            raise BadTensors(
                f"{self.path}: item vectors have {items.shape[1]} columns, wanted {width} as [model] width; set width "
                f"to {items.shape[1]}, or write them with {width}"
            )
        place = {item: row for row, item in enumerate(self.item_ids)}
        rows = np.array([place.get(item, -1) for item in vocabulary.items], np.int64)
        known = np.flatnonzero(rows >= 0)
        if not len(known):
            raise BadTensors(
                f"{self.path}: none of its {len(place)} item_ids, such as {self.item_ids[:1]}, is among the log's "
                f"{len(rows)} items, such as {vocabulary.items[:1]}; write the ids as the log has "
                "them, or leave the items out"
            )
        with torch.no_grad():
            model.items.weight[torch.from_numpy(known)] = torch.from_numpy(items[rows[known]])
            if self.unknown is not None:
                model.items.weight[-1] = torch.from_numpy(self.unknown)
        return len(known)

    def _encoder_into(self, model: Model, vocabulary: Vocabulary) -> None:
        fresh = model.encoder.state_dict()
        given = {name: torch.from_numpy(array) for name, array in self.encoder.items()}
        if self.behaviors is not None and BEHAVIOR in given and len(given[BEHAVIOR]) == len(self.behaviors):
            place = {name: row for row, name in enumerate(self.behaviors)}
            theirs, given[BEHAVIOR] = given[BEHAVIOR], fresh[BEHAVIOR].clone()
            for row, name in enumerate(vocabulary.behaviors):
                if name in place and theirs.shape[1:] == given[BEHAVIOR].shape[1:]:
                    given[BEHAVIOR][row] = theirs[place[name]]
        for name in sorted(fresh.keys() | given.keys()):
            found, wanted = (str(tuple(part[name].shape)) if name in part else "absent" for part in (given, fresh))
            if found != wanted:
                raise BadTensors(
                    f"{self.path}: encoder.{name} is {found}, wanted {wanted} by [model] encoder, encoder_layers, "
                    "vectors and width; set them as they were when the file was trained"
                )
        model.encoder.load_state_dict(given)


def freeze(model: Model, names: list[str]) -> None:
    """Leave parts of a model as they are while it trains.

    Args:
        model: whose.
        names: "items" and "encoder", any of them.

    Raises:
        BadConfig: another name.
    """
    for name in names:
        if name not in FREEZABLE:
            raise BadConfig(f"[training] freeze: found {name!r}, wanted any of {', '.join(FREEZABLE)}")
        getattr(model, name).requires_grad_(False)
        if name == "items" and model.content is not None:
            model.content.requires_grad_(False)  # a part of item vectors


def _said(path: Path, metadata: dict[str, str]) -> dict[str, list[Any]]:
    """Lists of item_ids and behaviors, of the file itself or, of a project's weights, of the model.json beside them."""
    beside = path.with_name("model.json")
    found: dict[str, Any] = {}
    where = path
    try:
        if path.name == WEIGHTS and beside.is_file():
            where = beside
            facts = json.loads(beside.read_text(encoding="utf-8"))
            found = {"item_ids": facts["items"], "behaviors": facts["behaviors"]}
        where = path
        found |= {name: json.loads(metadata[name]) for name in ("item_ids", "behaviors") if name in metadata}
    except (ValueError, KeyError, TypeError) as error:
        raise BadTensors(f"{where}: item_ids or behaviors are no JSON list ({error}); write it again") from None
    for name, values in found.items():
        if not isinstance(values, list) or not all(type(value) in (str, int) for value in values):
            raise BadTensors(f"{path}: {name} is no JSON list of strings or integers; write it again")
        if len(set(values)) != len(values):
            raise BadTensors(f"{path}: {name} names one twice; write it again with each once")
    return found


def _with_content(path: Path) -> FloatArray:
    """Item vectors of a project's weights, of which those of the ids are a part only."""
    if path.name != WEIGHTS or not path.with_name("model.json").is_file():
        raise BadTensors(
            f"{path}: its item vectors are made of content, too, which the model.json beside {WEIGHTS} says how to do; "
            "give the file in its model folder"
        )
    with torch.no_grad():
        return Trained.open(path.parent).model.item_vectors().numpy()


def _floats(path: Path, name: str, array: Any) -> FloatArray:
    if array.dtype.kind != "f":
        raise BadTensors(f"{path}: {name} is {array.dtype}, wanted float32; write it again")
    if not np.isfinite(array).all():
        raise BadTensors(f"{path}: {name} has NaN or infinite values; write it again without them")
    found: FloatArray = np.ascontiguousarray(array, np.float32)
    return found
