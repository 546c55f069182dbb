"""Settings that stored evidence was measured with, in today's form.

Records outlive the code that wrote them: a format that has changed is translated here, and a field that is missing
means the behaviour of its time.
"""

from collections.abc import Mapping
from typing import Any

from ask.config.attacks import ATTACKS, PIXEL, VARIANTS

_NESTED = ("advknn", "auto", "dknn")
"""Where an attack's own options stood until each attack's settings were one type."""


def current(job: Mapping[str, Any]) -> dict[str, Any]:
    """The job of a stored record as a plan of today would hold it; unknown documents stay as they are."""
    found = dict(job)
    if "cell" in found:
        found["cell"] = current(found["cell"])
    if "cells" in found:
        found["cells"] = [current(cell) for cell in found["cells"]]
    if isinstance(found.get("attack"), Mapping) and "similarity" in found["attack"]:
        found |= _one_type_an_attack(found)
        found.pop("tau", None)
    if "grid" in found:
        # The first calibrations held the values of one parameter.
        key = "omega" if found["tau_from"] else "tau"
        found["grid"] = [point if isinstance(point, Mapping) else {key: point} for point in found["grid"]]
    if "omega_from" in found:  # a cell; the first ones knew neither DkNN-Atk nor AdvKnn
        found = {"alpha_from": None, "blocks_from": []} | found
    return found


def _one_type_an_attack(job: Mapping[str, Any]) -> dict[str, Any]:
    """Until then all attacks shared one type: it held the similarity, and the job held a fixed tau."""
    old = job["attack"]
    given: dict[str, Any] = {"similarity": old["similarity"]}
    if old["name"] == "none":
        return given | {"attack": None}
    kind = ATTACKS[old["name"]]
    settings = {key: value for name in _NESTED for key, value in (old.get(name) or {}).items()}
    # Calibration picks what is None; a calibration's own points are in its grid.
    settings |= VARIANTS[old["name"]][old["variant"]] | {"tau": job.get("tau"), "alpha": None, "learning_rate": None}
    settings |= {key: old[key] for key in ("layers", "k_in", "k_out", "steps")} | {"k": old["k_in"]}
    settings |= {key: old[key] / PIXEL for key in ("eps", "step_size")}
    attack = kind(**{key: value for key, value in settings.items() if key in kind.model_fields})
    return given | {"attack": attack.model_dump(mode="json")}


def covers(measured: Mapping[str, Any], planned: Mapping[str, Any], sized: bool = True) -> bool:
    """Whether a job is the planned one, with at least as many trials; those of an analysis are its cell's.

    If it need not be ``sized`` as planned, it may have fewer trials, and other classifiers.
    """

    def bare(job: Mapping[str, Any]) -> dict[str, Any]:
        size = ("trials",) if sized else ("trials", "classifiers")
        return {name: bare(value) if name == "cell" else value for name, value in job.items() if name not in size}

    trials = [(job.get("cell") or job).get("trials") or 0 for job in (measured, planned)]
    return bare(measured) == bare(planned) and (not sized or trials[0] >= trials[1])
