"""The setting that the studies on the Müller–Brown surface share; constants that the paper's text lost are chosen here."""

from __future__ import annotations

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from selectron.potentials.surfaces import Bounds, MuellerBrown
from selectron.sampling import Geometry

SURFACE = MuellerBrown()
BOUNDS: Bounds = ((-1.8, 1.4), (-0.7, 2.3))
"""Beyond, the Boltzmann density at kT = 20 is below 1e-6 of its peak."""
MINOR_BASIN = (0.623, 0.028)
"""Where everything starts: the second deepest minimum, 38.5 above the deepest and 67.5 below the saddle before it."""
KT_EV = 20.0
STEP_SIZE = 2e-4
PARTICLES = 32

CHOSEN = {
    "kT": f"{KT_EV}: lost; barriers are then 1.8 and 3.4 kT from the start, so that Langevin dynamics leaves, but slowly",
    "step size": f"{STEP_SIZE}: lost; ε times the largest curvature in the basins (about 3000) stays below 1",
    "amplitude h": "1: lost; then α = k(r, r)",
    "gradient scale α": "1: the text has 'we generally set α = 1' with the number lost; M = 1 is then Langevin dynamics",
    "form": "sum over particles; see docs/samplers/skmd.md",
}

ANYWHERE = Geometry(min_distance_A=0.0, max_force_eV_A=1e7, max_energy_rise_eV=1e6, max_step_A=float("inf"))
"""Limits on the geometry that a point in the plane never crosses unless it is lost."""


def points_as_structures(points: Tensor | np.ndarray) -> list[Atoms]:
    """(n, 2) points as structures of one atom."""
    return [Atoms("X", positions=[[float(x), float(y), 0.0]]) for x, y in np.asarray(points)]


def clump(trials: int, particles: int, width: float, seed: int) -> Tensor:
    """(trials, particles, 2) points scattered around the minor basin's minimum with standard deviation ``width``."""
    generator = torch.Generator().manual_seed(seed)
    scatter = torch.randn(trials, particles, 2, generator=generator, dtype=torch.float64)
    return torch.tensor(MINOR_BASIN, dtype=torch.float64) + width * scatter
