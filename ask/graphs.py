"""CUDA graphs: work of many small kernels, launched as one."""

from collections.abc import Callable

import torch


def cuda_graph(run: Callable[[], None]) -> Callable[[], None]:
    """Replay of a CUDA graph of what ``run`` launches; it runs three times before, on a stream of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
