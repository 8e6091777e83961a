"""Which network interface gloo and NCCL use on each node: the one that holds the node's IP.

Without it, hosts whose names resolve to loopback or not at all fail to form a process group.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from distft.errors import ClusterError
from distft.machine import interface_of


def use_node_interface() -> None:
    """Set gloo's and NCCL's interface in this process, unless the user has.

    Raises:
        ClusterError: No interface of this machine holds its address.
    """
    address = ray.util.get_node_ip_address()
    name = interface_of(address)
    if name is None:
        raise ClusterError(
            f"No network interface of this node holds its Ray address {address}.",
            "Start Ray with --node-ip-address set to an address of the node.",
        )
    for variable in ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        os.environ.setdefault(variable, name)


class _NodeTorchBackend(_TorchBackend):  # type: ignore[misc]  # Ray ships no types
    def on_start(self, worker_group: object, backend_config: TorchConfig) -> None:
        worker_group.execute(use_node_interface)  # type: ignore[attr-defined]  # Ray's own group
        super().on_start(worker_group, backend_config)


@dataclass
class NodeTorchConfig(TorchConfig):  # type: ignore[misc]  # Ray ships no types
    """Ray's TorchConfig that sets each node's interface before the process group forms."""

    @property
    def backend_cls(self) -> type[_NodeTorchBackend]:
        """The backend that does it."""
        return _NodeTorchBackend
