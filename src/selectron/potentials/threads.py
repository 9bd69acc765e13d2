"""How many threads PyTorch uses on the CPU for a model."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch

from .base import Potential

SMALL = 300_000
"""Parameters below which one thread serves a model best: its operations are too short to be worth sharing."""


def settle_threads(potentials: Iterable[Potential]) -> None:
    """One thread for this process where all ``potentials`` are small and on the CPU, unless OMP_NUM_THREADS says how many.

    Without potentials, and with one whose parameters cannot be counted, all stays as it is.
    """
    modules = [getattr(potential, "model", None) for potential in potentials]
    if modules and "OMP_NUM_THREADS" not in os.environ and all(map(is_small, modules)):
        torch.set_num_threads(1)


def is_small(module: torch.nn.Module | None) -> bool:
    """Whether ``module`` is one of PyTorch with few parameters, on the CPU."""
    if not isinstance(module, torch.nn.Module):
        return False
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters) < SMALL and all(p.device.type == "cpu" for p in parameters)
