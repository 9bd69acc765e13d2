"""Noise as a pure function of seed and step, so that states hold no generator and every restart is exact."""

from __future__ import annotations

import torch
from torch import Tensor

_MASK = (1 << 63) - 1


def mixed(seed: int, counter: int, stream: int = 0) -> int:
    """A 63-bit seed from three integers (the finaliser of SplitMix64, Steele et al. 2014, doi:10.1145/2660193.2660195)."""
    value = (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + stream * 0x94D049BB133111EB) & ((1 << 64) - 1)
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return (value ^ (value >> 31)) & _MASK


def normal(seed: int, counter: int, shape: tuple[int, ...], device: torch.device, stream: int = 0) -> Tensor:
    """Standard normal float64 numbers of ``shape``; one (seed, counter, stream) gives the same on the same kind of device.

    Samplers use the number of the step as counter. So two samplers with one seed feel the same Brownian path, and a
    trajectory that is continued from a checkpoint goes on bit for bit.
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(mixed(seed, counter, stream))
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float64)
