"""JSON out of files that are not trusted: what `json` lets pass, and what it cannot bear, is refused.

Names twice in one object, NaN, half a surrogate pair and integers beyond 64 bits mean one thing to one reader and
another to the next; deep nesting ends Python's stack, and small objects take twenty times their text in memory.
"""

import json
import math
import re
from typing import Any

_STRINGS_AND_BRACKETS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


def loads(content: bytes, most: int, deepest: int) -> Any:
    """Read a JSON text.

    Args:
        content: the text, UTF-8.
        most: bytes it may have.
        deepest: lists and objects that may stand in each other.

    Raises:
        ValueError: it is longer, deeper, not JSON in UTF-8, or has what this module refuses. The message is one line.
    """
    if len(content) > most:
        raise ValueError(f"{len(content)} bytes, wanted at most {most}")
    if content.count(b"[") + content.count(b"{") > deepest and _depth(content) > deepest:
        raise ValueError(f"nested deeper than {deepest}")
    text = content.decode("utf-8")
    found = json.loads(text, object_pairs_hook=_object, parse_constant=_number, parse_float=_number, parse_int=_integer)
    if "\\u" in text:
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _depth(content: bytes) -> int:
    depth = deepest = 0
    for token in _STRINGS_AND_BRACKETS.finditer(content):
        first = token.group()[:1]
        if first in b"[{":
            depth += 1
            deepest = max(depth, deepest)
        elif first in b"]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:40]!r} stands twice in one object")
        found[name] = value
    return found


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is not a finite number")
    return number


def _integer(text: str) -> int:
    number = int(text) if len(text) <= 20 else 2**63
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{text[:40]} does not fit 64 bits")
    return number
