#!/usr/bin/env bash
# torch-sim-atomistic 0.3.0: a slab that is periodic in two directions becomes a lone cluster, without a word.
#
# atoms_to_state has one flag for all directions: all(atoms.pbc). A structure with pbc (True, True, False), as ASE and surface
# data sets have them, gets False: its images are gone, its energy is that of a piece cut out of the slab. The way back,
# state_to_atoms, then says that the structure is periodic nowhere. Only structures that differ in all(pbc) are refused together.
#
# Output seen (Python 3.11, torch 2.13.0, CPU; four layers of argon, Lennard-Jones, cutoff 4 Å):
#   pbc in: [True, True, False], pbc back: [False, False, False]
#   energy: slab as given -1.0775 eV, no periodicity -1.0775 eV, three directions with 20 Å of vacuum -1.7240 eV
# Exit code 1 when this is so no more.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch-sim-atomistic==0.3.0 ase==3.29.0
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import torch
import torch_sim
from ase.build import fcc111
from torch_sim.models.lennard_jones import LennardJonesModel

CPU, DOUBLE = torch.device("cpu"), torch.float64
model = LennardJonesModel(sigma=3.4, epsilon=0.0104, cutoff=4.0, dtype=DOUBLE, use_neighbor_list=True)


def ask(pbc):
    slab = fcc111("Ar", (2, 4, 4), a=5.3, vacuum=10.0, orthogonal=True)
    slab.pbc = pbc
    state = torch_sim.io.atoms_to_state([slab], CPU, DOUBLE)
    return float(model(state)["energy"][0]), torch_sim.io.state_to_atoms(state)[0].pbc.tolist()


slab, back = ask((True, True, False))
cluster, _ = ask(False)
crystal, _ = ask(True)
print(f"pbc in: [True, True, False], pbc back: {back}")
print(
    f"energy: slab as given {slab:.4f} eV, no periodicity {cluster:.4f} eV, "
    f"three directions with 20 Å of vacuum {crystal:.4f} eV"
)
as_seen = back == [False, False, False] and abs(slab - cluster) < 1e-9 and abs(slab - crystal) > 0.1
sys.exit(0 if as_seen else "torch-sim behaves differently now")
PYTHON
