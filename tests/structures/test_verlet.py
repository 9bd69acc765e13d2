"""Neighbour lists with a skin against lists made from scratch at every step."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, graphene, molecule

from selectron.structures import refreshed, skin_list
from selectron.structures.graphs import collate

CUTOFF_A = 3.5


def _periodic(atoms, pbc):
    atoms = atoms.copy()
    atoms.pbc = pbc
    return atoms


def _cluster(count, seed=0):
    return Atoms(f"C{count}", np.random.default_rng(seed).uniform(-5, 5, (count, 3)))


BATCHES = {
    "one molecule": [molecule("CH3CH2OH")],
    "replicas": [molecule("CH3CH2OH")] * 4,
    "molecules and an atom": [molecule("H2O"), Atoms("O"), molecule("C6H6")],
    "molecule in a box that is not periodic": [Atoms("CO", [[0, 0, 0], [1.1, 0, 0]], cell=[2, 2, 2])],
    "large cluster": [_cluster(90)],
    "crystal": [bulk("Cu", cubic=True) * 2],
    "one atom and its images": [bulk("Cu")],
    "small skewed cell": [Atoms("C", [[5, -3, 8]], cell=[[1.1, 0, 0], [1.9, 1.2, 0], [-1.4, 0.8, 1.3]], pbc=True)],
    "left-handed cell": [
        Atoms("CO", [[0, 0, 0], [1.2, 0.3, 0.2]], cell=[[0.9, 2.3, 0], [2.1, 0, 0], [-0.7, 0.6, 2.6]], pbc=True)
    ],
    "slab": [_periodic(fcc111("Cu", (2, 2, 3), vacuum=5.0), (True, True, False))],
    "sheet without third vector": [_periodic(graphene("CO", a=2.5), (True, True, False))],
    "chain": [_periodic(Atoms("CO", [[0, 0, 0], [1, 0, 0]], cell=[2.4, 0, 0]), (True, False, False))],
    "large periodic cell": [_periodic(Atoms("CO", [[5, 5, 5], [6, 5, 5]], cell=[30, 30, 30]), True)],
}
BATCHES["everything"] = [atoms for batch in BATCHES.values() for atoms in batch]


def _same_edges(batch, structures, positions, cutoff=CUTOFF_A):
    """The batch's edges are collate's for these positions, in the canonical order; collate's in that order."""
    moved, start = [], 0
    for atoms in structures:
        moved.append(atoms.copy())
        moved[-1].positions = positions[start : start + len(atoms)]
        start += len(atoms)
    expected = collate(moved, cutoff).to("cpu", batch.positions.dtype)
    sender, receiver = expected.edge_index
    x, y, z = expected.unit_shifts.T
    order = torch.from_numpy(np.lexsort([key.numpy() for key in (z, y, x, sender, receiver)]))
    assert torch.equal(batch.edge_index, expected.edge_index[:, order])
    assert torch.equal(batch.unit_shifts, expected.unit_shifts[order])
    assert torch.equal(batch.edge_counts, expected.edge_counts)
    assert torch.equal(batch.positions, expected.positions)
    return expected


def _walk(structures, *, steps, step_A, seed=0, dtype=torch.float64):
    """Positions of a random walk that starts off the lattice, where no shell lies on the cutoff by chance."""
    random = np.random.default_rng(seed)
    positions = collate(structures, None).positions.numpy() + random.normal(0, 0.05, (sum(map(len, structures)), 3))
    for _ in range(steps):
        positions = positions + random.normal(0, step_A, positions.shape)
        yield torch.from_numpy(positions).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", BATCHES)
def test_a_random_walk_has_the_edges_of_collate_at_every_step(name, dtype):
    structures = BATCHES[name]
    batch = collate(structures, None).to("cpu", dtype)
    skin = skin_list(batch, CUTOFF_A, 0.6)
    lists = set()
    for positions in _walk(structures, steps=40, step_A=0.04, dtype=dtype):
        skin, batch = refreshed(skin, batch._replace(positions=positions))
        lists.add(id(skin.ends))
        _same_edges(batch, structures, positions.double().numpy())
        assert batch.unit_shifts.dtype == batch.positions.dtype == dtype
    tracked = any(atoms.pbc.any() or len(atoms) > 64 for atoms in structures)
    assert (len(lists) > 1) == tracked, "the walk should renew the lists of periodic structures, and no others"


@pytest.mark.parametrize("name", ["crystal", "small skewed cell", "slab", "chain", "left-handed cell"])
def test_atoms_drift_through_many_cells(name):
    structures = BATCHES[name]
    batch = collate(structures, None)
    skin = skin_list(batch, CUTOFF_A)
    vectors = batch.cell[0][batch.pbc[0]]
    drift = 0.15 * (vectors / vectors.norm(dim=1, keepdim=True)).sum(dim=0)
    ahead = torch.linspace(0, 1, len(batch.positions), dtype=torch.float64)[:, None]  # atoms part from each other
    for step, positions in enumerate(_walk(structures, steps=120, step_A=0.02)):
        positions = positions + step * drift * (1 + ahead)
        skin, batch = refreshed(skin, batch._replace(positions=positions))
        _same_edges(batch, structures, positions.numpy())
    if len(batch.positions) > 1:
        assert batch.unit_shifts.abs().max() >= 3


def test_random_cells_of_all_shapes_and_sizes():
    random = np.random.default_rng(3)
    structures = []
    for _ in range(250):
        cell = random.normal(0, 2.5, (3, 3)) * random.uniform(0.7, 3.0)
        if abs(np.linalg.det(cell)) > 2:
            count = int(random.integers(1, 12))
            pbc = random.random(3) < 0.7
            structures.append(Atoms(f"C{count}", random.normal(0, 4, (count, 3)), cell=cell, pbc=pbc))
    batch = collate(structures, None)
    for cutoff in (1.5, 5.5):
        _, batch = refreshed(skin_list(batch, cutoff), batch)
        _same_edges(batch, structures, batch.positions.numpy(), cutoff)


def test_atoms_of_one_crystal_may_be_any_number_of_cells_apart():
    structures = [bulk("Cu", cubic=True) * 2]
    atoms = structures[0].copy()
    atoms.rattle(0.05, seed=1)
    atoms.positions += np.random.default_rng(0).integers(-100_000, 100_000, (len(atoms), 3)) @ atoms.cell.array
    batch = collate([atoms], None)
    _, batch = refreshed(skin_list(batch, CUTOFF_A), batch)
    _same_edges(batch, structures, atoms.positions)
    assert batch.unit_shifts.abs().max() > 100_000


def test_the_edges_do_not_depend_on_when_the_list_was_made():
    structures = BATCHES["everything"]
    batch = collate(structures, None)
    skin = skin_list(batch, CUTOFF_A, 0.5)
    for step, positions in enumerate(_walk(structures, steps=30, step_A=0.05)):
        skin, batch = refreshed(skin, batch._replace(positions=positions))
        if step % 5 == 0:
            for skin_A in (0.5, 1.1):
                _, restarted = refreshed(skin_list(batch, CUTOFF_A, skin_A), batch)
                for name, mine, other in zip(batch._fields, batch, restarted, strict=True):
                    assert torch.equal(mine, other), name


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_pair_within_rounding_of_the_cutoff_is_judged_alike_whatever_else_is_listed(dtype):
    batch = collate([_periodic(Atoms(_cluster(40), cell=[10.3, 10.1, 9.7]), True)], None).to("cpu", dtype)
    _, whole = refreshed(skin_list(batch, CUTOFF_A), batch)
    sender, receiver = whole.edge_index
    lengths = (batch.positions[receiver] - batch.positions[sender] + whole.shifts).norm(dim=1)
    for cutoff in lengths[::29].tolist():
        for nudge in (1 - 1e-15, 1.0, 1 + 1e-15):
            found = [
                refreshed(skin_list(batch, cutoff * nudge, skin), batch)[1].edge_index for skin in (0.01, 0.3, 2.0)
            ]
            assert torch.equal(found[0], found[1])
            assert torch.equal(found[0], found[2])


def test_edges_come_by_receiver_then_sender_then_shift():
    structures = BATCHES["everything"]
    batch = collate(structures, None)
    _, batch = refreshed(skin_list(batch, 5.0), batch)
    rows = torch.cat([batch.edge_index.flip(0).T.double(), batch.unit_shifts], dim=1).tolist()
    assert rows == sorted(rows)
    assert len({tuple(row) for row in rows}) == len(rows)


@pytest.mark.parametrize("name", ["crystal", "slab", "large cluster"])
def test_the_list_is_renewed_when_an_atom_has_moved_half_the_skin_and_not_before(name):
    structures = BATCHES[name]
    start = collate(structures, None)
    skin = skin_list(start, CUTOFF_A, 0.8)
    direction = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
    for moved, renewed in ((0.399, False), (0.401, True)):
        positions = start.positions.clone()
        positions[1] += moved * direction
        after, batch = refreshed(skin, start._replace(positions=positions))
        assert (after.ends is not skin.ends) == renewed
        assert torch.equal(after.positions, positions if renewed else start.positions)
        _same_edges(batch, structures, positions.numpy())


def test_two_atoms_that_approach_each_other_are_not_missed():
    structures = [Atoms("HHH", [[0, 0, 0], [4.29, 0, 0], [15, 0, 0]], cell=[30, 30, 30], pbc=True)]
    start = collate(structures, None)
    skin = skin_list(start, CUTOFF_A, 0.8)
    assert skin.ends.numel() == 2, "the pair lies inside the skin"
    found = []
    for moved in np.linspace(0, 0.8, 33):
        positions = start.positions + torch.tensor([[moved, 0, 0], [-moved, 0, 0], [0, 0, 0]])
        skin, batch = refreshed(skin, start._replace(positions=positions))
        _same_edges(batch, structures, positions.numpy())
        found.append(batch.edge_index.shape[1])
    assert found[0] == 0
    assert found[-1] == 2

    apart = [Atoms("HHH", [[0, 0, 0], [4.31, 0, 0], [15, 0, 0]], cell=[30, 30, 30], pbc=True)]
    start = collate(apart, None)
    skin = skin_list(start, CUTOFF_A, 0.8)
    assert skin.ends.numel() == 0, "the pair lies outside the skin"
    positions = start.positions + torch.tensor([[0.41, 0, 0], [-0.41, 0, 0], [0, 0, 0]])
    _, batch = refreshed(skin, start._replace(positions=positions))
    assert batch.edge_index.tolist() == [[1, 0], [0, 1]]


def test_only_structures_that_have_moved_are_listed_anew():
    structures = [bulk("Cu", cubic=True)] * 3 + [molecule("H2O")]
    start = collate(structures, None)
    skin = skin_list(start, CUTOFF_A, 0.8)
    positions = start.positions.clone()
    positions[0] += 0.15  # 0.26 Å: more than a quarter of the skin
    positions[4] += 0.30  # 0.52 Å: more than half of it
    positions[8] += 0.05
    positions[-1] += 1.0
    after, batch = refreshed(skin, start._replace(positions=positions))
    assert [a is not b for a, b in zip(after.pairs, skin.pairs, strict=True)] == [True, True, False, False]
    _same_edges(batch, structures, positions.numpy())


def test_the_same_edges_are_the_same_tensors():
    structures = BATCHES["replicas"]
    batch = collate(structures, None)
    skin, first = refreshed(skin_list(batch, CUTOFF_A), batch)
    again, second = refreshed(skin, batch._replace(positions=batch.positions + 1e-9))
    assert again is skin
    assert second.edge_index is first.edge_index


def test_a_pair_exactly_at_the_cutoff_is_no_edge():
    structures = [Atoms("HH", [[0, 0, 0], [2.5, 0, 0]])]
    batch = collate(structures, None)
    _, at = refreshed(skin_list(batch, 2.5), batch)
    _, above = refreshed(skin_list(batch, 2.5 + 1e-12), batch)
    assert at.edge_index.shape[1] == 0
    assert above.edge_index.shape[1] == 2


def test_a_changed_cell_is_noticed():
    structures = [bulk("Cu", cubic=True) * 2, molecule("H2O")]
    batch = collate(structures, None)
    skin = skin_list(batch, CUTOFF_A)
    strained = [atoms.copy() for atoms in structures]
    strain = np.array([[-0.03, 0.02, 0], [0, -0.03, 0], [0, 0.01, -0.03]])
    strained[0].set_cell(strained[0].cell.array @ (np.eye(3) + strain))
    cell = collate(strained, None).cell
    _, after = refreshed(skin, batch._replace(cell=cell))
    _same_edges(after, strained, batch.positions.numpy())


def test_positions_in_place_are_noticed_too():
    structures = BATCHES["crystal"]
    batch = collate(structures, None)
    skin = skin_list(batch, CUTOFF_A)
    for positions in _walk(structures, steps=20, step_A=0.08):
        batch.positions.copy_(positions)
        skin, batch = refreshed(skin, batch)
        _same_edges(batch, structures, positions.numpy())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e16])
def test_a_structure_that_explodes_leaves_the_others_alone(bad):
    structures = [bulk("Cu", cubic=True), molecule("H2O"), bulk("Cu", cubic=True)]
    start = collate(structures, None)
    skin = skin_list(start, CUTOFF_A)
    for walked in _walk(structures, steps=10, step_A=0.1):
        positions = walked.clone()
        positions[1] = bad
        positions[5] = bad
        skin, batch = refreshed(skin, start._replace(positions=positions))
        _, whole = refreshed(skin_list(start, CUTOFF_A), start._replace(positions=walked))
        own = [b.edge_index[:, b.edge_system_idx == 2] for b in (batch, whole)]
        assert torch.equal(*own)
        assert own[0].shape[1] > 0
    for walked in _walk(structures, steps=2, step_A=0.1):
        skin, batch = refreshed(skin, start._replace(positions=walked))
        _same_edges(batch, structures, walked.numpy())


def test_batches_without_atoms_or_edges():
    nothing = collate([], None)
    skin, batch = refreshed(skin_list(nothing, CUTOFF_A), nothing)
    assert batch.edge_index.shape == (2, 0)
    assert batch.edge_counts.shape == (0,)
    alone = collate([Atoms("O"), Atoms("O", cell=[9, 9, 9], pbc=True)], None)
    skin, batch = refreshed(skin_list(alone, CUTOFF_A), alone)
    skin, batch = refreshed(skin, batch._replace(positions=batch.positions + 1.0))
    assert batch.edge_index.shape == (2, 0)
    assert batch.unit_shifts.shape == (0, 3)
    assert batch.edge_counts.tolist() == [0, 0]


def test_lists_of_other_structures_are_refused():
    water = collate([molecule("H2O")], None)
    skin = skin_list(water, CUTOFF_A)
    with pytest.raises(ValueError, match="3 atoms"):
        refreshed(skin, collate([molecule("NH3")], None))
    with pytest.raises(ValueError, match="float32"):
        refreshed(skin, water.to("cpu", torch.float32))
    with pytest.raises(ValueError, match="counts differ"):
        refreshed(skin, collate([Atoms("O"), Atoms("HH", [[0, 0, 0], [1, 0, 0]])], None))
    with pytest.raises(ValueError, match="above 0"):
        skin_list(water, CUTOFF_A, 0.0)


def test_a_model_says_the_same_on_either_list():
    from selectron.potentials import MacePotential
    from small_maces import model_of
    from small_maces import structures as small_structures

    potential = MacePotential(model_of("L=1"), dtype=torch.float64)
    structures = small_structures()
    batch = potential.batch(structures)
    skin = skin_list(batch, potential.cutoff_A)
    for positions in _walk(structures, steps=4, step_A=0.15):
        skin, batch = refreshed(skin, batch._replace(positions=positions))
        expected = _same_edges(batch, structures, positions.numpy(), potential.cutoff_A)
        found, wanted = potential.evaluate(batch), potential.evaluate(expected)
        assert torch.allclose(found.energies, wanted.energies, rtol=0, atol=1e-10)
        assert torch.allclose(found.forces, wanted.forces, rtol=0, atol=1e-10)
