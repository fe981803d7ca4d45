"""Packs that every client has to refuse, each with the reason, and a few odd ones that it has to take.

Made of one whole pack by changing bytes, the header, a tensor or the metadata. What this runtime says of each is
written down, and that it refuses them is held here, at every dump.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pocketrank import tensors
from pocketrank.atomic import write_bytes
from pocketrank.errors import BadPack
from pocketrank.pack import Pack

NAN, INF = np.float32(np.nan), np.float32(np.inf)
LATE_S = 2**60


def write(whole: Pack, other: Pack, folder: Path) -> list[dict[str, Any]]:
    """Write the packs.

    Args:
        whole: a pack of two or more segments and remembered items, K and D different.
        other: one without segments.
        folder: gets a file each.

    Returns:
        For each its file, and either `is_taken` with what is in it, or why it is refused.
    """
    found = []
    for name, content in {**_bytes(whole), **_headers(whole), **_values(whole), **_metadata(whole)}.items():
        write_bytes(folder / f"{name}.safetensors", content)
        try:
            Pack.from_bytes(content, f"{name}.safetensors")
        except BadPack as error:
            found.append({"file": f"{name}.safetensors", "is_taken": False, "said": str(error)})
        else:
            raise RuntimeError(f"pack {name} was to be refused, and was not")
    for name, content in _odd(whole, other).items():
        write_bytes(folder / f"{name}.safetensors", content)
        pack = Pack.from_bytes(content, name)
        found.append({"file": f"{name}.safetensors", "is_taken": True, **facts(pack)})
    return found


def facts(pack: Pack) -> dict[str, Any]:
    """What a pack's metadata say, and how much is in it."""
    return {
        "encoder_id": pack.encoder_id,
        "version": list(pack.version),
        "through": list(pack.through),
        "recent_us": list(pack.recent_us),
        "segments": len(pack),
        "remembered_items": len(pack.memory_items),
    }


def _bytes(pack: Pack) -> dict[str, bytes]:
    content = pack.to_bytes()
    size = int.from_bytes(content[:8], "little")
    return {
        "nothing": b"",
        "cut_in_the_length": content[:7],
        "cut_before_the_header": content[:8],
        "cut_in_the_header": content[: 8 + size // 2],
        "cut_before_the_tensors": content[: 8 + size],
        "cut_by_a_byte": content[:-1],
        "a_byte_too_many": content + b"\0",
        "header_of_2_to_the_63": (2**63).to_bytes(8, "little") + content[8:],
        "header_longer_than_the_file": (len(content)).to_bytes(8, "little") + content[8:],
        "header_shorter_than_its_json": (size - size // 4).to_bytes(8, "little") + content[8:],
        "zeros": bytes(len(content)),
        "text": b"<html>504 Gateway Time-out</html>\n",
    }


def _headers(pack: Pack) -> dict[str, bytes]:
    content = pack.to_bytes()
    size = int.from_bytes(content[:8], "little")
    text, body = content[8 : 8 + size].decode(), content[8 + size :]

    def with_header(change: Callable[[dict[str, Any]], object]) -> bytes:
        header = json.loads(text)
        change(header)
        return _framed(json.dumps(header, separators=(",", ":")).encode(), body)

    def entry(name: str, **changes: Any) -> bytes:
        return with_header(lambda header: header[name].update(changes))

    segments, per_segment, width = pack.vectors.shape
    return {
        "header_is_a_list": _framed(b"[1,2,3]", body),
        "tensor_not_described": with_header(lambda header: header.pop("weight")),
        "tensor_twice": _framed(text.replace('"weight":', '"end_s":').encode(), body),
        "header_over_a_megabyte": _framed(text.encode() + b" " * 2**20, body),
        "no_metadata": with_header(lambda header: header.pop("__metadata__")),
        "unknown_dtype": entry("weight", dtype="F17"),
        "another_dtype": entry("weight", dtype="I32"),
        "shape_is_huge": entry("weight", shape=[2**62]),
        "shape_overflows": entry("vectors", shape=[2**32, 2**32, 1]),
        "shape_is_negative": entry("weight", shape=[-1]),
        "axes_swapped": entry("vectors", shape=[segments, width, per_segment]),
        "one_axis_too_few": entry("scales", shape=[segments * per_segment]),
        "offsets_overlap": entry("weight", data_offsets=[0, 4 * len(pack)]),
        "offsets_beyond_the_file": entry("weight", data_offsets=[len(body), len(body) + 4 * len(pack)]),
    }


def _framed(header: bytes, body: bytes) -> bytes:
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + body


def _values(pack: Pack) -> dict[str, bytes]:
    def at(name: str, value: Any, place: int = 1) -> bytes:
        array = getattr(pack, name).copy()
        array[place] = value
        return replace(pack, **{name: array}).to_bytes()

    end_s, rows = pack.end_s, pack.memory_items
    return {
        "scale_nan": at("scales", NAN),
        "scale_infinite": at("scales", INF),
        "scale_negative": at("scales", -1),
        "scale_over_1e12": at("scales", 2e12),
        "weight_nan": at("weight", NAN),
        "weight_negative": at("weight", -0.5),
        "count_zero": at("memory_counts", 0),
        "count_nan": at("memory_counts", NAN),
        "decayed_infinite": at("memory_decayed", INF),
        "start_beyond_9999": at("start_s", LATE_S),
        "start_long_before_1970": at("start_s", -LATE_S),
        "end_beyond_9999": at("end_s", LATE_S, -1),
        "memory_time_beyond_9999": at("memory_last_s", LATE_S),
        "segment_without_events": at("n_events", 0),
        "segment_begins_after_its_end": at("start_s", end_s[1] + 1),
        "item_first_after_last": at("memory_first_s", pack.memory_last_s[1] + 1),
        "ordinal_first_after_last": at("ordinal_first", pack.ordinal_last[1] + 1),
        "ordinal_negative": at("ordinal_first", -1, 0),
        "level_negative": at("level", -1),
        "segments_out_of_order": replace(pack, end_s=end_s[::-1].copy()).to_bytes(),
        "items_out_of_order": replace(pack, memory_items=rows[::-1].copy()).to_bytes(),
        "item_twice": at("memory_items", rows[0]),
        "item_negative": at("memory_items", -1, 0),
        "top_item_below_minus_one": at("top_items", -2),
    }


def _metadata(pack: Pack) -> dict[str, bytes]:
    arrays, metadata = tensors.from_bytes(pack.to_bytes(), "a pack")

    def told(**changes: str | None) -> bytes:
        kept = {name: value for name, value in {**metadata, **changes}.items() if value is not None}
        return tensors.to_bytes(arrays, kept)

    far, (last_us, _) = str(2**63), pack.through
    without = {name: array for name, array in arrays.items() if name != "weight"}
    return {
        "tensor_missing": tensors.to_bytes(without, metadata),
        "no_format": told(format=None),
        "of_another_format": told(format="pocketrank.pack/2"),
        "no_encoder_id": told(encoder_id=None),
        "encoder_id_is_empty": told(encoder_id=""),
        "encoder_id_is_long": told(encoder_id="e" * 65),
        "encoder_id_has_a_line_break": told(encoder_id="e\n1"),
        "no_version": told(version=None),
        "version_is_one_number": told(version="1"),
        "version_is_three_numbers": told(version="0,1,2"),
        "version_has_a_blank": told(version="0, 1"),
        "version_has_a_plus": told(version="0,+1"),
        "version_over_64_bits": told(version=f"0,{far}"),
        "version_in_other_digits": told(version="0,١"),
        "version_is_a_word": told(version="0,new"),
        "no_through": told(through=None),
        "through_is_empty": told(through=""),
        "through_counts_below_zero": told(through=f"{last_us},-1"),
        "through_beyond_9999": told(through=f"{far},1"),
        "recent_beyond_9999": told(recent=far),
        "recent_out_of_order": told(recent=f"{last_us},{last_us - 1}"),
        "recent_after_through": told(recent=str(last_us + 1)),
        "recent_is_a_word": told(recent="yesterday"),
    }


def _odd(pack: Pack, other: Pack) -> dict[str, bytes]:
    arrays, metadata = tensors.from_bytes(pack.to_bytes(), "a pack")
    more = {**arrays, "added_by_a_later_version": np.zeros(3, np.int32)}
    through = replace(pack, recent_us=(pack.through[0] - 1, pack.through[0], pack.through[0]))
    return {
        "whole": pack.to_bytes(),
        "without_segments": other.to_bytes(),
        "with_recent_times": through.to_bytes(),
        "with_a_tensor_more": tensors.to_bytes(more, metadata),
        "with_metadata_more": tensors.to_bytes(arrays, {**metadata, "zone": "added by a later version"}),
    }
