"""What the exported model gets right and wrong, as numbers for the cards: ``work/errors.json``."""

from __future__ import annotations

import importlib.metadata
import json
from collections import Counter

import ase.io
import numpy as np
from ase import Atoms, units
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from export import PACKAGE
from mace.calculators import MACECalculator
from molecules import Molecule, read_molecules
from reactive import SHARES
from thermal import WORK, relaxed_conformer

DYNAMICS_SEED, DYNAMICS_STEPS = 11, 10_000
PACKAGES = ("torch", "mace-torch", "e3nn", "tblite", "rdkit", "ase", "numpy")


def errors(structures: list[Atoms], calculator: MACECalculator) -> dict[str, float]:
    """Mean absolute and root mean square errors: energy in meV/atom, force components in meV/Å."""
    energy, forces = [], []
    for structure in structures:
        copy = structure.copy()
        copy.calc = calculator
        energy.append((copy.get_potential_energy() - structure.get_potential_energy()) / len(copy))
        forces.append((copy.get_forces() - structure.get_forces()).ravel())
    e, f = 1000 * np.array(energy), 1000 * np.concatenate(forces)
    return {
        "structures": len(structures),
        "energy_mae": float(np.abs(e).mean()),
        "energy_rmse": float(np.sqrt((e**2).mean())),
        "force_mae": float(np.abs(f).mean()),
        "force_rmse": float(np.sqrt((f**2).mean())),
    }


def ethanol_dynamics(ethanol: Molecule, calculator: MACECalculator) -> dict[str, float]:
    """10 ps of Langevin dynamics at 300 K: mean temperature after 1 ps, and the extremes of the bonds.

    Bonds are given as fractions of the sum of the two covalent radii.
    """
    structure = relaxed_conformer(ethanol, DYNAMICS_SEED)
    assert structure is not None
    structure.calc = calculator
    rng = np.random.default_rng(DYNAMICS_SEED)
    MaxwellBoltzmannDistribution(structure, temperature_K=300, rng=rng)
    # Holding the centre of mass would heat the molecule: see the data card.
    dynamics = Langevin(structure, 1.0 * units.fs, temperature_K=300, friction=0.01 / units.fs, rng=rng, fixcm=False)
    bonds = np.array(ethanol.bonds)
    radii = covalent_radii[structure.numbers][bonds].sum(1)
    temperatures, ratios = [], []
    for _ in range(DYNAMICS_STEPS // 10):
        dynamics.run(10)
        temperatures.append(structure.get_temperature())
        ends = structure.positions[bonds]
        ratios.append(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1) / radii)
    return {
        "mean_temperature_K": float(np.mean(temperatures[100:])),
        "shortest_bond": float(np.min(ratios)),
        "longest_bond": float(np.max(ratios)),
    }


def pool_facts(pool: list[Atoms], molecules: list[Molecule]) -> dict[str, float]:
    """How far the pool is from the molecules that it was made of."""
    by_smiles = {molecule.smiles: molecule for molecule in molecules}
    single = [structure for structure in pool if structure.info["smiles"] in by_smiles]
    changed = sum(not by_smiles[structure.info["smiles"]].keeps_its_bonds(structure) for structure in single)
    largest = [np.linalg.norm(structure.get_forces(), axis=1).max() for structure in pool]
    return {
        "single": len(single),
        "single_changed": changed,
        "two_molecules": len(pool) - len(single),
        "molecules": len({smiles for structure in pool for smiles in structure.info["smiles"].split(".")}),
        "mean_largest_force": float(np.mean(largest)),
        "largest_force": float(np.max(largest)),
        "atoms_least": min(map(len, pool)),
        "atoms_most": max(map(len, pool)),
    }


def main() -> None:
    """Write ``work/errors.json``."""
    calculator = MACECalculator(model_paths=str(PACKAGE / "embedded.model"), device="cpu", default_dtype="float32")
    molecules = read_molecules()
    pool = ase.io.read(PACKAGE / "pool.extxyz.gz", ":")
    sample = ase.io.read(PACKAGE / "train.extxyz.gz", ":")
    tests = ase.io.read(WORK / "thermal-test.xyz", ":")
    sets = {"training sample": sample, "held-out molecules": tests, "pool": pool}
    sets |= {kind: [s for s in pool if s.info["kind"] == kind] for kind in SHARES}
    facts = {
        "errors": {name: errors(structures, calculator) for name, structures in sets.items()},
        "dynamics": ethanol_dynamics(next(m for m in molecules if m.smiles == "CCO"), calculator),
        "pool": pool_facts(pool, molecules),
        "molecules": Counter(m.part for m in molecules),
        "frames": {p: len(ase.io.read(WORK / f"thermal-{p}.xyz", ":")) for p in ("train", "valid", "test")},
        "parameters": sum(p.numel() for p in calculator.models[0].parameters()),
        "bytes": {path.name: path.stat().st_size for path in PACKAGE.iterdir() if path.suffix in (".model", ".gz")},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    (WORK / "errors.json").write_text(json.dumps(facts, indent=1) + "\n")
    for name, row in facts["errors"].items():
        print(f"{name:20s} energy {row['energy_mae']:7.1f} meV/atom  forces {row['force_mae']:7.1f} meV/Å")


if __name__ == "__main__":
    main()
