"""The embedded model and data: their size, their truth, and what the model does and does not know."""

from __future__ import annotations

import gzip
import io
import pickletools
import re
import zipfile

import ase.io
import mace  # noqa: F401  (comes before e3nn)
import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.data import covalent_radii
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from mace.calculators import MACECalculator

from selectron.embedded import model_path, pool_path, train_path

KINDS = {"hot-dynamics", "bond-scan", "proton-transfer", "path-image"}


@pytest.fixture(scope="module")
def pool() -> list[Atoms]:
    return ase.io.read(pool_path(), ":")


@pytest.fixture(scope="module")
def train() -> list[Atoms]:
    return ase.io.read(train_path(), ":")


@pytest.fixture(scope="module")
def calculator() -> MACECalculator:
    return MACECalculator(model_paths=str(model_path()), device="cpu", default_dtype="float32")


def force_and_energy_errors(structures: list[Atoms], calculator: MACECalculator) -> tuple[float, float]:
    """Mean absolute errors: force components in eV/Å, energy in eV/atom."""
    forces, energies = [], []
    for structure in structures:
        copy = structure.copy()
        copy.calc = calculator
        forces.append(np.abs(copy.get_forces() - structure.get_forces()).ravel())
        energies.append(abs(copy.get_potential_energy() - structure.get_potential_energy()) / len(copy))
    return float(np.concatenate(forces).mean()), float(np.mean(energies))


def test_files_are_small():
    assert model_path().stat().st_size <= 2_000_000
    assert pool_path().stat().st_size <= 1_000_000
    assert train_path().stat().st_size <= 1_000_000


@pytest.mark.parametrize("path", [pool_path(), train_path()], ids=["pool", "train"])
def test_packed_files_hold_no_time_and_no_name(path):
    header = path.read_bytes()[:10]
    assert header[3] == 0  # no flags: neither a file name nor a comment
    assert header[4:8] == bytes(4)  # no time


def contents(archive: bytes) -> list[bytes]:
    """All members of a zip archive, those of archives pickled inside them too."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        members = [opened.read(name) for name in opened.namelist()]
        pickles = [opened.read(name) for name in opened.namelist() if name.endswith("data.pkl")]
    strings = [arg for pickled in pickles for _, arg, _ in pickletools.genops(pickled) if isinstance(arg, (str, bytes))]
    packed = [arg.encode("latin1", "ignore") if isinstance(arg, str) else arg for arg in strings]
    return members + [member for inner in packed if inner.startswith(b"PK\x03\x04") for member in contents(inner)]


def test_no_file_names_the_machine_that_made_it():
    members = contents(model_path().read_bytes())
    assert any(b"def forward" in member for member in members)  # the code archives inside were opened
    for text in [*members, *(gzip.decompress(path.read_bytes()) for path in (pool_path(), train_path()))]:
        assert not re.search(rb"site-packages|/home/|/work/|/Users/", text)


def test_model_is_a_plain_float32_module():
    model = torch.load(model_path(), map_location="cpu", weights_only=False)
    assert isinstance(model, torch.nn.Module)
    assert not isinstance(model, torch.jit.ScriptModule)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.atomic_numbers.tolist() == [1, 6, 7, 8]
    assert sum(p.numel() for p in model.parameters()) > 10_000


def test_forces_are_minus_the_gradient_of_the_energy(pool):
    calculator = MACECalculator(model_paths=str(model_path()), device="cpu", default_dtype="float64")
    structure = pool[0].copy()
    structure.calc = calculator
    forces = structure.get_forces()
    direction = np.random.default_rng(0).normal(size=forces.shape)
    start, step = structure.positions.copy(), 1e-4
    energies = []
    for sign in (1, -1):
        structure.positions = start + sign * step * direction
        energies.append(structure.get_potential_energy())
    assert (energies[1] - energies[0]) / (2 * step) == pytest.approx((forces * direction).sum(), rel=1e-5, abs=1e-5)


def test_pool_is_complete_and_sane(pool):
    assert 300 <= len(pool) <= 600
    assert {structure.info["kind"] for structure in pool} == KINDS
    for structure in pool:
        assert set(structure.symbols) <= set("HCNO")
        assert isinstance(structure.info["smiles"], str)
        assert isinstance(structure.info["reaction"], str)
        assert np.linalg.norm(structure.get_forces(), axis=1).max() < 25.0
        assert structure.get_all_distances()[np.triu_indices(len(structure), 1)].min() > 0.6


def test_no_two_pool_structures_are_alike(pool):
    energies = np.sort([structure.get_potential_energy() for structure in pool])
    assert (np.diff(energies) > 1e-6).all()


@pytest.mark.parametrize("name", ["pool", "train"])
def test_labels_agree_with_a_fresh_calculation(name, request):
    tblite = pytest.importorskip("tblite.ase")
    structures = request.getfixturevalue(name)
    for index in np.random.default_rng(1).choice(len(structures), size=6, replace=False):
        stored = structures[index]
        fresh = Atoms(stored.symbols, positions=stored.positions)
        fresh.calc = tblite.TBLite(method="GFN2-xTB", verbosity=0)
        assert fresh.get_potential_energy() == pytest.approx(stored.get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(fresh.get_forces(), stored.get_forces(), atol=2e-3)


def test_model_knows_thermal_structures_and_not_reactions(pool, train, calculator):
    known_forces, known_energy = force_and_energy_errors(train[:60], calculator)
    unknown_forces, unknown_energy = force_and_energy_errors(pool[:80], calculator)
    assert known_forces < 0.10
    assert known_energy < 0.03
    assert unknown_forces > 3 * known_forces
    assert unknown_energy > 3 * known_energy


@pytest.mark.slow
def test_ten_picoseconds_of_ethanol_are_stable(calculator):
    ethanol = molecule("CH3CH2OH")
    ratio = ethanol.get_all_distances() / (covalent_radii[ethanol.numbers][:, None] + covalent_radii[ethanol.numbers])
    first, second = np.nonzero(np.triu(ratio < 1.2, k=1))
    assert len(first) == 8
    ethanol.calc = calculator
    rng = np.random.default_rng(4)
    MaxwellBoltzmannDistribution(ethanol, temperature_K=300, rng=rng)
    # ASE's way of holding the centre of mass heats small molecules (a harmonic one of nine atoms to some 390 K).
    dynamics = Langevin(ethanol, 1.0 * units.fs, temperature_K=300, friction=0.01 / units.fs, rng=rng, fixcm=False)
    radii = covalent_radii[ethanol.numbers[first]] + covalent_radii[ethanol.numbers[second]]
    temperatures = []
    for _ in range(1000):
        dynamics.run(10)
        bonds = np.linalg.norm(ethanol.positions[first] - ethanol.positions[second], axis=1) / radii
        assert ((bonds > 0.75) & (bonds < 1.35)).all()
        temperatures.append(ethanol.get_temperature())
    # 27 degrees of freedom, and about a hundred independent samples: the mean is within some 10 K of the bath.
    assert np.mean(temperatures[100:]) == pytest.approx(300, abs=30)
