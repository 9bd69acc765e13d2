"""Stein kernelized molecular dynamics with asynchronous updates: one particle of each ensemble moves, the others stand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selectron.errors import SelectronError
from selectron.sampling import noise
from selectron.sampling.brownian import shortened
from selectron.sampling.descriptors import jacobians
from selectron.sampling.ending import geometry_of, kept
from selectron.sampling.state import Field, Info, Memory, Sampler, Watch, norms, without_drift
from selectron.sampling.stein import Standing, SteinKernel, differences, pair_distances, stein_sum
from selectron.sampling.stopping import Reading, first_that_holds
from selectron.sampling.system import System, evaluate, graph_of, shortest_distances
from selectron.sampling.unbiased import plain_field

_JACOBIAN_ATOMS = 512


class Stepping(NamedTuple):
    """How a Stein sampler steps.

    | field              | symbol, unit | meaning                                                                          |
    |--------------------|--------------|----------------------------------------------------------------------------------|
    | kT_eV              | 1/β, eV      |                                                                                  |
    | step_size          | ε, Å²/eV     | see :func:`~selectron.sampling.units.brownian_step_size`                          |
    | gradient_scale     | α            | weight of the particle's own force; 1 as a rule (SKMD, section 3.1)               |
    | form               |              | "sum", "mean" or "full": how eq. 5a shares time between F and b, see :func:`skmd` |
    | noisy              |              | False leaves the noise out; with α = k(r, r) that is SVGD                         |
    | max_displacement_A | Å            | drifts that would move an atom further are shortened; None: never                |
    | fix_centre_of_mass |              | takes the mean displacement out of every step                                    |
    """

    kT_eV: float
    step_size: float
    gradient_scale: float = 1.0
    form: str = "sum"
    noisy: bool = True
    max_displacement_A: float | None = 0.1
    fix_centre_of_mass: bool = False

    def rates(self, particles: int) -> tuple[float, float]:
        """Factors of ε F(r), noise included, and of ε b(r) for an ensemble of ``particles``."""
        own = self.gradient_scale * (1.0 / particles if self.form == "mean" else 1.0)
        return own, float(particles) if self.form == "sum" else 1.0


class SteinState(NamedTuple):
    """E ensembles of M particles of n atoms, one particle of each on its way.

    | field          | shape     | meaning                                                                               |
    |----------------|-----------|---------------------------------------------------------------------------------------|
    | step           |           | steps so far                                                                          |
    | positions      | (E n, 3)  | of the moving particles, Å                                                            |
    | field          |           | of the moving particles; ``bias_forces`` is b of eq. 5b, so with the factor 1/M        |
    | memory         |           | neighbour list of the moving particles                                                |
    | standing       |           | all particles at the ends of their last journeys                                      |
    | active         | (E,)      | which particle moves                                                                  |
    | age            | (E,)      | steps of its journey so far                                                           |
    | acquired       | (E,)      | journeys that ended with an acquisition                                               |
    | iteration      | (E,)      | outer iterations: journeys so far                                                     |
    | usable         | (E, M)    | False for particles that only stand: anchors, and those whose geometry broke          |
    | bandwidth      | (E,)      | ℓ at present                                                                          |
    | held_bandwidth | (E,)      | ℓ as the rule last gave it, from which a schedule decays                              |
    | amplitude      | (E,)      | h at present                                                                          |
    | ended          | (E,)      | −1 while a particle can move; else the index of what broke the last one               |
    | first_energies | (E, M)    | energies at the start, against which a rise is measured                               |
    """

    step: int
    positions: Tensor
    field: Field
    memory: Memory
    standing: Standing
    active: Tensor
    age: Tensor
    acquired: Tensor
    iteration: Tensor
    usable: Tensor
    bandwidth: Tensor
    held_bandwidth: Tensor
    amplitude: Tensor
    ended: Tensor
    first_energies: Tensor


def skmd(
    system: System,
    *,
    particles: int,
    stepping: Stepping,
    seed: int,
    stein: SteinKernel = SteinKernel(),  # noqa: B008
    watch: Watch,
    anchors: int = 0,
) -> Sampler:
    """SKMD (SKMD, eqs. 5 to 8), and with a criterion on the bias norm a-SKMD.

        r ← r + ε [ α F(r) + M b(r) ] + √(2 ε α kT) ξ                    form "sum"
        r ← r + ε [ (α/M) F(r) + b(r) ] + √(2 ε α kT / M) ξ              form "mean"
        r ← r + ε [ α F(r) + b(r) ] + √(2 ε α kT) ξ                      form "full"
        b(r) = (1/M) Σ_{j≠i} [ k(r_j, r) F(r_j) + kT ∇_{r_j} k(r_j, r) ]

    The constants of the paper's eq. 5 are lost in the text at hand; this form has every limit the paper states: α = k(r, r)
    without noise is the velocity of SVGD, M = 1 with α = 1 is overdamped Langevin dynamics, and the noise of the mean
    form vanishes as M → ∞. These two forms differ by the unit of time. In the mean form a particle goes M times slower in its
    own force than a Langevin particle with the same ε; in the sum form, the default, steps are comparable, and with one
    seed both feel the same Brownian path. The full form is Langevin dynamics with the bias of eq. 5b beside it: the mean form
    with α = M. A molecule stays whole in it where the bias of the sum form tears it, and amplitudes above 1 are of use.

    When a criterion of ``watch.stopping`` holds, the configuration is acquired, takes its particle's place, and the
    ensemble goes over to the next particle. F(r_j), d(r_j) and J(r_j) of standing particles are kept, so that a step
    costs one model call, and a journey the backward passes for one Jacobian.

    Args:
        system: its structures are E ensembles of ``particles`` structures one after the other, all of one size n and
            composition, with the same coordinates held.
        particles: M, anchors included.
        stepping: temperature, step size and form.
        seed: of the noise.
        stein: kernel, bandwidth, schedules, alignment.
        watch: stopping criteria (at least one) and limits on the geometry. A journey whose geometry breaks is given up: its
            particle stays where it stood and moves no more, and the next one sets out.
        anchors: how many of the last particles of each ensemble never move, such as structures that are labelled already.

    Raises SelectronError where sizes differ, the descriptor is missing, or nothing would ever stop.
    """
    _check(system, particles, anchors, stepping, watch)
    ensembles = system.n_structures // particles
    moving = _moving(system, particles)
    atoms = len(system.structures[0])
    identity = moving.descriptor is not None and moving.descriptor.identity
    dtype = getattr(system.potential, "dtype", torch.float64)
    of_all = torch.arange(ensembles, device=system.device)
    own, share = stepping.rates(particles)
    thermal = math.sqrt(2.0 * stepping.step_size * own * stepping.kT_eV) if stepping.noisy else 0.0

    def bias(positions: Tensor, descriptors: Tensor, state: SteinState) -> Tensor:
        """b (E n, 3) at ``positions`` (E n, 3)."""
        here = positions.reshape(ensembles, atoms, 3)
        apart, rotations = differences(here, descriptors, state.standing, stein.alignment, identity)
        present = torch.ones_like(state.standing.energies)
        present[of_all, state.active] = 0.0
        total = stein_sum(
            apart,
            rotations,
            state.standing,
            present,
            stein,
            bandwidth=state.bandwidth,
            amplitude=state.amplitude,
            kT_eV=stepping.kT_eV,
            identity=identity,
        )
        return total.reshape(-1, 3) * moving.free / particles

    def jacobian_of(positions: Tensor, which: Tensor) -> Tensor:
        """J (W, D, 3n) of the moving particles ``which`` (W,)."""
        if identity:
            return positions.new_zeros((len(which), 0, 3 * atoms)).to(dtype)
        assert moving.descriptor is not None
        batch, _ = graph_of(moving, positions, None)
        free = moving.free.reshape(ensembles, 1, -1)[which]
        return jacobians(system.potential, moving.descriptor, batch.take(which)) * free.to(dtype)

    def init() -> SteinState:
        found = evaluate(system, system.template.positions, None)
        assert found.descriptors is not None
        assert found.evaluation.forces is not None
        shape = (ensembles, particles)
        standing = Standing(
            positions=system.template.positions.reshape(*shape, atoms, 3).clone(),
            energies=found.evaluation.energies.reshape(shape),
            forces=found.evaluation.forces.reshape(*shape, atoms, 3),
            descriptors=found.descriptors.reshape(*shape, -1),
            jacobians=_all_jacobians(system, found.batch, shape, identity, dtype),
            shortest=shortest_distances(system, found.batch).reshape(shape),
        )
        usable = torch.ones(shape, dtype=torch.bool, device=system.device)
        usable[:, particles - anchors :] = False
        zero = torch.zeros(ensembles, dtype=torch.int64, device=system.device)
        bandwidth = stein.bandwidth(pair_distances(standing, stein.alignment, identity))
        positions, field = at_rest(standing, zero)
        state = SteinState(
            step=0,
            positions=positions,
            field=field,
            memory=Memory((None,)),
            standing=standing,
            active=zero,
            age=zero,
            acquired=zero,
            iteration=zero,
            usable=usable,
            bandwidth=bandwidth,
            held_bandwidth=bandwidth,
            amplitude=torch.full_like(bandwidth, stein.amplitude),
            ended=torch.full_like(zero, -1),
            first_energies=standing.energies,
        )
        return scheduled(state, of_all >= 0)

    def at_rest(standing: Standing, active: Tensor) -> tuple[Tensor, Field]:
        """Positions (E n, 3) and field of the particles ``active`` (E,) where they stand; nothing is computed."""
        energies = standing.energies[of_all, active]
        forces = standing.forces[of_all, active].reshape(-1, 3)
        field = Field(
            energies=energies,
            forces=forces,
            bias_forces=torch.zeros_like(forces),
            uncertainty=torch.full_like(energies, float("nan")),
            descriptors=standing.descriptors[of_all, active],
            shortest=standing.shortest[of_all, active],
        )
        return standing.positions[of_all, active].reshape(-1, 3), field

    def taken_up(state: SteinState, which: Tensor) -> SteinState:
        """The active particles of the ensembles ``which`` (E,) bool start from where they stand."""
        positions, field = at_rest(state.standing, state.active)
        positions = torch.where(moving.of_atoms(which)[:, None], positions, state.positions)
        return state._replace(positions=positions, field=kept(moving, ~which, state.field, field))

    def scheduled(state: SteinState, which: Tensor) -> SteinState:
        """Bandwidth and amplitude of the iteration that begins in the ensembles ``which``, and the bias with them."""
        held = state.held_bandwidth
        if bool((which & (state.iteration < stein.bandwidth_schedule.hold)).any()):
            fresh = stein.bandwidth(pair_distances(state.standing, stein.alignment, identity))
            held = torch.where(which & (state.iteration < stein.bandwidth_schedule.hold), fresh, held)
        state = state._replace(
            held_bandwidth=held,
            bandwidth=held * stein.bandwidth_schedule.factor(state.iteration),
            amplitude=stein.amplitude * stein.amplitude_schedule.factor(state.iteration),
        )
        b = bias(state.positions, state.field.descriptors, state)
        return state._replace(field=state.field._replace(bias_forces=b))

    def step(state: SteinState) -> tuple[SteinState, Info]:
        drift = stepping.step_size * (own * state.field.forces + share * state.field.bias_forces)
        drift, limited = shortened(drift, stepping.max_displacement_A)
        move = drift
        if thermal:
            shape = tuple(state.positions.shape)
            move = move + thermal * noise.normal(seed, state.step, shape, system.device)
        move = move * moving.free
        if stepping.fix_centre_of_mass:
            move = without_drift(moving, move, torch.ones_like(moving.masses))
        positions = state.positions + move * moving.of_atoms(state.ended < 0)[:, None]
        found = evaluate(moving, positions, state.memory.graphs[0])
        assert found.descriptors is not None
        field = plain_field(found.evaluation, found.descriptors, shortest_distances(moving, found.batch))
        field = field._replace(bias_forces=bias(positions, found.descriptors, state))
        age = state.age + 1
        bias_norm = norms(moving, field.bias_forces)
        moved = positions - state.positions
        wrong = geometry_of(moving, watch.geometry, field, state.first_energies[of_all, state.active], moved)
        reading = Reading(age, field.energies, bias_norm, field.uncertainty)
        stopped = first_that_holds(watch.stopping, reading)
        running = state.ended < 0
        wrong = torch.where(running, wrong, torch.full_like(wrong, -1))
        stopped = torch.where(running & (wrong < 0), stopped, torch.full_like(stopped, -1))
        info = Info(
            positions=positions,
            energies=field.energies,
            forces=field.forces,
            bias_norm=bias_norm,
            temperature_K=torch.full_like(field.energies, float("nan")),
            uncertainty=field.uncertainty,
            particle=state.active,
            stopped=stopped,
            broken=wrong,
            limited=moving.per_structure(limited.double()) > 0,
        )
        after = state._replace(
            step=state.step + 1, positions=positions, field=field, memory=Memory((found.graph,)), age=age
        )
        over = (stopped >= 0) | (wrong >= 0)
        if bool(over.any()):
            after = handed_over(after, stopped >= 0, wrong)
        return after, info

    def handed_over(state: SteinState, stopped: Tensor, wrong: Tensor) -> SteinState:
        """Puts what was acquired in its particle's place and lets the next particle set out."""
        over = stopped | (wrong >= 0)
        standing = state.standing
        which = torch.nonzero(stopped).squeeze(1)
        if len(which):
            slot = (which, state.active[which])
            values = state.positions.reshape(ensembles, atoms, 3)
            standing = Standing(
                positions=_put(standing.positions, slot, values[which]),
                energies=_put(standing.energies, slot, state.field.energies[which]),
                forces=_put(standing.forces, slot, state.field.forces.reshape(ensembles, atoms, 3)[which]),
                descriptors=_put(standing.descriptors, slot, state.field.descriptors[which]),
                jacobians=_put(standing.jacobians, slot, jacobian_of(state.positions, which)),
                shortest=_put(standing.shortest, slot, state.field.shortest[which]),
            )
        usable = state.usable.clone()
        bad = torch.nonzero(wrong >= 0).squeeze(1)
        usable[bad, state.active[bad]] = False
        ahead = (state.active[:, None] + 1 + torch.arange(particles, device=system.device)) % particles
        next_one = torch.argmax(torch.gather(usable, 1, ahead).to(torch.int8), dim=1)
        following = ahead[of_all, next_one]
        zero = torch.zeros_like(state.age)
        state = state._replace(
            standing=standing,
            usable=usable,
            active=torch.where(over, following, state.active),
            age=torch.where(over, zero, state.age),
            acquired=state.acquired + stopped,
            iteration=state.iteration + over,
            ended=torch.where(usable.any(1), state.ended, torch.maximum(state.ended, wrong)),
        )
        return scheduled(taken_up(state, over), over)

    return Sampler("skmd", moving, init, step, watch.stopping)


def _put(whole: Tensor, slot: tuple[Tensor, Tensor], values: Tensor) -> Tensor:
    """A copy of ``whole`` with ``values`` at ``slot``: states are never changed in place."""
    copy = whole.clone()
    copy[slot] = values.to(copy.dtype)
    return copy


def _all_jacobians(system: System, batch: Any, shape: tuple[int, int], identity: bool, dtype: torch.dtype) -> Tensor:
    atoms = len(system.structures[0])
    if identity:
        return torch.zeros((*shape, 0, 3 * atoms), dtype=dtype, device=system.device)
    assert system.descriptor is not None
    # the graph of a batch is kept through all backward passes of its Jacobian, so batches are small
    chunks = torch.split(torch.arange(system.n_structures, device=system.device), max(1, _JACOBIAN_ATOMS // atoms))
    found = torch.cat([jacobians(system.potential, system.descriptor, batch.take(chunk)) for chunk in chunks])
    return (found * system.free.reshape(len(found), 1, -1).to(found.dtype)).reshape(*shape, -1, 3 * atoms)


def _moving(system: System, particles: int) -> System:
    """The system of the moving particles: one structure an ensemble."""
    ensembles = system.n_structures // particles
    atoms = len(system.structures[0])
    chosen = torch.arange(ensembles, device=system.device) * particles
    rows = torch.arange(ensembles * atoms, device=system.device)
    return replace(
        system,
        structures=system.structures[::particles],
        template=system.template.take(chosen),
        masses=system.masses[rows],
        free=system.free[rows],
        whole=system.whole[:ensembles],
    )


def _check(system: System, particles: int, anchors: int, stepping: Stepping, watch: Watch) -> None:
    check_ensembles(system, particles, stepping)
    if not 0 <= anchors < particles:
        raise SelectronError(f"Of {particles} particles {anchors} cannot be anchors: at least one has to move.")
    if not watch.stopping:
        raise SelectronError("SKMD needs a stopping criterion: a number of steps, or a threshold of the bias norm.")


def check_ensembles(system: System, particles: int, stepping: Stepping) -> None:
    """Raises SelectronError where the system is not made of ensembles of ``particles`` configurations of one thing."""
    if system.descriptor is None:
        raise SelectronError("SKMD needs a descriptor.")
    if particles < 1 or system.n_structures % particles:
        raise SelectronError(f"{system.n_structures} structures do not make ensembles of {particles} particles.")
    if stepping.form not in {"sum", "mean", "full"}:
        raise SelectronError(f"The form of SKMD is sum, mean or full, not {stepping.form!r}.")
    first = system.structures[0]
    for atoms in system.structures:
        if len(atoms) != len(first) or (atoms.numbers != first.numbers).any():
            raise SelectronError(
                "All particles of SKMD are configurations of one system, with the same atoms in the same order; "
                f"{atoms.get_chemical_formula()} and {first.get_chemical_formula()} are not."
            )
    free = system.free.reshape(system.n_structures, -1)
    if bool((free != free[0]).any()):
        raise SelectronError("The same atoms have to be fixed in all particles of SKMD.")
