"""Property tests: in CI the same examples at every run, and nowhere a time limit, for machines are busy.

Ctrl-C: a shell starts what is to run in the background deaf to it, and what tests start would inherit that.
"""

import os
import signal

from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
