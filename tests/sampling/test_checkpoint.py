"""A run that was interrupted goes on as if it never had been, and only from its own checkpoint."""

import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from selectron.errors import SelectronError
from selectron.potentials import load_potential
from selectron.potentials.mace import MacePotential
from selectron.sampling.checkpoint import Checkpoint, leaves_of, marks_of, read_checkpoint, restored
from selectron.sampling.options import sample_options
from selectron.sampling.run import run_sampling
from small_maces import small_mace

SURFACE = {"kT_eV": 20.0, "step_size": 2e-4}
SHORT = {"initial": {"burn_in_steps": 10, "snapshot_every": 5}, "pilot": {"steps": 20, "journeys": 2}}
PILOT_KIND = {"kind": "bias-norm-below", "min_steps": 5, "quantile": 0.5}
LOOSE = {
    "max_force_eV_A": 1e6,
    "min_distance_A": 0.0,
    "max_energy_rise_eV": 1e6,
}  # a random model holds nothing together
METHODS = {
    "skmd": {"particles": 5, "ensembles": 2, "stopping": [{"kind": "fixed-steps", "steps": 7}], **SHORT},
    "a-skmd": {"particles": 5, "stopping": [PILOT_KIND, {"kind": "fixed-steps", "steps": 11}], **SHORT},
    "synchronous-skmd": {"particles": 4, "kernel": {"bandwidth": "initial-median"}, **SHORT},
    "brownian": {"particles": 3, "stopping": [{"kind": "fixed-steps", "steps": 9}]},
    "metad": {"metad": {"height_eV": 5.0, "every": 6}},
}


def point():
    return Atoms("X", [[-0.55, 1.44, 0.0]])


@pytest.fixture(scope="module")
def mueller_brown():
    return load_potential("surface:mueller-brown")


@pytest.fixture(scope="module")
def mace():
    return MacePotential(small_mace(hidden_irreps="4x0e", correlation=2), name="tiny", dtype=torch.float32)


def told(frame):
    atoms = frame.atoms
    return (atoms.positions.tobytes(), atoms.arrays["model_forces"].tobytes(), repr(sorted(atoms.info.items())))


def same_when_stopped(models, starts, options, path, steps=60, stop_after=37):
    """All frames of a run, and that a run which is thrown away and continued from its file gives the same."""
    whole_options = sample_options({**options, "steps": steps, "stride": 4, "checkpoint_every": 10})
    whole = [told(frame) for frame in run_sampling(models, starts, whole_options)]
    kept = []
    checkpoint = Checkpoint(path, lambda: {"frames": len(kept)})
    for frame in run_sampling(models, starts, whole_options, checkpoint=checkpoint):
        if frame.step > stop_after:
            break
        kept.append(told(frame))
    assert 0 < marks_of(path)["frames"] < len(whole)
    del kept[marks_of(path)["frames"] :]
    kept += [told(frame) for frame in run_sampling(models, starts, whole_options, checkpoint=checkpoint)]
    assert kept == whole
    return whole


@pytest.mark.parametrize("method", METHODS)
def test_goes_on_bit_for_bit_on_a_surface(method, mueller_brown, tmp_path):
    options = {"method": method, **SURFACE, **METHODS[method]}
    same_when_stopped(mueller_brown, [point()], options, tmp_path / "c")


@pytest.mark.parametrize("method", ["langevin", "skmd", "metad"])
def test_goes_on_bit_for_bit_with_a_mace(method, mace, tmp_path):
    options = {"method": method, "temperature_K": 300.0, "geometry": LOOSE}
    if method == "skmd":
        options |= {"particles": 3, "stopping": [{"kind": "fixed-steps", "steps": 7}], **SHORT}
    if method == "metad":
        options |= {"metad": {"every": 6}}
    same_when_stopped(mace, [molecule("CH3CH2OH")], options, tmp_path / "c", steps=40, stop_after=27)


def test_goes_on_bit_for_bit_in_a_cell_whose_neighbours_change(mace, tmp_path):
    crystal = bulk("C", "diamond", a=3.6, cubic=True)
    options = {"method": "langevin", "temperature_K": 4000.0, "geometry": LOOSE}
    same_when_stopped(mace, [crystal], options, tmp_path / "c", steps=40, stop_after=27)


@pytest.mark.parametrize("method", ["udd", "hal"])
def test_goes_on_bit_for_bit_with_a_committee(method, tmp_path):
    members = [load_potential(f"surface:harmonic?stiffness={k}") for k in (1.0, 1.3)]
    options = {
        "method": method,
        "kT_eV": 0.1,
        "step_size": 0.01,
        "stopping": [{"kind": "uncertainty-above", "min_steps": 3, "quantile": 0.5}],
        "pilot": {"steps": 20, "journeys": 1},
    }
    same_when_stopped(members, [Atoms("X", [[0.4, 0.2, 0.0]])], options, tmp_path / "c")


def test_a_finished_run_can_be_given_more_steps(mueller_brown, tmp_path):
    def options(steps):
        return sample_options({"method": "brownian", **SURFACE, "steps": steps, "stride": 3})

    whole = [told(frame) for frame in run_sampling(mueller_brown, [point()], options(50))]
    checkpoint = Checkpoint(tmp_path / "c")
    first = [told(frame) for frame in run_sampling(mueller_brown, [point()], options(20), checkpoint=checkpoint)]
    assert list(run_sampling(mueller_brown, [point()], options(20), checkpoint=checkpoint)) == []
    rest = [told(frame) for frame in run_sampling(mueller_brown, [point()], options(50), checkpoint=checkpoint)]
    assert first + rest == whole


def test_what_broke_and_was_counted_before_is_still_known_after(tmp_path):
    argon = load_potential("ase:ase.calculators.lj:LennardJones?sigma=3.4&epsilon=0.0104&rc=10")
    starts = [Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]]), Atoms("Ar2", [[0, 0, 0], [0, 0, 1.0]])]
    options = sample_options(
        {"method": "langevin", "temperature_K": 20.0, "steps": 40, "stride": 5, "checkpoint_every": 10}
    )
    checkpoint = Checkpoint(tmp_path / "c")
    for frame in run_sampling(argon, starts, options, checkpoint=checkpoint):
        if frame.step > 20:
            break
    heard, last = [], []
    frames = list(
        run_sampling(argon, starts, options, on_step=last.append, on_ended=heard.append, checkpoint=checkpoint)
    )
    assert {frame.particle for frame in frames} == {0}
    assert heard == []  # it was told when it happened
    assert [(one.particle, one.step) for one in last[-1].tally.ended] == [(1, 1)]
    assert last[-1].tally.frames == 8


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"options": {"kT_eV": 30.0}}, "kT_eV was 20.0 and is now 30.0"),
        ({"options": {"seed": 1}}, "seed was 0 and is now 1"),
        ({"start": Atoms("X", [[-0.5, 1.44, 0.0]])}, "starting structures was 1"),
        ({"model": "surface:mueller-brown?scale=2"}, "models was"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_before_anything_runs(change, named, mueller_brown, tmp_path):
    options = {"method": "brownian", **SURFACE, "steps": 20}
    checkpoint = Checkpoint(tmp_path / "c")
    list(run_sampling(mueller_brown, [point()], sample_options(options), checkpoint=checkpoint))
    before = checkpoint.path.read_bytes()
    model = load_potential(change["model"]) if "model" in change else mueller_brown
    changed = sample_options({**options, **change.get("options", {})})
    with pytest.raises(SelectronError, match=named.replace("(", r"\(")):
        run_sampling(model, [change.get("start", point())], changed, checkpoint=checkpoint)
    assert checkpoint.path.read_bytes() == before


class Dangerous:
    def __reduce__(self):
        return (pytest.fail, ("code of the file ran",))


@pytest.mark.parametrize(
    "content",
    [b"", b"no checkpoint", pickle.dumps({"kind": 1}), pickle.dumps(Dangerous())],
    ids=["empty", "text", "other", "code"],
)
def test_a_file_that_is_no_checkpoint_is_refused_and_runs_no_code(content, tmp_path):
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(SelectronError, match="not a checkpoint of a sampling run"):
        read_checkpoint(tmp_path / "c")


def test_a_pickle_with_code_inside_of_a_torch_file_runs_no_code(tmp_path):
    torch.save({"kind": "selectron sampling checkpoint", "leaves": Dangerous()}, tmp_path / "c")
    with pytest.raises(SelectronError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "c")


def test_leaves_that_do_not_fit_are_refused():
    state = (1, torch.zeros(3), (torch.ones(2, dtype=torch.int64), None))
    leaves = leaves_of(state)
    again = restored(state, leaves)
    assert again[0] == 1
    assert again[2][1] is None
    np.testing.assert_array_equal(again[2][0], state[2][0])
    for wrong in (
        leaves[:-1],
        [*leaves, 1],
        [leaves[0], leaves[1].double(), leaves[2]],
        [leaves[1], leaves[1], leaves[2]],
    ):
        with pytest.raises(SelectronError, match="does not fit"):
            restored(state, wrong)
