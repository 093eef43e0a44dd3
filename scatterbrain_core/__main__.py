"""``python -m scatterbrain_core``."""

import sys

from scatterbrain_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
