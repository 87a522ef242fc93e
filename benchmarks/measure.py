"""What the benchmarks share: interleaved timing, peak memory, and a description of the machine."""

import ctypes
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm.auto import tqdm

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let this process keep freed tensors' memory for the next ones.

    By default glibc gives it back to the system and takes it anew, with a page fault for every 4 KiB. Other C libraries
    are left as they are.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def synchronize(device: str) -> None:
    """Wait for the device, so that a clock sees its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def interleave(
    candidates: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: str,
    description: str,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time candidates in turns, so that whatever else the machine does meets all of them alike.

    Args:
        candidates: Functions to time, by name, in the order of a round.
        rounds: Number of times that each is timed.
        device: Device that does the work.
        description: Description of the progress bar.
        warmup: Number of rounds before, whose times are not kept: allocation, compilation, autotuning.
        clock: What to time by.

    Returns:
        Seconds of every timed call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    with tqdm(total=(warmup + rounds) * len(candidates), desc=description) as progress:
        for number in range(warmup + rounds):
            for name, function in candidates.items():
                progress.set_postfix_str(name)
                synchronize(device)
                start = clock()
                function()
                synchronize(device)
                if number >= warmup:
                    seconds[name].append(clock() - start)
                progress.update()
    return seconds


def summarize(seconds: list[float]) -> dict[str, float]:
    """Median and range of times."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def resident_memory(field: str = "VmRSS") -> float:
    """Memory of this process in MiB now, or at its highest (`VmHWM`); from Linux's /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"`field`: /proc/self/status has no {field}.")


def describe_machine(device: str) -> dict[str, str | int]:
    """Hardware and versions of libraries."""
    if torch.device(device).type == "cuda":
        hardware = torch.cuda.get_device_name()
    else:
        models = [
            line.split(":")[1].strip()
            for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else [])
            if line.startswith("model name")
        ]
        hardware = models[0] if models else platform.processor()
    return {
        "hardware": hardware,
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16 instructions": str(torch.ops.mkldnn._is_mkldnn_bf16_supported()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
