"""A function of no arguments that a GPU repeats without hearing of each operation anew.

A small network's step is hundreds of operations that each take a GPU a few microseconds and the
processor longer to ask for. A CUDA graph asks once. With EVENHAND_EAGER=1 none is made.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import torch


class Repeated:
    """`action`, on a GPU captured as a graph when it is first called, elsewhere as it is.

    It must read and write tensors that stay the same, and wait for nothing. To be captured it is
    done once before, which may change nothing: `still` says how it is made to.

    Args:
        action: what is repeated.
        device: where it takes place.
        still: called before it is tried; what it returns is called afterwards.
    """

    def __init__(
        self,
        action: Callable[[], None],
        device: torch.device,
        still: Callable[[], Callable[[], None]],
    ) -> None:
        eager = bool(os.environ.get("EVENHAND_EAGER"))
        self._action, self._still = action, still
        self._cuda = device.type == "cuda" and not eager
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do it."""
        if not self._cuda:
            self._action()
            return
        if self._graph is None:
            self._graph = self._captured()
        self._graph.replay()

    def _captured(self) -> torch.cuda.CUDAGraph:
        restore = self._still()
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            self._action()
        torch.cuda.current_stream().wait_stream(beside)
        restore()
        graph = torch.cuda.CUDAGraph()
        # On a stream of its own: a product's scratch memory belongs to the stream that it was
        # captured on, and graphs that run side by side must not have the same.
        with torch.cuda.graph(graph, stream=beside):
            self._action()
        return graph
