"""Backbone dihedrals are the right atoms with the right sign, and the map's numbers respect the torus."""

import numpy as np
import pytest
from ase import Atoms
from ase.io import read
from numpy.testing import assert_allclose, assert_array_equal

from selectron.errors import SelectronError
from selectron.report.ramachandran import (
    backbone_of_runs,
    dihedral,
    draw_ramachandran,
    find_backbone,
    frame_dihedrals,
    ramachandran_coverage,
    ramachandran_entropy,
)
from selectron.report.samples import samples_of


@pytest.fixture(scope="module")
def alanine(shared_data) -> Atoms:
    return read(shared_data / "alanine_dipeptide_vacuum.xyz")


def peptide(sequence: str) -> Atoms:
    """A peptide with its hydrogens, and the (C, N, Cα, C, N) of each inner residue by SMARTS in ``info``."""
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    molecule = chem.AddHs(chem.MolFromSequence(sequence))
    assert AllChem.EmbedMolecule(molecule, randomSeed=3) == 0
    atoms = Atoms([atom.GetSymbol() for atom in molecule.GetAtoms()], molecule.GetConformer().GetPositions())
    pattern = chem.MolFromSmarts("[CX3](=O)[NX3][CX4][CX3](=O)[NX3][CX4]")
    found = molecule.GetSubstructMatches(pattern, uniquify=False)
    atoms.info["expected"] = {(m[0], m[2], m[3], m[4], m[6]) for m in found}
    return atoms


def test_iupac_sign_on_known_geometry():
    # From b to c, along +z with x up, y lies to the right: clockwise, so +90°.
    corners = np.array([[1.0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1]])
    for end, expected in ([0, 1, 1], 90.0), ([0, -1, 1], -90.0), ([1, 0, 1], 0.0), ([-1, 0, 1], -180.0):
        corners[3] = end
        assert_allclose(dihedral(corners, [0, 1, 2, 3]), expected, atol=1e-12)


def test_dihedral_invariances_and_batches():
    rng = np.random.default_rng(0)
    positions = rng.normal(size=(7, 9, 3))
    indices = np.array([[0, 3, 5, 1], [8, 2, 4, 6]])
    angles = dihedral(positions, indices)
    assert angles.shape == (7, 2)
    for b in range(7):
        for r in range(2):
            assert_allclose(dihedral(positions[b], indices[r]), angles[b, r])
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    rotation *= np.sign(np.linalg.det(rotation))
    assert_allclose(dihedral(positions @ rotation.T + 5.0, indices), angles, atol=1e-9)
    assert_allclose(dihedral(positions, indices[:, ::-1]), angles, atol=1e-9)
    assert_allclose(dihedral(positions * [1, 1, -1], indices), -angles, atol=1e-9)


def test_dihedral_agrees_with_ase():
    rng = np.random.default_rng(1)
    for _ in range(20):
        atoms = Atoms("CNCC", rng.normal(size=(4, 3)))
        assert_allclose(dihedral(atoms.positions, [0, 1, 2, 3]) % 360, atoms.get_dihedral(0, 1, 2, 3), atol=1e-6)


def test_straight_line_has_no_dihedral():
    assert np.isnan(dihedral(np.array([[0.0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 2]]), [0, 1, 2, 3]))


def test_alanine_dipeptide_is_found_whatever_the_order_of_its_atoms(alanine):
    backbone = find_backbone(alanine)
    assert_array_equal(backbone.phi, [[0, 6, 7, 8]])
    assert_array_equal(backbone.psi, [[6, 7, 8, 16]])
    assert "".join(alanine.symbols[backbone.phi[0]]) == "CNCC"
    order = np.random.default_rng(2).permutation(len(alanine))
    shuffled = find_backbone(alanine[order])
    assert_array_equal(order[shuffled.phi], backbone.phi)
    assert_array_equal(order[shuffled.psi], backbone.psi)


@pytest.mark.parametrize("sequence", ["AGA", "GAVNQ", "KPFSD", "WHCY"])
def test_residues_agree_with_a_substructure_search(sequence):
    atoms = peptide(sequence)
    backbone = find_backbone(atoms)
    assert len(backbone) == len(sequence) - 2
    found = {(*phi.tolist(), int(psi[3])) for phi, psi in zip(backbone.phi, backbone.psi, strict=True)}
    assert found == atoms.info["expected"]
    # Along the chain: the N after a residue is the N of the next.
    assert_array_equal(backbone.psi[:-1, 3], backbone.psi[1:, 0])
    assert_array_equal(backbone.phi[:, 1:], backbone.psi[:, :3])


@pytest.mark.parametrize("smiles", ["O", "CCO", "CC(=O)NC", "NCC(=O)O", "O=C1CNC(=O)N1", "Cn1cnc2c1c(=O)n(C)c(=O)n2C"])
def test_what_is_no_peptide_is_refused(smiles):
    chem = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import AllChem

    molecule = chem.AddHs(chem.MolFromSmiles(smiles))
    AllChem.EmbedMolecule(molecule, randomSeed=0)
    atoms = Atoms([atom.GetSymbol() for atom in molecule.GetAtoms()], molecule.GetConformer().GetPositions())
    with pytest.raises(SelectronError, match="needs a peptide"):
        find_backbone(atoms)


def test_indices_of_the_first_frame_survive_a_broken_bond(alanine):
    broken = alanine.copy()
    side = [8, 9, 10, 16, 17, 18, 19, 20, 21]
    bond = alanine.positions[8] - alanine.positions[7]
    broken.positions[side] += 0.6 * bond
    with pytest.raises(SelectronError):
        find_backbone(broken)
    # The same atoms in a second run that starts broken: the first run's indices serve it.
    backbones = backbone_of_runs({"whole": [alanine, broken], "broken": [broken]})
    assert_array_equal(backbones["broken"].phi, backbones["whole"].phi)
    angles = frame_dihedrals([alanine, broken], backbones["whole"].phi)
    # Moving atoms along the Cα–C bond changes no dihedral about N–Cα.
    assert_allclose(angles[1], angles[0], atol=1e-9)


def test_dihedrals_across_a_periodic_boundary(alanine):
    backbone = find_backbone(alanine)
    indices = np.concatenate([backbone.phi, backbone.psi])
    cell = np.array([[16.0, 0, 0], [3.0, 15.0, 0], [0, 1.0, 17.0]])
    inside = alanine.copy()
    inside.set_cell(cell)
    inside.pbc = True
    inside.positions += [0.4, 8.0, -3.0] - inside.positions.mean(axis=0)
    inside.wrap()
    assert np.ptp(inside.positions, axis=0).max() > np.ptp(alanine.positions, axis=0).max() + 1
    assert_allclose(frame_dihedrals([inside], indices)[0], dihedral(alanine.positions, indices), atol=1e-6)
    assert_array_equal(find_backbone(inside).phi, backbone.phi)


def test_frames_without_the_atoms_are_refused(alanine):
    with pytest.raises(SelectronError, match="same molecule"):
        frame_dihedrals([alanine, Atoms("H2O", np.eye(3))], find_backbone(alanine).phi)


def test_coverage_counts_bins_of_the_torus():
    centres = np.arange(-175.0, 180.0, 10.0)
    phi, psi = np.meshgrid(centres, centres)
    assert ramachandran_coverage(phi, psi) == 1.0
    assert ramachandran_coverage(phi[:18], psi[:18]) == 0.5
    assert_allclose(ramachandran_coverage([5.0, 5.0, 6.0], [5.0, 4.0, 365.0]), 1 / 36**2)
    assert_allclose(ramachandran_coverage([-180.0, 180.0, np.nan], [-170.0, 190.0, 0.0]), 1 / 36**2)
    with pytest.raises(SelectronError, match="divide 360"):
        ramachandran_coverage(phi, psi, bin_degrees=7.0)


def test_entropy_does_not_see_the_seam():
    rng = np.random.default_rng(3)
    phi, psi = rng.normal(0, 25, 4000), rng.normal(0, 40, 4000)
    middle = ramachandran_entropy(phi, psi)
    assert_allclose(ramachandran_entropy(phi + 180, psi - 180), middle, rtol=1e-12)
    assert_allclose(ramachandran_entropy(phi + 173.7, psi - 178.1), middle, atol=2e-3)


def test_entropy_grows_with_the_spread():
    rng = np.random.default_rng(4)
    one = rng.normal(0, 20, (2, 20000))
    two = one + np.where(rng.random(20000) < 0.5, 120.0, 0.0)
    narrow, spread = ramachandran_entropy(*one), ramachandran_entropy(*two)
    # Two basins alike that do not overlap have ln 2 more entropy than one.
    assert_allclose((spread - narrow) * np.log(36**2), np.log(2), atol=0.02)
    centres = np.arange(-175.0, 180.0, 10.0)
    assert_allclose(ramachandran_entropy(*np.meshgrid(centres, centres)), 1.0)
    # Nearly a continuous Gaussian of variance 20² + 10² + 10²/12 (bins) in each angle.
    expected = np.log(2 * np.pi * np.e * (20**2 + 10**2 + 100 / 12)) - np.log(100)
    assert_allclose(narrow * np.log(36**2), expected, atol=0.02)
    assert np.isnan(ramachandran_entropy([], []))


def test_map_draws_residues_and_tells_their_numbers(tmp_path):
    rng = np.random.default_rng(5)
    runs = [samples_of(name, [Atoms("H")] * 50) for name in ("a", "b")]
    angles = [(rng.uniform(-180, 180, (50, 2)), rng.uniform(-180, 180, (50, 2))) for _ in runs]
    numbers = draw_ramachandran(runs, angles, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000
    for name, (phi, psi) in zip("ab", angles, strict=True):
        assert numbers[name]["coverage_by_residue"][1] == ramachandran_coverage(phi[:, 1], psi[:, 1])
        assert numbers[name]["coverage"] == ramachandran_coverage(phi, psi)
    with pytest.raises(SelectronError, match="a row a frame"):
        draw_ramachandran(runs, [(phi[:3], psi[:3])] * 2, tmp_path / "map.png")
