"""Dropout drops the share it is told to, keeps the mean, and does nothing outside of training."""

import pytest
import torch

from pocketrank_export.layers import Dropout


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(rate: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(1001, 997, requires_grad=True)
    found = Dropout(rate).train()(x)
    assert (found == 0).float().mean().item() == pytest.approx(rate, abs=0.005)
    assert found.mean().item() == pytest.approx(1.0, abs=0.005)
    found.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, found.detach())
    rows = (found == 0).float()
    assert rows.mean(dim=0).std().item() < 0.03  # no column is dropped more than others


def test_dropout_does_nothing_outside_of_training_or_at_a_rate_of_0() -> None:
    x = torch.randn(7, 5)
    assert torch.equal(Dropout(0.3).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)
