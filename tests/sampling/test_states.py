"""What a step does with its state: seeds, restarts, held atoms, explosions, stopping, hand-overs."""

import copy
import math

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms, FixBondLength, FixCartesian
from sampled_systems import NO_LIMITS, Springs, crystal, mace_system, plane, run, same, shaken, tiny_mace, water

from selectron.errors import SelectronError
from selectron.potentials.base import Evaluation
from selectron.potentials.surfaces import DoubleWell, Harmonic, MuellerBrown
from selectron.sampling import (
    CommitteeField,
    Coordinates,
    Geometry,
    InverseDistances,
    NodeFeatures,
    Schedule,
    SteinKernel,
    Stepping,
    Unbiased,
    Watch,
    WellTemperedMetadynamics,
    bias_norm_below,
    brownian,
    fixed_bandwidth,
    fixed_steps,
    hyperactive,
    langevin,
    make_system,
    median_bandwidth,
    noise,
    skmd,
    synchronous_skmd,
    uncertainty_above,
    uncertainty_driven,
)
from selectron.sampling.alignment import kabsch
from selectron.sampling.geometry import REASONS
from selectron.sampling.stein import Standing, pair_distances
from selectron.sampling.stopping import Reading, first_that_holds

FREE = Watch(geometry=NO_LIMITS)
STARTS = [[-0.5, 1.4], [0.6, 0.1], [0.0, 0.5], [-0.9, 0.7]]


def samplers(structures, seed=1):
    """Every sampler on the same structures of a small MACE."""
    system = mace_system(structures)
    every_three = Watch((fixed_steps(3),), NO_LIMITS)
    members = [tiny_mace(k) for k in (0, 1)]
    brown = {"kT_eV": 0.05, "step_size": 0.01, "seed": seed, "watch": FREE}
    stein = {"particles": len(structures), "stepping": Stepping(0.05, 0.01), "seed": seed, "watch": every_three}
    metad = WellTemperedMetadynamics(system, kT_eV=0.05, height_eV=0.1, bias_factor=5.0, every=3)
    weights = system.masses[: len(structures[0]), 0]
    return {
        "brownian": lambda: brownian(Unbiased(system), **brown),
        "langevin": lambda: langevin(
            Unbiased(system), temperature_K=500.0, timestep_fs=0.5, damping_time_fs=20.0, seed=seed, watch=FREE
        ),
        "udd": lambda: brownian(
            CommitteeField(system, members, uncertainty_driven(height_eV=0.5, width_eV=0.05)), **brown
        ),
        "hal": lambda: brownian(CommitteeField(system, members, hyperactive(relative_strength=0.3)), **brown),
        "metad": lambda: brownian(metad, **brown),
        "skmd": lambda: skmd(system, **stein),
        "skmd, aligned": lambda: skmd(system, **stein, stein=SteinKernel(alignment=kabsch(weights))),
        "synchronous": lambda: synchronous_skmd(system, **stein),
    }


KINDS = ["brownian", "langevin", "udd", "hal", "metad", "skmd", "skmd, aligned", "synchronous"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("periodic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_same_seed_gives_the_same_trajectory_and_neighbour_lists_may_be_thrown_away(kind, periodic):
    structures = shaken(crystal(), 3, 0.08) if periodic else water(3)
    make = samplers(structures)[kind]
    whole, infos = run(make(), 5)
    sampler = make()
    state, _ = run(sampler, 2)
    state = copy.deepcopy(state._replace(memory=state.memory._replace(graphs=(None,) * len(state.memory.graphs))))
    for k in range(2, 5):
        state, info = sampler.step(state)
        assert same(tuple(info), tuple(infos[k]))
    assert same(state, whole)
    other, _ = run(samplers(structures, seed=2)[kind](), 1)
    assert not torch.equal(other.positions, whole.positions)


def test_a_step_changes_nothing_in_the_state_it_is_given():
    for make in samplers(water(3)).values():
        sampler = make()
        state, _ = run(sampler, 2)
        before = copy.deepcopy(state)
        sampler.step(state)
        assert same(state, before)


def test_noise_has_unit_variance_and_no_correlation_between_steps_streams_and_seeds():
    cpu = torch.device("cpu")
    shape = (20000, 3)
    first = noise.normal(1, 0, shape, cpu)
    size = first.numel()
    for other in (
        noise.normal(1, 1, shape, cpu), noise.normal(2, 0, shape, cpu), noise.normal(1, 0, shape, cpu, stream=1),
        noise.normal(0, 1, shape, cpu), noise.normal(1, 1, shape, cpu, stream=1),
    ):  # fmt: skip
        assert abs(float(other.mean())) < 4 / math.sqrt(size)
        assert abs(float(other.var()) - 1) < 4 * math.sqrt(2 / size)
        assert abs(float((first * other).mean())) < 4 / math.sqrt(size)
    assert torch.equal(first, noise.normal(1, 0, shape, cpu))
    kurtosis = float((first**4).mean())
    assert abs(kurtosis - 3) < 4 * math.sqrt(96 / size)
    # seeds, counters and streams that differ give other seeds of the generator
    seeds = {noise.mixed(s, c, t) for s in range(30) for c in range(100) for t in range(3)}
    assert len(seeds) == 30 * 100 * 3


def test_each_seed_of_ten_thousand_steps_gives_a_random_walk_without_memory():
    # the sum of n steps has variance n, only when the noise of different steps is independent
    total = sum(noise.normal(3, step, (500,), torch.device("cpu")) for step in range(400))
    assert abs(float(total.var()) / 400 - 1) < 4 * math.sqrt(2 / 500)


@pytest.mark.parametrize("kind", KINDS)
def test_held_atoms_stay_to_the_last_bit(kind):
    structures = water(3)
    for atoms in structures:
        atoms.set_constraint([FixAtoms([0]), FixCartesian(1, mask=(True, False, True))])
    state, _ = run(samplers(structures)[kind](), 8)
    start = torch.stack([torch.from_numpy(atoms.positions) for atoms in structures])
    if kind.startswith("skmd"):
        now = torch.cat([state.standing.positions[0], state.positions[None]])
        start = torch.cat([start, start[2:]])
    else:
        now = state.positions.reshape(3, 3, 3)
    assert torch.equal(now[:, 0], start[:, 0])
    assert torch.equal(now[:, 1, [0, 2]], start[:, 1, [0, 2]])
    assert bool((now[:2, 1, 1] != start[:2, 1, 1]).all())
    assert bool((now[:2, 2] != start[:2, 2]).all())


def test_structures_with_held_atoms_have_their_degrees_of_freedom_and_are_not_stopped_from_drifting():
    structures = water(2)
    structures[0].set_constraint(FixAtoms([0]))
    system = make_system(tiny_mace(), structures)
    assert system.degrees_of_freedom.tolist() == [6.0, 9.0]
    assert system.whole.tolist() == [False, True]
    field = Unbiased(make_system(Springs(3), [structures[0]] * 400))
    sampler = langevin(field, temperature_K=300.0, timestep_fs=0.1, damping_time_fs=20.0, seed=1)
    _, (info,) = run(sampler, 1)
    temperature = info.temperature_K.numpy()
    assert abs(temperature.mean() - 300) < 4 * temperature.std() / 20


def test_other_constraints_wrong_elements_and_wrong_ensembles_are_refused():
    atoms = molecule("H2O")
    atoms.set_constraint(FixBondLength(0, 1))
    with pytest.raises(SelectronError, match="FixBondLength"):
        make_system(tiny_mace(), [atoms])
    with pytest.raises(SelectronError, match="element N"):
        make_system(tiny_mace(), [molecule("NH3")])
    with pytest.raises(SelectronError, match="no structure"):
        make_system(tiny_mace(), [])
    stepping, watch = Stepping(0.05, 0.01), Watch((fixed_steps(3),))
    with pytest.raises(SelectronError, match="ensembles of 2"):
        skmd(mace_system(water(3)), particles=2, stepping=stepping, seed=0, watch=watch)
    with pytest.raises(SelectronError, match="same atoms"):
        skmd(mace_system([molecule("H2O"), molecule("CO2")]), particles=2, stepping=stepping, seed=0, watch=watch)
    held = water(2)
    held[0].set_constraint(FixAtoms([0]))
    with pytest.raises(SelectronError, match="fixed in all"):
        skmd(mace_system(held), particles=2, stepping=stepping, seed=0, watch=watch)
    with pytest.raises(SelectronError, match="stopping criterion"):
        skmd(mace_system(water(2)), particles=2, stepping=stepping, seed=0, watch=Watch())
    with pytest.raises(SelectronError, match="anchors"):
        skmd(mace_system(water(2)), particles=2, stepping=stepping, seed=0, watch=watch, anchors=2)
    with pytest.raises(SelectronError, match="descriptor"):
        skmd(make_system(tiny_mace(), water(2)), particles=2, stepping=stepping, seed=0, watch=watch)
    with pytest.raises(SelectronError, match="two models"):
        CommitteeField(mace_system(water(2)), [tiny_mace()], hyperactive(relative_strength=0.2))


def test_potentials_without_differentiable_features_say_what_to_choose_instead():
    structures = [Atoms("HCOH", np.eye(4, 3) + 0.1 * k) for k in range(2)]
    system = make_system(Springs(4), structures, descriptor=NodeFeatures())
    field = WellTemperedMetadynamics(system, kT_eV=0.05, height_eV=0.1, bias_factor=5.0, every=3)
    with pytest.raises(SelectronError, match="inverse-distances"):
        field(system.template.positions, field.start(), 0)


class Trapdoor(MuellerBrown):
    """Müller–Brown with a hole: where x > ``edge`` the force is not a number."""

    edge = 0.9

    def energies_and_forces(self, points):
        energies, forces = super().energies_and_forces(points)
        return energies, torch.where(points[:, :1] > self.edge, torch.nan, forces)


@pytest.mark.parametrize("dynamics", ["brownian", "langevin", "metad"])
def test_a_replica_that_explodes_ends_with_its_reason_and_the_others_do_not_notice(dynamics):
    starts = [[-0.5, 1.4], [-0.6, 1.3], [-0.9, 0.7], [-0.7, 1.2], [0.88, 0.05]]

    def sampler(potential):
        system = plane(potential, starts)
        field = Unbiased(system)
        if dynamics == "metad":
            field = WellTemperedMetadynamics(system, kT_eV=20.0, height_eV=5.0, bias_factor=5.0, every=2, width=0.1)
        if dynamics == "langevin":
            return langevin(field, temperature_K=2e5, timestep_fs=0.2, damping_time_fs=5.0, seed=4, watch=FREE)
        return brownian(field, kT_eV=20.0, step_size=2e-4, seed=4, watch=FREE)

    state, infos = run(sampler(Trapdoor()), 60)
    plain, expected = run(sampler(MuellerBrown()), 60)
    assert state.ended.tolist() == [-1, -1, -1, -1, 0]
    assert REASONS[0] == "energy or forces are not finite"
    fell = [k for k, info in enumerate(infos) if int(info.broken[4]) >= 0]
    assert len(fell) == 1
    assert not bool(torch.isfinite(infos[fell[0]].forces[4]).all())
    assert torch.equal(state.positions[:4], plain.positions[:4])
    assert bool((state.positions[4, 0] <= 0.9).all())
    assert bool(torch.isfinite(state.positions).all())
    assert bool(torch.isfinite(state.field.forces).all())
    for ours, theirs in zip(infos, expected, strict=True):
        assert torch.equal(ours.positions[:4], theirs.positions[:4])
    assert all(torch.equal(info.positions[4], state.positions[4]) for info in infos[fell[0] + 1 :])


def test_a_molecule_that_explodes_in_a_mace_leaves_the_others_bit_for_bit():
    structures = water(3)
    bad = [*structures, molecule("H2O")]
    bad[3].positions[1] = bad[3].positions[0] + [0.0, 0.3, 0.0]
    watch = Watch(geometry=Geometry(min_distance_A=0.5))
    states = []
    for those in (bad, [*structures, molecule("H2O")]):
        sampler = brownian(Unbiased(make_system(tiny_mace(), those)), kT_eV=0.05, step_size=0.01, seed=1, watch=watch)
        states.append(run(sampler, 10)[0])
    assert states[0].ended.tolist() == [-1, -1, -1, 1]
    assert torch.equal(states[0].positions[:9], states[1].positions[:9])


@pytest.mark.parametrize("step_fs", [300.0, 1e6, 1e300])
@pytest.mark.parametrize("periodic", [False, True])
def test_atoms_that_fly_apart_in_one_step_do_not_pass_for_calm(step_fs, periodic):
    # beyond the cutoff a model gives finite energies and no forces
    structures = shaken(crystal(), 2, 0.05) if periodic else water(2)
    field = Unbiased(make_system(tiny_mace(), structures))
    sampler = langevin(field, temperature_K=2000.0, timestep_fs=step_fs, damping_time_fs=1e3, seed=0)
    state, _ = run(sampler, 3)
    assert bool((state.ended >= 0).all())
    assert bool(torch.isfinite(state.positions).all())
    assert (state.positions - torch.cat([torch.from_numpy(a.positions) for a in structures])).abs().max() < 6.0


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Geometry(min_distance_A=5.0), "too close"),
        (Geometry(max_force_eV_A=1e-9), "force"),
        (Geometry(max_energy_rise_eV=-1.0), "rose"),
        (Geometry(max_step_A=1e-9), "too far in one step"),
    ],
)
def test_each_limit_ends_a_trajectory_with_its_own_reason(limits, reason):
    field = Unbiased(make_system(tiny_mace(), water(2)))
    sampler = brownian(field, kT_eV=0.05, step_size=0.01, seed=1, watch=Watch(geometry=limits))
    state, (info,) = run(sampler, 1)
    assert all(reason in REASONS[k] for k in info.broken.tolist())
    assert torch.equal(state.positions, field.system.template.positions)


def test_a_broken_journey_leaves_its_particle_where_it_stood_and_is_not_begun_again():
    starts = [[-0.5, 1.4], [0.899, 0.05], [-0.9, 0.7]]
    sampler = skmd(
        plane(Trapdoor(), starts), particles=3, stepping=Stepping(5.0, 2e-4), seed=0,
        watch=Watch((fixed_steps(40),), NO_LIMITS),
    )  # fmt: skip
    state, infos = sampler.init(), []
    for _ in range(200):
        before = state
        state, info = sampler.step(state)
        infos.append(info)
        if int(info.broken) >= 0:
            assert int(info.particle) == 1
            assert same(state.standing, before.standing)
            assert state.usable.tolist() == [[True, False, True]]
            assert int(state.active) == 2
            assert torch.equal(state.positions[0], state.standing.positions[0, 2, 0])
    assert sum(int(info.broken) >= 0 for info in infos) == 1
    after = next(k for k, info in enumerate(infos) if int(info.broken) >= 0) + 1
    assert {int(info.particle) for info in infos[after:]} == {0, 2}
    assert torch.equal(state.standing.positions[0, 1, 0], torch.tensor([0.899, 0.05, 0.0], dtype=torch.float64))
    assert int(state.ended) == -1
    assert int(state.acquired) == sum(int(info.stopped) >= 0 for info in infos)


def test_an_ensemble_ends_when_no_particle_can_move_and_other_ensembles_go_on():
    potential = Trapdoor()
    potential.edge = -0.2
    doomed = [[0.3, 0.2], [0.6, 0.1], [0.5, 0.05]]
    calm = [[-0.5, 1.4], [-0.6, 1.3], [-0.7, 1.2]]

    def sampler(ensembles, surface):
        starts = [point for ensemble in ensembles for point in ensemble]
        return skmd(
            plane(surface, starts), particles=3, stepping=Stepping(20.0, 1e-4, noisy=False), seed=0,
            watch=Watch((fixed_steps(5),), NO_LIMITS), stein=SteinKernel(bandwidth=fixed_bandwidth(0.3)),
        )  # fmt: skip

    state, infos = run(sampler([doomed, calm], potential), 12)
    alone, expected = run(sampler([calm], potential), 12)
    assert state.ended.tolist() == [0, -1]
    assert [int(info.broken[0]) for info in infos] == [0, 0, 0] + [-1] * 9
    assert all(int(info.stopped[0]) == -1 for info in infos)
    for ours, theirs in zip(infos, expected, strict=True):
        torch.testing.assert_close(ours.positions[1:], theirs.positions, atol=1e-12, rtol=0)
    assert torch.equal(state.standing.positions[0, :, 0, :2], torch.tensor(doomed, dtype=torch.float64))
    assert int(alone.ended) == -1


@pytest.mark.parametrize("descriptor", [NodeFeatures(), InverseDistances(), Coordinates()])
@pytest.mark.parametrize("make", [skmd, synchronous_skmd])
def test_a_particle_that_breaks_does_not_take_the_rest_of_its_ensemble_along(make, descriptor):
    class Fragile:
        """A small MACE that gives no number for molecules longer than 1.3 Å in an O–H distance."""

        def __init__(self):
            self.inner = tiny_mace()

        def __getattr__(self, name):
            return getattr(self.inner, name)

        def spoilt(self, positions, energies):
            r = positions.detach().reshape(-1, 3, 3)
            return torch.where((r[:, 1] - r[:, 0]).norm(dim=1) > 1.3, torch.nan, torch.ones_like(energies)) * energies

        def evaluate(self, batch, **options):
            found = self.inner.evaluate(batch, **options)
            energies = self.spoilt(batch.positions, found.energies)
            bad = (energies * 0).repeat_interleave(3)[:, None]
            features = None if found.node_features is None else found.node_features + bad
            return Evaluation(energies, found.forces + bad, None, features)

        def differentiable(self, batch, **options):
            found = self.inner.differentiable(batch, **options)
            factor = self.spoilt(found.positions, torch.ones_like(found.energies))
            atoms = factor.repeat_interleave(3)[:, None]
            features = None if found.node_features is None else found.node_features * atoms
            return found._replace(energies=found.energies * factor, node_features=features)

    structures = water(4, 0.02)
    direction = structures[1].positions[1] - structures[1].positions[0]
    structures[1].positions[1] += (1.2999 / np.linalg.norm(direction) - 1.0) * direction
    system = make_system(Fragile(), structures, descriptor=descriptor)
    alignment = kabsch(torch.ones(3, dtype=torch.float64))
    sampler = make(
        system, particles=4, stepping=Stepping(0.02, 0.005), seed=1, stein=SteinKernel(alignment=alignment),
        watch=Watch((fixed_steps(4),)),
    )  # fmt: skip
    state, infos = run(sampler, 16)
    broken = {int(p) for info in infos for p, b in zip(info.particle, info.broken, strict=True) if b >= 0}
    assert broken == {1}
    everywhere = state.standing.positions if make is skmd else state.positions
    assert bool(torch.isfinite(everywhere).all())
    assert bool(torch.isfinite(state.field.bias_forces).all())
    assert int((state.ended >= 0).sum()) == (0 if make is skmd else 1)


def test_anchors_act_and_never_move():
    sampler = skmd(
        plane(MuellerBrown(), STARTS), particles=4, stepping=Stepping(20.0, 2e-4), seed=0, anchors=2,
        watch=Watch((fixed_steps(3),), NO_LIMITS),
    )  # fmt: skip
    state, infos = run(sampler, 31)
    assert {int(info.particle) for info in infos} == {0, 1}
    start = torch.tensor(STARTS, dtype=torch.float64)
    assert torch.equal(state.standing.positions[0, 2:, 0, :2], start[2:])
    assert bool((state.standing.positions[0, :2, 0, :2] != start[:2]).all())
    without = skmd(
        plane(MuellerBrown(), STARTS[:2]), particles=2, stepping=Stepping(20.0, 2e-4), seed=0,
        watch=Watch((fixed_steps(3),), NO_LIMITS), stein=SteinKernel(bandwidth=fixed_bandwidth(0.5)),
    )  # fmt: skip
    assert (without.init().field.bias_forces - sampler.init().field.bias_forces).abs().max() > 1e-2


def test_what_is_acquired_is_the_configuration_that_the_step_reported_and_its_energy_and_forces():
    sampler = skmd(
        mace_system(water(3)), particles=3, stepping=Stepping(0.05, 0.01), seed=0,
        watch=Watch((fixed_steps(4),), NO_LIMITS),
    )  # fmt: skip
    state = sampler.init()
    for _ in range(13):
        state, info = sampler.step(state)
        if int(info.stopped) >= 0:
            who = int(info.particle)
            assert torch.equal(state.standing.positions[0, who], info.positions)
            assert torch.equal(state.standing.forces[0, who], info.forces)
            fresh = make_system(tiny_mace(), [Atoms("OHH", info.positions.numpy())], descriptor=NodeFeatures())
            again = skmd(fresh, particles=1, stepping=Stepping(0.05, 0.01), seed=0, watch=sampler_watch()).init()
            torch.testing.assert_close(again.standing.descriptors[0, 0], state.standing.descriptors[0, who])
            torch.testing.assert_close(again.standing.jacobians[0, 0], state.standing.jacobians[0, who])
            assert int(state.age) == 0
    assert int(state.acquired) == 3


def sampler_watch():
    return Watch((fixed_steps(1),), NO_LIMITS)


def reading(age, bias=math.nan, uncertainty=math.nan):
    return Reading(
        torch.tensor([age]),
        torch.zeros(1, dtype=torch.float64),
        torch.tensor([bias], dtype=torch.float64),
        torch.tensor([uncertainty], dtype=torch.float64),
    )


def test_the_first_criterion_that_holds_gives_the_reason_and_none_before_its_minimum_of_steps():
    stopping = (bias_norm_below(0.5, 10), uncertainty_above(0.2, 5), fixed_steps(100))
    expected = [
        (reading(9, 0.1), -1), (reading(10, 0.1), 0), (reading(10, 0.5), -1), (reading(5, 0.9, 0.3), 1),
        (reading(4, 0.9, 0.3), -1), (reading(10, 0.1, 0.3), 0), (reading(99, 0.9, 0.1), -1), (reading(100), 2),
        (reading(100, 0.1), 0),
    ]  # fmt: skip
    for one, index in expected:
        assert first_that_holds(stopping, one).tolist() == [index]
    assert [c.name for c in stopping] == ["bias-norm-below", "uncertainty-above", "fixed-steps"]
    for wrong in (lambda: fixed_steps(0), lambda: bias_norm_below(0.0, 3), lambda: bias_norm_below(math.nan, 3)):
        with pytest.raises(SelectronError):
            wrong()


def test_adaptive_stopping_acquires_the_first_configuration_after_the_minimum_whose_bias_is_small():
    threshold, minimum = 12.0, 4
    sampler = skmd(
        plane(MuellerBrown(), STARTS), particles=4, stepping=Stepping(20.0, 2e-4), seed=3,
        stein=SteinKernel(bandwidth=fixed_bandwidth(0.3)),
        watch=Watch((bias_norm_below(threshold, minimum), fixed_steps(60)), NO_LIMITS),
    )  # fmt: skip
    state, age, reasons = sampler.init(), 0, []
    for _ in range(400):
        state, info = sampler.step(state)
        age += 1
        small = age >= minimum and float(info.bias_norm) < threshold
        assert int(info.stopped) == (0 if small else 1 if age == 60 else -1)
        if int(info.stopped) >= 0:
            reasons.append(int(info.stopped))
            age = 0
    assert 0 in reasons
    assert len(reasons) == int(state.acquired)


def test_independent_replicas_are_acquired_and_their_age_begins_anew():
    members = [Harmonic([1.0, 0.9]), Harmonic([1.0, 1.1])]
    system = plane(members[0], [[0.0, 0.0], [0.0, 3.0]])
    field = CommitteeField(system, members, uncertainty_driven(height_eV=0.4, width_eV=0.2))
    sampler = brownian(field, kT_eV=0.01, step_size=0.001, seed=1, watch=Watch((uncertainty_above(0.3, 5),), NO_LIMITS))
    state, infos = run(sampler, 17)
    # σ = 0.1 y²/2: 0.45 eV for the second, next to none for the first
    assert [[k for k, i in enumerate(infos) if int(i.stopped[p]) >= 0] for p in (0, 1)] == [[], [4, 9, 14]]
    assert state.acquired.tolist() == [0, 3]
    assert state.age.tolist() == [17, 2]


def test_the_schedule_of_the_paper_halves_from_iteration_250_to_300():
    schedule = Schedule(hold=250, end=300, final=0.5)
    complete = torch.tensor([0, 100, 249, 250, 274, 299, 300, 1000])
    # iteration number 1, 101, 250, 251, 275, 300, ...
    expected = [1.0, 1.0, 1.0, 0.99, 0.75, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(schedule.factor(complete).numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("make", [skmd, synchronous_skmd])
def test_amplitude_and_bandwidth_follow_their_schedules_from_where_the_rule_left_them(make):
    schedule = Schedule(hold=4, end=8, final=0.5)
    stein = SteinKernel(amplitude=2.0, amplitude_schedule=schedule, bandwidth_schedule=schedule)
    every = 2 if make is skmd else 1
    sampler = make(
        plane(MuellerBrown(), STARTS), particles=4, stepping=Stepping(20.0, 2e-4), seed=3, stein=stein,
        watch=Watch((fixed_steps(every),), NO_LIMITS),
    )  # fmt: skip
    state, held, seen = sampler.init(), None, []
    for iteration in range(1, 11):
        where = state.standing.positions if make is skmd else state.positions.reshape(1, 4, 1, 3)
        flat = where.reshape(4, 3)
        if iteration <= 4:
            held = np.median(torch.pdist(flat).numpy())
        factor = 1.0 if iteration <= 4 else max(1.0 - 0.5 * (iteration - 4) / 4, 0.5)
        if make is skmd:
            assert float(state.bandwidth) == pytest.approx(held * factor, rel=1e-12)
            assert float(state.amplitude) == pytest.approx(2.0 * factor, rel=1e-12)
        else:
            assert float(state.memory.bias.bandwidth) == pytest.approx(held, rel=1e-12)
        seen.append(factor)
        for _ in range(every):
            state, _ = sampler.step(state)
    assert seen[3] == 1.0
    assert seen[7] == 0.5


def standing(descriptors):
    e, m, _ = descriptors.shape
    zero = torch.zeros(e, m, 1, 3, dtype=torch.float64)
    return Standing(zero, zero[:, :, 0, 0], zero, descriptors, zero[:, :, 0], zero[:, :, 0, 0])


def test_the_median_bandwidth_is_numpys_median_of_the_pairs():
    random = np.random.default_rng(0)
    for count in (2, 3, 5, 30):
        d = random.normal(size=(3, count, 7))
        squared = pair_distances(standing(torch.from_numpy(d)), lambda a, b: None, False)
        expected = [
            np.median([np.linalg.norm(d[e, i] - d[e, j]) for i in range(count) for j in range(i)]) for e in range(3)
        ]
        np.testing.assert_allclose(median_bandwidth()(squared).numpy(), expected, rtol=1e-12)
        np.testing.assert_allclose(median_bandwidth(0.7)(squared).numpy(), 0.7 * np.array(expected), rtol=1e-12)
    assert median_bandwidth()(torch.zeros(2, 1, 1, dtype=torch.float64)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("count", [4, 30])
def test_particles_that_are_all_the_same_have_no_median_distance(count):
    sampler = skmd(
        mace_system([molecule("H2O")] * count), particles=count, stepping=Stepping(0.05, 0.01), seed=0,
        watch=Watch((fixed_steps(2),)),
    )  # fmt: skip
    with pytest.raises(SelectronError, match="the same configuration"):
        sampler.init()
    with pytest.raises(SelectronError, match="positive length"):
        fixed_bandwidth(0.0)


def test_drifts_are_shortened_where_they_are_too_long_and_the_step_says_so():
    system = plane(Harmonic(1.0), [[3.0, 4.0], [0.03, 0.04]])
    sampler = brownian(Unbiased(system), kT_eV=0.0, step_size=0.5, seed=0, watch=FREE, max_displacement_A=0.1)
    _, (info,) = run(sampler, 1)
    assert info.limited.tolist() == [True, False]
    np.testing.assert_allclose(info.positions[:, :2].numpy(), [[3.0 - 0.06, 4.0 - 0.08], [0.015, 0.02]], atol=1e-12)


def test_states_are_plain_data():
    def leaves(value):
        if isinstance(value, tuple):
            for part in value:
                yield from leaves(part)
        else:
            yield value

    for kind, make in samplers(water(3)).items():
        state, _ = run(make(), 4)
        state = state._replace(memory=state.memory._replace(graphs=()))
        kinds = {type(leaf) for leaf in leaves(state)}
        assert kinds <= {torch.Tensor, int}, (kind, kinds)
        assert not any(leaf.requires_grad for leaf in leaves(state) if isinstance(leaf, torch.Tensor))


def test_a_double_well_is_symmetric_for_the_ensemble_and_the_walker():
    # mirrored starts and mirrored noise give mirrored paths: nothing in a step prefers a direction
    sampler = skmd(
        plane(DoubleWell(), [[0.3, 0.1], [-0.8, 0.2], [1.1, -0.3]]), particles=3, seed=0,
        stepping=Stepping(0.1, 0.01, noisy=False), watch=Watch((fixed_steps(2),), NO_LIMITS),
    )  # fmt: skip
    mirrored = skmd(
        plane(DoubleWell(), [[-0.3, 0.1], [0.8, 0.2], [-1.1, -0.3]]), particles=3, seed=0,
        stepping=Stepping(0.1, 0.01, noisy=False), watch=Watch((fixed_steps(2),), NO_LIMITS),
    )  # fmt: skip
    for one, other in zip(run(sampler, 20)[1], run(mirrored, 20)[1], strict=True):
        mirror = torch.tensor([-1.0, 1.0, 1.0])
        torch.testing.assert_close(one.positions, other.positions * mirror, atol=1e-13, rtol=0)
