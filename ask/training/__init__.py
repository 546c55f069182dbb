"""Adversarial training: method = base x regulariser over one resumable loop."""

from .loop import train
from .run import TrainingDivergedError

__all__ = ["TrainingDivergedError", "train"]
