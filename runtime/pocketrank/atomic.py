"""Files and folders that appear whole or not at all.

Everything is written beside its target and renamed over it, so a reader or a crash never meets half of it.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is either the old one or the new one, never half of it."""
    with file_beside(path) as draft:
        draft.write_bytes(content)


@contextmanager
def file_beside(path: Path) -> Iterator[Path]:
    """Give a path to write to; it becomes `path` when the block ends well, and is removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = _draft(path)
    try:
        yield draft
        with draft.open("rb") as written:
            os.fsync(written.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Remove a folder with all that is in it, if it is there."""
    import shutil  # noqa: PLC0415  with two compressions: half a MB that a phone which only ranks goes without

    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """Give a folder to fill; it takes the place of `path` when the block ends well, and is removed when it does not."""
    with folders_beside([path]) as (draft,):
        yield draft


@contextmanager
def folders_beside(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Give a folder to fill for each path; they take their places together when the block ends well.

    When it does not, or is interrupted while they do, every old folder is where it was.
    """
    drafts = [_draft(path) for path in paths]
    try:
        for path, draft in zip(paths, drafts, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove(draft)
            draft.mkdir()
        yield drafts
        _take_places(paths, drafts)
    finally:
        for draft in drafts:
            remove(draft)


def _take_places(paths: Sequence[Path], drafts: Sequence[Path]) -> None:
    olds = [path.with_name(f".{path.name}.old") for path in paths]
    for old in olds:
        remove(old)
    existed = [path.exists() for path in paths]
    try:
        for path, draft, old, exists in zip(paths, drafts, olds, existed, strict=True):
            if exists:
                path.rename(old)
            draft.rename(path)
    except BaseException:
        for path, old, exists in zip(paths, olds, existed, strict=True):
            if old.exists() or not exists:
                remove(path)
            if old.exists():
                old.rename(path)
        raise
    for old in olds:
        remove(old)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.draft")
