"""``python -m ask <step>``."""

import sys

from .cli import main

sys.exit(main())
