"""Between what users write (fs, K, g/mol/ps) and eV, Å and amu."""

from __future__ import annotations

from ase import units

BOLTZMANN_EV_PER_K = float(units.kB)
FS = float(units.fs)
"""A femtosecond in the unit of time that goes with eV, Å and amu."""


def thermal_energy_eV(temperature_K: float) -> float:
    """kT."""
    return BOLTZMANN_EV_PER_K * temperature_K


def brownian_step_size(timestep_fs: float, damping_amu_per_ps: float) -> float:
    """ε = Δt/γ in Å²/eV, the factor from force to displacement in one overdamped step.

    ``damping_amu_per_ps`` is γ in g/mol/ps, as LAMMPS takes it for ``fix brownian`` in metal units. With the SKMD
    paper's 0.1 fs and 75 g/mol/ps: ε = 0.0129 Å²/eV.
    """
    return timestep_fs * 1000.0 * FS * FS / damping_amu_per_ps
