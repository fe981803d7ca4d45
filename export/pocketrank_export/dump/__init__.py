"""What clients in other languages test themselves on: inputs and expected outputs of everything a device does.

`pocketrank verify --dump DIR` writes it; every file and field is in docs/formats.md, "Dump". No client reads Python:
it is all JSON and safetensors, and the tests read it back by another implementation than the one that wrote it.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pocketrank import selftest, tensors
from pocketrank.atomic import folder_beside, write_bytes
from pocketrank.bundle import Bundle
from pocketrank_cli.command import progress
from pocketrank_export.dump import bundles, cuts, memories, merges, rankings, refused_bundles, refused_packs

FORMAT = "pocketrank.dump/1"


def write(folder: Path, seed: int = 0, kinds: Sequence[bundles.Kind] = bundles.KINDS) -> dict[str, Any]:
    """Write a dump; the same seed gives the same bytes, on one machine and with the same versions of torch.

    Args:
        folder: takes the place of what was there when it is whole.
        seed: of everything random.
        kinds: the bundles to make; all of them but in a test.

    Returns:
        How many cases there are of each kind.
    """
    with folder_beside(folder) as draft:
        counts = {name: _json(draft / f"{name}.json", made) for name, made in _plain(draft, seed).items()}
        counts["rankings"] = 0
        for kind in progress(kinds, len(kinds), "dump", "bundles"):
            model = bundles.write(kind, draft / "bundles" / kind.name, seed).model
            bundle, place = Bundle.open(draft / "bundles" / kind.name), draft / "rankings" / kind.name
            packs, cases = rankings.write(bundle, model, place, seed)
            counts["rankings"] += _json(place / "cases.json", cases)
            if kind is kinds[0]:
                told = refused_packs.write(packs["full"], packs["empty"], draft / "packs")
                counts["packs"] = _json(draft / "packs.json", told)
                told = refused_bundles.write(draft / "bundles" / kind.name, draft / "refused")
                counts["refused"] = _json(draft / "refused.json", told)
        _index(draft, seed)
    return {"bundles": len(kinds), **counts}


def _plain(folder: Path, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Cases that need no model, by the name of their JSON; their tensors are written."""
    tensors.save(folder / "quantiser.safetensors", merges.quantiser(seed), {})
    tensors.save(folder / "merges.safetensors", merges.merges(seed), {})
    kept = []
    for name, how in merges.COMPACTIONS.items():
        values, counts = merges.compaction(how, seed)
        tensors.save(folder / "compaction" / f"{name}.safetensors", values, {})
        kept.append({"file": f"compaction/{name}.safetensors", **merges.settings(how), "closed": counts})
    return {"cuts": cuts.cases(seed), "memory": memories.cases(seed), "compaction": kept}


def _json(path: Path, cases: list[dict[str, Any]]) -> int:
    """Write cases, one a line, so that a difference shows where it is; how many there are."""
    rows = [json.dumps(case, ensure_ascii=False, allow_nan=False) for case in cases]
    write_bytes(path, ("[\n" + ",\n".join(rows) + "\n]\n").encode())
    return len(cases)


def _index(folder: Path, seed: int) -> None:
    contents = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    index = {
        "format": FORMAT,
        "seed": seed,
        "reference": f"torch {torch.__version__.partition('+')[0]}",
        "limits": {"score": selftest.LIMIT, "tie": selftest.TIE, "top": selftest.TOP},
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
            for name, content in sorted(contents.items())
        },
    }
    write_bytes(folder / "index.json", (json.dumps(index, indent=1, ensure_ascii=False) + "\n").encode())
