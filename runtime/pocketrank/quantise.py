"""int8 vectors: one scale a vector, symmetric, round half to even.

Every row in the store holds exactly dequantised values, so quantising it again gives the same bytes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]
MOST = 1e12  # of any scale, weight, bias or count in a file: no model and no user has more, and products stay finite


def quantise(vectors: npt.NDArray[Any]) -> tuple[Int8Array, FloatArray]:
    """Round vectors to int8.

    Args:
        vectors: (..., D) float32, finite.

    Returns:
        (..., D) int8 in -127..127, and (...) float32 scales = max|x| / 127, 1 for a vector
        of zeros or of what float32 cannot divide by 127.

    Source: docs/formats.md, "Quantiser".
    """
    x = np.asarray(vectors, np.float32)
    peak = np.abs(x).max(axis=-1)
    scales = (peak / np.float32(127)).astype(np.float32)
    scales = np.where(scales > 0, scales, np.float32(1))  # what is too small to divide counts as zero
    return np.rint(x / scales[..., None]).clip(-127, 127).astype(np.int8), scales


def dequantise(vectors: Int8Array, scales: FloatArray) -> FloatArray:
    """Undo `quantise` up to its rounding.

    Args:
        vectors: (..., D) int8.
        scales: (...) float32.

    Returns:
        (..., D) float32.
    """
    return vectors.astype(np.float32) * scales[..., None]
