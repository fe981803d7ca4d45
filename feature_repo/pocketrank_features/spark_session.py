"""A Spark to run one job on, started and stopped quietly.

Spark's own log goes nowhere unless a file is given for it: what somebody has to know of a failure is in the one line
that `spark_errors` finds.
"""

import os
import re
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from pocketrank.errors import PocketRankError, UsageError
from pocketrank_features.spark_errors import in_one_line

_LOCAL = re.compile(r"local(\[|-cluster\[|$)")
_DEFAULTS = {
    "spark.app.name": "pocketrank segment",
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.log.level": "WARN",
}
# A local Spark does the work in the process that Spark's default of 1 GB lets just give orders.
_LOCAL_DEFAULTS = {
    "spark.driver.memory": "2g",
    "spark.driver.host": "localhost",
    "spark.driver.bindAddress": "127.0.0.1",
}


@dataclass(frozen=True)
class SparkWish:
    """What the command line asks of Spark.

    Attributes:
        master: as Spark takes it; None for that of spark-submit, or local[*] without one.
        settings: of Spark, by name; they go before ours.
        partitions: tasks that the users are spread over; None leaves it to `spark_engine.parts_for`.
        log: file that Spark's log goes to; nowhere where None. Under spark-submit, it goes where that says.
    """

    master: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    partitions: int | None = None
    log: Path | None = None


@contextmanager
def spark_session(wish: SparkWish) -> Iterator[Any]:
    """Give a SparkSession, and stop it when the block ends, whichever way; what goes wrong comes out in one line.

    Raises:
        UsageError: no Java, one too old, or no such master.
        SparkFailed: the master does not answer, or whatever Spark said inside the block.
    """
    from pyspark import SparkConf, SparkContext  # noqa: PLC0415
    from pyspark.java_gateway import launch_gateway  # noqa: PLC0415
    from pyspark.sql import SparkSession  # noqa: PLC0415

    if os.environ.get("SPARK_REMOTE"):
        raise UsageError("SPARK_REMOTE is set, but Spark Connect cannot run this job; unset it, and give --master")
    is_submitted = "PYSPARK_GATEWAY_PORT" in os.environ
    master = wish.master if wish.master or is_submitted else "local[*]"
    is_local = master is not None and _LOCAL.match(master) is not None
    settings = {**_DEFAULTS, **(_LOCAL_DEFAULTS if is_local else {}), **wish.settings}
    if master is not None:
        settings["spark.master"] = master
    if not is_submitted:
        _check_java()
    handler = signal.getsignal(signal.SIGINT)
    context = None
    with _log_file(wish.log) as log, _same_python(is_local=is_local):
        try:
            conf = SparkConf().setAll(list(settings.items()))
            gateway = SparkContext._gateway or launch_gateway(conf, {"stdout": log, "stderr": log})
            context = SparkContext(conf=conf, gateway=gateway)
            yield SparkSession(context)
        except (PocketRankError, OSError):
            raise
        except Exception as error:
            raise in_one_line(error, _end_of(log), master or "spark-submit") from None
        finally:
            if context is not None:
                context.stop()
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, handler)


def _check_java() -> None:
    home = os.environ.get("JAVA_HOME")
    if home and not (Path(home) / "bin" / "java").is_file():
        raise UsageError(f"JAVA_HOME is {home}, where no bin/java is; set it to a Java 17 or 21, or unset it")
    if not home and shutil.which("java") is None:
        raise UsageError(
            "Spark needs Java, and there is none here; install Java 17 or 21 (Debian, Ubuntu: apt install "
            "openjdk-17-jre-headless), or run without --engine spark"
        )


@contextmanager
def _log_file(path: Path | None) -> Iterator[IO[bytes]]:
    if path is None:
        with tempfile.TemporaryFile() as log:
            yield log
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as log:
        yield log


def _end_of(log: IO[bytes]) -> str:
    size = os.fstat(log.fileno()).st_size
    return os.pread(log.fileno(), 1 << 16, max(size - (1 << 16), 0)).decode(errors="replace")


@contextmanager
def _same_python(*, is_local: bool) -> Iterator[None]:
    """Executors on this machine take this very Python, unless somebody said otherwise."""
    name = "PYSPARK_PYTHON"
    if not is_local or name in os.environ:
        yield
        return
    os.environ[name] = sys.executable
    try:
        yield
    finally:
        os.environ.pop(name, None)
