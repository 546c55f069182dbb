"""Run this project on a machine that has torch but no network.

``python -m ask.bundle make`` writes, here, a folder of files of at most 48 MiB each: the packages that such a
machine lacks, and data sets, in parts. ``python -m ask.bundle run slice slice-2 …``, there, takes in what has come so
far and runs ``python -m ask slice slice-2 …``. The second half needs nothing but Python.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.metadata import distribution
from pathlib import Path

from ask.files import digest, write, write_json, write_program

PART_BYTES = 48 * 2**20
"""Largest file of a bundle: two of 64 MiB do not fit one transfer of 64 MiB with the code beside them."""
FOLDER, SITE, DATA = Path("dist/bundle"), Path(".carried"), Path("data")
CONTENTS, PACKAGES = "bundle.json", "packages"
WANTED = ("snakemake", "pydantic", "pyyaml", "jinja2", "safetensors", "tqdm", "pytest", "hypothesis", "pyautoattack")
"""What is carried, with all that it needs …"""
THERE = {"torch", "torchvision", "numpy", "scipy", "pandas", "matplotlib", "scikit-learn", "pillow", "setuptools"}
"""… except what the machine has, and what only that needs."""
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64")


def make(out: Path, python: str, platforms: Sequence[str], sources: Sequence[str]) -> None:
    """Write a bundle: packages for a Python version and platforms, and the downloaded files of data sets."""
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        _install(Path(folder), python, platforms)
        parts = {PACKAGES: _split(Path(folder), PACKAGES, out / PACKAGES)}
    for source in sources:
        manifest = DATA / "raw" / source / "manifest.json"
        if not manifest.is_file():
            raise SystemExit(f"{manifest}: no such file; make it: snakemake {manifest}")
        parts[source] = _split(manifest.parent, f"raw/{source}", out / source)
    write_json(out / CONTENTS, {"python": python, "parts": parts})
    for path in sorted(out.iterdir()):
        print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")


def _install(folder: Path, python: str, platforms: Sequence[str]) -> None:
    """Install packages for another machine; what is published as source only must be the same for every Python."""
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install", "--no-deps", "--no-compile"]
    tags = ["--python-version", python, "--implementation", "cp", *(f"--platform={one}" for one in platforms)]
    subprocess.run([*pip, "--prefer-binary", *tags, "--target", folder, *pins(python)], check=True)
    for built in folder.rglob("*.cpython-*.so"):
        if f".cpython-{python.replace('.', '')}-" not in built.name:
            raise SystemExit(f"{built.name}: not published for Python {python}, {platforms[0]}; name another --python")


def pins(python: str) -> list[str]:
    """``name==version`` of all that is carried, as installed here, for a Python version such as ``3.12``."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    marks = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    found: dict[str, str] = {}
    waiting = [Requirement(name) for name in WANTED]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        # A marker that holds here and not there (or the other way round) is decided for there.
        if name not in found and name not in THERE and (not (mark := requirement.marker) or mark.evaluate(marks)):
            found[name] = distribution(name).version
            waiting += [Requirement(text) for text in distribution(name).requires or ()]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def _split(folder: Path, name: str, out: Path) -> dict[str, str]:
    """Pack a folder into one archive under a name, cut into parts; returns their digests in order."""
    with tempfile.TemporaryFile() as whole:
        with tarfile.open(fileobj=whole, mode="w:gz") as archive:
            archive.add(folder, arcname=name)
        count = -(-whole.tell() // PART_BYTES)
        whole.seek(0)
        names = [out.with_name(f"{out.name}-{place}-of-{count}.part") for place in range(1, count + 1)]
        parts = [write(name, partial(Path.write_bytes, data=whole.read(PART_BYTES))) for name in names]
    return {part.name: digest(part) for part in parts}


def unpack(bundle: Path) -> list[str]:
    """Take in the parts that have come, in any order; returns the names of those still to come.

    What has been taken in need not stay in ``bundle``. Damaged parts are refused.
    """
    if not (bundle / CONTENTS).is_file():
        raise SystemExit(f"{bundle / CONTENTS}: no such file; carry the folder that `make bundle` writes")
    contents, missing = json.loads((bundle / CONTENTS).read_text(encoding="utf-8")), list[str]()
    for source, parts in contents["parts"].items():
        done = SITE / f"{source}.json"
        if done.is_file() and json.loads(done.read_text(encoding="utf-8")) == parts:
            continue
        for name in (name for name in parts if (bundle / name).is_file()):
            if digest(bundle / name) != parts[name]:
                raise SystemExit(f"{bundle / name}: damaged on its way; carry it again")
            write(SITE / "parts" / name, partial(shutil.copyfile, bundle / name))
        taken = [SITE / "parts" / name for name in parts]
        if lacking := [p.name for p in taken if not p.is_file() or digest(p) != parts[p.name]]:
            missing += lacking
            continue
        if source == PACKAGES:  # these stand before the machine's own
            here = ".".join(map(str, sys.version_info[:2]))
            if here != (made := contents["python"]):
                raise SystemExit(f"packages are for Python {made}, this is {here}; carry: make bundle TARGET={here}")
            shutil.rmtree(SITE / PACKAGES, ignore_errors=True)
            # Rules say `python`, which such a machine may not have, or another one.
            write_program(SITE / "bin" / "python")
        with tarfile.open(fileobj=io.BytesIO(b"".join(path.read_bytes() for path in taken))) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 knows none
            archive.extractall(SITE if source == PACKAGES else DATA)
        for path in taken:
            path.unlink()
        write_json(done, parts)
    return missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a bundle, or use one."""
    parser = argparse.ArgumentParser(prog="ask.bundle", description=(__doc__ or "").partition("\n")[0])
    steps = parser.add_subparsers(dest="step", required=True)
    making = steps.add_parser("make", help="write a bundle, here, with a network")
    making.add_argument("--python", default="3.12", help="version of the machine's Python (default: 3.12)")
    making.add_argument("--platform", nargs="+", default=PLATFORMS, help="wheel tags (default: Linux, x86-64)")
    making.add_argument("--data", nargs="*", default=[], help="published data sets, e.g. cifar10, that are downloaded")
    using = steps.add_parser("run", help="there, without: take in what has come, then run `python -m ask …`")
    using.add_argument("command", nargs=argparse.REMAINDER, help="e.g. slice slice-2 --minutes 9; nothing: take in")
    for command in (making, using):
        command.add_argument("--bundle", type=Path, default=FOLDER, help=f"its folder (default: {FOLDER})")
    options = parser.parse_args(arguments)
    if options.step == "make":
        make(options.bundle, options.python, options.platform, options.data)
        return 0
    for name in unpack(options.bundle):
        print(f"still to come: {name}", flush=True)
    if not options.command:
        return 0
    here, path = Path.cwd(), os.environ.get("PYTHONPATH")  # the carried packages stand before the machine's
    found = os.pathsep.join(map(str, filter(None, [here / SITE / PACKAGES, here, path])))
    programs = f"{here / SITE / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PYTHONPATH": found, "PATH": programs, "PYTHONNOUSERSITE": "1"}
    return subprocess.run([sys.executable, "-m", "ask", *options.command], env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
