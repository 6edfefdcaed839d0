"""A real SLURM on this machine, in one folder: munge, slurmctld, and a slurmd for each of two nodes."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import ROOT
from tests.processes import free_ports, until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
NODES = ("node1", "node2")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY")
CONF = """
ClusterName=try
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
SlurmdTimeout=20
SlurmdParameters=config_overrides
ReturnToService=2
GresTypes=gpu
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL PriorityTier=2 PreemptMode=OFF
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=4000 Gres=gpu:4 "
    "State=UNKNOWN"
)


def missing() -> str | None:
    """Why no SLURM can run here; None where it can."""
    path = f"{os.environ['PATH']}:/usr/sbin"
    absent = [name for name in PROGRAMS if not shutil.which(name, path=path)]
    if absent:
        return f"no {absent[0]}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "several slurmd on one host need root"


class Cluster:
    """Commands of SLURM, which find the cluster's configuration."""

    def __init__(self, folder: Path):
        self.folder, self.processes = folder, {}
        self.env = os.environ | {
            "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin",
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
            "MASTER_ADDR": "127.0.0.1",  # no name server knows the nodes
        }  # fmt: skip

    def start(self, name: str, *command: str) -> None:
        """A daemon in the foreground, with its log."""
        with open(self.folder / f"{name}.log", "a") as log:
            self.processes[name] = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)

    def run(self, *command: str) -> str:
        done = subprocess.run(command, cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def sbatch(self, *args: str) -> str:
        """The id of the job."""
        return self.run("sbatch", "--parsable", *args).strip()

    def show(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says, by name."""
        words = self.run("scontrol", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, state: str, seconds: float = 300) -> dict[str, str]:
        """Until the job is in that state; AssertionError where it has ended in another."""

        def there() -> bool:
            now = self.show(job)["JobState"]
            assert now == state or now not in ENDED, f"{job}: {self.show(job)}"
            return now == state

        until(there, seconds, lambda: f"{job}: {self.show(job)}")
        return self.show(job)

    def up(self) -> None:
        def idle() -> bool:
            with suppress(AssertionError):
                return self.run("sinfo", "--noheader", "--Node", "--format=%t").split().count("idle") >= 2
            return False

        until(idle, 60, lambda: (self.folder / "slurmctld.log").read_text()[-3000:])


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Two nodes of 4 CPUs and 4 GPUs that are only counted; `high` takes the nodes of jobs in `low`."""
    host = socket.gethostname()
    port, *ports = free_ports(1 + len(NODES))
    nodes = [NODE.format(name=n, host=host, port=p) for n, p in zip(NODES, ports, strict=True)]
    conf = CONF.format(host=host, port=port, folder=folder, nodes="\n".join(nodes))
    (folder / "slurm.conf").write_text(conf)
    (folder / "gres.conf").write_text(
        "".join(f"NodeName={name} Name=gpu File=/dev/tty[0-3]\n" for name in NODES)
    )
    for name in ("state", *NODES):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    made = Cluster(folder)
    files = {"key-file": key} | {f"{name}-file": folder / f"munge.{name}" for name in ("pid", "log", "seed")}
    options = [f"--{name}={path}" for name, path in files.items()]
    try:
        made.start("munged", "munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *options)
        until((folder / "munge.socket").exists, 20)
        made.start("slurmctld", "slurmctld", "-D", "-c")
        for name in NODES:
            made.start(name, "slurmd", "-D", "-N", name)
        made.up()
        yield made
    finally:
        with suppress(AssertionError, subprocess.SubprocessError):
            made.run("scancel", "--user=root")
            time.sleep(3)
        for process in reversed(made.processes.values()):
            process.terminate()
        for process in made.processes.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            process.kill()
