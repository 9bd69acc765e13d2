"""Potentials: energies, forces and more of a batch of structures, whatever computes them."""

from selectron.potentials.ase_potential import AsePotential
from selectron.potentials.base import Evaluation, Potential
from selectron.potentials.committee import Committee, CommitteeEvaluation
from selectron.potentials.load import FOUNDATION_MODELS, load_potential
from selectron.potentials.mace import MacePotential
from selectron.potentials.torchsim_potential import TorchSimPotential

__all__ = [
    "FOUNDATION_MODELS",
    "AsePotential",
    "Committee",
    "CommitteeEvaluation",
    "Evaluation",
    "MacePotential",
    "Potential",
    "TorchSimPotential",
    "load_potential",
]
