"""Atoms that are held in the starts stay where they are, and what cannot be obeyed is refused by name."""

import ase.io
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength
from sampled_systems import Springs

from selectron.campaign.context import bare
from selectron.errors import SelectronError
from selectron.sampling.options import sample_options
from selectron.sampling.output import RunFiles
from selectron.sampling.run import run_sampling
from selectron.sampling.starts import constrained
from selectron.structures import Pool, write_extxyz
from selectron.structures.constraints import free_coordinates, held_sentence
from selectron.structures.graphs import collate


class HookedSprings(Springs):
    """Springs that can be relaxed."""

    def batch(self, structures):
        return collate(structures, None)


def start(**arrays):
    water = molecule("H2O")
    for name, values in arrays.items():
        water.set_array(name, np.array(values))
    return water


def frames(starts, **options):
    given = {"method": "langevin", "steps": 10, "stride": 5, "timestep_fs": 0.2, **options}
    return list(run_sampling(HookedSprings(3), starts, sample_options(given)))


@pytest.mark.parametrize(
    ("arrays", "held"),
    [
        ({"fixed": [1, 0, 0]}, [True, False, False]),
        ({"fixed": [True, False, True]}, [True, False, True]),
        ({"move_mask": [0, 1, 1]}, [True, False, False]),
        ({"fixed": [2, 0, 0]}, [False, False, False]),  # no mask
        ({"tags": [1, 0, 0]}, [False, False, False]),
    ],
)
def test_arrays_of_zero_and_one_hold_atoms(arrays, held):
    water = start(**arrays)
    for frame in frames([water]):
        moved = (frame.atoms.positions != water.positions).any(1)
        assert (moved != np.array(held)).all()
        assert (frame.atoms.arrays["model_forces"][held] == 0).all()
        free = free_coordinates(frame.atoms)
        assert (~free).all(1).tolist() == held if any(held) else free is None
    assert water.constraints == []
    everywhere = frames([water], constraints="ignore")[-1].atoms
    assert (everywhere.positions != water.positions).any(1).all()
    assert free_coordinates(everywhere) is None


def test_a_constraint_wins_over_an_array():
    water = start(fixed=[1, 1, 0])
    water.set_constraint(FixAtoms([2]))
    last = frames([water])[-1].atoms
    assert (last.positions != water.positions).any(1).tolist() == [True, True, False]


def test_constraints_that_no_sampler_obeys_and_starts_that_cannot_move_are_refused():
    water = start()
    water.set_constraint(FixBondLength(0, 1))
    with pytest.raises(SelectronError, match=r"Starting structure 1 \(H2O\) has the constraint FixBondLength"):
        frames([start(), water])
    assert frames([water], constraints="ignore")
    with pytest.raises(SelectronError, match="all its atoms are held"):
        frames([start(fixed=[1, 1, 1])])


@pytest.mark.parametrize("method", ["skmd", "synchronous-skmd", "brownian", "metad"])
def test_a_run_with_relaxation_and_burn_in_leaves_held_atoms_where_they_were(method):
    water = start(fixed=[1, 0, 0])
    water.positions += 0.1
    options = {
        "skmd": {"particles": 3, "stopping": [{"kind": "fixed-steps", "steps": 3}]},
        "synchronous-skmd": {"particles": 3, "stopping": [{"kind": "fixed-steps", "steps": 3}]},
    }.get(method, {})
    if method in {"skmd", "synchronous-skmd"}:
        options["initial"] = {"relax": True, "burn_in_steps": 5, "snapshot_every": 2}
    if method != "brownian":
        options["descriptor"] = {"name": "coordinates"}
    if method == "metad":
        options["metad"] = {"every": 2}
    given = {"method": method, "steps": 8, "stride": 4, "timestep_fs": 0.1, **options}
    found = list(run_sampling(HookedSprings(3), [water], sample_options(given)))
    assert found
    for frame in found:
        assert (frame.atoms.positions[0] == water.positions[0]).all()
        assert (frame.atoms.positions[1:] != water.positions[1:]).any(1).all()


def test_frames_say_what_a_structure_is_and_carry_nothing_that_was_computed_of_its_start(tmp_path):
    water = start(
        tags=[2, 1, 1],
        fixed=[1, 0, 0],
        initial_magmoms=[0.5, 0, 0],
        momenta=np.ones((3, 3)),
        charges=[1.0, 0, 0],
        descriptor=[1, 2, 3],
    )
    water.info = {"charge": -1, "energy_of_start": 3.0}
    water.calc = SinglePointCalculator(water, energy=1.0, forces=np.ones((3, 3)))
    assert held_sentence([water]) is None  # its array means a constraint once it is a start
    with RunFiles(tmp_path / "frames.extxyz", ended=tmp_path / "ended.csv") as files:
        for frame in frames([water]):
            files.write(frame)
        files.publish()
        assert not files.losses
    for atoms in (ase.io.read(tmp_path / "frames.extxyz"), Pool.open([tmp_path / "frames.extxyz"])[-1]):
        assert set(atoms.arrays) == {"numbers", "positions", "tags", "fixed", "initial_magmoms", "model_forces"}
        assert atoms.calc is None
        assert atoms.info["charge"] == -1
        assert "energy_of_start" not in atoms.info
        assert atoms.constraints[0].index.tolist() == [0]
        assert (atoms.positions[0] == np.round(water.positions[0], 8)).all()
        assert held_sentence([atoms]).startswith("Held in place: 1 atom of 1 structure,")
    kept = bare(atoms, source="a")
    write_extxyz(tmp_path / "kept.extxyz", [kept], tell=pytest.fail)
    again = Pool.open([tmp_path / "kept.extxyz"])[0]
    assert again.constraints[0].index.tolist() == [0]
    assert set(again.arrays) == {"numbers", "positions", "tags", "fixed", "initial_magmoms"}
    assert "momenta" not in bare(water).arrays


def test_oc20_slabs_keep_their_lower_layers(shared_data):
    with Pool.open([shared_data / "oc20_traj30_sub.xyz", shared_data / "pynta_ru0001_ft_qe_1500.xyz"]) as pool:
        for slab in (pool[0], pool[len(pool) - 1]):
            fixed = slab.arrays["fixed"] == 1
            assert 0 < fixed.sum() < len(slab)
            (held,) = constrained([slab], sample_options({"method": "langevin"}))
            assert (~free_coordinates(held)).all(1).tolist() == fixed.tolist()
            assert held_sentence([held]).startswith(f"Held in place: {fixed.sum()} atoms of 1 structure")
            assert slab.get_forces()[fixed].any()  # labels of a pool are not those of a constrained run
