"""What Spark says when something goes wrong, in one line: hundreds of lines of Java and Python have one that tells.

Errors of ours that were raised on an executor come out as the same error here.
"""

import errno
import re
from pathlib import Path
from urllib.parse import unquote

from pocketrank import errors
from pocketrank.errors import BadEvents, MissingExtra, PocketRankError, SparkFailed, UsageError

GUIDE = "docs/spark.md"
BAD_TIME = "time {} of an event in {} is not from 1970 to 2100"
_OURS = re.compile(r"^pocketrank\.errors\.(\w+): (.*)$", re.MULTILINE)
_NO_MODULE = re.compile(r"No module named '([\w.]+)'")
_ERRNO = re.compile(r"\[Errno (\d+)\] (.*)$", re.MULTILINE)
_UNREADABLE = re.compile(r"\[FAILED_READ_FILE[^\]]*\][^\n]* file (file:\S+?)\.\s")
_BAD_TIME = re.compile(BAD_TIME.format(r"(-?\d+)", r"(file:\S+)"))
_CAUSE = re.compile(r"^(?:Caused by|: )(?:: )?\s*(.*)$", re.MULTILINE)
_PYTHON = re.compile(r"^(?!\s)((?:[\w.]+\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Warning)): (.*)$", re.MULTILINE)
_OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError", "exceeding memory limits", "exit code 137", "exitCode 137")
_LOST = ("Python worker exited unexpectedly", "ExecutorLostFailure", "Python worker process terminated")


def in_one_line(error: Exception, log: str = "", master: str = "") -> Exception:
    """The error to raise instead of one of Spark's.

    Args:
        error: what pyspark raised.
        log: the end of Spark's log, for what the error does not say.
        master: that was asked for.
    """
    said = f"{error}\n" if str(error).strip() else f"{type(error).__name__}\n"
    found = _ours(said) or _of_file(said) or _of_executor(said) or _of_start(said, log, master)
    return found or SparkFailed(f"Spark gave up: {_last_cause(said)}")


def _ours(said: str) -> PocketRankError | None:
    for name, message in reversed(_OURS.findall(said)):
        kind = getattr(errors, name, None)
        if isinstance(kind, type) and issubclass(kind, PocketRankError):
            return kind(message)
    return None


def _of_file(said: str) -> PocketRankError | None:
    if bad := _BAD_TIME.search(said):
        return BadEvents(
            f"{_path(bad[2])}: timestamp holds {bad[1]} microseconds since 1970, wanted times from 1970 to 2100; "
            "ingest the log it came from again, with the right --time-unit"
        )
    if unreadable := _UNREADABLE.search(said):
        path = _path(unreadable[1])
        return BadEvents(
            f"{path}: cannot be read ({_last_cause(said)}); go on without it with --skip-bad-files, "
            f"or remove {path.parent.parent} and ingest every log again"
        )
    return None


def _of_executor(said: str) -> Exception | None:
    if module := _NO_MODULE.search(said):
        return MissingExtra(
            f"an executor has no Python module {module[1]}; install there, of the same versions as here: "
            f"pip install 'pocketrank[onnx]' pyarrow ({GUIDE})"
        )
    if full := _ERRNO.search(said):
        return OSError(int(full[1]), f"on an executor: {full[2]}")
    if "No space left on device" in said:
        return OSError(errno.ENOSPC, "on an executor: No space left on device")
    if any(words in said for words in _OUT_OF_MEMORY):
        return SparkFailed(f"an executor ran out of memory; give it more, or the job more --partitions ({GUIDE})")
    if any(words in said for words in _LOST):
        return SparkFailed(
            "a Python worker or an executor died again and again, most often for want of memory; "
            f"give it more, or the job more --partitions ({GUIDE})"
        )
    return None


def _of_start(said: str, log: str, master: str) -> PocketRankError | None:
    both = said + log
    if "UnsupportedClassVersionError" in both:
        return UsageError("Spark needs Java 17 or 21, and this one is older; install one, and set JAVA_HOME to it")
    if "Master must either be" in both or "Could not parse Master URL" in both or "Invalid master URL" in both:
        return UsageError(
            f"--master {master}: no such kind of master; known are local[N], spark://HOST:PORT, yarn, k8s://"
        )
    if "All masters are unresponsive" in both:
        return SparkFailed(f"--master {master}: nobody answers there; see that it runs, and that its version is ours")
    if "JAVA_GATEWAY_EXITED" in said:
        lines = [line.strip() for line in log.splitlines() if "WARNING" not in line and line.strip()]
        return SparkFailed(f"Spark does not start: {lines[0] if lines else 'its Java ended at once'}")
    return None


def _path(url: str) -> Path:
    """The path in what Spark calls a file."""
    return Path("/" + unquote(url.removeprefix("file:")).lstrip("/"))


def _last_cause(said: str) -> str:
    """The innermost cause that Java or Python names."""
    found = [f"{kind}: {message}" for kind, message in _PYTHON.findall(said) if not kind.startswith("Py4J")]
    causes = found or _CAUSE.findall(said) or said.strip().splitlines()
    return causes[-1][:300].strip()
