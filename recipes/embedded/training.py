"""Training of the embedded model with mace-torch's own command, and the file that the package ships."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import ase.io
from labels import isolated_atom_energies

SEED = 3
EPOCHS, STAGE_TWO_START = 80, 60
WORK = Path(__file__).with_name("work")
ARCHITECTURE = {
    "model": "ScaleShiftMACE",
    "hidden_irreps": "32x0e",
    "num_interactions": 2,
    "correlation": 3,
    "max_ell": 2,
    "r_max": 4.5,
    "num_radial_basis": 8,
    "radial_MLP": "[32, 32, 32]",
    "MLP_irreps": "16x0e",
    "scaling": "rms_forces_scaling",
}
OPTIMISATION = {
    "default_dtype": "float32",
    "device": "cpu",
    "batch_size": 16,
    "valid_batch_size": 64,
    "lr": 0.01,
    "scheduler": "ExponentialLR",
    "lr_scheduler_gamma": 0.965,
    "ema_decay": 0.995,
    "clip_grad": 10.0,
    "weight_decay": 5e-7,
    "energy_weight": 10.0,
    "forces_weight": 100.0,
    "max_num_epochs": EPOCHS,
    "start_stage_two": STAGE_TWO_START,
    "stage_two_lr": 0.001,
    "stage_two_energy_weight": 200.0,
    "stage_two_forces_weight": 100.0,
    "eval_interval": 1,
    "error_table": "PerAtomMAE",
    "plot": False,
    "num_workers": 0,
    "seed": SEED,
}
SWITCHES = ("ema", "amsgrad", "stage_two", "save_cpu")


def with_training_keys(source: Path, target: Path) -> None:
    """Copy labelled structures into the keys that mace-torch reads, REF_energy and REF_forces."""
    copies = []
    for structure in ase.io.read(source, ":"):
        energy, forces = structure.get_potential_energy(), structure.get_forces()
        structure.calc = None
        structure.info["REF_energy"] = energy
        structure.arrays["REF_forces"] = forces
        copies.append(structure)
    ase.io.write(target, copies, format="extxyz")


def command() -> list[str]:
    """The training command; paths are relative to the working folder."""
    settings = {
        "name": "embedded",
        "train_file": "mace-train.xyz",
        "valid_file": "mace-valid.xyz",
        "E0s": repr(isolated_atom_energies()),
        **ARCHITECTURE,
        **OPTIMISATION,
    }
    options = [f"--{key}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", "mace.cli.run_train", *options, *(f"--{switch}" for switch in SWITCHES)]


def main() -> None:
    """Train, and leave the model of stage two as ``work/embedded_stagetwo.model``."""
    for part in ("train", "valid"):
        with_training_keys(WORK / f"thermal-{part}.xyz", WORK / f"mace-{part}.xyz")
    start = time.time()
    subprocess.run(command(), cwd=WORK, check=True)
    (WORK / "training-minutes.txt").write_text(f"{(time.time() - start) / 60:.0f}\n")


if __name__ == "__main__":
    main()
