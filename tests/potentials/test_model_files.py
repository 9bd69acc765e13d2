"""A model file loads with the numbers that were saved, and only where selectron's layers are that model; else one sentence."""

import copy
import pickle
import sys
import types
import zipfile

import pytest
import torch
from ase.build import molecule

from damaged_files import mutants
from selectron import notes
from selectron.archives import load_archive
from selectron.embedded import model_path
from selectron.errors import SelectronError
from selectron.potentials import MLPPotential, load_potential
from selectron.potentials.mace import MacePotential
from selectron.potentials.mace_files import load_mace, read_mace
from selectron.potentials.mace_kinds import check_mace
from small_maces import small_mace

MOLECULES = [molecule("H2O"), molecule("CH3CH2OH")]


@pytest.fixture(scope="module")
def small():
    return small_mace(hidden_irreps="6x0e + 6x1o", correlation=2)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(notes, "_said", set())


def refused(path):
    with pytest.raises(SelectronError) as caught:
        load_potential(path)
    text = str(caught.value)
    assert path.stem in text
    assert "\n" not in text
    return text


def same_parameters(one, other):
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


class TestDamage:
    def damaged(self, path, count, load, same):
        whole = path.read_bytes()
        said = []
        for content in mutants(whole, count, seed=7):
            path.write_bytes(content)
            try:
                found = load(path)
            except SelectronError as error:
                said.append(str(error))
            else:
                assert same(found)
        assert all(path.name in text and "\n" not in text for text in said)
        return len(said)

    def models(self, tmp_path, count):
        path = tmp_path / "damaged.model"
        path.write_bytes(model_path().read_bytes())
        whole = read_mace(model_path())
        return self.damaged(path, count, read_mace, lambda found: same_parameters(found, whole))

    def test_a_damaged_model_is_refused_or_has_the_same_numbers(self, tmp_path):
        assert self.models(tmp_path, 40) > 30

    @pytest.mark.slow
    def test_hundreds_of_damaged_models(self, tmp_path):
        assert self.models(tmp_path, 600) > 500

    def test_a_flipped_bit_in_the_numbers_is_seen_by_us_and_by_no_one_else(self, tmp_path):
        content = bytearray(model_path().read_bytes())
        with zipfile.ZipFile(model_path()) as archive:
            numbers = [part for part in archive.infolist() if "/data/" in part.filename]
            largest = max(numbers, key=lambda part: part.file_size)
        content[largest.header_offset + 4096] ^= 1
        path = tmp_path / "flipped.model"
        path.write_bytes(content)
        plain = torch.load(path, weights_only=False)  # torch 2.13.0 compares no checksum
        assert not same_parameters(plain, read_mace(model_path()))
        assert "flipped.model is damaged" in refused(path)
        assert "copy or download it anew" in refused(path)

    def test_a_damaged_planar_mlp(self, tmp_path):
        potential = MLPPotential.initialise(2, 0)
        potential.save(tmp_path / "net.mlp")
        parameters = potential.parameters
        refusals = self.damaged(
            tmp_path / "net.mlp", 60, MLPPotential.load, lambda found: torch.equal(found.parameters, parameters)
        )
        assert refusals > 30

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"parameters": [1.0]}, "no parameters"),
            ({"parameters": torch.full((1, 81), float("nan"))}, "not finite"),
            ({"parameters": torch.zeros(1, 80)}, "4 H"),
            ({"scaling": {"centre_A": (0.0, 0.0), "colour": 1}}, "one too many"),
            ({"scaling": {"width_A": (0.0, 1.0)}}, "positive width"),
            ({"format": "another"}, "this version"),
        ],
    )
    def test_a_planar_mlp_with_wrong_fields(self, change, named, tmp_path):
        MLPPotential.initialise(1, 0).save(tmp_path / "net.mlp")
        content = torch.load(tmp_path / "net.mlp", weights_only=True)
        torch.save({**content, **change}, tmp_path / "net.mlp")
        with pytest.raises(SelectronError, match=named):
            MLPPotential.load(tmp_path / "net.mlp")

    def test_the_format_of_old_pytorch_is_read_and_said_to_carry_no_checksums(self, small, tmp_path, caplog):
        torch.save(small, tmp_path / "old.model", _use_new_zipfile_serialization=False)
        assert same_parameters(read_mace(tmp_path / "old.model"), small)
        read_mace(tmp_path / "old.model")
        assert [record.message for record in caplog.records] == [
            f"{tmp_path / 'old.model'} is of a PyTorch before 1.6 and carries no checksums: damage would not be noticed."
        ]

    def test_what_selectron_writes_itself_is_never_in_that_format(self, tmp_path):
        torch.save({"a": 1}, tmp_path / "old.mlp", _use_new_zipfile_serialization=False)
        with pytest.raises(SelectronError, match="is not a planar MLP"):
            MLPPotential.load(tmp_path / "old.mlp")

    @pytest.mark.parametrize("content", [pickle.dumps([1]), b"PK\x03\x04" + bytes(40), b"\x00\xff" * 30, b"REMARK\n"])
    def test_files_that_are_something_else_are_not_unpickled(self, content, tmp_path):
        (tmp_path / "other.model").write_bytes(content)
        refused(tmp_path / "other.model")

    def test_devices_and_pipes_are_not_opened(self, tmp_path):
        import os

        os.mkfifo(tmp_path / "pipe.model")
        assert "pipe" in refused(tmp_path / "pipe.model")


class Bomb:
    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return _explode, (self.kind,)


def _explode(kind):
    if kind == "memory":
        raise MemoryError
    if kind == "depth":
        return _explode(kind)
    raise OverflowError("cannot fit")


class TestWhatIsInside:
    @pytest.mark.parametrize(
        ("kind", "said"), [("memory", "MemoryError"), ("depth", "RecursionError"), ("other", "cannot fit")]
    )
    def test_whatever_unpickling_raises_is_a_sentence(self, kind, said, tmp_path):
        torch.save(Bomb(kind), tmp_path / "bomb.model")
        assert said in refused(tmp_path / "bomb.model")

    def test_the_package_that_is_missing_is_named(self, small, tmp_path):
        absent = types.ModuleType("layers_of_a_group")
        part = type("Part", (torch.nn.Module,), {"__module__": "layers_of_a_group"})
        absent.Part = part
        model = copy.deepcopy(small)
        model.extra = part()
        sys.modules["layers_of_a_group"] = absent
        try:
            torch.save(model, tmp_path / "theirs.model")
            text = refused(tmp_path / "theirs.model")  # the package is there, the model is still not one that is known
            assert "extra of class layers_of_a_group.Part" in text
            del absent.Part
            assert "needs Part of layers_of_a_group" in refused(tmp_path / "theirs.model")
        finally:
            del sys.modules["layers_of_a_group"]
        text = refused(tmp_path / "theirs.model")
        assert "needs the package layers_of_a_group, which is not installed" in text

    def test_what_is_no_model_is_said_with_what_helps(self, small, tmp_path):
        state = small.state_dict()
        for name, content, said in [
            ("state", state, "load them into it, and torch.save the model"),
            ("checkpoint", {"model": state, "optimizer": {}, "lr_scheduler": {}}, "checkpoint of a training run"),
            ("list", [small], "type list with a model in it"),
            ("dictionary", {"net": small}, "type dict with a model in it"),
            ("number", 1.0, "type float"),
        ]:
            torch.save(content, tmp_path / f"{name}.model")
            assert said in refused(tmp_path / f"{name}.model")


class Mine(torch.nn.Linear):
    pass


def shouting(module, inputs, output):
    return 2 * output


def another_forward(data, **_):
    return data


def break_number(model):
    with torch.no_grad():
        model.products[0].linear.weight[3] = float("nan")


def break_reference(model):
    model.atomic_energies_fn.atomic_energies[0] = float("inf")


CHANGES = {
    "a hook": (lambda m: m.interactions[0].linear.register_forward_hook(shouting), "interactions.0.linear has forward hooks"),
    "a hook before": (lambda m: m.register_forward_pre_hook(shouting), "model has forward pre hooks"),
    "another forward": (lambda m: setattr(m, "forward", another_forward), "model has another forward"),
    "another forward inside": (
        lambda m: setattr(m.products[0].linear, "forward", another_forward), "products.0.linear has another forward"
    ),
    "a part of another class": (lambda m: m.readouts.append(Mine(2, 2)), r"readouts.2 of class .*Mine"),
    "a part too many": (lambda m: m.add_module("extra", torch.nn.Linear(2, 2)), "extra of class torch.nn"),
    "a parametrized part": (
        lambda m: torch.nn.utils.parametrize.register_parametrization(
            m.interactions[0].conv_tp_weights.layer0, "weight", torch.nn.Identity()
        ),
        "Parametrized",
    ),
    "half precision": (lambda m: m.half(), "type float16"),
    "a number that is none": (break_number, "not finite, in products.0.linear.weight"),
    "an infinite reference": (break_reference, "not finite, in atomic_energies_fn"),
    "no cutoff": (lambda m: m.r_max.fill_(0.0), "cutoff of 0"),
    "an element twice": (lambda m: m.atomic_numbers.copy_(torch.tensor([1, 6, 6])), "element C more than once"),
    "no element": (lambda m: m.atomic_numbers.copy_(torch.tensor([0, 6, 8])), r"\[0\], which are no elements"),
    "a head too many": (lambda m: setattr(m, "heads", ["a", "b"]), "names 2 heads"),
    "without elements": (lambda m: delattr(m, "atomic_numbers"), "has no atomic_numbers"),
}  # fmt: skip


class TestKinds:
    @pytest.mark.parametrize("change", CHANGES)
    def test_a_model_that_was_changed_is_refused(self, change, small):
        model = copy.deepcopy(small)
        make, said = CHANGES[change]
        make(model)
        with pytest.raises(SelectronError, match=said) as caught:
            MacePotential(model, name="theirs")
        assert str(caught.value).startswith("theirs ")
        assert "\n" not in str(caught.value)

    def test_classes_that_derive_from_mace_are_refused_by_name(self, small):
        import mace.modules.extensions as extensions
        from mace.modules.models import ScaleShiftMACE

        derived = type("OurMACE", (ScaleShiftMACE,), {})
        for kind in (extensions.MACELES, extensions.PolarMACE, derived):
            model = copy.deepcopy(small)
            model.__class__ = kind
            with pytest.raises(
                SelectronError, match=f"is a {kind.__name__}: selectron reads .* MACE or ScaleShiftMACE"
            ):
                check_mace(model, "theirs")

    def test_wrapped_and_compiled_models_are_refused_with_what_helps(self, small, tmp_path):
        with pytest.raises(SelectronError, match="save its module"):
            check_mace(torch.nn.DataParallel(small), "theirs")
        with pytest.raises(SelectronError, match="save its _orig_mod"):
            check_mace(torch.compile(copy.deepcopy(small)), "theirs")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "compiled.model")
        assert "compiled (TorchScript)" in refused(tmp_path / "compiled.model")


class TestCorrections:
    @pytest.fixture(scope="class")
    def corrected(self, small):
        from mace.modules.lora import inject_lora

        model = copy.deepcopy(small)
        inject_lora(model, rank=2, alpha=1.0)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for name, parameter in model.named_parameters():
                if "lora" in name:
                    parameter.normal_(0.0, 0.3)
        return model

    def test_they_are_merged_when_a_file_is_read_and_it_is_said(self, corrected, small, tmp_path, caplog):
        path = tmp_path / "lora.model"
        torch.save(corrected, path)
        before = path.read_bytes()
        potential = load_potential(path, dtype="float64")
        assert [record.message for record in caplog.records] == [
            f"{path} holds LoRA corrections, which are merged into its weights here; the file stays as it is."
        ]
        assert path.read_bytes() == before
        batch = potential.batch(MOLECULES)
        found = potential.evaluate(batch)
        plain = corrected(potential.inputs(batch))  # mace-torch's own, with the corrections apart
        torch.testing.assert_close(found.energies, plain["energy"].detach(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.forces, plain["forces"].detach(), rtol=1e-9, atol=1e-10)
        without = MacePotential(copy.deepcopy(small), dtype=torch.float64).evaluate(batch)
        assert float((found.energies - without.energies).abs().min()) > 1e-4

    def test_a_model_in_memory_is_refused_with_what_merges_them(self, corrected):
        with pytest.raises(SelectronError, match="merge_lora_weights"):
            MacePotential(copy.deepcopy(corrected))


class TestHeads:
    def test_several_heads_one_of_them_default(self, caplog):
        model = small_mace(hidden_irreps="4x0e", correlation=1, heads=["pt_head", "Default"])
        potential = MacePotential(copy.deepcopy(model), name="two")
        assert potential.head == "Default"
        assert [record.message for record in caplog.records] == [
            "two has the heads pt_head, Default: Default is taken, as mace-torch does; --head takes another."
        ]
        with pytest.raises(SelectronError, match="two has no head 'dft'; it has pt_head, Default"):
            MacePotential(copy.deepcopy(model), name="two", head="dft")

    def test_several_heads_and_none_of_them_default(self):
        model = small_mace(hidden_irreps="4x0e", correlation=1, heads=["a", "b"])
        with pytest.raises(SelectronError, match="choose one with --head"):
            MacePotential(model)


class TestPrecision:
    def test_total_energies_keep_their_digits_in_single_precision(self, small):
        model = copy.deepcopy(small)
        model.atomic_energies_fn.atomic_energies.copy_(torch.tensor([-13.572, -1030.567166, -2043.933698]))
        energies = []
        for dtype in (torch.float32, torch.float64):
            potential = MacePotential(copy.deepcopy(model), dtype=dtype)
            energies.append(potential.evaluate(potential.batch(MOLECULES)).energies)
        assert energies[0].dtype == torch.float64
        assert float((energies[0] - energies[1]).abs().max()) < 2e-5  # 4221 eV have a spacing of 5e-4 in float32

    @pytest.mark.parametrize(("scale_shift", "heads"), [(True, ["a", "b"]), (False, ["Default"])])
    def test_they_are_the_energies_of_mace_torch(self, scale_shift, heads):
        model = small_mace(hidden_irreps="6x0e", correlation=2, heads=heads, scale_shift=scale_shift)
        potential = MacePotential(copy.deepcopy(model), dtype=torch.float64, head=heads[-1])
        batch = potential.batch(MOLECULES)
        plain = model(potential.inputs(batch))
        found = potential.evaluate(batch).energies
        torch.testing.assert_close(found, plain["energy"].detach(), rtol=1e-12, atol=1e-10)
        traced = potential.differentiable(batch)
        torch.testing.assert_close(traced.energies.detach(), found, rtol=0, atol=1e-10)
        (gradient,) = torch.autograd.grad(traced.energies.sum(), traced.positions)
        torch.testing.assert_close(-gradient, plain["forces"].detach(), rtol=1e-9, atol=1e-10)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SelectronError, match=r"There is no file .*absent.model"):
        load_archive(tmp_path / "absent.model", kind="a model", remedy="make it")


def test_loading_does_not_change_the_default_precision(small, tmp_path):
    torch.save(small, tmp_path / "m.model")
    load_mace(tmp_path / "m.model")
    assert torch.get_default_dtype() == torch.float32
