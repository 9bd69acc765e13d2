"""From working files to the files of the package: the model, the pool and a sample of the training set."""

from __future__ import annotations

import io
import shutil
import zipfile
from pathlib import Path

import ase.io
import mace  # noqa: F401  (sets how torch loads files, which e3nn needs, so it comes first)
import numpy as np
import torch
from e3nn.util.codegen import CodeGenMixin
from labels import write_gzip
from thermal import WORK

PACKAGE = Path(__file__).parents[2] / "src" / "selectron" / "embedded"
SAMPLE_SEED, SAMPLE_SIZE = 5, 200


def without_debug_records(archive: bytes) -> bytes:
    """A TorchScript archive less its debug records, which hold nothing but paths of the machine that wrote them."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as source, zipfile.ZipFile(packed, "w") as target:
        for name in source.namelist():
            if not name.endswith(".debug_pkl"):
                target.writestr(zipfile.ZipInfo(name), source.read(name))
    return packed.getvalue()


def export_model(source: Path, target: Path) -> None:
    """Save the trained module for the CPU in float32, without the paths in the code archives that e3nn keeps inside."""
    model = torch.load(source, map_location="cpu", weights_only=False).float().eval()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
        parameter.grad = None
    original = CodeGenMixin.__getstate__

    def getstate(self: CodeGenMixin) -> dict:
        state = original(self)
        if "__codegen__" in state:
            state["__codegen__"] = {name: without_debug_records(code) for name, code in state["__codegen__"].items()}
        return state

    CodeGenMixin.__getstate__ = getstate
    try:
        torch.save(model, target)
    finally:
        CodeGenMixin.__getstate__ = original


def export_training_sample(source: Path, target: Path) -> None:
    """A random part of the training structures, at most one of each molecule and temperature."""
    structures = ase.io.read(source, ":")
    sample, seen = [], set()
    for index in np.random.default_rng(SAMPLE_SEED).permutation(len(structures)):
        key = (structures[index].info["molecule"], structures[index].info["kind"])
        if key not in seen and len(sample) < SAMPLE_SIZE:
            seen.add(key)
            sample.append(structures[index])
    write_gzip(target, sample)


def main() -> None:
    """Write ``embedded.model``, ``pool.extxyz.gz`` and ``train.extxyz.gz`` into the package."""
    export_model(WORK / "embedded_stagetwo.model", PACKAGE / "embedded.model")
    export_training_sample(WORK / "thermal-train.xyz", PACKAGE / "train.extxyz.gz")
    shutil.copyfile(WORK / "pool.extxyz.gz", PACKAGE / "pool.extxyz.gz")


if __name__ == "__main__":
    main()
