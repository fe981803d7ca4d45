"""Golden cases of a large catalogue: few enough for an app to ship, and still of all that a phone does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pocketrank import Bundle, selftest, tensors
from pocketrank.encoding import Events
from pocketrank.segments import SessionGap
from pocketrank_export import golden as cases
from pocketrank_export.examples import Builder
from pocketrank_export.exporting import write_bundle
from pocketrank_export.history import History, Vocabulary
from pocketrank_export.settings import ModelConfig, TrainingConfig
from pocketrank_export.split import AHEAD_US, Split
from pocketrank_export.trained import Trained, memory_only, new_model

ITEMS, USERS, BASKETS, EACH = 2000, 80, 50, 8
DAY_US, HALF_LIFE_S, REMEMBERED = 86_400_000_000, 5_184_000.0, 160


def trained() -> Trained:
    """As large as the demo's model, its catalogue larger than the demo's and with ids as long; nobody trained it."""
    config, policy = ModelConfig(encoder_layers=0), SessionGap(21_600, 32)
    ids = [f"PRODUCT TYPE NO. {row:04}" for row in range(ITEMS)]
    vocabulary = Vocabulary(list(ids), ["", "view"], np.arange(ITEMS, 0, -1))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = new_model(config, vocabulary, policy, 32).eval()
        with torch.no_grad():
            for weights in model.parameters():
                weights.add_(0.05 * torch.randn_like(weights))
        alone = new_model(memory_only(config), vocabulary, policy, 32)
    return Trained(
        model=model,
        memory_alone=alone,
        config=config,
        training=TrainingConfig(),
        vocabulary=vocabulary,
        policy=policy,
        slots=32,
        compaction={"kind": "ring"},
        remembered=REMEMBERED,
        half_life_s=HALF_LIFE_S,
        lateness_s=0,
        weights={},
        split=Split("time", "session", AHEAD_US, AHEAD_US, 1),
        validation={},
    )


def builder(of: Trained) -> Builder:
    """Everybody has a basket a day, mostly of items that many have."""
    random = np.random.default_rng(5)
    user = np.repeat(np.arange(USERS), BASKETS * EACH)
    basket = np.tile(np.repeat(np.arange(BASKETS), EACH), USERS)
    rows = (ITEMS * random.random(len(user)) ** 2).astype(np.int64)
    log = Events(rows, np.ones(len(user), np.int32), basket * DAY_US, np.ones(len(user), np.float32))
    segments = of.policy.cut(user, log.time_us, None)
    history = History(list(range(USERS)), user, log, segments, of.vocabulary)
    return Builder(history, 32, 32, REMEMBERED, HALF_LIFE_S)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    of, folder = trained(), tmp_path_factory.mktemp("large") / "bundle"
    write_bundle(of, builder(of), {}, folder)
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> tensors.Tensors:
    return tensors.read(bundle.folder / "golden.safetensors")[0]


def test_a_bundle_of_two_thousand_items_takes_less_than_a_megabyte_in_an_app(bundle: Bundle) -> None:
    shipped = [path.stat().st_size for path in bundle.folder.iterdir() if path.suffix != ".tflite"]
    assert (bundle.sizes.I, bundle.sizes.D, bundle.sizes.S, bundle.manifest.fusion) == (ITEMS, 64, 32, "prefix")
    assert 500_000 < sum(shipped) < 1_000_000
    assert len(shipped) == 11


def test_candidates_are_from_all_over_the_catalogue_and_some_are_there_twice(golden: tensors.Tensors) -> None:
    rows, times = np.unique(golden["score.rows"], return_counts=True)
    assert (len(rows), rows[0], rows[-1]) == (cases.CANDIDATES, 0, ITEMS - 1)
    assert set(np.diff(rows)) == {7, 8}
    assert set(times) == {1, 2}
    twice = rows[times == 2]
    best = golden["score.rows"][golden["score.scores"][: cases.HOSTILE].argmax(axis=1)]
    assert set(best) == set(twice)


def test_what_is_remembered_is_of_candidates_and_nobody_remembers_nothing(golden: tensors.Tensors) -> None:
    rows, features = golden["score.memory_rows"], golden["score.memory"]
    assert set(rows[rows >= 0]) <= set(golden["score.rows"])
    assert not features[rows < 0].any()
    assert (features[rows >= 0][:, 0] >= 1).all()
    held = (rows >= 0).sum(axis=1)
    assert held[0] == 0
    assert held[1:].min() >= 1
    assert 10 < rows.shape[1] == held.max() < REMEMBERED


def test_every_hostile_case_is_there(golden: tensors.Tensors) -> None:
    mask, live, age_s, weight = (golden[f"state.{name}"] for name in ("mask", "live_mask", "age_s", "weight"))
    vectors = golden["state.vectors"]
    assert len(mask) == cases.CASES == 64
    filled, events = mask.sum(axis=1), live.sum(axis=1)
    assert (filled[0], events[0]) == (0, 0)
    assert filled[1] == 0 < events[2] + filled[2]
    assert (events[2], filled[3], filled[4], age_s[4].max()) == (0, 1, 32, 0)
    assert (age_s[5] == np.float32(4e9)).all()
    assert (weight[6] == 0).all()
    assert (filled[8], events[8]) == (1, 0)
    assert (vectors[9] == vectors[9, :1]).all()
    assert set(weight[10]) == {0.0, 1e6}
    assert (golden["state.live_age_s"][11] == np.float32(4e9)).all()
    assert (golden["encoder.mask"][0].sum(), golden["encoder.gap_s"][1, 0]) == (0, np.float32(4e9))
    assert (golden["encoder.rows"][2] == -1).all()
    assert len(golden["encoder.rows"]) == cases.SEGMENTS


@pytest.mark.parametrize("engine", ["onnx", "litert"])
def test_an_engine_is_held_to_every_candidate_and_memory(
    bundle: Bundle, golden: tensors.Tensors, tmp_path: Path, engine: str
) -> None:
    found = selftest.check(bundle, engine)
    assert (found.ok, found.cases, found.order_same) == (True, 64, 64)
    there = golden["score.memory_rows"] >= 0
    for name, spoil in {
        "score.scores": lambda array: array + np.eye(*array.shape, 250, dtype=np.float32),
        "score.memory": lambda array: array + there[..., None] * np.float32(3),
    }.items():
        tensors.save(tmp_path / "golden.safetensors", {**golden, name: spoil(golden[name])}, {})
        for path in bundle.folder.iterdir():
            if path.name != "golden.safetensors" and not (tmp_path / path.name).exists():
                (tmp_path / path.name).symlink_to(path)
        assert not selftest.check(Bundle(tmp_path, bundle.manifest, bundle.items), engine).ok
