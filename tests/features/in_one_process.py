"""Run commands one after the other in one process: each would spend ten seconds on importing Feast, to work for one.

`python in_one_process.py '[["feast", "apply"], ["pocketrank", "pack", "7"]]'` calls what the programs of these names
call, in the present folder, and prints a list: exit code and output of each.
"""

import contextlib
import io
import json
import sys

from feast.cli.cli import cli

from pocketrank_cli.cli import main

PROGRAMS = {"feast": lambda arguments: cli(arguments, prog_name="feast"), "pocketrank": main}


def run(program: str, arguments: list[str]) -> tuple[int, str]:
    """Exit code, and what it printed to both streams."""
    said, code = io.StringIO(), 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = PROGRAMS[program](arguments) or 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception as error:  # a traceback, as Python would print it
            code, _ = 1, said.write(repr(error))
    return code, said.getvalue()


if __name__ == "__main__":
    ended = [run(program, arguments) for program, *arguments in json.loads(sys.argv[1])]
    sys.stdout.write("\n" + json.dumps(ended) + "\n")
