"""The network that other tests rely on: hosts that differ, cables that can be pulled."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import netns, postgres
from support.netns import Network
from support.postgres import PostgresServer
from support.waiting import LIMIT

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).parents[1] / "support"
CONNECT = "import psycopg, sys; psycopg.connect(sys.argv[1]).close()"


@pytest.fixture(scope="module")
def network():
    if reason := netns.skip_reason():
        pytest.skip(reason)
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
def url(server):
    # psycopg reads the URL itself; the driver's name is SQLAlchemy's.
    return server.create_database("study").replace("+psycopg", "")


def output(network, host, program, *arguments, connect_timeout=120):
    argv = [sys.executable, "-c", program, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PGCONNECT_TIMEOUT": str(connect_timeout)}
    with network.popen(host, argv, env=environment, **pipes) as process:
        out, error = process.communicate(timeout=LIMIT)
    return process.returncode, out.strip() or error.strip()


@pytest.mark.parametrize("restarted", [False, True])
def test_all_hosts_reach_the_database_and_this_process_by_the_socket(
    network, server, url, restarted
):
    if restarted:
        server.restart("immediate")
    for host in network.hosts:
        assert output(network, host, CONNECT, url) == (0, "")
    local = server.local_url("study").replace("+psycopg", "")
    here = [subprocess.run([sys.executable, "-c", CONNECT, u]).returncode for u in (url, local)]
    assert here == [1, 0]


@pytest.mark.parametrize("cut", ["host2", "db"])
def test_a_partitioned_host_loses_the_database_until_healed(network, url, cut):
    network.partition(cut)
    try:
        code, error = output(network, "host2", CONNECT, url, connect_timeout=2)
        assert code != 0
        assert "timeout" in error
        if cut != "db":
            assert output(network, "host1", CONNECT, url) == (0, "")
    finally:
        network.heal(cut)
    assert output(network, "host2", CONNECT, url) == (0, "")


def test_an_open_connection_hangs_in_a_partition_and_goes_on_after_it(network, url):
    program = """if True:
        import psycopg, sys
        with psycopg.connect(sys.argv[1]) as connection:
            for line in sys.stdin:
                print(connection.execute("SELECT " + line).fetchone()[0], flush=True)
    """
    argv = [sys.executable, "-c", program, url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with network.popen("host3", argv, bufsize=0, **pipes) as worker:
        worker.stdin.write(b"1\n")
        assert worker.stdout.readline() == b"1\n"
        network.partition("host3")
        try:
            worker.stdin.write(b"2\n")
            assert not select.select([worker.stdout], [], [], 1)[0]
            assert worker.poll() is None
        finally:
            network.heal("host3")
        assert worker.stdout.readline() == b"2\n"
        worker.stdin.close()
    assert worker.returncode == 0


def test_hosts_have_names_and_addresses_of_their_own(network):
    program = "import socket; print(socket.gethostname())"
    assert network.hosts == ["host1", "host2", "host3"]
    for host in [*network.hosts, "db"]:
        assert output(network, host, program) == (0, host)
    assert len({network.address(host) for host in [*network.hosts, "db"]}) == 4
    assert os.uname().nodename not in network.hosts
    with pytest.raises(ValueError, match="no host 'host4'; there are db, host1, host2, host3"):
        network.address("host4")


def test_a_process_on_a_host_can_be_killed_by_its_id(network):
    with network.popen("host1", ["sleep", "60"], stdout=subprocess.DEVNULL) as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_two_networks_do_not_meet(network):
    listen = "import socket; s = socket.create_server(('', 7000)); print('on', flush=True); input()"
    knock = "import socket, sys; socket.create_connection((sys.argv[1], 7000), 20)"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with network.popen("host1", [sys.executable, "-c", listen], **pipes) as server:
        assert server.stdout.readline() == b"on\n"
        assert output(network, "host2", knock, network.address("host1")) == (0, "")
        with Network(hosts=2) as other:
            assert output(other, "host2", knock, network.address("host1"))[0] != 0
        server.kill()


@pytest.mark.parametrize("end", ["close", "exception", "kill"])
def test_nothing_is_left_however_the_tests_end(end):
    if reason := netns.skip_reason():
        pytest.skip(reason)
    program = """if True:
        import sys
        from netns import Network
        with Network(hosts=1) as network:
            # A child of the process on the host, in a session of its own, goes as well.
            argv = ["sh", "-c", "setsid sleep 60 & echo $!; wait"]
            child = network.popen("host1", argv, stdout=-1).stdout.readline().decode()
            print(child, *(holder.pid for holder in network._holders.values()), flush=True)
            if "exception" in sys.stdin.readline():
                raise KeyboardInterrupt
    """
    before = set(os.listdir("/sys/class/net"))
    argv = [sys.executable, "-c", program]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(argv, cwd=FOLDER, text=True, **pipes) as tests:
        lines = tests.stdout.readline() + tests.stdout.readline()
        processes = [os.pidfd_open(int(pid)) for pid in lines.split()]
        assert len(processes) == 4  # sleep, switch, db, host1
        assert set(os.listdir("/sys/class/net")) == before
        if end == "kill":
            tests.kill()
        tests.communicate(end)
    for process in processes:
        assert select.select([process], [], [], 30)[0], "still running"


def test_a_host_refuses_to_start_in_the_namespace_of_its_parent():
    done = subprocess.run([sys.executable, netns.__file__, "x"], capture_output=True, text=True)
    assert "would kill everything" in done.stderr
