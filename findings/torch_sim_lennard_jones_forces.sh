#!/usr/bin/env bash
# torch-sim-atomistic 0.3.0: the forces of LennardJonesModel are twice the negative gradient of its own energy.
#
# The energy is the textbook one. Forces come as a half from each of a pair's two ends in the full neighbour list in other
# codes; here each end gets the whole. So dynamics with this model runs on a potential twice as deep as the energy that is
# reported, and the total energy is not conserved; whoever tests a sampler of theirs with it tests the wrong temperature.
# Seen with and without a neighbour list, for a pair and for a crystal.
#
# Output seen (Python 3.11, torch 2.13.0, CPU):
#   pair, list: energy -0.008571 (textbook -0.008571), force / -dE/dx = 2.0000
#   pair, no list: energy -0.008571 (textbook -0.008571), force / -dE/dx = 2.0000
#   crystal, list: force / -dE/dx = 2.0000
#   crystal, no list: force / -dE/dx = 2.0000
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
from ase import Atoms
from ase.build import bulk
from torch_sim.models.lennard_jones import LennardJonesModel

SIGMA, EPSILON, STEP = 3.4, 0.0104, 1e-4  # argon, Å and eV


def ratio(atoms, neighbour_list):
    model = LennardJonesModel(
        sigma=SIGMA,
        epsilon=EPSILON,
        cutoff=5.0,
        dtype=torch.float64,
        compute_forces=True,
        use_neighbor_list=neighbour_list,
    )

    def ask(x):
        moved = atoms.copy()
        moved.positions[0, 0] = x
        found = model(torch_sim.io.atoms_to_state([moved], torch.device("cpu"), torch.float64))
        return float(found["energy"][0]), float(found["forces"][0, 0])

    x = atoms.positions[0, 0]
    energy, force = ask(x)
    return energy, force / (-(ask(x + STEP)[0] - ask(x - STEP)[0]) / (2 * STEP))


pair = Atoms("Ar2", [[0, 0, 0], [3.6, 0, 0]], cell=[40, 40, 40], pbc=True)
crystal = bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2)
crystal.rattle(0.1, seed=0)
textbook = 4 * EPSILON * ((SIGMA / 3.6) ** 12 - (SIGMA / 3.6) ** 6)
as_seen = True
for name, atoms in (("pair", pair), ("crystal", crystal)):
    for how, neighbour_list in (("list", True), ("no list", False)):
        energy, factor = ratio(atoms, neighbour_list)
        told = f"energy {energy:.6f} (textbook {textbook:.6f}), " if name == "pair" else ""
        print(f"{name}, {how}: {told}force / -dE/dx = {factor:.4f}")
        as_seen &= abs(factor - 2.0) < 1e-3 and (name == "crystal" or abs(energy - textbook) < 1e-6)
sys.exit(0 if as_seen else "torch-sim behaves differently now")
PYTHON
