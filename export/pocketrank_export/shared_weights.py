"""Weights that stand in another graph's file already are not written again: an ONNX graph may read them where they lie.

ONNX calls them external data: a file beside the graph's own, an offset, a length. They are found by their bytes, so it
does not matter what a converter calls them, nor in what form they are. Only those that products take, which engines lay
out in memory of their own as they load: any other would be read where it lies, in a file that may be written to.
"""

from pathlib import Path

PRODUCTS = {"MatMul", "Gemm", "Cast", "DequantizeLinear"}  # and what makes a small form a float before one
LEAST = 1024  # bytes of a tensor that is worth the hundred that name its place


def share_weights(path: Path, other: Path) -> None:
    """Leave out of one ONNX file what another one beside it holds."""
    import onnx  # noqa: PLC0415

    proto, content = onnx.load(path), other.read_bytes()
    elsewhere = {name for node in proto.graph.node if node.op_type not in PRODUCTS for name in node.input}
    for weight in proto.graph.initializer:
        is_shared = len(weight.raw_data) >= LEAST and weight.name not in elsewhere
        at = content.find(weight.raw_data) if is_shared else -1
        if at < 0:
            continue
        place = {"location": other.name, "offset": str(at), "length": str(len(weight.raw_data))}
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in place.items():
            weight.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString(deterministic=True))
