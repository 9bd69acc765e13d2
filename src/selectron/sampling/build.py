"""From options to a sampler: defaults that depend on the potential, and what does not go together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from ase import Atoms
from torch import Tensor

from selectron.errors import SelectronError
from selectron.potentials.base import Potential
from selectron.sampling.alignment import Alignment, kabsch, minimum_image, unaligned
from selectron.sampling.brownian import brownian
from selectron.sampling.committee_bias import Bias, CommitteeField, Disagreement, hyperactive, uncertainty_driven
from selectron.sampling.descriptors import DESCRIPTORS, GlobalDescriptor, NodeFeatures, Projected
from selectron.sampling.geometry import Geometry
from selectron.sampling.kernels import CONSTANT, KERNELS, Bandwidth, Schedule, fixed_bandwidth, median_bandwidth
from selectron.sampling.langevin import langevin
from selectron.sampling.metadynamics import WellTemperedMetadynamics
from selectron.sampling.options import (
    COMMITTEE,
    PAPER_SCHEDULE,
    STEIN,
    AnySchedule,
    BiasNormBelow,
    FixedSteps,
    GeometryOptions,
    SampleOptions,
)
from selectron.sampling.skmd import Stepping, skmd
from selectron.sampling.state import ForceField, Sampler, Watch
from selectron.sampling.stein import SteinKernel
from selectron.sampling.stopping import Stopping, bias_norm_below, fixed_steps, uncertainty_above
from selectron.sampling.svgd import synchronous_skmd
from selectron.sampling.system import System, make_system
from selectron.sampling.unbiased import Unbiased
from selectron.sampling.units import BOLTZMANN_EV_PER_K, brownian_step_size, thermal_energy_eV

Thresholds = dict[str, float]
"""What a pilot found: thresholds by kind of criterion, bias-norm-below in eV/Å, uncertainty-above in eV; and :data:`WIDTH`."""

WIDTH = "udd-width"
"""Key of the width B of the uncertainty-driven bias in eV."""

PARTICLES = 30
"""Of a Stein ensemble where nothing is said (SKMD, section 5.2)."""


class Motion(NamedTuple):
    """Temperature and steps: ``kT_eV`` in eV; overdamped ``step_size`` in Å²/eV, else ``timestep_fs`` and ``damping_time_fs``.

    ``time_per_step_fs`` is None where a bare step size leaves the unit of time open.
    """

    kT_eV: float
    overdamped: bool
    step_size: float
    timestep_fs: float
    damping_time_fs: float
    time_per_step_fs: float | None


def motion_of(options: SampleOptions) -> Motion:
    """With the defaults of the method."""
    temperature = options.temperature_K or (50.0 if options.method in STEIN else 300.0)
    kT_eV = options.kT_eV if options.kT_eV is not None else thermal_energy_eV(temperature)
    timestep = options.timestep_fs or (0.1 if options.overdamped else 1.0)
    step_size = options.step_size or brownian_step_size(timestep, options.damping_amu_per_ps or 75.0)
    damping = options.damping_time_fs or 100.0
    return Motion(
        kT_eV, options.overdamped, step_size, timestep, damping, None if options.step_size is not None else timestep
    )


def check_members(members: Sequence[Potential], options: SampleOptions) -> None:
    """Raises SelectronError where the method wants other models, or one that gives more."""
    method, count = options.method, len(members)
    if count == 0:
        raise SelectronError("Sampling needs a model: give --model.")
    if method in COMMITTEE and count < 2:
        raise SelectronError(
            f"{method} goes by the disagreement of a committee and needs at least two models: give --model more than once."
        )
    if count > 1 and (method in STEIN or method == "metad"):
        raise SelectronError(
            f"{method} takes one model, not {count}; committees are for udd, hal, langevin and brownian."
        )
    if count > 1 and len({member.fingerprint for member in members}) < count:
        raise SelectronError("Two members of the committee are the same model, so they cannot disagree.")
    if count < 2 and any(one.kind == "uncertainty-above" for one in options.criteria):
        raise SelectronError("The criterion uncertainty-above needs a committee: give --model more than once.")
    for member in members:
        if "forces" not in member.capabilities:
            raise SelectronError(f"{member.name} does not give forces, so nothing can be sampled with it.")
    if options.overdamped and is_planar(members[0]) and options.step_size is None:
        raise SelectronError(
            f"{members[0].name} is a surface, whose scale says nothing of femtoseconds: give step_size in Å²/eV "
            "(such as 2e-4 for mueller-brown) and kT_eV."
        )
    needs_descriptor(members[0], options)


def is_planar(potential: Potential) -> bool:
    """Whether structures are points in the plane."""
    return getattr(potential, "dimensions", 3) == 2


def needs_descriptor(potential: Potential, options: SampleOptions) -> GlobalDescriptor | None:
    """The global descriptor of the run, None for methods without; raises SelectronError where the model lacks it."""
    if options.method not in STEIN and options.method != "metad":
        return None
    name = options.descriptor.name or ("coordinates" if is_planar(potential) else "node-features")
    if name in {"node-features", "mean-node-features"}:
        if "node-features" not in potential.capabilities or not hasattr(potential, "differentiable"):
            raise SelectronError(
                f"{potential.name} gives no node features, which the descriptor {name} is made of: choose the descriptor "
                "inverse-distances or coordinates, or a MACE model."
            )
        whole: GlobalDescriptor = NodeFeatures(mean=name.startswith("mean"), atoms=options.descriptor.atoms)
    elif options.descriptor.atoms is not None:
        raise SelectronError(f"The descriptor's atoms are for node features, not for {name}.")
    elif name == "inverse-distances" and is_planar(potential):
        raise SelectronError("A point has no distances: choose the descriptor coordinates.")
    else:
        whole = DESCRIPTORS[name]()
    directions = options.descriptor.directions
    return whole if directions is None or whole.identity else Projected(whole, directions, seed=options.seed)


def geometry_of_options(limits: GeometryOptions, planar: bool) -> Geometry:
    """With the defaults for atoms, or none for points on a surface."""
    default = Geometry(0.0, math.inf, math.inf, math.inf) if planar else Geometry()
    given = {name: value for name, value in limits.model_dump().items() if value is not None}
    return default._replace(**given)


def check_structures(
    members: Sequence[Potential], structures: Sequence[Atoms], options: SampleOptions, *, particles: int
) -> None:
    """Raises SelectronError for what :func:`build` would, before anything is computed on ``structures``."""
    unknown = {"bias-norm-below": 1.0, "uncertainty-above": 1.0}
    build(members, structures, options, particles=particles, stopping=stopping_of(options, unknown), seed=0)


def stopping_of(options: SampleOptions, thresholds: Thresholds) -> Stopping:
    """The criteria; ``thresholds`` fills those that are "auto"."""
    made = []
    for one in options.criteria:
        if isinstance(one, FixedSteps):
            made.append(fixed_steps(one.steps))
            continue
        threshold = thresholds[one.kind] if one.threshold == "auto" else float(one.threshold)
        criterion = bias_norm_below if isinstance(one, BiasNormBelow) else uncertainty_above
        made.append(criterion(threshold, one.min_steps))
    return tuple(made)


def with_width(options: SampleOptions, found: Thresholds) -> SampleOptions:
    """``options`` with the width of the uncertainty-driven bias that a pilot found, where there is one."""
    if WIDTH not in found:
        return options
    return options.model_copy(update={"udd": options.udd.model_copy(update={"width_eV": found[WIDTH]})})


def build(
    members: Sequence[Potential],
    structures: Sequence[Atoms],
    options: SampleOptions,
    *,
    particles: int,
    stopping: Stopping,
    seed: int,
    bandwidth: Tensor | None = None,
) -> Sampler:
    """The sampler of ``options``.

    Args:
        members: one model, or the committee.
        structures: ``particles`` configurations of each ensemble, one ensemble after the other.
        options: what to do.
        particles: M.
        stopping: criteria, thresholds filled in.
        seed: of the noise.
        bandwidth: (E,) bandwidths that are kept, for the rule initial-median.
    """
    potential = members[0]
    system = make_system(potential, structures, descriptor=needs_descriptor(potential, options))
    watch = Watch(stopping, geometry_of_options(options.geometry, is_planar(potential)))
    motion = motion_of(options)
    if options.method in STEIN:
        return _stein_sampler(system, options, motion, watch, particles=particles, seed=seed, bandwidth=bandwidth)
    field = _field(system, members, options, motion)
    # one atom alone has no motion left once its centre of mass stands
    fixed = options.fix_centre_of_mass if options.fix_centre_of_mass is not None else not motion.overdamped
    fixed = fixed and all(len(atoms) > 1 for atoms in structures)
    if motion.overdamped:
        return brownian(
            field,
            kT_eV=motion.kT_eV,
            step_size=motion.step_size,
            seed=seed,
            watch=watch,
            max_displacement_A=_largest_step(options, None),
            fix_centre_of_mass=fixed,
        )
    return langevin(
        field,
        temperature_K=motion.kT_eV / BOLTZMANN_EV_PER_K,
        timestep_fs=motion.timestep_fs,
        damping_time_fs=motion.damping_time_fs,
        seed=seed,
        watch=watch,
        fix_centre_of_mass=fixed,
    )


def _stein_sampler(
    system: System,
    options: SampleOptions,
    motion: Motion,
    watch: Watch,
    *,
    particles: int,
    seed: int,
    bandwidth: Tensor | None,
) -> Sampler:
    stepping = Stepping(
        kT_eV=motion.kT_eV,
        step_size=motion.step_size,
        gradient_scale=options.gradient_scale,
        form=options.form,
        noisy=options.noisy,
        max_displacement_A=_largest_step(options, 0.1),
        fix_centre_of_mass=bool(options.fix_centre_of_mass),
    )
    stein = SteinKernel(
        kernel=KERNELS[options.kernel.name],
        bandwidth=_bandwidth_rule(options, bandwidth),
        amplitude=options.kernel.amplitude,
        amplitude_schedule=_schedule(options.kernel.amplitude_schedule),
        bandwidth_schedule=_schedule(options.kernel.bandwidth_schedule),
        alignment=_alignment(options, system),
    )
    make = synchronous_skmd if options.method == "synchronous-skmd" else skmd
    return make(system, particles=particles, stepping=stepping, seed=seed, stein=stein, watch=watch)


def _largest_step(options: SampleOptions, default: float | None) -> float | None:
    if options.max_displacement_A == "none":
        return None
    return options.max_displacement_A or default


def _bandwidth_rule(options: SampleOptions, kept: Tensor | None) -> Bandwidth:
    rule = options.bandwidth
    if isinstance(rule, float):
        return fixed_bandwidth(rule)
    if rule == "initial-median" and kept is not None:
        return lambda squared: kept.to(squared)
    return median_bandwidth(options.kernel.bandwidth_factor)


def _schedule(schedule: AnySchedule) -> Schedule:
    if schedule == "constant":
        return CONSTANT
    given = PAPER_SCHEDULE if schedule == "paper" else schedule
    return Schedule(given.hold, given.end, given.final)


def _alignment(options: SampleOptions, system: System) -> Alignment:
    name = options.kernel.alignment
    if name == "none":
        return unaligned
    first = system.structures[0]
    if name == "kabsch":
        if system.periodic:
            raise SelectronError("The alignment kabsch is for molecules; periodic structures want minimum-image.")
        if len(first) < 2:
            raise SelectronError("One atom cannot be turned: leave alignment at none.")
        held = system.free[: len(first)]
        if bool((held.amin(1) != held.amax(1)).any()):
            raise SelectronError(
                "The alignment kabsch turns atoms, so it cannot go with atoms held in some directions only."
            )
        masses = system.masses[: len(first), 0]
        # the gradient of a kernel on aligned coordinates is exact for equal weights alone
        identity = system.descriptor is not None and system.descriptor.identity
        return kabsch(torch.ones_like(masses) if identity else masses)
    if not system.periodic:
        raise SelectronError("The alignment minimum-image is for periodic structures; molecules want kabsch.")
    if bool((system.template.cell != system.template.cell[0]).any()):
        raise SelectronError("The alignment minimum-image needs starting structures that share one cell.")
    return minimum_image(system.template.cell[0], system.template.pbc[0])


def _field(system: System, members: Sequence[Potential], options: SampleOptions, motion: Motion) -> ForceField:
    if options.method == "metad":
        given = options.metad
        return WellTemperedMetadynamics(
            system,
            kT_eV=motion.kT_eV,
            height_eV=given.height_eV,
            bias_factor=given.bias_factor,
            every=given.every,
            width=given.width,
        )
    if len(members) == 1:
        return Unbiased(system)
    return CommitteeField(system, members, _committee_bias(options))


def _committee_bias(options: SampleOptions) -> Bias:
    if options.method == "udd" and options.udd.width_eV != "auto":
        return uncertainty_driven(height_eV=options.udd.height_eV, width_eV=options.udd.width_eV)
    if options.method == "hal":
        return hyperactive(relative_strength=options.hal.relative_strength, average_over=options.hal.average_over)
    return _NO_BIAS


class _Nothing(NamedTuple):
    pass


def _no_forces(system: System, said: Disagreement, memory: Any) -> tuple[Tensor, Any]:
    del system
    return torch.zeros_like(said.mean_forces), memory


_nothing: Callable[[System], NamedTuple] = lambda system: _Nothing()  # noqa: E731
_NO_BIAS = Bias(_nothing, _no_forces)
"""The mean of a committee: plain dynamics that knows its uncertainty, and the pilot that finds a width."""
