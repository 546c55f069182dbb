"""A part of a run that is made on its own."""

from ask.config.base import Spec


class SliceSpec(Spec):
    """A part of a run that is made on its own, e.g. on a machine with a GPU lent for short sessions.

    It measures what its artifacts show of its data sets and models, and trains only its own models; artifacts are
    rendered once all that they show has been measured, by whichever slices.
    """

    title: str = ""
    """What it is, in a line."""
    artifacts: tuple[str, ...] = ()
    """Artifacts whose measurements it makes."""
    datasets: tuple[str, ...] = ()
    """Only on these of the paper's data sets; empty: on all."""
    models: tuple[str, ...] = ()
    """Only of these models; empty: of all."""
    commands: tuple[str, ...] = ()
    """Commands that run first, each until it has succeeded once; `python` and `pytest` are those of the run."""
