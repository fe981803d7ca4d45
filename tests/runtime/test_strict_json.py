"""JSON that means one thing to one reader and another to the next, or more than memory and stack can bear."""

import json
import re
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank import strict_json

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inner is None else 1 + max(map(depth, inner), default=0)


@given(VALUES, st.booleans())
def test_what_is_sound_is_read_at_its_own_depth_and_no_less(value: object, ascii_only: bool) -> None:
    content = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert strict_json.loads(content, len(content), depth(value)) == value
    if depth(value):
        with pytest.raises(ValueError, match=f"^nested deeper than {depth(value) - 1}$"):
            strict_json.loads(content, len(content), depth(value) - 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'"' + b"x" * 99 + b'"', "101 bytes, wanted at most 100"),
        (b"[[[[]]]]", "nested deeper than 3"),
        (b'{"a": {"b": 1, "b": 2}}', "'b' stands twice in one object"),
        (b"[NaN]", "NaN is not a finite number"),
        (b"[-Infinity]", "-Infinity is not a finite number"),
        (b"[1e400]", "1e400 is not a finite number"),
        (b"[9223372036854775808]", "9223372036854775808 does not fit 64 bits"),
        (b"[-9223372036854775809]", "-9223372036854775809 does not fit 64 bits"),
        (b"[" + b"9" * 90 + b"]", f"{'9' * 40} does not fit 64 bits"),
        (b'["\\ud800"]', "'utf-8' codec can't encode character '\\ud800' in position 2: surrogates not allowed"),
        (b'["\xed\xa0\x80"]', "'utf-8' codec can't decode byte 0xed in position 2: invalid continuation byte"),
        (b"\xef\xbb\xbf[]", None),
        ("[]".encode("utf-16"), None),
        (b"", "Expecting value: line 1 column 1 (char 0)"),
        (b"[] []", "Extra data: line 1 column 4 (char 3)"),
    ],
)
def test_what_is_not_is_refused_in_a_line(content: bytes, message: str | None) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$" if message else None) as caught:
        strict_json.loads(content, 100, 3)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "content",
    [
        b'"' + b'\\"' * 200_000,
        b'["' + b"[" * 400_000,
        b'["\\',
        b"[" * 400_000,
        b'["' + b"\\\\" * 200_000 + b'"' * 200_000,
    ],
)
def test_looking_for_depth_takes_time_in_proportion_to_the_text(content: bytes) -> None:
    """Quadratic, these would take minutes; the suite's own limit would end them."""
    with pytest.raises(ValueError, match=r"^(nested|Unterminated|Invalid|Expecting)"):
        strict_json.loads(content + b"[[", 2**20, 0)


def test_small_objects_do_not_fill_memory_before_they_are_refused() -> None:
    content = b"[" + b"{}," * 300_000 + b"{}]"
    tracemalloc.start()
    with pytest.raises(ValueError, match="nested"):
        strict_json.loads(content, 2**20, 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
