"""Weights that stand in another graph's file already are not written again: an ONNX graph may read them where they lie.

ONNX calls them external data: a file beside the graph's own, an offset, a length. They are found by their bytes, so it
does not matter what a converter calls them, nor in what form they are.
"""

from pathlib import Path

LEAST = 1024  # bytes of a tensor that is worth the hundred that name its place


def share_weights(path: Path, other: Path) -> None:
    """Leave out of one ONNX file what another one beside it holds."""
    import onnx  # noqa: PLC0415

    proto, content = onnx.load(path), other.read_bytes()
    for weight in proto.graph.initializer:
        at = content.find(weight.raw_data) if len(weight.raw_data) >= LEAST else -1
        if at < 0:
            continue
        place = {"location": other.name, "offset": str(at), "length": str(len(weight.raw_data))}
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        for key, value in place.items():
            weight.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString(deterministic=True))
