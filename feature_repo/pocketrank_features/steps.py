"""Run commands one after the other as processes of their own, and remember which are done.

A step is done for one state of settings and events; change either and it runs again, and so does all that follows.
"""

import hashlib
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

from pocketrank.atomic import write_bytes
from pocketrank.errors import CheckFailed

CLEAN_UP_S = 30


class Steps:
    """The steps of one job in one project folder.

    Attributes:
        record: JSON file that remembers them.
        seconds: command line -> wall seconds, of the steps that ran this time.
    """

    def __init__(self, record: Path) -> None:
        self.record = record
        self.seconds: dict[str, float] = {}
        self._key = ""
        self._done: dict[str, str] = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}

    def begin_with(self, *parts: str) -> None:
        """Say what the following steps start from; a change of it makes them run again."""
        self._key = _digest(*parts)

    def pocketrank(self, *words: str, makes: Path | None = None) -> None:
        """Run `pocketrank WORDS`; with `makes`, only if that is missing or something before it changed.

        Raises:
            SystemExit: the command failed, with its code; it has said why in its one line.
        """
        line = f"pocketrank {shlex.join(words)}"
        self._step(line, [sys.executable, "-m", "pocketrank", *words], makes=makes)

    def feast(self, *words: str, folder: Path, makes: Path) -> None:
        """Run `feast WORDS` in a folder, its output kept back unless it fails; done once as `pocketrank`.

        Raises:
            CheckFailed: the command failed; its output has been shown.
        """
        line = f"cd {shlex.quote(str(folder))} && feast {shlex.join(words)}"
        feast = Path(sys.executable).with_name("feast")
        self._step(line, [str(feast), *words], makes=makes, folder=folder, is_quiet=True)

    def _step(
        self, line: str, command: list[str], *, makes: Path | None, folder: Path | None = None, is_quiet: bool = False
    ) -> None:
        self._key = _digest(self._key, line)
        if makes is not None and self._done.get(line) == self._key and makes.exists():
            print(f"\n$ {line}\ndone before", flush=True)  # noqa: T201
            return
        print(f"\n$ {line}", flush=True)  # noqa: T201
        began = time.monotonic()
        _run(line, command, folder, is_quiet=is_quiet)
        self.seconds[line] = round(time.monotonic() - began, 1)
        if is_quiet:
            print(f"seconds  {self.seconds[line]}", flush=True)  # noqa: T201
        if makes is not None:
            self._done[line] = self._key
            write_bytes(self.record, json.dumps(self._done, indent=1).encode())


def _run(line: str, command: list[str], folder: Path | None, *, is_quiet: bool) -> None:
    pipe = subprocess.PIPE if is_quiet else None
    kept = subprocess.STDOUT if is_quiet else None
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=kept) as process:
        try:
            said, _ = process.communicate()
        except KeyboardInterrupt:
            _let_clean_up(process)
            raise
    if process.returncode == 0:
        return
    if process.returncode in (-2, 130):
        raise KeyboardInterrupt
    if not is_quiet:
        raise SystemExit(process.returncode)
    sys.stderr.write(said.decode(errors="replace")[-4000:])
    raise CheckFailed(f"`{line}` ended with {process.returncode}; mend what it says, and run the demo again to go on")


def _let_clean_up(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a step that Ctrl-C reached too; `subprocess.run` would kill it after a quarter of a second."""
    try:
        process.communicate(timeout=CLEAN_UP_S)
    except subprocess.TimeoutExpired:  # the signal was sent to us alone
        process.send_signal(signal.SIGINT)
        process.communicate()


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
