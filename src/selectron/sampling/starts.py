"""Where trajectories start: checks of the structures a user gives, and the initial ensemble of SKMD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.optimize import FIRE

from selectron.errors import SelectronError
from selectron.potentials.base import Potential
from selectron.sampling import noise
from selectron.sampling.brownian import brownian
from selectron.sampling.build import PARTICLES, geometry_of_options, is_planar, motion_of
from selectron.sampling.geometry import REASONS
from selectron.sampling.langevin import langevin
from selectron.sampling.options import STEIN, SampleOptions
from selectron.sampling.state import Sampler, Watch
from selectron.sampling.system import make_system
from selectron.sampling.unbiased import Unbiased
from selectron.sampling.units import BOLTZMANN_EV_PER_K
from selectron.structures.checks import Checks
from selectron.structures.constraints import (
    FREE_ARRAY,
    free_coordinates,
    held_by_arrays,
    of_nothing_computed,
    unknown_constraints,
)
from selectron.structures.electronic_state import state_info

_RELAXATION_STEPS = 1000
_STREAM = 8  # of the noise of burn-in; 0 and 1 are the samplers' own

OnStep = Callable[[int, int], None]
"""Told the steps done and the steps in all."""


def checked_starts(structures: Sequence[Atoms], members: Sequence[Potential], options: SampleOptions) -> list[Atoms]:
    """Copies without labels of ``structures``; raises SelectronError for the first that cannot be sampled.

    Their constraints are those that :func:`constrained` finds.
    """
    if not structures:
        raise SelectronError("There is no structure to start from.")
    planar = is_planar(members[0])
    known = [member.elements for member in members if member.elements is not None]
    checks = Checks(elements=frozenset.intersection(*known) if known else None)
    for index, atoms in enumerate(structures):
        wrong = _planar_problem(atoms) if planar else checks.check(atoms)
        if wrong:
            raise SelectronError(
                f"Starting structure {index} ({atoms.get_chemical_formula()}) cannot be sampled: {wrong}."
            )
    first = structures[0]
    if options.method in STEIN:
        for index, atoms in enumerate(structures):
            if len(atoms) != len(first) or (atoms.numbers != first.numbers).any():
                raise SelectronError(
                    f"{options.method} samples one system, but starting structure {index} "
                    f"({atoms.get_chemical_formula()}) is not made of the same atoms in the same order as structure 0 "
                    f"({first.get_chemical_formula()})."
                )
    return constrained([_bare(atoms) for atoms in structures], options)


def constrained(structures: Sequence[Atoms], options: SampleOptions) -> list[Atoms]:
    """Copies of ``structures`` with what is held in them: by constraints, else by an array ``fixed`` or ``move_mask``.

    ``options.constraints`` = "ignore" lets everything move. Raises SelectronError for a constraint that no sampler obeys, and
    where nothing could move.
    """
    found = [atoms.copy() for atoms in structures]
    for index, atoms in enumerate(found):
        where = f"Starting structure {index} ({atoms.get_chemical_formula()})"
        if options.constraints == "ignore":
            atoms.set_constraint()
            continue
        unknown = unknown_constraints(atoms)
        if unknown:
            raise SelectronError(
                f"{where} has the constraint {unknown[0]}, which no sampler obeys: they hold what FixAtoms and FixCartesian "
                "hold; remove it, or let everything move with --constraints ignore (constraints: ignore)."
            )
        held_by_arrays(atoms)
        free = free_coordinates(atoms)
        if free is not None and not free.any():
            raise SelectronError(
                f"{where} cannot move: all its atoms are held in place; --constraints ignore (constraints: ignore) lets them."
            )
    return found


def _planar_problem(atoms: Atoms) -> str | None:
    if len(atoms) != 1:
        return f"a point on a surface is one atom, and it has {len(atoms)}"
    if not np.isfinite(atoms.positions).all():
        return "its position is not finite"
    return None


def _bare(atoms: Atoms) -> Atoms:
    """What a structure is: atoms, what holds them, charge and multiplicity; labels and all else are of the start alone."""
    bare = of_nothing_computed(atoms, state_info(atoms))
    if FREE_ARRAY in atoms.arrays:  # becomes a constraint
        bare.set_array(FREE_ARRAY, atoms.arrays[FREE_ARRAY])
    return bare


def particles_of(options: SampleOptions, starts: int) -> int:
    """M, with its default."""
    return options.particles or (PARTICLES if options.method in STEIN else starts)


def preparation_steps(options: SampleOptions, starts: int) -> int:
    """Steps of dynamics that the initial ensemble costs; 0 where the starts suffice."""
    particles = particles_of(options, starts)
    if options.method not in STEIN or starts >= particles:
        return 0
    return options.initial.burn_in_steps + -(-particles // starts) * options.initial.snapshot_every


def initial_structures(
    starts: Sequence[Atoms], members: Sequence[Potential], options: SampleOptions, *, on_step: OnStep | None = None
) -> list[Atoms]:
    """The configurations that E ensembles of M particles begin with, one ensemble after the other.

    * As many starts as particles in all, or more: evenly spaced ones of them; each ensemble spans them all.
    * As many as one ensemble has, or more: the same for every ensemble.
    * Fewer: independent trajectories share starts. SKMD makes its particles as the paper does (section 5.2): burn-in from
      every start, then snapshots in turn; see :class:`~selectron.sampling.options.InitialEnsemble`.

    Raises SelectronError where relaxation does not converge or the burn-in breaks a structure.
    """
    relax = options.initial.relax
    if relax is None:
        relax = preparation_steps(options, len(starts)) > 0 and not is_planar(members[0])
    if relax:
        starts = [_relaxed(atoms, index, members[0], options) for index, atoms in enumerate(starts)]
    if preparation_steps(options, len(starts)):
        return _snapshots(starts, members[0], options, on_step)
    return [starts[origin].copy() for origin in origins(len(starts), options)]


def origins(starts: int, options: SampleOptions) -> list[int]:
    """Which start each of the E M configurations of :func:`initial_structures` comes from."""
    particles, ensembles = particles_of(options, starts), options.ensembles
    total = particles * ensembles
    if starts >= total:
        spread = [i * starts // total for i in range(total)]
        return [spread[p * ensembles + e] for e in range(ensembles) for p in range(particles)]
    if starts >= particles:
        return [i * starts // particles for i in range(particles)] * ensembles
    return [p % starts for p in range(particles)] * ensembles


def _snapshots(
    starts: Sequence[Atoms], potential: Potential, options: SampleOptions, on_step: OnStep | None
) -> list[Atoms]:
    """Snapshots k = 0, 1, … of all starts in turn, until there are enough for every ensemble."""
    particles = particles_of(options, len(starts))
    initial, chains = options.initial, list(starts) * options.ensembles
    total = preparation_steps(options, len(starts))
    sampler = _burn_in(chains, potential, options)
    state = sampler.init()
    found: list[list[Atoms]] = [[] for _ in range(options.ensembles)]
    for step in range(1, total + 1):
        state, _ = sampler.step(state)
        if on_step is not None:
            on_step(step, total)
        past = step - initial.burn_in_steps
        if past <= 0 or past % initial.snapshot_every:
            continue
        ended = state.ended.tolist()
        broken = next((i for i, reason in enumerate(ended) if reason >= 0), None)
        if broken is not None:
            raise SelectronError(
                f"Starting structure {broken % len(starts)} broke in the burn-in ({REASONS[ended[broken]]}): relax it first "
                "(initial.relax), or lower initial.timestep_fs or initial.temperature_K."
            )
        positions = state.positions.cpu().numpy()
        size = len(starts[0])
        for i, atoms in enumerate(chains):
            snapshot = atoms.copy()
            snapshot.positions = positions[i * size : (i + 1) * size]
            found[i // len(starts)].append(snapshot)
    return [atoms for ensemble in found for atoms in ensemble[:particles]]


def _burn_in(chains: Sequence[Atoms], potential: Potential, options: SampleOptions) -> Sampler:
    initial, motion = options.initial, motion_of(options)
    field = Unbiased(make_system(potential, chains))
    watch = Watch(geometry=geometry_of_options(options.geometry, is_planar(potential)))
    seed = noise.mixed(options.seed, 0, _STREAM)
    kT_eV = motion.kT_eV if initial.temperature_K is None else BOLTZMANN_EV_PER_K * initial.temperature_K
    if options.step_size is not None:
        return brownian(field, kT_eV=kT_eV, step_size=options.step_size, seed=seed, watch=watch)
    return langevin(
        field,
        temperature_K=kT_eV / BOLTZMANN_EV_PER_K,
        timestep_fs=initial.timestep_fs,
        damping_time_fs=initial.damping_time_fs,
        seed=seed,
        watch=watch,
        fix_centre_of_mass=len(chains[0]) > 1,
    )


def _relaxed(atoms: Atoms, index: int, potential: Potential, options: SampleOptions) -> Atoms:
    relaxed, fmax = atoms.copy(), options.initial.relax_fmax_eV_A
    relaxed.calc = _OfPotential(potential)
    if not FIRE(relaxed, logfile=None).run(fmax=fmax, steps=_RELAXATION_STEPS):
        raise SelectronError(
            f"Starting structure {index} did not relax to {fmax} eV/Å in {_RELAXATION_STEPS} steps: raise "
            "initial.relax_fmax_eV_A or relax it beforehand."
        )
    relaxed.calc = None
    return relaxed


class _OfPotential(Calculator):
    """Energy and forces of a :class:`Potential`, for ASE's optimisers."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  as ASE has it

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def calculate(self, atoms: Any = None, properties: Any = None, system_changes: Any = None) -> None:
        super().calculate(atoms, properties or ["energy"], system_changes or ["positions"])
        assert isinstance(self.atoms, Atoms)
        found = self.potential.evaluate(self.potential.batch([self.atoms]))
        assert found.forces is not None
        self.results = {"energy": float(found.energies[0]), "forces": found.forces.double().cpu().numpy()}
