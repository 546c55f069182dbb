"""Configuration: what loads, what is refused and with which words, and that its documents are true."""

import copy
import os
import subprocess
import sys

import jsonschema
import pytest
import yaml
from plans import PAPER, ROOT, jobs, planned

from ask.config import reference
from ask.config.artifacts import ArtifactConfig
from ask.config.run import ConfigError, hand_on, load_artifacts, load_run, merge, read_mapping, read_run
from ask.plan.planner import entries, load, plan_of, plan_run
from ask.plan.settings import Resolver

RUNS = {
    "paper": ["config.yaml"],
    "raw-pixels": ["config.yaml", "raw-pixels.yaml"],
    "demo": ["config.yaml", "demo.yaml"],
}


@pytest.fixture(scope="module")
def raw():
    return yaml.safe_load((ROOT / "config/config.yaml").read_text())


def altered(raw, path, value):
    changed = copy.deepcopy(raw)
    *parents, last = path.split(".")
    place = changed
    for key in parents:
        place = place.setdefault(key, {})
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("evaluation.epsilon", 8, r"evaluation\.epsilon: unknown option; allowed here: advknn, auto, dknn, eps, k"),
        ("evaluation.eps", 300, r"evaluation\.eps: input should be less than or equal to 255 \(got 300\)"),
        (
            "datasets.cifar10.network.name",
            "vgg19",
            r"network\.name: input should be 'vgg16' or 'resnet18' \(got 'vgg19'",
        ),
        ("datasets.cifar10.network.widht", 1, r"unknown option; allowed here: .*name.*width"),
        ("datasets.cifar10.source", "cifar", r"input should be 'cifar10', 'imagenette'"),
        ("models.at.base", "pgd", r"models\.at\.base: input should be"),
        ("seed", "many", r"seed: input should be a valid integer.*got 'many'"),
        ("run", "my run", r"run: string should match pattern"),
        ("calibration.images", 0, r"calibration\.images: input should be greater than or equal to 1"),
        ("calibration.tau_cosine", [-1, 1], r"calibration\.tau_cosine\.0: input should be greater than 0"),
        ("calibration.tau_l2", [], r"calibration\.tau_l2: list should have at least 1 item"),
        ("calibration.omega", [2.0], r"calibration\.omega\.0: input should be less than or equal to 1"),
        ("calibration.dknn_guides", [0], r"calibration\.dknn_guides\.0: input should be greater than or equal to 2"),
        ("calibration.dknn_alpha", [0], r"calibration\.dknn_alpha\.0: input should be greater than 0"),
        ("calibration.dknn_learning_rate", [-1], r"calibration\.dknn_learning_rate\.0: input should be greater than 0"),
        ("artifacts", "table01", r"artifacts: input should be a valid list \(got 'table01'\); write \[table01\]"),
        ("without", "imagenette", r"without: input should be a valid list .*; write \[imagenette\]"),
        ("evaluation.x_values", {"k": []}, r"evaluation\.x_values\.k: list should have at least 1 item"),
    ],
)
def test_a_mistake_is_one_message_with_place_value_and_what_is_allowed(raw, path, value, message):
    with pytest.raises(ConfigError, match=message):
        load_run(altered(raw, path, value))


TABLE = {
    "kind": "table",
    "title": "t",
    "caption": "c",
    "category": "attack",
    "settings": {"dataset": "cifar10", "model": "at", "layers": ["conv4"]},
    "rows": [{"values": [{"label": "K = 5", "k": 5}]}],
    "columns": [{"values": [{"label": "cosine", "similarity": "cosine"}]}],
}


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("settings.layers", ["conv6"], r"one\.yaml: model 'at' has no layer 'conv6'; choose from conv1, .*conv5"),
        ("settings.layers", ["conv 4"], r"one\.yaml: settings\.layers\.0: string should match .*\(got 'conv 4'\)"),
        ("settings.layers", ["input"], r"has no layer 'input' \('input' is model 'raw' only\)"),
        ("settings.eps", 300, r"settings\.eps: input should be less than or equal to 255 \(got 300\)"),
        (
            "settings.k_out",
            2001,
            r"K = 2001 exceeds the 2000 references a class of dataset 'cifar10'; lower K or raise",
        ),
        ("settings.model", "askdef", r"unknown model 'askdef'; known: raw, at, .*; add it to `models`"),
        ("settings.dataset", "svhn", r"unknown dataset 'svhn'; known: cifar10, .*; add it to `datasets`"),
        ("settings", {"dataset": "mnist", "model": "at", "layers": ["conv4"]}, r"needs a network on dataset 'mnist'"),
        ("settings", {"dataset": "mnist", "model": "raw", "layers": ["conv4"]}, r"the layer 'input' only"),
        (
            "settings",
            {"model": "at", "layers": ["conv4"]},
            r"no dataset given; set it in `settings`, a row or a column",
        ),
        ("settings", {"dataset": "cifar10", "model": "at"}, r"no layers given"),
        ("rows", [], r"a table needs rows and columns"),
    ],
)
def test_a_mistake_in_an_artifact_names_its_file(raw, tmp_path, path, value, message):
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(altered(TABLE, path, value)))
    with pytest.raises(ConfigError, match=message):
        plan_run(load_run(raw), load_artifacts(tmp_path, "all"))


@pytest.mark.parametrize("layer", ["conv6", "input"])
def test_a_layer_to_train_by_must_be_the_networks(raw, tmp_path, layer):
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(altered(TABLE, "settings.model", "ask-def")))
    wrong = load_run(altered(raw, "models.ask-def.ask", {"layer": layer}))
    message = f"training of model 'ask-def' reads layer '{layer}', and datasets.cifar10.network has conv1, .*conv5; set"
    with pytest.raises(ConfigError, match=message):
        plan_run(wrong, load_artifacts(tmp_path, "all"))


def test_a_layer_to_select_by_must_be_the_networks_where_a_model_selects_by_it(raw):
    """The model's own `training` stands in the place of the data set's."""
    network = {"factory": "torchvision.models:resnet18", "layers": {"late": "layer4"}}
    own = raw["datasets"]["cifar10"] | {"network": network}
    for shared, of_model, where in (
        ("holdout", "holdout-dknn", "models.at"),
        ("holdout-dknn", "holdout", None),
        ("holdout-dknn", None, "datasets.own"),
    ):
        data = own | {"training": own.get("training", {}) | {"selection": shared}}
        run = altered(raw, "datasets", {**raw["datasets"], "own": data})
        run = altered(run, "models.at.training", {"selection": of_model} if of_model else None)
        resolver = Resolver(load_run(run))
        if where is None:
            assert resolver.features("own", resolver.config.datasets["own"], "at").network
        else:
            with pytest.raises(ConfigError, match=rf"reads layer 'conv4'.*set `{where}.training.selection: holdout`"):
                resolver.features("own", resolver.config.datasets["own"], "at")


def test_unknown_artifacts_and_broken_files_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no file .*table99\.yaml; known artifacts: .*table05"):
        load_artifacts(ROOT / "config/artifacts", ["table99"])
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml: not valid YAML"):
        read_run([tmp_path / "bad.yaml"])
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_run([tmp_path / "none.yaml"])


def test_merge_is_deep_for_mappings_and_replaces_lists():
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 1}
    assert merge(base, {"a": {"y": [3]}, "c": 2}) == {"a": {"x": 1, "y": [3]}, "b": 1, "c": 2}
    assert base["a"]["y"] == [1, 2]


def test_schema_and_reference_page_are_up_to_date():
    assert (ROOT / reference.SCHEMA).read_text() == reference.schema(), "run: python -m ask reference"
    assert (ROOT / reference.PAGE).read_text() == reference.page(), "run: python -m ask reference"


@pytest.mark.parametrize("run", RUNS)
def test_schema_accepts_our_runs_and_refuses_mistakes(run, raw):
    import json

    schema = json.loads(reference.schema())
    merged = {}
    for name in RUNS[run]:
        merged = merge(merged, yaml.safe_load((ROOT / "config" / name).read_text()))
    jsonschema.validate(merged, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(altered(raw, "evaluation.eps", 300), schema)


def test_every_option_has_a_description():
    rows = [line for line in reference.page().splitlines() if line.startswith("| `")]
    assert len(rows) > 80
    assert all(row.split("|")[-2].strip() for row in rows)


# The plan


def test_the_paper_run_is_the_papers_protocol():
    cells = jobs(planned("paper"), "attack")
    cell = cells["cifar10", "at", "ask-cos-L4-K5-e8-s20"]
    assert (cell.trials, cell.references_per_class, cell.test_images) == (20, 2000, None)
    attack = cell.attack
    assert (attack.eps, attack.step_size, attack.steps, attack.tau) == (8 / 255, 2 / 255, 20, None)
    written = attack.model_dump(mode="json")
    assert (written["eps"], written["step_size"]) == (8, 2)  # of 255, as the paper and a user write them
    assert cells["imagenette", "at", "ask-cos-L4-K5-e4-s20"].references_per_class == 850
    two = cells["cifar10", "at", "ask-cos-L34-K5-e8-s20"]
    assert two.tau_from == ("tau-ask-cos-L3-e8", "tau-ask-cos-L4-e8")
    assert two.omega_from == "omega-ask-cos-L34-e8"


def test_artifacts_share_cells_and_cells_serve_all_classifiers():
    made = planned("paper")
    everything = [e for job in made.artifacts.values() for e in entries(job)]
    shown = [e for e in everything if e["metric"].startswith("dknn_")]
    cells = jobs(made, "attack")
    assert len(cells) < len(shown)
    cell = cells["cifar10", "at", "ask-cos-L4-K5-e8-s20"]  # Tables 1, 3, 4, 10, 12 and Figure 4
    wanted = {(c.layers, c.k) for c in cell.classifiers}
    assert {(("conv3",), 5), (("conv3", "conv4"), 5), (("conv4",), 1), (("conv4",), 9)} <= wanted
    for entry in shown:
        key = entry["cell"]
        found = cells[key["dataset"], key["model"], key["id"]]
        assert entry["classifier"] in [c.model_dump(mode="json") for c in found.classifiers]


def test_every_value_of_the_papers_tables_has_its_place():
    """All rows of the tables of this project stand beside a measured cell, with their own value."""
    made = planned("paper")
    for number in (str(n) for n in range(1, 15)):
        rows = [row for row in PAPER.tables if row["table"] == number]
        values = [e["paper_mean"] for e in entries(made.artifacts[f"table{int(number):02}"])]
        shown = [value for value in values if value is not None]
        assert sorted(shown) == sorted(float(row["value_percent"]) for row in rows), f"Table {number}"


def test_claimed_values_stand_beside_the_failure_analysis():
    shown = {e["metric"]: e["paper_mean"] for e in entries(planned("paper").artifacts["failures"])}
    assert shown["failures.confidence_1"] == 86.89
    assert shown["successes.similarity_gap"] == pytest.approx(5.19)


def test_analyses_follow_the_cells_that_they_rest_on():
    made = planned("demo")
    cells = jobs(made, "attack")
    ((key, failures),) = jobs(made, "failures").items()
    whole = cells["digits-vgg", "at", "ask-cos-L4-K5-e51.2-s20"]
    assert key == ("digits-vgg", "at", f"failures-{whole.id}")
    # Another artifact's classifiers of the cell concern the analysis not, its trials do.
    assert len(whole.classifiers) > len(failures.cell.classifiers) == 1
    assert failures.cell.trials == whole.trials
    (timing,) = jobs(made, "timing").values()
    assert [cell.attack.name for cell in timing.cells] == ["ask", "advknn", "dknn", "dknn"]
    assert timing.grid_sizes == (2, 0, 2, 2)
    assert {block.trials for block in jobs(made, "blocks").values()} == {3}
    assert cells["digits-vgg", "at", "advknn-cos-L34-K5-e51.2-s20"].blocks_from == ("cos-L3-K5", "cos-L4-K5")


def test_gains_rest_on_both_models_and_stand_beside_the_papers():
    made = planned("paper")
    shown = {
        (e["columns"]["dataset"], e["columns"]["model"], e["columns"]["dknn_layers"]): e
        for e in entries(made.artifacts["table06-gain"])
    }
    entry = shown["cifar10", "ask-def", "conv4"]
    assert entry["paper_mean"] == pytest.approx(43.6 - 36.7)
    assert entry["baseline"]["cell"] == {"dataset": "cifar10", "model": "at", "id": entry["cell"]["id"]}
    assert made.run.cell("cifar10", "at", entry["cell"]["id"]) in made.cells_of("table06-gain")


def test_values_may_be_asked_for_over_trained_models(raw, tmp_path):
    table = TABLE | {"settings": TABLE["settings"] | {"training_seeds": 3, "model": "ask-def", "baseline": "at"}}
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(table))
    made = plan_run(load_run(raw), load_artifacts(tmp_path, "all"))
    names = [f"{model}{suffix}" for model in ("ask-def", "at") for suffix in ("", "-seed1", "-seed2")]
    models = jobs(made, "train")
    assert [model for _, model in models] == names
    assert [job.seed for job in models.values()] == [0, 1, 2] * 2
    assert {job.method.label for job in models.values()} == {"ASK-Def", "AT"}
    assert len({job.seed for job in jobs(made, "attack").values()}) == 1  # trials are the same for all models
    (entry,) = entries(made.artifacts["one"])
    assert [cell["model"] for cell in entry["over"]] == ["ask-def-seed1", "ask-def-seed2"]
    assert [cell["model"] for cell in entry["baseline"]["over"]] == ["at-seed1", "at-seed2"]
    assert {cell.parent.name for cell in made.cells_of("one")} == set(names)


def test_a_run_may_leave_data_sets_and_models_out():
    config = read_run([ROOT / "config" / name for name in ("config.yaml", "lite.yaml")])
    made = plan_run(config, load_artifacts(ROOT / "config/artifacts", "all"), PAPER)
    assert {dataset for dataset, _, _ in jobs(made, "attack")} == {"cifar10"}
    assert {"table02", "table05", "figure-raw-clean"}.isdisjoint(made.artifacts)
    assert len(made.artifacts["table06"]["column_headers"]) == 3
    assert {"trades", "ask-def-trades"}.isdisjoint(model for _, model, _ in jobs(made, "attack"))
    assert "table13" not in made.artifacts
    assert made.artifacts["training-cost"]["row_headers"] == [["AT"], ["AT+SNN"], ["ASK-Def"]]


def test_what_is_left_out_has_to_be_there(tmp_path):
    (tmp_path / "mine.yaml").write_text("run: mine\nwithout: [imagenete]\n")
    with pytest.raises(ConfigError, match="without: no data set, model or part of an artifact is called 'imagenete'"):
        load([tmp_path / "mine.yaml"])
    for artifacts in ("all", "[table05]"):  # the latter has no part of this name, but others have
        left_out = f"run: mine\nartifacts: {artifacts}\nwithout: [imagenette, trades, fair-rivals]\n"
        (tmp_path / "mine.yaml").write_text(left_out)
        load([tmp_path / "mine.yaml"])
    for trials in (-3, 0):
        with pytest.raises(ConfigError, match=f"--trials {trials}: must be at least 1"):
            load([], trials=trials)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("without", ["trade", "imagenete"], r"is called 'imagenete'; .*\n.* is called 'trade'; mend its spelling$"),
        (
            "stand_ins.cifar10",
            {"dataset": "flower"},
            r"^stand_ins\.cifar10: there is no data set 'flower'; the run has",
        ),
        ("stand_ins.cifar-10", {"dataset": "mnist"}, r"^stand_ins\.cifar-10: there is no data set 'cifar-10'; the run"),
        (
            "evaluation.x_values",
            {"k": [0]},
            r"evaluation\.x_values: k: input should be greater than or equal to 1 \(got 0",
        ),
        ("evaluation.x_values", {"k": [2.5]}, r"evaluation\.x_values: k: .* valid integer.*\(got 2\.5\)"),
        (
            "evaluation.x_values",
            {"eps": [-1]},
            r"evaluation\.x_values: eps: input should be greater than or equal to 0",
        ),
        ("evaluation.x_values", {"eps": [0]}, r"figure1-left\.yaml: eps = 0, which is no attack"),
    ],
)
def test_what_leads_nowhere_is_told_where_it_stands(raw, path, value, message):
    with pytest.raises(ConfigError, match=message):
        plan_of(load_run(altered(raw, path, value)), ROOT / "config")


def test_values_of_a_figure_of_ones_own_are_looked_at_too(raw, tmp_path):
    figure = yaml.safe_load((ROOT / "config/artifacts/figure5.yaml").read_text())
    figure["panels"][0]["x"]["values"] = [0]
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(figure))
    wrong = load_run(raw | {"artifacts": [str(tmp_path / "mine.yaml")]})
    with pytest.raises(ConfigError, match=rf"^{tmp_path}/mine\.yaml: x\.values: k.*: input should be greater"):
        plan_of(wrong, ROOT / "config")


def test_a_key_stands_once(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("run: x\nevaluation:\n  eps: 8\n  k: 5\n  eps: 4\n")
    with pytest.raises(ConfigError, match=r"^\S*twice\.yaml: not valid YAML: line 5: 'eps' stands twice; remove one"):
        read_run([path])
    path.write_text("a: &a {x: 1}\nb: &b {<<: *a, x: 2, y: 3}\nc:\n  d: {<<: *b, y: 4}\n  e: {<<: [*a, *b], x: 5}\n")
    merged = {"a": {"x": 1}, "b": {"x": 2, "y": 3}, "c": {"d": {"x": 2, "y": 4}, "e": {"x": 5, "y": 3}}}
    assert read_mapping(path) == merged


def test_an_attack_that_is_added_is_named_in_one_place():
    code = (
        "from ask.config import attacks; attacks.VARIANTS['away'] = {'': {}}\n"
        "from ask.config.artifacts import Settings; from ask.config.reference import page\n"
        "assert Settings(attack='away').attack == 'away' and '`away`' in page()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_folder_and_a_file_of_other_bytes_are_no_configuration(tmp_path):
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "bytes.yaml"):
        with pytest.raises(ConfigError, match="no readable text file"):
            read_run([path])


def test_a_run_may_choose_the_values_along_figures():
    config = read_run([ROOT / "config" / name for name in ("config.yaml", "lite.yaml")])
    made = plan_run(config, load_artifacts(ROOT / "config/artifacts", ["figure1-left", "figure5"]), PAPER)
    shown = {
        name: {point["x"] for panel in job["panels"] for line in panel["lines"] for point in line["points"]}
        for name, job in made.artifacts.items()
    }
    assert shown == {"figure1-left": {1, 4, 8, 16}, "figure5": {1, 3, 5, 7, 9}}


def test_training_costs_compare_with_plain_adversarial_training():
    costs = jobs(planned("demo"), "cost")
    assert costs["digits-vgg", "ask-def", "training-cost"].base == "at"
    controls = {"at-long", "ask-def-conv34"}
    assert {model for _, model, _ in costs} == {"at", "at-snn", "ask-def", "trades", "ask-def-trades"} | controls


def test_pgd_needs_a_network_and_no_layers(raw, tmp_path):
    table = TABLE | {
        "settings": {"dataset": "cifar10", "attack": "pgd", "metric": "dnn_robust_accuracy"},
        "rows": [{"values": [{"label": "AT", "model": "at"}]}],
        "columns": [{"values": [{"label": "PGD"}]}],
    }
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(table))
    made = plan_run(load_run(raw), load_artifacts(tmp_path, "all"))
    (cell,) = jobs(made, "attack").values()
    assert (cell.id, cell.classifiers) == ("pgd-e8-s20", ())
    assert not hasattr(cell.attack, "layers")
    assert not made.of("index")
    table["rows"] = [{"values": [{"label": "raw", "model": "raw"}]}]
    (tmp_path / "one.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(ConfigError, match=r"model 'raw' has no network.*take another model"):
        plan_run(load_run(raw), load_artifacts(tmp_path, "all"))


def test_stand_ins_scale_eps_steps_and_reference_sets():
    made = planned("demo")
    cells = jobs(made, "attack")
    cell = cells["digits-vgg", "at", "ask-cos-L4-K5-e51.2-s20"]
    assert (cell.attack.eps, cell.attack.step_size, cell.trials) == (51.2 / 255, 12.8 / 255, 3)
    sizes = {c.references_per_class for (d, _, name), c in cells.items() if name.startswith("clean")}
    assert sizes == {10, 20, 40, 60, 100}
    assert not made.artifacts["table01"]["comparable"]
    assert planned("paper").artifacts["table01"]["comparable"]


def test_calibrations_may_be_shared():
    """The paper run searches tau for every variant, eps and step size, the demo once for all of them."""
    paper, demo = planned("paper"), planned("demo")
    targeted = jobs(paper, "attack")["cifar10", "at", "ask-targeted-l2-L4-K5-e8-s20"]
    assert targeted.tau_from == ("tau-ask-targeted-l2-L4-e8",)
    shared = jobs(demo, "attack")["digits-vgg", "at", "ask-targeted-l2-L4-K5-e51.2-s20"]
    assert shared.tau_from == ("tau-ask-l2-L4-e51.2",)
    assert [name for dataset, _, name in jobs(demo, "calibrate") if dataset == "digits-raw"] == [
        "tau-ask-l2-Lin-e8",
        "tau-ask-cos-Lin-e8",
    ]
    calibrations = jobs(paper, "calibrate")
    assert calibrations["mnist", "raw", "tau-ask-l2-Lin-e40"].attack.step_size == 2 / 255
    assert ("mnist", "raw", "tau-ask-l2-Lin-e60") in calibrations


@pytest.mark.parametrize("run", RUNS)
def test_a_job_is_what_its_document_says(run):
    """Commands receive documents, in which radii are n of 255: not a bit of them is lost on the way."""
    for task in planned(run).tasks.values():
        if task.step.job is not None:
            assert task.step.job.model_validate_json(task.text) == task.job


@pytest.mark.parametrize("run", RUNS)
def test_every_task_comes_after_those_that_it_needs(run):
    tasks, seen = planned(run).tasks, set()
    for path, task in tasks.items():
        assert path == task.output
        assert set(task.needs) & set(tasks) <= seen, path
        seen |= set(task.outputs)
    results = {need for task in tasks.values() for need in task.needs if need.parts[0] in ("results", "data")}
    assert results <= seen


def test_both_runs_make_the_same_artifacts():
    assert list(planned("paper").artifacts) == list(planned("demo").artifacts)


def test_jobs_hear_of_the_mirror_and_of_what_searches_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ASK_DATA_MIRROR", "ASK_SEARCH"):
        monkeypatch.setenv(name, "before")
    config = read_run([ROOT / "config/config.yaml"])
    data = config.data.model_copy(update={"mirror": "/there"})
    hand_on(config.model_copy(update={"search": "faiss", "data": data}))
    assert (os.environ["ASK_DATA_MIRROR"], os.environ["ASK_SEARCH"]) == ("/there", "faiss")
    hand_on(config)
    assert (os.environ["ASK_DATA_MIRROR"], os.environ["ASK_SEARCH"]) == ("/there", "auto")


# What a plan must not mix up


def planned_with(overlay, rows, **settings):
    """The plan of the demo and an overlay, of one table on digits without a network."""
    raw = merge(
        yaml.safe_load((ROOT / "config/config.yaml").read_text()),
        yaml.safe_load((ROOT / "config/demo.yaml").read_text()),
    )
    table = {"kind": "table", "title": "", "caption": "", "category": "attack", "rows": [{"values": rows}]}
    table |= {
        "settings": {"model": "raw", "layers": ["input"], "tau": 0.1} | settings,
        "columns": [{"values": [{"label": ""}]}],
    }
    return plan_run(load_run(merge(raw, overlay)), {"mine": ArtifactConfig.model_validate(table)})


def test_attacks_that_would_share_a_name_are_refused():
    """Of one data set in place of two, each with its own scale of eps."""
    scaled = {
        "mnist": {"dataset": "digits-raw", "eps_scale": 1},
        "fashion_mnist": {"dataset": "digits-raw", "eps_scale": 2},
    }
    rows = [{"label": "a", "dataset": "mnist", "eps": 8}, {"label": "b", "dataset": "fashion_mnist", "eps": 4}]
    with pytest.raises(ConfigError, match=r"ask-cos-Lin-K5-e8-s20-t0\.1: two attacks have this name; give"):
        planned_with({"stand_ins": scaled}, rows)
    scaled["fashion_mnist"]["eps_scale"] = 1
    assert len(jobs(planned_with({"stand_ins": scaled}, rows), "attack")) == 2


def test_reference_sets_are_scaled_to_one_at_least():
    few = {"mnist": {"dataset": "digits-raw", "references_scale": 0.0001}}
    rows = [{"label": "a", "dataset": "mnist", "references_per_class": 500, "k": 1}]
    ((name, cell),) = jobs(planned_with({"stand_ins": few}, rows), "attack").items()
    assert cell.references_per_class == 1
    assert name[2].endswith("-n1")


def test_blocks_of_advknn_are_of_the_cells_reference_sets():
    rows = [{"label": str(size), "references_per_class": size} for size in (1000, 2000)]
    made = planned_with({}, rows, dataset="mnist", attack="advknn", tau=None)
    blocks = {name[2]: block.references_per_class for name, block in jobs(made, "blocks").items()}
    for cell in jobs(made, "attack").values():
        assert [blocks[name] for name in cell.blocks_from] == [cell.references_per_class]
    assert sorted(blocks.values()) == [20, 40]


def test_names_of_further_trainings_are_no_models_of_ones_own():
    raw = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    raw["models"]["at-seed1"] = {"label": "S", "base": "trades"}
    with pytest.raises(
        ConfigError, match=r"models\.at-seed1: '-seed' is for further trainings of a model; choose another"
    ):
        load_run(raw)
