"""Bundles that every client has to refuse, each with the reason, and a few odd ones that it has to take.

Made of one whole bundle by changing its manifest, its files or both, hashes made anew where the change is to be met
after them. What this runtime says of each is written down, and that it refuses them is held here, at every dump.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank import Bundle, Ranker, tensors
from pocketrank.atomic import write_bytes
from pocketrank.errors import BadBundle
from pocketrank.signing import SIGNATURE

KEY = "signer.pub.pem"
MANIFEST, IDS, TABLE, GRAPH = "manifest.json", "item_ids.json", "items.safetensors", "state.onnx"
ATTRIBUTES = "item_attributes.json"
Files = dict[str, bytes]
Json = dict[str, Any]


def write(bundle: Path, folder: Path) -> list[dict[str, Any]]:
    """Write the bundles.

    Args:
        bundle: a whole one; its ONNX graphs and its tables are taken.
        folder: gets a folder each, and the public key that some are to be signed with.

    Returns:
        For each its folder, the key to demand or null, whether it is taken, and if not when it is refused and why.
    """
    names = [*(f"{graph}.onnx" for graph in ("encoder", "state", "memory", "score")), TABLE, IDS, MANIFEST]
    whole = _hashed({name: (bundle / name).read_bytes() for name in names})
    signed, public = _signatures(whole)
    write_bytes(folder / KEY, public)
    opened = {**_manifests(whole), **_numbers(whole), **_names(whole), **_files(whole), **_tables(whole), **_ids(whole)}
    opened |= _attributes(whole)
    told = [_refused(folder, name, files, "open") for name, files in opened.items()]
    told += [_refused(folder, name, files, "open", KEY) for name, files in signed.items() if name != "signed"]
    told += [_refused(folder, name, files, "graph") for name, files in _graphs(whole).items()]
    told += [_taken(folder, name, files) for name, files in _odd(whole).items()]
    return [*told, _taken(folder, "signed", signed["signed"], KEY)]


def _refused(folder: Path, name: str, files: Mapping[str, bytes], at: str, key: str | None = None) -> Json:
    where, verify_key = _written(folder, name, files), folder / key if key else None
    try:
        Bundle.open(where, verify_key)
        if at == "graph":
            with Ranker.open(where, engine="onnx") as ranker:
                ranker.observe(ranker.bundle.items.ids[0], at=0)
                ranker.rank(now=1)
    except BadBundle as error:
        said = str(error).replace(f"{folder}/", "")
        return {"folder": name, "verify_key": key, "is_taken": False, "at": at, "said": said}
    raise RuntimeError(f"bundle {name} was to be refused, and was not")


def _taken(folder: Path, name: str, files: Mapping[str, bytes], key: str | None = None) -> Json:
    Bundle.open(_written(folder, name, files), folder / key if key else None)
    return {"folder": name, "verify_key": key, "is_taken": True}


def _written(folder: Path, name: str, files: Mapping[str, bytes]) -> Path:
    for file, content in files.items():
        write_bytes(folder / name / file, content)
    return folder / name


def _hashed(files: Mapping[str, bytes], change: Callable[[Json], object] = lambda _: None) -> Files:
    """The files with a manifest that names them as they are, and is then changed."""
    manifest = json.loads(files[MANIFEST])
    named = {name: content for name, content in sorted(files.items()) if "/" not in name and name != MANIFEST}
    manifest["files"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)} for name, content in named.items()
    }
    change(manifest)
    return {**files, MANIFEST: _text(manifest)}


def _text(manifest: Any) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _manifests(whole: Files) -> dict[str, Files]:
    """Manifests that are no JSON that all readers agree on, or are of another version."""
    text = whole[MANIFEST].decode()

    def told(content: str) -> Files:
        return {**whole, MANIFEST: content.encode()}

    def with_entry(entry: str) -> Files:
        return {**whole, MANIFEST: _with_quality(whole, entry)}

    return {
        "no_manifest": {name: content for name, content in whole.items() if name != MANIFEST},
        "manifest_is_empty": told(""),
        "manifest_is_cut": told(text[: len(text) // 2]),
        "manifest_is_a_page": told("<html>504 Gateway Time-out</html>\n"),
        "manifest_is_a_list": told(f"[{text}]"),
        "manifest_is_over_a_megabyte": told(text + " " * 2**20),
        "manifest_is_utf_16": {**whole, MANIFEST: text.encode("utf-16")},
        "manifest_is_latin_1": {**whole, MANIFEST: with_entry('{"é": 1}')[MANIFEST].decode().encode("latin-1")},
        "manifest_has_a_comma_too_many": told(text.replace("\n}", ",\n}")),
        "manifest_is_nested_17_deep": with_entry('{"a":' * 16 + "1" + "}" * 16),
        "name_twice": with_entry('{"a": 1, "a": 1}'),
        "a_number_is_nan": with_entry('{"a": NaN}'),
        "a_number_is_infinite": with_entry('{"a": -Infinity}'),
        "a_number_overflows": with_entry('{"a": 1e999}'),
        "an_integer_over_64_bits": with_entry(f'{{"a": {2**63}}}'),
        "half_a_surrogate_pair": with_entry(r'{"\ud800": 1}'),
        "of_another_format": _hashed(whole, lambda manifest: manifest.update(format="pocketrank.bundle/2")),
        "no_format": _hashed(whole, lambda manifest: manifest.pop("format")),
        "format_is_a_number": _hashed(whole, lambda manifest: manifest.update(format=1)),
        "for_a_newer_runtime": _hashed(whole, lambda manifest: manifest.update(least_runtime="99.0.0")),
        "least_runtime_is_a_word": _hashed(whole, lambda manifest: manifest.update(least_runtime="soon")),
    }


def _with_quality(whole: Files, text: str) -> bytes:
    """The manifest with this text as what was measured; nobody looks at that, but to see that it is JSON."""
    manifest = json.loads(whole[MANIFEST])
    manifest["quality"] = "measured"
    return _text(manifest).replace(b'"measured"', text.encode())


def _numbers(whole: Files) -> dict[str, Files]:
    """Entries of the manifest that cannot be, or do not fit each other."""

    def of(**changes: Any) -> Files:
        return _hashed(whole, lambda manifest: manifest.update(changes))

    def sized(**changes: Any) -> Files:
        return _hashed(whole, lambda manifest: manifest["sizes"].update(changes))

    def policy(kind: str, **settings: Any) -> Files:
        return of(policy={"kind": kind, "max_events": 2, **settings})

    slots = json.loads(whole[MANIFEST])["sizes"]["S"]
    return {
        "no_sizes": _hashed(whole, lambda manifest: manifest.pop("sizes")),
        "no_K": _hashed(whole, lambda manifest: manifest["sizes"].pop("K")),
        "S_is_zero": sized(S=0),
        "H_is_negative": sized(H=-1),
        "K_is_a_word": sized(K="2"),
        "L_is_a_fraction": sized(L=4.5),
        "T_is_true": sized(T=True),
        "S_K_D_is_huge": sized(S=2**40),
        "L_D_is_huge": sized(L=2**40),
        "F_is_huge": sized(F=2**21),
        "score_chunk_is_huge": sized(score_chunk=2**40),
        "encoder_batch_is_huge": sized(encoder_batch=2**40),
        "I_is_another": sized(I=json.loads(whole[MANIFEST])["sizes"]["I"] + 1),
        "D_is_another": sized(D=9),
        "model_id_is_empty": of(model_id=""),
        "encoder_id_is_long": of(encoder_id="e" * 65),
        "encoder_id_has_a_line_break": of(encoder_id="e\n1"),
        "encoder_id_is_a_number": of(encoder_id=1),
        "no_behaviours": of(behaviors=[]),
        "behaviour_twice": of(behaviors=["", "buy", "buy"]),
        "behaviour_is_a_number": of(behaviors=["", 1]),
        "weight_negative": of(weights={"buy": -1}),
        "weight_over_1e12": of(weights={"buy": 2e12}),
        "weight_is_a_word": of(weights={"buy": "3"}),
        "lateness_negative": of(lateness_s=-1),
        "half_life_zero": of(memory_half_life_s=0),
        "half_life_negative": of(memory_half_life_s=-1.0),
        "policy_unknown": policy("by_the_moon"),
        "policy_is_a_word": of(policy="session_gap"),
        "gap_missing": policy("session_gap"),
        "gap_zero": policy("session_gap", gap_s=0),
        "gap_beyond_64_bits_of_microseconds": policy("session_gap", gap_s=2**60),
        "gap_is_a_fraction": policy("session_gap", gap_s=1800.5),
        "segments_longer_than_the_encoder": policy("session_gap", gap_s=1800, max_events=5),
        "milestone_that_no_event_can_be": policy("milestone", behaviors=["gift"]),
        "milestone_of_nothing": policy("milestone", behaviors=[]),
        "adaptive_with_least_above_most": policy("adaptive", factor=3, lookback=2, min_gap_s=8, max_gap_s=7),
        "adaptive_that_overflows": policy("adaptive", factor=2**40, lookback=2, min_gap_s=1, max_gap_s=7200),
        "compaction_unknown": of(compaction={"kind": "newest"}),
        "log_without_levels": of(compaction={"kind": "log"}),
        "log_of_more_levels_than_slots": of(compaction={"kind": "log", "levels": slots}),
    }


def _names(whole: Files) -> dict[str, Files]:
    """What the manifest says of files; nothing is to be read, and nothing outside the folder looked at."""
    nothing = {"sha256": hashlib.sha256(b"").hexdigest(), "size": 0}

    def named(name: str) -> Files:
        return _hashed(whole, lambda manifest: manifest["files"].update({name: nothing}))

    def said(**changes: Any) -> Files:
        return _hashed(whole, lambda manifest: manifest["files"][GRAPH].update(changes))

    return {
        "name_in_the_folder_above": named(f"../{KEY}"),
        "name_in_another_folder": named("/etc/hostname"),
        "name_in_a_folder_below": named("below/state.onnx"),
        "name_with_a_backslash": named("..\\state.onnx"),
        "name_is_the_folder": named("."),
        "name_is_empty": named(""),
        "name_begins_with_a_dot": named(".state.onnx"),
        "name_begins_with_a_dash": named("-state.onnx"),
        "name_has_a_zero_byte": named("state.onnx\0.txt"),
        "name_in_other_letters": named("ѕtate.onnx"),
        "name_of_101_letters": named("x" * 101),
        "manifest_names_itself": named(MANIFEST),
        "manifest_names_its_signature": named(SIGNATURE),
        "no_files": _hashed(whole, lambda manifest: manifest.pop("files")),
        "files_is_a_list": _hashed(whole, lambda manifest: manifest.update(files=sorted(whole))),
        "hash_missing": _hashed(whole, lambda manifest: manifest["files"][GRAPH].pop("sha256")),
        "hash_in_capitals": said(sha256=hashlib.sha256(whole[GRAPH]).hexdigest().upper()),
        "hash_too_short": said(sha256="0" * 40),
        "size_missing": _hashed(whole, lambda manifest: manifest["files"][GRAPH].pop("size")),
        "size_is_a_word": said(size=str(len(whole[GRAPH]))),
        "size_negative": said(size=-1),
        "size_of_an_exabyte": said(size=2**60),
    }


def _files(whole: Files) -> dict[str, Files]:
    """Files that are not those which the manifest names."""
    found = {}
    for name, content in whole.items():
        if name != MANIFEST:
            stem = name.replace(".", "_")
            torn = bytearray(content)
            torn[len(torn) // 2] ^= 1
            found[f"{stem}_flipped"] = {**whole, name: bytes(torn)}
            found[f"{stem}_cut"] = {**whole, name: content[:-1]}
            found[f"{stem}_missing"] = {other: of_other for other, of_other in whole.items() if other != name}
    without = {name: content for name, content in whole.items() if name != GRAPH}
    return {
        **found,
        "file_a_byte_too_long": {**whole, GRAPH: whole[GRAPH] + b"\0"},
        "file_that_nothing_names": {**whole, "notes.txt": b""},
        "hidden_file_that_nothing_names": {**whole, ".hidden": b""},
        "folder_that_nothing_names": {**whole, "more/notes.txt": b""},
        "folder_in_the_place_of_a_file": {**without, f"{GRAPH}/notes.txt": b""},
        "no_item_table": _hashed({name: content for name, content in whole.items() if name != TABLE}),
        "no_item_ids": _hashed({name: content for name, content in whole.items() if name != IDS}),
        "item_ids_longer_than_can_be": _hashed({**whole, IDS: whole[IDS] + b" " * 20_000}),
    }


def _tables(whole: Files) -> dict[str, Files]:
    """Item tables that are hashed, and cannot be."""
    table, metadata = tensors.from_bytes(whole[TABLE], TABLE)

    def of(**changes: npt.NDArray[Any]) -> Files:
        return _hashed({**whole, TABLE: tensors.to_bytes({**table, **changes}, metadata)})

    def last(name: str, value: float) -> Files:
        array = table[name].copy()
        array[-1] = value
        return of(**{name: array})

    lacking = {name: array for name, array in table.items() if name != "bias"}
    return {
        "table_cut": _hashed({**whole, TABLE: whole[TABLE][:-1]}),
        "table_is_text": _hashed({**whole, TABLE: b"items\n"}),
        "table_lacks_a_tensor": _hashed({**whole, TABLE: tensors.to_bytes(lacking, metadata)}),
        "table_vectors_are_int32": of(vectors=table["vectors"].astype(np.int32)),
        "table_of_another_width": of(vectors=table["vectors"][:, :-1]),
        "table_of_fewer_items": of(**{name: table[name][:-1] for name in ("vectors", "scales", "bias", "popularity")}),
        "table_of_unequal_columns": of(bias=table["bias"][:-1]),
        "unknown_vector_too_short": of(unknown_vector=table["unknown_vector"][:-1]),
        "unknown_scale_missing": of(unknown_scale=table["unknown_scale"][:0]),
        "item_scale_nan": last("scales", np.nan),
        "item_scale_negative": last("scales", -1.0),
        "item_scale_over_1e12": last("scales", 2e12),
        "item_bias_infinite": last("bias", np.inf),
        "item_bias_below_minus_1e12": last("bias", -2e12),
        "popularity_nan": last("popularity", np.nan),
        "popularity_negative": last("popularity", -0.5),
        "unknown_scale_infinite": last("unknown_scale", np.inf),
    }


def _ids(whole: Files) -> dict[str, Files]:
    """Item ids that are hashed, and no vocabulary."""
    ids = json.loads(whole[IDS])

    def of(found: Any) -> Files:
        return _hashed({**whole, IDS: json.dumps(found).encode()})

    return {
        "ids_are_an_object": of({item: row for row, item in enumerate(ids)}),
        "ids_are_cut": _hashed({**whole, IDS: whole[IDS][: len(whole[IDS]) // 2]}),
        "ids_are_too_few": of(ids[:-1]),
        "id_twice": of([*ids[:-1], ids[0]]),
        "id_is_a_fraction": of([*ids[:-1], 1.5]),
        "id_is_null": of([*ids[:-1], None]),
        "id_is_true": of([*ids[:-1], True]),
        "id_is_a_list": of([*ids[:-1], [1]]),
        "id_over_64_bits": of([*ids[:-1], 2**63]),
        "id_is_half_a_surrogate_pair": of([*ids[:-1], "\ud800"]),
    }


def _attributes(whole: Files) -> dict[str, Files]:
    """Attributes of items that are hashed, and not of these items."""
    items = len(json.loads(whole[IDS]))

    def of(content: bytes) -> Files:
        return _hashed({**whole, ATTRIBUTES: content})

    def column(*values: Any) -> Files:
        return of(json.dumps({"shelf": [*values, *["a"] * (items - len(values))]}).encode())

    return {
        "attributes_are_a_list": of(b"[]"),
        "attributes_are_cut": of(b'{"shelf": ["a",'),
        "attributes_of_fewer_items": of(b'{"shelf": ["a"]}'),
        "attributes_are_a_number": column(1),
        "attributes_of_lists_in_lists": column([["a"]]),
        "attributes_over_1024_bytes_an_item": column("a" * 1100 * items),
    }


def _graphs(whole: Files) -> dict[str, Files]:
    """Graphs that are hashed, and that no engine can load or run."""
    return {
        "state_graph_is_text": _hashed({**whole, GRAPH: b"a graph\n"}),
        "state_graph_is_cut": _hashed({**whole, GRAPH: whole[GRAPH][: len(whole[GRAPH]) // 2]}),
        "state_graph_is_another": _hashed({**whole, GRAPH: whole["encoder.onnx"]}),
        "no_state_graph": _hashed({name: content for name, content in whole.items() if name != GRAPH}),
    }


def _odd(whole: Files) -> dict[str, Files]:
    ids = json.loads(whole[IDS])
    manifest = json.loads(whole[MANIFEST])
    attributes = json.dumps({"shelf": ["a", None, ["b", "c"], *[""] * (len(ids) - 3)]}).encode()
    reordered = json.dumps(dict(reversed(manifest.items())), ensure_ascii=True, separators=(",", ":"))
    return {
        "whole": whole,
        "manifest_is_nested_16_deep": {**whole, MANIFEST: _with_quality(whole, '{"a":' * 15 + "1" + "}" * 15)},
        "manifest_laid_out_otherwise": {**whole, MANIFEST: reordered.encode()},
        "with_a_file_more": _hashed({**whole, "x" * 98 + ".9": b"named by the manifest\n"}),
        "with_attributes": _hashed({**whole, ATTRIBUTES: attributes}),
        "ids_are_numbers": _hashed({**whole, IDS: json.dumps([2**63 - 1 - row for row in range(len(ids))]).encode()}),
        "ids_of_both_kinds": _hashed({**whole, IDS: json.dumps(["1", 1, *ids[2:]]).encode()}),
        "for_an_older_runtime": _hashed(whole, lambda manifest: manifest.update(least_runtime="0.0.9")),
        "integers_for_floats": _hashed(whole, lambda manifest: manifest.update(weights={"buy": 3}, lateness_s=7)),
        "measured_by_others": _hashed(whole, lambda manifest: manifest.update(quality={"a": {"b": [1, None, "c"]}})),
        "unsigned_and_signed_by_nobody": {**whole, SIGNATURE: b"what is not demanded is not looked at"},
    }


def _signatures(whole: Files) -> tuple[dict[str, Files], bytes]:
    """Bundles of which a signature is demanded, and the public key in PEM; the private one is no secret."""
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, utils  # noqa: PLC0415

    private, another = (ec.derive_private_key(number, ec.SECP256R1()) for number in (20_261_126, 20_261_127))
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    signature = private.sign(whole[MANIFEST], algorithm)
    r, s = utils.decode_dss_signature(signature)
    altered = _hashed(whole, lambda manifest: manifest.update(lateness_s=1))
    shape = serialization.PublicFormat.SubjectPublicKeyInfo
    return {
        "signed": {**whole, SIGNATURE: signature},
        "not_signed": whole,
        "signed_by_another_key": {**whole, SIGNATURE: another.sign(whole[MANIFEST], algorithm)},
        "manifest_altered_after_signing": {**altered, SIGNATURE: signature},
        "signature_of_the_hash_of_the_hash": {
            **whole,
            SIGNATURE: private.sign(hashlib.sha256(whole[MANIFEST]).digest(), algorithm),
        },
        "signature_is_empty": {**whole, SIGNATURE: b""},
        "signature_is_raw": {**whole, SIGNATURE: r.to_bytes(32, "big") + s.to_bytes(32, "big")},
        "signature_with_bytes_after_it": {**whole, SIGNATURE: signature + b"\0"},
        "signature_of_zeros": {**whole, SIGNATURE: utils.encode_dss_signature(0, 0)},
        "signature_over_72_bytes": {**whole, SIGNATURE: signature + bytes(73 - len(signature))},
    }, private.public_key().public_bytes(serialization.Encoding.PEM, shape)
