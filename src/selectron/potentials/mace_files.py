"""Reading a mace-torch ``.model`` file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from selectron.archives import load_archive
from selectron.errors import SelectronError
from selectron.notes import note
from selectron.potentials import mace_torch  # noqa: F401  what the pickle refers to, imported in the right order
from selectron.potentials.mace_kinds import has_corrections
from selectron.wording import counted


def load_mace(path: str | Path) -> torch.nn.Module:
    """The model in a mace-torch ``.model`` file, LoRA corrections that were left in it merged into its weights.

    The file is a pickle and can run code when it is opened: open only files whose origin you trust. Its checksums are
    compared first. Whether it is a model that selectron can use is for
    :class:`~selectron.potentials.MacePotential` to say.

    Raises SelectronError with one sentence for a file that is damaged or no model.
    """
    model = read_mace(path)
    if has_corrections(model):
        from mace.modules.lora import merge_lora_weights

        try:
            merge_lora_weights(model)
        except Exception as error:  # mace-torch 0.3.16 has no product for linear layers with biases
            raise SelectronError(
                f"The LoRA corrections in {path} cannot be merged into its weights: {error}."
            ) from None
        note(f"{path} holds LoRA corrections, which are merged into its weights here; the file stays as it is.")
    return model


def read_mace(path: str | Path) -> torch.nn.Module:
    """The model in ``path`` as it was saved; see :func:`load_mace`."""
    found = load_archive(path, kind="a mace-torch model file", remedy="copy or download it anew", runs_code=True)
    if not isinstance(found, torch.nn.Module):
        raise SelectronError(f"{path} is no model file: {_what(found)}.")
    return found


def _what(found: Any) -> str:
    """What is in a file that is no model, and what helps."""
    if isinstance(found, dict) and found and all(isinstance(value, torch.Tensor) for value in found.values()):
        return (
            f"it holds a state dictionary ({counted(len(found), 'tensor')}), not a model; build the model, load them into "
            "it, and torch.save the model"
        )
    if isinstance(found, dict) and "model" in found and "optimizer" in found:
        return (
            "it holds a checkpoint of a training run (parameters and the state of the optimiser); give the .model file "
            "that mace_run_train writes beside its checkpoints"
        )
    holds = f"it holds an object of type {type(found).__name__}"
    inside = list(found.values()) if isinstance(found, dict) else found if isinstance(found, list | tuple) else []
    if any(isinstance(one, torch.nn.Module) for one in inside):
        return f"{holds} with a model in it; torch.save the model itself"
    return f"{holds}; mace-torch saves a whole model in a .model file"
