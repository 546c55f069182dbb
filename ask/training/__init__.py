"""Adversarial training: method = base x regulariser over one resumable loop."""

from ask.training.loop import train
from ask.training.run import TrainingDivergedError

__all__ = ["TrainingDivergedError", "train"]
