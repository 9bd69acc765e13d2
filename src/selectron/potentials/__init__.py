"""Potentials: energies, forces and more of a batch of structures, whatever computes them."""

from selectron.potentials.ase_potential import AsePotential
from selectron.potentials.base import Evaluation, Potential
from selectron.potentials.committee import Committee, CommitteeEvaluation
from selectron.potentials.load import FOUNDATION_MODELS, load_potential
from selectron.potentials.mace import MacePotential
from selectron.potentials.mlp import MLPPotential, PlanarScaling
from selectron.potentials.planar import PlanarPotential
from selectron.potentials.surfaces import (
    SURFACES,
    DoubleWell,
    GaussianMixture,
    Harmonic,
    Landscape,
    MuellerBrown,
    boltzmann_samples,
    landscape,
)
from selectron.potentials.threads import settle_threads
from selectron.potentials.torchsim_potential import TorchSimPotential

__all__ = [
    "FOUNDATION_MODELS",
    "SURFACES",
    "AsePotential",
    "Committee",
    "CommitteeEvaluation",
    "DoubleWell",
    "Evaluation",
    "GaussianMixture",
    "Harmonic",
    "Landscape",
    "MLPPotential",
    "MacePotential",
    "MuellerBrown",
    "PlanarPotential",
    "PlanarScaling",
    "Potential",
    "TorchSimPotential",
    "boltzmann_samples",
    "landscape",
    "load_potential",
    "settle_threads",
]
