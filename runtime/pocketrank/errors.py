"""Everything pocketrank raises on purpose.

PocketRankError
├── UsageError            the call itself is wrong: an option, a name                 exit 2
│   └── MissingExtra      a package is not installed; names the extra that brings it  exit 2
├── BadInput              a file, a column or a value is not what was wanted          exit 1
│   ├── BadConfig         pocketrank.toml: unknown key, wrong type
│   ├── BadEvents         an event log that cannot be read at all
│   ├── BadTensors        a safetensors file that is truncated or lacks a tensor
│   │   └── BadPack       ... and it should have been a pack
│   ├── BadBundle         a bundle with a missing, altered or too new part
│   ├── BadRelease        what a server says of its bundle cannot be
│   ├── BadKey            a key that is none, not of the kind that is wanted, or not this cache's
│   ├── UnknownUser       no such user in the store
│   └── UnknownItem       no such item in the bundle's vocabulary
├── BundleMismatch        a pack encoded by another model than the bundle             exit 1
├── NotReady              an earlier step has not been run; names the command         exit 1
├── Diverged              training left the finite numbers; names what to lower       exit 1
├── SparkFailed           a cluster did not do its part of the job                    exit 1
├── StoreFailed           an online store or a cache did not: locked, full, unreachable exit 1
└── CheckFailed           a verification ran, and found a difference                  exit 1

A message says what, where, found, wanted and the next step, in one line.
"""


class PocketRankError(Exception):
    """Root of the tree; `exit_code` is what the command line exits with."""

    exit_code = 1


class UsageError(PocketRankError):
    """The call itself is wrong."""

    exit_code = 2


class MissingExtra(UsageError):
    """A package of an optional extra is not installed."""


class BadInput(PocketRankError):
    """A file, a column or a value is not what was wanted."""


class BadConfig(BadInput):
    """The configuration has an unknown key or a value of the wrong type."""


class BadEvents(BadInput):
    """An event log cannot be read."""


class BadTensors(BadInput):
    """A safetensors file is damaged or lacks a tensor."""


class BadPack(BadTensors):
    """A pack is damaged or not a pack."""


class BadBundle(BadInput):
    """A bundle has a missing, altered or too new part."""


class BadRelease(BadInput):
    """What a server says of the bundle that it offers cannot be."""


class BadKey(BadInput):
    """A key to sign, to verify or to encrypt with is not one, or not the one that is wanted."""


class UnknownUser(BadInput):
    """The store has nothing of this user."""


class UnknownItem(BadInput):
    """The bundle's vocabulary lacks this item."""


class BundleMismatch(PocketRankError):
    """A pack was encoded by another model than the bundle."""


class NotReady(PocketRankError):
    """An earlier step of the job has not been run."""


class Diverged(PocketRankError):
    """Training came upon a loss, a weight or a validation that is not finite."""


class SparkFailed(PocketRankError):
    """A cluster did not do its part of the job."""


class StoreFailed(PocketRankError):
    """An online store, or a device's cache, did not do its part: it is locked, full, damaged or out of reach."""


class CheckFailed(PocketRankError):
    """A verification found a difference."""


def is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is what ended the work: libraries turn it into errors of their own while they handle it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def one_line(text: object) -> str:
    """What a file or a library said, fit to stand in one of our messages: one printable line of at most 300 letters."""
    line = " ".join(str(text)[:2000].split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= 300 else f"{line[:297]}..."
