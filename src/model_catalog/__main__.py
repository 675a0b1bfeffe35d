"""`python -m model_catalog` is `model-catalog`."""

import sys

from model_catalog.cli import main

if __name__ == "__main__":
    sys.exit(main())
