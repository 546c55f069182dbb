"""``python -m ask <step>``: by the warm worker if there is one, otherwise here."""

import sys

from . import worker

status = worker.run(sys.argv[1:])
if status is None:
    from .cli import main

    status = main()
sys.exit(status)
