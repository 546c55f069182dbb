"""``import torchvision`` works in tests even where its compiled part does not fit the installed torch.

Such a build fails with *operator torchvision::nms does not exist*: it registers shapes of two box operators that only
the compiled part defines. Networks and transforms need neither, so both are declared here. Python runs this file at its
start where the folder is on PYTHONPATH; conftest.py runs it for the tests themselves.
"""

import importlib.util
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
kept = []


class Declare(MetaPathFinder):
    """Declares the operators when torchvision is first imported, and finds nothing itself."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        found = importlib.util.find_spec(fullname)
        extension = next(Path(found.origin).parent.glob("_C*"), None) if found else None
        try:
            if extension:
                torch.ops.load_library(str(extension))
                return
        except OSError:
            pass
        kept.append(torch.library.Library("torchvision", "DEF"))  # declared as long as it lives
        for operator in OPERATORS:
            kept[0].define(operator)


sys.meta_path.insert(0, Declare())
