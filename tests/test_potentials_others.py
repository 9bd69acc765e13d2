"""ASE calculators, TorchSim models and committees as potentials."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones
from ase.neighborlist import neighbor_list

from selectron.errors import SelectronError
from selectron.features import ActivationFeatures, EnergyNTKFeatures, make_features
from selectron.potentials import AsePotential, Committee, MacePotential, TorchSimPotential, load_potential
from small_maces import small_mace


def _rattled(atoms, seed=0):
    atoms = atoms.copy()
    atoms.positions += np.random.default_rng(seed).normal(0, 0.05, (len(atoms), 3))
    return atoms


METALS = [
    _rattled(bulk("Cu", cubic=True)),
    _rattled(fcc111("Al", (2, 2, 2), vacuum=5.0)),
    _rattled(Atoms("AuCu", [[0, 0, 0], [2.5, 0, 0]])),
    Atoms("Pt"),
]


class TestAse:
    def test_it_gives_what_ase_gives(self):
        potential = AsePotential(EMT())
        result = potential.evaluate(potential.batch(METALS))
        expected_energies, expected_forces = [], []
        for atoms in METALS:
            direct = atoms.copy()
            direct.calc = EMT()
            expected_energies.append(direct.get_potential_energy())
            expected_forces.append(direct.get_forces())
        np.testing.assert_allclose(result.energies.numpy(), expected_energies, rtol=0, atol=1e-12)
        np.testing.assert_allclose(result.forces.numpy(), np.concatenate(expected_forces), rtol=0, atol=1e-12)

    def test_stress_has_the_sign_of_ase(self):
        atoms = METALS[0]
        potential = AsePotential(EMT())
        found = potential.evaluate(potential.batch([atoms]), stress=True).stress[0]
        direct = atoms.copy()
        direct.calc = EMT()
        np.testing.assert_allclose(found.numpy(), direct.get_stress(voigt=False), rtol=0, atol=1e-12)

    def test_it_says_what_it_cannot_give(self):
        potential = AsePotential(EMT())
        with pytest.raises(SelectronError, match="EMT does not give node features"):
            potential.evaluate(potential.batch(METALS), node_features=True)
        for name in ("energy-ntk", "activation", "random", "random-activation"):
            with pytest.raises(SelectronError, match=f"EMT cannot give {name} features"):
                make_features(name, potential)
        for features in (EnergyNTKFeatures, ActivationFeatures):
            with pytest.raises(SelectronError, match="need a MACE model"):
                features(potential)

    def test_an_element_it_lacks_is_an_error_with_the_formula(self):
        potential = AsePotential(EMT())
        with pytest.raises(SelectronError, match="EMT failed on Xe"):
            potential.evaluate(potential.batch([Atoms("Xe")]))

    def test_settings_are_part_of_the_fingerprint(self):
        assert AsePotential(LennardJones(sigma=2.0)).fingerprint != AsePotential(LennardJones(sigma=2.1)).fingerprint
        assert AsePotential(LennardJones(sigma=2.0)).fingerprint == AsePotential(LennardJones(sigma=2.0)).fingerprint

    def test_it_can_be_named_on_the_command_line(self):
        spec = "ase:ase.calculators.lj:LennardJones?sigma=2.5&epsilon=0.3&rc=7.0"
        atoms = _rattled(bulk("Ar", "fcc", a=4.0, cubic=True))
        potential = load_potential(spec)
        direct = atoms.copy()
        direct.calc = LennardJones(sigma=2.5, epsilon=0.3, rc=7.0)
        energy = potential.evaluate(potential.batch([atoms])).energies[0]
        assert float(energy) == pytest.approx(direct.get_potential_energy(), abs=1e-12)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("ase:no.such.module:Class", "There is no calculator"),
            ("ase:ase.calculators.lj:NoSuchClass", "There is no calculator"),
            ("ase:ase.calculators.lj", "write it as package.module:Class"),
        ],
    )
    def test_a_wrong_name_is_a_sentence(self, spec, message):
        with pytest.raises(SelectronError, match=message):
            load_potential(spec)

    def test_nothing_at_all(self):
        potential = AsePotential(EMT())
        result = potential.evaluate(potential.batch([]), stress=True)
        assert result.energies.shape == (0,)
        assert result.forces.shape == (0, 3)
        assert result.stress.shape == (0, 3, 3)


SIGMA, EPSILON, CUTOFF = 2.5, 0.3, 6.0
AR_MOLECULES = (
    _rattled(Atoms("Ar3", [[0, 0, 0], [2.8, 0, 0], [0.4, 2.9, 0.3]])),
    _rattled(Atoms("Ar2", [[0, 0, 0], [3.1, 0, 0]])),
    _rattled(Atoms("Ar4", [[0, 0, 0], [2.8, 0, 0], [0.4, 2.9, 0.3], [1, 1, 2.9]])),
)
_SKEWED = Atoms("Ar2", [[0, 0, 0], [2.6, 1.2, 2.0]], cell=[[5, 0, 0], [1.5, 4.6, 0], [-1.0, 0.7, 5.2]], pbc=True)
AR_CRYSTALS = (_rattled(bulk("Ar", "fcc", a=4.2, cubic=True)), _rattled(_SKEWED))


def lennard_jones(atoms):
    """Plain 12-6 sums over ASE's neighbour list: energy without ASE's shift at the cutoff, forces, stress."""
    i, d, vector = neighbor_list("idD", atoms, CUTOFF)
    sixth = (SIGMA / d) ** 6
    energy = 0.5 * float((4 * EPSILON * (sixth**2 - sixth)).sum())
    pull = (-24 * EPSILON / d**2 * (2 * sixth**2 - sixth))[:, None] * vector
    forces = np.zeros((len(atoms), 3))
    np.add.at(forces, i, pull)
    stress = 0.5 * np.einsum("ei,ej->ij", pull, vector) / atoms.get_volume() if atoms.pbc.all() else np.zeros((3, 3))
    return energy, forces, stress


class TestTorchSim:
    @pytest.fixture
    def torch_sim(self):
        return pytest.importorskip("torch_sim")

    @pytest.fixture
    def exact(self, torch_sim):
        """A TorchSim model of somebody else: it reads the state that TorchSim hands it, in TorchSim's conventions."""
        from torch_sim.models.interface import ModelInterface

        class Model(ModelInterface):
            def __init__(self):
                super().__init__()
                self._device, self._dtype = torch.device("cpu"), torch.float64
                self._compute_forces = self._compute_stress = True

            def forward(self, state):
                results = [lennard_jones(atoms) for atoms in torch_sim.io.state_to_atoms(state)]
                return {
                    "energy": torch.tensor([energy for energy, _, _ in results], dtype=torch.float64),
                    "forces": torch.from_numpy(np.concatenate([forces for _, forces, _ in results])),
                    "stress": torch.from_numpy(np.stack([stress for _, _, stress in results])),
                }

        return TorchSimPotential(Model())

    @pytest.fixture
    def own(self, torch_sim):
        """TorchSim's own Lennard-Jones model."""
        from torch_sim.models.lennard_jones import LennardJonesModel

        model = LennardJonesModel(
            SIGMA, EPSILON, torch.device("cpu"), torch.float64, compute_stress=True, cutoff=CUTOFF
        )
        return TorchSimPotential(model)

    @pytest.mark.parametrize(
        "batch",
        [AR_MOLECULES, AR_CRYSTALS, (AR_MOLECULES[0], AR_CRYSTALS[0], AR_MOLECULES[1], AR_CRYSTALS[1])],
        ids=["molecules", "crystals", "both"],
    )
    def test_positions_cells_and_order_reach_the_model(self, exact, batch):
        result = exact.evaluate(exact.batch(batch), stress=True)
        start = 0
        for i, atoms in enumerate(batch):
            energy, forces, stress = lennard_jones(atoms)
            assert float(result.energies[i]) == pytest.approx(energy, abs=1e-10)
            np.testing.assert_allclose(result.forces[start : start + len(atoms)], forces, rtol=0, atol=1e-10)
            np.testing.assert_allclose(result.stress[i], stress, rtol=0, atol=1e-10)
            start += len(atoms)
            direct = atoms.copy()
            direct.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF)
            np.testing.assert_allclose(direct.get_forces(), forces, rtol=0, atol=1e-10)
            if atoms.pbc.all():
                np.testing.assert_allclose(direct.get_stress(voigt=False), stress, rtol=0, atol=1e-10)

    @pytest.mark.parametrize("batch", [AR_MOLECULES, AR_CRYSTALS[:1]], ids=["molecules", "crystal"])
    def test_energies_of_its_own_lennard_jones_are_those_of_ase(self, own, batch):
        """Up to ASE's shift of every pair at the cutoff. Its forces are not compared: 0.3.0 returns twice −∂E/∂r."""
        found = own.evaluate(own.batch(batch)).energies
        for atoms, energy in zip(batch, found, strict=True):
            direct = atoms.copy()
            direct.calc = LennardJones(sigma=SIGMA, epsilon=EPSILON, rc=CUTOFF)
            sixth = (SIGMA / CUTOFF) ** 6
            shift = 0.5 * len(neighbor_list("i", atoms, CUTOFF)) * 4 * EPSILON * (sixth**2 - sixth)
            assert float(energy) == pytest.approx(direct.get_potential_energy() + shift, abs=1e-9)

    @pytest.mark.parametrize("batch", [AR_MOLECULES, AR_CRYSTALS], ids=["molecules", "crystals"])
    def test_what_its_own_lennard_jones_says_is_passed_on(self, torch_sim, own, batch):
        """Against the state that TorchSim itself makes of ASE's atoms."""
        result = own.evaluate(own.batch(batch), stress=bool(batch[0].pbc.all()))
        for i, atoms in enumerate(batch):
            direct = own.model(torch_sim.io.atoms_to_state([atoms], torch.device("cpu"), torch.float64))
            torch.testing.assert_close(result.energies[i : i + 1], direct["energy"], rtol=1e-10, atol=1e-10)
            forces = torch.split(result.forces, [len(a) for a in batch])[i]
            torch.testing.assert_close(forces, direct["forces"], rtol=1e-10, atol=1e-10)
            if result.stress is not None:
                torch.testing.assert_close(result.stress[i], direct["stress"][0], rtol=1e-10, atol=1e-10)

    def test_it_says_what_it_cannot_give(self, own):
        with pytest.raises(SelectronError, match="does not give node features"):
            own.evaluate(own.batch(AR_MOLECULES), node_features=True)
        with pytest.raises(SelectronError, match="cannot give energy-ntk features"):
            make_features("energy-ntk", own)
        slab = AR_CRYSTALS[0].copy()
        slab.pbc = (True, True, False)
        with pytest.raises(SelectronError, match="periodic in all directions or none"):
            own.evaluate(own.batch([slab]))

    def test_nothing_at_all(self, own):
        result = own.evaluate(own.batch([]))
        assert result.energies.shape == (0,)
        assert result.forces.shape == (0, 3)


class TestCommittee:
    def test_members_answer_in_their_order(self):
        members = [
            MacePotential(
                small_mace(hidden_irreps="4x0e", correlation=1, seed=seed), name=f"m{seed}", dtype=torch.float64
            )
            for seed in range(3)
        ]
        structures = [molecule("H2O"), molecule("CO2"), molecule("CH4")]
        result = Committee(members).evaluate(structures)
        assert result.energies.shape == (3, 3)
        assert result.forces.shape == (3, 11, 3)
        assert result.counts.tolist() == [3, 3, 5]
        for member, energies, forces in zip(members, result.energies, result.forces, strict=True):
            own = member.evaluate(member.batch(structures))
            assert torch.equal(energies, own.energies)
            assert torch.equal(forces, own.forces)

    def test_kinds_and_precisions_mix(self):
        committee = Committee(
            [
                AsePotential(LennardJones(sigma=1.5)),
                MacePotential(small_mace(hidden_irreps="4x0e", correlation=1), dtype=torch.float32),
            ]
        )
        result = committee.evaluate([molecule("H2O")])
        assert result.forces.dtype == result.energies.dtype == torch.float64
        assert committee.elements == {1, 6, 8}

    def test_one_model_or_the_same_twice_is_no_committee(self):
        with pytest.raises(SelectronError, match="at least two models"):
            Committee([AsePotential(EMT())])
        with pytest.raises(SelectronError, match="the same model"):
            Committee([AsePotential(EMT()), AsePotential(EMT())])

    def test_real_members(self, shared_models, shared_data):
        from ase.io import read

        files = sorted((shared_models / "committee").glob("*.model"))
        committee = Committee([load_potential(path) for path in files])
        result = committee.evaluate(read(shared_data / "dataset_acac_test_H_transfer.xyz", ":3"))
        spread = result.forces.std(dim=0).mean()
        assert 1e-3 < float(spread) < 1.0
