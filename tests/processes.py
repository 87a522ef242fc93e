"""Functions in several processes that meet over gloo."""

import socket
from collections.abc import Callable
from typing import Any

import torch
from torch import distributed, multiprocessing


def _work(rank: int, world_size: int, port: int, function: Callable, arguments: tuple, results: Any) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    results[rank] = function(rank, *arguments)
    distributed.destroy_process_group()


def run_processes(world_size: int, function: Callable, *arguments: Any) -> list[Any]:
    """What `function(rank, *arguments)` gives on each rank; it must be importable, and give what can be pickled."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.Manager() as manager:
        results = manager.dict()
        multiprocessing.spawn(_work, (world_size, port, function, arguments, results), nprocs=world_size)
        return [results[rank] for rank in range(world_size)]
