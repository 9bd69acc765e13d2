"""Neighbour lists against ASE's, and the batch convention."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule
from ase.neighborlist import neighbor_list

from selectron.structures.graphs import collate, neighbours


def _rattled(atoms, seed=0):
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(0, 0.07, (len(atoms), 3))
    return atoms


def _box(n, *, centre=0.0, seed=0):
    random = np.random.default_rng(seed)
    return Atoms(f"C{n}", random.uniform(-8, 8, (n, 3)) + centre)


def _left_handed():
    return Atoms("CO", [[0, 0, 0], [1.2, 0.3, 0.2]], cell=[[0.9, 2.3, 0], [2.1, 0, 0], [-0.7, 0.6, 2.6]], pbc=True)


def _outside():
    atoms = _rattled(bulk("Cu", cubic=True) * 2)
    random = np.random.default_rng(1)
    atoms.positions += random.integers(-2, 3, (len(atoms), 3)) @ atoms.cell.array
    return atoms


def _with_pbc(atoms, pbc):
    atoms = _rattled(atoms)
    atoms.pbc = pbc
    return atoms


CASES = {
    "molecule": (_rattled(molecule("CH3CH2OH")), 3.0),
    "one atom": (Atoms("H"), 4.0),
    "isolated atoms": (Atoms("HH", [[0, 0, 0], [0, 0, 9]]), 4.0),
    "200 atoms": (_box(200), 3.0),
    "201 atoms": (_box(201), 3.0),
    "300 atoms far from the origin": (_box(300, centre=-500.0), 3.0),
    "one atom in a crystal": (bulk("Cu"), 6.0),
    "crystal": (_rattled(bulk("NaCl", "rocksalt", a=5.6) * (2, 1, 1)), 5.0),
    "small skewed cell": (Atoms("C", [[5, -3, 8]], cell=[[1.1, 0, 0], [1.9, 1.2, 0], [-1.4, 0.8, 1.3]], pbc=True), 5.0),
    "left-handed cell": (_left_handed(), 5.0),
    "atoms outside the cell": (_outside(), 4.0),
    "slab": (_with_pbc(fcc111("Cu", (2, 2, 3), vacuum=5.0), (True, True, False)), 6.0),
    "slab, open along x": (
        _with_pbc(Atoms("CO", [[0, 0, 0], [1, 0, 0]], cell=[9, 2.3, 2.1]), (False, True, True)),
        5.0,
    ),
    "sheet without third vector": (_with_pbc(graphene("CO", a=2.5), (True, True, False)), 5.1),
    "chain": (_with_pbc(Atoms("CO", [[0, 0, 0], [1, 0, 0]], cell=[2.4, 0, 0]), (True, False, False)), 6.0),
    "chain along a skewed vector": (
        _with_pbc(
            Atoms("CO", [[0, 0, 0], [1, 0, 0]], cell=[[4, 0, 0], [1.3, 2.2, 0.4], [0, 0, 4]]), (False, True, False)
        ),
        6.0,
    ),
    "tall adsorbate on a slab in a flat cell": (
        _with_pbc(Atoms("CCO", [[0, 0, 0], [0, 0, 8], [0, 0, 12]], cell=[3, 3, 5]), (True, True, False)),
        4.5,
    ),
}


def _ase_edges(atoms, cutoff):
    sender, receiver, shift = neighbor_list("ijS", atoms, cutoff)
    return {(int(i), int(j), *map(int, s)) for i, j, s in zip(sender, receiver, shift, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_edges_equal_those_of_ase(name):
    atoms, cutoff = CASES[name]
    edge_index, shift = neighbours(atoms, cutoff)
    found = [(int(i), int(j), *map(int, s)) for i, j, s in zip(*edge_index, shift, strict=True)]
    assert len(set(found)) == len(found)
    assert set(found) == _ase_edges(atoms, cutoff)
    assert not shift[:, ~atoms.pbc].any()
    assert (np.diff(edge_index[1]) >= 0).all(), "edges are not sorted by receiver"


@pytest.mark.parametrize("name", CASES)
def test_edge_vectors_are_shorter_than_the_cutoff_and_come_in_pairs(name):
    atoms, cutoff = CASES[name]
    batch = collate([atoms], cutoff)
    sender, receiver = batch.edge_index
    vectors = batch.positions[receiver] - batch.positions[sender] + batch.shifts
    lengths = vectors.norm(dim=1)
    assert bool((lengths < cutoff).all())
    assert bool((lengths > 0.1).all())
    assert torch.allclose(vectors.sum(dim=0), torch.zeros(3, dtype=torch.float64), atol=1e-8)


def test_a_batch_is_its_structures_one_after_the_other():
    structures = [atoms for atoms, _ in CASES.values()]
    batch = collate(structures, 3.5)
    assert batch.counts.tolist() == [len(atoms) for atoms in structures]
    assert batch.system_idx.tolist() == [i for i, atoms in enumerate(structures) for _ in atoms]
    assert batch.edge_counts.tolist() == [neighbours(atoms, 3.5)[0].shape[1] for atoms in structures]
    edge_owner = torch.repeat_interleave(torch.arange(len(structures)), batch.edge_counts)
    assert torch.equal(batch.edge_system_idx, edge_owner)
    assert torch.equal(batch.system_idx[batch.edge_index[1]], edge_owner)
    first_atom = torch.cumsum(batch.counts, 0) - batch.counts
    for i, atoms in enumerate(structures):
        own = edge_owner == i
        np.testing.assert_array_equal(batch.edge_index[:, own].numpy() - int(first_atom[i]), neighbours(atoms, 3.5)[0])
        np.testing.assert_array_equal(batch.numbers[batch.system_idx == i].numpy(), atoms.numbers)
        np.testing.assert_array_equal(batch.positions[batch.system_idx == i].numpy(), atoms.positions)
        np.testing.assert_array_equal(batch.cell[i].numpy(), atoms.cell.array)
        np.testing.assert_array_equal(batch.pbc[i].numpy(), atoms.pbc)


def test_taking_structures_out_of_a_batch_is_collating_them():
    structures = [atoms for atoms, _ in CASES.values()]
    chosen = [3, 0, 7, 7, 1]
    taken = collate(structures, 3.5).take(torch.tensor(chosen))
    expected = collate([structures[i] for i in chosen], 3.5)
    for name, found, wanted in zip(taken._fields, taken, expected, strict=True):
        assert torch.equal(found, wanted), name


def test_an_empty_batch_has_the_right_shapes():
    batch = collate([], 3.0)
    assert batch.n_structures == 0
    assert batch.positions.shape == (0, 3)
    assert batch.edge_index.shape == (2, 0)
    assert batch.shifts.shape == (0, 3)


def test_only_floating_point_fields_change_their_type():
    batch = collate([molecule("H2O")], 3.0).to("cpu", torch.float32)
    assert batch.positions.dtype == batch.cell.dtype == batch.unit_shifts.dtype == torch.float32
    assert batch.numbers.dtype == batch.edge_index.dtype == torch.int64
    assert batch.pbc.dtype == torch.bool
