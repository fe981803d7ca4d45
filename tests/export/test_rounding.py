"""Simulated int8 is the product's own, and of fewer bits there are fewer levels."""

import numpy as np
import pytest
import torch

from pocketrank.quantise import dequantise, quantise
from pocketrank.segments import SessionGap
from pocketrank_export.asked import Asked
from pocketrank_export.examples import Builder
from pocketrank_export.metrics import FloatArray
from pocketrank_export.model import Model
from pocketrank_export.rounding import INT4, INT8, ROUNDINGS, rounded, with_rounded_items, with_rounded_weights
from pocketrank_export.scoring import batch_scores, encode_by_length
from pocketrank_export.settings import ModelConfig

from .histories import history_of


def test_int8_is_what_quantise_gives() -> None:
    random = np.random.default_rng(2)
    x = random.normal(size=(50, 3, 16)).astype(np.float32) * random.choice([1e-3, 1, 50], (50, 3, 1)).astype(np.float32)
    x[0, 0], x[1, 0] = 0, 1e-44
    x[2, 0] = np.float32([127, 0.5, 1.5, 2.5, -0.5, -1.5, *[0] * 10])  # halves go to the even one
    assert np.array_equal(rounded(torch.from_numpy(x), INT8).numpy(), dequantise(*quantise(x)))


def test_int4_has_fifteen_levels_of_which_the_highest_is_the_peak() -> None:
    x = torch.tensor([[-7.0, 3.4, 3.6, 0.0, 7.0]])
    assert rounded(x, INT4).tolist() == [[-7.0, 3.0, 4.0, 0.0, 7.0]]


@pytest.fixture(scope="module")
def asked() -> tuple[Model, Asked]:
    torch.manual_seed(3)
    items = [[0, 1, 2, 3, 1, 0, 4, 5], [5, 4, 3, 2, 5, 5, 0]]
    history = history_of(SessionGap(2, 4), items, [[5 * (n // 2) + n % 2 for n in range(len(r))] for r in items])
    model = Model(ModelConfig(width=8, dropout=0.0), 6, 3, 4, 3).eval()
    with torch.no_grad():
        for part in model.parameters():
            part.add_(torch.randn(part.shape) * 0.3)
    every = np.arange(len(history.segments))
    return model, Asked(Builder(history, 3, 4, 8, 100.0), every, every % 2, history.segments.end)


def said(name: str, asked: tuple[Model, Asked]) -> FloatArray:
    return ROUNDINGS[name](asked[0])(asked[1].batch(), asked[1])


def test_every_row_rounds_what_it_names_and_the_model_stays(asked: tuple[Model, Asked]) -> None:
    model, batch = asked[0], asked[1].batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        plain = batch_scores(model, batch).numpy()
    apart = {name: np.abs(said(name, asked) - plain).max() for name in ROUNDINGS}
    assert all(0 < found < 0.2 for name, found in apart.items() if name != "int4_vectors")
    assert apart["int4_vectors"] > 2 * apart["int8_vectors"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_cached_vectors_are_rounded_as_a_row_holds_them(asked: tuple[Model, Asked]) -> None:
    model, batch = asked[0], asked[1].batch()
    with torch.no_grad():
        encoded = encode_by_length(model, batch, model.item_vectors()).numpy()
        batch.vectors.resize_(encoded.shape).copy_(torch.from_numpy(dequantise(*quantise(encoded))))
        wanted = batch_scores(model, batch).numpy()
    np.testing.assert_allclose(said("int8_vectors", asked), wanted, atol=1e-6)


def test_items_and_weights_have_a_scale_a_row(asked: tuple[Model, Asked]) -> None:
    model = asked[0]
    items = with_rounded_items(model).items.weight.detach().numpy()
    assert np.array_equal(items, dequantise(*quantise(model.item_vectors().detach().numpy())))
    rows = with_rounded_weights(model).encoder.state_dict()
    weight = model.encoder.state_dict()["out.weight"].numpy()
    assert np.array_equal(rows["out.weight"].numpy(), dequantise(*quantise(weight)))
    assert torch.equal(rows["out.bias"], model.encoder.state_dict()["out.bias"])
    assert torch.equal(rows["behavior.weight"], model.encoder.state_dict()["behavior.weight"])
