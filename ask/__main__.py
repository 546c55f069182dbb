"""``python -m ask <step>``: by the warm worker if there is one, otherwise here."""

import os
import sys

from ask import worker

# Threads that wait for each other spin by default. With any other work on the machine that made a training of two
# threads ten to twenty times slower; OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A notebook names a backend of its own, which is not installed here.
os.environ["MPLBACKEND"] = "agg"
status = worker.run(sys.argv[1:])
if status is None:
    from ask.cli import main

    worker.keep_memory()
    worker.settle()
    status = main()
sys.exit(status)
