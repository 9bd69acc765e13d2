#!/usr/bin/env bash
# torch-sim-atomistic 0.3.0: the pair models are wrong, silently, in a cell whose matrix is not symmetric.
#
# get_pair_displacements multiplies the neighbour list's shifts by the transposed lattice. Where the matrix of lattice vectors is
# symmetric (orthogonal cells, ASE's primitive fcc cell) nothing shows. In a hexagonal cell, as every fcc(111) or graphite
# structure has one, images land in the wrong places. The same perfect argon crystal has the same energy in three cells, and here
# a quarter less in one of them; a smaller cell of that kind gives +8 eV an atom. Lennard-Jones is shown; Morse and
# soft spheres call the same function. Dynamics runs on in such a cell without a warning.
#
# Output seen (Python 3.11, torch 2.13.0, CPU), eV an atom:
#   fcc, cubic cell:      model -0.061572, own sum over pairs -0.061572
#   fcc, primitive cell:  model -0.061572, own sum over pairs -0.061572
#   fcc, hexagonal cell:  model -0.045538, own sum over pairs -0.061572
# Exit code 1 when this is so no more.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch-sim-atomistic==0.3.0 ase==3.29.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import numpy as np
import torch
import torch_sim
from ase.build import bulk, fcc111
from ase.neighborlist import neighbor_list
from torch_sim.models.lennard_jones import LennardJonesModel

SIGMA, EPSILON, CUTOFF = 3.4, 0.0104, 4.0  # argon; nearest neighbours only
CPU, DOUBLE = torch.device("cpu"), torch.float64
model = LennardJonesModel(sigma=SIGMA, epsilon=EPSILON, cutoff=CUTOFF, dtype=DOUBLE, use_neighbor_list=True)
cells = {
    "cubic": bulk("Ar", "fcc", a=5.3, cubic=True) * (3, 3, 3),
    "primitive": bulk("Ar", "fcc", a=5.3) * (4, 4, 4),
    "hexagonal": fcc111("Ar", (4, 4, 6), a=5.3, periodic=True),
}
found = {}
for name, crystal in cells.items():
    crystal.pbc = True
    of_model = float(model(torch_sim.io.atoms_to_state([crystal], CPU, DOUBLE))["energy"][0]) / len(crystal)
    sixth = (SIGMA / neighbor_list("d", crystal, CUTOFF)) ** 6
    own = 0.5 * float(np.sum(4 * EPSILON * (sixth**2 - sixth))) / len(crystal)
    found[name] = of_model / own
    print(f"fcc, {name} cell:{' ' * (10 - len(name))} model {of_model:.6f}, own sum over pairs {own:.6f}")
as_seen = abs(found["cubic"] - 1) < 1e-9 and abs(found["primitive"] - 1) < 1e-9 and abs(found["hexagonal"] - 1) > 0.1
sys.exit(0 if as_seen else "torch-sim behaves differently now")
PYTHON
