"""Three hosts and a database on a fourth; one is off the network for longer than its lease."""

import subprocess
import time
from contextlib import ExitStack

import pytest
from support import netns, postgres
from support.chaos import Zygote
from support.chaos_checks import WorkerGroup, check_study, evaluated
from support.netns import Network
from support.postgres import PostgresServer
from support.small import small_spec

from optuna_robustloss.distributed.lease import heartbeat_of
from optuna_robustloss.distributed.storage import open_storage
from optuna_robustloss.search.study import create_study

LEASE = 2.0
#: Process numbers of their own, as hosts have them.
PROCESSES = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]


@pytest.fixture(scope="module")
def network():
    if reason := netns.skip_reason():
        pytest.skip(reason)
    tried = subprocess.run([*PROCESSES, "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no process namespaces, which mostly takes root: {tried.stderr}")
    with Network(hosts=3) as network:
        yield network


@pytest.fixture(scope="module")
def server(network):
    if reason := postgres.skip_reason():
        pytest.skip(reason)
    place = {"listen": network.address("db"), "allow": [network.cidr]}
    with PostgresServer(**place, prefix=network.prefix("db")) as server:
        yield server


@pytest.fixture(scope="module")
def zygotes(network, tmp_path_factory):
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                Zygote(tmp_path_factory.mktemp(host), [*network.prefix(host), *PROCESSES])
            )
            for host in network.hosts
        ]


class Partition:
    """Takes host1 off the network for three leases, while trials are running there."""

    def __init__(self, network, worker):
        self.network, self.worker = network, worker
        self.cut = self.healed = None

    def __call__(self, crew):
        now = time.monotonic()
        if self.cut is None and len(evaluated(self.worker)) == 2:
            self.network.partition("host1")
            self.cut = now
        elif self.cut and self.healed is None and now > self.cut + 3 * LEASE:
            self.network.heal("host1")
            self.healed = now


@pytest.mark.slow
def test_a_host_that_was_cut_off_drops_its_results_and_goes_on(network, server, zygotes):
    url, here = server.create_database("hosts"), server.local_url("hosts")
    spec = small_spec(popsize=8, generations=6)
    create_study(spec, open_storage(here), "s", lease=LEASE)
    pause = (2.0, 4.0)  # longer than it takes to cut a host off, on a busy machine too
    crew = WorkerGroup(zygotes, {"url": url, "study": "s", "lease": LEASE, "pause": pause}, kills=3)
    first, *_ = [crew.start(fate=[]), *(crew.start() for _ in range(8))]
    partition = Partition(network, first)
    crew.run(partition)
    crew.check()
    assert partition.healed
    study = check_study(here, "s", spec)
    heartbeats = [heartbeat_of(t) for t in study.trials]
    assert len({h.machine for h in heartbeats if h is not None}) == 3
    assert {t.user_attrs["worker"].split(":")[0] for t in study.trials if t.user_attrs} == set(
        network.hosts
    )
    cut = [w for w in crew.workers if w.zygote is zygotes[0]]
    assert any("result is dropped" in w.log() for w in cut), [w.log()[-2000:] for w in cut]
