"""Import torchvision where its compiled operators are missing."""

import importlib
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None


def import_torchvision() -> ModuleType:
    """``torchvision``, importable even where its extension does not fit the installed torch.

    A torchvision wheel built for another torch fails at import with *operator torchvision::nms does not exist*, for it
    registers shape functions of two box operators that only the extension defines. The networks and transforms need
    neither, so that on this failure alone, both schemas are declared (calling them still fails) and the import is
    tried again. Any other error passes through.
    """
    global _library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error) or _library is not None:
            raise
        # The declarations live as long as this object.
        _library = torch.library.Library("torchvision", "DEF")
        for schema in _SCHEMAS:
            _library.define(schema)
        return importlib.import_module("torchvision")
