"""Per-structure parameter gradients of one batched pass against plain autograd, one structure after the other."""

import pytest
import torch
from ase.io import read

from selectron.features import EnergyNTKFeatures
from selectron.features.energy_ntk import SUBSETS, parameter_subset
from selectron.potentials import MacePotential
from selectron.potentials.mace_files import load_mace
from small_maces import CASES, loop_gradients, model_of, parameter_slices, structures

STRUCTURES = structures()
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
DTYPES = [torch.float64, torch.float32]
UNSKETCHED = 10**9


def batched_gradients(potential, structures, parameters="all"):
    return EnergyNTKFeatures(potential, dim=UNSKETCHED, parameters=parameters).rows(structures).values


def assert_gradients_agree(found, expected, model, dtype):
    """Relative to the norm: of each structure's whole gradient, and of each parameter's gradient over the batch."""
    error, norm = (found - expected).norm(dim=1), expected.norm(dim=1)
    assert bool((error <= TOLERANCE[dtype] * norm).all()), (error / norm).tolist()
    for name, part in parameter_slices(model).items():
        error, norm = (found[:, part] - expected[:, part]).norm(), expected[:, part].norm()
        assert float(error) <= TOLERANCE[dtype] * float(norm), (name, float(error / norm))


@pytest.mark.parametrize(("variant", "dtype"), CASES)
def test_random_models_of_every_kind(variant, dtype):
    stock = model_of(variant).to(dtype)
    head = stock.heads[-1]
    potential = MacePotential(model_of(variant), dtype=dtype, head=head)
    expected = loop_gradients(stock, STRUCTURES, head=head)
    assert_gradients_agree(batched_gradients(potential, STRUCTURES), expected, stock, dtype)
    nonzero = [bool(expected[:, part].any()) for part in parameter_slices(stock).values()]
    assert sum(nonzero) >= 0.9 * len(nonzero)  # a test of zeros would be no test


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("model", "data", "frames"),
    [
        ("MACE-OFF23_small.model", "ani1x_1000.xyz", [0, 131, 500, 777]),
        ("mace_mp_small.model", "oc20_traj30_sub.xyz", [0, 700]),
    ],
    ids=["MACE-OFF23-small", "MACE-MP-0-small"],
)
def test_pretrained_models(shared_models, shared_data, model, data, frames, dtype):
    some = [read(shared_data / data, frame) for frame in frames]
    if "oc20" in data:
        some[0].pbc = (True, True, False)
        some.append(read(shared_data / "ani1x_1000.xyz", 3))  # a molecule among slabs
    stock = load_mace(shared_models / model).to(dtype)
    potential = MacePotential(load_mace(shared_models / model), dtype=dtype)
    expected = loop_gradients(stock, some)
    assert_gradients_agree(batched_gradients(potential, some), expected, stock, dtype)


@pytest.mark.parametrize("variant", ["L=1", "nonlinear", "two heads", "last readout only", "one layer"])
@pytest.mark.parametrize("subset", SUBSETS)
def test_a_subset_is_those_columns_of_the_whole(variant, subset):
    potential = MacePotential(model_of(variant), dtype=torch.float64, head=model_of(variant).heads[0])
    names = parameter_subset(potential, subset)
    slices = parameter_slices(potential.model)
    whole = batched_gradients(potential, STRUCTURES)
    chosen = [part for name, part in slices.items() if names is None or name in names]
    expected = torch.cat([whole[:, part] for part in chosen], dim=1)
    torch.testing.assert_close(batched_gradients(potential, STRUCTURES, subset), expected, rtol=0, atol=1e-12)
    if subset != "all":
        assert names
        assert all(name.startswith("readouts.") for name in names)


def test_gradients_are_the_finite_difference_of_the_energy():
    """Along a random direction in parameter space, through energies only."""
    model = model_of("nonlinear")
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in model.parameters()]
    row = torch.cat([d.flatten() for d in direction])
    step, energies = 1e-5, []
    for sign in (1, -1):
        moved = model_of("nonlinear")
        with torch.no_grad():
            for parameter, d in zip(moved.parameters(), direction, strict=True):
                parameter.add_(sign * step * d)
        potential = MacePotential(moved, dtype=torch.float64)
        energies.append(potential.evaluate(potential.batch(STRUCTURES), forces=False).energies)
    slope = (energies[0] - energies[1]) / (2 * step)
    found = batched_gradients(MacePotential(model, dtype=torch.float64), STRUCTURES) @ row
    torch.testing.assert_close(found, slope, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("variant", ["L=1", "nonlinear"])
def test_a_structure_does_not_feel_its_batch_mates(variant):
    potential = MacePotential(model_of(variant), dtype=torch.float64)
    together = batched_gradients(potential, STRUCTURES)
    alone = torch.cat([batched_gradients(potential, [atoms]) for atoms in STRUCTURES])
    reverse = batched_gradients(potential, STRUCTURES[::-1]).flip(0)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)
    torch.testing.assert_close(together, reverse, rtol=0, atol=1e-10)


def test_nothing_at_all_gives_no_rows():
    potential = MacePotential(model_of("L=0"))
    assert batched_gradients(potential, []).shape == (0, sum(p.numel() for p in potential.model.parameters()))


def test_parameters_stay_frozen_and_evaluation_still_works():
    potential = MacePotential(model_of("nonlinear"), dtype=torch.float64)
    before = potential.evaluate(potential.batch(STRUCTURES))
    batched_gradients(potential, STRUCTURES)
    after = potential.evaluate(potential.batch(STRUCTURES))
    assert torch.equal(before.energies, after.energies)
    assert torch.equal(before.forces, after.forces)
    assert not any(p.requires_grad for p in potential.model.parameters())
