"""Options of a sampling run: their defaults, what does not go together, and how mistakes are told."""

import math
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from selectron.config.load import load_yaml
from selectron.errors import SelectronError
from selectron.potentials import load_potential
from selectron.sampling.build import build, motion_of, stopping_of
from selectron.sampling.options import METHODS, BiasNormBelow, FixedSteps, SampleOptions, sample_options
from selectron.sampling.units import brownian_step_size


def test_defaults_of_skmd_are_those_of_the_paper():
    motion = motion_of(sample_options({"method": "skmd"}))
    assert motion.kT_eV == pytest.approx(8.617333e-5 * 50.0)
    assert motion.overdamped
    assert motion.time_per_step_fs == 0.1
    assert motion.step_size == brownian_step_size(0.1, 75.0)
    assert sample_options({"method": "skmd"}).criteria == (FixedSteps(steps=500),)
    start = SampleOptions().initial
    assert (start.burn_in_steps, start.snapshot_every) == (4000, 200)


def test_defaults_of_langevin_are_those_of_the_papers_baselines():
    motion = motion_of(sample_options({"method": "langevin"}))
    assert (motion.timestep_fs, motion.damping_time_fs, motion.overdamped) == (1.0, 100.0, False)
    assert motion.kT_eV == pytest.approx(8.617333e-5 * 300.0)


def test_an_adaptive_run_has_a_fixed_bandwidth_and_a_way_out():
    options = sample_options({"method": "a-skmd"})
    assert options.bandwidth == "initial-median"
    assert [type(one) for one in options.criteria] == [BiasNormBelow, FixedSteps]


def test_a_bare_step_size_leaves_time_open_and_makes_biased_dynamics_overdamped():
    motion = motion_of(sample_options({"method": "metad", "step_size": 2e-4, "kT_eV": 20.0}))
    assert (motion.overdamped, motion.step_size, motion.kT_eV, motion.time_per_step_fs) == (True, 2e-4, 20.0, None)
    assert not motion_of(sample_options({"method": "metad"})).overdamped
    assert motion_of(sample_options({"method": "udd", "dynamics": "overdamped"})).overdamped


WRONG = [
    ({"method": "mc"}, "There is no method 'mc'; there are skmd, "),
    ({"steps": 0}, "steps: input should be greater than 0, not 0"),
    ({"temperature_K": math.nan}, "temperature_K: "),
    ({"temperature_K": math.inf}, "temperature_K: "),
    ({"step_size": math.inf}, "step_size: "),
    ({"temperature": 300}, "temperature is no option"),
    ({"kernel": {"bandwith": 3}}, "kernel.bandwith is no option"),
    ({"kernel": {"bandwidth": 0}}, "kernel.bandwidth: "),
    ({"seed": -1}, "seed: "),
    ({"temperature_K": 1, "kT_eV": 1}, "not both"),
    ({"step_size": 1, "timestep_fs": 1}, "not both"),
    ({"method": "langevin", "step_size": 1}, "underdamped"),
    ({"method": "brownian", "damping_time_fs": 1}, "overdamped"),
    ({"method": "brownian", "dynamics": "overdamped"}, "own dynamics"),
    ({"method": "udd", "iterations": 3}, "journeys"),
    ({"method": "skmd", "stopping": []}, "needs a stopping criterion"),
    ({"method": "a-skmd", "stopping": [{"kind": "fixed-steps", "steps": 3}]}, "needs bias-norm-below"),
    ({"method": "a-skmd", "kernel": {"bandwidth": "median"}}, "fixed bandwidth"),
    ({"method": "brownian", "stopping": [{"kind": "bias-norm-below"}]}, "needs a bias"),
    ({"method": "skmd", "stopping": [{"kind": "uncertainty-above"}]}, "needs a committee"),
    ({"method": "brownian", "acquisitions": 3}, "acquires something"),
    ({"method": "brownian", "stride": 0}, "acquires none"),
    ({"kernel": {"amplitude_schedule": {"hold": 3, "end": 3, "final": 0.5}}}, "comes after hold"),
    ({"descriptor": {"name": "coordinates", "atoms": [1]}}, "atoms belongs to node features"),
    ({"metad": {"bias_factor": 1.0}}, "metad.bias_factor: "),
]


@pytest.mark.parametrize(("values", "told"), WRONG, ids=[told for _, told in WRONG])
def test_what_is_wrong_is_told_in_one_sentence(values, told):
    with pytest.raises(SelectronError) as error:
        sample_options(values)
    text = str(error.value)
    assert told in text
    assert text.endswith(".")
    assert "\n" not in text


def models_of(model):
    """A model and all that its fields hold."""
    found = [model]
    for field in model.model_fields.values():
        for kind in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                found += models_of(kind)
    return found


def test_every_option_is_documented_in_the_schema():
    for model in models_of(SampleOptions):
        for name, field in model.model_fields.items():
            assert field.description or name == "kind", f"{model.__name__}.{name}"
    assert "bandwidth" in str(SampleOptions.model_json_schema())


@pytest.mark.parametrize("method", METHODS)
def test_options_survive_yaml(method, tmp_path):
    options = sample_options({"method": method, "kernel": {"bandwidth_schedule": "paper"}, "particles": 7})
    (tmp_path / "o.yaml").write_text(yaml.safe_dump(options.model_dump(mode="json")))
    assert load_yaml(tmp_path / "o.yaml", SampleOptions) == options


def test_the_file_in_the_documentation_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "sampling.md").read_text(encoding="utf-8")
    (tmp_path / "o.yaml").write_text(page.split("```yaml\n")[1].split("```")[0], encoding="utf-8")
    options = load_yaml(tmp_path / "o.yaml", SampleOptions)
    assert options.model_copy(update={"iterations": None}) == sample_options({
        "method": "a-skmd",
        "temperature_K": 50,
        "timestep_fs": 0.1,
        "damping_amu_per_ps": 75,
        "particles": 30,
        "initial": {"relax": True},
        "descriptor": {"name": "node-features"},
        "kernel": {"bandwidth": "initial-median", "amplitude_schedule": "paper", "bandwidth_schedule": "paper"},
        "max_displacement_A": 0.1,
        "stopping": [{"kind": "bias-norm-below"}, {"kind": "fixed-steps", "steps": 2000}],
        "geometry": {"min_distance_A": 0.5, "max_force_eV_A": 200, "max_energy_rise_eV": 5, "max_step_A": 2},
    })  # fmt: skip


def test_the_first_criterion_that_is_listed_gives_the_reason():
    options = sample_options({"stopping": [{"kind": "bias-norm-below", "threshold": 2.0}, {"kind": "fixed-steps", "steps": 9}],
                              "kernel": {"bandwidth": 1.0}})  # fmt: skip
    assert [one.name for one in stopping_of(options, {})] == ["bias-norm-below", "fixed-steps"]


def test_the_papers_schedule_halves_amplitude_and_bandwidth_at_iteration_300():
    from ase import Atoms

    surface = load_potential("surface:mueller-brown")
    options = sample_options({"kernel": {"amplitude_schedule": "paper", "bandwidth_schedule": "paper", "bandwidth": 0.3},
                              "step_size": 2e-4, "kT_eV": 20.0, "stopping": [{"kind": "fixed-steps", "steps": 1}]})  # fmt: skip
    points = [Atoms("X", [[-0.5 + 0.01 * i, 1.4, 0.0]]) for i in range(3)]
    sampler = build([surface], points, options, particles=3, stopping=stopping_of(options, {}), seed=0)
    state, seen = sampler.init(), {}
    for _ in range(302):
        seen[int(state.iteration) + 1] = (float(state.amplitude), float(state.bandwidth))
        state, _ = sampler.step(state)
    assert seen[1] == seen[250] == (1.0, pytest.approx(0.3))
    assert seen[275] == (pytest.approx(0.75), pytest.approx(0.225))
    assert seen[300] == seen[302] == (pytest.approx(0.5), pytest.approx(0.15))
