"""The command line: every step of the workflow as a command that also works without Snakemake, questions and tools.

A step gets its whole slice of the configuration as one JSON document (``--job``), so a result's record holds all that
is needed to make it again. Commands are functions; their options come from the functions' signatures, and only the
module of the command that runs is imported.
"""

import argparse
import functools
import inspect
import json
import os
import shlex
import signal
import subprocess
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from ask import files
from ask.errors import AskError
from ask.paths import Run
from ask.steps import LONGEST, STEPS, Step, modules_of, output_of

if TYPE_CHECKING:
    from ask.measure.place import Place

Device = Literal["auto", "cpu", "cuda"]


class Command(NamedTuple):
    """A command that is no step."""

    does: str
    """``module:function``; its parameters are the command's options."""
    text: str


GROUPS = {
    "Questions about a run": {
        "check": Command("ask.plan.commands:check", "Validate a configuration and what it names, and count its jobs."),
        "plan": Command("ask.plan.commands:plan", "Count what a run takes, took, and was to take."),
        "status": Command("ask.plan.commands:status", "Say what of each artifact is done, and print partial tables."),
        "why": Command("ask.plan.commands:why", "Say which jobs would run again, and what change they follow from."),
        "repeat": Command("ask.plan.commands:repeat", "Measure cells again from their records, and compare."),
    },
    "A run in parts": {
        "slice": Command("ask.slices:slice_command", "Make a slice within a time limit; exit status 75: more to do."),
        "batch": Command("ask.plan.batches:batch_command", "Make the members of a batch, in a job of a cluster."),
        "pack": Command("ask.slices:pack_command", "Pack evidence into archives, without weights and indexes."),
        "merge": Command("ask.slices:merge_command", "Merge packed evidence into its run, by content."),
        "render": Command("ask.slices:render_command", "Render all that a run's evidence suffices for."),
    },
    "Tools": {
        "demo": Command("ask.cli:demo", "Run everything on embedded data and a CPU, in minutes."),
        "bench": Command("ask.cli:bench", "Time attacks, search and training against other libraries."),
        "reference": Command("ask.cli:reference", "Write the configuration's JSON schema and reference page."),
    },
}
"""Commands beside the steps, as help groups them."""
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. Expected failures are one line on stderr."""
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in STEPS and name not in COMMANDS:
        print(f"ask: no command {name!r}; it has {', '.join([*STEPS, *COMMANDS])}", file=sys.stderr)
        return 2
    try:
        parser, function = _parser(name)
        status = function(**vars(parser.parse_args(rest))) or 0
        sys.stdout.flush()
        return status
    except AskError as error:
        wrong = str(error)
    except (PermissionError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        fix = "it is another user's" if isinstance(error, PermissionError) else "name another, or make it first"
        wrong = f"{error.filename}: {error.strerror}; {fix}" if error.filename else str(error)  # ours say it all
    except ModuleNotFoundError as error:
        if str(error.name).startswith("ask."):
            raise
        wrong = f"{error.name} is not installed; in a clone, pip install '.[workflow]' brings the workflow's packages"
    except BrokenPipeError:  # who reads, as `head` does, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    print(f"ask {name}: {wrong}", file=sys.stderr)
    return 1


def usage() -> str:
    """All commands in groups, a line each."""
    groups: dict[str, Mapping[str, Step | Command]] = {"Steps of the workflow": STEPS, **GROUPS}
    lines = ["usage: python -m ask COMMAND …  (python -m ask COMMAND --help)"]
    for group, members in groups.items():
        lines += ["", f"{group}:", *(f"  {name:<11} {command.text}" for name, command in members.items())]
    return "\n".join(lines)


def get_ready() -> None:
    """Find out once what every step of this process would: its options, and the versions that it records."""
    from ask.hardware import versions

    for name in STEPS:
        _parser(name)
    versions()
    _LOADED.append(True)


_LOADED: list[bool] = []
"""Not empty where the code was loaded before it could change: in the warm worker."""


@functools.cache
def _parser(name: str) -> tuple[argparse.ArgumentParser, Callable[..., int | None]]:
    if name in STEPS:
        text = STEPS[name].text
        function: Callable[..., int | None] = functools.partial(_step, name)
    else:
        text, function = COMMANDS[name].text, find(COMMANDS[name].does)
    parser = argparse.ArgumentParser(prog=f"ask {name}", description=text)
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        _add(parser, parameter)
    return parser, function


def _add(parser: argparse.ArgumentParser, parameter: inspect.Parameter) -> None:
    """An argument of the command line for a function's parameter; a keyword-only one is an option."""
    annotation, words = parameter.annotation, None
    if get_origin(annotation) is Annotated:
        annotation, words = get_args(annotation)
    options: dict[str, Any] = {"help": words}
    required = parameter.default is inspect.Parameter.empty
    if not required:
        options["default"] = parameter.default
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    if get_origin(annotation) in (list, Sequence):
        options |= {"nargs": "+" if required or parameter.kind is parameter.KEYWORD_ONLY else "*"}
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        options["choices"] = get_args(annotation)
    elif annotation is not bool:
        options["type"] = annotation
    name = f"--{parameter.name.strip('_').replace('_', '-')}"
    if parameter.kind is not parameter.KEYWORD_ONLY:
        parser.add_argument(parameter.name, **({} if required else {"nargs": "?"}) | options)
    elif annotation is bool:
        parser.add_argument(name, dest=parameter.name, action="store_true", help=words)
    else:
        parser.add_argument(name, dest=parameter.name, required=required, **options)


def find(does: str) -> Callable[..., Any]:
    """The function of ``module:function``."""
    module, _, name = does.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function


def _step(
    name: str,
    /,
    *,
    job: Annotated[str, "the step's slice of the configuration, JSON; or @ and a file of that, or a record"],
    run: Annotated[Path, "folder of the run (default: results/mine)"] = Path("results/mine"),
    data: Annotated[Path, "folder of the data (default: data)"] = Path("data"),
    device: Annotated[Device, "where to compute (default: a GPU if there is one)"] = "auto",
    code: Annotated[str, "fingerprint of the step's code, if known (default: computed)"] = "",
    mirror: Annotated[str, "folder(s) or URL to fetch data from (default: ASK_DATA_MIRROR)"] = "",
    cuda_graphs: Annotated[bool, "on a GPU, a training replays its crafting as CUDA graphs"] = False,
) -> None:
    step, job = STEPS[name], _document(job)
    if step.job is None:
        written = find(step.does)(_Document(json.loads(job)), Run(run))
        print(*(written if isinstance(written, list) else [written]), sep="\n")
        return
    import torch

    from ask.hardware import pick_device
    from ask.leases import card, needed
    from ask.measure.place import Place
    from ask.plan.provenance import fingerprint
    from ask.precision import settle

    settle()
    if step.device:
        # A softmax over classes may be full of denormal numbers, on which CPUs can be many times slower. Set before the
        # first parallel operation, for its threads inherit the setting.
        torch.set_flush_denormal(True)
    where, (kind, document) = pick_device(device if step.device else "cpu"), _read(name, job)
    if not (code and _LOADED):
        planned, code = code, fingerprint(modules_of(name, document))
        if planned not in ("", code):
            raise AskError("the code has changed since this job was planned; start the run again")
    place = Place(Run(run), data, where, code, mirror or None, cuda_graphs, log=lambda line: print(line, flush=True))
    with card(needed(name, kind), place.log) if where.type == "cuda" else nullcontext():
        perform(name, job, place)


class _Document(dict[str, Any]):
    """A job that a step takes as it is."""

    def __missing__(self, key: str) -> Any:
        raise AskError(f"--job: {key}: missing; add it")


def _document(job: str) -> str:
    """A job's document: what is given, or what a file holds, as its own record does."""
    try:
        text = Path(job[1:]).read_text(encoding="utf-8") if job.startswith("@") else job
        found = dict(json.loads(text))
    except (OSError, ValueError, TypeError) as error:
        raise AskError(f"--job {job}: no readable JSON document ({error}); name a file of a job, or a record") from None
    return json.dumps(found["job"]) if job.startswith("@") and {"job", "command"} <= found.keys() else text


def _read(name: str, text: str) -> tuple[Any, dict[str, Any]]:
    """A step's job as it takes it, and as a complete document."""
    from pydantic import ValidationError

    kind = STEPS[name].job
    assert kind is not None
    try:
        job = kind.model_validate_json(text)
    except ValidationError as error:
        from ask.config.base import explain

        raise AskError("\n".join(f"--job: {explain(kind, mistake)}" for mistake in error.errors())) from None
    return job, job.model_dump(mode="json")


def perform(name: str, text: str, place: "Place") -> None:
    """Run a step that measures something, and write what it returns with all that it was made with.

    ``text`` is its job, a JSON document; ``place`` is where it reads, writes and computes.
    """
    from ask.hardware import describe, unverified, usage, weights_read

    job, document = _read(name, text)
    found = find(STEPS[name].does)(job, place)
    used = usage(place.device)
    if found is None or isinstance(found, Path):
        place.log(json.dumps({"usage": used}) if found is None else str(found))
        return
    record, arrays = found if isinstance(found, tuple) else (found, None)
    output = output_of(name, job, place.run, place.data)
    if arrays is not None:
        import numpy as np

        files.write(output.with_suffix(".npz"), lambda part: np.savez_compressed(part, allow_pickle=False, **arrays))
    about = {**describe(place.device), "weights": weights_read(document, place.run), "usage": used, "code": place.code}
    about |= {"data": origin} if (origin := unverified(document, place.data)) else {}
    given = text if len(text.encode()) <= LONGEST else f"@{output}"
    command = f"python -m ask {name} --run {shlex.quote(str(place.run.root))} --job {shlex.quote(given)}"
    files.write_json(output, {"id": job.id, **about, **record, "job": document, "command": command})


def demo() -> int:
    """What ``make demo`` does after the installation."""
    find("ask.config.run:base")()
    import_module("snakemake")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    command = [sys.executable, "-m", "snakemake", "--configfile", "config/demo.yaml"]
    return subprocess.run(command, env=environment).returncode


def bench(
    parts: Annotated[list[str], "attack, knn, train, pgd, dag, demo (default: all)"] = [],  # noqa: B006  # never changed
    *,
    repeats: Annotated[int, "rounds in which all take turns (default: 3)"] = 3,
    small: Annotated[bool, "tiny shapes: shows that a part works, not its speed"] = False,
    share: Annotated[float, "of the images or queries (default: 1)"] = 1.0,
    out: Annotated[Path, "folder for the JSON files"] = Path("results/bench"),
    device: Annotated[Device, "where to compute"] = "auto",
) -> None:
    """Run the benchmarks, which are no part of the package: they lie beside it in the repository."""
    repository = Path(__file__).resolve().parent.parent
    if not (repository / "bench" / "run.py").is_file():
        raise AskError(f"there is no folder bench/ in {repository}; run this in a checkout of the repository")
    sys.path.insert(0, str(repository))
    find("bench.run:main")(parts, repeats=repeats, small=small, share=share, out=out, device=device)


def reference() -> None:
    """Write what is made from the types of the configuration."""
    find("ask.config.run:base")()
    for path in find("ask.config.reference:write")():
        print(path)
