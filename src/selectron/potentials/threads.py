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

    A potential that is no PyTorch module counts as small.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return
    modules = [getattr(potential, "model", None) for potential in potentials]
    if all(module is None or is_small(module) for module in modules):
        torch.set_num_threads(1)


def is_small(module: torch.nn.Module) -> bool:
    """Whether ``module`` has few parameters and they are on the CPU."""
    if not isinstance(module, torch.nn.Module):
        return True
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters) < SMALL and all(p.device.type == "cpu" for p in parameters)
