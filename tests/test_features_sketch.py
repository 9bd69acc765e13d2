"""The sketch: unbiased, of bounded variance, and the same for a structure wherever it comes."""

import pytest
import torch

from selectron.features import EnergyNTKFeatures
from selectron.features.sketch import Sketch, place_exactly
from selectron.potentials import MacePotential
from selectron.potentials.mace_modules import Gradient, Slot
from small_maces import small_mace, structures

STRUCTURES = structures()
PAIRS = torch.tensor([[0, 0], [0, 1], [0, 5], [4, 8], [2, 6]])


def make_sketch(dim, seed):
    return Sketch(dim, seed, device=torch.device("cpu"), dtype=torch.float64)


@pytest.fixture(scope="module")
def potential():
    return MacePotential(small_mace(), dtype=torch.float64)


@pytest.fixture(scope="module")
def exact(potential):
    return EnergyNTKFeatures(potential, dim=10**9).rows(STRUCTURES).values


@pytest.mark.parametrize("dim", [8, 33, pytest.param(64, marks=pytest.mark.slow)])
def test_inner_products_are_unbiased_and_of_bounded_variance(potential, exact, dim):
    """Mean over seeds against ⟨x, y⟩, mean squared error against (‖x‖²‖y‖² + ⟨x, y⟩²) / D, five standard errors."""
    seeds = 100
    batch = potential.batch(STRUCTURES)
    gradients = list(potential.parameter_gradients(batch))
    estimates = []
    for seed in range(seeds):
        sketch, rows = make_sketch(dim, seed), torch.zeros(len(STRUCTURES), dim, dtype=torch.float64)
        for gradient in gradients:
            rows.index_add_(0, gradient.structures, sketch.apply(gradient).detach())
        estimates.append((rows[PAIRS[:, 0]] * rows[PAIRS[:, 1]]).sum(dim=1))
    estimates = torch.stack(estimates)
    x, y = exact[PAIRS[:, 0]], exact[PAIRS[:, 1]]
    product = (x * y).sum(dim=1)
    bound = (x.square().sum(dim=1) * y.square().sum(dim=1) + product.square()) / dim
    assert bool(((estimates.mean(dim=0) - product).abs() <= 5.0 * (bound / seeds).sqrt()).all())
    squares = (estimates - product).square()
    assert bool((squares.mean(dim=0) <= bound + 5.0 * squares.std(dim=0) / seeds**0.5).all())


@pytest.mark.parametrize("dim", [8, 33, 64])
def test_signs_are_independent_within_and_between_parameters(dim):
    """Vectors of equal entries: without independent signs the estimate would be too large by a factor of about P / D."""
    seeds = 300
    slots = [
        Slot("first.weight", 0, 16, 12, 16),
        Slot("first.weight", 192, 16, 12, 16),
        Slot("second.weight", 0, 16, 12, 16),
        Slot("bias", 0, 9, 1, 9),
    ]
    estimates = []
    for seed in range(seeds):
        sketch = make_sketch(dim, seed)
        ones = (torch.ones(1, slot.rows, slot.columns, dtype=torch.float64) for slot in slots)
        parts = [
            sketch.apply(Gradient(slot, None, one, None, torch.arange(1)))[0]
            for slot, one in zip(slots, ones, strict=True)
        ]
        cross = [a @ b for i, a in enumerate(parts) for b in parts[:i]]
        total = sum(parts)
        estimates.append(torch.stack([total @ total, *cross]))
    estimates = torch.stack(estimates)
    sizes = [slot.rows * slot.columns for slot in slots]
    expected = torch.tensor([float(sum(sizes)), *[0.0] * 6], dtype=torch.float64)
    variance = torch.tensor(
        [2.0 * sum(sizes) ** 2, *(float(a * b) for i, a in enumerate(sizes) for b in sizes[:i])], dtype=torch.float64
    )
    error = (estimates.mean(dim=0) - expected).abs()
    assert bool((error <= 5.0 * (variance / dim / seeds).sqrt()).all())


def test_more_features_make_smaller_errors(potential, exact):
    kernel = exact @ exact.T
    errors = []
    for dim in (32, 512):
        rows = EnergyNTKFeatures(potential, dim=dim).rows(STRUCTURES).values
        errors.append(float((rows @ rows.T - kernel).norm() / kernel.norm()))
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.15


def test_it_is_linear_and_forms_the_sum_of_outer_products():
    """Of items with unequal groups, in parts, against the dense gradient of the same slot."""
    generator = torch.Generator().manual_seed(0)
    slot = Slot("weight", 3, 7, 5, 6)
    counts = torch.tensor([3, 1, 4, 0, 2])
    left = torch.randn(10, 5, generator=generator, dtype=torch.float64)
    right = torch.randn(10, 6, generator=generator, dtype=torch.float64)
    groups = torch.split(torch.arange(10), counts.tolist())
    dense = torch.stack([torch.einsum("na,nc->ac", left[g], right[g]) for g in groups])
    every = torch.arange(5)
    sketch = make_sketch(11, 4)
    found = sketch.apply(Gradient(slot, left, right, counts, every))
    expected = sketch.apply(Gradient(slot, None, dense, None, every))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        sketch.apply(Gradient(slot, None, 2 * dense[:2] - dense[2:4], None, every[:2])),
        2 * expected[:2] - expected[2:4],
        rtol=0,
        atol=1e-12,
    )
    out = torch.zeros(5, 50, dtype=torch.float64)
    place_exactly(out, Gradient(slot, left, right, counts, every), {"weight": 10})
    block = out[:, 13 : 13 + 5 * 7].unflatten(1, (5, 7))
    torch.testing.assert_close(block[:, :, :6], dense, rtol=0, atol=1e-12)
    assert float(out.abs().sum()) == pytest.approx(float(dense.abs().sum()))


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (6, 16), (16, 16), (7, 3)])
@pytest.mark.parametrize("dim", [1, 2, 16, 17])
def test_every_parameter_goes_to_one_bucket_with_a_sign(shape, dim):
    """The columns of S: one entry of ±1 each, and buckets filled evenly, whatever the shape of the slot."""
    rows, columns = shape
    units = torch.eye(rows * columns, dtype=torch.float64).view(-1, rows, columns)
    slot = Slot("weight", 0, columns, rows, columns)
    matrix = make_sketch(dim, 0).apply(Gradient(slot, None, units, None, torch.arange(len(units))))
    assert torch.equal(matrix.abs().sum(dim=1), torch.ones(len(units), dtype=torch.float64))
    assert set(matrix.unique().tolist()) <= {-1.0, 0.0, 1.0}
    per_bucket = matrix.abs().sum(dim=0)
    assert float(per_bucket.max()) <= 2 * rows * columns / dim + 2


def test_a_structure_has_the_same_row_in_any_batch(potential):
    features = EnergyNTKFeatures(potential, dim=64)
    together = features.rows(STRUCTURES).values
    alone = torch.cat([features.rows([atoms]).values for atoms in reversed(STRUCTURES)]).flip(0)
    again = EnergyNTKFeatures(potential, dim=64).rows(STRUCTURES[3:7]).values
    torch.testing.assert_close(alone, together, rtol=0, atol=1e-10)
    torch.testing.assert_close(again, together[3:7], rtol=0, atol=1e-10)
    assert not torch.allclose(EnergyNTKFeatures(potential, dim=64, seed=1).rows(STRUCTURES).values, together)


def test_large_batches_are_formed_in_parts(potential, monkeypatch):
    whole = EnergyNTKFeatures(potential, dim=64).rows(STRUCTURES).values
    monkeypatch.setattr("selectron.features.sketch._CHUNK", 100)
    parts = EnergyNTKFeatures(potential, dim=64).rows(STRUCTURES).values
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-10)
