"""One tiny bundle for all of the runtime's tests, and its slow second opinion."""

import shutil
from pathlib import Path

import pytest

from ..bundles import write_bundle
from .phones import Slow

IDS = [f"p-{number}" for number in range(12)]


@pytest.fixture(scope="session")
def bundle_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test alters."""
    return write_bundle(tmp_path_factory.mktemp("app") / "bundle", IDS, items_remembered=64, is_parted=True)


@pytest.fixture(scope="session")
def slow(bundle_dir: Path) -> Slow:
    return Slow(bundle_dir)


@pytest.fixture
def own_bundle(bundle_dir: Path, tmp_path: Path) -> Path:
    """A copy to alter."""
    return Path(shutil.copytree(bundle_dir, tmp_path / "own"))
