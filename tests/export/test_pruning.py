"""What does not matter goes first, what is left says the same, and is a model like any other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pocketrank import engines
from pocketrank.errors import UsageError
from pocketrank.segments import SessionGap
from pocketrank_export import variants
from pocketrank_export.examples import Batch, Builder
from pocketrank_export.graphs import graph, to_onnx
from pocketrank_export.heads import NextItem
from pocketrank_export.layers import Block
from pocketrank_export.model import Model
from pocketrank_export.pruning import Kept, blocks_of, importance, pruned
from pocketrank_export.scoring import batch_scores
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import Split
from pocketrank_export.trained import Trained, memory_only, new_model
from pocketrank_export.variants import VARIANTS, write_variant

from .histories import history_of
from .test_parity import situations

D, L, S = 8, 4, 5  # as `situations` has them
ITEMS = [[0, 1, 2, 3, 1, 0, 4, 5], [5, 4, 3, 2, 5, 5, 0], [2, 2, 2, 1]]
TIMES = [[5 * (n // 2) + n % 2 for n in range(len(rows))] for rows in ITEMS]


def trained(fusion: str = "prefix", **settings: int | str) -> tuple[Trained, Batch]:
    torch.manual_seed(4)
    policy = SessionGap(2, L)
    history = history_of(policy, ITEMS, TIMES)
    config = ModelConfig(fusion=fusion, width=D, heads=4, dropout=0.1, **settings)  # type: ignore[arg-type]
    model = new_model(config, history.vocabulary, policy, S)
    with torch.no_grad():
        for part in model.parameters():
            part.add_(torch.randn(part.shape) * 0.3)
    training = TrainingConfig()
    made = Trained(
        model=model.eval(),
        memory_alone=new_model(memory_only(config), history.vocabulary, policy, S),
        config=config,
        training=training,
        vocabulary=history.vocabulary,
        policy=policy,
        slots=S,
        compaction={"kind": "ring"},
        remembered=8,
        half_life_s=100.0,
        lateness_s=0,
        weights={},
        split=Split.of(history.events.time_us, training),
        validation={},
    )
    every = np.arange(len(history.segments))
    builder = Builder(history, S, L, 8, 100.0)
    return made, builder.batch(every, every % 2, history.segments.end)


def silence(block: Block, heads: list[int], units: list[int]) -> None:
    """Nothing listens to these any more; what they say is as loud as ever."""
    with torch.no_grad():
        for head in heads:
            block.attention.out.weight[:, head * 2 : head * 2 + 2] = 0
        block.forward_net[2].weight[:, units] = 0


def scores_of(model: Model, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return batch_scores(model, batch)


@pytest.mark.parametrize(("fusion", "encoder"), [("prefix", False), ("prefix", True), ("attention", True)])
def test_heads_and_units_that_nothing_listens_to_go_first_and_the_scores_stay(fusion: str, encoder: bool) -> None:
    made, batch = trained(fusion)
    silent = [5, *range(9, 16)]
    for number, block in enumerate(blocks_of(made.model, encoder).values()):
        silence(block, [number, 3], silent)
    head = NextItem(made.vocabulary.counts, 0)
    found = importance(made.model, head, [batch, batch], encoder)
    for number, (heads, units) in enumerate(found.values()):
        assert np.flatnonzero(heads == 0).tolist() == [number, 3]
        assert np.flatnonzero(units == 0).tolist() == silent
    smaller = pruned(made, Kept(2, 8, encoder), found)
    assert torch.allclose(scores_of(smaller.model, batch), scores_of(made.model, batch), atol=1e-5)
    kept = blocks_of(smaller.model, True)
    for name, block in kept.items():
        fewer = encoder or name.startswith("fusion")
        assert block.attention.query.weight.shape == ((4, D) if fewer else (D, D))
        assert block.attention.key_value.weight.shape[0] == 2 * block.attention.out.weight.shape[1]
        assert block.forward_net[2].weight.shape == (D, 8 if fewer else 16)
    if not encoder:
        for name, value in made.model.encoder.state_dict().items():
            assert torch.equal(smaller.model.encoder.state_dict()[name], value)


def test_importance_is_the_gradient_of_a_gate_example_by_example() -> None:
    made, batch = trained(layers=1)
    head = NextItem(made.vocabulary.counts, 0)
    heads, units = importance(made.model, head, [batch], encoder=False)["fusion.blocks.0"]
    block = made.model.fusion.blocks[0]  # type: ignore[union-attr, index]
    step = 1e-3

    def loss_with(linear: torch.nn.Linear, columns: slice, gate: float) -> float:
        kept = linear.weight[:, columns].clone()
        with torch.no_grad():
            linear.weight[:, columns] = kept * gate
            loss = head.loss(made.model, batch, 0.0).item()
            linear.weight[:, columns] = kept
        return loss

    for linear, found, size in ((block.attention.out, heads, 2), (block.forward_net[2], units, 1)):
        for place, value in enumerate(found[:4]):
            columns = slice(place * size, place * size + size)
            slope = (loss_with(linear, columns, 1 + step) - loss_with(linear, columns, 1 - step)) / (2 * step)
            assert abs(slope) <= value.item() + 1e-3  # of all examples together, whose signs may differ
    one = made.vocabulary.counts  # of one example they cannot
    builder = Builder(history_of(SessionGap(2, L), ITEMS, TIMES), S, L, 8, 100.0)
    batch = builder.batch(np.array([2]), np.array([1]), builder.history.segments.end[[2]])
    heads, _ = importance(made.model, NextItem(one, 0), [batch])["fusion.blocks.0"]
    for place, value in enumerate(heads):
        columns = slice(place * 2, place * 2 + 2)
        slope = loss_with(block.attention.out, columns, 1 + step) - loss_with(block.attention.out, columns, 1 - step)
        assert abs(slope / (2 * step)) == pytest.approx(value.item(), abs=2e-3)


def test_gradients_and_what_was_frozen_are_as_before() -> None:
    made, batch = trained()
    made.model.encoder.requires_grad_(False)
    before = {name: value.requires_grad for name, value in made.model.named_parameters()}
    importance(made.model, NextItem(made.vocabulary.counts, 0), [batch])
    assert {name: value.requires_grad for name, value in made.model.named_parameters()} == before
    assert all(value.grad is None for value in made.model.parameters())


def test_a_pruned_model_is_saved_and_opened_and_exports_to_the_same_states_in_every_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, batch = trained()
    found = importance(made.model, NextItem(made.vocabulary.counts, 0), [batch])
    smaller = pruned(made, Kept(1, 3), found)
    assert (smaller.config.fusion_heads, smaller.config.fusion_feed_forward) == (1, 3)
    assert (smaller.config.heads, smaller.config.head_width, smaller.config.feed_forward) == (4, 0, 0)
    smaller.save(tmp_path / "model")
    again = Trained.open(tmp_path / "model")
    assert torch.equal(scores_of(again.model, batch), scores_of(smaller.model, batch))
    to_onnx(again.model, again.sizes, "state", tmp_path / "state.onnx")
    torch.manual_seed(6)
    for shape in ((S, L), (2, 2)):
        fed = {**situations(1, *shape), "live_behavior": torch.randint(0, 3, (8, shape[1]), dtype=torch.int32)}
        with torch.no_grad():
            wanted, _ = graph(again.model, "state")(**fed)
        ran = engines.load(tmp_path, "state", "onnx").run({name: value.numpy() for name, value in fed.items()})
        np.testing.assert_allclose(ran["state"], wanted.numpy(), atol=1e-5)
        arrays = {name: value.numpy() for name, value in fed.items()}
        for variant in VARIANTS[1:]:
            (tmp_path / variant).mkdir(exist_ok=True)
            cases = [{name: value[row : row + 1] for name, value in arrays.items()} for row in range(8)]
            monkeypatch.setattr(variants, "LEAST", 16)
            write_variant(variant, tmp_path / "state.onnx", tmp_path / variant / "state.onnx", cases)
            small = engines.load(tmp_path / variant, "state", "onnx").run(arrays)["state"]
            lost = np.linalg.norm(small - wanted.numpy()) / np.linalg.norm(wanted.numpy())
            assert 0 < lost < 0.06, variant


@pytest.mark.parametrize(
    ("settings", "kept", "line"),
    [
        ({}, Kept(heads=5), "--heads 5: a layer has 4; give 1 to 4, or leave it out for all"),
        ({}, Kept(feed_forward=-1), "--feed-forward -1: a layer has 16; give 1 to 16, or leave it out for all"),
        ({"fusion": "mean"}, Kept(heads=1), '[model] fusion = "mean" has no transformer layers that could be pruned'),
        ({"encoder": "gru"}, Kept(heads=1, encoder=True), '[model] encoder = "gru" has no transformer layers'),
    ],
)
def test_what_cannot_be_pruned_is_refused_by_name(settings: dict[str, str], kept: Kept, line: str) -> None:
    made, _ = trained(**settings)
    check = (lambda: kept.of(made.config)) if not settings else (lambda: blocks_of(made.model, kept.encoder))
    with pytest.raises(UsageError) as refused:
        check()
    assert line in str(refused.value)
