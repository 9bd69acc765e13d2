"""Before the first round: the model, the pool's candidates, and the sets of known and held-out structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ase import Atoms

from selectron.campaign.artifacts import file_digest
from selectron.campaign.candidates import Refused, hold_out, index_pool, usable_structures
from selectron.campaign.context import Campaign, bare
from selectron.campaign.labelling import label_all, labels_depend_on, left_out, unlabelled_of
from selectron.config.campaign import CampaignConfig
from selectron.config.sections import HeldOut
from selectron.errors import SelectronError
from selectron.structures import Checks, structure_hash
from selectron.structures.formats import find_files
from selectron.structures.repeats import other_states_line
from selectron.training.labels import labelled_set, weights_of

_WHOLE_UP_TO_BYTES = 1 << 30


class Inputs(NamedTuple):
    """What all rounds start from; names are those of artifacts.

    ``candidates`` is None in sampling mode, ``train`` and ``validation`` where there are none; ``facts`` are for the report.
    """

    key: str
    model: str
    candidates: str | None
    train: str | None
    test: str
    validation: str | None
    facts: dict[str, Any]


def read_inputs(campaign: Campaign) -> Inputs:
    """Reads and divides what the configuration names, labels what is to be labelled, and keeps all as artifacts.

    Raises SelectronError where something cannot be used, or has changed since the campaign began.
    """
    config = campaign.config
    digests = {path: _digest(Path(path)) for path in _files(config)}
    known = campaign.state.fact("files")
    if known is None:
        campaign.state.set_facts({"files": digests})
    else:
        _refuse_changes(known, digests, campaign.folder)
    described = config.model_dump(mode="json", include={"seed", "pool", "model", "train", "test", "validation"})
    campaign.reporter.stage("inputs", "", 0)
    stage = campaign.state.stage("inputs", {"config": described, "files": digests}, lambda: _divide(campaign))
    found = stage.output
    test = _with_labels(campaign, config.test, found["test"], "test")
    validation = None
    if config.validation is not None:
        validation = _with_labels(campaign, config.validation, found["validation"], "validation")
    return Inputs(stage.key, found["model"], found["index"], found["train"], test, validation, found)


def model_checks(config: CampaignConfig) -> Checks:
    """What a structure has to satisfy to be used at all."""
    from selectron.potentials import load_potential

    potential = load_potential(config.model.file, head=config.model.head)
    if config.pool is None:
        return Checks(elements=potential.elements, isolated_atoms=False)
    return Checks(
        elements=potential.elements,
        min_distance_A=config.pool.min_distance_A,
        max_atoms=config.pool.max_atoms,
        isolated_atoms=False,
    )


def _divide(campaign: Campaign) -> dict[str, Any]:
    from selectron.potentials.load import FOUNDATION_MODELS, model_file

    config, artifacts = campaign.config, campaign.artifacts
    if config.model.file.startswith("ase:"):
        raise SelectronError("An ASE calculator cannot be fine-tuned: name a mace-torch .model file for the campaign.")
    output: dict[str, Any] = {
        "model": artifacts.put_file(model_file(config.model.file)),
        "model_name": config.model.file,
    }
    foundation = FOUNDATION_MODELS.get(config.model.file)
    output["model_licence"] = foundation.licence if foundation else "MIT" if config.model.file == "embedded" else None
    checks = model_checks(config)
    held: list[tuple[str, HeldOut]] = [("test", config.test)]
    if config.validation is not None:
        held.append(("validation", config.validation))
    refused: list[Refused] = []
    taken: set[str] = set()  # hashes that must not be picked, nor stand in two sets
    sets: dict[str, list[Atoms]] = {}
    for name, part in held:
        if part.files is not None:
            structures, bad = usable_structures(part.files, checks, name)
            sets[name] = [atoms for atoms in structures if structure_hash(atoms) not in taken]
            if not sets[name]:
                raise SelectronError(f"No structure of the {name} set is left: all stand in the test set too.")
            refused.append(bad)
            taken |= {structure_hash(atoms) for atoms in sets[name]}
    output |= {"index": None, "candidates": 0, "pool": 0, "repeated": 0}
    if config.pool is not None:
        pool = campaign.pool(config.pool.files)
        index, bad = index_pool(pool, checks, [part.group_by for _, part in held], campaign.reporter)
        refused.append(bad)
        total = len(index)
        index = index.without(taken)
        for column, (name, part) in enumerate(held):
            if part.fraction is not None:
                aside, index = hold_out(index, part, column, total=total, seed=config.seed)
                sets[name] = [_sourced(pool[int(i)], *pool.source(int(i))) for i in aside.places]
                taken |= aside.hashes()
        if not len(index):
            raise SelectronError("Nothing is left to pick: the test and validation sets hold the whole pool.")
        output |= {"index": artifacts.put(index.write, ".npz"), "candidates": len(index)}
        output |= {"pool": len(pool), "repeated": bad.repeated}
    train: list[Atoms] = []
    if config.train is not None:
        structures, bad = usable_structures(config.train.files, replace(checks, isolated_atoms=True), "training")
        refused.append(bad)
        train = [atoms for atoms in structures if structure_hash(atoms) not in taken]
        output["held_out_of_train"] = len(structures) - len(train)
    output["train"] = _keep(campaign, train, need_labels=config.train is not None and config.train.fit, what="training")
    for name, part in held:
        output[name] = _keep(campaign, sets[name], need_labels=part.labels == "file", what=name)
    others = sum(one.other_states for one in refused)
    if others:
        campaign.reporter.say(f"{other_states_line(others, 'data')}.")
    quarantine = [entry for one in refused for entry in one.quarantine]
    output["quarantined"] = len(quarantine)
    content = Refused(0, quarantine).as_csv()
    output["quarantine"] = artifacts.put_bytes(content, ".csv") if quarantine else None
    output["sizes"] = {"train": len(train), **{name: len(structures) for name, structures in sets.items()}}
    return output


def _sourced(atoms: Atoms, path: str, index: int) -> Atoms:
    atoms.info["source"], atoms.info["source_index"] = path, index
    return atoms


def _keep(campaign: Campaign, structures: Sequence[Atoms], *, need_labels: bool, what: str) -> str | None:
    """The artifact of ``structures``, with their labels where they are needed; raises SelectronError where they lack."""
    named = [bare(atoms, source=atoms.info["source"], source_index=atoms.info["source_index"]) for atoms in structures]
    if not need_labels:
        return campaign.keep(named)
    from selectron.oracles.base import Label
    from selectron.oracles.store import with_label

    found, _, said = labelled_set(structures, what=what)
    for line in said:
        campaign.reporter.say(line)
    for atoms, one in zip(named, found, strict=True):
        atoms.info.update(weights_of(one))
    labels = [Label(one.energy_eV, one.forces, one.stress) for one in found]
    return campaign.keep([with_label(atoms, label) for atoms, label in zip(named, labels, strict=True)])


def _with_labels(campaign: Campaign, part: HeldOut, name: str, what: str) -> str:
    """The artifact ``name`` as it is, or with labels of the oracle where they are to come from there."""
    if part.labels == "file":
        return name
    campaign.reporter.stage(f"label-{what}", "", 0)
    inputs = {"structures": name, **labels_depend_on(campaign.config.oracle)}
    again = f"{what} set without labels"

    def labels() -> dict[str, Any]:
        """A set without any label is no output: what is wrong with the oracle may be mended, and is then tried again."""
        output = label_all(campaign, name, f"labels of the {what} set", retry_failures=bool(campaign.state.fact(again)))
        if output["labelled"] is None:
            campaign.state.set_facts({again: True})
            raise SelectronError(
                f"The oracle gave no label for any structure of the {what} set (the first: {unlabelled_of(output)[0]}). Once "
                f"the cause is gone, selectron resume {campaign.folder} tries them again."
            )
        return output

    done = campaign.state.stage(f"label-{what}", inputs, labels)
    reasons = unlabelled_of(done.output)
    if reasons:
        campaign.reporter.say(left_out(what, reasons, len(done.output["labels"])))
    return str(done.output["labelled"])


def _files(config: CampaignConfig) -> list[str]:
    """All files of structures that the campaign reads, in order."""
    parts = [config.pool, config.train, config.test, config.validation]
    patterns = [pattern for part in parts if part is not None for pattern in part.files or []]
    patterns += config.sampling.starts if config.sampling is not None else []
    if not patterns:
        return []
    files, _ = find_files(list(dict.fromkeys(patterns)))
    return [str(path) for path in files]


def _digest(path: Path) -> str:
    """SHA-256 of a file; of the size and the two ends of one that is larger than a gibibyte."""
    size = path.stat().st_size
    if size <= _WHOLE_UP_TO_BYTES:
        return file_digest(path)
    from hashlib import sha256

    with open(path, "rb") as stream:
        first = stream.read(_WHOLE_UP_TO_BYTES // 16)
        stream.seek(-len(first), 2)
        return sha256(str(size).encode() + first + stream.read()).hexdigest()


def _refuse_changes(known: dict[str, str], now: dict[str, str], folder: Path) -> None:
    changed = sorted(path for path in known.keys() | now.keys() if known.get(path) != now.get(path))
    if changed:
        what = "has changed" if changed[0] in known and changed[0] in now else "has come or gone"
        raise SelectronError(
            f"{changed[0]} {what} since the campaign in {folder} began: put it back, or begin another campaign."
        )
