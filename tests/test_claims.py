"""The claims ledger: rules of judgement, pairing, missing data, and the paper's own tables as an oracle."""

import csv
from pathlib import Path
from typing import get_args

import pytest

from ask.config.run import load_artifacts, read_run
from ask.files import write_json
from ask.paths import Run
from ask.plan.paper import Paper
from ask.plan.planner import Plan, claims_job, entries, plan_run
from ask.report.claims.evidence import Evidence, Measure, MissingEvidenceError, across
from ask.report.claims.ledger import COLUMNS, write_ledger
from ask.report.claims.registry import CLAIMS
from ask.report.claims.verdicts import Verdict, at_least, near, positive, wins
from ask.report.numbers import VERDICTS, write_csv, write_reference

ROOT = Path(__file__).parent.parent
CSV = ROOT / "config/paper/claims.csv"
NOT_TABULATED = {
    *("C08", "C12", "C14", "C15", "C16", "C17", "C18", "C39", "C40", "C42", "C51", "C56", "C60", "C61", "C62", "C63"),
}
"""Claims for which the paper prints no numbers."""


def planned(name: str) -> tuple[dict, Plan]:
    files = [ROOT / "config/config.yaml", *([] if name == "paper" else [ROOT / f"config/{name}.yaml"])]
    config = read_run(files)
    plan = plan_run(config, load_artifacts(ROOT / "config/artifacts", config.artifacts), Paper.read(CSV.parent))
    return claims_job(config, plan), plan


def ledger(job: dict, run: Run) -> dict[str, dict[str, str]]:
    with write_ledger(job, CSV, run).open(newline="") as file:
        reader = csv.DictReader(file)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        return {row["id"]: row for row in reader}


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The ledger of a run that measured just what the paper prints."""
    run = Run(tmp_path_factory.mktemp("run"))
    job, plan = planned("paper")
    for name, artifact in plan.artifacts.items():
        found = list(entries(artifact))
        if any(entry["paper_mean"] is not None for entry in found):
            for entry in found:  # what the paper does not print, such as a rival of ours, decides nothing
                entry["paper_mean"] = 99.0 if entry["paper_mean"] is None else entry["paper_mean"]
            path = run.table(name) if artifact["kind"] == "table" else run.figure(name)
            rows = [
                {
                    "columns": entry["columns"],
                    "trials": [entry["paper_mean"] + d for d in (-0.01, 0, 0.01)],
                    "reference": write_reference(entry),
                }
                for entry in found
            ]
            write_csv(path, ("artifact",), [])
            write_json(path.with_suffix(".json"), rows)
    return ledger(job, run)


def test_every_claim_has_a_function_and_nothing_else_has() -> None:
    with CSV.open(newline="") as file:
        assert {row["id"] for row in csv.DictReader(file)} == set(CLAIMS)
    assert len(CLAIMS) == 63


def test_the_papers_own_tables_bear_out_what_it_claims_of_them(printed: dict[str, dict[str, str]]) -> None:
    for name, row in printed.items():
        if name in NOT_TABULATED:
            assert row["verdict"] == "not evaluated", name
        elif CLAIMS[name].contradiction:
            assert row["verdict"] in ("inconsistent in the paper", "reproduced"), name
        else:
            assert row["verdict"] == "reproduced", (name, row["measured"], row["why"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("C01", 13.1),
        ("C02", 3.2),
        ("C03", 6.9),
        ("C05", 4.9),
        ("C11", 7.7),
        ("C19", 46.8),
        ("C26", 15.55),
        ("C32", 25.0),
        ("C43", 12.25),
        ("C46", 3.24),
        ("C49", 7.1),
        ("C52", -6.5),
        ("C54", 2.5),
        ("C55", 4.4),
        ("C58", 0.8),
    ],
)
def test_quantities_are_those_that_the_papers_tables_give(
    printed: dict[str, dict[str, str]], name: str, value: float
) -> None:
    assert float(printed[name]["value"]) == pytest.approx(value, abs=0.011)


@pytest.mark.parametrize("name", ["C02", "C11", "C52"])
def test_what_the_papers_tables_contradict_is_called_inconsistent(
    printed: dict[str, dict[str, str]], name: str
) -> None:
    assert printed[name]["verdict"] == "inconsistent in the paper"
    assert "contradicts itself" in printed[name]["why"]


def test_shares_count_comparisons(printed: dict[str, dict[str, str]]) -> None:
    assert {name: printed[name]["measured"] for name in ("C09", "C34", "C45", "C50", "C59")} == {
        "C09": "6 of 6",
        "C34": "6 of 6",
        "C45": "12 of 12",
        "C50": "12 of 12",
        "C59": "10 of 10",
    }


def test_a_run_without_anything_evaluates_nothing_and_says_how(tmp_path: Path) -> None:
    job, _ = planned("demo")
    rows = ledger(job, Run(tmp_path / "demo"))
    assert {row["verdict"] for row in rows.values()} == {"not evaluated"}
    assert rows["C01"]["command"] == "snakemake --cores all results/demo/claims.csv --configfile config/demo.yaml"
    assert rows["C01"]["why"] == "Without data: table01 has not been made yet."
    assert rows["C01"]["artifacts"] == "table01"


def test_a_run_that_leaves_a_data_set_out_is_judged_on_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    rows = [
        {
            "columns": {"dataset": "cifar10", "model": model, "dknn_layers": layers},
            "trials": [mean],
            "reference": model,
        }
        for model, mean in (("ask-def", 50.0), ("at", 45.0), ("at-snn", 48.0))
        for layers in ("conv3", "conv4")
    ]
    write_csv(run.table("table06"), ("artifact",), [])
    write_json(run.table("table06").with_suffix(".json"), rows)
    job = {"kinds": {"table06": "table"}, "stand_ins": {}, "labels": {"imagenette": "Imagenette"}, "command": "make it"}
    found = ledger(job, run)
    assert found["C41"]["verdict"] == "reproduced"
    assert found["C41"]["measured"] == "2 of 2"
    assert found["C41"]["cells"] == "ask-def at"
    assert "Without data: table06 has no number of Imagenette" in found["C41"]["why"]
    assert found["C41"]["command"] == "make it"
    assert found["C04"]["verdict"] == "not evaluated"


def test_stand_ins_answer_for_the_papers_data_sets_and_eps(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write_csv(run.table("t"), ("artifact",), [])
    columns = {"dataset": "digits", "eps": 51.2}
    write_json(run.table("t").with_suffix(".json"), [{"columns": columns, "trials": [1.0, 2.0], "reference": "c"}])
    stand_ins = {"cifar10": {"dataset": "digits", "eps_scale": 6.4}}
    evidence = Evidence(run, {"t": "table"}, stand_ins)
    assert evidence.get("t", dataset="cifar10", eps=8).trials == (1.0, 2.0)
    assert list(evidence.read) == ["c"]
    with pytest.raises(MissingEvidenceError, match=r"t has no number of cifar10, eps = 25\.6/255"):
        evidence.get("t", dataset="cifar10", eps=4)


def test_differences_are_paired_by_trial() -> None:
    a, b = Measure((50.0, 60.0, 70.0)), Measure((49.0, 58.9, 69.1, 12.0))
    assert (a - b).trials == pytest.approx((1.0, 1.1, 0.9))
    assert (a - b).surely_positive
    assert not Measure((50.0, 60.0, 70.0, -80.0)).surely_positive
    assert not Measure((5.0,)).surely_positive  # one trial proves nothing
    assert across([a, b], max).trials == (50.0, 60.0, 70.0)


@pytest.mark.parametrize(
    ("finding", "verdict"),
    [
        (at_least(Measure((13.0, 13.2)), 13), "reproduced"),
        (at_least(Measure((12.0, 12.1)), 13), "direction only"),
        (at_least(Measure((-12.0, 12.1)), 13), "not reproduced"),
        (near(Measure((4.0, 4.4)), 4.8, within=1.5), "reproduced"),
        (near(Measure((8.0, 8.1)), 4.8, within=1.5), "direction only"),
        (near(Measure((-8.0, -8.1)), 4.8, within=1.5), "not reproduced"),
        (near(Measure((9.0, 9.1)), 0, within=3), "not reproduced"),
        (positive(Measure((1.0, 1.1))), "reproduced"),
        (positive(Measure((-1.0, 1.1))), "direction only"),
        (positive(Measure((-1.0, 0.9))), "not reproduced"),
        (wins({"a": Measure((1.0, 2.0)), "b": Measure((3.0, 3.0))}), "reproduced"),
        (wins({"a": Measure((-1.0,)), "b": Measure((3.0,)), "c": Measure((3.0,))}), "direction only"),
        (wins({"a": Measure((-1.0,)), "b": Measure((-3.0,)), "c": Measure((3.0,))}), "not reproduced"),
    ],
)
def test_verdicts(finding: object, verdict: str) -> None:
    assert finding.verdict == verdict  # type: ignore[attr-defined]


def test_verdicts_are_those_that_the_report_knows() -> None:
    assert get_args(Verdict) == VERDICTS


def test_wins_name_the_smallest_difference_and_count_the_certain() -> None:
    found = wins({("conv3", 8.0): Measure((1.0, 1.1)), ("conv4", 8.0): Measure((0.5, 1.1))})
    assert found.measured == "2 of 2"
    assert found.why == "1 beyond the interval; the smallest difference is 0.8±3.8 points (Conv 4, eps = 8/255)."
