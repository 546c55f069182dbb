"""The claims ledger: rules as data, evidence, missing data, and the paper's own tables as an oracle."""

import json
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.special import stdtrit

from ask.config.claims import Claim, Claims, Part
from ask.config.run import ConfigError, load_artifacts, read_run, read_spec
from ask.errors import AskError
from ask.paths import Run
from ask.plan.paper import Paper
from ask.plan.planner import claims_job, entries, plan_run
from ask.report.claims import COLUMNS, Evidence, evaluate, render_claims
from ask.report.numbers import VERDICTS, write_reference
from ask.statistics import over_trials_and_images

ROOT = Path(__file__).parent.parent
CSV = ROOT / "config/paper/claims.csv"
RULES = read_spec(Claims, CSV.with_suffix(".yaml"))
NOT_TABULATED = {
    *("C08", "C12", "C14", "C15", "C16", "C17", "C18", "C39", "C40", "C42", "C51", "C56", "C60", "C61", "C62", "C63"),
    *("C64", "C65", "C66", "C67", "C69", "C70", "C71"),
}
"""Claims for which the paper prints no numbers."""
NOT_BORNE_OUT = {
    "C02": "direction only",
    "C07": "direction only",
    "C11": "inconsistent in the paper",
    "C52": "inconsistent in the paper",
    "C45": "undecided",  # AT+SNN under DkNN-Atk on Conv 3: 62.3±0.26 and 62±0.34
}
"""Claims on which the paper's own tables give another verdict than "reproduced"."""

Rows = list[dict[str, Any]]


def planned(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    files = [ROOT / "config/config.yaml", *([] if name == "paper" else [ROOT / f"config/{name}.yaml"])]
    config = read_run(files)
    plan = plan_run(config, load_artifacts(ROOT / "config/artifacts", config.artifacts), Paper.read(CSV.parent))
    return claims_job(config, plan), plan.artifacts


def write_table(path: Path, rows: Rows) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("artifact\n")
    path.with_suffix(".json").write_text(json.dumps(rows))


def number(columns: dict[str, Any], trials: list[float], reference: str = "cifar10/at/c#", **more: Any) -> Any:
    return {"columns": {"model": "at", "metric": "m"} | columns, "trials": trials, "reference": reference} | more


def ledger(job: dict[str, Any], run: Run, claims: Path = CSV) -> dict[str, dict[str, str]]:
    frame = pd.read_csv(render_claims({**job, "claims": str(claims)}, run)[0], dtype=str, keep_default_na=False)
    assert tuple(frame.columns) == COLUMNS
    return {row["id"]: row for row in frame.to_dict("records")}


def judged(tmp_path: Path, part: dict[str, Any], rows: Rows, *, claim: Any = (), **job: Any) -> dict[str, Any]:
    """The row of a claim of one part on table ``t``."""
    run = Run(tmp_path)
    write_table(run.table("t"), rows)
    job = {"kinds": {"t": "table"}, "stand_ins": {}, "without": [], "labels": {}, "command": "make it"} | job
    stated = dict.fromkeys(["id", "statement", "quantity", "source_section", "operator", "threshold"], "")
    rule = Claim.model_validate({"parts": [{"artifact": "t"} | part]} | dict(claim))
    return evaluate(stated, rule, Evidence(run, job, {"cifar10": 100}))


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The ledger of a run that measured just what the paper prints: 20 trials of its means and intervals."""
    run = Run(tmp_path_factory.mktemp("run"))
    job, artifacts = planned("paper")
    printed, others = np.random.default_rng(0), np.random.default_rng(1)  # a column of ours changes no other's draw
    for name, artifact in artifacts.items():
        found = list(entries(artifact))
        if any(entry["paper_mean"] is not None for entry in found):
            rows = []
            for entry in found:  # what the paper does not print, such as a rival of ours, decides nothing
                trials = (others if entry["paper_mean"] is None else printed).normal(size=20)
                trials = (trials - trials.mean()) / trials.std(ddof=1) * 20**0.5 / stdtrit(19, 0.975)
                mean = 99.0 if entry["paper_mean"] is None else entry["paper_mean"]
                trials = mean + trials * (entry["paper_ci95"] or 0.05)
                rows.append(number(entry["columns"], trials.tolist(), write_reference(entry)))
            write_table(run.table(name) if artifact["kind"] == "table" else run.figure(name), rows)
    return ledger(job, run)


def test_every_claim_is_stated_and_judged() -> None:
    assert set(pd.read_csv(CSV)["id"]) == set(RULES.claims)
    assert len(RULES.claims) == 72


def test_no_comparison_is_of_a_number_with_itself_or_made_twice() -> None:
    def each(settings: dict[str, Any]) -> list[Any]:
        values = [value if isinstance(value, tuple) else (value,) for value in settings.values()]
        return [frozenset(zip(settings, one, strict=True)) for one in product(*values)]

    for name, claim in RULES.claims.items():
        pairs = [
            (part.artifact, str(part.where), part.datasets, frozenset([of, minus]) if part.within else (of, minus))
            for part in claim.parts
            if len(part.of) == len(part.minus) == 1
            for of, minus in product(each(part.of[0]), each(part.minus[0]))
            if not any(column in part.by for column in dict(of ^ minus))  # in which they agree
        ]
        assert all(len(set(pair)) == 2 for *_, pair in pairs), name
        assert len(set(pairs)) == len(pairs), name


def test_the_documented_example_is_the_rule_of_the_paper() -> None:
    text = (ROOT / "docs/statistics.md").read_text()
    block = text[text.index("    C03:\n") :].partition("\n\n")[0]
    assert Claim.model_validate(yaml.safe_load(block)["C03"]) == RULES.claims["C03"]
    for shape in get_args(Part.model_fields["shape"].annotation):
        assert f"| `{shape}` |" in text


def test_a_claim_that_is_stated_and_not_judged_is_an_error(tmp_path: Path) -> None:
    claims = tmp_path / "claims.csv"
    claims.write_text(CSV.read_text() + "C99,statement,quantity,>=,1,source,,\n")
    claims.with_suffix(".yaml").write_text(CSV.with_suffix(".yaml").read_text())
    with pytest.raises(AskError, match="one lacks C99"):
        ledger(planned("demo")[0], Run(tmp_path / "demo"), claims)


def test_the_papers_own_tables_bear_out_what_it_claims_of_them(printed: dict[str, dict[str, str]]) -> None:
    for name, row in printed.items():
        expected = "not evaluated" if name in NOT_TABULATED else NOT_BORNE_OUT.get(name, "reproduced")
        assert row["verdict"] == expected, (name, row["measured"], row["why"])
        assert bool(row["decides"]) == (expected == "undecided")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("C01", 13.1), ("C02", 3.2), ("C03", 6.9), ("C05", 4.9), ("C07", 2.9), ("C11", 7.7), ("C13", -0.9)],
        *[("C19", 5.8), ("C26", 15.55), ("C32", 25.0), ("C36", 0.3), ("C43", 12.25), ("C46", 3.24), ("C49", 7.1)],
        *[("C52", -6.5), ("C58", 0.73)],
    ],
)
def test_quantities_are_those_that_the_papers_tables_give(
    printed: dict[str, dict[str, str]], name: str, value: float
) -> None:
    assert float(printed[name]["value"]) == pytest.approx(value, abs=0.011)


def test_wins_are_counted(printed: dict[str, dict[str, str]]) -> None:
    assert {name: printed[name]["measured"] for name in ("C09", "C34", "C45", "C50", "C59")} == {
        "C09": "12 of 12",  # six settings, two rivals
        "C34": "12 of 12",
        "C45": "12 of 12",
        "C50": "12 of 12",
        "C59": "10 of 10",
    }
    assert "12 of 12 by their means, 11 with their intervals" in printed["C45"]["why"]


def test_the_paper_s_interval_is_named_as_what_it_is(printed: dict[str, dict[str, str]]) -> None:
    assert {row["interval"] for row in printed.values() if row["verdict"] != "not evaluated"} == {"trials alone"}


def test_a_run_without_anything_evaluates_nothing_and_says_how(tmp_path: Path) -> None:
    rows = ledger(planned("demo")[0], Run(tmp_path / "demo"))
    assert {row["verdict"] for row in rows.values()} == {"not evaluated"}
    assert rows["C01"]["command"] == "snakemake --cores all results/demo/claims.csv --configfile config/demo.yaml"
    assert rows["C01"]["why"] == "Without data: table01 has not been made yet."
    assert rows["C01"]["artifacts"] == "table01"
    assert rows["C66"]["why"].endswith("Without data: paper-parameters has not been made yet.")


@pytest.mark.parametrize(
    ("run", "folder", "least"), [("lite", "lite", 28), ("cpu", "cpu", 26), ("raw-pixels", "paper", 8)]
)
def test_committed_evidence_is_judged(
    run: str, folder: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    committed = Run(ROOT / "results" / folder)
    monkeypatch.setattr(Run, "claims", tmp_path / "claims.csv")
    rows = ledger(planned(run)[0], committed)
    assert {row["verdict"] for row in rows.values()} <= set(VERDICTS)
    judged = {name: row for name, row in rows.items() if row["verdict"] != "not evaluated"}
    assert len(judged) >= least
    for name, row in judged.items():
        assert bool(row["decides"]) or row["verdict"] != "undecided", name
        assert bool(row["cells"]) or name in ("C63", "C70"), name
        assert "training" in row["why"] or "/raw/" in row["cells"] or "simulated/" in row["cells"], name
    assert rows["C60"]["verdict"] == "not reproduced"  # one reference set a class breaks it


DIFFERENCE = {"shape": "wins", "datasets": ["cifar10"], "of": {"model": "ask-def"}, "minus": {"model": "at"}}


def pair(own: list[float], other: list[float], **columns: Any) -> Rows:
    """Numbers of ASK-Def and AT."""
    both = {"ask-def": own, "at": other}
    return [
        number({"dataset": "cifar10", "model": model} | columns, trials, f"cifar10/{model}/c#cosine/conv4/5")
        for model, trials in both.items()
    ]


def test_differences_are_paired_by_trial(tmp_path: Path) -> None:
    row = judged(tmp_path, DIFFERENCE, pair([50.0, 60.0, 70.0, 12.0], [49.0, 58.9, 69.1]))
    assert row["value"] == pytest.approx(1.0)
    assert row["ci95"] == pytest.approx(stdtrit(2, 0.975) * 0.1 / 3**0.5)
    assert (row["verdict"], row["interval"]) == ("reproduced", "trials alone")
    assert row["cells"] == "cifar10/ask-def/c#cosine/conv4/5 cifar10/at/c#cosine/conv4/5"
    assert row["why"] == "Holds above 0. Of these two networks, one training a model: ASK-Def, AT."


def test_two_trials_decide_nothing(tmp_path: Path) -> None:
    row = judged(tmp_path, DIFFERENCE, pair([50.0, 60.0], [49.0, 58.9]))
    assert (row["verdict"], row["decides"]) == ("undecided", "At least 3 trials.")


def test_what_no_trial_changes_needs_only_one(tmp_path: Path) -> None:
    ratio = {"shape": "ratio", "of": {"metric": "times_work"}, "most": 2, "unit": "times"}
    row = judged(tmp_path, ratio, [number({"dataset": "cifar10", "metric": "times_work"}, [2.54])])
    assert (row["verdict"], row["measured"], row["interval"]) == ("not reproduced", "2.5 times", "")


def judged_by_the_rules(name: str, stored: dict[str, Rows]) -> dict[str, Any]:
    """The row of one of the paper's claims on given numbers."""
    stated = dict.fromkeys(["id", "statement", "quantity", "source_section", "operator", "threshold"], "")
    job = {"kinds": dict.fromkeys(stored, "table"), "stand_ins": {}, "without": [], "labels": {}, "command": ""}
    evidence = Evidence(
        Run(Path()), job, stored={name: [r | r["columns"] for r in rows] for name, rows in stored.items()}
    )
    return evaluate(stated, RULES.claims[name], evidence)


@pytest.mark.parametrize(("both", "verdict"), [(50.5, "reproduced"), (56, "not reproduced")])
def test_a_loss_on_two_layers_is_judged_by_robustness_alone(both: float, verdict: str) -> None:
    layers = []
    for model, mean in (("ask-def-conv34", both), ("ask-def", 50.0)):
        for layer in ("conv3", "conv4", "conv3+conv4"):
            shown = {"dataset": "cifar10", "model": model, "dknn_layers": layer, "metric": "dknn_robust_accuracy"}
            layers.append(number(shown, [mean - 0.1, mean, mean + 0.1], f"cifar10/{model}/c#"))
    assert judged_by_the_rules("C65", {"control-layers": layers})["verdict"] == verdict


@pytest.mark.parametrize(("own", "verdict"), [(30.2, "reproduced"), (33.0, "not reproduced")])
def test_the_paper_s_weights_are_judged_on_both_data_sets(own: float, verdict: str) -> None:
    rows = [
        number(
            {"dataset": dataset, "line": line, "dknn_layers": "conv3+conv4"},
            [mean - 0.1, mean, mean + 0.1],
            f"{dataset}/at/c#",
        )
        for dataset in ("cifar10", "imagenette")
        for line, mean in (("the paper's weights", own if dataset == "imagenette" else 30.0), ("calibrated", 30.0))
    ]
    assert judged_by_the_rules("C67", {"paper-parameters": rows})["verdict"] == verdict


def test_a_data_set_that_is_missing_leaves_a_claim_undecided(tmp_path: Path) -> None:
    both = DIFFERENCE | {"datasets": ["cifar10", "imagenette"]}
    row = judged(tmp_path, both, pair([50.0, 60.0, 70.0], [49.0, 58.9, 69.1]), labels={"imagenette": "Imagenette"})
    assert row["verdict"] == "undecided"
    assert "On what there is: reproduced." in row["why"]
    assert row["why"].endswith("Without data: t has no number of Imagenette, ASK-Def.")
    assert row["command"] == "make it"
    assert row["decides"] == "The numbers that are missing."
    row = judged(tmp_path, both, pair([50.0, 60.0, 70.0], [59.0, 68.9, 79.1]), without=["imagenette"])
    assert row["verdict"] == "undecided"
    assert row["decides"] == "The numbers that are missing, which can't bear it out: it fails on what there is."
    assert row["command"] == "", "this run never makes it"


def test_what_is_planned_but_not_shown_has_not_been_made(tmp_path: Path) -> None:
    rows = pair([50.0, 60.0, 70.0], [49.0, 58.9, 69.1])
    row = judged(tmp_path, DIFFERENCE, rows, kinds={"t": ""})
    assert (row["why"], row["command"]) == ("Without data: t has not been made yet.", "make it")
    row = judged(tmp_path, DIFFERENCE, rows, kinds={"u": "table"})
    assert (row["why"], row["command"]) == (f"Without data: t is not part of run {tmp_path.name}.", "")


def test_a_setting_that_is_missing_leaves_a_claim_undecided(tmp_path: Path) -> None:
    settings = {"where": {"dknn_layers": ["conv3", "conv4"]}, "by": ["dknn_layers"]}
    rows = pair([50.0, 60.0, 70.0], [49.0, 58.9, 69.1], dknn_layers="conv3")
    row = judged(tmp_path, DIFFERENCE | settings, rows)
    assert row["verdict"] == "not evaluated"
    assert row["why"] == "Without data: t has no number of cifar10, Conv 4, ASK-Def."
    row = judged(tmp_path, DIFFERENCE | {"by": ["dknn_layers"]}, [*rows, pair([1.0], [2.0], dknn_layers="conv4")[0]])
    assert row["why"] == "Without data: t lacks numbers at conv4."


@pytest.mark.parametrize(
    ("settings", "verdict"),
    [
        ({"dataset": "cifar10", "eps": 4, "prints": -3}, "inconsistent in the paper"),
        ({"dataset": "cifar10", "eps": 4, "prints": 3}, "not reproduced"),
        ({"dataset": "imagenette", "prints": -3}, "not reproduced"),
    ],
)
def test_a_contradiction_is_of_the_same_data_set_and_quantity(tmp_path: Path, settings: Any, verdict: str) -> None:
    rows = pair([1.0, 1.1, 1.2], [9.0, 9.1, 9.3], eps=4.0) + pair([9.0, 9.1, 9.2], [1.0, 1.1, 1.3], eps=8.0)
    claim = {"contradiction": {"settings": settings, "says": "So."}}
    row = judged(tmp_path, DIFFERENCE | {"by": ["eps"]}, rows, claim=claim)
    assert row["verdict"] == verdict
    assert row["measured"] == "1 of 2"
    assert "Surely outside: eps = 4/255. The paper contradicts itself: So." in row["why"]


def test_stand_ins_answer_for_the_papers_data_sets_and_eps_in_other_words(tmp_path: Path) -> None:
    stand_ins = {"cifar10": {"dataset": "digits", "eps_scale": 6.4}}
    job = {"stand_ins": stand_ins, "labels": {"cifar10": "Digits"}}
    rows = pair([50.0, 60.0, 70.0], [49.0, 58.9, 69.1], dataset="digits", eps=51.2)
    at_8 = DIFFERENCE | {"where": {"eps": 8}}
    row = judged(tmp_path, at_8, rows, **job)
    assert (row["verdict"], row["stand_in"]) == ("holds on stand-in data", "Digits")
    other = {"of": at_8["minus"], "minus": at_8["of"]}
    assert judged(tmp_path, at_8 | other, rows, **job)["verdict"] == "does not hold on stand-in data"
    margin = {"shape": "margin", "least": 5}
    assert judged(tmp_path, at_8 | margin, rows, **job)["verdict"] == "does not hold on stand-in data"
    margin = {"shape": "margin", "least": 1}
    assert judged(tmp_path, at_8 | margin, rows, **job)["verdict"] == "undecided on stand-in data"
    row = judged(tmp_path, DIFFERENCE | {"where": {"eps": 4}}, rows, **job)
    assert row["why"] == "Without data: t has no number of Digits, eps = 25.6/255, ASK-Def."
    assert (row["verdict"], row["stand_in"]) == ("not evaluated", "")


def predict(run: Run, model: str, right: np.ndarray, cell: str = "c") -> list[float]:
    """Store predictions of a cell with two classifiers, the second of which is right where told; its accuracies."""
    labels = np.arange(right.shape[1]) % 10
    record = run.cell("cifar10", model, cell)
    record.parent.mkdir(parents=True, exist_ok=True)
    classifiers = [{"similarity": "cosine", "layers": layers, "k": 5} for layers in (["conv3"], ["conv4"])]
    record.write_text(json.dumps({"results": classifiers}))
    classes = np.where(right, labels, 11).astype(np.uint8)
    np.savez(record.with_suffix(".npz"), robust=np.stack([classes * 0 + 11, classes]), labels=labels.astype(np.uint8))
    return (100 * right.mean(1)).tolist()


ROBUST = {"metric": "dknn_robust_accuracy"}


def test_stored_predictions_count_images_and_pair_them(tmp_path: Path) -> None:
    rng, run = np.random.default_rng(0), Run(tmp_path)
    own, other = rng.random((3, 80)) < 0.5, rng.random((3, 80)) < 0.3
    rows = pair(predict(run, "ask-def", own), predict(run, "at", other), **ROBUST)
    row = judged(tmp_path, DIFFERENCE, rows)
    expected = over_trials_and_images(100.0 * own - 100.0 * other)
    assert row["value"] == pytest.approx(100 * (own.mean() - other.mean()))
    assert row["ci95"] == pytest.approx(expected.half_width)
    assert row["interval"] == "images, trials"


def test_the_papers_value_is_met_on_its_own_test_images(tmp_path: Path) -> None:
    right = np.random.default_rng(0).random((5, 80)) < 0.5
    rows = pair(predict(Run(tmp_path), "ask-def", right), [1.0] * 5, **ROBUST)[:1]
    value = {"shape": "value", "datasets": ["cifar10"], "of": {"model": "ask-def"}, "value": 50, "tolerance": 9}
    row = judged(tmp_path, value, rows)
    assert row["ci95"] == pytest.approx(over_trials_and_images(100.0 * right, population=100).half_width)
    whole = pair(predict(Run(tmp_path), "ask-def", np.tile(right, (1, 2))[:, :100]), [1.0] * 5, **ROBUST)[:1]
    assert judged(tmp_path, value, whole)["interval"] == "trials"


def test_several_trainings_are_counted_and_not_paired(tmp_path: Path) -> None:
    rng, run = np.random.default_rng(0), Run(tmp_path)
    right = {f"{model}{seed}": rng.random((4, 80)) < 0.5 for model in ("ask-def", "at") for seed in ("", "-1", "-2")}
    means = {name: np.mean(predict(run, name, values)) for name, values in right.items()}
    rows = pair([1.0], [1.0], **ROBUST)
    for row in rows:
        model = row["columns"]["model"]
        row["over"] = [f"cifar10/{model}-{seed}/c#cosine/conv4/5" for seed in (1, 2)]
        row["trials"] = [means[model], means[f"{model}-1"], means[f"{model}-2"]]
    row = judged(tmp_path, DIFFERENCE, rows)
    own, other = (100.0 * np.stack([right[f"{m}{seed}"] for seed in ("", "-1", "-2")]) for m in ("ask-def", "at"))
    trainings = tuple((each.mean((1, 2)).var(ddof=1) / 3, 3) for each in (own, other))
    expected = over_trials_and_images((own - other).mean(0), trainings=trainings)
    assert row["ci95"] == pytest.approx(expected.half_width)
    assert row["interval"] == "images, trials, trainings"
    assert row["why"].endswith("Of these 6 networks, 3 trainings a model: ASK-Def, AT.")
    assert "trainings" in row["decides"]


def test_trainings_of_one_model_are_paired(tmp_path: Path) -> None:
    """Two attacks on the same three networks: what training varies in both leaves their difference."""
    rng, run, rows = np.random.default_rng(0), Run(tmp_path), []
    easy = [rng.random((4, 80)) < share for share in (0.3, 0.5, 0.7)]
    right = {"ask": easy, "pgd": [one | (rng.random((4, 80)) < 0.1) for one in easy]}
    for attack, found in right.items():
        names = [f"at{seed}" for seed in ("", "-seed1", "-seed2")]
        means = [float(np.mean(predict(run, name, one, attack))) for name, one in zip(names, found, strict=True)]
        references = [f"cifar10/{name}/{attack}#cosine/conv4/5" for name in names]
        columns = {"dataset": "cifar10", "attack": attack, **ROBUST}
        rows.append(number(columns, means, references[0], over=references[1:]))
    row = judged(tmp_path, DIFFERENCE | {"of": {"attack": "pgd"}, "minus": {"attack": "ask"}}, rows)
    difference = 100.0 * np.stack(right["pgd"]) - 100.0 * np.stack(right["ask"])
    trainings = ((float(difference.mean((1, 2)).var(ddof=1)) / 3, 3),)
    assert row["ci95"] == pytest.approx(over_trials_and_images(difference.mean(0), trainings=trainings).half_width)


def test_predictions_of_another_measurement_are_not_mixed_in(tmp_path: Path) -> None:
    predict(Run(tmp_path), "ask-def", np.ones((3, 80), bool))
    row = judged(tmp_path, DIFFERENCE, pair([50.0, 60.0, 70.0], [49.0, 58.9, 69.1], **ROBUST))
    assert row["interval"] == "trials alone"


def test_curves(tmp_path: Path) -> None:
    rows = [
        number({"dataset": "cifar10", "eps": eps}, [value, value + 0.1, value - 0.1])
        for eps, value in ((1.0, 60.0), (2.0, 50.0), (3.0, 40.0), (4.0, 42.0))
    ]
    slope = {"shape": "slope", "of": {"model": "at"}, "along": "eps", "most": 0, "unit": "points a step"}
    row = judged(tmp_path, slope, rows)
    assert row["value"] == pytest.approx(np.polyfit([1, 2, 3, 4], [60, 50, 40, 42], 1)[0])
    assert row["verdict"] == "reproduced"
    row = judged(tmp_path, {"shape": "straight", "of": {"model": "at"}, "along": "eps", "within": 3}, rows)
    assert row["value"] == pytest.approx(-4.8)
    assert (row["verdict"], row["measured"][:4]) == ("not reproduced", "−4.8")
    assert "(eps = 3/255)" in row["why"]
    low = [number({"dataset": "cifar10", "eps": 5.0}, [8.0, 8.1, 7.9]), *rows[:3]]
    straight = {"shape": "straight", "of": {"model": "at"}, "along": "eps", "within": 3}
    assert judged(tmp_path, straight, low)["verdict"] == "not reproduced"
    row = judged(tmp_path, straight | {"floor": 15}, low)
    assert (row["verdict"], row["value"]) == ("reproduced", pytest.approx(0, abs=1e-9))


def test_a_rank_is_above_all_others(tmp_path: Path) -> None:
    rows = [
        number({"dataset": "cifar10", "dknn_layers": layer}, [value, value + 0.1, value - 0.1])
        for layer, value in (("conv1", 10.0), ("conv3", 30.0), ("conv4", 31.0), ("conv5", 20.0))
    ]
    row = judged(tmp_path, {"shape": "rank", "of": {"dknn_layers": ["conv3", "conv4"]}}, rows)
    assert (row["verdict"], row["measured"]) == ("reproduced", "4 of 4")
    assert "The tightest is 10.00±0.00 points (Conv 3, Conv 5)." in row["why"]


def test_a_picture_decides_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.figure("f").parent.mkdir(parents=True)
    frame = pd.DataFrame(
        {"dataset": "cifar10", "model": "at", "attack": "ask", "rank": range(5), "right": [0, 0, 0, 1, 0]}
    )
    frame.to_csv(run.figure("f"), index=False)
    part = {"shape": "example", "artifact": "f", "by": ["model"], "of": {"attack": "ask"}}
    row = judged(tmp_path, part, [], kinds={"f": "pictures"})
    assert (row["verdict"], row["measured"]) == ("undecided", "4 of 5 (AT)")
    assert row["decides"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("shape: margin, of: {model: at}", "shape 'margin' takes least, not nothing"),
        ("shape: margin, of: {model: at}, most: 3", "shape 'margin' takes least, not most"),
        ("shape: wins, of: {model: at}, least: 3", "shape 'wins' takes no region, not least"),
        ("shape: equivalence, of: {model: at}, value: 3", "shape 'equivalence' takes within or most, not value"),
        ("shape: equivalence, of: {model: at}, within: 3, most: 1", "takes within or most, not most, within"),
        ("shape: ratio, of: {model: at}, value: 20, least: 5", "takes value or least or most, not least, value"),
        ("shape: slope, of: {model: at}, most: 0", "`along` names the axis"),
        ("shape: wins, of: {modle: at}", "no column 'modle'; choose from about|artifact"),
        ("shape: wins", "`of` or `minus` must say which number is judged"),
        ("shape: wins, of: {model: at}, leest: 3", "leest: unknown option; allowed here: above, along"),
        ("shape: order, of: {model: at}", "shape: input should be 'margin', 'value'"),
        ("shape: value, of: {model: at}, value: 3, tolerance: -1", "tolerance: input should be greater than or equal"),
    ],
)
def test_mistakes_in_the_rules_are_explained(tmp_path: Path, part: str, message: str) -> None:
    path = tmp_path / "claims.yaml"
    path.write_text(f"test_images: {{}}\nclaims: {{C1: {{parts: [{{artifact: t, {part}}}]}}}}\n")
    with pytest.raises(ConfigError, match=message) as caught:
        read_spec(Claims, path)
    assert str(caught.value).startswith(f"{path}: claims.C1.parts.0")
