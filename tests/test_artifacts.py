"""Tables, figures and report, on synthetic runs."""

import csv
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from artifact_jobs import (
    figure_job,
    grouped_table_job,
    make_entry,
    measure,
    render_everything,
    report_job,
    table_job,
    write_cell,
)

from ask.paths import Run
from ask.report import captions, numbers, site, tables
from ask.report.captions import listed
from ask.report.evidence import describe, duration, in_text
from ask.report.figures import PANEL_INCHES, limits, render_figure, set_places, spread
from ask.report.site import render_report
from ask.report.tables import LATEX, partial_table, render_table, spans
from ask.statistics import over_trials_and_images

VOID = {"br", "col", "hr", "img", "input", "link", "meta"}


class Outline(HTMLParser):
    """Checks that tags balance; remembers elements, headings and identifiers."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def all(self, *tags: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "demo")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("mean", "ci95", "text"),
    [
        (35.1234, 0.1834, "35.12±0.18"),
        (35.1234, 0.2, "35.12±0.20"),
        (35.1234, 1.26, "35.1±1.3"),
        (35.1234, 0.996, "35.1±1.0"),
        (35.1234, 0.0996, "35.12±0.10"),
        (35.1234, 0.0004, "35.12±0.00"),
        (35.1234, 12.4, "35±12"),
        (35.1234, 9.96, "35±10"),
        (35.1234, 0.0, "35.12±0.00"),
        (35.1234, None, "35.1"),
        (100.0, None, "100.0"),
        (0.0, 0.0, "0.00±0.00"),
        (-1.23, 1.3, "−1.2±1.3"),
    ],
)
def test_rounding_follows_the_interval(mean: float, ci95: float | None, text: str) -> None:
    assert numbers.format_value(mean, ci95) == text


@pytest.mark.parametrize(
    ("points", "text"), [(1.26, "+1.3"), (-0.44, "−0.4"), (0.04, "0.0"), (-0.04, "0.0"), (-12.0, "−12.0")]
)
def test_differences_are_signed(points: float, text: str) -> None:
    assert numbers.format_difference(points) == text


@pytest.mark.parametrize(
    ("mean", "ci95", "text"), [(41, 0.19, "41±0.19"), (35.1, 0.2, "35.1±0.2"), (95.5, None, "95.5")]
)
def test_published_values_keep_their_digits(mean: float, ci95: float | None, text: str) -> None:
    assert numbers.format_published(mean, ci95) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.25 s"), (42, "42 s"), (200, "3 min 20 s"), (18720, "5 h 12 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_lookup_reads_the_classifier_and_metric_asked_for(run: Run) -> None:
    write_cell(run, "a", [measure(("conv3",), 0.2, k=5), measure(("conv3",), 0.3, k=9, ci95=None, clean=0.7)])
    robust = numbers.lookup(make_entry("a", ("conv3",), k=9), run)
    clean = numbers.lookup(make_entry("a", ("conv3",), k=9, metric="dknn_clean_accuracy"), run)
    assert robust["mean"] == pytest.approx(30)
    assert (robust["ci95"], robust["trials"]) == (None, 1)
    assert clean["mean"] == pytest.approx(70)


def test_a_missing_cell_is_named_with_the_command_that_makes_it(run: Run) -> None:
    path = run.cell("digits", "at", "gone")
    with pytest.raises(numbers.MissingValueError, match="digits/at/gone") as caught:
        numbers.lookup(make_entry("gone", ("conv3",)), run)
    assert f"snakemake --cores all {path}" in str(caught.value)


def test_a_missing_classifier_is_named(run: Run) -> None:
    write_cell(run, "a", [measure(("conv3",), 0.2, k=5)])
    with pytest.raises(numbers.MissingValueError, match=r"similarity cosine, layers conv3\+conv4, k 7"):
        numbers.lookup(make_entry("a", ("conv3", "conv4"), k=7), run)


def test_an_unknown_metric_is_refused(run: Run) -> None:
    write_cell(run, "a", [measure(("conv3",), 0.2, k=5)])
    with pytest.raises(numbers.MissingValueError, match=r"digits/at/a holds no accuracy of similarity cosine"):
        numbers.lookup(make_entry("a", ("conv3",), metric="accuracy"), run)


def test_networks_timings_and_groups_are_found_by_their_own_names(run: Run) -> None:
    statistic = {"mean": 0.5, "ci95": 0.01, "trials": [0.5]}
    timed = {"timed": "ask", "slower": {"mean": 2.5, "ci95": 0.2, "trials": [2.5]}}
    write_cell(
        run, "a", [measure(("conv3",), 0.2) | {"failures.confidence_1": statistic, "successes.confidence_1": None}]
    )
    path = run.cell("digits", "at", "a")
    content = json.loads(path.read_text())
    content["results"].append(timed)
    path.write_text(json.dumps(content | {"network": {"robust": statistic, "clean": statistic}}))
    entry = make_entry("a", ("conv3",))
    assert numbers.lookup(entry | {"metric": "dnn_robust_accuracy", "classifier": {}}, run)["mean"] == 50
    assert numbers.lookup(entry | {"metric": "slower", "classifier": {"timed": "ask"}}, run)["mean"] == 2.5
    assert numbers.lookup(entry | {"metric": "failures.confidence_1"}, run)["mean"] == 50
    with pytest.raises(numbers.EmptyGroupError, match="in some trial no image is among the successes"):
        numbers.lookup(entry | {"metric": "successes.confidence_1"}, run)
    assert numbers.read_reference(numbers.write_reference(entry | {"classifier": {}})) == ("digits/at/a", {})


def test_gains_are_paired_by_trial(run: Run) -> None:
    for name, trials in (("a", [0.5, 0.7, 0.6]), ("b", [0.4, 0.5, 0.5, 0.9])):
        write_cell(run, name, [measure(("conv3",), 0.2) | {"robust": {"mean": 0, "ci95": 0, "trials": trials}}])
    entry = make_entry("a", ("conv3",))
    base = make_entry("b", ("conv3",))
    found = numbers.lookup(entry | {"baseline": {key: base[key] for key in ("cell", "classifier")}}, run)
    assert found["mean"] == pytest.approx(100 * (0.1 + 0.2 + 0.1) / 3)
    assert found["trials"] == 3
    half = 4.30265 * np.std([10, 20, 10], ddof=1) / 3**0.5
    assert found["ci95"] == pytest.approx(half, rel=1e-4)


def test_values_over_trained_models_have_their_own_interval(run: Run) -> None:
    for name, mean in (("a", 0.5), ("b", 0.6), ("c", 0.1), ("d", 0.3)):
        statistic = {"mean": mean, "ci95": 0.01, "trials": [mean - 0.1, mean + 0.1]}
        write_cell(run, name, [measure(("conv3",), 0.2) | {"robust": statistic}])
    entry = make_entry("a", ("conv3",))
    others = [make_entry(name, ("conv3",))["cell"] for name in "bcd"]
    found = numbers.lookup(entry | {"over": others[:1]}, run)
    assert (found["mean"], found["trials"]) == (pytest.approx(55), 2)
    assert found["ci95"] == pytest.approx(12.7062 * np.std([50, 60], ddof=1) / 2**0.5, rel=1e-4)
    base = {"cell": others[1], "classifier": entry["classifier"], "over": others[2:]}
    gain = numbers.lookup(entry | {"over": others[:1], "baseline": base}, run)
    assert gain["mean"] == pytest.approx((40 + 30) / 2)


def keep(run: Run, name: str, right: np.ndarray[Any, Any]) -> None:
    """A cell with the predictions of its only classifier, trials x images, beside the record, as attacks leave them."""
    trials = right.mean(1).tolist()
    robust = {"mean": float(np.mean(trials)), "ci95": None, "trials": trials}
    write_cell(run, name, [measure(("conv3",), 0.2) | {"robust": robust}])
    arrays = {"labels": np.ones(right.shape[1], int), "robust": right[None].astype(int)}
    np.savez(run.cell("digits", "at", name).with_suffix(".npz"), **arrays)


def test_intervals_count_images_where_predictions_are_kept(run: Run) -> None:
    """Tables show what a claim is judged by; the paper's kind stands beside it."""
    random = np.random.default_rng(0)
    easy = random.random(60)
    one, other = (random.random((4, 60)) < np.clip(easy - less, 0, 1) for less in (0, 0.1))
    keep(run, "a", one)
    keep(run, "b", other)
    entry, base = make_entry("a", ("conv3",)), make_entry("b", ("conv3",))
    alone = numbers.lookup(entry, run)
    expected = over_trials_and_images(100.0 * one)
    assert alone["mean"] == pytest.approx(expected.mean)
    assert alone["ci95"] == pytest.approx(expected.half_width)
    assert alone["ci95_trials"] is None, "as the record says"
    gain = numbers.lookup(entry | {"baseline": {key: base[key] for key in ("cell", "classifier")}}, run)
    assert gain["ci95"] == pytest.approx(over_trials_and_images(100.0 * one - 100.0 * other).half_width)
    assert gain["ci95_trials"] == pytest.approx(
        3.18245 * np.std(100 * (one.mean(1) - other.mean(1)), ddof=1) / 2, rel=1e-4
    )
    several = numbers.lookup(entry | {"over": [base["cell"]]}, run)
    means = [100 * each.mean() for each in (one, other)]
    trainings = ((float(np.var(means, ddof=1)) / 2, 2),)
    mean = 100.0 * (one.astype(float) + other) / 2
    assert several["ci95"] == pytest.approx(over_trials_and_images(mean, trainings=trainings).half_width)
    assert several["ci95_trials"] == pytest.approx(12.7062 * np.std(means, ddof=1) / 2**0.5, rel=1e-4)


def test_trainings_of_different_numbers_of_trials_share_the_first(run: Run) -> None:
    """One cell may serve another artifact with more trials."""
    random = np.random.default_rng(0)
    one, other = random.random((6, 60)) < 0.5, random.random((3, 60)) < 0.5
    keep(run, "a", one)
    keep(run, "b", other)
    entry, base = make_entry("a", ("conv3",)), make_entry("b", ("conv3",))
    found = numbers.lookup(entry | {"over": [base["cell"]]}, run)
    assert found["mean"] == pytest.approx(50 * (one.mean() + other.mean()))
    alike = 100.0 * (one[:3].astype(float) + other) / 2
    trainings = ((float(np.var([100 * one[:3].mean(), 100 * other.mean()], ddof=1)) / 2, 2),)
    assert found["ci95"] == pytest.approx(over_trials_and_images(alike, trainings=trainings).half_width)


def test_an_axis_holds_differences_and_times_whole() -> None:
    gain, seconds = "dknn_robust_accuracy_gain", "training_seconds"
    for metric, means, half in ((gain, [-7.4, 1.6], 3.0), (gain, [1.0, 6.0], 8.0), (seconds, [81.0, 99.0], 40.0)):
        points = pd.DataFrame({"mean": means, "ci95": [half, half], "paper_mean": [None, None]}, dtype=float)
        low, high = limits(points.assign(metric=metric))
        assert low < min(means) - half
        assert high > max(means) + half
    shares = pd.DataFrame({"mean": [0.2, 99.9], "ci95": [0.4, 0.4], "paper_mean": [None, None]}, dtype=float)
    assert limits(shares.assign(metric="dnn_clean_accuracy")) == (-1.5, 101.5)


@pytest.mark.parametrize(
    ("width", "words"),
    [(1, "VGG16"), (0.25, "VGG16 at width 1/4"), (0.75, "VGG16 at width 0.75"), (2, "VGG16 at width 2")],
)
def test_a_width_is_a_fraction_or_a_number(width: float, words: str) -> None:
    assert captions._network({"name": "vgg16", "width": width}) == words


def test_predictions_that_are_not_of_the_record_are_not_counted(run: Run) -> None:
    keep(run, "a", np.eye(4) > 0)
    path = run.cell("digits", "at", "a")
    record = json.loads(path.read_text())
    record["results"][0]["robust"] |= {"ci95": 0.01, "trials": [0.5, 0.5, 0.5, 0.5]}
    path.write_text(json.dumps(record))
    assert numbers.lookup(make_entry("a", ("conv3",)), run)["ci95"] == pytest.approx(1)


SETTING = re.compile(
    r"\d/255|\b(eps|ε|K|τ|tau) = ?\d|\b\d[\d,]* (steps|trials|epochs|(test |training )?images|references)\b|\bwidth \d"
    r"|CIFAR|Imagenette|MNIST|VGG|ResNet|\btruck"
)
"""What a caption may say of the paper alone: a run has settings and data sets of its own."""


@pytest.mark.parametrize("path", sorted(Path("config/artifacts").glob("*.yaml")), ids=lambda path: path.stem)
def test_captions_name_no_setting_or_data_set_but_the_papers(path: Path) -> None:
    artifact = yaml.safe_load(path.read_text(encoding="utf-8"))
    for text in (artifact["title"], artifact["caption"], *artifact.get("notes", ())):
        for sentence in re.split(r"(?<=[.;]) ", text):
            assert "paper" in sentence or not SETTING.search(sentence), sentence


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (["8", "4", "8"], "4/255, 8/255"),
        (["51.2"], "51.2/255"),
        (["1", "2", "4", "8", "16"], "1/255 to 16/255"),
        ([], ""),
    ],
)
def test_settings_are_listed_in_order(values: list[str], text: str) -> None:
    assert listed(values, "/255") == text


def test_tables_say_what_they_were_measured_with(run: Run) -> None:
    job = table_job(run)
    path = run.cell("digits", "at", "ask-cos-L3-K5-e8-s20")
    record = json.loads(path.read_text())
    features = {"dataset": "digits", "model": "at", "network": {"name": "vgg16", "width": 0.25}}
    attack = {"name": "pgd", "eps": 51.2, "step_size": 8.0, "steps": 20}
    asked = {"features": features, "attack": attack, "classifiers": [{}], "references_per_class": 2000}
    path.write_text(json.dumps(record | {"job": asked | {"trials": 10, "test_images": 500}}))
    for entry in job["entries"]:
        entry["columns"]["eps"] = 51.2
    told = (
        "Measured with: data set Digits (in place of CIFAR-10); training AT; variant non-targeted; K in class 5; "
        "K out of class 5; classifier K 5; ε 51.2/255; steps 20; metric DkNN robust accuracy; trials 10; network VGG16 "
        "at width 1/4; step size 8/255; references a class 2,000; test images 500."
    )
    paths = render_table(job | {"labels": {"digits": "Digits (in place of CIFAR-10)"}}, run)
    assert f"in the ASK loss. {told}\n" in paths[2].read_text()
    assert told in paths[4].read_text()
    assert "51.2/255" in paths[3].read_text()


def test_references_round_trip() -> None:
    entry = make_entry("ask-cos-L34-K5", ("conv3", "conv4"), k=5)
    assert numbers.read_reference(numbers.write_reference(entry)) == ("digits/at/ask-cos-L34-K5", entry["classifier"])


def test_neighbouring_labels_merge_only_below_the_same_parent() -> None:
    headers = [["a", "x"], ["a", "x"], ["b", "x"], ["b", "y"], ["a", "y"]]
    assert spans(headers, 0) == [("a", 0, 2), ("b", 2, 2), ("a", 4, 1)]
    assert spans(headers, 1) == [("x", 0, 2), ("x", 2, 1), ("y", 3, 1), ("y", 4, 1)]


def test_table_csv_is_tidy(run: Run) -> None:
    written = render_table(table_job(run), run)
    assert [path.suffix for path in written] == [".csv", ".json", ".md", ".tex", ".html"]
    assert all(path.is_file() for path in written)
    assert written[0].read_text().splitlines()[0] == (
        "artifact,dataset,model,attack,variant,similarity,attack_layers,classifier_similarity,"
        "dknn_layers,k_in,k_out,classifier_k,eps,steps,about,metric,mean,ci95,ci95_trials,trials,paper_mean,paper_ci95"
    )
    rows = read_csv(written[0])
    assert len(rows) == 18
    assert rows[0] | {"mean": "35.5", "ci95": "0.18", "paper_mean": "35.1", "eps": "8", "trials": "10"} == rows[0]
    assert [row["paper_ci95"] for row in rows[:3]] == ["0.2", "0.18", "0.19"]


def test_a_single_trial_leaves_the_interval_empty(run: Run) -> None:
    write_cell(run, "a", [measure(("conv3",), 0.4321, ci95=None)])
    job = table_job(run) | {"entries": [{"row": 0, "column": 0, **make_entry("a", ("conv3",))}]}
    paths = render_table(job, run)
    row = read_csv(paths[0])[0]
    assert (row["mean"], row["ci95"], row["trials"], row["paper_mean"]) == ("43.21", "", "1", "")
    assert "| 43.2 |" in paths[2].read_text()


def test_html_table_merges_headers_and_scopes_them(run: Run) -> None:
    outline = Outline(render_table(table_job(run), run)[4].read_text())
    headers = outline.all("th")
    assert [h["colspan"] for h in headers if h["scope"] == "colgroup"] == ["3", "3"]
    assert sum(h["scope"] == "col" for h in headers) == 1 + 6
    assert sum(h["scope"] == "row" for h in headers) == 3
    assert sum("data-cell" in cell for cell in outline.all("td")) == 18
    assert len(outline.all("caption")) == 1


def test_html_table_merges_row_labels(run: Run) -> None:
    text = render_table(grouped_table_job(run), run)[4].read_text()
    outline = Outline(text)
    assert [h["rowspan"] for h in outline.all("th") if h["scope"] == "rowgroup"] == ["3", "3"]
    assert len(outline.all("tbody")) == 2
    assert text.count('class="empty"') == 1
    assert "&lt;trials&gt;" in text


def test_every_cell_shows_the_paper_beside_the_measured(run: Run) -> None:
    paths = render_table(table_job(run), run)
    markdown, html = paths[2].read_text(), paths[4].read_text()
    assert "35.50±0.18<br><sub>paper 35.1±0.2 (+0.4)</sub>" in markdown
    assert '<span class="difference">−4.2</span>' in html
    assert 'class="value above-3"' in html
    assert 'class="value below-1"' in html
    assert all(len(line.split(" | ")) == 7 for line in markdown.splitlines() if line.startswith("|"))


def test_values_that_cannot_be_compared_have_no_difference(run: Run) -> None:
    paths = render_table(table_job(run) | {"comparable": False}, run)
    assert "paper 35.1±0.2</sub>" in paths[2].read_text()
    assert "difference" not in paths[3].read_text()
    assert not re.search("difference|above-|below-", paths[4].read_text())


def test_a_partial_table_shows_what_is_measured_and_counts_it(run: Run) -> None:
    job = table_job(run)
    run.cell("digits", "at", "ask-cos-L3-K5-e8-s20").unlink()
    text = partial_table(job, run)
    assert text.endswith("\n\n17 of 18 numbers measured\n")
    assert "| Conv 3 |  | 54.70±0.18<br>" in text
    assert partial_table(figure_job(run), run).endswith(": 35 of 35 numbers measured\n")
    assert partial_table({"kind": "boundaries", "title": "Plane"}, run) == "Plane: no table\n"
    assert "0 of 18" in partial_table(job, Run(run.root / "other"))


def test_latex_escapes_everything_special() -> None:
    assert "a_b & 5% #1 $x {y} ~ ^ \\ <".translate(LATEX) == (
        r"a\_b \& 5\% \#1 \$x \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{} \textless{}"
    )
    assert "τ = 0.03, K⁺, ℓ₂, ε ≤ 8".translate(LATEX) == r"$\tau$ = 0.03, K$^{+}$, $\ell$$_2$, $\varepsilon$ $\leq$ 8"


@pytest.mark.parametrize("make_job", [table_job, grouped_table_job])
def test_latex_rows_fill_their_columns(run: Run, make_job: Any) -> None:
    job = make_job(run)
    text = render_table(job, run)[3].read_text()
    assert text.isascii()
    width = len(job["row_names"]) + len(job["column_headers"])
    for line in text[text.index(r"\toprule") : text.index(r"\bottomrule")].splitlines():
        if line.endswith(r"\\"):
            cells = [int(m[1]) for m in re.finditer(r"\\multicolumn\{(\d+)\}", line)]
            assert len(re.findall(r"(?<!\\)&", line)) + 1 + sum(cells) - len(cells) == width
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")


def test_latex_headers_span_their_groups(run: Run) -> None:
    text = render_table(table_job(run), run)[3].read_text()
    assert r"\multicolumn{3}{c}{cosine similarity} & \multicolumn{3}{c}{$\ell$$_2$ similarity} \\" in text
    assert r"\cmidrule(lr){2-4} \cmidrule(lr){5-7}" in text
    assert r"$35.50 \pm 0.18$" in text


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([1.0, 5.0], [1.0, 5.0]),
        ([2.0, 2.0], [1.5, 2.5]),
        ([3.0, 1.0, 1.2], [3.0, 0.6, 1.6]),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]),
    ],
)
def test_labels_keep_their_distance(heights: list[float], expected: list[float]) -> None:
    assert spread(heights, 1.0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("heights", "expected"),
    [
        ([0.1, 0.2, 4.0], [0.0, 1.0, 4.0]),  # the lowest would lie below the axis, on its numbers
        ([2.0, 4.9, 4.8], [2.0, 5.0, 4.0]),
        ([1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 5.0], [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),  # no room for all
    ],
)
def test_labels_stay_beside_the_axis(heights: list[float], expected: list[float]) -> None:
    assert spread(heights, 1.0, 0.0, 5.0) == pytest.approx(expected)


def test_figures_are_the_same_bytes_every_time(run: Run) -> None:
    job = figure_job(run)
    first = {path.suffix: path.read_bytes() for path in render_figure(job, run)}
    second = {path.suffix: path.read_bytes() for path in render_figure(job, run)}
    assert set(first) == {".csv", ".json", ".svg", ".png", ".pdf"}
    assert first == second
    assert not re.search(rb"20\d\d-\d\d-\d\d", first[".svg"])


@pytest.mark.parametrize("places", [[1, 4, 8, 16], [12.8, 25.6, 51.2, 102.4], [1, 2, 3, 5, 7, 9], [0.03, 0.3, 3, 30]])
def test_names_of_neighbouring_marks_do_not_touch(places: list[float]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL_INCHES[0] * 0.45, 2))
    panel = figure.add_axes((0, 0.2, 1, 0.8))
    panel.set_xlim(places[0], places[-1])
    panel.tick_params(labelsize=8.5)
    set_places(panel, places)
    FigureCanvasAgg(figure).draw()
    boxes = [name.get_window_extent() for name in panel.get_xticklabels() if name.get_text()]
    assert len(boxes) > 2
    assert all(after.x0 - before.x1 > 2 for before, after in pairwise(boxes))


def test_figure_csv_holds_what_was_drawn(run: Run) -> None:
    rows = read_csv(render_figure(figure_job(run), run)[0])
    assert list(rows[0]) == [*numbers.COLUMNS, "panel", "line", "x"]
    assert len(rows) == 35
    assert (rows[0]["panel"], rows[0]["line"], rows[0]["x"]) == ("Temperature and K", "τ = 0.03", "1")


@pytest.mark.parametrize("places", [[0.003, 0.03, 0.3, 3.0, 30.0], [5.0], [float(x) for x in range(20)]])
def test_any_x_axis_draws(run: Run, places: list[float]) -> None:
    write_cell(run, "a", [measure(("conv3",), 0.4, ci95=None)])
    points = [{"x": x, "entry": make_entry("a", ("conv3",))} for x in places]
    panel = {"title": "", "x_label": "x", "y_label": "y", "lines": [{"label": "only", "points": points}]}
    job = figure_job(run) | {"panels": [panel], "paper": None}
    assert all(path.stat().st_size for path in render_figure(job, run))


def pages_of(index: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(index.parent.glob("*.html"))}


def test_report_is_sound_html_that_needs_no_network(tmp_path: Path) -> None:
    index = render_everything(tmp_path / "demo")
    pages = {name: Outline(text) for name, text in pages_of(index).items()}
    assert set(pages) == {"index.html", "table01.html", "table08.html", "figure4.html"}
    names = {page: [i for _, a in outline.elements if (i := a.get("id"))] for page, outline in pages.items()}
    for page, outline in pages.items():
        text = (index.parent / page).read_text()
        assert "http" not in re.sub(r"<pre.*?</pre>", "", text, flags=re.DOTALL)
        assert [script["src"] for script in outline.all("script")] == ["script.js"]
        assert not outline.all("img", "iframe")
        assert len(names[page]) == len(set(names[page]))
        links = [a.get(key) or "" for _, a in outline.elements for key in ("href", "src") if key in a]
        for link in links:
            path, _, anchor = link.partition("#")
            if link.startswith("data:"):
                continue
            assert (index.parent / (path or page)).is_file(), link
            assert not anchor or anchor in names[path or page], link


def test_report_headings_are_in_order_and_drawings_have_words(tmp_path: Path) -> None:
    pages = {name: Outline(text) for name, text in pages_of(render_everything(tmp_path / "demo")).items()}
    for outline in pages.values():
        levels = [int(tag[1]) for tag, _ in outline.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
    (drawing,) = pages["figure4.html"].all("svg")
    assert drawing["role"] == "img"
    assert "Gray box, attack K = 1: from 36.0% at 1" in (drawing["aria-label"] or "")


def test_report_shows_run_evidence_and_warnings(tmp_path: Path) -> None:
    pages = pages_of(render_everything(tmp_path / "demo"))
    index = pages["index.html"]
    assert "2 cores of a laptop CPU" in index
    assert re.search(r"bfloat16 in \d+ cells", index)
    assert "48 min 8 s (2,888 s) in 70 cells" in index
    assert "3.4% of the images had no gradient" in index
    assert "clean accuracy of the DkNN (cosine, conv4, K=5) is 43.0%" in index
    assert "1 min 16 s" in index, "time by stage"
    assert ">23<" in index, "values of the paper's own artifacts, not of the studies beside it"
    assert (
        "python -m ask attack --run demo --dataset digits --model at --cell ask-cos-L3-K5-e8-s20"
        in pages["table01.html"]
    )


def test_every_number_of_a_table_links_to_its_cell(tmp_path: Path) -> None:
    text = pages_of(render_everything(tmp_path / "demo"))["table01.html"]
    found = re.findall(r'data-cell="([^"#]*)#[^"]*"><a href="#cell-([^"]*)"', text)
    assert len(found) == 18
    assert all(name.replace("/", "-") == anchor for name, anchor in found)


def test_ledger_opens_the_report(tmp_path: Path) -> None:
    index = pages_of(render_everything(tmp_path / "demo"))["index.html"]
    assert re.findall(r'<tr id="(C\d+)" data-verdict="([^"]*)"', index) == [
        ("C01", "direction only"),
        ("C02", "not evaluated"),
        ("C10", "reproduced"),
    ]
    assert "It is &lt;fast&gt;" in index
    assert 'Rests on <span class="count">1</span> number of <a href="table01.html">Table 1</a>' in index


def test_report_without_a_ledger_shows_the_rest_and_forgets_old_pages(tmp_path: Path) -> None:
    run = Run(tmp_path / "demo")
    old = run.report.parent / "gone.html"
    old.parent.mkdir(parents=True)
    old.touch()
    table = table_job(run)
    render_table(table, run)
    written = render_report(report_job([table]), run)
    assert {path.name for path in written} == {"index.html", "table01.html", "style.css", "script.js"}
    assert not old.exists()
    assert "The paper’s claims" not in written[0].read_text()


def test_report_on_stand_ins_says_so_and_compares_nothing(tmp_path: Path) -> None:
    pages = pages_of(render_everything(tmp_path / "demo", stand_ins=["digits in place of CIFAR-10"]))
    assert "This run measures on digits in place of CIFAR-10." in pages["index.html"]
    assert "verdicts say what happens on the stand-in data" in pages["index.html"]
    assert sum("Not comparable:" in text for text in pages.values()) == 3
    assert all('class="stand-ins"' in text for text in pages.values())
    assert "median distance" not in pages["index.html"]


def test_report_names_an_artifact_that_is_not_rendered(run: Run) -> None:
    with pytest.raises(numbers.MissingValueError, match="table table01 has not been rendered"):
        render_report(report_job([table_job(run)]), run)


ASK = {"name": "ask", "variant": "targeted", "layers": ["conv3", "conv4"], "k_in": 5, "k_out": 3}
STEPS = {"eps": 51.2, "step_size": 8.0, "steps": 20}


@pytest.mark.parametrize(
    ("job", "text"),
    [
        ({"attack": ASK | STEPS, "similarity": "l2"}, "ask, targeted, l2, conv3+conv4, K 5 in and 3 out of class"),
        ({"attack": ASK | STEPS | {"similarity": "l2"}}, "ask, targeted, l2, conv3+conv4, K 5 in and 3 out of class"),
        ({"attack": STEPS | {"name": "dknn", "layers": ["conv4"], "k": 7}, "similarity": "l2"}, "dknn, l2, conv4, K 7"),
        ({"attack": STEPS | {"name": "pgd"}, "similarity": "l2"}, "pgd"),
        ({"attack": {"name": "square", "eps": 51.2, "layers": ["conv4"], "k": 7}}, "square, conv4, K 7"),
        ({"attack": None, "similarity": "l2"}, ""),
        ({"attack": {"name": "none", "eps": 0.0}}, ""),
        ({}, ""),
    ],
)
def test_attacks_are_described_by_the_settings_that_they_have(run: Run, job: dict[str, Any], text: str) -> None:
    facts = dict(describe("digits/at/a", {"job": job, "results": []}, run)["facts"])
    steps = ", 20 steps of 8/255" if "steps" in (job.get("attack") or {}) else ""
    assert facts.get("attack", "") == (f"{text}, ε 51.2/255{steps}" if text else "")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{"label": "MNIST", "note": "digits"}, {"label": "CIFAR-10", "note": ""}], "MNIST (digits), CIFAR-10"),
        ({"a": 1, "b": [2, 3]}, "a: 1, b: 2, 3"),
        (None, ""),
        (0, "0"),
    ],
)
def test_configuration_in_words(value: object, text: str) -> None:
    assert in_text(value) == text


@pytest.mark.parametrize("module", ["tables", "figures", "pictures", "site"])
def test_renderings_stay_light_and_apart(module: str) -> None:
    """Code fingerprints follow imports: a new plot style must not redo tables, and nothing here waits for torch."""
    others = {"tables", "figures", "pictures", "site"} - {module} | ({"plotting"} if module == "tables" else set())
    code = f"import ask.report.{module}, sys; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {"torch", "faiss", "sklearn", *(f"ask.report.{other}" for other in others)}
    assert ("matplotlib" in loaded) == (module in ("figures", "pictures"))
    ours = {name for name in loaded if name.startswith("ask.") and not name.startswith(("ask.report", "ask.config"))}
    light = {"ask.errors", "ask.files", "ask.lazy", "ask.paths", "ask.statistics"}
    assert ours == light | ({"ask.grids"} if module == "site" else set())


def test_low_clean_accuracy_is_told_once_a_network() -> None:
    from ask.report.evidence import warn

    poor = {"similarity": "cosine", "layers": ["conv4"], "k": 5, "clean": {"mean": 0.3}}
    cell = {"results": [poor], "network": {"clean": {"mean": 0.4}}}
    cells = dict.fromkeys(("digits/at/one", "digits/at/other", "digits/ask-def/one"), cell)
    found = warn([f"{name}#cosine/conv4/5" for name in cells], cells)
    assert len(found) == 4, found
    assert sum(line.startswith("digits/at: clean accuracy of the network is 40.0%") for line in found) == 1
    assert sum(line.startswith("digits/ask-def: clean accuracy of the DkNN") for line in found) == 1


def test_cells_that_a_number_is_taken_from_or_a_mean_with_are_named_too():
    other = {"measured": "−1.2±1.3", "difference": "", "paper": "", "shade": ""}
    number = SimpleNamespace(**other, reference="d/m/c#l2/conv3/5", beside=["d/at/c#l2/conv3/5", "d/m-seed1/c#"])
    alone = SimpleNamespace(**other, reference="d/m/<c>#", beside=None)
    cells = tables._html_cell(number) + tables._html_cell(alone)
    assert site.references(cells) == ["d/at/c#l2/conv3/5", "d/m-seed1/c#", "d/m/c#l2/conv3/5", "d/m/<c>#"]
    found = re.findall(r'data-cell="([^"#]*)#[^"]*"><a href="#cell-([^"]*)"', site.linked(cells))
    assert found == [("d/m/c", "d-m-c"), ("d/m/&lt;c&gt;", "d-m--c-")]
