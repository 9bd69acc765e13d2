"""Beginning a campaign in a folder, and going on with one."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Generator
from concurrent.futures import Executor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from selectron import __version__
from selectron.campaign.artifacts import check_room
from selectron.campaign.context import Campaign, Reporter, Trainer, TrainingSteps, Unwatched, Watcher
from selectron.campaign.lock import campaign_lock
from selectron.campaign.state import FILE, FORMAT, CampaignState
from selectron.config.campaign import CampaignConfig
from selectron.errors import SelectronError
from selectron.execution import make_executor
from selectron.oracles.base import versions_of
from selectron.training.outcome import FineTuned

MAY_CHANGE = frozenset({"name", "budget", "stop", "baseline", "execution"})
"""Sections that may differ when a campaign is begun again in its folder: what is done stays valid under all of them."""


def begin(config: CampaignConfig, text: str, folder: Path) -> list[str]:
    """Makes ``folder`` the home of a campaign; where it is one already, takes over what may change.

    Gives what a person should know of the changes, a sentence each.

    Raises SelectronError where the folder holds something else, or a campaign with another configuration.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / FILE).exists() and not _only_lock(folder):
        raise SelectronError(f"The folder {folder} holds something else; name a new one with -o.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SelectronError(f"Cannot make the folder {folder}: {error.strerror}.") from None
    with campaign_lock(folder):
        state = CampaignState(folder)
        try:
            new = config.model_dump(mode="json")
            old = state.fact("config")
            if old is not None:
                # keys that are newer than the campaign have their defaults in it
                old = CampaignConfig.model_validate(old).model_dump(mode="json")
                different = sorted(key for key in new.keys() | old.keys() if new.get(key) != old.get(key))
                fixed = [key for key in different if key not in MAY_CHANGE]
                if fixed:
                    raise SelectronError(
                        f"The campaign in {folder} was begun with another '{fixed[0]}': give a new folder with -o, or go on "
                        f"with: selectron resume {folder}"
                    )
            facts: dict[str, Any] = {"config": new, "text": text, "format": FORMAT}
            if old is None:
                facts |= {"created": time.time(), "versions": versions(), "machine": machine()}
            state.set_facts(facts)
        finally:
            state.close()
    return [] if old is None else _about_budget(old["budget"]["labels"], config.budget.labels)


def _about_budget(before: int, now: int) -> list[str]:
    if now >= before:
        return []
    return [
        f"The budget is {now} labels now and was {before}: what was bought and learned beyond it stays in the folder, is "
        "shown no more, and comes back with the old budget."
    ]


def run_campaign(folder: Path, *, watcher: Watcher | None = None, fine_tune: Trainer | None = None) -> None:
    """Runs the campaign in ``folder`` to its end; what is done already is not done again.

    Args:
        folder: of :func:`begin`.
        watcher: who is told.
        fine_tune: another trainer than :func:`selectron.training.fine_tune.fine_tune`, with its signature.

    Raises:
        SelectronError: there is no campaign, another process runs it, the disk is full, an input cannot be used. Whatever
            was finished is kept, and the same call goes on from there.
    """
    if not (folder / FILE).is_file():
        raise SelectronError(f"There is no campaign in {folder}: it has no {FILE}.")
    from selectron.training.fine_tune import training_steps

    with ExitStack() as stack:
        stack.enter_context(campaign_lock(folder))
        state = CampaignState(folder)
        stack.callback(state.close)
        given = state.fact("config")
        if given is None:
            raise SelectronError(
                f"The campaign in {folder} was never begun: run selectron run campaign.yaml -o {folder}"
            )
        state.artifacts.sweep()
        workers = _Workers(stack)
        config = CampaignConfig.model_validate(given)
        campaign = Campaign(
            config=config,
            folder=folder,
            state=state,
            reporter=Reporter(state, watcher or Unwatched()),
            executor=lambda: workers.get(config),
            training_steps=training_steps if fine_tune is None else _at_a_stretch(fine_tune),
        )
        from selectron.campaign.loop import play

        state.rewind()
        try:
            play(campaign)
        except SelectronError:
            raise
        except Exception:
            # what a full disk does to other programs' code has many names
            check_room(folder)
            raise


class _Workers:
    """The executor, started when the first label is wanted."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack, self._executor = stack, None  # type: ExitStack, Executor | None

    def get(self, config: CampaignConfig) -> Executor:
        if self._executor is None:
            self._executor = self._stack.enter_context(make_executor(config.execution))
        return self._executor


def _at_a_stretch(fine_tune: Trainer) -> TrainingSteps:
    """``fine_tune`` as a generator that never waits."""

    def steps(*arguments: Any, **options: Any) -> Generator[None, None, FineTuned]:
        yield from ()
        return fine_tune(*arguments, **options)

    return steps


def versions() -> dict[str, str]:
    """Versions of what a campaign's numbers depend on."""
    found = versions_of(["torch", "mace-torch", "e3nn", "numpy", "scipy", "ase", "tblite", "pyscf"])
    return {"python": platform.python_version(), **found, "selectron": __version__}


def machine() -> dict[str, Any]:
    """Where a campaign was begun."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": platform.machine(),
        "cores": os.cpu_count(),
    }


def _only_lock(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} <= {"lock"}
