"""mace-torch's trainer on selectron's layers: the same function of the same parameters, sooner.

The model that mace-torch trains keeps its modules: optimiser, groups, moving average, checkpoints and the file at the end see
nothing else. Only its ``forward`` is that of a copy with the layers of :mod:`selectron.potentials.mace_modules`, which
holds the very same parameter tensors. Runs in the trainer's process, if that can import selectron.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from selectron.potentials.fast_mace import recorded_copy
from selectron.potentials.mace_modules import Composition, CompositionHolder, EquivariantLinear
from selectron.potentials.mace_torch import MACE, ScaleShiftMACE

TOLERANCE = {
    "node_energy": {torch.float32: 1e-5, torch.float64: 1e-10},
    "forces": {torch.float32: 1e-3, torch.float64: 1e-8},
}
"""Of the largest of the batch, or of 1 eV or eV/Å where that is less."""

Forward = Callable[..., dict[str, Any]]


class NotCovered(Exception):
    """Why a model cannot be trained on these layers."""


class _MergedLinear(torch.nn.Module):
    """``LoRAO3Linear`` in weight space, W + c A B: one product with the items where mace-torch has three."""

    def __init__(self, corrected: Any, linear: EquivariantLinear) -> None:
        super().__init__()
        self.weight_of_now: Callable[[], Tensor] = corrected.compute_merged_weight
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """(n, irreps_in.dim) to (n, irreps_out.dim)."""
        return self.linear(x, self.weight_of_now())


def fast_forward(model: torch.nn.Module) -> Forward:
    """A function of the same arguments and with the same results as ``model.forward``.

    Args:
        model: a ``MACE`` or ``ScaleShiftMACE``, with or without mace-torch's LoRA layers. Its parameters may change
            in place afterwards, and may be frozen and thawed; its modules may not change.

    With ``training`` results are functions of the parameters alone, and can be differentiated once and in nothing else.
    The edges of a batch may come in any order. Raises :class:`NotCovered` for a model of another kind.
    """
    if type(model) not in (MACE, ScaleShiftMACE):
        raise NotCovered(f"the model is a {type(model).__name__}, not a MACE or ScaleShiftMACE")
    if hasattr(model, "joint_embedding"):
        raise NotCovered("the model takes more of a structure than positions, cell and elements")
    interactions: Any = model.interactions
    others = {type(layer.conv_tp).__name__ for layer in interactions} - {"TensorProduct"}
    if others:
        raise NotCovered(f"the model's convolution is not e3nn's but {' and '.join(sorted(others))}")
    fast, holder, _, _ = recorded_copy(model)
    _merge_corrections(model, fast)

    def forward(data: Mapping[str, Tensor], *, training: bool = False, **options: Any) -> dict[str, Any]:
        composed = _composed(data, holder)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not (training and trained):
            return fast(composed, training=training, **options)
        out: dict[str, Any] = {}
        values = _OfParameters.apply(lambda: _evaluated(fast, composed, options, out), *trained)
        return out | dict(zip([key for key in _LEARNED if out[key] is not None], values, strict=True))

    return forward


_LEARNED = ("energy", "forces", "virials", "stress")


def _evaluated(
    fast: torch.nn.Module, data: dict[str, Tensor], options: dict[str, Any], out: dict[str, Any]
) -> list[Tensor]:
    """What a loss may be made of, with its graph; everything, without it, goes to ``out``."""
    with torch.enable_grad():
        found = fast({**data, "positions": data["positions"].detach()}, training=True, **options)
    out |= {key: value.detach() if isinstance(value, Tensor) else value for key, value in found.items()}
    return [found[key] for key in _LEARNED if found[key] is not None]


class _OfParameters(torch.autograd.Function):
    """Tensors as functions of the parameters alone: autograd then leaves out the loss's gradient in the positions."""

    @staticmethod
    def forward(ctx: Any, evaluate: Callable[[], list[Tensor]], *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.parameters, ctx.values = parameters, evaluate()
        return tuple(value.detach() for value in ctx.values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        used = [(value, gradient) for value, gradient in zip(ctx.values, gradients, strict=True) if value.requires_grad]
        values, gradients = zip(*used, strict=True)
        return None, *torch.autograd.grad(values, ctx.parameters, gradients, allow_unused=True)


def _merge_corrections(model: torch.nn.Module, fast: torch.nn.Module) -> None:
    for name, module in list(fast.named_modules()):
        layer: Any = module
        if type(module).__name__ == "LoRAO3Linear" and not layer.base.biases:
            parent, _, child = name.rpartition(".")
            setattr(fast.get_submodule(parent), child, _MergedLinear(model.get_submodule(name), layer.base))


def _composed(data: Mapping[str, Tensor], holder: CompositionHolder) -> dict[str, Tensor]:
    """``data`` with its edges in the order of their receivers, over which layers sum; tells ``holder`` what is in it."""
    order = torch.argsort(data["edge_index"][1], stable=True)
    edges = {"edge_index": data["edge_index"].index_select(1, order)}
    edges |= {key: data[key].index_select(0, order) for key in ("shifts", "unit_shifts")}
    counts = data["ptr"][1:] - data["ptr"][:-1]
    receivers = edges["edge_index"][1]
    holder.current = Composition(
        species=data["node_attrs"].argmax(dim=1),
        system_idx=data["batch"],
        atom_counts=counts,
        edge_counts=torch.bincount(data["batch"].index_select(0, receivers), minlength=len(counts)),
        receiver_counts=torch.bincount(receivers, minlength=len(data["batch"])),
    )
    return {**data, **edges}


def check_equal(model: torch.nn.Module, fast: Forward, data: Mapping[str, Tensor]) -> None:
    """Raises :class:`NotCovered` unless both give the same atomic energies and forces for ``data``, up to rounding."""
    plain, other = model.forward(dict(data)), fast(dict(data))
    precision = data["positions"].dtype
    for key, tolerance in TOLERANCE.items():
        expected = plain[key].detach()
        error = float((other[key].detach() - expected).abs().max() / expected.abs().max().clamp(min=1.0))
        if not error <= tolerance[precision]:
            raise NotCovered(
                f"selectron's {key.replace('_', ' ')} differ from mace-torch's by {error:.1e} of their size"
            )
