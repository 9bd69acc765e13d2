"""What a sampling run is told: every option with its meaning, unit, default and range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError, model_validator

from selectron.config.load import Section
from selectron.errors import SelectronError

Method = Literal["skmd", "a-skmd", "synchronous-skmd", "langevin", "brownian", "udd", "hal", "metad"]
METHODS: tuple[Method, ...] = (
    "skmd", "a-skmd", "synchronous-skmd", "langevin", "brownian", "udd", "hal", "metad"
)  # fmt: skip
STEIN: frozenset[str] = frozenset({"skmd", "a-skmd", "synchronous-skmd"})
"""Methods whose particles act on each other."""

COMMITTEE: frozenset[str] = frozenset({"udd", "hal"})
"""Methods that need several models."""

UNBIASED: frozenset[str] = frozenset({"langevin", "brownian"})
"""Methods without a bias."""

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class ScheduleOptions(Section):
    """A factor over outer iterations (steps where all particles move at once): 1 up to ``hold``, linearly to ``final``."""

    hold: Annotated[int, Field(ge=0)]
    """Iterations with factor 1."""

    end: PositiveInt
    """Iteration at which ``final`` is reached."""

    final: Positive
    """Factor from then on."""

    @model_validator(mode="after")
    def _in_order(self) -> ScheduleOptions:
        if self.end <= self.hold:
            raise ValueError(f"end ({self.end}) comes after hold ({self.hold})")
        return self


AnySchedule = Literal["constant", "paper"] | ScheduleOptions
PAPER_SCHEDULE = ScheduleOptions(hold=250, end=300, final=0.5)
"""``paper``: SKMD, appendix E.2."""


class FixedSteps(Section):
    """Acquire after so many steps."""

    kind: Literal["fixed-steps"] = "fixed-steps"

    steps: PositiveInt
    """Steps since the last acquisition (SKMD: of the particle's journey)."""


class BiasNormBelow(Section):
    """Acquire when the norm of the bias force falls below a threshold (SKMD, eq. 8)."""

    kind: Literal["bias-norm-below"] = "bias-norm-below"

    threshold: Positive | Literal["auto"] = "auto"
    """γ in eV/Å. ``auto``: the ``quantile`` of the norms in a journey of a pilot after ``min_steps``, median over journeys."""

    min_steps: Annotated[int, Field(ge=0)] = 50
    """No acquisition before so many steps."""

    quantile: Fraction = 0.1
    """Of the pilot's norms."""


class UncertaintyAbove(Section):
    """Acquire when the committee's uncertainty σ/√n exceeds a threshold (SKMD, eq. 35)."""

    kind: Literal["uncertainty-above"] = "uncertainty-above"

    threshold: Positive | Literal["auto"] = "auto"
    """In eV. ``auto``: the ``quantile`` of a pilot's uncertainties, likewise."""

    min_steps: Annotated[int, Field(ge=0)] = 50
    """No acquisition before so many steps."""

    quantile: Fraction = 0.9
    """Of the pilot's uncertainties."""


StoppingOption = Annotated[FixedSteps | BiasNormBelow | UncertaintyAbove, Field(discriminator="kind")]


class PilotOptions(Section):
    """The pilot simulation that ``auto`` thresholds come from (SKMD, appendix E.1). It starts where the run starts, has noise
    of its own, and leaves nothing behind but the thresholds."""

    steps: PositiveInt = 250
    """Length of a journey; every particle that moves on its own makes one."""

    journeys: PositiveInt = 4
    """Journeys in a row: with asynchronous SKMD of as many particles."""


class InitialEnsemble(Section):
    """How M particles are made from fewer starting structures (SKMD, section 5.2).

    Dynamics from the starts, each in turn, without bias: first ``burn_in_steps``, then a snapshot after every
    ``snapshot_every`` steps. Langevin dynamics for atoms; Brownian dynamics with the run's own step size where
    ``step_size`` is given. Ensembles are made side by side, each with noise of its own.
    """

    relax: bool | None = None
    """Relax the starts with the model first. Where it is not given: yes for atoms whose particles are made here, since
    strained starts pull a Stein ensemble all one way (as in the paper), no for points and for starts that suffice."""

    relax_fmax_eV_A: Positive = 0.05
    """Largest force at which relaxation ends."""

    burn_in_steps: Annotated[int, Field(ge=0)] = 4000
    """Steps before the first snapshot is due."""

    snapshot_every: PositiveInt = 200
    """Steps between snapshots."""

    temperature_K: Positive | None = None
    """Temperature of these steps; the run's own where it is not given."""

    timestep_fs: Positive = 1.0
    """Time step of Langevin dynamics."""

    damping_time_fs: Positive = 100.0
    """Damping time of Langevin dynamics."""


class DescriptorOptions(Section):
    """What kernels and hills compare."""

    name: Literal["node-features", "mean-node-features", "coordinates", "inverse-distances"] | None = None
    """Sum or mean of the model's invariant node features, coordinates, or 1/r of all pairs. Coordinates for points on a
    surface, else node-features, where it is not given."""

    atoms: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Only these atoms (counted from 0) of each structure, for node features."""

    directions: PositiveInt | None = None
    """So many random directions of the descriptor in its place, where it has more components: a Jacobian costs a backward
    pass a component. Not for coordinates."""

    @model_validator(mode="after")
    def _atoms_of_nodes(self) -> DescriptorOptions:
        if self.atoms is not None and self.name not in {None, "node-features", "mean-node-features"}:
            raise ValueError(f"atoms belongs to node features, not to {self.name}")
        if self.directions is not None and self.name == "coordinates":
            raise ValueError("coordinates need no Jacobian: leave directions out")
        return self


class KernelOptions(Section):
    """The kernel of a Stein ensemble."""

    name: Literal["gaussian", "inverse-multiquadric"] = "gaussian"
    """Its shape."""

    bandwidth: Positive | Literal["median", "initial-median"] | None = None
    """ℓ in units of the descriptor; ``median``: of the particles' distances, anew at each outer iteration;
    ``initial-median``: of those of the initial ensemble, fixed (SKMD, appendix E.1). Where it is not given,
    initial-median for a-skmd and median for the others."""

    bandwidth_factor: Positive = 1.0
    """Times the median."""

    amplitude: Positive = 1.0
    """h."""

    amplitude_schedule: AnySchedule = "constant"
    """Of h over outer iterations; ``paper`` is 1 for 250 iterations, then linearly to 0.5 at 300."""

    bandwidth_schedule: AnySchedule = "constant"
    """Of ℓ; in the decay it follows no rule any more."""

    alignment: Literal["none", "kabsch", "minimum-image"] = "none"
    """Whether other particles are turned and shifted onto the moving one; the paper does not."""


class GeometryOptions(Section):
    """Limits beyond which a trajectory ends. Without a value: what is given here for atoms, no limit for surfaces."""

    min_distance_A: NonNegative | None = None
    """Smallest distance of two atoms; 0.5 Å."""

    max_force_eV_A: Positive | None = None
    """Largest component of force and bias; 200 eV/Å."""

    max_energy_rise_eV: Positive | None = None
    """Energy above the start, per atom; 5 eV."""

    max_step_A: Positive | None = None
    """What an atom may move in one step; 2 Å."""


class UncertaintyDrivenOptions(Section):
    """Uncertainty-driven dynamics: V = A [exp(−σ²/(n B²)) − 1]."""

    height_eV: Positive = 0.5
    """A: how far the bias lowers the energy."""

    width_eV: Positive | Literal["auto"] = "auto"
    """B: σ/√n at which it has most of that effect. ``auto``: the median of σ/√n in a pilot without bias; members that differ
    by a constant make it large, and a bias far narrower than that is flat."""


class HyperactiveOptions(Section):
    """Hyperactive learning: V = −τ σ."""

    relative_strength: Positive = 0.25
    """τ_r: the bias force as a fraction of the force."""

    average_over: PositiveInt = 100
    """Steps that the running means which set τ look back on."""


class MetadynamicsOptions(Section):
    """Well-tempered metadynamics on the descriptor."""

    height_eV: Positive = 0.05
    """Height of the first hill."""

    bias_factor: Annotated[float, Field(gt=1.0, allow_inf_nan=False)] = 10.0
    """γ."""

    every: PositiveInt = 100
    """Steps between hills."""

    width: Positive | None = None
    """Width of hills in units of the descriptor; from the first ``every`` steps where it is not given."""


class SampleOptions(Section):
    """A sampling run."""

    method: Method = "skmd"
    """The sampler."""

    dynamics: Literal["underdamped", "overdamped"] | None = None
    """What udd, hal and metad bias: Langevin (the default) or Brownian dynamics. SKMD and brownian are overdamped."""

    temperature_K: Positive | None = None
    """Temperature; 50 K for SKMD (as in the paper), else 300 K, where neither it nor ``kT_eV`` is given."""

    kT_eV: Positive | None = None
    """kT itself, for surfaces."""

    timestep_fs: Positive | None = None
    """Time step; 1 fs underdamped, 0.1 fs overdamped."""

    damping_time_fs: Positive | None = None
    """Damping time of underdamped dynamics; 100 fs."""

    damping_amu_per_ps: Positive | None = None
    """Damping γ of overdamped dynamics in g/mol/ps, as LAMMPS has it; 75. A step is Δt/γ times the force."""

    step_size: Positive | None = None
    """Δt/γ itself, in Å²/eV, for surfaces; makes udd, hal and metad overdamped."""

    steps: PositiveInt | None = None
    """Steps of every ensemble (asynchronous SKMD: of the one particle that moves at a time). 10,000 where neither it nor
    ``iterations`` nor ``acquisitions`` is given; whichever is reached first ends the run."""

    iterations: PositiveInt | None = None
    """Outer iterations, the journeys of asynchronous SKMD, after which every ensemble is done."""

    acquisitions: PositiveInt | None = None
    """Acquired structures, over all ensembles, after which the run is done."""

    particles: PositiveInt | None = None
    """Particles of an ensemble. For SKMD 30; for the other methods independent trajectories, as many as there are
    starting structures, where it is not given."""

    ensembles: PositiveInt = 1
    """Independent copies of it all with noise of their own, in one batch."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of all noise."""

    initial: InitialEnsemble = InitialEnsemble()
    """How SKMD gets its particles from fewer starting structures."""

    descriptor: DescriptorOptions = DescriptorOptions()
    """What kernels and hills compare."""

    kernel: KernelOptions = KernelOptions()
    """The kernel of SKMD."""

    form: Literal["sum", "mean", "full"] = "sum"
    """How SKMD weighs a particle's own force against the bias. mean: 1/M of the force and the mean over the others, as eq. 5a
    is understood; sum: the same M times as fast; full: all of the force and the mean over the others."""

    gradient_scale: Positive = 1.0
    """α: weight of a particle's own force in SKMD."""

    noisy: bool = True
    """Whether SKMD has noise; without it and synchronous it is SVGD."""

    max_displacement_A: Positive | Literal["none"] | None = None
    """Overdamped drifts that would move an atom further in one step are shortened; 0.1 Å for SKMD, none for the others."""

    constraints: Literal["keep", "ignore"] = "keep"
    """Whether atoms that are held in the starts (FixAtoms, FixCartesian, an array ``fixed`` of 0 and 1) stay where they are."""

    fix_centre_of_mass: bool | None = None
    """Whether free structures keep their centre of mass (overdamped: their mean position); yes underdamped, no overdamped."""

    udd: UncertaintyDrivenOptions = UncertaintyDrivenOptions()
    """Parameters of udd."""

    hal: HyperactiveOptions = HyperactiveOptions()
    """Parameters of hal."""

    metad: MetadynamicsOptions = MetadynamicsOptions()
    """Parameters of metad."""

    stopping: list[StoppingOption] | None = None
    """When a structure is acquired: the first criterion that holds. Where it is not given: skmd fixed-steps 500; a-skmd
    bias-norm-below auto, or fixed-steps 2000; udd and hal uncertainty-above auto; the others never."""

    pilot: PilotOptions = PilotOptions()
    """The pilot of ``auto`` thresholds."""

    geometry: GeometryOptions = GeometryOptions()
    """When a trajectory is broken."""

    stride: Annotated[int, Field(ge=0)] = 100
    """Steps between frames of the trajectories; 0: acquired structures only."""

    checkpoint_every: PositiveInt = 1000
    """Steps between checkpoints, where there is a checkpoint file."""

    @model_validator(mode="after")
    def _consistent(self) -> SampleOptions:
        for problem in _problems(self):
            raise ValueError(problem)
        return self

    @property
    def overdamped(self) -> bool:
        """Whether the dynamics has no momenta."""
        if self.method in STEIN or self.method == "brownian":
            return True
        if self.method == "langevin":
            return False
        return self.dynamics == "overdamped" or (self.dynamics is None and self.step_size is not None)

    @property
    def bandwidth(self) -> float | Literal["median", "initial-median"]:
        """The bandwidth rule with its default."""
        return self.kernel.bandwidth or ("initial-median" if self.method == "a-skmd" else "median")

    @property
    def criteria(self) -> tuple[FixedSteps | BiasNormBelow | UncertaintyAbove, ...]:
        """The stopping criteria with their defaults."""
        if self.stopping is not None:
            return tuple(self.stopping)
        if self.method in {"skmd", "synchronous-skmd"}:
            return (FixedSteps(steps=500),)
        if self.method == "a-skmd":
            return BiasNormBelow(), FixedSteps(steps=2000)
        return (UncertaintyAbove(),) if self.method in COMMITTEE else ()


def _problems(options: SampleOptions) -> list[str]:
    """What does not go together."""
    method, kinds = options.method, [one.kind for one in options.criteria]
    found = {
        "give temperature_K or kT_eV, not both": options.temperature_K is not None and options.kT_eV is not None,
        "step_size is timestep_fs over damping_amu_per_ps: give it or them, not both": (
            options.step_size is not None and (options.timestep_fs or options.damping_amu_per_ps) is not None
        ),
        f"{method} has its own dynamics; dynamics belongs to udd, hal and metad": (
            options.dynamics is not None and method not in {"udd", "hal", "metad"}
        ),
        f"{method} is overdamped: give damping_amu_per_ps, not damping_time_fs": (
            options.overdamped and options.damping_time_fs is not None
        ),
        f"{method} is underdamped here: step_size and damping_amu_per_ps are for overdamped dynamics": (
            not options.overdamped and (options.step_size or options.damping_amu_per_ps) is not None
        ),
        f"iterations are the journeys of skmd and a-skmd; {method} has none": (
            options.iterations is not None and method not in {"skmd", "a-skmd"}
        ),
        f"{method} moves one particle at a time and needs a stopping criterion": (
            method in {"skmd", "a-skmd"} and not kinds
        ),
        "a-skmd stops at a bias norm: stopping needs bias-norm-below": (
            method == "a-skmd" and "bias-norm-below" not in kinds
        ),
        "the criterion bias-norm-below needs a fixed bandwidth (a number, or initial-median): with the median of the moment the norm hardly falls": (  # noqa: E501
            method in STEIN and "bias-norm-below" in kinds and options.bandwidth == "median"
        ),
        f"the criterion bias-norm-below needs a bias, which {method} does not have": (
            method in UNBIASED and "bias-norm-below" in kinds
        ),
        f"the criterion uncertainty-above needs a committee, which {method} does not use": (
            (method in STEIN or method == "metad") and "uncertainty-above" in kinds
        ),
        "acquisitions can end the run only where stopping acquires something": (
            options.acquisitions is not None and not kinds
        ),
        f"stride 0 writes acquired structures only, and {method} without a stopping criterion acquires none": (
            options.stride == 0 and not kinds
        ),
    }
    return [problem for problem, wrong in found.items() if wrong]


def sample_options(values: Mapping[str, Any]) -> SampleOptions:
    """Options from plain values; raises SelectronError with one sentence that names the first wrong one."""
    try:
        return SampleOptions.model_validate(dict(values))
    except ValidationError as error:
        first = _most_telling([dict(one) for one in error.errors()])
    # besides names of fields a location has places in lists and the members of unions
    where = ".".join(part for part in map(str, first["loc"]) if part.isidentifier() and not part[0].isupper())
    reason = str(first["msg"]).removeprefix("Value error, ").rstrip(".")
    if not where:
        raise SelectronError(f"{reason[:1].upper()}{reason[1:]}.")
    if first["type"] == "extra_forbidden":
        raise SelectronError(f"{where} is no option of a sampling run.")
    if where == "method":
        raise SelectronError(f"There is no method {first['input']!r}; there are {', '.join(METHODS)}.")
    given = "" if isinstance(first["input"], dict | list) else f", not {first['input']!r}"
    raise SelectronError(f"{where}: {reason[:1].lower()}{reason[1:]}{given}.")


def _most_telling(errors: list[dict[str, Any]]) -> dict[str, Any]:
    """Of a union's members each has its error: that of the member which was meant, as far as the value's kind tells."""
    given = errors[0]["input"]
    words = [one for one in errors if one["type"] == "literal_error"]
    others = [one for one in errors if one["type"] != "literal_error"]
    if words and others:
        return words[0] if isinstance(given, str) else others[0]
    return errors[0]
