"""Ranks on two hosts, started by the variables that scripts/launch_ranks.sh documents: the same training as on one, and
a job that ends with the right name when the link is cut or a host is lost. Both hosts are this machine's.
"""

import re
import threading
import time

import pytest
from ranks import EQUAL, assert_equal, environment
from training_runs import ENDLESS, QUICK, ROOT, run_command, write_config
from two_hosts import TwoHosts, possible

from mindspore_coupalign.data.refshapes.dataset import make_shapes
from mindspore_coupalign.distributed import watchdog as watch
from mindspore_coupalign.weights.checkpoint import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not possible(), reason="needs root and network namespaces")]


class Job:
    """One rank on each host; ``out`` and ``codes`` are those of the two scripts when they have ended."""

    def __init__(self, hosts, folder, config, *arguments, shared: bool = True):
        self.hosts, self.folder, self.out = hosts, folder, ["", ""]
        self.processes = []
        for host in (0, 1):
            place = environment(folder, LOCAL_WORKERS="1", NODE_RANK=str(host), MASTER_ADDR=hosts.addresses[0],
                                MASTER_PORT="8118", LOG_DIR=str(folder / ("logs" if shared else f"logs{host}")))
            script = ["bash", "scripts/run_distribute_train.sh", "2", config, "CPU", "--output", folder / "run"]
            self.processes.append(hosts.start(host, [*map(str, script), *arguments], cwd=ROOT, env=place))
        self.readers = [threading.Thread(target=self._read, args=(host,)) for host in (0, 1)]
        for reader in self.readers:
            reader.start()

    def _read(self, host: int):
        self.out[host], _ = self.processes[host].communicate()

    def states(self) -> list:
        return [state for logs in sorted(self.folder.glob("logs*")) for state in watch.read_states(logs)]

    def wait_for(self, step: int):
        deadline = time.time() + 400
        while len([s for s in self.states() if s["step"] >= step]) < 2:
            assert all(p.poll() is None for p in self.processes) and time.time() < deadline, self.end()
            time.sleep(0.1)

    def end(self, *hosts: int, seconds: float = 0) -> tuple:
        """(exit codes, last lines, seconds until the scripts of ``hosts`` ended); kills what is left then."""
        start = time.time()
        for host in hosts:
            self.readers[host].join(seconds + start - time.time())
        took, left = time.time() - start, [host for host in hosts if self.readers[host].is_alive()]
        for host in (0, 1):
            self.hosts.kill(host)
            self.readers[host].join(20)
        assert not left, (f"after {seconds} s host {left} was still at work", self.out)
        return ([p.returncode for p in self.processes],
                [(out.strip().splitlines() or [""])[-1] for out in self.out], took)


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    make_shapes(folder / "data", 3, train=9, val=4, testA=1, testB=1)
    return {name: write_config(folder / f"{name}.yaml", folder / "data", overrides)
            for name, overrides in (("equal", EQUAL), ("quick", QUICK))}


@pytest.fixture
def hosts():
    with TwoHosts() as hosts:
        yield hosts


def test_two_hosts_equal_one_rank(setting, hosts, tmp_path):
    """Losses, scores and parameters after 20 steps; each host has a folder of logs of its own."""
    length = ["train.steps=20", "train.val_every=10"]
    job = Job(hosts, tmp_path, setting["equal"], *length, shared=False)
    codes, _, _ = job.end(0, 1, seconds=600)
    assert codes == [0, 0], job.out
    assert {re.sub(r"-\d+$", "", s["host"]) for s in job.states()} == {"host0", "host1"}
    run_command("train", "--config", setting["equal"], "--output", tmp_path / "one", *length)
    assert_equal(tmp_path / "one", tmp_path / "run")


def test_a_cut_link_ends_the_job(setting, hosts, tmp_path):
    """Both sides live and say so in the folder that both can read: the network is named, no rank is accused."""
    job = Job(hosts, tmp_path, setting["quick"], *ENDLESS, "train.save_every=2")
    job.wait_for(4)
    hosts.cut()
    codes, last, took = job.end(0, 1, seconds=200)
    print(f"\na cut link: {took:.0f} s, {last[0]}")
    assert 0 not in codes, job.out
    named = r"^error: rank \d \(process \d+ on host(\d)-\d+\) does not reach the ranks on host(?!\1)\d"
    for line in last:
        assert re.search(named, line), line
        assert "check the network between the machines; continue with --resume" in line
    assert load_checkpoint(tmp_path / "run" / "last.safetensors").progress["step"] >= 2  # 4 may be under way


@pytest.mark.parametrize("shared", [True, False])
def test_a_lost_host_ends_the_job(setting, hosts, tmp_path, shared):
    """Power off: no process is left and no packet comes. Where the other host's files cannot be read, that is said."""
    job = Job(hosts, tmp_path, setting["quick"], *ENDLESS, "train.save_every=2", shared=shared)
    job.wait_for(4)
    hosts.cut()
    hosts.kill(1)
    codes, last, took = job.end(0, seconds=200)
    print(f"\na lost host, LOG_DIR {'shared' if shared else 'of its own'}: {took:.0f} s, {last[0]}")
    assert codes[0] != 0, job.out
    expected = r"rank 1 \(process \d+ on host1-\d+\) has had no heartbeat" if shared else \
        r"rank 0 \(process \d+ on host0-\d+\) has lost a rank of another machine or the connection to it"
    assert re.search(f"^error: {expected}.*--resume", last[0]), job.out
