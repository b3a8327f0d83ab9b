"""Two hosts on one machine: network namespaces with a link between them, each with its address and host name. Needs
root."""

import contextlib
import os
import shutil
import subprocess

NETWORK = "10.213.77"


def possible() -> bool:
    """Whether this process may make network namespaces, and host names of their own for its children."""
    if os.geteuid() != 0 or not shutil.which("ip") or not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "--net", "--uts", "true"], capture_output=True).returncode == 0


class TwoHosts:
    """A context manager; ``names`` and ``addresses`` are those of host 0 and host 1."""

    def __init__(self):
        self.names = [f"host{i}-{os.getpid()}" for i in (0, 1)]
        self.links = [f"ca{i}-{os.getpid() % 100000}" for i in (0, 1)]
        self.addresses = [f"{NETWORK}.{i + 1}" for i in (0, 1)]

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.callback(self.remove)
            for name in self.names:
                _ip("netns", "add", name)
            _ip("link", "add", self.links[0], "netns", self.names[0], "type", "veth", "peer", "name", self.links[1],
                "netns", self.names[1])
            for name, link, address in zip(self.names, self.links, self.addresses, strict=True):
                _ip("-n", name, "address", "add", f"{address}/24", "dev", link)
                for device in ("lo", link):
                    _ip("-n", name, "link", "set", device, "up")
            stack.pop_all()
        return self

    def __exit__(self, *_):
        self.remove()

    def remove(self):
        for host, name in enumerate(self.names):
            self.kill(host)
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def start(self, host: int, command: list, **popen) -> subprocess.Popen:
        return subprocess.Popen(["ip", "netns", "exec", self.names[host], "unshare", "--uts", "sh", "-c",
                                 'hostname "$0" && exec "$@"', self.names[host], *command], text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **popen)

    def cut(self):
        """The cable is pulled: packets get lost, no connection is told."""
        _ip("-n", self.names[0], "link", "set", self.links[0], "down")

    def kill(self, host: int):
        """All of a host's processes at once."""
        listed = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True)
        if listed.stdout.split():
            subprocess.run(["kill", "-9", *listed.stdout.split()], capture_output=True)


def _ip(*arguments: str):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
