"""Several hosts on one machine: network namespaces on a switch, with cables that can be pulled.

The namespaces have no names. Each lives as long as a process that holds it, and that one ends with
the test process, so nothing is left even after SIGKILL; and since the switch is a namespace, too,
the network of the machine itself is not touched.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOOLS = ("ip", "nsenter", "unshare")


@functools.cache
def skip_reason() -> str | None:
    """Why no network can be made here, or None; it makes one to find out."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        return f"{', '.join(missing)} missing: apt-get install iproute2 util-linux"
    try:
        with Network(hosts=1):
            return None
    except (OSError, RuntimeError) as error:
        return f"no network namespaces, which mostly takes root: {error}"


class Network:
    """Hosts "host1", "host2", … and "db", each with address, hostname and a cable to a switch::

        with Network(hosts=3) as network:
            worker = network.popen("host1", [sys.executable, "worker.py"])
            network.partition("host1")

    When it closes, the processes on the hosts are killed.
    """

    cidr = "10.77.0.0/24"

    def __init__(self, hosts: int = 3) -> None:
        if not 1 <= hosts <= 200:
            raise ValueError(f"hosts must be from 1 to 200, is {hosts}")
        self.hosts = [f"host{number}" for number in range(1, hosts + 1)]
        self._names = ["db", *self.hosts]
        self._holders: dict[str, subprocess.Popen[str]] = {}

    def address(self, host: str) -> str:
        """The IPv4 address of a host."""
        return f"10.77.0.{1 + self._index(host)}"

    def prefix(self, host: str) -> list[str]:
        """What to put before a command to run it on a host; it keeps the process id."""
        self._index(host)
        return self._enter(host)

    def popen(self, host: str, argv: Sequence[Any], **options: Any) -> subprocess.Popen[Any]:
        """Start a process on a host."""
        return subprocess.Popen([*self.prefix(host), *argv], **options)

    def partition(self, host: str) -> None:
        """Take a host off the network; neither side is notified, packets get lost."""
        self._ip("switch", f"link set port{self._index(host)} nomaster")

    def heal(self, host: str) -> None:
        """Put a host back on the network."""
        self._ip("switch", f"link set port{self._index(host)} master bridge")

    def close(self) -> None:
        """Kill what runs on the hosts; the namespaces go with it."""
        for holder in self._holders.values():
            holder.communicate("\n")
        self._holders.clear()

    def __enter__(self) -> Network:
        try:
            for name in ("switch", *self._names):
                self._hold(name)
            # The default delay keeps a port from forwarding for its first 15 seconds.
            self._ip("switch", "link add bridge type bridge forward_delay 0", "link set bridge up")
            for host in self._names:
                self._connect(host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _hardware(self, host: str) -> str:
        return f"02:00:00:00:00:{1 + self._index(host):02x}"

    def _index(self, host: str) -> int:
        if host not in self._names:
            raise ValueError(f"no host {host!r}; there are {', '.join(self._names)}")
        return self._names.index(host)

    def _hold(self, name: str) -> None:
        unshare = ["unshare", "--net", "--uts", "--"]
        holder = subprocess.Popen(
            [*unshare, sys.executable, "-I", "-S", __file__, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests, which then let go of the pipe
        )
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise RuntimeError(holder.communicate()[1].strip())
        self._holders[name] = holder

    def _connect(self, host: str) -> None:
        port = f"port{self._index(host)}"
        self._ip(
            "switch",
            f"link add {port} type veth peer name eth0 address {self._hardware(host)}"
            f" netns {self._holders[host].pid}",
            f"link set {port} master bridge up",
        )
        self._ip(
            host,
            "link set lo up",
            f"address add {self.address(host)}/24 dev eth0",
            "link set eth0 up",
            # Known for good: looking for a neighbour in vain gives errors that a cut further away
            # in a network would not give, some of them after it has healed.
            *(
                f"neighbour add {self.address(other)} lladdr {self._hardware(other)} dev eth0"
                for other in self._names
            ),
        )

    def _ip(self, name: str, *commands: str) -> None:
        argv = [*self._enter(name), "ip", "-batch", "-"]
        done = subprocess.run(argv, input="\n".join(commands), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ip on {name}: {done.stderr.strip()}")

    def _enter(self, name: str) -> list[str]:
        if name not in self._holders:
            raise RuntimeError("the network is not open: use it in a with statement")
        return ["nsenter", f"--target={self._holders[name].pid}", "--net", "--uts", "--"]


def _hold_namespace(name: str) -> None:
    """Be a host: exist until a line or the end of the test process, then take all others along."""
    here, above = (os.readlink(f"/proc/{pid}/ns/net") for pid in ("self", os.getppid()))
    if here == above:
        raise SystemExit("not in a network namespace of its own: this would kill everything")
    socket.sethostname(name)
    print("ready", flush=True)
    sys.stdin.readline()
    while others := _neighbours(here):
        for pid in others:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _neighbours(namespace: str) -> list[int]:
    """The other processes in the network namespace that this one is in."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if os.readlink(process / "ns/net") == namespace and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


if __name__ == "__main__":
    _hold_namespace(sys.argv[1])
