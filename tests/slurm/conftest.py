"""One cluster for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.slurm.cluster import Cluster, ClusterFailed, missing, running_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes on this machine."""
    if (reason := missing()) is not None:
        pytest.skip(reason)
    try:
        context = running_cluster()
        started = context.__enter__()
    except ClusterFailed as failure:
        pytest.skip(str(failure))
    try:
        yield started
    finally:
        context.__exit__(None, None, None)
