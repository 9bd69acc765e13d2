#!/usr/bin/env bash
# mace-torch 0.3.16: the stress of a slab (periodic in two directions) depends on where the slab lies in its vacuum.
#
# MACECalculator divides the virial by the volume of a cell. Along an open direction that cell is not the one of the structure:
# the neighbour search makes it up from the largest absolute coordinate. So the same slab, lifted along its open direction, has
# the same energy to the last digit and another stress; neither the cell's volume nor any area enters. What is sure is the virial.
# A stress label, or a fit to one, needs a structure that is periodic in all three directions.
#
# Output seen (Python 3.11, torch 2.13.0, CPU; a small MACE with random weights, 8 Cu atoms):
#   lifted by  0 Å: energy as at first, stress  1.000 of that at first
#   lifted by  5 Å: energy as at first, stress  0.646 of that at first
#   lifted by 20 Å: energy as at first, stress  0.313 of that at first
#   lifted by 50 Å: energy as at first, stress  0.154 of that at first
#   three periodic directions, lifted by 50 Å: stress  1.000 of that at first
# Exit code 1 when this is so no more.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mace-torch==0.3.16 ase==3.29.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
import torch
from ase.build import fcc111
from mace import modules
from mace.calculators import MACECalculator
from e3nn import o3  # after mace, which it needs to load under this torch

torch.manual_seed(1)
torch.set_default_dtype(torch.float64)
block = modules.RealAgnosticResidualInteractionBlock
model = modules.ScaleShiftMACE(
    r_max=4.0,
    num_bessel=4,
    num_polynomial_cutoff=5,
    max_ell=1,
    interaction_cls=block,
    interaction_cls_first=block,
    num_interactions=1,
    num_elements=1,
    hidden_irreps=o3.Irreps("4x0e"),
    MLP_irreps=o3.Irreps("4x0e"),
    atomic_energies=np.array([0.0]),
    avg_num_neighbors=10,
    atomic_numbers=[29],
    correlation=2,
    gate=torch.nn.functional.silu,
    atomic_inter_scale=1.0,
    atomic_inter_shift=0.0,
)
calculator = MACECalculator(models=[model], device="cpu", default_dtype="float64")


def ask(lift, pbc):
    slab = fcc111("Cu", (2, 2, 2), a=3.6, vacuum=6.0)
    slab.info.clear()  # the builder leaves a nested array there, which this calculator cannot compare
    slab.rattle(0.1, seed=0)
    slab.pbc = pbc
    slab.positions[:, 2] += lift
    slab.calc = calculator
    return slab.get_potential_energy(), slab.get_stress()[0]


energy, stress = ask(0.0, (True, True, False))
shares = []
for lift in (0.0, 5.0, 20.0, 50.0):
    found = ask(lift, (True, True, False))
    same = abs(found[0] - energy) < 1e-9
    shares.append(found[1] / stress)
    print(f"lifted by {lift:2.0f} Å: energy {'as at first' if same else 'CHANGED'}, stress {shares[-1]:6.3f} of that at first")
whole = ask(50.0, True)[1] / ask(0.0, True)[1]
print(f"three periodic directions, lifted by 50 Å: stress {whole:6.3f} of that at first")
as_seen = np.allclose(shares, [1.0, 0.646, 0.313, 0.154], atol=2e-3) and abs(whole - 1) < 1e-6
sys.exit(0 if as_seen else "mace-torch behaves differently now")
PYTHON
