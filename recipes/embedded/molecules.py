"""From the list of SMILES to three-dimensional molecules and their split into parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from rdkit import Chem
from rdkit.Chem import AllChem

SMILES_FILE = Path(__file__).with_name("smiles.txt")
SPLIT_SEED = 20
TEST_FRACTION, VALID_FRACTION = 0.10, 0.05
ALWAYS_TRAINED = {"CCO"}  # the stability test runs ethanol


@dataclass(frozen=True)
class Molecule:
    """A molecule of the list: SMILES, place in the list, bonded pairs of atoms, and its part of the data."""

    smiles: str
    index: int
    bonds: tuple[tuple[int, int], ...]
    part: str

    def conformer(self, seed: int) -> Atoms | None:
        """One ETKDG conformer (Å), not relaxed; None where RDKit finds none. The order of atoms matches ``bonds``."""
        molecule = _with_hydrogens(self.smiles)
        if AllChem.EmbedMolecule(molecule, randomSeed=seed) != 0:
            return None
        symbols = [atom.GetSymbol() for atom in molecule.GetAtoms()]
        structure = Atoms(symbols, positions=molecule.GetConformer().GetPositions())
        structure.info["smiles"] = self.smiles
        return structure

    def keeps_its_bonds(self, structure: Atoms) -> bool:
        """Whether bonded pairs are within 0.65 to 1.35, and all others beyond 1.2, sums of covalent radii."""
        ratio = distance_ratios(structure)
        bonded = np.zeros(ratio.shape, dtype=bool)
        for i, j in self.bonds:
            bonded[i, j] = bonded[j, i] = True
        np.fill_diagonal(ratio, np.inf)
        inside = ratio[bonded]
        return bool(((inside > 0.65) & (inside < 1.35)).all() and (ratio[~bonded] > 1.2).all())


def distance_ratios(structure: Atoms) -> np.ndarray:
    """(N, N) interatomic distances over the sums of covalent radii."""
    radii = covalent_radii[structure.numbers]
    return structure.get_all_distances() / (radii[:, None] + radii[None, :])


def read_molecules() -> list[Molecule]:
    """The molecules of ``smiles.txt``, each assigned whole to "train", "valid" or "test"."""
    lines = [line.strip() for line in SMILES_FILE.read_text().splitlines()]
    smiles = [line for line in lines if line and not line.startswith("#")]
    free = [i for i, s in enumerate(smiles) if s not in ALWAYS_TRAINED]
    order = np.random.default_rng(SPLIT_SEED).permutation(free)
    n_test, n_valid = round(TEST_FRACTION * len(smiles)), round(VALID_FRACTION * len(smiles))
    parts = dict.fromkeys(order[:n_test].tolist(), "test") | dict.fromkeys(
        order[n_test : n_test + n_valid].tolist(), "valid"
    )
    return [Molecule(s, i, _bonds(s), parts.get(i, "train")) for i, s in enumerate(smiles)]


def _with_hydrogens(smiles: str) -> Chem.Mol:
    return Chem.AddHs(Chem.MolFromSmiles(smiles))


def _bonds(smiles: str) -> tuple[tuple[int, int], ...]:
    return tuple((bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in _with_hydrogens(smiles).GetBonds())
