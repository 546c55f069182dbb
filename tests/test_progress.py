"""What a run says of its progress."""

import os
from pathlib import Path

import pytest
from plans import planned

from ask.plan.predict import Progress


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without results."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finish(path: Path, now: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(path, (now, now))


def test_what_is_left_follows_the_pace(inside: Path) -> None:
    plan, now = planned("cpu"), 1000.0
    outputs = [task.output for task in plan.of("train")]
    progress = Progress(plan, outputs, cores=2, clock=lambda: now)
    total = sum(progress.work.values())
    assert progress.line() == f"0 of 8 jobs, 0% of the work, about {total / 2 / 3600:.1f} h left"
    now += 3600
    finish(outputs[0], now)
    done = progress.work[outputs[0]]
    left = (total - done) / done  # an hour for that one
    assert progress.line() == f"1 of 8 jobs, {done / total:.0%} of the work, about {left:.1f} h left"
    for output in outputs:
        finish(output, now)
    assert progress.line() == "8 of 8 jobs, 100% of the work, about 1 min left"


def test_data_that_are_ready_say_nothing_of_the_pace(inside: Path) -> None:
    """A run's first line came before its first epoch had ended, and gave it 600 hours."""
    plan, now = planned("cpu"), 1000.0
    outputs = [task.output for task in plan.of("prepare", "train")]
    progress = Progress(plan, outputs, cores=2, clock=lambda: now)
    now += 300
    for task in plan.of("prepare"):
        finish(task.output, now)
    done = sum(progress.work[task.output] for task in plan.of("prepare"))
    left = (sum(progress.work.values()) - done) / 2 / 3600
    assert progress.line().endswith(f"about {left:.1f} h left")


def test_epochs_of_a_training_count(inside: Path) -> None:
    plan, now = planned("cpu"), 1000.0
    (output,) = (
        task.output for task in plan.of("train") if task.job.model == "ask-def" and task.job.training.pad is None
    )
    history = output.with_name("history.csv")
    history.parent.mkdir(parents=True)
    history.write_text("epoch\n1\n2\n3\n")  # of other settings
    os.utime(history, (500, 500))
    progress = Progress(plan, [output], cores=1, clock=lambda: now)
    total = sum(progress.work.values()) / 3600
    now += 3600
    assert progress.line() == f"0 of 1 jobs, 0% of the work, about {total:.1f} h left"
    now += 3600
    history.write_text("epoch\n1\n2\n3\n")
    assert progress.line() == "0 of 1 jobs, 25% of the work, about 6.0 h left"


def test_epochs_of_an_earlier_start_say_nothing_of_the_pace(inside: Path) -> None:
    plan, now = planned("cpu"), 1000.0
    task = next(task for task in plan.of("train") if task.job.training.epochs == 12)
    history = task.output.with_name("history.csv")
    finish(plan.run.root / "scratch" / task.job.dataset / task.job.model / "checkpoint.safetensors", 500.0)
    progress = Progress(plan, [task.output], cores=1, clock=lambda: now)
    total = sum(progress.work.values()) / 3600
    now += 3600
    history.parent.mkdir(parents=True)
    history.write_text("epoch\n" + "1\n" * 6)
    assert progress.line() == f"0 of 1 jobs, 50% of the work, about {total / 2:.1f} h left"
    now += 3600
    history.write_text("epoch\n" + "1\n" * 8)
    assert progress.line() == "0 of 1 jobs, 67% of the work, about 4.0 h left"


def test_an_old_output_is_still_to_do(inside: Path) -> None:
    """Snakemake runs a job again whose code changed; what an earlier run left says nothing."""
    plan, now = planned("cpu"), 1000.0
    output = plan.of("attack")[0].output
    finish(output, 500.0)
    progress = Progress(plan, [output], cores=1, clock=lambda: now)
    assert progress.line().startswith("0 of 1 jobs")
    finish(output, 1001.0)
    assert progress.line().startswith("1 of 1 jobs, 100%")
