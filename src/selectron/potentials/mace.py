"""MACE models (mace-torch) as a potential: batched energies, forces, stress and node features."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from ase import Atoms
from torch import Tensor
from torch.autograd import forward_ad

from selectron.errors import SelectronError
from selectron.notes import note
from selectron.potentials.base import Differentiable, Evaluation
from selectron.potentials.fast_mace import recorded_copy
from selectron.potentials.mace_initialisation import reinitialise
from selectron.potentials.mace_kinds import check_mace
from selectron.potentials.mace_modules import Composition, Gradient, RecordedLayer, Slot, Tape
from selectron.structures.graphs import GraphBatch, collate

CAPABILITIES = frozenset({"energy", "forces", "stress", "node-features", "parameter-gradients"})


class MacePotential:
    """A ``MACE`` or ``ScaleShiftMACE`` of any order L, one head of it.

    Args:
        model: the model as mace-torch saves it.
        name: what to call it in outputs.
        device: "cpu", "cuda", "cuda:1".
        dtype: ``torch.float32`` or ``torch.float64``; parameters and buffers are converted.
        head: which head's energy, for a model with several; may be left out where there is one, or one called Default.

    Parameters are frozen: nothing here trains. Energies in eV, float64 whatever ``dtype`` (in float32 a sum of references of
    thousands of eV would be wrong by a tenth of a meV an atom); forces in eV/Å, stress in eV/Å³.
    """

    capabilities = CAPABILITIES

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        name: str = "mace",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        head: str | None = None,
    ) -> None:
        check_mace(model, name)
        self.name = name
        self.device = usable_device(device)
        self.dtype = dtype
        self.heads: list[str] = list(getattr(model, "heads", None) or ["Default"])
        self.head = _choose_head(self.heads, head, name)
        # kept in double precision: the sum of atomic references is orders of magnitude larger than what is learnt
        referred: Any = model.atomic_energies_fn
        table_eV = torch.atleast_2d(referred.atomic_energies.detach())[self.heads.index(self.head)]
        self._references_eV = table_eV.to(self.device, torch.float64, copy=True)
        frozen: Any = model.to(device=self.device, dtype=dtype).eval().requires_grad_(False)
        self.model = frozen
        self.cutoff_A = float(frozen.r_max)
        self.atomic_numbers: list[int] = [int(z) for z in frozen.atomic_numbers]
        self.elements: frozenset[int] | None = frozenset(self.atomic_numbers)
        self.fingerprint = model_fingerprint(self.model, self.head, dtype, self._references_eV)
        table = torch.full((max(self.atomic_numbers) + 1,), -1, dtype=torch.int64)
        table[self.atomic_numbers] = torch.arange(len(self.atomic_numbers))
        self._species_of_number = table.to(self.device)
        self.fast_model, self._holder, self.layers, self.loose_parameters = recorded_copy(self.model)

    def batch(self, structures: Sequence[Atoms]) -> GraphBatch:
        """Graph of ``structures`` with the model's cutoff, on its device, in its dtype."""
        return collate(structures, self.cutoff_A).to(self.device, self.dtype)

    def species(self, batch: GraphBatch) -> Tensor:
        """(N,) int64: index of each atom's element in the model; raises SelectronError for one it lacks."""
        known = len(self._species_of_number)
        index = torch.where(
            batch.numbers < known,
            self._species_of_number[batch.numbers.clamp(max=known - 1)],
            batch.numbers.new_tensor(-1),
        )
        if bool((index < 0).any()):
            from ase.data import chemical_symbols

            missing = sorted({chemical_symbols[int(z)] for z in batch.numbers[index < 0]})
            raise SelectronError(f"{self.name} does not know the element {', '.join(missing)}.")
        return index

    def inputs(self, batch: GraphBatch) -> dict[str, Tensor]:
        """The dictionary that mace-torch models take."""
        one_hot = torch.nn.functional.one_hot(self.species(batch), len(self.atomic_numbers)).to(self.dtype)
        ptr = torch.zeros(batch.n_structures + 1, dtype=torch.int64, device=self.device)
        ptr[1:] = torch.cumsum(batch.counts, 0)
        return {
            "positions": batch.positions.clone(),
            "node_attrs": one_hot,
            "edge_index": batch.edge_index,
            "shifts": batch.shifts,
            "unit_shifts": batch.unit_shifts,
            "cell": batch.cell.reshape(-1, 3),
            "batch": batch.system_idx,
            "ptr": ptr,
            "head": torch.full((batch.n_structures,), self.heads.index(self.head), device=self.device),
        }

    def evaluate(
        self, batch: GraphBatch, *, forces: bool = True, stress: bool = False, node_features: bool = False
    ) -> Evaluation:
        """Energies (B,), forces (N, 3), stress (B, 3, 3), invariant node features of all layers (N, C)."""
        if batch.n_structures == 0:
            return _empty(self, forces, stress, node_features)
        needs_gradient = forces or stress
        self.compose(batch)
        with torch.enable_grad() if needs_gradient else torch.no_grad():
            out = self.fast_model(self.inputs(batch), compute_force=forces, compute_stress=stress)
        return Evaluation(
            energies=self._energies(out).detach(),
            forces=out["forces"].detach() if forces else None,
            stress=_stress(out["stress"], batch) if stress else None,
            node_features=self.invariants(out["node_feats"].detach()) if node_features else None,
        )

    def differentiable(self, batch: GraphBatch, *, node_features: bool = False) -> Differentiable:
        """Energies (B,) and node features (N, C) with their graph; positions (N, 3) are the leaf."""
        self.compose(batch)
        with torch.enable_grad():
            inputs = self.inputs(batch)
            positions = inputs["positions"].requires_grad_(True)
            out = self.fast_model(inputs, compute_force=False)
            features = self.invariants(out["node_feats"]) if node_features else None
        return Differentiable(positions, self._energies(out), features)

    def _energies(self, out: dict[str, Tensor]) -> Tensor:
        """(B,) float64: what the layers of the batch at hand say, and the atomic references as they are in the file."""
        composition = self._holder.current
        learnt = out["interaction_energy"] if "interaction_energy" in out else out["contributions"][:, 1:].sum(1)
        references = learnt.new_zeros(composition.n_structures, dtype=torch.float64)
        references.index_add_(0, composition.system_idx, self._references_eV[composition.species])
        return learnt.double() + references

    def compose(self, batch: GraphBatch) -> None:
        """Tells the exchanged layers what the batch consists of; comes before each call of ``fast_model``."""
        received = torch.bincount(batch.edge_index[1], minlength=len(batch.numbers))
        self._holder.current = Composition(
            self.species(batch), batch.system_idx, batch.counts, batch.edge_counts, received
        )

    def parameter_gradients(self, batch: GraphBatch, parameters: frozenset[str] | None = None) -> Iterator[Gradient]:
        """∂E_b/∂θ of each structure b, from one forward and one backward pass of the whole batch.

        Args:
            batch: the structures.
            parameters: names of the parameters that θ consists of; None for all of the model.

        Yields one :class:`Gradient` a matrix of parameters. Parameters that no exchanged layer owns (few, scalars as a
        rule) come from one more backward pass a structure.
        """
        if batch.n_structures == 0:
            return
        layers = [layer for layer in self.layers if _touches(layer, parameters)]
        loose = [n for n in self.loose_parameters if parameters is None or n in parameters]
        weights = [self.fast_model.get_parameter(name) for name in loose]
        self.compose(batch)
        with torch.enable_grad(), Tape(layers) as tape:
            for weight in weights:
                weight.requires_grad_(True)
            try:
                energies = self.fast_model(self.inputs(batch), compute_force=False)["energy"]
                per_structure = self._loose_gradients(energies, weights) if weights else []
            finally:
                for weight in weights:
                    weight.requires_grad_(False)
            gradients = torch.autograd.grad(energies.sum(), [record.output for record in tape.records])
        every = torch.arange(batch.n_structures, device=self.device)
        for name, weight, values in zip(loose, weights, per_structure, strict=True):
            slot = Slot(name, 0, weight.numel(), 1, weight.numel())
            yield Gradient(slot, None, values.reshape(batch.n_structures, 1, -1), None, every)
        for record, gradient in zip(tape.records, gradients, strict=True):
            yield from (
                part
                for part in record.layer.gradients(record, gradient)
                if parameters is None or part.slot.parameter in parameters
            )

    def parameter_gradient_tangents(
        self, batch: GraphBatch, directions: Tensor, parameters: frozenset[str] | None = None
    ) -> Iterator[Gradient]:
        """d/dτ ∂E_b/∂θ (r + τ u) at τ = 0 for each structure b, exactly, by forward-mode differentiation of the gradient.

        Args:
            batch: the structures.
            directions: u, (N, 3), Å; every structure moves along its own part.
            parameters: as for :meth:`parameter_gradients`.

        With a layer's gradient Σ x ⊗ g its tangent is Σ ẋ ⊗ g + x ⊗ ġ; both terms come as one :class:`Gradient`.
        """
        with forward_ad.dual_level():
            moved = batch._replace(positions=forward_ad.make_dual(batch.positions.detach().clone(), directions))
            for gradient in self.parameter_gradients(moved, parameters):
                yield _tangent(gradient)

    def _loose_gradients(self, energies: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        rows: list[list[Tensor]] = [[] for _ in weights]
        for energy in energies:
            found = torch.autograd.grad(energy, weights, retain_graph=True, allow_unused=True)
            for row, weight, gradient in zip(rows, weights, found, strict=True):
                row.append(torch.zeros_like(weight) if gradient is None else gradient)
        return [torch.stack(row) for row in rows]

    def invariants(self, node_feats: Tensor) -> Tensor:
        """(N, C): the l = 0 channels of every layer's node features, layer after layer."""
        parts, start = [], 0
        for product in self.model.products:
            irreps = product.linear.irreps_out
            scalars = [
                slice(start + s.start, start + s.stop)
                for s, mul_ir in zip(irreps.slices(), irreps, strict=True)
                if mul_ir.ir.l == 0
            ]
            parts += [node_feats[:, s] for s in scalars]
            start += irreps.dim
        return torch.cat(parts, dim=1)

    @property
    def feature_dim(self) -> int:
        """C, number of invariant node features over all layers."""
        return sum(mul_ir.mul for p in self.model.products for mul_ir in p.linear.irreps_out if mul_ir.ir.l == 0)

    def randomly_initialised(self, seed: int) -> MacePotential:
        """The same architecture with parameters drawn anew, as mace-torch draws them: the papers' control."""
        model = copy.deepcopy(self.model)
        reinitialise(model, seed)
        return MacePotential(
            model, name=f"{self.name} (random, seed {seed})", device=self.device, dtype=self.dtype, head=self.head
        )


def _touches(layer: RecordedLayer, parameters: frozenset[str] | None) -> bool:
    own = (f"{layer.name}.{name}" for name, _ in layer.named_parameters())
    return parameters is None or any(name in parameters for name in own)


def _tangent(gradient: Gradient) -> Gradient:
    right, right_tangent = _primal_and_tangent(gradient.right)
    if gradient.left is None:
        return gradient._replace(right=right_tangent)
    assert gradient.counts is not None
    left, left_tangent = _primal_and_tangent(gradient.left)
    return gradient._replace(
        left=torch.stack([left_tangent, left], dim=1).flatten(0, 1),
        right=torch.stack([right, right_tangent], dim=1).flatten(0, 1),
        counts=gradient.counts * 2,
    )


def _primal_and_tangent(value: Tensor) -> tuple[Tensor, Tensor]:
    primal, tangent = forward_ad.unpack_dual(value)
    return primal.detach(), torch.zeros_like(primal) if tangent is None else tangent.detach()


def _choose_head(heads: list[str], head: str | None, name: str) -> str:
    if head is not None:
        if head not in heads:
            raise SelectronError(f"{name} has no head {head!r}; it has {', '.join(heads)}.")
        return head
    if len(heads) == 1:
        return heads[0]
    default = [h for h in heads if h.lower() == "default"]
    if len(default) == 1:
        note(
            f"{name} has the heads {', '.join(heads)}: {default[0]} is taken, as mace-torch does; --head takes another."
        )
        return default[0]
    raise SelectronError(f"{name} has the heads {', '.join(heads)}: choose one with --head.")


def _stress(stress: Tensor, batch: GraphBatch) -> Tensor:
    """Stress where all three directions are periodic, NaN elsewhere, where a volume means nothing."""
    bulk = batch.pbc.all(dim=1)
    return torch.where(bulk[:, None, None], stress.detach(), torch.full_like(stress, float("nan")))


def _empty(potential: MacePotential, forces: bool, stress: bool, node_features: bool) -> Evaluation:
    def zeros(*shape: int) -> Tensor:
        return torch.zeros(*shape, dtype=potential.dtype, device=potential.device)

    return Evaluation(
        zeros(0).double(),
        zeros(0, 3) if forces else None,
        zeros(0, 3, 3) if stress else None,
        zeros(0, potential.feature_dim) if node_features else None,
    )


def usable_device(device: torch.device | str) -> torch.device:
    """The device, or a sentence where this machine lacks it."""
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise SelectronError(f"{device!r} is no device; say cpu, cuda or cuda:N.") from None
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise SelectronError("This machine has no CUDA device that PyTorch can use; say --device cpu.")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise SelectronError(f"There is no device {wanted}: this machine has {torch.cuda.device_count()} CUDA devices.")
    if wanted.type not in {"cpu", "cuda"}:
        raise SelectronError(f"{device!r} is no device selectron runs on; say cpu or cuda.")
    return wanted


def model_fingerprint(model: torch.nn.Module, head: str, dtype: torch.dtype, references_eV: Tensor) -> str:
    """32 hex characters over the architecture, all parameters and buffers, head, dtype, and references that it rounds."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{type(model).__name__}|{head}|{dtype}".encode())
    if not torch.equal(references_eV.to(dtype).double(), references_eV):
        digest.update(references_eV.cpu().numpy().tobytes())
    for key, value in sorted(model.state_dict().items()):
        data = value.detach().to("cpu").contiguous()
        digest.update(f"{key}|{tuple(data.shape)}".encode())
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()
