"""`python -m pocketrank`."""

import sys

from pocketrank_cli.cli import main

if __name__ == "__main__":
    sys.exit(main())
