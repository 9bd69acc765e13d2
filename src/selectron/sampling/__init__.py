"""Samplers as pairs of pure functions ``init`` and ``step``: Langevin, SKMD and those that people compare it with."""

from selectron.sampling.brownian import brownian
from selectron.sampling.committee_bias import CommitteeField, hyperactive, uncertainty_driven
from selectron.sampling.descriptors import (
    DESCRIPTORS,
    Coordinates,
    GlobalDescriptor,
    InverseDistances,
    NodeFeatures,
    Projected,
)
from selectron.sampling.geometry import Geometry
from selectron.sampling.kernels import KERNELS, Schedule, fixed_bandwidth, median_bandwidth
from selectron.sampling.langevin import langevin
from selectron.sampling.metadynamics import WellTemperedMetadynamics
from selectron.sampling.skmd import Stepping, skmd
from selectron.sampling.state import Info, Sampler, State, Watch
from selectron.sampling.stein import SteinKernel
from selectron.sampling.stopping import bias_norm_below, fixed_steps, uncertainty_above
from selectron.sampling.svgd import synchronous_skmd
from selectron.sampling.system import System, make_system
from selectron.sampling.unbiased import Unbiased
from selectron.sampling.units import brownian_step_size, thermal_energy_eV

__all__ = [
    "DESCRIPTORS",
    "KERNELS",
    "CommitteeField",
    "Coordinates",
    "Geometry",
    "GlobalDescriptor",
    "Info",
    "InverseDistances",
    "NodeFeatures",
    "Projected",
    "Sampler",
    "Schedule",
    "State",
    "SteinKernel",
    "Stepping",
    "System",
    "Unbiased",
    "Watch",
    "WellTemperedMetadynamics",
    "bias_norm_below",
    "brownian",
    "brownian_step_size",
    "fixed_bandwidth",
    "fixed_steps",
    "hyperactive",
    "langevin",
    "make_system",
    "median_bandwidth",
    "skmd",
    "synchronous_skmd",
    "thermal_energy_eV",
    "uncertainty_above",
    "uncertainty_driven",
]
