"""A warm process for short jobs: importing torch costs a second of a core, a fork of a process that has it 10 ms.

Snakemake runs every job as a command. Of a local run with hundreds of small jobs, most of the time would be imports.
So the main process starts one server (:func:`start`); a command hands its arguments, environment, folder and
standard streams to it and exits with the status that comes back (:func:`run`). The server forks for each: a job still
has a process of its own. Without a server, or with another Python, the command runs in its own process, the same way.

The forked process ends when its command does (Ctrl-C, a scheduler's kill), and the server with its starter.
Snakemake's ``benchmark`` sees the waiting command: its wall time is right, its CPU time and memory are not.
All steps that compute record theirs (:func:`ask.hardware.usage`): trainings in ``config.yaml``, indexes and blocks in
their log, all others in the JSON that they write.
"""

# Every command imports this module: what only the server needs is imported where it is used.
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import subprocess

ADDRESS = "ASK_WORKER"
"""Environment variable that names the server's socket; empty: no server."""
STARTER = "ASK_STARTER"
"""Environment variable that names the process of a local run, without which its jobs end."""
PRELOADED = ("torch", "numpy", "scipy.special", "safetensors.torch", "yaml", "ask.measure.cells", "ask.measure.data")
"""What most jobs import, our own code included: what a run began with is what it runs to its end."""
LARGE = ("torch._dynamo", "pandas", "matplotlib.backends.backend_agg")
"""Imported when no job waits, before all other steps' modules; an optimiser's first step imports the first, in 3 s."""


def _when_idle() -> list[str]:
    from ask.config.attacks import ATTACKS
    from ask.config.training import METHOD_HOMES
    from ask.steps import STEPS

    steps = [step.does.partition(":")[0] for step in STEPS.values()]
    return [*LARGE, *steps, *(kind.home for kind in ATTACKS.values()), *METHOD_HOMES.values()]


_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def keep_memory() -> None:
    """Let glibc's malloc keep what is freed instead of giving it back to the kernel; elsewhere nothing.

    One step's activations are the next one's; fresh pages for them cost a narrow network a good part of its time.
    """
    import ctypes

    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1


def use_checkout(folder: str) -> None:
    """Let the commands of a run elsewhere (``snakemake --directory``) still be those of its checkout."""
    if os.getcwd() != folder:  # noqa: PTH109  # pathlib takes a client as long as all else
        paths = [folder, os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))


def _folder_of_python() -> str:
    """A folder whose `python` is this one; made where programs of that name are another or none."""
    folder = os.path.dirname(sys.executable)  # noqa: PTH120  # pathlib takes a client as long as all else
    if os.path.realpath(f"{folder}/python") == os.path.realpath(sys.executable):
        return folder
    from pathlib import Path

    from ask.files import write_program

    return str(write_program(Path.cwd() / ".snakemake/bin/python").parent)


def start() -> None:
    """Start a server that lives as long as this process, and name it in the environment; does nothing on failure."""
    os.environ[STARTER] = named(os.getpid())
    os.environ["PATH"] = f"{_folder_of_python()}:{os.environ.get('PATH', '')}"  # jobs say `python`
    if os.environ.get(ADDRESS) == "" or not hasattr(os, "fork"):
        return
    import subprocess
    import tempfile

    # A folder that is readable by this user alone; a socket's address has at most 107 bytes.
    short = len(os.fsencode(tempfile.gettempdir())) < 80
    address = f"{tempfile.mkdtemp(prefix=_prefix(), dir=None if short else '/tmp')}/worker"
    # Passive waiting: see __main__.
    environment = {
        "OMP_WAIT_POLICY": "passive",
        **os.environ,
        **dict.fromkeys(_ONE_THREAD, "1"),
        "MPLBACKEND": "agg",
        "PYTHONIOENCODING": ":replace",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "ask.worker", address],
        stdin=subprocess.PIPE,  # its end tells the server that this process is gone
        stdout=subprocess.PIPE,
        env=environment | {"PYTHONPATH": os.pathsep.join(filter(None, [_home(), os.environ.get("PYTHONPATH")]))},
        start_new_session=True,  # Ctrl-C is for the commands
    )
    assert server.stdout is not None
    if server.stdout.readline():
        os.environ[ADDRESS] = address
        _kept.append(server)


def _prefix() -> str:
    """Of the name of a server's folder: a job of a cluster has one of its own, within what it was granted."""
    return f"ask-{os.environ.get('SLURM_JOB_ID', 'here')}-"


_kept: list["subprocess.Popen[bytes]"] = []


def run(arguments: Sequence[str]) -> int | None:
    """Exit status of a command run by the server; None where there is none to run it."""
    address = os.environ.get(ADDRESS)
    if not address or not address.rpartition("/")[0].rpartition("/")[2].startswith(_prefix()):
        return None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
        except OSError:
            return None
        request = {
            "home": _home(),
            "python": [sys.prefix, sys.version],
            "arguments": list(arguments),
            "folder": os.getcwd(),  # noqa: PTH109  # pathlib takes longer to import than this to run
            "environment": dict(os.environ),
        }
        body = json.dumps(request).encode()
        socket.send_fds(connection, [len(body).to_bytes(8, "big")], [0, 1, 2])
        connection.sendall(body)
        status = connection.recv(1)
    if not status:
        sys.stderr.write("the job's process was killed (out of memory?)\n")
        return 128 + signal.SIGKILL
    return None if status[0] == _REFUSED else status[0]


_REFUSED = 255


def serve(address: str) -> None:
    """Fork for every command that connects, until standard input ends."""
    import shutil
    from select import select

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(128)
        keep_memory()
        sys.stdout.write("ready\n")  # early commands wait for the imports
        sys.stdout.flush()
        for name in PRELOADED:
            _preload(name)
        from ask.cli import get_ready

        get_ready()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
        later = _when_idle()
        while sys.stdin not in (ready := select([listener, sys.stdin], [], [], 0.1 if later else None)[0]):
            if not ready:
                _preload(later.pop(0))
                continue
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    _answer(connection)
    shutil.rmtree(address.rpartition("/")[0], ignore_errors=True)


def _preload(name: str) -> None:
    from importlib import import_module

    with suppress(ImportError):
        import_module(name)


def _answer(connection: socket.socket) -> None:
    """In the forked process: become the command, run it, tell its status, end."""
    status = 1
    try:
        head, streams, _, _ = socket.recv_fds(connection, 8, 3, socket.MSG_WAITALL)
        wanted, body = int.from_bytes(head, "big"), bytearray()
        while len(body) < wanted and (part := connection.recv(wanted - len(body))):
            body += part
        request = json.loads(body)
        if request["python"] != [sys.prefix, sys.version] or request["home"] != _home():
            status = _REFUSED
            return
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # A run in the background (`snakemake … &` in a script) ignores SIGINT, and so would whatever it starts.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for stream, number in zip(streams, (0, 1, 2), strict=True):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        import threading

        threading.Thread(target=_end_with_command, args=(connection,), daemon=True).start()
        settle()
        status = _run(request["arguments"])
    except (KeyboardInterrupt, ConnectionError):
        status = 128 + signal.SIGINT
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command leaves as soon as it has its status
        sys.stdout.flush()
        sys.stderr.flush()
        with suppress(OSError):
            connection.sendall(bytes([status]))
        os._exit(status)


def _run(arguments: Sequence[str]) -> int:
    import traceback

    import torch

    from ask.cli import main

    # OpenMP read its variable when the server imported torch.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except Exception:  # noqa: BLE001  # what a process of its own would end with
        traceback.print_exc()
        return 1


def _end_with_command(connection: socket.socket) -> None:
    with suppress(OSError):
        if connection.recv(1):
            return
        _interrupt()


def _interrupt() -> None:
    import time

    # One interrupt may be lost: just before a system call that blocks, or raised where Python can't pass it on.
    while True:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def settle() -> None:
    """Ready this process for a command: it prints what it can, whatever the locale, and ends with its run.

    Snakemake cannot stop its jobs when it is killed itself; a second run would start the same ones beside them.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the server's, which began so and cannot be changed on a pipe
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    starter = os.environ.get(STARTER, "")
    if _runs(starter):  # a container may not see it, nor another machine
        import threading

        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a run that a script has put in the background
            signal.signal(signal.SIGINT, signal.default_int_handler)
        threading.Thread(target=_end_with_run, args=(starter,), daemon=True).start()


def _end_with_run(starter: str) -> None:
    import time

    while _runs(starter):
        time.sleep(1)
    sys.stderr.write("the run that started this job is gone: ending\n")
    _interrupt()


def named(process: int) -> str:
    """A process by its machine, number and start, in ticks since boot (none of a zombie, or where none is known)."""
    born = ""
    with suppress(OSError), open(f"/proc/{process}/stat", encoding="utf-8") as stream:  # noqa: PTH123  # as above
        state, *fields = stream.read().rpartition(")")[2].split()
        born = "" if state == "Z" else fields[18]
    return f"{os.uname().nodename}:{process}:{born}"


def _runs(starter: str) -> bool:
    """Whether a process that was :func:`named` still runs, on this machine."""
    process = starter.rpartition(":")[0].rpartition(":")[2]
    with suppress(PermissionError):
        try:
            os.kill(int(process or 0), 0)
        except ProcessLookupError:
            return False
    return process != "" and named(int(process)) == starter


def _home() -> str:
    """Folder of the package: another checkout's commands are not for this server."""
    return os.path.realpath(__file__).rpartition("/ask/")[0]


if __name__ == "__main__":
    serve(sys.argv[1])
