"""Files that appear whole or not at all. Folders are held in test_many_at_once."""

from pathlib import Path

import pytest

from pocketrank.atomic import file_beside, folder_beside, write_bytes


def test_a_file_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [found.name for found in path.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("existed", [True, False])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, existed: bool, error: type[BaseException]) -> None:
    path = tmp_path / "a"
    if existed:
        path.write_bytes(b"old")

    def fail() -> None:
        with file_beside(path) as draft:
            draft.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert [found.read_bytes() for found in tmp_path.iterdir()] == [b"old"] * existed


def test_the_old_file_serves_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with file_beside(path) as draft:
        draft.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "bundle"

    def fill(name: str, error: type[BaseException] | None) -> None:
        with folder_beside(path) as draft:
            (draft / name).touch()
            if error:
                raise error

    for name, error in (("first", KeyboardInterrupt), ("second", None), ("third", OSError), ("fourth", None)):
        if error:
            with pytest.raises(error):
                fill(name, error)
        else:
            fill(name, None)
            assert [found.name for found in path.iterdir()] == [name]
        assert [found.name for found in tmp_path.iterdir()] == ([] if name == "first" else ["bundle"])
