"""Items files read into hashed values and standardised columns."""

from pathlib import Path

import numpy as np
import pytest

from pocketrank.errors import BadInput
from pocketrank_export.features import Features, ItemTable, bucket_of

from .catalogues import write_items

BUCKETS = 64


def features(path: Path, items: list, trained: int, **columns: list) -> Features:
    write_items(path, columns.pop("ids", items), **columns)
    return ItemTable.read(path).features(items, trained, BUCKETS)


def values(found: Features, item: int) -> dict[int, float]:
    part = slice(found.start[item], found.start[item + 1])
    return dict(zip(found.tokens[part].tolist(), found.shares[part].tolist(), strict=True))


def test_a_value_goes_to_the_same_bucket_on_every_machine() -> None:
    # `printf 'brand=Zoë' | b2sum -l 64` says 43ce16aef8e9487b; little-endian, the first byte counts least.
    assert bucket_of("brand", "Zoë", 8192) == 0x7B48E9F8AE16CE43 % 8192
    assert bucket_of("brand", "Zoë", 1) == 0
    assert bucket_of("brand", "x", 1 << 40) != bucket_of("maker", "x", 1 << 40)


def test_categories_count_once_and_tokens_of_a_list_share_one(tmp_path: Path) -> None:
    found = features(
        tmp_path / "items",
        ["a", "b", "c"],
        3,
        kind=["x", "x", None],
        words=[["red", "old"], ["red"], ["old", "red", None]],
    )
    kind, red, old = bucket_of("kind", "x", BUCKETS), bucket_of("words", "red", BUCKETS), bucket_of("words", "old", 64)
    assert values(found, 0) == {kind: 1.0, red: 0.5, old: 0.5}
    assert values(found, 1) == {kind: 1.0, red: 1.0}
    assert values(found, 2) == {old: 0.5, red: 0.5}


def test_a_value_of_fewer_than_two_trained_items_is_left_out(tmp_path: Path) -> None:
    found = features(
        tmp_path / "items", ["a", "b", "new", "newer"], 2, title=["one", "two", "three", "three"], kind=["x"] * 4
    )
    assert all(values(found, item) == {bucket_of("kind", "x", BUCKETS): 1.0} for item in range(4))


def test_numbers_are_standardised_by_trained_items_alone(tmp_path: Path) -> None:
    found = features(
        tmp_path / "items",
        ["a", "b", "new", "nothing"],
        2,
        price=[1.0, 3.0, 4.0, None],
        picture=[[0.0, 1.0], [0.0, 3.0], [9.0, 2.0], None],
    )
    root = 0.5**0.5
    np.testing.assert_allclose(found.mean, [2, 0, 2])
    np.testing.assert_allclose(found.deviation, [1, 1, 1])  # 1 for the picture's first, which is always 0
    wanted = [[-1, 0, -root, 1, 1], [1, 0, root, 1, 1], [2, 5 * root, 0, 1, 1], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(found.numbers, wanted, atol=1e-6)
    assert found.known.tolist() == [True, True, True, False]


def test_features_follow_the_vocabulary_whatever_the_files_order_and_gaps(tmp_path: Path) -> None:
    items = [7, 3, 99, 5]
    found = features(tmp_path / "items", items, 4, ids=[1, 5, 3, 7], kind=["q", "y", "y", "z"], size=[0.0, 5, 3, 7])
    assert values(found, 1) == values(found, 3) == {bucket_of("kind", "y", BUCKETS): 1.0}
    assert found.known.tolist() == [True, True, False, True]
    assert found.numbers[:, 0].argsort().tolist() == [1, 2, 3, 0]
    again = Features.of_arrays(found.arrays())
    assert again is not None
    assert all(np.array_equal(getattr(again, name), array) for name, array in vars(found).items())
    assert Features.of_arrays({}) is None


def test_extreme_numbers_give_finite_features(tmp_path: Path) -> None:
    found = features(
        tmp_path / "items", list("abcd"), 4, huge=[3e38, -3e38, 1e-30, 0.0], same=[7.0] * 4, little=[1e-9, 2e-9, 0, 0]
    )
    assert np.isfinite(found.numbers).all()
    assert np.abs(found.numbers).max() <= 5


def test_the_first_items_alone_and_the_others_blank(tmp_path: Path) -> None:
    whole = features(tmp_path / "items", list("abcd"), 4, kind=["x"] * 4, size=[1.0, 2, 3, 4])
    first, blank = whole.first(2), whole.blank_after(2)
    assert len(first) == 2
    assert len(blank) == 4
    assert values(first, 1) == values(blank, 1) == values(whole, 1)
    assert blank.known.tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("columns", "named"),
    [({"kind": [1, 2]}, "columns kind"), ({"picture": [[1.0], [1.0, 2.0]]}, "columns picture")],
)
def test_a_file_that_ingest_did_not_write_is_refused(tmp_path: Path, columns: dict, named: str) -> None:
    path = tmp_path / "items.parquet"
    write_items(path, ["a", "b"], **columns)
    with pytest.raises(BadInput) as caught:
        ItemTable.read(path)
    again = "write it again: pocketrank ingest --items FILE"
    assert str(caught.value) == f"{path}: not an items file ({named}); {again}"


def test_a_damaged_file_and_ids_of_another_type_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "items.parquet"
    path.write_bytes(b"PAR1 not")
    with pytest.raises(BadInput, match=r"damaged .*; write it again: pocketrank ingest --items FILE"):
        ItemTable.read(path)
    write_items(path, [1, 2], kind=["x", "y"])
    with pytest.raises(BadInput) as caught:
        ItemTable.read(path).checked(["1", "2"], "data/events")
    assert str(caught.value) == (
        f"{path}: item_id holds integers, in data/events it holds strings; "
        "write the ids alike, and bring the items in again: pocketrank ingest --items FILE"
    )
