"""CUDA graphs: what a GPU is told is recorded, and told again in one call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class CudaGraphs:
    """A `Recorder` whose graphs share a memory pool: no two are replayed at once, and none reads what another left but
    tensors that somebody holds."""

    def __init__(self, device: torch.device) -> None:
        # Autograd runs a backward operation on the stream that its forward ran on: all of it on the recorded one.
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool: Any = None

    def rehearse(self, work: Callable[[], None]) -> None:
        """See `Recorder`."""
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        generator = torch.cuda.default_generators[self._stream.device_index]
        before = generator.clone_state()
        try:
            # Threads that pin memory or write checkpoints may go on meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except BaseException:
            # A capture that fails leaves its stream the current one, and the generator as if it were still captured.
            torch.cuda.set_stream(current)
            generator.graphsafe_set_state(before)
            raise
        self._pool = graph.pool()
        return graph.replay
