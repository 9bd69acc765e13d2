"""What the benchmarks share: where the data are, facts about the machine, result files."""

from __future__ import annotations

import json
import os
import platform
from argparse import ArgumentParser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.io import read

from selectron.structures.atomic import atomic_output

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("selectron", "torch", "mace-torch", "ase", "numpy")


def shared_folder() -> Path:
    """The folder with ``data`` and ``models``: ``$SELECTRON_SHARED``, or ``shared`` beside the checkout."""
    return Path(os.environ.get("SELECTRON_SHARED") or ROOT.parent / "shared")


def add_common_arguments(parser: ArgumentParser) -> None:
    """--shared, --output, --quick, --device, --threads."""
    parser.add_argument("--shared", type=Path, default=shared_folder(), help="folder with data/ and models/")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--quick", action="store_true", help="a few structures, to see that it runs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def machine_facts(device: str) -> dict[str, Any]:
    """Processor, device and versions."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), model)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def write_json(path: Path, content: dict[str, Any]) -> None:
    """The result file ``path``, whole or as it was."""
    with atomic_output(path) as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")


def save(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Writes ``name``.json with everything in it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", content)
    print(f"wrote {folder / name}.json")


def reactive_molecules(shared: Path) -> list[Atoms]:
    """Frames along 600 reactions, T1x-like labels good to about 0.1 eV/Å; ``info["group"]`` is the reaction."""
    frames = read(shared / "data" / "t1xlike_rdb7_newtonnet.xyz", ":")
    frames = [atoms for atoms in frames if float(atoms.info["oracle_dis_fmax"]) < 0.3]
    for atoms in frames:
        atoms.info["group"] = str(atoms.info["rxn"])
        atoms.arrays["free"] = np.ones(len(atoms), dtype=bool)
    return frames


def slabs(shared: Path) -> list[Atoms]:
    """OC20 relaxations with RPBE labels; ``info["group"]`` the system, array ``free`` the atoms that may move."""
    frames = read(shared / "data" / "oc20_traj30_sub.xyz", ":")
    for atoms in frames:
        atoms.info["group"] = str(atoms.info["sid"])
        atoms.arrays["free"] = np.asarray(atoms.arrays["fixed"]) == 0
    return frames


def sample(frames: list[Atoms], count: int, seed: int) -> list[Atoms]:
    """``count`` of them at random, in their order."""
    chosen = np.random.default_rng(seed).permutation(len(frames))[:count]
    return [frames[i] for i in np.sort(chosen)]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation."""
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)
