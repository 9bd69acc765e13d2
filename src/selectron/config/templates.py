"""Files to start from, each complete."""

from __future__ import annotations

CAMPAIGN = """\
# A campaign that runs as it is: the embedded model, the embedded pool of reactive molecules, GFN2-xTB labels.
# 'selectron schema' lists every key with its meaning; relative paths are taken from the folder of this file.
name: first campaign
seed: 0

pool:
  files: [embedded]            # your own: files, globs or folders (extxyz, ASE db, LMDB, HDF5)

model:
  file: embedded               # your own: a mace-torch .model file, or a name of 'selectron models'
  device: cpu                  # cuda where there is a GPU

train:                         # what the model knows already; leave the section out if you do not have it
  files: [embedded-train]
  fit: true                    # fitted together with the new labels; false: only tells the selector what is known

test:                          # held out of the pool, never picked
  fraction: 0.25
  group_by: smiles             # structures of one molecule stay together
  labels: file                 # 'oracle' has them labelled first
validation:                    # for the trainer and for stopping rules
  fraction: 0.1
  group_by: smiles

features:
  name: energy-ntk             # see 'selectron features'
selector:
  name: isd                    # see 'selectron selectors'

oracle:
  kind: gfn2-xtb               # or dft, mace, ase (any ASE calculator), gfn1-xtb

trainer:
  epochs: 25
  batch_size: 8

budget:
  labels: 60
  per_round: 20

stop:
  target:
    quantity: force_rmse_eV_A
    below: 0.1

baseline: random               # a twin that picks by chance, to tell what selection saved
"""

SAMPLING = """\
# A campaign that samples its candidates: SKMD of one molecule with the model of each round; runs as it is.
# 'selectron schema' lists every key with its meaning; relative paths are taken from the folder of this file.
name: campaign from one molecule
seed: 0

sampling:
  starts: [embedded-train]     # your own: one structure, or several of the same atoms in the same order
  start_indices: [3]           # only these structures of the files
  method: skmd                 # or a-skmd, synchronous-skmd, langevin, brownian, metad
  temperature_K: 500
  particles: 10
  iterations: 60               # journeys of a particle; the end of each is a candidate
  stopping:
  - kind: fixed-steps
    steps: 50
  initial:
    burn_in_steps: 500
    snapshot_every: 50

model:
  file: embedded
train:
  files: [embedded-train]

test:                          # here: all structures of the embedded pool, of many molecules
  files: [embedded]

features:
  name: energy-ntk
selector:
  name: isd

oracle:
  kind: gfn2-xtb
trainer:
  epochs: 15
  batch_size: 8

budget:
  labels: 20
  per_round: 10
"""

DFT = """\
# A campaign with your own files and DFT labels (PySCF); edit the paths before you run it.
name: campaign with DFT labels

pool:
  files: [candidates/*.extxyz]

model:
  file: my.model

test:
  files: [test.extxyz]         # with energies and forces at the level of the oracle
validation:
  files: [validation.extxyz]

features:
  name: force-ntk
selector:
  name: ipv

oracle:
  kind: dft
  functional: wb97x
  basis: 6-31g*
execution:
  kind: threads
  workers: 4                   # calls at once, on this machine

trainer:
  method: full
  epochs: 40
  batch_size: 8

budget:
  labels: 400
  per_round: 50

stop:
  plateau:
    quantity: force_rmse_eV_A
    rounds: 3
    improvement: 0.02
"""

TEMPLATES: dict[str, tuple[str, str]] = {
    "campaign": ("runs as it is, on the embedded model and pool with GFN2-xTB, in a few minutes", CAMPAIGN),
    "sampling": ("runs as it is: candidates by SKMD from one molecule, GFN2-xTB, in a few minutes", SAMPLING),
    "dft": ("your own pool and model, labels by DFT, several calls at once", DFT),
}
"""What each is for, and its text, by name."""
