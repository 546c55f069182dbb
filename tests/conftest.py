"""What all tests share: where the repository is, and which tests this machine can run."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

SET_UP = Path(__file__).parent / "set_up"
"""What this machine's builds need, for the PYTHONPATH of processes that tests start."""
runpy.run_path(str(SET_UP / "sitecustomize.py"))


@pytest.fixture(scope="session")
def repository() -> Path:
    """Folder of the repository."""
    return Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--pretend-cuda``: run the tests marked ``gpu`` where there is no GPU."""
    what = "run tests marked gpu on a pretended CUDA device: its rules without its kernels, on a CPU build of torch"
    parser.addoption("--pretend-cuda", action="store_true", help=what)
    parser.addoption("--slurm", action="store_true", help="run tests marked slurm, on a throw-away cluster")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where torch finds no CUDA device; torch is asked only if such a test was selected."""
    for item in items if not config.getoption("--slurm") else ():
        if item.get_closest_marker("slurm"):
            item.add_marker(pytest.mark.skip(reason="needs root, SLURM and minutes: make test-slurm"))
    gpu_tests = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_tests:
        return
    import torch

    if config.getoption("--pretend-cuda"):
        import pretend_cuda

        reason = pretend_cuda.missing()
    else:
        reason = "" if torch.cuda.is_available() else "needs a CUDA device, and torch finds none (or --pretend-cuda)"
    for item in gpu_tests if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _pretended_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """A pretended device of its own for each test marked ``gpu``, if it was asked for."""
    if not (request.node.get_closest_marker("gpu") and request.config.getoption("--pretend-cuda")):
        yield
        return
    import pretend_cuda

    with pretend_cuda.pretend_cuda():
        yield
