"""What converters say while they work: kept off our output, and what may matter of it given back, a line each.

They print from native code, log, and warn; all of it is heard. Left out is what says how far they are, what packages
think of each other's versions, and `HARMLESS`; anything else is for somebody to read.
"""

import logging
import os
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from pocketrank.errors import is_interrupt

# What was looked into once, and why it does not matter.
HARMLESS = {
    r"torchvision is not installed\. Skipping torchvision::": "no graph of ours has such an operator",
    r"is an Enum subclass and is now natively supported by torch\.compile": "torch's deprecation, met in torchao",
    r"All log messages before absl::InitializeLog\(\) is called": "where to, not what",
    r"tensor attributes? .*\b_flat_weights\[.* assigned during export": "torch's GRU lists its parameters when it runs",
    r"^INFO: |^I\d{4} ": "information by its own level",
    r"^(Running Calibration|Generating Quantization Parameters|Applying Transformations)": "a progress bar",
    r"[Pp]lease consider (to run )?pre-processing before quantization": "torch folded constants and knows the shapes",
    r"Enabling `experimental_preserve_all_tensors`": "memory while calibrating, of a few cases",
}
# Of Python's warnings, those addressed to the authors of packages.
_OF_VERSIONS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
_STAMP = re.compile(r"^(?:WARNING:\w+:|[WEF]\d{4} [\d:.]+ +\d+ )")  # of Python's logging, and of absl's and torch's
_LONGEST = 300


@contextmanager
def heard() -> Iterator[list[str]]:
    """Run converters quietly.

    Yields:
        A list that has, once the block ended well, every remark that may matter, once each. When the block fails by
        itself, all that was said last is shown on stderr.
    """
    found: list[str] = []
    logged = _Logged(logging.WARNING)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    failed = False
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        logging.root.addHandler(logged)  # with one there, no library puts its own onto a stream that goes away
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                yield found
        except BaseException as error:
            failed = not is_interrupt(error)
            raise
        finally:
            logging.root.removeHandler(logged)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in zip((1, 2), kept, strict=True):
                os.dup2(saved, number)
                os.close(saved)
            log.seek(0)
            printed = log.read().decode(errors="replace")
            if failed:
                sys.stderr.write(printed[-4000:])
        said = [str(warning.message) for warning in warned if not issubclass(warning.category, _OF_VERSIONS)]
        found += remarks([*re.split(r"[\r\n]+", printed), *logged.lines, *said])


def remarks(lines: list[str]) -> list[str]:
    """Those lines that may matter, without the stamps of loggers, once each."""
    told: dict[str, None] = {}
    for line in lines:
        words = " ".join(line.split())
        if words and not any(re.search(pattern, words) for pattern in HARMLESS):
            told[_STAMP.sub("", words)[:_LONGEST]] = None
    return list(told)


class _Logged(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
