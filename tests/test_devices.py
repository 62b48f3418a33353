"""What a run computes on: precision by compute capability, the device's name, the peak of memory."""

import subprocess
import sys

import pytest
import torch

from helpers.batches import device_name, mixed_precision
from helpers.runs import ROOT

T4, A100, H100 = (7, 5), (8, 0), (9, 0)


@pytest.fixture
def has_gpus(monkeypatch):
    """Makes torch report GPUs of these compute capabilities; none is a CPU."""

    def fake(*capabilities: tuple[int, int]) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: capabilities[device])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=0: "A GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # as a T4 says
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return fake


@pytest.mark.parametrize(
    ("gpus", "precision"),
    [((), "no"), ((T4,), "fp16"), ((A100,), "bf16"), ((H100,), "bf16"), ((T4, T4), "fp16"), ((A100, T4), "fp16")],
    ids=["CPU", "T4", "A100", "H100", "two T4", "A100 and T4"],
)
def test_bf16_only_where_every_gpu_has_compute_capability_8(has_gpus, gpus, precision):
    has_gpus(*gpus)
    assert mixed_precision() == precision


def test_who_asks_for_the_cpu_gets_it_in_float32_on_a_machine_with_a_gpu(has_gpus, monkeypatch):
    has_gpus((8, 0))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert mixed_precision() == "no"
    assert device_name().startswith("cpu")


@pytest.mark.parametrize(
    ("gpus", "processes", "name"),
    [
        ((), 1, f"cpu, {torch.get_num_threads()} threads"),
        ((T4,), 1, "A GPU"),
        ((T4, T4), 1, "A GPU (1 of 2; `accelerate launch` uses all)"),
        ((T4, T4), 2, "2 × A GPU"),
    ],
    ids=["CPU", "one GPU", "two GPUs, one process", "two GPUs, two processes"],
)
def test_the_device_is_named_as_it_is_used(has_gpus, monkeypatch, gpus, processes, name):
    has_gpus(*gpus)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert device_name() == name


def test_an_apple_gpu_is_named(has_gpus, monkeypatch):
    has_gpus()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_name() == "Apple GPU (mps)"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system's peak cannot be reset")
def test_the_peak_of_memory_is_that_since_the_reset():
    """200 MB that come and go before the reset count for nothing, 100 MB after it do."""
    code = """
import torch
from helpers.batches import peak_memory_bytes, reset_peak_memory
torch.ones(50_000_000)
before = peak_memory_bytes()
reset_peak_memory()
after = peak_memory_bytes()
torch.ones(25_000_000)
print(before - after > 150e6, 80e6 < peak_memory_bytes() - after < 120e6)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
