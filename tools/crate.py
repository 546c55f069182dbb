"""A finished run as a Workflow Run RO-Crate (``make crate``): its results, its code, and what was made from what.

The crate is a zip of a run's results with the configuration and code, described in ``ro-crate-metadata.json`` after the
Provenance Run Crate profile: an action for every task of the plan, from published files over arrays, weights and cells
to tables, and for each claim the tables and cells that it rests on. Data, weights and indexes are described, with their
digests where they are here or a record names them, and left out. Nothing is measured.
"""

import argparse
import csv
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rocrate.model.contextentity import ContextEntity
from rocrate.model.entity import Entity
from rocrate.rocrate import ROCrate

from ask import __version__, files
from ask.data.sources import PUBLISHED
from ask.errors import AskError
from ask.paths import Run
from ask.plan.graph import Task, in_order, required
from ask.plan.planner import Plan, load
from ask.plan.why import stale
from ask.steps import STEPS

ROOT = Path(__file__).parent.parent
CONTEXT = "https://w3id.org/ro/crate/1.1/context"
PROFILE = "provenance-run-crate-0.5"
"""Of the validator: the profile that the crate is held to, with those that it builds on."""
BIOSCHEMAS = "https://bioschemas.org/"
MOVED = {
    **{name: f"{BIOSCHEMAS}{name}" for name in ("ComputationalWorkflow", "FormalParameter")},
    **{name: f"{BIOSCHEMAS}ComputationalWorkflow#{name}" for name in ("input", "output")},
}
"""Terms in the context of RO-Crate 1.1 that later ones have elsewhere."""
PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
SOURCE = {"@type": ["File", "SoftwareSourceCode"]}
ABSENT = "Not in this crate: it is too large, and the run's commands make it again."


class Packer:
    """Adds a run to a crate, every entity once."""

    def __init__(self, plan: Plan) -> None:
        # The run profiles are on RO-Crate 1.1; the library writes a later version unless told.
        self.plan, self.crate = plan, ROCrate(version="1.1")
        self.crate.metadata.extra_terms["sha256"] = "http://schema.org/sha256"
        self.entities: dict[str, Entity] = {}
        self.organisation = self.about("#authors", "Organization", name="The ask-knn authors")

    def about(self, identifier: str, kind: str, **properties: Any) -> Entity:
        """What is no file of the crate."""
        if identifier not in self.entities:
            entity = ContextEntity(self.crate, identifier, properties={"@type": kind, **properties})
            self.entities[identifier] = self.crate.add(entity)
        return self.entities[identifier]

    def file(self, path: Path, **properties: Any) -> Entity:
        """A file of the project; what is large, or not there, is described only."""
        path = path.relative_to(Path.cwd()) if path.is_absolute() else path
        name = path.as_posix()
        if name not in self.entities and f"#{name}" not in self.entities:
            known = {"name": name, **({"sha256": files.digest(path)} if path.is_file() else {}), **properties}
            if self._left_out(path):
                return self.about(f"#{name}", "CreativeWork", **known, description=ABSENT)
            self.entities[name] = self.crate.add_file(path, name, properties=known, record_size=True)
        return self.entities.get(name) or self.entities[f"#{name}"]

    def _left_out(self, path: Path) -> bool:
        large = {Path(self.plan.config.data.root), self.plan.run.root / "index"}
        return not path.is_file() or path.suffix == ".safetensors" or not large.isdisjoint(path.parents)

    def published(self, source: str) -> list[Entity]:
        """The files that a data set is downloaded from, at their publisher."""
        known = PUBLISHED[source]
        found = []
        for one in known.files:
            if (url := known.url + one.name) not in self.entities:
                digest = {} if one.repacked else {"sha256": one.sha256}
                properties = {"name": f"{known.title}: {one.name}", "contentSize": str(one.size), **digest}
                self.entities[url] = self.crate.add_file(url, properties=properties)
            found.append(self.entities[url])
        return found

    def workflow(self) -> Entity:
        """The Snakefile, with its rules, the package and the configuration; what the run as a whole reads and makes."""
        crate, run = self.crate, self.plan.run
        kind = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
        properties = {"@type": kind, "name": "ask-knn", "version": __version__}
        workflow = crate.add_workflow("Snakefile", "Snakefile", main=True, lang="snakemake", properties=properties)
        sources = [path for path in sorted(Path("ask").rglob("*")) if path.is_file() and path.suffix != ".pyc"]
        for path in (*sorted(Path("rules").iterdir()), *sources):
            self.file(path, **SOURCE)
        read = [Path("config/config.yaml"), *self._overlays(), *sorted(Path("config/paper").iterdir())]
        read += [path for name in self.plan.artifacts if (path := Path(f"config/artifacts/{name}.yaml")).is_file()]
        settings = [self.file(path) for path in read]
        made = [self.file(path) for path in (run.claims, run.report)]
        for name, entities in (("configuration", settings), ("results", made)):
            parameter = self.about(
                f"#{name}", "FormalParameter", name=name, additionalType="File", workExample=entities
            )
            workflow["input" if name == "configuration" else "output"] = parameter
            for entity in entities:
                entity["exampleOfWork"] = parameter
        words = self.plan.config.title or run.root.name
        properties = {"name": f"Run {run.root.name}", "description": words, "agent": self.organisation}
        crate.add_action(workflow, f"#run-{run.root.name}", object=settings, result=made, properties=properties)
        return workflow

    def _overlays(self) -> list[Path]:
        path = Path("config") / f"{self.plan.run.root.name}.yaml"
        return [path] if path.is_file() else []

    def step(self, workflow: Entity, name: str) -> Entity:
        """The code of a step, which belongs to the workflow."""
        module = Path(STEPS[name].does.partition(":")[0].replace(".", "/")).with_suffix(".py")
        tool = self.file(module)
        if f"#step-{name}" not in self.entities:
            position = str(list(STEPS).index(name) + 1)
            text = STEPS[name].text
            step = self.about(f"#step-{name}", "HowToStep", name=name, description=text, position=position)
            step["workExample"] = tool
            workflow.append_to("step", step)
            if tool not in workflow.get("hasPart", []):
                workflow.append_to("hasPart", tool)
        return tool

    def action(self, workflow: Entity, task: Task) -> None:
        """What a task read and made, with the command that its record names."""
        known = [path for path in task.outputs if path.is_file() or self._left_out(task.output)]
        record = _record(task)
        words = record.get("command") or f"python -m ask {task.name}"
        if task.name in ("calibrate", "attack") and task.done and (why := stale(self.plan, task.output)):
            words += f" (by today's configuration: {why})"
        read = [self.file(path) for path in _read(task)]
        if task.name == "download":
            read = self.published(task.job.source)
        for model, digest in (record.get("weights") or {}).items():
            self.file(self.plan.run.weights(*model.split("/")))["sha256"] = digest
        self.crate.add_action(
            self.step(workflow, task.name),
            f"#{task.name}-{task.output.as_posix()}",
            object=_one(read),
            result=_one([self.file(path) for path in known]),
            properties={"name": f"{task.name} {task.output.stem}", "description": words, "agent": self.organisation},
        )

    def claims(self) -> None:
        """Each claim of the ledger, with what it rests on."""
        run = self.plan.run
        with run.claims.open(newline="") as opened:
            rows = list(csv.DictReader(opened))
        for row in rows:
            measured = {self._cell(run, cell) for cell in row["cells"].split()}
            shown = [path for name in row["artifacts"].split() if (path := self._artifact(name))]
            basis = [self.file(path) for path in (*shown, *sorted(measured)) if path.is_file()]
            words = f"The paper: {row['paper']}. Measured: {row['measured']}. Verdict: {row['verdict']}."
            claim = self.about(f"#claim-{row['id']}", "CreativeWork", name=row["id"], description=words)
            claim["text"] = row["statement"]
            if basis:
                claim["isBasedOn"] = _one(basis)
            self.file(run.claims).append_to("mentions", claim)

    def _artifact(self, name: str) -> Path | None:
        return self.plan.shown(name) if name in self.plan.artifacts else None

    def _cell(self, run: Run, text: str) -> Path:
        dataset, model, name = text.partition("#")[0].split("/")
        return run.cell(dataset, model, name)


def pack(plan: Plan, out: Path) -> Path:
    """Write a run's crate, a zip file; returns its path.

    Raises:
        AskError: the run is not finished: its claims or its report are missing.
    """
    run = plan.run
    for path in (run.claims, run.report):
        if not path.is_file():
            raise AskError(f"{path} is missing, so the run is not finished; make it first (snakemake, or ask render)")
    packer = Packer(plan)
    crate = packer.crate
    crate.root_dataset["author"] = crate.root_dataset["publisher"] = packer.organisation
    crate.name = f"ask-knn: run {run.root.name}"
    crate.description = f"{plan.config.title}. {plan.config.note}".strip()
    licence = "https://spdx.org/licenses/MIT"
    crate.license = packer.about(licence, "CreativeWork", name="MIT License", description="Of code and results.")
    crate.root_dataset["conformsTo"] = [
        packer.about(url, "CreativeWork", name=name, version=url.rpartition("/")[2]) for url, name in PROFILES.items()
    ]
    for path in map(Path, ("LICENSE", "CITATION.cff", "constraints.txt", "environment.yml", "pyproject.toml")):
        packer.file(path)
    workflow = packer.workflow()
    for task in done(plan):
        packer.action(workflow, task)
    packer.claims()
    for path in sorted(run.root.rglob("*")):  # pages of the report, and what no task declares
        if path.is_file() and path.is_relative_to(run.report.parent):
            packer.file(path)
    out.parent.mkdir(parents=True, exist_ok=True)
    crate.write_zip(out)
    return out


def done(plan: Plan) -> list[Task]:
    """Tasks whose outputs are here, and those whose outputs these were measured with, in the order of their making."""
    here = {path for path, task in plan.tasks.items() if task.done}
    measured = {path for path in here if plan.tasks[path].step.job is not None}
    wanted = here | required(plan.tasks, measured)
    return [task for task in in_order(plan.tasks) if task.output in wanted]


def _read(task: Task) -> Iterable[Path]:
    """What a task read; a table or figure is rendered from the records that were there."""
    return [path for path in task.needs if task.step.job is not None or path.is_file()]


def _one(entities: list[Entity]) -> Entity | list[Entity] | None:
    """As RO-Crate 1.1 recommends: no list of one, and none of nothing."""
    return (entities if len(entities) > 1 else entities[0]) if entities else None


def _record(task: Task) -> dict[str, Any]:
    measured = task.done and task.output.suffix == ".json" and task.step.job is not None
    return dict(json.loads(task.output.read_text())) if measured else {}


def problems(crate: Path, profile: str = PROFILE) -> list[str]:
    """What the validator finds wrong with a crate, a line each; needs no network.

    The validator fetches the context that says what a crate's terms mean. Here it gets that of the later RO-Crate which
    the library ships, with the four terms of workflows that have moved since 1.1 put back.
    """
    from rocrate_validator.models import Severity, ValidationSettings
    from rocrate_validator.services import validate

    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        _remember_context(cache)
        settings = ValidationSettings(
            rocrate_uri=str(crate),
            profile_identifier=profile,
            requirement_severity=Severity.REQUIRED,
            offline=True,
            cache_path=cache,
        )
        found = validate(settings).get_issues()
        return [f"{issue.check.identifier}: {issue.message} ({issue.violatingEntity or 'crate'})" for issue in found]


def _remember_context(cache: Path) -> None:
    import rocrate
    from requests_cache import CachedSession
    from requests_cache.models.request import CachedRequest
    from requests_cache.models.response import CachedResponse

    context = json.loads((Path(rocrate.__file__).parent / "data/ro-crate.jsonld").read_text())
    context["@context"] |= MOVED
    request = CachedRequest(method="GET", url=CONTEXT)
    content = json.dumps(context).encode()
    response = CachedResponse(content=content, url=CONTEXT, status_code=200, request=request)
    response.headers["Content-Type"] = "application/ld+json"
    CachedSession(str(cache), backend="sqlite", expire_after=-1).cache.save_response(response)


def main() -> None:
    """Pack the run of an overlay, and validate what was packed."""
    parser = argparse.ArgumentParser(prog="tools.crate", description=__doc__, allow_abbrev=False)
    parser.add_argument("--configfile", type=Path, nargs="+", default=[], help="overlays, as for snakemake")
    parser.add_argument("--out", type=Path, help="the zip file (default: dist/<run>.crate.zip)")
    given = parser.parse_args()
    try:
        plan = load(given.configfile)
        out = pack(plan, given.out or Path("dist") / f"{plan.run.root.name}.crate.zip")
    except AskError as error:
        raise SystemExit(f"crate: {error}") from None
    found = problems(out)
    if found:
        raise SystemExit("\n".join([f"{out} does not conform to {PROFILE}:", *found]))
    print(f"{out}: conforms to {PROFILE}")


if __name__ == "__main__":
    main()
