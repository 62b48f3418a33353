"""What a run computes on: CPU or GPU, its precision, the processes that share the work, the memory they took."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import parse_flag_from_env


def on_gpu() -> bool:
    """Whether training runs on a CUDA GPU: there is one, and ACCELERATE_USE_CPU does not ask for the CPU."""
    return torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


def device_name() -> str:
    """What the run computes on, for instance 'cpu, 2 threads', 'Tesla T4', or '2 × Tesla T4' in two processes."""
    if on_gpu():
        name, there = torch.cuda.get_device_name(), torch.cuda.device_count()
        used = int(os.environ.get("WORLD_SIZE", 1))
        unused = f" (1 of {there}; `accelerate launch` uses all)" if used == 1 < there else ""
        return f"{used} × {name}" if used > 1 else f"{name}{unused}"
    if torch.backends.mps.is_available():
        return "Apple GPU (mps)"
    return f"cpu, {torch.get_num_threads()} threads"


def mixed_precision() -> str:
    """accelerate's name for the precision this device computes fast: bf16 from compute capability 8.0, else fp16.

    A T4 (7.5) says that it supports bf16 and emulates it, so the capability is asked, not the feature. Of several GPUs
    the oldest decides, since all processes must compute alike. float32 on a CPU.
    """
    if not on_gpu():
        return "no"
    oldest = min(torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count()))
    return "bf16" if oldest >= (8, 0) else "fp16"


def this_process() -> PartialState:
    """Which of the processes that `accelerate launch` started this is (or the only one), and its device.

    The others wait while the first one predicts or exports, which may take longer than NCCL's ten minutes.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(hours=4))


def make_accelerator() -> Accelerator:
    """accelerate for this process: each batch is split among the processes, and copied while the GPU computes."""
    this_process()  # before Accelerator, which would start the processes with a patience of its own
    loading = DataLoaderConfiguration(split_batches=True, even_batches=False, non_blocking=True)
    accelerator = Accelerator(mixed_precision=mixed_precision(), dataloader_config=loading)
    if accelerator.num_processes > 1:
        accelerator.print(
            f"{accelerator.num_processes} processes: an epoch leaves out the rows of its short last batch"
        )
    return accelerator


def reset_peak_memory() -> None:
    """Begins a new measurement of `peak_memory_bytes`; where the system cannot, the peak is the process's so far."""
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident set size


def peak_memory_bytes() -> int:
    """The largest memory since the reset: what torch allocated on the GPU, or this process's resident set on a CPU.

    The resident set includes Python and the libraries themselves (about 0.6 GB).
    """
    if on_gpu():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "linux":  # not getrusage's, which begins with the parent process's and cannot be reset
        return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])
    memory = psutil.Process().memory_info()
    return getattr(memory, "peak_wset", memory.rss)  # Windows knows the peak; elsewhere the present size has to do
