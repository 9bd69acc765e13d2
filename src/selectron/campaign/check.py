"""Whether a campaign can run: files, elements, labels, features, oracle and trainer, before anything is spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from selectron.config.campaign import CampaignConfig
from selectron.config.sampling import SamplingSection
from selectron.config.sections import HeldOut
from selectron.config.yaml_document import KeyPath, YamlDocument
from selectron.errors import SelectronError
from selectron.structures import Pool

LOOKED_AT = 2000
"""Structures of each file set that are looked at; a campaign itself looks at all."""


@dataclass
class Findings:
    """What was found: mistakes, each with its place in the file, and facts that a person should know."""

    document: YamlDocument
    mistakes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def wrong(self, where: KeyPath, text: str) -> None:
        """Notes a mistake at ``where``."""
        self.mistakes.append(f"{self.document.place(where)}: {text.rstrip('.')}.")

    def attempt(self, where: KeyPath, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, or None and a mistake at ``where``."""
        try:
            return make()
        except SelectronError as error:
            self.wrong(where, str(error))
            return None

    def raise_mistakes(self) -> None:
        """Raises SelectronError with all mistakes, if there are any."""
        if len(self.mistakes) == 1:
            raise SelectronError(self.mistakes[0])
        if self.mistakes:
            listed = "\n".join(f"  {line}" for line in self.mistakes)
            raise SelectronError(f"{self.document.path.name} has {len(self.mistakes)} mistakes:\n{listed}")


def check_campaign(document: YamlDocument, config: CampaignConfig) -> Findings:
    """Everything about ``config`` that can be known without spending labels or training."""
    from selectron.potentials import load_potential

    findings = Findings(document)
    model = config.model
    _check_device(findings, ("model", "device"), model.device)
    _check_device(findings, ("trainer", "device"), config.trainer.device)
    potential = None
    if model.file.startswith("ase:"):
        findings.wrong(("model", "file"), "an ASE calculator cannot be fine-tuned; name a mace-torch .model file")
    elif not findings.mistakes:
        potential = findings.attempt(("model", "file"), lambda: load_potential(model.file, head=model.head))
    elements = None if potential is None else potential.elements
    pool = None
    if config.pool is not None:
        pool = _pool(findings, ("pool", "files"), config.pool.files)
        if pool is not None:
            _check_pool(findings, config, pool, elements)
    if config.sampling is not None and potential is not None:
        _check_sampling(findings, config.sampling, potential)
    for name in ("test", "validation"):
        part: HeldOut | None = getattr(config, name)
        if part is not None and part.files is not None:
            held = _pool(findings, (name, "files"), part.files)
            _check_set(findings, (name, "files"), held, elements, labels=part.labels == "file")
        elif part is not None and pool is not None:
            _check_held_out(findings, (name,), part, pool)
    if config.train is not None:
        train = _pool(findings, ("train", "files"), config.train.files)
        _check_set(findings, ("train", "files"), train, elements, labels=config.train.fit)
    if potential is not None:
        _check_features(findings, config, potential)
    _check_stages(findings, config)
    return findings


def _check_device(findings: Findings, where: KeyPath, device: str) -> None:
    import torch

    kind, _, number = device.partition(":")
    if kind not in {"cpu", "cuda"} or (number and not number.isdecimal()):
        findings.wrong(where, f"{device!r} is no device; say cpu, cuda or cuda:N")
    elif kind == "cuda" and torch.cuda.device_count() <= int(number or 0):
        findings.wrong(where, f"this machine has no GPU {device}")


def _pool(findings: Findings, where: KeyPath, patterns: list[str]) -> Pool | None:
    """The pool of ``patterns``; a mistake for each pattern that finds nothing usable."""
    for place, pattern in enumerate(patterns):
        opened = findings.attempt((*where, place), lambda one=pattern: Pool.open([one]))  # type: ignore[misc]
        if opened is None:
            return None
        findings.notes += opened.warnings
    return Pool.open(patterns)


def _structures(pool: Pool) -> Iterator[Atoms]:
    entries = (entry for chunk in pool.chunks(128) for _, entry in chunk)
    return (entry for entry in islice(entries, LOOKED_AT) if isinstance(entry, Atoms))


def _check_pool(findings: Findings, config: CampaignConfig, pool: Pool, elements: frozenset[int] | None) -> None:
    _check_set(findings, ("pool", "files"), pool, elements, labels=False)
    held = [part for part in (config.test, config.validation) if part is not None and part.fraction is not None]
    free = round(len(pool) * (1.0 - sum(part.fraction or 0.0 for part in held)))
    if config.budget.labels > free:
        findings.notes.append(
            f"The budget is {config.budget.labels} labels, but about {free} structures can be picked: the campaign ends when "
            "nothing is left."
        )


def _check_set(
    findings: Findings, where: KeyPath, pool: Pool | None, elements: frozenset[int] | None, *, labels: bool
) -> None:
    """Elements that the model lacks, and labels that are missing."""
    if pool is None:
        return
    unknown, strangers, looked_at, unlabelled = set[int](), 0, 0, 0
    for atoms in _structures(pool):
        looked_at += 1
        lacking = set() if elements is None else {int(z) for z in np.unique(atoms.numbers)} - elements
        unknown |= lacking
        strangers += bool(lacking)
        unlabelled += labels and not _has_labels(atoms)
    if unlabelled:
        findings.wrong(
            where,
            f"{unlabelled} of the first {looked_at} structures have no energy or no forces, which are needed here; "
            + (
                "say 'labels: oracle' to have them made"
                if where[0] != "train"
                else "say 'fit: false' to leave them unfitted"
            ),
        )
    if unknown:
        names = ", ".join(chemical_symbols[z] for z in sorted(unknown))
        text = f"{strangers} of the first {looked_at} structures of {where[0]} have elements that the model lacks ({names})"
        if strangers == looked_at:
            findings.wrong(where, text)
        else:
            findings.notes.append(f"{text}: they will be left out.")


def _check_sampling(findings: Findings, section: SamplingSection, potential: Any) -> None:
    """Starting structures and options that do not fit each other or the model; nothing is computed."""
    from selectron.campaign.sampled import starting_structures
    from selectron.sampling.run import run_sampling

    starts = findings.attempt(("sampling", "starts"), lambda: starting_structures(section))
    if starts is not None:
        findings.attempt(("sampling",), lambda: run_sampling(potential, starts, section.run_options(0)))


def _has_labels(atoms: Atoms) -> bool:
    from selectron.training.labels import labelled

    with suppress(SelectronError):
        return bool(labelled([atoms]))
    return False


def _check_held_out(findings: Findings, where: KeyPath, part: HeldOut, pool: Pool) -> None:
    some = list(_structures(pool))
    if part.labels == "file":
        without = sum(not _has_labels(atoms) for atoms in some)
        if without:
            findings.wrong(
                where,
                f"{without} of the first {len(some)} structures of the pool have no energy or no forces, so that they cannot "
                "be held out with labels of the file; say 'labels: oracle'",
            )
    if part.group_by is not None:
        values = {str(atoms.info[part.group_by]) for atoms in some if part.group_by in atoms.info}
        if len(values) < 2:
            found = "no structure of the pool has it" if not values else "all structures share one value of it"
            findings.wrong((*where, "group_by"), f"{part.group_by!r} divides nothing: {found}")


def _check_features(findings: Findings, config: CampaignConfig, potential: Any) -> None:
    from selectron.features import FeatureOptions, make_features

    chosen = config.features
    options = FeatureOptions(dim=chosen.dim, parameters=chosen.parameters, probes=chosen.probes)
    features = findings.attempt(("features", "name"), lambda: make_features(chosen.name, potential, options))
    if features is not None and config.selector.rank_by == "max-atom" and not getattr(features, "per_atom", False):
        findings.wrong(("selector", "rank_by"), "max-atom needs exact force rows: force-ntk with 'probes: exact'")


def _check_stages(findings: Findings, config: CampaignConfig) -> None:
    from selectron.oracles import make_oracle

    findings.attempt(("oracle",), lambda: make_oracle(config.oracle).prepare())
    trainer = config.trainer
    if trainer.kind != "mace":
        findings.wrong(("trainer", "kind"), f"{trainer.kind} fits planar surfaces; a campaign fine-tunes a mace")
    if shutil.which(trainer.interpreter) is None:
        findings.wrong(("trainer", "interpreter"), f"there is no program {trainer.interpreter}")
    for place, pattern in enumerate(trainer.replay):
        findings.attempt(("trainer", "replay", place), lambda one=pattern: Pool.open([one]))  # type: ignore[misc]
    shortlist = config.selector.shortlist
    if shortlist is not None and shortlist < config.budget.per_round:
        findings.wrong(
            ("selector", "shortlist"),
            f"a shortlist of {shortlist} is too short for {config.budget.per_round} picks a round",
        )
    if config.label_store is not None and not Path(config.label_store).parent.is_dir():
        findings.wrong(("label_store",), f"the folder {Path(config.label_store).parent} does not exist")
