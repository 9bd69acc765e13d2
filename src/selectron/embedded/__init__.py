"""A small model, a pool and a training set that come with the package: H, C, N and O molecules at GFN2-xTB.

| file               | what it holds                                                                                |
|--------------------|----------------------------------------------------------------------------------------------|
| `embedded.model`   | a MACE with 32 invariant channels, trained on thermally displaced conformers only             |
| `pool.extxyz.gz`   | structures of the same chemistry in reaction, which the model does not know, with labels      |
| `train.extxyz.gz`  | some of the model's own training structures, with labels                                      |

Energies are total GFN2-xTB energies in eV, forces in eV/Å. `MODEL_CARD.md` and `DATA_CARD.md` beside this file say how
everything was made and how large the errors are; `recipes/embedded/make.py` makes it again.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

__all__ = ["model_path", "pool_path", "train_path"]


def model_path() -> Path:
    """The embedded MACE: a whole ``torch.save``d module, float32, on the CPU.

    Load it with ``torch.load(model_path(), map_location="cpu", weights_only=False)`` after ``import mace``, or give the
    path to ``mace.calculators.MACECalculator``. It is a pickle, as every MACE model file is.
    """
    return _path("embedded.model")


def pool_path() -> Path:
    """Gzipped extended XYZ of reactive structures with GFN2-xTB energies and forces; ``ase.io.read`` takes it as it is.

    Each structure's ``info`` has ``kind`` (hot-dynamics, bond-scan, proton-transfer or path-image), ``smiles`` (of what
    it was made from) and ``reaction`` (which bond, transfer, path or temperature).
    """
    return _path("pool.extxyz.gz")


def train_path() -> Path:
    """Gzipped extended XYZ of thermal structures out of the model's training set, with GFN2-xTB energies and forces.

    Each structure's ``info`` has ``kind`` (thermal-300K or thermal-500K), ``smiles`` and ``molecule`` (its place).
    """
    return _path("train.extxyz.gz")


def _path(name: str) -> Path:
    return Path(str(files(__name__) / name))
