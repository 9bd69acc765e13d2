"""What is let through and what is not."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule
from ase.neighborlist import neighbor_list

from selectron.structures import (
    Checks,
    Pool,
    Quarantine,
    Source,
    UnreadableFrame,
    read_quarantine,
    usable_chunks,
    write_extxyz,
)
from selectron.structures.checks import closest_pair


@pytest.mark.parametrize("name", ["t1x32.xyz", "horm100.xyz", "oc22_32.xyz", "rgd1_10rxn_geom.xyz", "ani1x_1000.xyz"])
def test_real_structures_pass(shared_data, name):
    checks = Checks()
    with Pool.open([shared_data / name]) as pool:
        for chunk in pool.chunks(50):
            for _, atoms in chunk:
                assert not isinstance(atoms, UnreadableFrame)
                assert checks.check(atoms) is None


def test_sound_structures_of_every_periodicity_pass():
    left_handed = bulk("Cu", cubic=True)
    left_handed.cell[0] *= -1
    for atoms in (
        molecule("H2"),
        molecule("C60"),
        bulk("Cu"),
        fcc111("Cu", (1, 1, 3), vacuum=5),
        graphene(),
        left_handed,
    ):
        assert Checks(elements=frozenset({1, 6, 29})).check(atoms) is None
    wire = Atoms("Cu", cell=[0, 0, 2.5], pbc=[False, False, True])
    assert Checks().check(wire) is None


def test_elements_are_named():
    checks = Checks(elements=frozenset({1, 6, 7, 8}))
    assert checks.check(molecule("CH3OH")) is None
    assert "Na, Cl" in checks.check(bulk("NaCl", "rocksalt", a=5.6))
    assert "number 0" in Checks().check(Atoms("XH", positions=[[0, 0, 0], [0, 0, 1]]))


def test_counts():
    assert "no atoms" in Checks().check(Atoms())
    assert "limit of 5" in Checks(max_atoms=5).check(molecule("CH3OH"))
    assert Checks(max_atoms=6).check(molecule("CH3OH")) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_finite(value):
    atoms = fcc111("Cu", (1, 1, 3), vacuum=5)
    atoms.positions[2, 1] = value
    assert "atom 2" in Checks().check(atoms)
    atoms = bulk("Cu")
    atoms.cell[0, 0] = value
    assert "cell is not finite" in Checks().check(atoms)


def test_unusable_cells():
    atoms = molecule("H2O")
    atoms.pbc = [True, False, False]
    assert "along a" in Checks().check(atoms)
    atoms.cell = [5, 0, 0]
    assert Checks().check(atoms) is None
    atoms.pbc = True
    assert "along b" in Checks().check(atoms)
    atoms.cell = [[5, 0, 0], [0, 5, 0], [5, 5, 1e-4]]
    assert "flat" in Checks().check(atoms)
    atoms.cell = [[5, 0, 0], [0, 5, 0], [0, 5, 1e-6]]
    atoms.pbc = [True, True, False]
    assert Checks().check(atoms) is None
    atoms.pbc = [False, True, True]
    assert "an area" in Checks().check(atoms)


def test_overlap_names_atoms_and_distance():
    atoms = molecule("CH3OH")
    atoms.positions[4] = atoms.positions[0] + [0, 0, 0.3]
    reason = Checks().check(atoms)
    assert "C0 and H4" in reason
    assert "0.300 Å" in reason
    assert Checks(min_distance_A=0.29).check(atoms) is None
    atoms.positions[4] = atoms.positions[0]
    assert "0.000 Å" in Checks().check(atoms)
    assert Checks(min_distance_A=0).check(atoms) is None
    with pytest.raises(ValueError, match="min_distance_A"):
        Checks(min_distance_A=np.nan)


def test_overlap_across_the_boundary_counts_only_where_it_is_periodic():
    atoms = Atoms("CuO", positions=[[0.1, 5, 5], [9.9, 5, 5]], cell=[10, 10, 10], pbc=True)
    assert "0.200 Å" in Checks().check(atoms)
    atoms.pbc = [True, False, False]
    assert "0.200 Å" in Checks().check(atoms)
    atoms.pbc = [False, True, True]
    assert Checks().check(atoms) is None
    atoms.positions[1] += [700.0, 0, 0]  # far outside the cell along the free direction
    assert Checks().check(atoms) is None
    atoms.pbc = True
    atoms.positions[1] += [10.0, -30, 0]
    assert "0.200 Å" in Checks().check(atoms)


def test_own_image():
    thin = Atoms("H", cell=[0.3, 5, 5], pbc=True)
    assert "H0 and its own periodic image are 0.300 Å apart" in Checks().check(thin)


@pytest.mark.parametrize("cutoff_A", [0.7, 1.5])
def test_closest_pair_agrees_with_ase(cutoff_A):
    rng = np.random.default_rng(7)
    found = 0
    for _ in range(300):
        count = int(rng.integers(2, 12))
        cell = np.diag(rng.uniform(2, 6, 3)) + rng.uniform(-1.5, 1.5, (3, 3))
        atoms = Atoms(f"H{count}", rng.uniform(-9, 9, (count, 3)), cell=cell, pbc=rng.random(3) < 0.6)
        if atoms.pbc.any() and abs(np.linalg.det(cell)) < 1:
            continue
        distances = neighbor_list("d", atoms, cutoff_A)
        closest = closest_pair(atoms, cutoff_A)
        assert (closest is None) == (len(distances) == 0)
        if closest is not None:
            found += 1
            i, j, distance = closest
            assert distance == pytest.approx(distances.min(), abs=1e-12)
            if i != j and not (atoms.cell.lengths()[atoms.pbc] < cutoff_A).any():
                assert distance == pytest.approx(atoms.get_distance(i, j, mic=bool(atoms.pbc.any())), abs=1e-9)
    assert found > 30


def test_large_molecule_takes_the_tree():
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(8.0)] * 3), axis=-1).reshape(-1, 3)
    atoms = Atoms("H512", grid + rng.uniform(-0.1, 0.1, grid.shape))
    assert Checks().check(atoms) is None
    atoms.positions[500] = atoms.positions[17] + 0.1
    assert "H17 and H500" in Checks().check(atoms)


def test_bad_structures_are_on_record_and_the_rest_goes_on(tmp_path):
    frames = [molecule("H2O") for _ in range(9)]
    frames[1].numbers[0] = 79
    frames[6].positions[1] = frames[6].positions[0]
    frames[8].positions[0, 0] = np.nan
    write_extxyz(tmp_path / "a.xyz", frames[:4])
    write_extxyz(tmp_path / "b.xyz", frames[4:])
    text = (tmp_path / "a.xyz").read_text()
    (tmp_path / "a.xyz").write_text(text[: text.rindex("H ")] + "H 0.0 zero 0.0 \n")
    pool = Pool.open([tmp_path / "a.xyz", tmp_path / "b.xyz"])
    with Quarantine(tmp_path / "quarantine.csv") as quarantine:
        chunks = list(usable_chunks(pool, Checks(elements=frozenset({1, 8})), quarantine, 2))
    assert [[index for index, _ in chunk] for chunk in chunks] == [[0, 2], [4, 5], [7]]
    a, b = str(tmp_path / "a.xyz"), str(tmp_path / "b.xyz")
    entries = dict(read_quarantine(tmp_path / "quarantine.csv"))
    assert list(entries) == [Source(a, 1), Source(a, 3), Source(b, 2), Source(b, 4)]
    for (_, reason), word in zip(entries.items(), ("Au", "zero", "0.000 Å", "not finite"), strict=True):
        assert word in reason


def test_isolated_atoms_fail_where_structures_are_picked_and_atoms_of_a_primitive_cell_do_not():
    alone, boxed = Atoms("H"), Atoms("H", cell=[15, 15, 15], pbc=True)
    crystal = Atoms("Cu", cell=[[0, 1.8, 1.8], [1.8, 0, 1.8], [1.8, 1.8, 0]], pbc=True)
    for checks in (Checks(isolated_atoms=False), Checks(min_distance_A=0.0, isolated_atoms=False)):
        for atoms in (alone, boxed):
            assert "isolated atom" in checks.check(atoms)
            assert Checks().check(atoms) is None
        assert checks.check(crystal) is None
