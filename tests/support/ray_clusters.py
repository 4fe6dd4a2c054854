"""Real Ray clusters on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def two_nodes(processors: int) -> Iterator[str]:
    """The address of a cluster of two nodes with some processors each, which listens on this host alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        utils = pytest.importorskip("ray.cluster_utils", reason="needs the extra ray")
        head = {"num_cpus": processors, "include_dashboard": False}
        started = utils.Cluster(initialize_head=True, head_node_args=head)
        started.add_node(num_cpus=processors)
        yield started.address
        started.shutdown()
