"""``python -m tools.chance config/lite.yaml``: where the chance in a run's comparisons comes from.

Of every comparison that its claims make on predictions of several trials: the share of images in the variance of one
prediction, and R, the trials' variance over what the interaction alone would make of it.
"""

import sys
from pathlib import Path

import numpy as np

from ask.config.claims import Claims
from ask.config.run import read_spec
from ask.plan.planner import load
from ask.report.claims import Evidence, compare
from ask.report.verdicts import Comparison


def describe(configuration: Path) -> str:
    """What a run's committed evidence says, in two sentences."""
    plan = load([configuration])
    (task,) = plan.of("claims")
    rules = read_spec(Claims, Path(task.job["claims"]).with_suffix(".yaml"))
    evidence = Evidence(plan.run, task.job, rules.test_images)
    found = [one for claim in rules.claims.values() for part in claim.parts for one in compare(part, evidence)]
    known = dict.fromkeys(
        one.estimate for one in found if isinstance(one, Comparison) and one.estimate.rest is not None
    )
    ratios = np.array([one.trials / one.both for one in known])
    single = np.array([(max(one.images - one.both, 0) * one.n, one.both * one.n * one.t) for one in known])
    shares = single[:, 0] / single.sum(1)
    quartiles = [
        ", ".join(f"{value:.2f}" for value in np.quantile(each, (0.25, 0.5, 0.75))) for each in (ratios, shares)
    ]
    return (
        f"{len(known)} comparisons of {plan.run.root.name}: R has a mean of {ratios.mean():.2f} and quartiles of"
        f" {quartiles[0]}; 95 % lie below {np.quantile(ratios, 0.95):.2f}. Of the variance of one prediction, images"
        f" make shares of {quartiles[1]} (quartiles).\n"
    )


if __name__ == "__main__":
    sys.stdout.write(describe(Path(sys.argv[1])))
