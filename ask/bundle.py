"""Run this project on a machine that has torch but no network: what is carried there, and how it is set up.

``python -m ask.bundle make`` writes, here, a folder of files of at most 48 MiB each: the wheels that such a machine
lacks, and data sets in parts. ``python -m ask.bundle run slice slice-2 …``, there, unpacks what has come so far and
runs ``python -m ask slice slice-2 …``. The second half needs nothing but Python and pip.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

PART_BYTES = 48 * 2**20
"""Largest file of a bundle: two of 64 MiB do not fit one transfer of 64 MiB with the code beside them."""
FOLDER, SITE, DATA = Path("dist/bundle"), Path(".carried"), Path("data")
CONTENTS = "bundle.json"
WANTED = ("snakemake", "pydantic", "pyyaml", "jinja2", "safetensors", "tqdm", "pytest", "hypothesis")
"""What is carried, with all that it needs …"""
THERE = {"torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "scikit-learn", "pillow", "setuptools"}
"""… except what the machine has, and what only that needs."""


def make(out: Path, python: str, platform: Sequence[str], sources: Sequence[str]) -> list[Path]:
    """Write a bundle: wheels for a Python version and platform, and the downloaded files of data sets."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        parts = {"wheels": _split(Path(folder), _wheels(Path(folder), python, platform), out, "wheels")}
    for source in sources:
        files = sorted(path for path in (DATA / "raw" / source).glob("*") if path.is_file())
        if not any(path.name == "manifest.json" for path in files):
            raise SystemExit(
                f"data/raw/{source}/manifest.json: no such file; make it: snakemake data/raw/{source}/manifest.json"
            )
        parts[source] = _split(DATA, files, out, source)
    (out / CONTENTS).write_text(json.dumps({"python": python, "parts": parts}, indent=1) + "\n")
    return sorted(out.iterdir())


def _wheels(folder: Path, python: str, platform: Sequence[str]) -> list[Path]:
    """Download wheels; what is published as source only is built, if it is the same for every Python."""
    pip = [sys.executable, "-m", "pip"]
    quiet = ["-q", "--disable-pip-version-check", "--no-deps"]
    tags = ["--python-version", python, "--implementation", "cp", *(f"--platform={one}" for one in platform)]
    subprocess.run(
        [*pip, "download", *quiet, "--prefer-binary", "--dest", str(folder), *tags, *pins(python)], check=True
    )
    for source in [path for path in folder.iterdir() if path.suffix != ".whl"]:
        subprocess.run([*pip, "wheel", *quiet, "--wheel-dir", str(folder / "built"), str(source)], check=True)
        source.unlink()
    for built in (folder / "built").glob("*.whl"):
        if not built.name.endswith("-none-any.whl"):
            raise SystemExit(f"{built.name}: not published for Python {python} on {platform[0]}; name another --python")
        built.replace(folder / built.name)
    return sorted(folder.glob("*.whl"))


def pins(python: str) -> list[str]:
    """``name==version`` of all that is carried, as installed here, for a Python version such as ``3.12``."""
    from importlib.metadata import distribution

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    marks = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: dict[str, str] = {}
    waiting = [Requirement(name) for name in WANTED]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        # A marker that holds here and not there (or the other way round) is decided for there.
        if name in found or name in THERE or (requirement.marker and not requirement.marker.evaluate(marks)):
            continue
        installed = distribution(name)
        found[name] = installed.version
        waiting += [Requirement(text) for text in installed.requires or ()]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def unpack(bundle: Path) -> list[str]:
    """Take in the parts that have come; returns the names of those still to come.

    Parts may come one by one, in any order, and need not stay in ``bundle``. Damaged ones are refused.
    """
    try:
        contents = json.loads((bundle / CONTENTS).read_text())
    except FileNotFoundError:
        raise SystemExit(f"{bundle / CONTENTS}: no such file; carry the folder that `make bundle` writes") from None
    waiting = SITE / "parts"
    waiting.mkdir(parents=True, exist_ok=True)
    missing: list[str] = []
    for source, parts in contents["parts"].items():
        done = SITE / f"{source}.json"
        if done.is_file() and json.loads(done.read_text()) == parts:
            continue
        for name, digest in parts.items():
            if (bundle / name).is_file():
                if _digest(bundle / name) != digest:
                    raise SystemExit(f"{bundle / name}: damaged on its way; carry it again")
                shutil.copyfile(bundle / name, waiting / name)
        if lacking := [name for name in parts if not (waiting / name).is_file()]:
            missing += lacking
            continue
        whole = waiting / f"{source}.tar"
        with whole.open("wb") as file:
            for name in parts:
                file.write((waiting / name).read_bytes())
        with tarfile.open(whole) as archive:
            archive.extractall(SITE / "wheels" if source == "wheels" else DATA, filter="data")
        if source == "wheels":
            install(contents["python"])
        for path in (whole, *(waiting / name for name in parts)):
            path.unlink()
        done.write_text(json.dumps(parts))
    return missing


def install(python: str) -> None:
    """Install the carried wheels into a folder of their own, which stands before the machine's packages."""
    here = ".".join(map(str, sys.version_info[:2]))
    if here != python:
        raise SystemExit(f"the wheels are for Python {python}, this is {here}; carry others: make bundle TARGET={here}")
    shutil.rmtree(SITE / "site", ignore_errors=True)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--disable-pip-version-check"]
    wheels = [str(path) for path in sorted((SITE / "wheels").glob("*.whl"))]
    subprocess.run([*command, "--target", str(SITE / "site"), *wheels], check=True)
    python_command = SITE / "bin" / "python"  # rules say `python`, which such a machine may not have, or another one
    python_command.parent.mkdir(exist_ok=True)
    python_command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python_command.chmod(0o755)


def environment() -> dict[str, str]:
    """Variables under which the carried packages, and this checkout, are found."""
    here = Path.cwd()
    paths = [str(here / SITE / "site"), str(here), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "PATH": f"{here / SITE / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return {**os.environ, **variables, "PYTHONNOUSERSITE": "1"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a bundle, or use one."""
    parser = argparse.ArgumentParser(prog="ask.bundle", description=(__doc__ or "").partition("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    making = steps.add_parser("make", help="write a bundle, here, with a network")
    making.add_argument("--python", default="3.12", help="version of the machine's Python (default: 3.12)")
    tags = ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64"]
    making.add_argument("--platform", nargs="+", default=tags, help="wheel tags that it takes (default: Linux, x86-64)")
    making.add_argument("--data", nargs="*", default=[], help="published data sets, e.g. cifar10, that are downloaded")
    using = steps.add_parser("run", help="there, without: take in what has come, then run `python -m ask …`")
    using.add_argument(
        "command", nargs=argparse.REMAINDER, help="e.g. slice slice-2 --minutes 9; nothing: only take in"
    )
    for command in (making, using):
        command.add_argument("--bundle", type=Path, default=FOLDER, help=f"its folder (default: {FOLDER})")
    options = parser.parse_args(arguments)
    if options.step == "make":
        _say(
            f"{path} ({path.stat().st_size / 2**20:.1f} MiB)"
            for path in make(options.bundle, options.python, options.platform, options.data)
        )
        return 0
    missing = unpack(options.bundle)
    _say(f"still to come: {name}" for name in missing)
    if not options.command:
        return 0
    return subprocess.run([sys.executable, "-m", "ask", *options.command], env=environment()).returncode


def _split(root: Path, files: Iterable[Path], out: Path, name: str) -> dict[str, str]:
    """Pack files into one tar, cut into parts; returns their digests in order."""
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w") as archive:
            for path in files:
                archive.add(path, arcname=path.relative_to(root))
        count = -(-whole.tell() // PART_BYTES)
        whole.seek(0)
        parts = {}
        for place in range(1, count + 1):
            part = out / f"{name}-{place}-of-{count}.part"
            part.write_bytes(whole.read(PART_BYTES))
            parts[part.name] = _digest(part)
    return parts


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
