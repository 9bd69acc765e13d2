"""mace-torch's trainer on selectron's layers: the same losses, gradients and models, in a plain file, or else a reason."""

import copy
import importlib
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from mace.modules.lora import inject_LoRAs

from selectron.embedded import model_path
from selectron.errors import SelectronError
from selectron.potentials.mace_files import load_mace
from selectron.structures import Pool
from selectron.training.fast_layers import NotCovered, check_equal, fast_forward
from selectron.training.fine_tune import fine_tune
from selectron.training.options import TrainOptions
from small_maces import VARIANTS, model_of, stock_batch, structures


@pytest.fixture(scope="module")
def reactive():
    """Reactive structures that the embedded model does not know, with GFN2-xTB labels."""
    with Pool.open(["embedded"]) as pool:
        return [pool[i] for i in range(24)]


def with_lora(model):
    """mace-torch's LoRA layers in ``model``, moved away from zero, where half of the gradients vanish."""
    model = inject_LoRAs(model, rank=2, alpha=1.5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def loss_and_gradients(model, forward, batch, **outputs):
    """Of a loss of energies, forces and, where asked for, virials and stress."""
    model.zero_grad(set_to_none=True)
    out = forward(dict(batch), training=True, compute_force=True, **outputs)
    generator = torch.Generator().manual_seed(2)
    loss = 0.0
    for key in ("energy", "forces", "virials", "stress"):
        if out[key] is not None and torch.isfinite(out[key]).all():
            target = torch.randn(out[key].shape, generator=generator, dtype=torch.float64)
            loss = loss + (out[key] - target).square().mean()
    loss.backward()
    return float(loss.detach()), {name: p.grad for name, p in model.named_parameters()}


def assert_agree(model, batch, tolerance, **outputs):
    """Loss and the gradient of every parameter; where gradients cancel, relative to the largest of all."""
    fast = fast_forward(model)
    loss, gradients = loss_and_gradients(model, model.forward, batch, **outputs)
    other_loss, others = loss_and_gradients(model, fast, batch, **outputs)
    assert other_loss == pytest.approx(loss, rel=tolerance)
    largest = max(float(g.abs().max()) for g in gradients.values() if g is not None)
    assert largest > 0
    for name, expected in gradients.items():
        if expected is None or others[name] is None:
            assert all(g is None or not g.any() for g in (expected, others[name])), name
            continue
        scale = max(float(expected.abs().max()), 1e-3 * largest)
        assert float((others[name] - expected).abs().max()) < tolerance * scale, name


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_a_loss_in_every_parameter_are_those_of_mace_torch(variant, method):
    model = model_of(variant).requires_grad_(True)
    model = with_lora(model) if method == "lora" else model
    bulk = [atoms for atoms in structures() if atoms.pbc.all()]
    molecules = [atoms for atoms in structures() if not atoms.pbc.any()]
    assert_agree(model, stock_batch(model, bulk), 1e-9, compute_stress=True, compute_virials=True)
    assert_agree(model, stock_batch(model, molecules), 1e-9)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradients_agree_in_single_precision_too(reactive, method):
    model = load_mace(model_path()).float().requires_grad_(True)
    model = with_lora(model).float() if method == "lora" else model
    assert_agree(model, stock_batch(model, reactive[:10]), 1e-5)


def test_the_order_of_edges_does_not_matter_and_other_parameters_give_other_results():
    model = model_of("L=1").requires_grad_(True)
    batch = stock_batch(model, structures())
    fast = fast_forward(model)
    before = fast(dict(batch))["energy"].detach()
    order = torch.randperm(batch["edge_index"].shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = batch | {"edge_index": batch["edge_index"][:, order]}
    shuffled |= {key: batch[key][order] for key in ("shifts", "unit_shifts")}
    torch.testing.assert_close(fast(shuffled)["energy"].detach(), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = fast(dict(batch))["energy"].detach()
    torch.testing.assert_close(after, model(dict(batch))["energy"].detach())
    assert not torch.allclose(after, before)


def test_a_model_that_would_be_computed_wrongly_is_found_out():
    model = model_of("L=0")
    batch = stock_batch(model, structures())
    check_equal(model, fast_forward(model), batch)
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.interactions[0].linear.parameters()).mul_(1.001)
    with pytest.raises(NotCovered, match="differ from mace-torch's by"):
        check_equal(model, fast_forward(other), batch)


def fine_tuned(reactive, folder, layers, **options):
    """A short training of the embedded model, and what its trainer said about layers."""
    quick = {"epochs": 2, "threads": 1, "references": "keep", "learning_rate": 0.003}
    result = fine_tune("embedded", reactive[:16], reactive[16:], TrainOptions(**quick | options, layers=layers), folder)
    log = (folder / "run" / "log.txt").read_text()
    return result, [line.partition("Layers: ")[2] for line in log.splitlines() if "Layers: " in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({"dtype": "float64"}, 1e-8),
        ({"dtype": "float64", "method": "lora", "ema": 0.9, "stage_two_start": 1, "learning_rate": 0.01}, 1e-8),
        ({"dtype": "float32"}, 1e-2),
        ({"dtype": "float32", "method": "lora"}, 1e-2),
    ],
)
def test_trained_models_agree_and_the_file_needs_no_selectron(reactive, tmp_path, options, tolerance):
    plain, said = fine_tuned(reactive, tmp_path / "plain", "plain", **options)
    assert not said
    fast, said = fine_tuned(reactive, tmp_path / "fast", "auto", **options)
    assert said == ["selectron's."]
    models = [load_mace(path) for path in (model_path(), plain.model_path, fast.model_path)]
    assert len({tuple(model.state_dict()) for model in models}) == 1
    start, before, after = (dict(model.named_parameters()) for model in models)
    moved = max(float((before[name] - start[name]).detach().abs().max()) for name in before)
    assert moved > 1e-3
    for name, value in before.items():
        assert after[name].dtype == value.dtype
        assert float((after[name] - value).detach().abs().max()) < tolerance * moved, name
    for one, two in zip(plain.history, fast.history, strict=True):
        assert two.valid_loss == pytest.approx(one.valid_loss, rel=1e-4)
    code = (
        "import sys; sys.modules['selectron'] = None\n"
        "import torch\n"
        f"model = torch.load({str(fast.model_path)!r}, weights_only=False)\n"
        "print(type(model).__module__, 'forward' in vars(model))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split()[-2:] == ["mace.modules.models", "False"]


def interpreter_without_selectron(folder):
    """This Python with the import of selectron made impossible."""
    script = folder / "python"
    blocked = folder / "site" / "selectron"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('blocked')")
    script.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "site"} exec {sys.executable} "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.mark.slow
def test_an_interpreter_without_selectron_trains_on_mace_torchs_layers_and_says_so(reactive, tmp_path):
    options = {"interpreter": interpreter_without_selectron(tmp_path), "epochs": 1}
    _, said = fine_tuned(reactive, tmp_path / "auto", "auto", **options)
    assert said == ["mace-torch's own, since this interpreter has no selectron."]
    assert json.loads((tmp_path / "auto" / "run" / "outcome.json").read_text())["layers"] == "plain"
    with pytest.raises(SelectronError, match=r"layers: fast: this interpreter has no selectron"):
        fine_tuned(reactive, tmp_path / "fast", "fast", **options)


class OtherMACE(type(model_of("L=0"))):
    """A kind of model of which nobody here knows what it computes."""


def test_a_model_of_another_kind_is_not_covered():
    model = model_of("L=0")
    model.__class__ = OtherMACE
    with pytest.raises(NotCovered, match="OtherMACE, not a MACE or ScaleShiftMACE"):
        fast_forward(model)
    model = model_of("L=0")
    model.joint_embedding = torch.nn.Identity()
    with pytest.raises(NotCovered, match="more of a structure than"):
        fast_forward(model)


@pytest.mark.slow
def test_a_model_that_is_not_covered_is_trained_all_the_same_and_the_reason_said(tmp_path, monkeypatch):
    """A convolution that is not e3nn's, as another library would have it."""
    (tmp_path / "other_convolution.py").write_text(
        "import torch\n"
        "class OtherConvolution(torch.nn.Module):\n"
        "    def __init__(self, inner):\n"
        "        super().__init__()\n"
        "        self.inner = inner\n"
        "    def forward(self, *arguments):\n"
        "        return self.inner(*arguments)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    model = model_of("L=0")
    for layer in model.interactions:
        layer.conv_tp = importlib.import_module("other_convolution").OtherConvolution(layer.conv_tp)
    torch.save(model, tmp_path / "other.model")
    random = np.random.default_rng(0)
    train = [Atoms("OCH", [[0, 0, 0], [1.2, 0, 0], [1.8, 0.9, 0]]) for _ in range(8)]
    for atoms in train:
        atoms.positions += random.normal(0, 0.1, (3, 3))
        atoms.calc = SinglePointCalculator(atoms, energy=-9.0 + random.normal(0, 0.1), forces=np.zeros((3, 3)))
    options = {"epochs": 1, "threads": 1, "references": "keep"}
    fine_tune(tmp_path / "other.model", train, None, TrainOptions(**options), tmp_path / "auto")
    said = "Layers: mace-torch's own, since the model's convolution is not e3nn's but OtherConvolution."
    assert said in (tmp_path / "auto" / "run" / "log.txt").read_text()
    with pytest.raises(SelectronError, match="layers: fast: the model's convolution is not e3nn's"):
        fine_tune(tmp_path / "other.model", train, None, TrainOptions(**options, layers="fast"), tmp_path / "fast")
