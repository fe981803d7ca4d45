"""Settings of all tests: in CI the property tests try the same cases every time; elsewhere they look for new ones."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
