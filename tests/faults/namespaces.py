"""Machines of their own on one host: network namespaces on a bridge, whose links can be cut.

Needs root and the kernel's leave; `refusal` says why it cannot be had here.
"""

from __future__ import annotations

import contextlib
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Machine:
    """A namespace with one address; commands run in it behind `prefix`."""

    name: str
    address: str
    link: str  # the bridge's end of its cable

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("ip", "netns", "exec", self.name)

    def cut(self) -> None:
        """Pull the cable: nothing arrives any more, and nobody is told."""
        _ip("link", "set", self.link, "down")

    def join(self) -> None:
        """Plug the cable in again."""
        _ip("link", "set", self.link, "up")


@dataclass
class Network:
    """A bridge without a way out, and the machines on it; all names are this network's own."""

    key: str = field(default_factory=lambda: secrets.token_hex(3))
    machines: list[Machine] = field(default_factory=list)

    @property
    def bridge(self) -> str:
        return f"swb{self.key}"

    def add(self) -> Machine:
        """One more machine, reachable from all others."""
        number = len(self.machines) + 1
        # A block that is set apart for tests of networks, so that nothing real is in the way.
        machine = Machine(
            f"swn{self.key}-{number}", f"198.18.77.{number}", f"swl{self.key}{number}"
        )
        inside = f"swi{self.key}{number}"
        self.machines.append(machine)
        _ip("netns", "add", machine.name)
        _ip("link", "add", machine.link, "type", "veth", "peer", "name", inside)
        _ip("link", "set", inside, "netns", machine.name)
        _ip("link", "set", machine.link, "master", self.bridge)
        _ip("link", "set", machine.link, "up")
        _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", inside)
        for device in (inside, "lo"):
            _ip("-n", machine.name, "link", "set", device, "up")
        return machine

    def remove(self) -> None:
        for machine in self.machines:
            for command in (("link", "del", machine.link), ("netns", "del", machine.name)):
                with contextlib.suppress(subprocess.CalledProcessError):
                    _ip(*command)
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", self.bridge)


@contextmanager
def a_network(machines: int) -> Iterator[Network]:
    """So many machines on a bridge for the time of a `with` block."""
    network = Network()
    try:
        _ip("link", "add", network.bridge, "type", "bridge")
        _ip("link", "set", network.bridge, "up")
        for _ in range(machines):
            network.add()
        yield network
    finally:
        network.remove()


def refusal() -> str | None:
    """Why no namespaces can be had here; None where they can."""
    try:
        with a_network(1):
            return None
    except FileNotFoundError:
        return "there is no `ip` (Debian: apt-get install iproute2)"
    except subprocess.CalledProcessError as error:
        return f"network namespaces cannot be made here: {error.stderr.strip()}"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
