"""Machines of one's own: network namespaces on one bridge, a store and two nodes. Needs root and iproute2."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

NODES = ("ado-node0", "ado-node1")
STORE = "ado-store"
NETWORK = "10.213.77"


def ip(*words: str) -> None:
    """Runs iproute2's `ip`."""
    subprocess.run(["ip", *words], check=True)


@contextmanager
def network() -> Iterator[None]:
    """Three namespaces on one bridge: the store at .1, the nodes at .2 and .3."""
    names = (STORE, *NODES)
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", STORE, "link", "add", "bridge", "type", "bridge")
        ip("-n", STORE, "addr", "add", f"{NETWORK}.1/24", "dev", "bridge")
        ip("-n", STORE, "link", "set", "bridge", "up")
        for number, node in enumerate(NODES):
            port = f"port{number}"
            ip("-n", STORE, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", node)
            ip("-n", STORE, "link", "set", port, "master", "bridge", "up")
            ip("-n", node, "addr", "add", f"{NETWORK}.{number + 2}/24", "dev", "eth0")
            ip("-n", node, "link", "set", "eth0", "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)


def inside(namespace: str, *command: str, **options) -> subprocess.Popen:
    """Starts a command in a namespace."""
    return subprocess.Popen(["ip", "netns", "exec", namespace, *command], **options)
