"""What a run takes of its machine."""

from __future__ import annotations

import resource
import sys

import psutil
import torch

_MB = 1 << 20


def system_metrics() -> dict[str, float]:
    """Return the present load, named as MLflow names system metrics; memory in megabytes of 2**20 bytes.

    The processor's share is since the last call in this process, 0 at the first.
    """
    process = psutil.Process()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": psutil.virtual_memory().used / _MB,
        "process_memory_usage_megabytes": process.memory_info().rss / _MB,
    }
    if torch.cuda.is_available():
        values["gpu_0_memory_usage_megabytes"] = torch.cuda.memory_allocated() / _MB
    return values


def free_memory() -> int:
    """Return the bytes that a new process could take."""
    return int(psutil.virtual_memory().available)


def compute_device() -> tuple[torch.device, str]:
    """Return where a run computes, and what that is called."""
    if torch.cuda.is_available():
        return torch.device("cuda"), torch.cuda.get_device_name()
    return torch.device("cpu"), f"{torch.get_num_threads()} threads"


def peak_memory_mb() -> float:
    """Return the most memory so far: of the device since its last reset, else of the process; 2**20 bytes."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / _MB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MB if sys.platform == "darwin" else peak / 1024
