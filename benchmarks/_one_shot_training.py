"""Fine-tuning in this process, as selectron.training.fine_tune does it, on selectron's faster layers of the same model.

Losses, parameter groups, optimiser (Adam with amsgrad), clipping, moving average, schedule and the choice of the epoch
are those of mace-torch; only the order in which structures are drawn differs. ``one_shot.py --check`` compares the two.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selectron.potentials.mace import MacePotential
from selectron.structures.graphs import GraphBatch
from selectron.training.labels import Labelled
from selectron.training.mace_runner import TOLERANCE


class Recipe(NamedTuple):
    """How a model is fine-tuned; names and meanings of ``TrainOptions``.

    ``gamma`` multiplies the learning rate after each epoch; ``loss`` is "weighted" (squares) or "l1" (|ΔE|/N and the
    norm of an atom's force error). ``replay`` is how many structures of old data join the new
    ones; batches grow in proportion, so that the number of steps stays. ``keep_last``: the result is the last epoch's model
    unless its validation loss is a tenth above the lowest; otherwise it is the model of the lowest.
    """

    epochs: int = 40
    learning_rate: float = 1e-3
    gamma: float = 1.0
    loss: str = "weighted"
    energy_weight: float = 1000.0
    forces_weight: float = 100.0
    batch_size: int = 10
    ema: float | None = None
    weight_decay: float = 5e-7
    clip_grad: float = 10.0
    replay: int = 0
    keep_last: bool = False


class _Batch(NamedTuple):
    graph: GraphBatch
    energies: Tensor
    forces: Tensor
    weights: Tensor


def train(
    model: torch.nn.Module,
    structures: list[Labelled],
    valid: list[Labelled],
    recipe: Recipe,
    seed: int,
    *,
    replay: Sequence[Labelled] = (),
) -> tuple[MacePotential, int]:
    """The model of the epoch that the recipe keeps, as a potential in float32, and that epoch."""
    potential = MacePotential(copy.deepcopy(model), dtype=torch.float32)
    potential.model.requires_grad_(True)
    parameters = list(potential.model.parameters())
    optimiser = torch.optim.Adam(_groups(potential.model, recipe), lr=recipe.learning_rate, amsgrad=True)
    average = [p.detach().clone() for p in parameters]
    steps = math.ceil(len(structures) / recipe.batch_size)
    structures = [*structures, *replay]
    random = np.random.default_rng(seed)
    size = len(structures) // steps
    held_out = [_batch(potential, valid[i : i + 32]) for i in range(0, len(valid), 32)]
    lowest, kept, kept_epoch, updates = math.inf, average, -1, 0
    for epoch in range(recipe.epochs):
        order = random.permutation(len(structures))
        for step in range(steps):
            batch = _batch(potential, [structures[i] for i in order[step * size : (step + 1) * size]])
            optimiser.zero_grad()
            _loss(potential, batch, recipe, training=True).backward()
            torch.nn.utils.clip_grad_norm_(parameters, recipe.clip_grad)
            optimiser.step()
            updates += 1
            if recipe.ema is not None:
                decay = min(recipe.ema, (1 + updates) / (10 + updates))
                with torch.no_grad():
                    for mean, parameter in zip(average, parameters, strict=True):
                        mean.lerp_(parameter, 1.0 - decay)
        for group in optimiser.param_groups:
            group["lr"] *= recipe.gamma
        current = [p.detach().clone() for p in parameters]
        if recipe.ema is not None:
            _set(parameters, average)
        count = sum(len(batch.energies) for batch in held_out)
        loss = sum(_loss(potential, b, recipe, training=False).item() * len(b.energies) for b in held_out) / count
        lowest = min(loss, lowest)
        if loss == lowest or (recipe.keep_last and epoch == recipe.epochs - 1 and loss < TOLERANCE * lowest):
            kept_epoch, kept = epoch, [p.detach().clone() for p in parameters]
        _set(parameters, current)
    _set(parameters, kept)
    return MacePotential(potential.model, dtype=torch.float32), kept_epoch


def _set(parameters: list[torch.nn.Parameter], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


def _groups(model: torch.nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """Weight decay where mace-torch has it: products and the linear layers of interactions."""
    decayed, free = [], []
    for name, parameter in model.named_parameters():
        linear = name.startswith("interactions.") and ("linear.weight" in name or "skip_tp_full.weight" in name)
        (decayed if linear or name.startswith("products.") else free).append(parameter)
    return [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]


def _batch(potential: MacePotential, structures: list[Labelled]) -> _Batch:
    graph = potential.batch([one.atoms for one in structures])
    energies = torch.tensor([one.energy_eV for one in structures], dtype=torch.float64)
    forces = torch.from_numpy(np.concatenate([one.forces for one in structures]))
    weights = torch.tensor([one.weight for one in structures], dtype=torch.float64, device=potential.device)
    return _Batch(graph, energies.to(potential.device), forces.to(potential.device, potential.dtype), weights)


def _loss(potential: MacePotential, batch: _Batch, recipe: Recipe, *, training: bool) -> Tensor:
    differentiable = potential.differentiable(batch.graph)
    forces = -torch.autograd.grad(differentiable.energies.sum(), differentiable.positions, create_graph=training)[0]
    energy_errors = (differentiable.energies.double() - batch.energies) / batch.graph.counts
    force_errors = forces - batch.forces
    of_atoms = batch.weights.repeat_interleave(batch.graph.counts).to(forces.dtype)
    if recipe.loss == "l1":
        energy = (batch.weights * energy_errors.abs()).mean()
        force = (of_atoms * torch.linalg.vector_norm(force_errors, dim=1)).mean()
    else:
        energy = (batch.weights * energy_errors.square()).mean()
        force = (of_atoms[:, None] * force_errors.square()).mean()
    return recipe.energy_weight * energy + recipe.forces_weight * force
