"""The planar neural network potential, alone and stacked."""

import os
import pickle

import pytest
import torch
from ase import Atoms

from selectron.errors import SelectronError
from selectron.potentials import MLPPotential, PlanarScaling, load_potential

SCALING = PlanarScaling(centre_A=(-0.25, 0.9), width_A=(1.3, 1.1), energy_eV=40.0, confinement_eV=15.0)


def _points(count=24, seed=0):
    return 3.0 * torch.rand(count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 1.5


def _structures(points):
    return [Atoms("X", positions=[[float(x), float(y), 0.0]]) for x, y in points]


@pytest.mark.parametrize("networks", [1, 3])
def test_forces_are_the_slope_of_the_energy(networks):
    potential, points, step = MLPPotential.initialise(networks, 1, scaling=SCALING), _points(), 1e-5
    result = potential.evaluate(potential.batch(_structures(points)))
    for axis in (0, 1):
        shift = torch.zeros(2, dtype=torch.float64)
        shift[axis] = step
        before, after = (potential.energies_and_forces(points + sign * shift)[0] for sign in (-1, 1))
        torch.testing.assert_close(result.forces[:, axis], (before - after) / (2 * step), rtol=1e-6, atol=1e-5)
    assert torch.count_nonzero(result.forces[:, 2]) == 0


@pytest.mark.parametrize("networks", [1, 3])
def test_its_graph_gives_the_same_forces(networks):
    potential = MLPPotential.initialise(networks, 1, scaling=SCALING)
    batch = potential.batch(_structures(_points()))
    graph = potential.differentiable(batch)
    (gradient,) = torch.autograd.grad(graph.energies.sum(), graph.positions)
    torch.testing.assert_close(-gradient, potential.evaluate(batch).forces, rtol=1e-10, atol=1e-10)


def test_it_is_a_linear_layer_tanh_and_a_linear_layer():
    potential, points, hidden = MLPPotential.initialise(1, 4, scaling=SCALING), _points(), 20
    theta = potential.parameters[0].clone()
    theta[-1] = 0.7
    potential = MLPPotential(theta[None], SCALING)
    network = torch.nn.Sequential(torch.nn.Linear(2, hidden), torch.nn.Tanh(), torch.nn.Linear(hidden, 1)).double()
    with torch.no_grad():
        network[0].weight.copy_(theta[: 2 * hidden].view(2, hidden).T)
        network[0].bias.copy_(theta[2 * hidden : 3 * hidden])
        network[2].weight.copy_(theta[None, 3 * hidden : 4 * hidden])
        network[2].bias.fill_(0.7)
        centre, width = (torch.tensor(field, dtype=torch.float64) for field in SCALING[:2])
        u = (points - centre) / width
        expected = 40.0 * network(u)[:, 0] + 15.0 * u.norm(dim=1) ** 4
    torch.testing.assert_close(potential.energies_and_forces(points)[0], expected, rtol=1e-12, atol=1e-12)


def test_far_out_it_confines_as_the_fourth_power():
    potential = MLPPotential.initialise(1, 2, scaling=SCALING)
    centre = torch.tensor(SCALING.centre_A, dtype=torch.float64)
    direction = torch.tensor([[0.6, -0.8]], dtype=torch.float64)
    near, far = (float(potential.energies_and_forces(centre + r * direction)[0]) for r in (50.0, 100.0))
    assert far / near == pytest.approx(16.0, rel=1e-4)


class TestStack:
    def test_each_group_meets_its_own_network(self):
        points, stack = _points(24), MLPPotential.initialise(4, 7, scaling=SCALING)
        result = stack.evaluate(stack.batch(_structures(points)))
        for k in range(4):
            alone = stack.network(k)
            group = alone.evaluate(alone.batch(_structures(points[6 * k : 6 * k + 6])))
            torch.testing.assert_close(result.energies[6 * k : 6 * k + 6], group.energies, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(result.forces[6 * k : 6 * k + 6], group.forces, rtol=1e-12, atol=1e-12)

    def test_networks_come_apart_and_together_again(self):
        stack = MLPPotential.initialise(3, 7, scaling=SCALING)
        assert MLPPotential.stack([stack.network(k) for k in range(3)]).fingerprint == stack.fingerprint
        assert len({stack.network(k).fingerprint for k in range(3)}) == 3
        with pytest.raises(SelectronError, match="same hidden units and scaling"):
            MLPPotential.stack([stack, MLPPotential.initialise(1, 7)])

    def test_a_larger_stack_begins_with_the_smaller(self):
        small, large = (MLPPotential.initialise(k, 5) for k in (2, 5))
        assert torch.equal(large.parameters[:2], small.parameters)
        assert not torch.equal(MLPPotential.initialise(2, 6).parameters, small.parameters)

    def test_structures_that_cannot_be_shared_out(self):
        stack = MLPPotential.initialise(4, 7)
        with pytest.raises(SelectronError, match="4 stacked networks take as many structures each, and 6 cannot"):
            stack.evaluate(stack.batch(_structures(_points(6))))


class TestFile:
    def test_what_was_saved_comes_back(self, tmp_path):
        potential, path = MLPPotential.initialise(3, 1, scaling=SCALING), tmp_path / "net.mlp"
        potential.save(path)
        for loaded in (MLPPotential.load(path), load_potential(path), load_potential(str(path))):
            assert isinstance(loaded, MLPPotential)
            assert loaded.fingerprint == potential.fingerprint
            assert loaded.scaling == potential.scaling
            assert torch.equal(loaded.energies_and_forces(_points())[0], potential.energies_and_forces(_points())[0])

    def test_scaling_is_part_of_the_fingerprint(self):
        first, second = (MLPPotential.initialise(1, 1, scaling=s) for s in (SCALING, SCALING._replace(energy_eV=41.0)))
        assert first.fingerprint != second.fingerprint

    def test_code_in_a_file_is_not_run(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "trapped"),)

        path = tmp_path / "trap.mlp"
        torch.save({"format": Trap()}, path)
        with pytest.raises(SelectronError, match="cannot be read as a planar MLP"):
            load_potential(path)
        path.write_bytes(pickle.dumps(Trap(), protocol=2))
        with pytest.raises(SelectronError, match="is not a planar MLP"):
            load_potential(path)
        assert not (tmp_path / "trapped").exists()

    def test_other_files_are_a_sentence(self, tmp_path):
        with pytest.raises(SelectronError, match="There is no file"):
            load_potential(tmp_path / "none.mlp")
        torch.save({"something": 1}, tmp_path / "other.mlp")
        with pytest.raises(SelectronError, match="is not a planar MLP"):
            load_potential(tmp_path / "other.mlp")
        (tmp_path / "text.mlp").write_text("hello")
        with pytest.raises(SelectronError, match="is not a planar MLP"):
            load_potential(tmp_path / "text.mlp")


def test_wrong_shapes_are_a_sentence():
    for shape in ((80,), (1, 80), (0, 81), (1, 1)):
        with pytest.raises(SelectronError, match="needs parameters"):
            MLPPotential(torch.zeros(shape))
    with pytest.raises(SelectronError, match="positive width"):
        MLPPotential.initialise(1, 0, scaling=SCALING._replace(width_A=(0.0, 1.0)))
