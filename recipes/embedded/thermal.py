"""Thermally displaced conformers: what the model learns from.

Every molecule runs short GFN2-xTB Langevin dynamics at 300 K and at 500 K, each from its own relaxed conformer.
Frames are taken far enough apart to differ, and only while the molecule keeps the bonds of its SMILES.
"""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import FIRE
from labels import gfn2, labelled
from molecules import Molecule, read_molecules

SEED = 1000
TEMPERATURES_K = (300.0, 500.0)
FRAMES, EQUILIBRATION_STEPS, STEPS_BETWEEN = 4, 100, 30
TIMESTEP_FS, FRICTION_PER_FS = 1.0, 0.02
WORK = Path(__file__).with_name("work")


def relaxed_conformer(molecule: Molecule, seed: int, steps: int = 60) -> Atoms | None:
    """A conformer after at most ``steps`` FIRE steps with GFN2-xTB; None if it cannot be made or loses its bonds."""
    structure = molecule.conformer(seed)
    if structure is None:
        return None
    structure.calc = gfn2()
    try:
        FIRE(structure, logfile=None).run(fmax=0.1, steps=steps)
    except Exception:  # a failed SCF: this conformer is of no use
        return None
    return structure if molecule.keeps_its_bonds(structure) else None


def thermal_frames(molecule: Molecule) -> list[Atoms]:
    """Labelled frames of one molecule at all temperatures; shorter than planned where dynamics breaks a bond."""
    frames = []
    for k, temperature in enumerate(TEMPERATURES_K):
        seed = SEED + 10 * molecule.index + k
        structure = relaxed_conformer(molecule, seed)
        if structure is None:
            continue
        rng = np.random.default_rng(seed)
        # The start is a minimum, so half of this kinetic energy soon turns into potential energy.
        MaxwellBoltzmannDistribution(structure, temperature_K=2 * temperature, rng=rng)
        # ASE's default holds the centre of mass and so heats small molecules: see the data card.
        dynamics = Langevin(
            structure,
            TIMESTEP_FS * units.fs,
            temperature_K=temperature,
            friction=FRICTION_PER_FS / units.fs,
            rng=rng,
        )
        try:
            dynamics.run(EQUILIBRATION_STEPS)
            for _ in range(FRAMES):
                dynamics.run(STEPS_BETWEEN)
                frame = labelled(structure)
                if frame is None or not molecule.keeps_its_bonds(frame):
                    break
                frame.info |= {"kind": f"thermal-{temperature:.0f}K", "molecule": molecule.index}
                frames.append(frame)
        except Exception:  # a failed SCF ends this trajectory; its earlier frames are sound
            continue
    return frames


def main() -> None:
    """Write ``work/thermal-{train,valid,test}.xyz``."""
    WORK.mkdir(exist_ok=True)
    molecules = read_molecules()
    with ProcessPoolExecutor(int(os.environ.get("PROCESSES", "2"))) as workers:
        frames = list(workers.map(thermal_frames, molecules, chunksize=4))
    for part in ("train", "valid", "test"):
        kept = [frame for m, fs in zip(molecules, frames, strict=True) if m.part == part for frame in fs]
        ase.io.write(WORK / f"thermal-{part}.xyz", kept, format="extxyz")
        lost = sum(not fs for m, fs in zip(molecules, frames, strict=True) if m.part == part)
        print(
            f"{part}: {len(kept)} frames of {sum(m.part == part for m in molecules) - lost} molecules; {lost} gave none"
        )


if __name__ == "__main__":
    main()
