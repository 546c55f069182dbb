"""The plane of Figure 3: points, training by the library's methods, and what is drawn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ask.cli import main
from ask.config.jobs import PlaneJob
from ask.measure import plane
from ask.paths import Run
from ask.report.numbers import MissingValueError
from ask.report.pictures import render_drawing

JOB = {"id": "figure3", "kind": "boundaries", "title": "Boundaries", "paper": "Figure 3", "caption": "", "notes": []}


def small(**changes: object) -> PlaneJob:
    job = PlaneJob(id="figure3", seed=0)
    training = job.training.model_copy(update={"epochs": 60})
    return job.model_copy(update={"training": training, "seeds": 2, "points": 80, "side": 31, **changes})


def test_moons_fill_the_square_in_equal_parts() -> None:
    points, labels = plane.moons(200, 0.03, np.random.default_rng(0))
    assert points.shape == (200, 2, 1, 1)
    assert points.dtype == np.float32
    assert 0 <= points.min() < points.max() <= 1
    assert np.bincount(labels).tolist() == [100, 100]


def test_both_models_learn_and_attacks_hurt() -> None:
    record, drawn = plane.show(small())
    assert [result["model"] for result in record["results"]] == ["AT", "ASK-Def"]
    for result in record["results"]:
        for who in ("knn", "network"):
            clean = result[f"{who}_clean"]
            assert len(clean["trials"]) == 2
            assert clean["mean"] > 0.8
        assert result["knn_ask"]["mean"] < result["knn_clean"]["mean"]
        assert result["network_pgd"]["mean"] < result["network_clean"]["mean"]
        assert drawn[f"grid_{result['model']}_knn"].shape == (31, 31)
        moved = drawn[f"adversarial_{result['model']}"] - drawn["benign"]
        assert np.abs(moved).max() == pytest.approx(14 / 255, abs=1e-6)
    assert record["results"][0] != record["results"][1] | {"model": "AT"}  # the ASK loss changes the training


def test_each_seed_has_points_of_its_own_and_others_to_test_by(monkeypatch: pytest.MonkeyPatch) -> None:
    moons, drawn = plane.moons, list[bytes]()

    def noted(*given: Any) -> Any:
        points, labels = moons(*given)
        drawn.append(points.tobytes())
        return points, labels

    monkeypatch.setattr(plane, "moons", noted)
    plane.show(small(training=small().training.model_copy(update={"epochs": 1})))
    assert len(set(drawn)) == 4


def test_the_same_job_gives_the_same_numbers() -> None:
    first, second = (plane.show(small(seeds=1)) for _ in range(2))
    assert first[0] == second[0]
    assert all(np.array_equal(first[1][name], second[1][name]) for name in first[1])


def test_the_step_and_the_figure(tmp_path: Path) -> None:
    run = Run(tmp_path / "demo")
    with pytest.raises(MissingValueError, match=r"figure3\.json is missing"):
        render_drawing(JOB, run)
    assert main(["plane", "--job", small(seeds=1).model_dump_json(), "--run", str(run.root)]) == 0
    written = render_drawing(JOB, run)
    assert [path.suffix for path in written] == [".csv", ".svg", ".png", ".pdf"]
    rows = written[0].read_text().splitlines()
    assert rows[0] == "artifact,model,classifier,images,mean,ci95,seeds"
    assert len(rows) == 1 + 2 * 6
    again = {path: path.read_bytes() for path in written}
    assert {path: path.read_bytes() for path in render_drawing(JOB, run)} == again
