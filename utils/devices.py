"""Which device computes, and how it is called in records."""

from __future__ import annotations

import os
from typing import Any

import torch

from utils.errors import InputError


def choose_device(name: str, *, one_each: bool = False) -> torch.device:
    """Resolve `auto` (GPU if there is one), `cpu`, `cuda`, `cuda:1` or `mps`.

    Args:
        one_each: several launched processes may each have a device of their own (`LOCAL_RANK`).

    Raises:
        InputError: this machine lacks the device, or several processes were launched.
    """
    is_one_of_several = int(os.environ.get("WORLD_SIZE") or 1) > 1
    if is_one_of_several and not one_each:
        raise InputError(f"{os.environ['WORLD_SIZE']} processes were launched; this stage runs in one, use python -m")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if available[kind])
    if is_one_of_several and name.startswith("cuda:"):
        raise InputError(f"device: {name} is one GPU for {os.environ['WORLD_SIZE']} processes; set device: cuda")
    if is_one_of_several and name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK') or 0}"
    device = torch.device(name)
    if not available[device.type] or (device.index or 0) >= max(1, torch.cuda.device_count()):
        raise InputError(f"device: {name!r} is not available on this machine; set device: auto")
    return device


def device_name(device: torch.device) -> str:
    """The device's own name, or `cpu` with its thread count, which speed and last digits depend on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)" if device.type == "cpu" else device.type


def describe_device(device: torch.device) -> dict[str, Any]:
    """For `environment.json`: name, CUDA and cuDNN versions, TF32."""
    described: dict[str, Any] = {"name": device_name(device)}
    if device.type == "cuda":
        described |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32": torch.backends.cudnn.allow_tf32,
        }
    return described


def describe_memory(device: torch.device) -> str:
    """For a log line: the GPU's peak memory so far; nothing on other devices."""
    if device.type != "cuda":
        return ""
    return f", {torch.cuda.max_memory_allocated(device) / 1024**3:.1f} GiB of GPU memory at most"
