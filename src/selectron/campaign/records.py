"""What a campaign has done so far, as data for reports, status and export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ase import Atoms

from selectron.campaign.artifacts import Artifacts
from selectron.campaign.curves import Saving, saving
from selectron.campaign.measuring import QUANTITIES, Predictions
from selectron.campaign.state import Activity
from selectron.config.campaign import CampaignConfig
from selectron.structures import Source


@dataclass(frozen=True)
class Measured:
    """Errors of a model on a set; None for a number that is not finite.

    Energies in meV/atom, forces in eV/Å; ``path`` is the archive of the predictions.
    """

    structures: int
    force_rmse_eV_A: float | None
    force_mae_eV_A: float | None
    energy_rmse_meV_atom: float | None
    energy_mae_meV_atom: float | None
    path: Path

    def predictions(self) -> Predictions:
        """Predicted and reference energies and forces, for parity plots."""
        return Predictions.read(self.path)


@dataclass(frozen=True)
class PickRecord:
    """One structure that was picked, and what came of it.

    | field            | meaning                                                                               |
    |------------------|---------------------------------------------------------------------------------------|
    | rank             | in its round, from 1; replacements of failed calls go on counting                     |
    | source           | file and place in it                                                                  |
    | score, variance  | the selector's criterion (None for picks by chance) and the posterior variance; None   |
    |                  | both in the random arm                                                                |
    | nearest          | the training structure nearest in feature space, or None                              |
    | nearest_round    | the round in which that was labelled, 0 for the initial training set                   |
    | distance         | to it                                                                                 |
    | represents       | how many candidates are nearest to this pick of its batch; None for picks by chance   |
    | weight           | what its label counts for in training, 1 in the mean of its batch                     |
    | labelled         | whether the oracle gave a label; None while it has not been asked                     |
    | failure          | the reason where it did not                                                           |
    | state            | charge and multiplicity of the label; None where it does not depend on them           |
    | assumed          | whether the structure stated neither                                                  |
    | shared           | the same label was bought before: by the other arm, or by another campaign            |
    | wall_s, core_s   | what the label cost when it was bought                                                |
    | structure        | the atoms, with the label's energy and forces as calculator where there is one         |
    """

    arm: str
    round: int
    rank: int
    structure_hash: str
    source: Source
    formula: str
    atoms: int
    score: float | None
    variance: float | None
    nearest: Source | None
    nearest_round: int | None
    distance: float | None
    represents: int | None
    weight: float
    labelled: bool | None
    failure: str | None
    state: tuple[int, int] | None
    assumed: bool
    shared: bool
    wall_s: float
    core_s: float
    structure: Atoms


@dataclass(frozen=True)
class TrainingRecord:
    """One fine-tuning.

    ``history`` holds an entry an epoch, as :class:`selectron.training.progress.Epoch` names them (None for a loss that is not
    finite); ``references`` the fitted shift of atomic energies (shift_eV and error_eV by element, significant, applied, note)
    or None; ``untouched``, ``before`` and ``after`` are errors on the validation set under the names of
    :data:`selectron.campaign.measuring.QUANTITIES`: of the model as given, with its new references, and at the end.
    """

    failure: str | None
    structures: int
    kept_epoch: int | None
    history: Sequence[Mapping[str, Any]]
    references: Mapping[str, Any] | None
    untouched: Mapping[str, Any] | None
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    warnings: Sequence[str]
    model: Path | None
    log: Path | None


@dataclass(frozen=True)
class Sampled:
    """The sampling run of a round.

    ``path`` holds the structures that could be picked (step, ensemble, particle, stopping_reason in ``info``), None where
    there are none; ``frames`` and ``acquired`` count what the run gave, ``left_out`` what failed a check; ``ended`` are
    trajectories that broke, as (step, ensemble, particle, reason). ``shared``: the other arm had the same run.
    """

    path: Path | None
    frames: int
    acquired: int
    candidates: int
    left_out: int
    ended: Sequence[tuple[int, int, int, str]]
    shared: bool


@dataclass(frozen=True)
class Uncertainty:
    """What may still be picked when a round begins.

    ``quantiles`` of its posterior variance, by probability; ``calibration`` (factor, expected, left) where the rule on
    variances is on, see :class:`selectron.campaign.stopping.Calibration`.
    """

    structures: int
    quantiles: Mapping[float, float]
    calibration: Mapping[str, float] | None


@dataclass(frozen=True)
class Cost:
    """Seconds of one kind of stage (inputs, sample, pick, label, train, measure), wall clock and processor time."""

    wall_s: float
    core_s: float


@dataclass(frozen=True)
class RoundRecord:
    """One round of one arm; what has not happened yet is None or empty. ``labels`` counts all the arm has after the round."""

    arm: str
    round: int
    labels: int
    sampled: Sampled | None
    picks: Sequence[PickRecord]
    left: Uncertainty | None
    training: TrainingRecord | None
    test: Measured | None
    validation: Measured | None
    costs: Mapping[str, Cost]
    notes: Sequence[str]

    @property
    def finished(self) -> bool:
        """Whether the round's model has been measured."""
        return self.test is not None


@dataclass(frozen=True)
class ArmRecord:
    """The selected arm, or its random twin. ``stop`` and ``stop_rule`` say why it ended, None while it has not."""

    name: str
    rounds: Sequence[RoundRecord]
    stop: str | None
    stop_rule: str | None
    start: RoundRecord | None

    @property
    def labels(self) -> int:
        """Labels so far."""
        return self.rounds[-1].labels if self.rounds else 0

    @property
    def failures(self) -> list[PickRecord]:
        """Picks that the oracle could not label."""
        return [pick for one in self.rounds for pick in one.picks if pick.labelled is False]

    @property
    def model(self) -> Path | None:
        """The newest fine-tuned model, None before there is one."""
        found = [
            one.training.model for one in self.rounds if one.training is not None and one.training.model is not None
        ]
        return found[-1] if found else None

    def curve(self, quantity: str = "force_rmse_eV_A", of: str = "test") -> tuple[list[int], list[float | None]]:
        """The learning curve: labels and errors, the first point that of the pretrained model.

        ``quantity`` is one of :data:`selectron.campaign.measuring.QUANTITIES`, ``of`` "test" or "validation".
        """
        points = ([self.start] if self.start else []) + list(self.rounds)
        measured = [(one.labels, getattr(one, of)) for one in points if getattr(one, of) is not None]
        return [labels for labels, _ in measured], [getattr(one, quantity) for _, one in measured]


@dataclass(frozen=True)
class CampaignRecord:
    """Everything that a report needs.

    | field         | meaning                                                                                  |
    |---------------|------------------------------------------------------------------------------------------|
    | config, text  | the configuration, and the YAML as the user wrote it                                     |
    | created       | seconds since 1970                                                                       |
    | versions, machine | with what and where it was begun                                                     |
    | facts         | of the inputs: sizes of the sets, pool, candidates, repeated, quarantined, model_name, model_licence |
    | unlabelled    | by set (test, validation): reasons why the oracle gave no label for structures of it, which are left out |
    | start         | errors of the pretrained model, as round 0                                               |
    | selected, random | the arms; random is None without a twin                                               |
    | activity      | what is being done, or was last                                                          |
    | process       | the process that runs it now, or None                                                    |
    | costs         | seconds by kind of stage, both arms together                                             |
    | plane_paths   | :class:`selectron.campaign.plane.Plane` of the last screening, and of picks that it lacks  |
    | oracle_calls, oracle_core_s, oracle_wall_s | distinct labels and failed calls of this campaign, and what they cost |
    """

    folder: Path
    config: CampaignConfig
    text: str
    created: float
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    facts: Mapping[str, Any]
    unlabelled: Mapping[str, Sequence[str]]
    start: RoundRecord | None
    selected: ArmRecord
    random: ArmRecord | None
    activity: Activity | None
    process: int | None
    costs: Mapping[str, Cost]
    oracle_calls: int
    oracle_core_s: float
    oracle_wall_s: float
    artifacts: Artifacts
    train_path: Path | None
    test_path: Path | None
    validation_path: Path | None
    quarantine_path: Path | None
    start_model: Path | None
    plane_paths: Sequence[Path]

    @property
    def arms(self) -> list[ArmRecord]:
        """The selected arm first."""
        return [self.selected] + ([self.random] if self.random is not None else [])

    @property
    def finished(self) -> bool:
        """Whether all arms have ended."""
        return all(arm.stop is not None for arm in self.arms)

    @cached_property
    def savings(self) -> dict[str, Saving]:
        """Labels at equal test error, by quantity; empty without a twin, and before both arms have a measured model."""
        if self.random is None or not all(any(one.finished for one in arm.rounds) for arm in self.arms):
            return {}
        found = {name: saving(name, self.selected.curve(name), self.random.curve(name)) for name in QUANTITIES}
        return {name: one for name, one in found.items() if one is not None}
