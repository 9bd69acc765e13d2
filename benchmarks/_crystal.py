"""Copper in effective-medium theory, and a small MACE that knows it only near its equilibrium."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.neighborlist import neighbor_list
from mace import modules

from selectron.potentials.mace_torch import o3
from selectron.structures import write_extxyz

CUTOFF_A = 4.0


def crystal() -> Atoms:
    """32 atoms of fcc copper at the lattice constant of effective-medium theory, periodic in all directions."""
    return bulk("Cu", "fcc", a=3.59, cubic=True) * (2, 2, 2)


def labelled(atoms: Atoms) -> Atoms:
    """``atoms`` with energy, forces and stress of effective-medium theory."""
    atoms = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    atoms.calc = EMT()
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    return atoms


def dynamics(start: Atoms, count: int, *, temperature_K: float, seed: int) -> list[Atoms]:
    """``count`` labelled frames, 100 fs apart, of Langevin dynamics after 500 fs."""
    random = np.random.default_rng(seed)
    atoms = start.copy()
    atoms.calc = EMT()
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature_K, rng=random)
    run = Langevin(atoms, 5 * units.fs, temperature_K=temperature_K, friction=0.02 / units.fs, rng=random)
    run.run(100)
    frames = []
    for _ in range(count):
        run.run(20)
        frames.append(labelled(atoms))
    return frames


def strained(count: int, *, seed: int) -> list[Atoms]:
    """``count`` labelled crystals, strained by up to 5 % in each of the six components, atoms moved by 0.1 Å."""
    random = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        atoms = crystal()
        strain = random.uniform(-0.05, 0.05, (3, 3))
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += random.normal(0, 0.1, atoms.positions.shape)
        frames.append(labelled(atoms))
    return frames


def write_inputs(folder: Path, *, train: int, test: int, seed: int = 0) -> None:
    """crystal.extxyz, train.extxyz (300 K), validation.extxyz (900 K) and test.extxyz.

    The last has ``test`` structures of each kind: 1200 K, a vacancy at 900 K, strained cells.
    """
    write_extxyz(folder / "crystal.extxyz", [crystal()])
    write_extxyz(folder / "train.extxyz", dynamics(crystal(), train, temperature_K=300, seed=seed))
    write_extxyz(folder / "validation.extxyz", dynamics(crystal(), test // 2, temperature_K=900, seed=seed + 4))
    vacancy = crystal()
    del vacancy[0]
    kinds = {
        "1200 K": dynamics(crystal(), test, temperature_K=1200, seed=seed + 1),
        "vacancy": dynamics(vacancy, test, temperature_K=900, seed=seed + 2),
        "strained": strained(test, seed=seed + 3),
    }
    for kind, frames in kinds.items():
        for atoms in frames:
            atoms.info["kind"] = kind
    write_extxyz(folder / "test.extxyz", [atoms for frames in kinds.values() for atoms in frames])


def write_random_mace(path: Path, known: list[Atoms], *, channels: int, seed: int = 0) -> None:
    """A randomly initialised float32 MACE for copper, with the mean energy, force scale and neighbours of ``known``."""
    forces = np.concatenate([atoms.get_forces() for atoms in known])
    neighbours = [len(neighbor_list("i", atoms, CUTOFF_A)) / len(atoms) for atoms in known]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = modules.ScaleShiftMACE(
            atomic_inter_scale=float(np.sqrt(np.mean(forces**2))),
            atomic_inter_shift=0.0,
            r_max=CUTOFF_A,
            num_bessel=6,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
            num_interactions=2,
            num_elements=1,
            hidden_irreps=o3.Irreps(f"{channels}x0e"),
            MLP_irreps=o3.Irreps("8x0e"),
            atomic_energies=np.array([np.mean([atoms.get_potential_energy() / len(atoms) for atoms in known])]),
            avg_num_neighbors=float(np.mean(neighbours)),
            atomic_numbers=[29],
            correlation=2,
            gate=torch.nn.functional.silu,
            radial_MLP=[16, 16],
        )
    torch.save(model.to(torch.float32), path)
