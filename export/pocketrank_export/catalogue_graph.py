"""The graph that scores the whole catalogue by an int8 product: as exact as a float32 one, and faster.

onnxruntime lays a constant int8 table out for the CPU's own int8 instructions; so the item table, turned, is a constant
that whoever loads the graph hands in, and the file holds none of it. The state is float32. It is written in four digits
to base 128, each a row of integers that multiplies the table without any rounding; their sum is the state to 27 bits,
more than a float32 has. Digits are 0 to 128 so that two products fit 16 bits, in which CPUs without dot-product
instructions add them. Source: the error-free splitting of Ozaki et al., Numerical Algorithms 59, 2012, in integers.
"""

from pathlib import Path

from pocketrank.bundle import Sizes

OPSET, IR_VERSION = 18, 10
DIGITS, BASE = 4, 128


def to_catalogue(sizes: Sizes, path: Path) -> None:
    """Write it: `state` (1, D), `state_bias` (1,), `bias` (I,) float32 -> `scores` (I,) float32.

    Args:
        sizes: I and D count; H must be 1: with more state vectors there is nothing to gain.
        path: of the ONNX file. Its initializers `items` (D, I) int8 and `scales` (I,) float32 are external.
    """
    from onnx import TensorProto, parser  # noqa: PLC0415

    places = range(DIGITS)
    weights = ", ".join(repr(2.0 / BASE ** (place + 1)) for place in places)
    constants = [
        "float least = {1e-30}",
        f"float half = {{{BASE // 2}}}",
        f"float base = {{{BASE}}}",
        f"uint8 zero_point = {{{BASE // 2}}}",
        f"float[1, {DIGITS}] weights = {{{weights}}}",
    ]
    digits = [
        f"digit{place} = Round (rest{place})\nleft{place} = Sub (rest{place}, digit{place})\n"
        f"rest{place + 1} = Mul (left{place}, base)"
        for place in places
    ]
    steps = [
        "size = Abs (state)",
        "most = ReduceMax <keepdims = 1> (size)",
        "unit = Max (most, least)",
        "share = Div (state, unit)",
        "rest0 = Mul (share, half)",
        *digits,
        f"signed = Concat <axis = 0> ({', '.join(f'digit{place}' for place in places)})",
        "positive = Add (signed, half)",
        f"rows = Cast <to = {TensorProto.UINT8}> (positive)",
        "products = MatMulInteger (rows, items, zero_point)",
        f"floats = Cast <to = {TensorProto.FLOAT}> (products)",
        "worth = Mul (weights, unit)",
        "sums = MatMul (worth, floats)",
        "match = Mul (sums, scales)",
        "biased = Add (match, state_bias)",
        "total = Add (biased, bias)",
        "scores = Reshape (total, shape)",
    ]
    text = "\n".join(steps)
    model = parser.parse_model(
        f"""<ir_version: {IR_VERSION}, opset_import: ["": {OPSET}]>
        catalogue (float[1, {sizes.D}] state, float[1] state_bias, float[{sizes.I}] bias) => (float[{sizes.I}] scores)
            <{", ".join([*constants, f"int64[1] shape = {{{sizes.I}}}"])}> {{ {text} }}"""
    )
    for name, kind, shape in [
        ("items", TensorProto.INT8, [sizes.D, sizes.I]),
        ("scales", TensorProto.FLOAT, [sizes.I]),
    ]:
        constant = model.graph.initializer.add(name=name, data_type=kind, dims=shape)
        constant.data_location = TensorProto.EXTERNAL
        constant.external_data.add(key="location", value="items.safetensors")
    path.write_bytes(model.SerializeToString(deterministic=True))
