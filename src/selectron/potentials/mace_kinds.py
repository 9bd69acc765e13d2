"""Which models the layers of :mod:`~selectron.potentials.fast_mace` know, and what a model of these must be like.

A class that derives from MACE computes something else with the same parts. So does a known class whose parts are of
unknown classes, or one that was changed after it was made: layers are exchanged by class, and what a changed one does would be
lost. Whatever is not known exactly is refused by name.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from ase.data import chemical_symbols

from selectron.errors import SelectronError
from selectron.potentials.mace_torch import MACE, ScaleShiftMACE

KNOWN = "selectron reads mace-torch models of class MACE or ScaleShiftMACE"

_CHILDREN = {
    "node_embedding", "radial_embedding", "spherical_harmonics", "atomic_energies_fn", "interactions", "products", "readouts",
    "scale_shift", "pair_repulsion_fn",
}  # fmt: skip
_PARTS = re.compile(
    r"mace\.modules\.(blocks|radial|irreps_tools|symmetric_contraction|gate)\.\w+"
    r"|e3nn\.(o3|nn|math|util)\..*"
    r"|torch\.nn\.modules\.(container|linear|activation|normalization)\.\w+"
    r"|torch\.jit\._script\.RecursiveScriptModule|torch\.fx\.graph_module\..*"  # code that e3nn generated
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_ELSEWHERE = {
    "cuequivariance": "python -m mace.cli.convert_cueq_e3nn makes the same model with layers of e3nn",
    "openequivariance": "python -m mace.cli.convert_oeq_e3nn makes the same model with layers of e3nn",
}
_WRAPPED = {
    "OptimizedModule": ("wrapped by torch.compile", "_orig_mod"),
    "DataParallel": ("wrapped for several devices", "module"),
    "DistributedDataParallel": ("wrapped for several processes", "module"),
}


def has_corrections(model: torch.nn.Module) -> bool:
    """Whether ``model`` holds LoRA layers of mace-torch."""
    return any(type(part).__module__ == "mace.modules.lora" for part in model.modules())


def check_mace(model: torch.nn.Module, name: str) -> None:
    """Raises SelectronError, with one sentence, for a model that selectron's layers do not cover exactly."""
    kind = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule):
        raise SelectronError(
            f"{name} is compiled (TorchScript): give the .model file that it was made from, which keeps its parameters apart."
        )
    if kind in _WRAPPED:
        how, attribute = _WRAPPED[kind]
        raise SelectronError(f"{name} is a model {how}: torch.save its {attribute}, which is the model itself.")
    if type(model) not in (MACE, ScaleShiftMACE):
        derived = " (it derives from one, and computes something else)" if isinstance(model, MACE) else ""
        raise SelectronError(f"{name} is a {kind}: {KNOWN}{derived}.")
    wanted = getattr(model, "embedding_specs", None)
    if wanted or hasattr(model, "joint_embedding"):
        inputs = " and ".join(wanted) if wanted else "more than positions, cell and elements"
        raise SelectronError(
            f"{name} takes {inputs} of each structure as input, which selectron does not hand to models."
        )
    if has_corrections(model):
        raise SelectronError(
            f"{name} holds LoRA corrections that are not merged: mace.modules.lora.merge_lora_weights(model) merges them."
        )
    _check_parts(model, name)
    _check_numbers(model, name)


def _check_parts(model: torch.nn.Module, name: str) -> None:
    unknown = [child for child, _ in model.named_children() if child not in _CHILDREN]
    for place, part in model.named_modules():
        kind = f"{type(part).__module__}.{type(part).__qualname__}"
        if part is not model and (not _PARTS.fullmatch(kind) or place.partition(".")[0] in unknown):
            known = next((text for package, text in _ELSEWHERE.items() if kind.startswith(package)), None)
            raise SelectronError(
                f"{name} holds a part that a {type(model).__name__} of mace-torch does not have, {place} of class {kind}: "
                f"{known or KNOWN + ', as mace-torch makes them'}."
            )
        changed = [hook.strip("_").replace("_", " ") for hook in _HOOKS if getattr(part, hook, None)]
        if not isinstance(part, torch.jit.ScriptModule) and "forward" in vars(part):
            changed.append("another forward")
        if changed:
            raise SelectronError(
                f"{name} was changed after it was made: its {place or 'model'} has {' and '.join(changed)}; {KNOWN}, as "
                "mace-torch makes them."
            )


def _check_numbers(model: Any, name: str) -> None:
    lacking = [one for one in ("r_max", "atomic_numbers", "atomic_energies_fn", "products") if not hasattr(model, one)]
    if lacking:
        raise SelectronError(f"{name} has no {' and no '.join(lacking)}, which every MACE model of mace-torch has.")
    for place, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and value.dtype not in (torch.float32, torch.float64):
            raise SelectronError(
                f"{name} holds numbers of type {str(value.dtype).removeprefix('torch.')}, and what was rounded away does not "
                "come back: give the model with float32 or float64."
            )
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise SelectronError(f"{name} holds numbers that are not finite, in {place}: a training has broken it.")
    cutoff, numbers = float(model.r_max), [int(z) for z in model.atomic_numbers]
    if cutoff <= 0.0:
        raise SelectronError(f"{name} has a cutoff of {cutoff:g} Å, which must be positive.")
    wrong = [z for z in numbers if not 0 < z < len(chemical_symbols)]
    if wrong or not numbers:
        raise SelectronError(f"{name} is made for atomic numbers {wrong or 'of none'}, which are no elements.")
    twice = sorted({chemical_symbols[z] for z in numbers if numbers.count(z) > 1})
    if twice:
        raise SelectronError(f"{name} has the element {', '.join(twice)} more than once.")
    heads = list(getattr(model, "heads", None) or ["Default"])
    shape = tuple(torch.atleast_2d(model.atomic_energies_fn.atomic_energies).shape)
    if shape != (len(heads), len(numbers)):
        raise SelectronError(
            f"{name} names {len(heads)} heads and {len(numbers)} elements, but holds atomic energies for {shape[0]} and "
            f"{shape[1]}."
        )
    if len(set(heads)) < len(heads):
        raise SelectronError(f"{name} has two heads of one name: {', '.join(map(str, heads))}.")
