"""A mace-torch model with its parametrised layers exchanged for those of :mod:`mace_modules`."""

from __future__ import annotations

import copy
from typing import Any

import torch

from selectron.potentials.edge_modules import NeighbourConvolution, SphericalHarmonics, is_neighbour_product
from selectron.potentials.mace_modules import (
    AffineLayer,
    CompositionHolder,
    ElementLinear,
    EquivariantLinear,
    NormLayer,
    PolynomialContraction,
    RadialLayer,
    RecordedLayer,
)

_ON_EDGES = ("conv_tp_weights", "density_fn", "radial_embedding")


def recorded_copy(model: torch.nn.Module) -> tuple[torch.nn.Module, CompositionHolder, list[RecordedLayer], list[str]]:
    """A copy of ``model`` that computes the same function and shares its parameters.

    Returns the copy, the holder that must be given each batch's composition before the copy is called, the exchanged
    layers, and the names of the parameters that no exchanged layer owns (their gradients need another way).
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    clone = copy.deepcopy(model, memo)
    holder = CompositionHolder()
    layers: list[RecordedLayer] = []
    owned: set[str] = set()
    for name, module in list(clone.named_modules()):
        replacement = _replacement(module, name, holder)
        if replacement is None:
            continue
        parent_name, _, child = name.rpartition(".")
        parent = clone.get_submodule(parent_name)
        setattr(parent, child, replacement)
        layers.append(replacement)
        owned.update(f"{name}.{parameter}" for parameter, _ in module.named_parameters())
    _make_twice_differentiable(clone)
    _exchange_edge_operations(clone, holder)
    left_over = [name for name, _ in model.named_parameters() if name not in owned]
    return clone, holder, layers, left_over


def _exchange_edge_operations(model: Any, holder: CompositionHolder) -> None:
    harmonics = model.spherical_harmonics
    plain = harmonics._is_range_lmax and harmonics.normalize and harmonics.normalization == "component"
    if plain:
        model.spherical_harmonics = SphericalHarmonics(harmonics._lmax).to(model.r_max.device)
    for interaction in model.interactions:
        if type(interaction.conv_tp).__name__ == "TensorProduct" and is_neighbour_product(interaction.conv_tp):
            interaction.conv_tp = NeighbourConvolution(interaction.conv_tp, holder).to(model.r_max.device)
            interaction.conv_fusion = True  # mace-torch then leaves the sum over neighbours to the convolution


def swish(x: torch.Tensor) -> torch.Tensor:
    """x σ(x): ``silu`` of operations whose derivatives all have forward-mode derivatives."""
    return x * torch.sigmoid(x)


class Swish(torch.nn.Module):
    """:func:`swish` as a module."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Elementwise."""
        return swish(x)


def _make_twice_differentiable(model: torch.nn.Module) -> None:
    """Exchanges ``silu``: PyTorch has no forward-mode derivative of its backward pass, which force rows need."""
    for name, module in list(model.named_modules()):
        for attribute in [key for key, value in vars(module).items() if value is torch.nn.functional.silu]:
            setattr(module, attribute, swish)  # e3nn's normalised activations, the gates of non-linear blocks
        if isinstance(module, torch.nn.SiLU):
            parent_name, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent_name), child, Swish())


def _replacement(module: torch.nn.Module, name: str, holder: CompositionHolder) -> RecordedLayer | None:
    kind = f"{type(module).__module__}.{type(module).__name__}"
    on_edges = any(part in name for part in _ON_EDGES)
    layer: Any = module
    if kind == "e3nn.o3._linear.Linear" and layer.internal_weights:
        return EquivariantLinear(layer, name, holder, on_edges)
    if kind == "e3nn.o3._tensor_product._sub.FullyConnectedTensorProduct" and _is_element_product(layer, name):
        return ElementLinear(layer, name, holder)
    if kind == "e3nn.nn._fc._Layer":
        return RadialLayer(layer, name, holder)
    if kind == "mace.modules.symmetric_contraction.Contraction":
        return PolynomialContraction(layer, name, holder)
    if type(module) is torch.nn.Linear and "joint_embedding" not in name:
        return AffineLayer(layer, name, holder, on_edges)
    if type(module) is torch.nn.LayerNorm and "joint_embedding" not in name:
        return NormLayer(layer, name, holder, on_edges)
    return None


def _is_element_product(layer: Any, name: str) -> bool:
    """Whether it multiplies node features by the one-hot of elements, as ``skip_tp`` of MACE does."""
    scalars = len(layer.irreps_in2) == 1 and layer.irreps_in2[0].ir.l == 0
    return (
        name.endswith("skip_tp")
        and scalars
        and all(ins.connection_mode == "uvw" and ins.has_weight for ins in layer.instructions)
    )
