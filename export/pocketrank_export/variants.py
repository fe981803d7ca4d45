"""Smaller forms of exported graphs: float16 or int8 weights, or int8 weights and activations. Inputs and outputs stay.

Every variant is made from the float32 file, never from another one, and by rules that give equal bytes for equal files.
Weights alone are stored small and multiplied out again: sums stay in float32, so that a row never depends on its
neighbours. Quantising activations as they come would make it so in onnxruntime, whose scale is of a whole batch, and
tflite-runtime 2.14 computes such TFLite graphs wrongly (off by 3.6 where 0.015 is due) without a word.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pocketrank import engines, tensors
from pocketrank.bundle import Bundle
from pocketrank.engines import Arrays
from pocketrank.fuser import parts_of
from pocketrank_export.chatter import heard
from pocketrank_export.graphs import PARTED, stripped

VARIANTS = ("fp32", "fp16", "int8_weights", "int8")
WITH_WEIGHTS = ("encoder", "state", "memory")  # `score` and `catalogue` multiply what they are fed
LEAST = 256  # numbers in a weight that is worth the two nodes that multiply it out again
_STEPS = 127
_OUTPUTS_FIRST = {"GRU": {1, 2}}  # operators whose weights have outputs second to last, and which inputs these are


def write_variant(variant: str, source: Path, target: Path, cases: Sequence[Arrays]) -> list[str]:
    """Write one graph in another form.

    Args:
        variant: of `VARIANTS`, but "fp32".
        source: the float32 graph, `.onnx` or `.tflite`.
        target: where the other one goes.
        cases: inputs by name, with one row each, to find the ranges of activations by; only "int8" reads them.

    Returns:
        What the converter said that may matter; see `chatter`.
    """
    writers = _ONNX if source.suffix == ".onnx" else _TFLITE
    with heard() as remarks:
        writers[variant](source, target, cases)
    return remarks


def calibration(bundle: Bundle, name: str) -> list[Arrays]:
    """Inputs of one graph of `WITH_WEIGHTS` or `PARTED` from the golden cases, one row each, as a phone feeds them."""
    golden, _ = tensors.read(bundle.folder / "golden.safetensors")
    if name == "memory":
        lacking = max(bundle.sizes.F - golden["score.memory_rows"].shape[1], 0)  # of the F that a TFLite graph takes
        places = np.pad(golden["score.memory_rows"], [(0, 0), (0, lacking)], constant_values=-1)
        cases = zip(places, np.pad(golden["score.memory"], [(0, 0), (0, lacking), (0, 0)]), strict=True)
        return [{"memory": features, "bias": bundle.items.bias[items]} for items, features in cases]
    if name in PARTED:
        parts = [parts_of(case) for case in calibration(bundle, "state")]
        if name == "segments":
            return [past for past, _ in parts]
        segments = engines.load(bundle.folder, "segments", "onnx")
        return [{**segments.run(past), **live} for past, live in parts]
    rows, outputs = {"encoder": ("rows", ["vectors"]), "state": ("live_rows", ["state", "state_bias"])}[name]
    of_graph = {key.partition(".")[2]: value for key, value in golden.items() if key.startswith(f"{name}.")}
    fed = {key: value for key, value in of_graph.items() if key not in (rows, *outputs)}
    fed[rows.replace("rows", "items")] = bundle.items.embed(of_graph[rows])
    return [{key: value[case : case + 1] for key, value in fed.items()} for case in range(len(of_graph[rows]))]


def _onnx_fp16(source: Path, target: Path, _: Sequence[Arrays]) -> None:
    import onnx  # noqa: PLC0415

    def halved(name: str, values: npt.NDArray[Any], _: int) -> tuple[list[Any], list[Any]]:
        half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}_fp16")
        return [half], [onnx.helper.make_node("Cast", [half.name], [name], to=onnx.TensorProto.FLOAT)]

    _onnx_weights(source, target, halved)


def _onnx_int8_weights(source: Path, target: Path, _: Sequence[Arrays]) -> None:
    """A scale an output. By `Cast` and `Mul`, which onnxruntime works out once when it loads the graph.

    `DequantizeLinear` says the same, and is run again at every request: .167 ms for .136 of a state of the demo.
    """
    import onnx  # noqa: PLC0415

    def rounded(name: str, values: npt.NDArray[Any], outputs: int) -> tuple[list[Any], list[Any]]:
        others = tuple(axis for axis in range(values.ndim) if axis != outputs)
        scale = np.abs(values).max(axis=others, keepdims=True) / _STEPS
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        whole = np.clip(np.rint(values / scale), -_STEPS, _STEPS).astype(np.int8)
        small = [onnx.numpy_helper.from_array(*pair) for pair in ((whole, f"{name}_int8"), (scale, f"{name}_scale"))]
        return small, [
            onnx.helper.make_node("Cast", [f"{name}_int8"], [f"{name}_float"], to=onnx.TensorProto.FLOAT),
            onnx.helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [name]),
        ]

    _onnx_weights(source, target, rounded)


def _onnx_weights(
    source: Path, target: Path, small: Callable[[str, npt.NDArray[Any], int], tuple[list[Any], list[Any]]]
) -> None:
    """Put others in the place of large float weights, and before all nodes the ones that give them back."""
    import onnx  # noqa: PLC0415

    proto = onnx.load(source)
    inside = proto.graph
    first = {
        node.input[place]
        for node in inside.node
        for place in _OUTPUTS_FIRST.get(node.op_type, {1} if _is_transposed(node) else set())
    }
    weights, nodes = [], []
    for weight in inside.initializer:
        size = int(np.prod(weight.dims))
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2 or size < LEAST:
            weights.append(weight)
            continue
        outputs = len(weight.dims) - (2 if weight.name in first else 1)
        stored, made = small(weight.name, onnx.numpy_helper.to_array(weight), outputs)
        weights += stored
        nodes += made
    nodes += inside.node
    for part, content in ((inside.initializer, weights), (inside.node, nodes)):
        kept = [type(one).FromString(one.SerializeToString()) for one in content]
        del part[:]
        part.extend(kept)
    onnx.save_model(proto, str(target))


def _is_transposed(node: Any) -> bool:
    return node.op_type == "Gemm" and any(part.name == "transB" and part.i for part in node.attribute)


def _onnx_int8(source: Path, target: Path, cases: Sequence[Arrays]) -> None:
    """Products with constant matrices in int8; all else stays float, for ages and masks do not fit 256 levels."""
    import onnx  # noqa: PLC0415
    from onnxruntime import quantization  # noqa: PLC0415

    class Cases(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(cases)

        def get_next(self) -> Arrays | None:
            return next(self._left, None)

    quantization.quantize_static(
        str(source),
        str(target),
        Cases(),
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    onnx.save_model(stripped(onnx.load(target), {}), str(target))


def _tflite_fp16(source: Path, target: Path, _: Sequence[Arrays]) -> None:
    _tflite_weights(source, target, 16, "float_casting")


def _tflite_int8_weights(source: Path, target: Path, _: Sequence[Arrays]) -> None:
    _tflite_weights(source, target, 8, "min_max_uniform_quantize")


def _tflite_int8(source: Path, target: Path, cases: Sequence[Arrays]) -> None:
    """Products with constant matrices in int8; a recipe of all operators makes inputs and outputs int8 as well.

    The ranges are those of all cases; the quantizer's default, a moving average, cuts off what came first or seldom.
    """
    from ai_edge_quantizer import calibrator, qtyping, recipe_manager  # noqa: PLC0415
    from ai_edge_quantizer.utils import qsv_utils  # noqa: PLC0415

    recipe = recipe_manager.RecipeManager()
    recipe.add_static_config(".*", qtyping.TFLOperationName.FULLY_CONNECTED, activation_num_bits=8, weight_num_bits=8)
    ranges = calibrator.Calibrator(str(source), num_threads=1, qsv_update_func=qsv_utils.min_max_update)
    ranges.calibrate({"serving_default": list(cases)}, recipe)  # what the converter calls the only signature
    _tflite(source, target, recipe, ranges.get_model_qsvs())


def _tflite_weights(source: Path, target: Path, bits: int, algorithm: str) -> None:
    from ai_edge_quantizer import qtyping, recipe_manager  # noqa: PLC0415

    recipe = recipe_manager.RecipeManager()
    recipe.add_weight_only_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, num_bits=bits, algorithm_key=algorithm)
    _tflite(source, target, recipe, None)


def _tflite(source: Path, target: Path, recipe: Any, ranges: Any) -> None:
    from ai_edge_quantizer import quantizer  # noqa: PLC0415

    quantising = quantizer.Quantizer(str(source), recipe.get_quantization_recipe())
    made = quantising.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    target.write_bytes(bytes(made.quantized_model))


_Writer = Callable[[Path, Path, Sequence[Arrays]], None]
_ONNX: dict[str, _Writer] = {"fp16": _onnx_fp16, "int8_weights": _onnx_int8_weights, "int8": _onnx_int8}
_TFLITE: dict[str, _Writer] = {"fp16": _tflite_fp16, "int8_weights": _tflite_int8_weights, "int8": _tflite_int8}
