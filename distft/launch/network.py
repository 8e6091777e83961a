"""Which network interface gloo and NCCL use on each node: the one that holds the node's IP.

Without it, hosts whose names resolve to loopback or not at all fail to form a process group.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from distft.errors import ClusterError


def interface_of(address: str) -> str:
    """Return the name of the network interface that holds an IP address.

    Args:
        address: IPv4 or IPv6.

    Returns:
        Such as `eth0`.

    Raises:
        ClusterError: No interface of this machine holds it.
    """
    families = (socket.AF_INET, socket.AF_INET6)
    for name, entries in psutil.net_if_addrs().items():
        if any(e.family in families and e.address.split("%")[0] == address for e in entries):
            return str(name)
    raise ClusterError(
        f"No network interface of this node holds its Ray address {address}.",
        "Start Ray with --node-ip-address set to an address of the node.",
    )


def use_node_interface() -> None:
    """Set gloo's and NCCL's interface in this process, unless the user has."""
    name = interface_of(ray.util.get_node_ip_address())
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
