"""Sampling runs from beginning to end: what frames there are, when structures are acquired, and what a run starts from."""

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms

from selectron.errors import SelectronError
from selectron.potentials import load_potential
from selectron.potentials.mace import MacePotential
from selectron.sampling.options import sample_options
from selectron.sampling.run import run_sampling
from selectron.sampling.starts import initial_structures, origins, preparation_steps
from selectron.training.labels import labelled
from small_maces import small_mace

SURFACE = {"kT_eV": 20.0, "step_size": 2e-4}
SHORT = {"burn_in_steps": 20, "snapshot_every": 10}
LOOSE = {
    "max_force_eV_A": 1e6,
    "min_distance_A": 0.0,
    "max_energy_rise_eV": 1e6,
}  # a random model holds nothing together


def point(x=-0.55, y=1.44):
    return Atoms("X", [[x, y, 0.0]])


@pytest.fixture(scope="module")
def mueller_brown():
    return load_potential("surface:mueller-brown")


@pytest.fixture(scope="module")
def mace():
    return MacePotential(small_mace(hidden_irreps="4x0e", correlation=2), name="tiny", dtype=torch.float64)


def frames_of(model, starts, **options):
    """All frames of a run and its last progress."""
    last = []
    found = list(run_sampling(model, starts, sample_options(options), on_step=last.append))
    return found, last[-1]


def where(frames):
    return np.array([frame.atoms.positions[0, :2] for frame in frames])


def test_one_particle_of_skmd_moves_as_a_brownian_particle_does(mueller_brown):
    skmd, _ = frames_of(
        mueller_brown, [point()], method="skmd", particles=1, steps=50, stride=5, max_displacement_A="none", **SURFACE
    )
    brownian, _ = frames_of(mueller_brown, [point()], method="brownian", steps=50, stride=5, **SURFACE)
    np.testing.assert_allclose(where(skmd), where(brownian), rtol=1e-12)


def test_the_stride_chooses_frames_and_changes_nothing(mueller_brown):
    options = {"method": "skmd", "particles": 5, "steps": 90, "initial": SHORT, **SURFACE}
    options["stopping"] = [{"kind": "fixed-steps", "steps": 25}]
    fine, _ = frames_of(mueller_brown, [point()], stride=1, **options)
    coarse, _ = frames_of(mueller_brown, [point()], stride=7, **options)
    acquired, _ = frames_of(mueller_brown, [point()], stride=0, **options)
    assert [frame.step for frame in fine] == list(range(1, 91))
    assert [frame.step for frame in acquired] == [25, 50, 75]
    assert all(frame.acquired for frame in acquired)
    wanted = {step for step in range(1, 91) if step % 7 == 0 or step % 25 == 0}
    np.testing.assert_array_equal(where(coarse), where([frame for frame in fine if frame.step in wanted]))


def test_journeys_go_round_and_iterations_end_the_run(mueller_brown):
    frames, last = frames_of(
        mueller_brown,
        [point()],
        method="skmd",
        particles=3,
        ensembles=2,
        iterations=4,
        stride=0,
        initial=SHORT,
        stopping=[{"kind": "fixed-steps", "steps": 6}],
        **SURFACE,
    )
    assert [(frame.step, frame.ensemble, frame.particle) for frame in frames] == [
        (6 * (i + 1), ensemble, i % 3) for i in range(4) for ensemble in range(2)
    ]
    assert last.finished == "iterations"
    # ensembles are different from the first step on
    assert not np.allclose(where(frames)[0], where(frames)[1])


def test_an_ensemble_that_is_done_gives_no_more_frames_while_others_go_on(mueller_brown):
    frames, last = frames_of(
        mueller_brown,
        [point()],
        method="a-skmd",
        particles=4,
        ensembles=3,
        iterations=5,
        stride=0,
        initial=SHORT,
        stopping=[{"kind": "bias-norm-below", "threshold": 2.0, "min_steps": 3}, {"kind": "fixed-steps", "steps": 60}],
        **SURFACE,
    )
    assert last.finished == "iterations"
    assert [sum(frame.ensemble == e for frame in frames) for e in range(3)] == [5, 5, 5]
    assert len({frame.step for frame in frames}) > 5  # ensembles are not in step


def test_acquisitions_end_the_run_at_exactly_as_many(mueller_brown):
    options = {"method": "brownian", "particles": 3, "acquisitions": 7, "stride": 0, **SURFACE}
    frames, last = frames_of(mueller_brown, [point()], stopping=[{"kind": "fixed-steps", "steps": 11}], **options)
    assert (len(frames), last.tally.acquired, last.finished) == (7, 7, "acquisitions")
    assert [frame.step for frame in frames] == [11] * 3 + [22] * 3 + [33]


def test_adaptive_stopping_acquires_at_the_first_step_below_the_threshold(mueller_brown):
    frames, _ = frames_of(
        mueller_brown,
        [point()],
        method="a-skmd",
        particles=6,
        steps=400,
        stride=1,
        initial=SHORT,
        stopping=[{"kind": "bias-norm-below", "threshold": 1.0, "min_steps": 5}],
        **SURFACE,
    )
    journey, acquired = 0, 0
    for frame in frames:
        journey += 1
        below = journey >= 5 and frame.bias_norm < 1.0
        assert frame.acquired == below
        if frame.acquired:
            assert frame.stopping_reason == "bias-norm-below"
            journey, acquired = 0, acquired + 1
    assert acquired > 2


def test_a_committee_acquires_at_the_first_step_above_the_threshold():
    members = [load_potential(f"surface:harmonic?stiffness={k}") for k in (1.0, 1.2)]
    frames, _ = frames_of(
        members,
        [point(0.5, 0.0)],
        method="brownian",
        kT_eV=0.2,
        step_size=0.02,
        steps=300,
        stride=1,
        stopping=[{"kind": "uncertainty-above", "threshold": 0.02, "min_steps": 4}],
    )
    journey = 0
    for frame in frames:
        journey += 1
        # energies are k r²/2, so half their difference is the standard deviation of the two
        sigma = 0.2 * float(frame.atoms.positions[0] @ frame.atoms.positions[0]) / 4.0
        assert frame.uncertainty_eV == pytest.approx(sigma)
        assert frame.acquired == (journey >= 4 and sigma > 0.02)
        journey = 0 if frame.acquired else journey
    assert sum(frame.acquired for frame in frames) > 3


def test_a_pilot_leaves_nothing_behind_but_its_threshold(mueller_brown):
    options = {"method": "a-skmd", "particles": 5, "steps": 150, "stride": 3, "initial": SHORT, **SURFACE}
    options["pilot"] = {"steps": 60, "journeys": 3}

    def run(threshold, quantile=0.3):
        stop = {"kind": "bias-norm-below", "threshold": threshold, "min_steps": 5, "quantile": quantile}
        return frames_of(mueller_brown, [point()], **options, stopping=[stop])

    frames, last = run("auto")
    threshold = last.thresholds["bias-norm-below"]
    again, _ = run(threshold)
    assert len(frames) > 50
    np.testing.assert_array_equal(where(frames), where(again))
    assert (
        run("auto", 0.1)[1].thresholds["bias-norm-below"]
        < threshold
        < run("auto", 0.9)[1].thresholds["bias-norm-below"]
    )


def test_a_pilot_that_can_see_nothing_says_so(mueller_brown):
    with pytest.raises(SelectronError, match="saw values of zero only"):
        frames_of(
            mueller_brown, [point()], method="a-skmd", particles=1, steps=10, kernel={"bandwidth": 1.0}, **SURFACE
        )
    with pytest.raises(SelectronError, match="shorter than min_steps"):
        frames_of(
            mueller_brown,
            [point()],
            method="a-skmd",
            particles=3,
            initial=SHORT,
            steps=9,
            pilot={"steps": 20},
            **SURFACE,
        )


def test_the_initial_median_is_that_of_the_initial_ensemble_and_stays(mueller_brown):
    starts = [point(-0.6 + 0.1 * i, 1.4 - 0.07 * i * i) for i in range(6)]
    options = {"method": "skmd", "particles": 6, "steps": 40, "stride": 1, **SURFACE}
    options["stopping"] = [{"kind": "fixed-steps", "steps": 5}]
    median = float(np.median([np.linalg.norm(a.positions - b.positions) for a, b in itertools.combinations(starts, 2)]))
    rule, _ = frames_of(mueller_brown, starts, kernel={"bandwidth": "initial-median"}, **options)
    number, _ = frames_of(mueller_brown, starts, kernel={"bandwidth": median}, **options)
    moving, _ = frames_of(mueller_brown, starts, kernel={"bandwidth": "median"}, **options)
    np.testing.assert_allclose(where(rule), where(number), rtol=1e-10)
    np.testing.assert_array_equal(where(rule)[:5], where(moving)[:5])
    assert not np.allclose(where(rule), where(moving))


def test_energies_and_forces_in_the_frames_are_the_models_and_no_labels(mace):
    start = molecule("CH3CH2OH")
    start.info.update(REF_energy=1.0, net_charge=0, spin="1")
    frames, _ = frames_of(mace, [start], method="metad", steps=30, stride=10, geometry=LOOSE, metad={"every": 5})
    found = mace.evaluate(mace.batch([frame.atoms for frame in frames]))
    np.testing.assert_allclose([frame.energy_eV for frame in frames], found.energies, rtol=1e-9)
    np.testing.assert_allclose(
        np.concatenate([frame.atoms.arrays["model_forces"] for frame in frames]), found.forces, atol=1e-9
    )
    assert (frames[0].atoms.info["charge"], frames[0].atoms.info["multiplicity"]) == (0, 1)
    assert frames[-1].bias_norm > 0.0
    with pytest.raises(SelectronError, match="no energy"):
        labelled([frames[0].atoms])


def test_structures_of_different_sizes_move_side_by_side(mace):
    starts = [molecule("H2O"), molecule("CH4"), molecule("CO2")]
    frames, _ = frames_of(mace, starts, method="langevin", ensembles=2, steps=4, stride=2, geometry=LOOSE)
    assert [frame.atoms.get_chemical_formula() for frame in frames] == ["H2O", "CH4", "CO2"] * 4
    assert [(frame.ensemble, frame.particle) for frame in frames] == [(e, p) for e in (0, 1) for p in range(3)] * 2
    found = mace.evaluate(mace.batch([frame.atoms for frame in frames]))
    np.testing.assert_allclose([frame.energy_eV for frame in frames], found.energies, rtol=1e-9)


def test_held_atoms_stay_and_one_atom_alone_moves(mace):
    water = molecule("H2O")
    water.set_constraint(FixAtoms([0]))
    frames, _ = frames_of(mace, [water], method="langevin", steps=10, stride=10, geometry=LOOSE)
    moved = np.linalg.norm(frames[0].atoms.positions - water.positions, axis=1)
    assert moved[0] == 0.0
    assert (moved[1:] > 0.0).all()
    frames, last = frames_of(mace, [Atoms("O")], method="langevin", steps=200, stride=10)
    assert np.linalg.norm(frames[-1].atoms.positions) > 0.0
    assert last.temperature_K > 0.0


def test_the_initial_ensemble_has_snapshots_of_every_start_in_turn(mueller_brown):
    starts = [point(), point(0.62, 0.03)]
    options = sample_options({"method": "skmd", "particles": 5, "ensembles": 2, "initial": SHORT, **SURFACE})
    assert preparation_steps(options, 2) == 20 + 3 * 10
    found = initial_structures(starts, [mueller_brown], options)
    positions = np.array([atoms.positions[0, :2] for atoms in found])
    assert origins(2, options) == [0, 1, 0, 1, 0] * 2
    near = np.linalg.norm(positions[:, None] - np.array([[-0.55, 1.44], [0.62, 0.03]]), axis=-1).argmin(1)
    assert near.tolist() == origins(2, options)
    assert len(np.unique(positions.round(9), axis=0)) == 10
    # the first snapshot is that of burn-in and one interval, whatever comes later
    fewer = initial_structures(starts, [mueller_brown], options.model_copy(update={"particles": 3}))
    np.testing.assert_array_equal(positions[:3], [atoms.positions[0, :2] for atoms in fewer[:3]])


@pytest.mark.parametrize(
    ("starts", "particles", "ensembles", "expected"),
    [
        (3, 3, 1, [0, 1, 2]),
        (6, 3, 2, [0, 2, 4, 1, 3, 5]),
        (4, 3, 2, [0, 1, 2] * 2),
        (9, 3, 1, [0, 3, 6]),
        (2, 5, 1, [0, 1, 0, 1, 0]),
    ],
)
def test_starts_are_dealt_to_particles(starts, particles, ensembles, expected):
    for method in ("skmd", "brownian"):
        options = sample_options({"method": method, "particles": particles, "ensembles": ensembles, **SURFACE})
        assert origins(starts, options) == expected


def test_relaxation_goes_down_to_the_minimum():
    well = load_potential("surface:harmonic?stiffness=2&centre=[0.3,-0.2]")
    options = sample_options({"method": "brownian", **SURFACE, "initial": {"relax": True, "relax_fmax_eV_A": 1e-4}})
    (found,) = initial_structures([point(1.0, 1.0)], [well], options)
    np.testing.assert_allclose(found.positions[0], [0.3, -0.2, 0.0], atol=1e-3)


def test_particles_that_are_made_come_from_relaxed_starts_unless_that_is_declined():
    argon = load_potential("ase:ase.calculators.lj:LennardJones?sigma=3.4&epsilon=0.0104&rc=10")
    dimer = Atoms("Ar2", [[0, 0, 0], [0, 0, 4.3]])
    cold = {"burn_in_steps": 0, "snapshot_every": 1, "temperature_K": 1e-6, "relax_fmax_eV_A": 1e-4}

    def first_bond(relax, particles):
        initial = {**cold, "relax": relax}
        values = {"method": "skmd", "particles": particles, "descriptor": {"name": "inverse-distances"}}
        options = sample_options({**values, "steps": 1, "initial": initial})
        return initial_structures([dimer, dimer], [argon], options)[0].get_distance(0, 1)

    minimum = 2 ** (1 / 6) * 3.4
    assert first_bond(None, 4) == pytest.approx(minimum, abs=0.02)
    assert first_bond(False, 4) == pytest.approx(4.3, abs=0.02)
    assert first_bond(None, 2) == 4.3  # the starts suffice: they are taken as they are


def test_a_start_that_breaks_in_the_burn_in_is_named():
    argon = load_potential("ase:ase.calculators.lj:LennardJones?sigma=3.4&epsilon=0.0104&rc=10")
    starts = [Atoms("Ar2", [[0, 0, 0], [0, 0, d]]) for d in (3.8, 1.0)]
    short = {**SHORT, "relax": False}
    options = {"particles": 4, "descriptor": {"name": "inverse-distances"}, "initial": short}
    with pytest.raises(SelectronError, match=r"Starting structure 1 broke in the burn-in"):
        frames_of(argon, starts, method="skmd", **options)


def test_the_width_of_the_uncertainty_bias_is_the_median_uncertainty_of_a_pilot_without_bias():
    members = [load_potential(f"surface:harmonic?stiffness={k}") for k in (1.0, 1.2)]
    options = {"method": "udd", "kT_eV": 0.2, "step_size": 0.05, "steps": 60, "stride": 5, "stopping": []}
    options |= {"particles": 16, "pilot": {"steps": 400, "journeys": 1}}
    frames, last = frames_of(members, [point(0.0, 0.0)], **options)
    width = last.thresholds["udd-width"]
    # r² in a harmonic plane is exponential with mean 2 kT/k, and σ = 0.2 r²/4
    assert width == pytest.approx(0.05 * np.log(2.0) * 2.0 * 0.2 / 1.1, rel=0.15)
    again, _ = frames_of(members, [point(0.0, 0.0)], **options, udd={"width_eV": width})
    np.testing.assert_array_equal(where(frames), where(again))


@pytest.mark.parametrize("method", ["udd", "hal"])
def test_a_biased_committee_is_drawn_to_where_it_disagrees(method):
    """Two wells that agree at the origin: the bias pushes outwards."""
    members = [load_potential(f"surface:harmonic?stiffness={k}") for k in (1.0, 2.0)]
    options = {"kT_eV": 0.02, "step_size": 0.1, "steps": 600, "stride": 20, "stopping": [], "particles": 8}
    biased, _ = frames_of(
        members, [point(0.1, 0.0)], method=method, udd={"height_eV": 0.1, "width_eV": 0.02}, hal={"relative_strength": 0.5},
        **options,
    )  # fmt: skip
    plain, _ = frames_of(members, [point(0.1, 0.0)], method="brownian", **options)
    assert (where(biased) ** 2).sum(1).mean() > 1.3 * (where(plain) ** 2).sum(1).mean()


def test_a_run_that_goes_on_from_the_end_of_another_has_its_particles_where_they_were(mueller_brown):
    options = {"method": "brownian", "particles": 2, "ensembles": 3, "steps": 20, "stride": 20, **SURFACE}
    ended = []
    frames = list(
        run_sampling(mueller_brown, [point(), point(0.6, 0.0)], sample_options(options), on_ensemble=ended.extend)
    )
    assert [(frame.ensemble, frame.particle) for frame in frames] == list(itertools.product(range(3), range(2)))
    taken_up = initial_structures(ended, [mueller_brown], sample_options(options))
    np.testing.assert_array_equal([atoms.positions[0, :2] for atoms in taken_up], where(frames))


def test_a_trajectory_that_broke_goes_on_from_where_it_set_out(mueller_brown):
    steep = point(1.4, 2.2)
    options = {"method": "brownian", "steps": 20, "geometry": {"max_force_eV_A": 5000.0}, **SURFACE}
    ended, broken = [], []
    calls = {"on_ensemble": ended.extend, "on_ended": broken.append}
    assert list(run_sampling(mueller_brown, [point(), steep], sample_options(options), **calls)) == []
    assert [one.particle for one in broken] == [1]
    np.testing.assert_array_equal(ended[1].positions, steep.positions)
    assert (ended[0].positions != point().positions).any()
