"""The sections of a campaign file that belong to no other room: data, model, features, selector, budget, stopping rules."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from selectron.config.fields import FilePattern, ModelFile
from selectron.config.load import Section

Quantity = Literal["force_rmse_eV_A", "force_mae_eV_A", "energy_rmse_meV_atom", "energy_mae_meV_atom"]
Files = Annotated[list[FilePattern], Field(min_length=1)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class PoolSection(Section):
    """Candidates from files."""

    files: Files
    """Files, globs or folders of structures; ``embedded`` is the pool that comes along."""

    min_distance_A: Annotated[float, Field(ge=0.0)] = 0.4
    """Structures with two atoms closer than this (Å) are left out."""

    max_atoms: PositiveInt | None = None
    """Structures with more atoms are left out."""


class ModelSection(Section):
    """The pretrained model."""

    file: ModelFile
    """A mace-torch ``.model`` file (a pickle: open only what you trust), ``embedded``, or a name of ``selectron models``."""

    device: str = "cpu"
    """Where features and errors are computed: cpu, cuda or cuda:N."""

    dtype: Literal["float32", "float64"] = "float32"
    """Precision of features and predictions."""

    head: str | None = None
    """Head of a model with several."""


class TrainingData(Section):
    """Structures that the pretrained model knows already."""

    files: Files
    """Files, globs or folders; ``embedded-train`` is the sample that comes along."""

    fit: bool = True
    """Whether their labels, which must then be of the oracle's level of theory, are fitted too; else they only tell the
    selector what is known."""


class HeldOut(Section):
    """Structures for measuring errors: from files, or a part of the pool that is never picked."""

    files: Files | None = None
    """Files, globs or folders; without them ``fraction`` says which part of the pool is held out."""

    fraction: Fraction | None = None
    """Part of the pool's structures."""

    group_by: str | None = None
    """Key of the structures' ``info``: structures that share its value are held out together, so that no near twin of
    a test structure can be picked. Without it single structures are drawn."""

    seed: int = 0
    """Of the draw."""

    labels: Literal["file", "oracle"] = "file"
    """Where reference energies and forces come from: the file, or the campaign's oracle (not counted in the budget)."""

    @model_validator(mode="after")
    def _one_of_two(self) -> HeldOut:
        if (self.files is None) == (self.fraction is None):
            raise ValueError("give either files or a fraction of the pool")
        if self.files is not None and self.group_by is not None:
            raise ValueError("group_by belongs to a fraction of the pool, not to files")
        return self


class FeaturesSection(Section):
    """What the posterior sees of a structure; see ``selectron features``."""

    name: Literal["activation", "energy-ntk", "force-ntk", "joint-ntk", "soap", "random", "random-activation"] = (
        "energy-ntk"
    )
    """The feature map."""

    dim: PositiveInt = 512
    """Length of the sketch."""

    parameters: Literal["all", "readout", "last-layer"] = "all"
    """Parameters of the NTK."""

    normalise: Literal["none", "per-atom", "unit"] = "none"
    """Rows are summed over atoms (none), averaged, or scaled to unit length."""

    probes: PositiveInt | Literal["exact"] = 4
    """Force rows a structure of the pool."""

    train_probes: PositiveInt | Literal["exact"] = 16
    """Force rows a structure of the training set."""

    energy_weight: PositiveFloat = 1.0
    """Weight of energies in the loss that joint-ntk stands for."""

    force_weight: PositiveFloat = 10.0
    """Weight of forces in that loss."""

    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Structures in a batch."""


class SelectorSection(Section):
    """How a batch is chosen; see ``selectron selectors``."""

    name: Literal["isd", "ipv", "irv", "lcmd", "maxdet", "fps", "kmeans++", "bait", "top-k", "herding", "random"] = (
        "isd"
    )
    """The selector."""

    by_chance: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Share of each batch that is drawn at random from all candidates first; the selector counts it as labelled."""

    shortlist: PositiveInt | None = None
    """It sees so many of the largest variances; without it all, up to 20,000."""

    rank_by: Literal["variance", "per-component", "per-atom", "max-atom"] = "variance"
    """What the shortlist goes by."""

    noise: PositiveFloat = 1e-3
    """Noise variance of the posterior, relative to the mean squared norm of a training row."""


class Budget(Section):
    """How much may be labelled. Only labels that were obtained count; failed calls are replaced and counted apart."""

    labels: PositiveInt
    """Labels in all."""

    per_round: PositiveInt
    """Labels a round; the model is fine-tuned after each."""

    failures_per_round: PositiveInt | None = None
    """Failed calls after which a round goes on with the labels that it has; by default as many as ``per_round``."""

    @model_validator(mode="after")
    def _round_in_budget(self) -> Budget:
        if self.per_round > self.labels:
            raise ValueError(f"per_round ({self.per_round}) is more than the budget of {self.labels} labels")
        return self


class TargetRule(Section):
    """Stop as soon as an error on the validation set is small enough."""

    quantity: Quantity = "force_rmse_eV_A"
    """Which error."""

    below: PositiveFloat
    """The target, in the unit that the quantity names."""


class PlateauRule(Section):
    """Stop when rounds no longer help: the best error of the last rounds is hardly below the best before them."""

    quantity: Quantity = "force_rmse_eV_A"
    """Which error on the validation set."""

    rounds: PositiveInt = 3
    """So many last rounds are looked at."""

    improvement: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.02
    """Relative improvement of the best error that still counts as help."""


class VarianceRule(Section):
    """Stop when nothing uncertain is left in the pool.

    The posterior variance is calibrated on the validation set: the factor c² = Σ e² / Σ s², with e the error of a structure
    (root mean square over force components, or the energy error an atom) and s² its posterior variance per component
    (per atom), turns a variance into an expected error c·s.
    """

    quantity: Literal["force_rmse_eV_A", "energy_rmse_meV_atom"] = "force_rmse_eV_A"
    """Which error the variance is calibrated to."""

    below: PositiveFloat
    """Expected error, in the unit that the quantity names."""

    quantile: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    """This part of what is left has to lie below."""


class StoppingRules(Section):
    """When a campaign ends before its budget is spent; all need a validation set. Rules are looked at after each round."""

    target: TargetRule | None = None
    """An error that is good enough."""

    plateau: PlateauRule | None = None
    """Rounds that no longer help."""

    variance: VarianceRule | None = None
    """Nothing uncertain left to pick."""
