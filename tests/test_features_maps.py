"""Feature maps: what they are, against independent formulae, and the symmetries they must have."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from selectron.errors import SelectronError
from selectron.features import (
    FEATURES,
    ActivationFeatures,
    EnergyNTKFeatures,
    FeatureOptions,
    SoapFeatures,
    make_features,
)
from selectron.features.energy_ntk import parameter_subset
from selectron.potentials import MacePotential
from small_maces import ELEMENTS, VARIANTS, small_mace, structures

STRUCTURES = structures()
ONE_ROW = ["activation", "energy-ntk", "soap", "random", "random-activation"]


@pytest.fixture(scope="module")
def potential():
    return MacePotential(small_mace(), dtype=torch.float64)


def rows_of(name, potential, structures, **options):
    if name == "soap":
        pytest.importorskip("featomic")
    return make_features(name, potential, FeatureOptions(**{"dim": 96, **options})).rows(structures).values


def rotation(seed=3):
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


class TestSymmetries:
    @pytest.mark.parametrize("name", ONE_ROW)
    def test_turning_moving_reordering_and_other_images(self, potential, name):
        random, turn = np.random.default_rng(8), rotation()
        changed = []
        for atoms in STRUCTURES:
            other = atoms.copy()
            other.positions += random.integers(-2, 3, (len(atoms), 3)) * atoms.pbc @ atoms.cell.array
            other = Atoms(other.numbers, other.positions @ turn + 3.0, cell=other.cell.array @ turn, pbc=other.pbc)
            changed.append(other[random.permutation(len(other))])
        before, after = rows_of(name, potential, STRUCTURES), rows_of(name, potential, changed)
        scale = float(before.abs().max())
        torch.testing.assert_close(after, before, rtol=0, atol=1e-8 * max(scale, 1.0))
        assert scale > 0

    @pytest.mark.parametrize("name", ONE_ROW)
    def test_rows_are_extensive(self, potential, name):
        """A supercell has so many times the row, and two molecules far apart the sum of their rows."""
        crystal, first, second = STRUCTURES[4], STRUCTURES[0], STRUCTURES[5]
        both = first.copy()
        far = second.copy()
        far.positions += 60.0
        both += far
        one, supercell, a, b, apart = rows_of(name, potential, [crystal, crystal * (2, 1, 2), first, second, both])
        scale = float(supercell.abs().max())
        torch.testing.assert_close(supercell, 4 * one, rtol=0, atol=1e-9 * scale)
        torch.testing.assert_close(apart, a + b, rtol=0, atol=1e-9 * scale)

    @pytest.mark.parametrize("name", ONE_ROW)
    def test_different_structures_have_different_rows(self, potential, name):
        water = molecule("H2O")
        stretched = water.copy()
        stretched.set_distance(0, 1, 1.2)
        rows = rows_of(name, potential, [water, stretched, STRUCTURES[0]])
        distances = torch.cdist(rows, rows)
        assert float(distances[0, 1]) > 1e-4 * float(rows.norm(dim=1).max())
        assert float(distances[0, 2]) > float(distances[0, 1])


class TestActivation:
    def test_it_is_the_sum_of_the_invariant_node_features(self, potential):
        rows = ActivationFeatures(potential).rows(STRUCTURES).values
        for atoms, row in zip(STRUCTURES, rows, strict=True):
            features = potential.evaluate(potential.batch([atoms]), forces=False, node_features=True).node_features
            torch.testing.assert_close(row, features.sum(dim=0), rtol=0, atol=1e-10)

    def test_its_length_is_that_of_all_invariant_channels(self, potential):
        assert ActivationFeatures(potential).dim == 6 + 6
        assert ActivationFeatures(potential).rows(STRUCTURES).values.shape == (len(STRUCTURES), 12)

    def test_the_random_control_is_the_activation_of_random_parameters(self, potential):
        control = make_features("random-activation", potential, FeatureOptions(seed=5))
        by_hand = ActivationFeatures(potential.randomly_initialised(5))
        assert torch.equal(control.rows(STRUCTURES).values, by_hand.rows(STRUCTURES).values)
        assert not torch.allclose(
            control.rows(STRUCTURES).values, ActivationFeatures(potential).rows(STRUCTURES).values
        )


class TestEnergyNTK:
    @pytest.mark.parametrize(
        ("variant", "last_size", "readout_size"),
        [("L=1", 6 + 5, 6 + 6 * 5 + 5), ("two heads", 2 * 6 + 2 * 10, 2 * 6 + 6 * 10 + 2 * 10)],
    )
    def test_subsets_have_the_sizes_of_their_layers(self, variant, last_size, readout_size):
        model = small_mace(**VARIANTS[variant])
        potential = MacePotential(model, head=model.heads[0])
        total = sum(p.numel() for p in model.parameters())
        sizes = {s: EnergyNTKFeatures(potential, dim=10**9, parameters=s).dim for s in ("all", "readout", "last-layer")}
        assert sizes == {"all": total, "readout": readout_size, "last-layer": last_size}

    def test_the_last_layer_gives_the_scaled_features_that_feed_it(self, potential):
        """E = Σ_i w₀·h_i⁰ c₀ s + Σ_i w₁·a(W h_i¹) c₁ s + …, so ∂E/∂w is what the plain model's last maps read, scaled."""
        read = {}
        readouts = potential.model.readouts
        last = {0: readouts[0].linear, 1: readouts[1].linear_2}
        handles = [
            layer.register_forward_pre_hook(lambda _, inputs, at=at: read.__setitem__(at, inputs[0]))
            for at, layer in last.items()
        ]
        batch = potential.batch(STRUCTURES)
        with torch.no_grad():
            potential.model(potential.inputs(batch), compute_force=False)
        for handle in handles:
            handle.remove()
        scale = float(potential.model.scale_shift.scale)
        expected = torch.zeros(len(STRUCTURES), 6 + 5, dtype=torch.float64)
        scalars = read[0][:, :6] / 6**0.5  # e3nn divides by the square root of the number of inputs
        hidden = read[1] / 5**0.5
        expected.index_add_(0, batch.system_idx, torch.cat([scalars, hidden], dim=1) * scale)
        found = EnergyNTKFeatures(potential, parameters="last-layer").rows(STRUCTURES).values
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    def test_a_subset_no_longer_than_the_sketch_is_exact(self, potential):
        exact = EnergyNTKFeatures(potential, dim=10**9, parameters="readout").rows(STRUCTURES).values
        enough = EnergyNTKFeatures(potential, dim=512, parameters="readout", seed=3)
        assert enough.dim == exact.shape[1] == enough.n_parameters
        assert torch.equal(enough.rows(STRUCTURES).values, exact)
        assert EnergyNTKFeatures(potential, dim=20, parameters="readout").rows(STRUCTURES).values.shape[1] == 20

    def test_the_random_control_is_the_ntk_of_random_parameters(self, potential):
        control = make_features("random", potential, FeatureOptions(dim=64, seed=5))
        by_hand = EnergyNTKFeatures(potential.randomly_initialised(5), dim=64, seed=5)
        assert torch.equal(control.rows(STRUCTURES).values, by_hand.rows(STRUCTURES).values)

    def test_unknown_subsets_and_lengths_are_refused(self, potential):
        with pytest.raises(SelectronError, match="no parameter subset; there are all, readout, last-layer"):
            parameter_subset(potential, "first-layer")
        with pytest.raises(SelectronError, match="at least 1"):
            EnergyNTKFeatures(potential, dim=0)


class TestNormalisation:
    @pytest.mark.parametrize("name", ["activation", "energy-ntk", "soap"])
    def test_per_atom_and_unit(self, potential, name):
        some = [STRUCTURES[i] for i in (0, 1, 4, 5)]
        plain = rows_of(name, potential, some)
        per_atom = rows_of(name, potential, some, normalise="per-atom")
        unit = rows_of(name, potential, some, normalise="unit")
        atoms = torch.tensor([[len(a)] for a in some], dtype=torch.float64)
        torch.testing.assert_close(per_atom * atoms, plain, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(len(some), dtype=torch.float64), rtol=1e-12, atol=0)
        torch.testing.assert_close(unit * plain.norm(dim=1, keepdim=True), plain, rtol=1e-12, atol=1e-12)

    def test_unit_trace_over_several_rows_of_a_structure(self):
        from selectron.features.base import normalised
        from selectron.rows import Rows

        values = torch.randn(6, 4, dtype=torch.float64)
        values[5] = 0.0
        rows = normalised(Rows(values, torch.tensor([3, 2, 1])), torch.tensor([1, 1, 1]), "unit")
        traces = rows.sum_per_structure(rows.values.square().sum(dim=1))
        torch.testing.assert_close(traces, torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64))

    def test_an_unknown_one_is_refused(self, potential):
        with pytest.raises(SelectronError, match="none, per-atom, unit"):
            make_features("activation", potential, FeatureOptions(normalise="sometimes"))


class TestSoap:
    @pytest.fixture(autouse=True)
    def _featomic(self):
        pytest.importorskip("featomic")

    def test_elements_it_has_not_met_change_nothing(self):
        """Rows do not depend on which other elements are in the batch, nor on the order in which they were met."""
        first, second = SoapFeatures(dim=64), SoapFeatures(dim=64)
        water, silane, salt = molecule("H2O"), molecule("SiH4"), molecule("NaCl")
        a = first.rows([water, silane, salt]).values
        b = torch.cat([second.rows([x]).values for x in (salt, silane, water)]).flip(0)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)

    def test_the_sketch_keeps_inner_products(self):
        """Against featomic's own power spectrum, summed over atoms."""
        from featomic import SoapPowerSpectrum

        some = [molecule("CH3CH2OH"), molecule("H2O"), molecule("CO2")]
        features = SoapFeatures(dim=4096)
        spectrum = SoapPowerSpectrum(**features.settings["soap"]).compute(some)
        kernel = np.zeros((3, 3))
        for block in spectrum:
            pooled = np.zeros((3, block.values.shape[1]))
            np.add.at(pooled, np.asarray(block.samples["system"]), np.asarray(block.values))
            kernel += pooled @ pooled.T
        rows = features.rows(some).values.numpy()
        np.testing.assert_allclose(rows @ rows.T, kernel, atol=0.08 * kernel.max())

    def test_slabs_and_chains_are_periodic_where_they_say(self):
        chain = Atoms("CO", [[0, 0, 0], [1.2, 0, 0]], cell=[3.0, 20, 20], pbc=(True, False, False))
        molecule_alone = chain.copy()
        molecule_alone.pbc = False
        one, two, alone = SoapFeatures(dim=64).rows([chain, chain * (2, 1, 1), molecule_alone]).values
        torch.testing.assert_close(two, 2 * one, rtol=0, atol=1e-9)
        assert not torch.allclose(one, alone, atol=1e-3)
        thin, thick = (Atoms("CO", chain.positions, cell=[3.0, b, b], pbc=(True, False, False)) for b in (0.0, 2.0))
        for other in SoapFeatures(dim=64).rows([thin, thick]).values:
            torch.testing.assert_close(other, one, rtol=0, atol=1e-9)


class TestRegistry:
    def test_every_name_makes_a_map_of_its_name_and_dimension(self, potential):
        for name in ONE_ROW:
            if name == "soap":
                pytest.importorskip("featomic")
            features = make_features(name, potential, FeatureOptions(dim=32))
            rows = features.rows(STRUCTURES[:2])
            assert rows.values.shape == (2, features.dim)
            assert not rows.values.requires_grad
            assert FEATURES[name].summary

    def test_names_and_missing_models_are_explained(self, potential):
        with pytest.raises(SelectronError, match="no features called 'magic'; there are"):
            make_features("magic", potential)
        with pytest.raises(SelectronError, match="name one with --model"):
            make_features("energy-ntk", None)
        with pytest.raises(SelectronError, match="at least 1"):
            make_features("energy-ntk", potential, FeatureOptions(dim=0))

    def test_fingerprints_tell_settings_apart(self, potential):
        def of(name="energy-ntk", **options):
            return make_features(name, potential, FeatureOptions(**{"dim": 32, **options})).fingerprint

        base = of()
        assert of() == base
        others = [
            of(dim=33),
            of(seed=1),
            of(parameters="readout"),
            of(normalise="unit"),
            of("activation"),
            of("random"),
            of("random-activation"),
        ]
        assert len({base, *others}) == 1 + len(others)
        # where nothing is sketched, the seed of the sketch is no part of the rows
        assert of(parameters="last-layer", seed=1) == of(parameters="last-layer", seed=2)

    def test_an_unknown_element_is_named(self, potential):
        for name in ("activation", "energy-ntk"):
            with pytest.raises(SelectronError, match="does not know the element Si"):
                rows_of(name, potential, [molecule("SiH4")])
        assert potential.elements == set(ELEMENTS)
