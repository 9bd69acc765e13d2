"""What every stage of a campaign is given: configuration, state, and whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ase import Atoms

from selectron.campaign.artifacts import Artifacts
from selectron.campaign.state import Activity, CampaignState
from selectron.config.campaign import CampaignConfig
from selectron.potentials import Potential, load_potential, settle_threads
from selectron.structures import Pool, write_extxyz
from selectron.structures.constraints import of_nothing_computed
from selectron.structures.electronic_state import state_info
from selectron.training.outcome import FineTuned

SELECTED, RANDOM = "selected", "random"
KEPT = ("kind", "smiles", "reaction", "config_type")
"""What of a structure's ``info`` goes along besides charge and multiplicity: names that a report can show."""


class Watcher(Protocol):
    """Who is told how a campaign goes: parts of stages as a progress bar has them, and a line for what is done."""

    def start(self, label: str, total: int) -> None:
        """A part of ``total`` steps begins."""
        ...

    def advance(self, count: int) -> None:
        """``count`` more steps are done."""
        ...

    def finish(self) -> None:
        """The part is over."""
        ...

    def say(self, line: str) -> None:
        """One line for a person."""
        ...


class Unwatched:
    """Tells nobody."""

    def start(self, label: str, total: int) -> None:
        """Nothing."""

    def advance(self, count: int) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""


class Reporter:
    """Passes progress on to a watcher, and to the state for whoever asks for the status."""

    def __init__(self, state: CampaignState, watcher: Watcher) -> None:
        self._state, self._watcher = state, watcher
        state.tell = watcher.say
        for line in state.warnings:
            watcher.say(line)
        self._stage, self._arm, self._round = "", "", 0
        self._label, self._done, self._total, self._started = "", 0, 0, time.time()

    def stage(self, name: str, arm: str, round: int) -> None:
        """Which stage the progress from now on belongs to."""
        self._stage, self._arm, self._round = name, arm, round

    def start(self, label: str, total: int) -> None:
        """A part of ``total`` steps begins."""
        self._label, self._done, self._total, self._started = label, 0, total, time.time()
        where = f"round {self._round}, {self._arm}: " if self._arm else ""
        self._watcher.start(where + label, total)
        self._beat(at_once=True)

    def advance(self, count: int) -> None:
        """``count`` more steps are done."""
        self._done += count
        self._watcher.advance(count)
        self._beat()

    def finish(self) -> None:
        """The part is over."""
        self._watcher.finish()

    def say(self, line: str) -> None:
        """One line for a person."""
        self._watcher.say(line)

    def _beat(self, *, at_once: bool = False) -> None:
        now = time.time()
        activity = Activity(
            self._stage, self._arm, self._round, self._label, self._done, self._total, self._started, now
        )
        self._state.beat(activity, at_once=at_once)


Trainer = Callable[..., Any]
"""As :func:`selectron.training.fine_tune.fine_tune`."""
TrainingSteps = Callable[..., Generator[None, None, FineTuned]]
"""As :func:`selectron.training.fine_tune.training_steps`."""


@dataclass
class Campaign:
    """An open campaign.

    ``scratch`` holds what can be made again: feature rows of the round, folders of trainings.
    """

    config: CampaignConfig
    folder: Path
    state: CampaignState
    reporter: Reporter
    executor: Callable[[], Executor]
    training_steps: TrainingSteps
    pools: dict[tuple[str, ...], Pool] = field(default_factory=dict)

    @property
    def artifacts(self) -> Artifacts:
        """Where large results are."""
        return self.state.artifacts

    @property
    def scratch(self) -> Path:
        """Folder of what can be made again."""
        return self.folder / "scratch"

    @property
    def label_store(self) -> Path:
        """The SQLite file of labels: the campaign's own, unless another is named."""
        return Path(self.config.label_store) if self.config.label_store else self.state.path

    def head(self, model: str) -> str | None:
        """The head to take of the artifact ``model``: the pretrained model's, as a fine-tuned one has a single head."""
        return self.config.model.head if model == self.state.fact("start_model") else None

    def potential(self, model: str, *, dtype: str | None = None) -> Potential:
        """The artifact ``model`` on the campaign's device, in ``dtype`` or the campaign's own."""
        section = self.config.model
        potential = load_potential(
            self.artifacts.whole(model), device=section.device, dtype=dtype or section.dtype, head=self.head(model)
        )
        settle_threads([potential])
        return potential

    def pool(self, patterns: Sequence[str]) -> Pool:
        """The pool of ``patterns``, opened once."""
        key = tuple(patterns)
        if key not in self.pools:
            self.pools[key] = Pool.open(list(patterns))
        return self.pools[key]

    def read(self, names: Sequence[str]) -> list[Atoms]:
        """The structures of the artifacts ``names``, in order."""
        structures: list[Atoms] = []
        for name in names:
            with Pool.open([self.artifacts.whole(name)]) as pool:
                structures += pool[:]
        return structures

    def keep(self, structures: Sequence[Atoms]) -> str | None:
        """The artifact that holds ``structures`` as extended XYZ; None where there are none."""
        if not structures:
            return None
        return self.artifacts.put(lambda draft: write_extxyz(draft, structures, tell=self.reporter.say), ".extxyz")


def bare(atoms: Atoms, **info: Any) -> Atoms:
    """``atoms`` without labels of any origin; of its ``info`` :data:`KEPT` stays, and ``info`` comes in.

    What it states of its charge and multiplicity stays under ``charge`` and ``multiplicity``; where it contradicts itself, or
    holds a key that is not understood, those keys stay, so that the oracle can refuse it. So do constraints and arrays as
    :func:`~selectron.structures.constraints.of_nothing_computed` has them.
    """
    kept = {key: atoms.info[key] for key in KEPT if atoms.info.get(key) not in (None, "")} | state_info(atoms)
    return of_nothing_computed(atoms, {**kept, **info})
