"""How many slots a cluster's nodes hold: arithmetic on what Ray says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sweeper.errors import UserError
from sweeper.gang import most_gangs
from sweeper.spec import Packing, Resources

ACCELERATOR = "accelerator_type:"  # before a type, as a resource of the nodes that have it

Node = Mapping[str, Any]  # one of `ray.nodes()`


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What one slot asks for, by Ray's names; that is on each of `span` nodes.

    They have to be of a type where an `accelerator` is named. `who` works in the slot, and
    `advice` is what to lower where there is no room for one.
    """

    who: str
    amounts: Mapping[str, int]
    advice: str
    span: int = 1
    accelerator: str | None = None

    @classmethod
    def of_run(cls, resources: Resources) -> Demand:
        """What a run's slot asks for."""
        nodes = resources.nodes_per_run
        amounts = {"GPU": resources.gpus_per_run // nodes, "CPU": resources.cpus_per_run // nodes}
        advice = "resources.gpus_per_run or resources.cpus_per_run"
        return cls(
            who="a run",
            amounts={name: amount for name, amount in amounts.items() if amount > 0},
            advice=advice if nodes == 1 else f"{advice} or resources.nodes_per_run",
            span=nodes,
            accelerator=resources.accelerator,
        )

    @classmethod
    def of_packing(cls, packing: Packing) -> Demand:
        """What a packing slot asks for."""
        return cls(who="packing", amounts={"CPU": packing.cpus}, advice="packing.cpus")

    def room(
        self, nodes: Sequence[Node], quarantined: Mapping[str, str] = MappingProxyType({})
    ) -> int:
        """How many slots these nodes hold at once, were nothing else on them.

        Nodes in quarantine, by their names with their hosts', do not count. Raises UserError when
        there is room for none.
        """
        fits = [self._fit(node) for node in nodes if node["NodeID"] not in quarantined]
        count = sum(fits) if self.span == 1 else most_gangs(fits, self.span)
        if count > 0:
            return count
        if not nodes:
            raise UserError("the cluster has lost its nodes; run the sweep again to go on")
        if not any(self._fit(node) for node in nodes if node["NodeID"] in quarantined):
            raise UserError(self._refusal(nodes))
        hosts = ", ".join(quarantined.values())
        raise UserError(
            f"{self.who} could only be on nodes that take no more runs, since those before have "
            f"failed there: {hosts}; bring another node, or run the sweep again to try them anew"
        )

    def _fit(self, node: Node) -> int:
        """How many members of slots a node holds."""
        if self.accelerator is not None and self.accelerator not in accelerators(node):
            return 0
        has = node["Resources"]
        return min(int(has.get(name, 0) // amount) for name, amount in self.amounts.items())

    def _refusal(self, nodes: Sequence[Node]) -> str:
        """Why there is no room for a slot: what it asks for, and what there is."""
        wants = ", ".join(f"{amount} {name}" for name, amount in self.amounts.items())
        where = "on one node" if self.span == 1 else f"on each of {self.span} nodes"
        if self.accelerator is not None:
            wants += f" of type {self.accelerator}"
        has = []
        for node in nodes:
            there = ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in self.amounts)
            if self.accelerator is not None:
                there += f" of type {' or '.join(accelerators(node)) or 'unknown'}"
            has.append(f"{node['NodeManagerHostname']} has {there}")
        return (
            f"{self.who} asks for {wants} {where}; {'; '.join(has)}. Lower {self.advice} in "
            "the spec, or give --address of a larger cluster"
        )


def accelerators(node: Node) -> list[str]:
    """The types of accelerators that a node has."""
    names = [name for name in node["Resources"] if name.startswith(ACCELERATOR)]
    return sorted(name.removeprefix(ACCELERATOR) for name in names)
