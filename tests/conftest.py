"""Property tests: in CI the same examples at every run, and nowhere a time limit, for machines are busy."""

import os

from hypothesis import settings

settings.register_profile("local", deadline=None)
settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")
