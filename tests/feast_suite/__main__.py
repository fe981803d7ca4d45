"""`python -m tests.feast_suite CHECKOUT`: Feast's own universal online-store tests against PackOnlineStore.

CHECKOUT is a clone of github.com/feast-dev/feast, bare or not; of it the tests alone are taken, never Feast itself: the
installed one is what we run with. What they want besides is installed into a temporary environment over this one.
"""

import argparse
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from collections.abc import Iterator
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.redis_server import LACKING, find_program, running

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = "sdk/python/tests"
MARK = "universal_online_stores"
OUR_STORE = "pocketrank_features.online_store.PackOnlineStore"
# Ours, since theirs asks for plugins that would not do with ours.
INI = "[pytest]\nasyncio_mode = auto\nmarkers =\n    local_only: nothing outside this machine\n"
PLUGINS = ("outcomes", "xdist", "pytest_timeout", "pytest_asyncio.plugin")


def main() -> None:
    """Run them, and say how each ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.feast_suite", description=__doc__)
    parser.add_argument("checkout", type=Path, help="a clone of Feast, or its git directory")
    parser.add_argument("--revision", default="HEAD", help="of a git directory, which tests to take")
    parser.add_argument("--store", choices=["embedded", "redis"], default="embedded")
    parser.add_argument("--environment", type=Path, help="where to keep what is installed, for the next time")
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory(prefix="feast-suite-") as temporary, contextlib.ExitStack() as stack:
        work = Path(temporary)
        _take_tests(options.checkout.resolve(), options.revision, work)
        python = _environment(options.environment or work / "environment")
        ended, failed_to_run = _run(python, work, stack.enter_context(_store(options.store, work)), more)
    counts = {name: sum(one["outcome"] == name for one in ended) for name in ("passed", "failed", "skipped")}
    what = f"Feast {version('feast')}, tests of {options.checkout} {options.revision}, store {options.store}"
    verdict = ", ".join(f"{count} {name}" for name, count in counts.items())
    sys.stdout.write(f"{_table(ended)}\n\n{what}\n{verdict}\n")
    sys.exit(1 if failed_to_run or counts["failed"] or not counts["passed"] else 0)


def _take_tests(checkout: Path, revision: str, work: Path) -> None:
    """Put Feast's package `tests` into a folder, without the Feast beside it."""
    if (checkout / TESTS).is_dir() and revision == "HEAD":
        shutil.copytree(checkout / TESTS, work / "tests")
        return
    command = ["git", "-C", checkout, "archive", revision, TESTS]
    taken = subprocess.run(command, check=False, capture_output=True)
    if taken.returncode:
        sys.exit(f"{checkout}: {taken.stderr.decode().strip()}; name a clone of github.com/feast-dev/feast")
    with tarfile.open(fileobj=io.BytesIO(taken.stdout)) as archive:
        archive.extractall(work, filter="data")
    shutil.move(work / TESTS, work / "tests")


def _environment(folder: Path) -> Path:
    """An environment with pytest 7 and what else the tests import, which falls back to this one for all else."""
    python = folder / "bin" / "python"
    if (folder / "ready").is_file():
        return python
    sys.stderr.write("installing what Feast's tests want ...\n")
    venv.create(folder, with_pip=True)
    theirs = {"pytest", "pytest-timeout", "pytest-xdist", "python-dateutil"}  # botocore wants an older dateutil
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in lines if line.split("==")[0] not in theirs))
    wanted = ["-r", HERE / "requirements.txt", "-c", constraints]
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *wanted], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    here = sysconfig.get_path("purelib")
    (site / "beneath.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    (folder / "ready").touch()
    return python


@contextlib.contextmanager
def _store(kind: str, work: Path) -> Iterator[dict[str, Any]]:
    """What stands under `online_store` in feature_store.yaml."""
    if kind == "embedded":
        yield {"type": OUR_STORE, "path": "online.db"}
        return
    program = find_program() or sys.exit(LACKING)
    with running(program, work) as port:
        yield {"type": OUR_STORE, "url": f"redis://127.0.0.1:{port}/0"}


def _run(python: Path, work: Path, store: dict[str, Any], more: list[str]) -> tuple[list[dict[str, str]], bool]:
    """How each test ended; and whether pytest itself failed."""
    files = sorted((work / "tests" / "integration").rglob("test_*.py"))
    marked = [path for path in files if f"mark.{MARK}" in path.read_text()]
    (work / "pytest.ini").write_text(INI)
    surroundings = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(work), str(HERE), os.environ.get("PYTHONPATH")])),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "FULL_REPO_CONFIGS_MODULE": "stand_ins",
        "POCKETRANK_STORE": json.dumps(store),
        "POCKETRANK_OUTCOMES": str(work / "outcomes.json"),
        "FEAST_IS_LOCAL_TEST": "True",  # until all is imported: see outcomes.py
        "FEAST_USAGE": "False",
    }
    command = [python, "-m", "pytest", "-c", work / "pytest.ini", "--rootdir", work, "-q", "--tb=short"]
    command += [part for name in PLUGINS for part in ("-p", name)]
    command += ["--timeout", "300", "-W", "ignore", "--show-capture=no", "--integration", "-m", MARK, *more, *marked]
    run = subprocess.run(command, check=False, cwd=work, env=surroundings, stdout=sys.stderr)
    path = work / "outcomes.json"
    return json.loads(path.read_text()) if path.is_file() else [], run.returncode > 1


def _table(ended: list[dict[str, str]]) -> str:
    lines = []
    for outcome in ("passed", "failed", "skipped"):
        found = [one for one in ended if one["outcome"] == outcome]
        lines.append(f"{outcome} {len(found)}")
        for test, group in groupby(found, key=lambda one: one["test"]):
            cases = list(group)
            lines.append(f"  {test}" + (f"  {len(cases)} cases" if len(cases) > 1 else ""))
            lines += [f"      {reason}" for reason in dict.fromkeys(one["reason"] for one in cases) if reason]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
