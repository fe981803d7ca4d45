"""int8 vectors: the rounding, and that rows survive a second one."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.quantise import dequantise, quantise

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@given(st.lists(FLOATS, min_size=3, max_size=3))
def test_one_vector_is_rounded_as_the_format_says(x: list[float]) -> None:
    found, scale = quantise(np.array(x, np.float32))
    wanted = float(np.float32(max(map(abs, x))) / np.float32(127)) or 1.0
    assert float(scale) == wanted
    # Python's round is half to even, on the float32 quotient.
    assert found.tolist() == [max(-127, min(127, round(float(np.float32(v) / np.float32(wanted))))) for v in x]
    assert found.dtype == np.int8
    assert scale.dtype == np.float32


def test_halves_go_to_the_even_neighbour_and_zero_has_scale_one() -> None:
    found, scales = quantise(np.array([[127, 0.5, 1.5, -2.5], [0, 0, 0, 0]], np.float32))
    assert found.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0]]
    assert scales.tolist() == [1, 1]


@given(st.lists(FLOATS, min_size=4, max_size=4))
def test_quantising_again_gives_the_same_bytes(x: list[float]) -> None:
    first = quantise(np.array(x, np.float32))
    if first[1] < np.finfo(np.float32).tiny:  # subnormal scales have too few bits to hold it
        return
    again = quantise(dequantise(*first))
    assert [part.tobytes() for part in again] == [part.tobytes() for part in first]


def test_every_scale_survives_a_second_quantisation() -> None:
    # All 2^23 mantissas a peak can have; powers of two change nothing in the division.
    for begin in range(2**23, 2**24, 2**21):
        scales = np.arange(begin, begin + 2**21).astype(np.float32) / np.float32(127)
        assert np.array_equal(scales * np.float32(127) / np.float32(127), scales)


def test_what_cannot_be_divided_counts_as_zero() -> None:
    found, scale = quantise(np.array([math.ldexp(1, -149), 0], np.float32))
    assert (found.tolist(), float(scale)) == ([0, 0], 1.0)


def test_shapes_of_many_vectors() -> None:
    found, scales = quantise(np.zeros((5, 2, 3), np.float32))
    assert (found.shape, scales.shape) == ((5, 2, 3), (5, 2))
    assert quantise(np.zeros((0, 1, 4), np.float32))[1].shape == (0, 1)
