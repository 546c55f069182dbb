"""On a real SLURM, a throw-away one of two nodes: whatever befalls a run, it ends with a calm run's results.

`make test-slurm` installs SLURM if need be, and runs these (``pytest --slurm``), two at a time, for they mostly
wait; each process has a cluster of its own. They need root.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from test_workflow import PARTS, ROOT, TABLE, TINY

pytestmark = pytest.mark.slurm
WITH_TIMED = pytest.mark.xdist_group("timed")
RUN = Path("results/tiny")
WEIGHTS = RUN / "models/digits-tiny/at/weights.safetensors"
OTHER = RUN / "models/digits-tiny/at-eps8/weights.safetensors"
CONFIG = ("--configfile", "config/tiny.yaml")
PROFILE = ("--workflow-profile", "profiles/slurm", "--slurm-init-seconds-before-status-checks", "2")
TRAINING = TINY["datasets"]["digits-tiny"]["training"] | {"epochs": 12}
CUT = TINY | {
    "train_threads": 1,
    "datasets": {"digits-tiny": TINY["datasets"]["digits-tiny"] | {"training": TRAINING}},
    "models": {"at-eps8": {"training": {"eps": 20, "epochs": 1}}},
}


class Cluster:
    """The loopback SLURM, and the environment in which its commands are found."""

    def __init__(self, folder):
        self.folder = folder
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_", "ASK_"))}
        path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = kept | {
            "SLURM_TRY": str(folder),
            "SLURM_TRY_CPUS": "8",
            "OMP_NUM_THREADS": "1",
            "PATH": path,
        }

    def control(self, what):
        script = ROOT / "tests/slurm_loopback.sh"
        with tempfile.TemporaryFile("w+") as said:  # no pipe: daemons would keep it open
            done = subprocess.run([script, what], env=self.environment, stdout=said, stderr=said, timeout=60)
            said.seek(0)
            assert done.returncode == 0, said.read()

    def say(self, *command, folder=None):
        """What one of SLURM's commands prints."""
        options = {"cwd": folder, "env": self.environment, "capture_output": True, "text": True, "timeout": 30}
        done = subprocess.run(command, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def jobs(self, folder):
        """Numbers of a folder's jobs that run."""
        lines = self.say("squeue", "--noheader", "--states=R", "--format=%i %Z").splitlines()
        return [line.split(" ", 1)[0] for line in lines if line.split(" ", 1)[1] == str(folder)]

    def node(self, job):
        return self.say("squeue", "--noheader", f"--jobs={job}", "--format=%N")

    def start(self, folder, *targets):
        """Snakemake with the cluster's profile, on its way."""
        with (folder / "said").open("w") as said:
            command = [sys.executable, "-m", "snakemake", *targets, *CONFIG, *PROFILE]
            return subprocess.Popen(command, cwd=folder, env=self.within(folder), stdout=said, stderr=said)

    def submit(self, folder, *arguments, options=(), **environment):
        """An allocation; returns its number."""
        limits = ["--cpus-per-task=2", "--mem=4G", "--gpus=0", "--output=said", "--time=20", *options]
        command = ["sbatch", "--parsable", *limits, "profiles/allocation.sbatch", *arguments, *CONFIG]
        done = subprocess.run(
            command, cwd=folder, env=self.within(folder) | environment, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def within(self, folder):
        return self.environment | {"PYTHONPATH": str(folder)}

    def ended(self, job):
        state = re.search(r"JobState=(\w+)", self.say("scontrol", "show", "job", job))[1]
        return state if state not in ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING") else ""


def wait_until(done, seconds=500.0):
    deadline = time.monotonic() + seconds
    while not (found := done()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def cluster():
    if shlex.quote(sys.executable) != sys.executable:  # which the Snakefile refuses, too
        pytest.fail(f"no job of a cluster could start {sys.executable!r}: try it where no path has a space")
    with tempfile.TemporaryDirectory(prefix="ask-slurm-") as folder:
        Path(folder).chmod(0o711)  # munge wants every user to get there
        found = Cluster(Path(folder) / "try")
        try:
            found.control("start")
            yield found
        finally:
            found.control("stop")


@pytest.fixture(scope="module")
def calm(tmp_path_factory, cluster):
    """The cut of the demo, made without SLURM. Checkpoints are frequent, for faults come after seconds."""
    folder = tmp_path_factory.mktemp("calm")
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    loop = folder / "ask/training/loop.py"
    assert "checkpoint_seconds: float = 30.0" in loop.read_text()
    loop.write_text(loop.read_text().replace("checkpoint_seconds: float = 30.0", "checkpoint_seconds: float = 0.5"))
    for path in (folder / "config/artifacts").glob("*.yaml"):
        path.unlink()
    other = TABLE | {"settings": TABLE["settings"] | {"model": "at-eps8"}}
    for name, table in (("small", TABLE), ("other", other)):
        (folder / f"config/artifacts/{name}.yaml").write_text(yaml.safe_dump(table))
    (folder / "config/tiny.yaml").write_text(yaml.safe_dump(CUT))
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *CONFIG]
    environment = cluster.within(folder)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture
def project(calm, tmp_path):
    """Its copy with the data, and nothing measured."""
    return copied(calm, tmp_path / "project")


def copied(calm, folder):
    shutil.copytree(calm, folder, ignore=shutil.ignore_patterns("results", ".snakemake", "__pycache__"))
    return folder


def same(folder, calm, pattern):
    """Files of that name are there, and byte for byte what the calm run made."""
    names = sorted(path.relative_to(calm) for path in calm.glob(pattern))
    assert names
    for name in names:
        assert (folder / name).read_bytes() == (calm / name).read_bytes(), name


def read(path):
    """Its text; of a file that is not there, or not at this moment (Snakemake removes logs), none."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def said(folder):
    return read(folder / "said")


def training(cluster, folder):
    """Waits until AT's training has a checkpoint, whichever model's comes first; the number of its job."""
    wait_until(lambda: list((folder / RUN / "scratch/digits-tiny/at").glob("*.safetensors")))
    return cluster.jobs(folder)[0]


@contextmanager
def held(folder):
    """Its training stands still meanwhile: on a fast machine it would be over before what is to happen during it."""
    trainings = processes(folder, b"\0ask.worker\0")
    assert trainings
    try:
        for process in trainings:
            os.kill(process, signal.SIGSTOP)
        yield
    finally:
        for process in trainings:
            os.kill(process, signal.SIGCONT)


def continued(folder, calm, run):
    """A training that was cut short ended with the calm one's weights, and began where it was cut."""
    assert run.wait(500) == 0, said(folder)
    same(folder, calm, str(WEIGHTS))
    assert "continuing at epoch" in (folder / RUN / "logs/models/digits-tiny/at/train.log").read_text()


def processes(folder, kind=b"\0train\0"):
    """Numbers of a folder's processes with that in their command: its training jobs."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if kind in (path / "cmdline").read_bytes() and (path / "cwd").readlink() == folder:
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def timed(cluster, calm, tmp_path_factory):
    """A training that hangs until its time limit of a minute: begun first, for it takes longest."""
    folder = copied(calm, tmp_path_factory.mktemp("timed") / "project")
    run = cluster.start(folder, str(WEIGHTS), "--set-resources", "train:runtime=1+29*(attempt-1)")
    training(cluster, folder)
    for process in processes(folder):
        os.kill(process, signal.SIGSTOP)
    yield folder, run
    run.kill()


@WITH_TIMED
def test_the_profile_gives_the_local_results(timed, cluster, calm, tmp_path):
    project = copied(calm, tmp_path / "a project")
    run = cluster.start(project)
    assert run.wait(500) == 0, said(project)
    assert "with SLURM jobid" in said(project)
    for pattern in ("**/weights.safetensors", "**/cells/**/*.npz", "**/tables/*.csv"):
        same(project, calm, pattern)


def test_a_cancelled_job_goes_on(cluster, calm, project):
    run = cluster.start(project, str(WEIGHTS))
    cluster.say("scancel", training(cluster, project))
    continued(project, calm, run)


def test_a_restarted_controller_is_no_end(cluster, calm, project):
    run = cluster.start(project, str(WEIGHTS))
    training(cluster, project)
    cluster.control("restart")
    assert run.wait(500) == 0, said(project)
    same(project, calm, str(WEIGHTS))


def test_work_leaves_a_drained_node_and_a_dead_one(cluster, calm, project):
    run = cluster.start(project, str(WEIGHTS))
    job = training(cluster, project)
    node = cluster.node(job)
    try:
        cluster.say("scontrol", "update", f"nodename={node}", "state=drain", "reason=test")
        other = cluster.submit(project, str(OTHER), "--dry-run", options=["--output=elsewhere"])
        wait_until(lambda: cluster.ended(other))
        assert f"NodeList={node}" not in cluster.say("scontrol", "show", "job", other)
        cluster.say("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        continued(project, calm, run)
    finally:
        cluster.say("scontrol", "update", f"nodename={node}", "state=resume")


def test_a_preempted_job_is_put_back_and_goes_on(cluster, calm, project):
    run = cluster.start(project, str(WEIGHTS))
    job = training(cluster, project)
    urgent = ["--partition=urgent", f"--nodelist={cluster.node(job)}", "--exclusive", "--wrap=sleep 1"]
    cluster.say("sbatch", "--output=/dev/null", *urgent, folder=project)
    continued(project, calm, run)
    assert "Restarts=1" in cluster.say("scontrol", "show", "job", job)


def test_an_allocation_puts_itself_back_before_its_end(cluster, calm, project):
    """The whole run in one job, which is told in the middle of a training that its time is nearly up."""
    job = cluster.submit(project, ASK_LAST_SECONDS="100000")
    training(cluster, project)
    with held(project):
        cluster.say("scancel", "--batch", "--signal=USR1", job)
        wait_until(lambda: "interrupting what runs" in said(project))
    assert wait_until(lambda: cluster.ended(job)) == "COMPLETED", said(project)
    assert "back into the queue" in said(project)
    assert "Restarts=1" in cluster.say("scontrol", "show", "job", job)
    assert "continuing at epoch" in (project / RUN / "logs/models/digits-tiny/at/train.log").read_text()
    for pattern in ("**/weights.safetensors", "**/cells/**/*.npz", "**/tables/*.csv"):
        same(project, calm, pattern)


def test_allocations_run_side_by_side_in_one_folder(cluster, calm, project):
    """Each with targets of its own; of a model that both want, one trains and the other waits."""
    log = project / RUN / "logs/models/digits-tiny/at/train.log"
    jobs = {"one": cluster.submit(project, str(RUN / "scratch/digits-tiny/at.done"), options=["--output=one"])}
    training(cluster, project)
    with held(project):
        jobs["two"] = cluster.submit(project, f"{RUN}/tables/other.csv", str(WEIGHTS), options=["--output=two"])
        wait_until(lambda: "waiting for another training" in read(log))
    for name, job in jobs.items():
        assert wait_until(lambda job=job: cluster.ended(job)) == "COMPLETED", (project / name).read_text()
    for pattern in ("**/weights.safetensors", "**/cells/**/*.npz", "**/tables/other.csv"):
        same(project, calm, pattern)
    assert "at: trained meanwhile" in log.read_text()


def test_an_allocation_that_finishes_nothing_gives_up(cluster, project):
    job = cluster.submit(project, str(WEIGHTS), options=["--gpus=2"], ASK_LAST_SECONDS="100000")
    wait_until(lambda: "Provided resources" in said(project))
    cluster.say("scancel", "--batch", "--signal=USR1", job)
    assert wait_until(lambda: cluster.ended(job)) == "FAILED"
    assert "give it more --time" in said(project)
    assert "2 cores, 2 GPUs" in said(project)  # and two jobs a card, which ask for leases
    assert 'Resource("gpu", 4)' in said(project)


def test_a_cancelled_allocation_ends_for_good(cluster, project):
    job = cluster.submit(project, str(WEIGHTS))
    training(cluster, project)
    cluster.say("scancel", job)
    assert wait_until(lambda: cluster.ended(job)) == "CANCELLED"
    wait_until(lambda: not processes(project))
    assert "stopping at once" in said(project)
    assert list((project / RUN / "scratch").rglob("*.safetensors"))


@WITH_TIMED
def test_a_time_limit_that_cuts_is_no_end(timed, cluster, calm):
    folder, run = timed
    continued(folder, calm, run)
    assert "TIMEOUT" in said(folder)
