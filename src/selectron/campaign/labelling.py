"""Labels for picks: through the store, so that none is bought twice, and in the order of the picks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from ase import Atoms

from selectron.campaign.artifacts import check_room
from selectron.campaign.context import Campaign
from selectron.campaign.state import Stage
from selectron.errors import SelectronError
from selectron.oracles import (
    Labelled,
    LabelStore,
    OracleFailure,
    OracleOptions,
    label_structures,
    make_oracle,
)
from selectron.oracles.store import structure_key
from selectron.oracles.written import labelled_atoms
from selectron.structures import structure_hash
from selectron.wording import counted

if TYPE_CHECKING:
    from selectron.campaign.records import PickRecord


def label_picks(campaign: Campaign, picks: Stage) -> Stage:
    """The labels of what the stage ``picks`` picked.

    The output has an entry a pick, in their order (hash, whether it has a label, the reason why not, energy, what it
    cost), and ``labelled``: the artifact of those with a label.
    """
    arm, round = picks.arm, picks.round
    campaign.reporter.stage("label", arm, round)
    name = picks.output["structures"]
    inputs = {"structures": name, **labels_depend_on(campaign.config.oracle), "picks": picks.key}
    return campaign.state.stage("label", inputs, lambda: label_all(campaign, name, "labels"), arm=arm, round=round)


def labels_depend_on(oracle: OracleOptions) -> dict[str, Any]:
    """What of ``oracle`` decides which labels a stage gives out."""
    return {"oracle": make_oracle(oracle).fingerprint, "max_force_eV_A": oracle.max_force_eV_A}


def label_all(campaign: Campaign, name: str, what: str, *, retry_failures: bool = False) -> dict[str, Any]:
    """Labels for all structures of the artifact ``name``; failures are entries with a reason.

    Known failures are called for again only with ``retry_failures``.
    """
    config, structures = campaign.config, campaign.read([name])
    results: dict[int, Labelled] = {}
    campaign.reporter.start(what, len(structures))
    with LabelStore(campaign.label_store) as store:
        for _ in range(2):  # once more for those that failed by no fault of theirs
            wanted = [i for i in range(len(structures)) if i not in results or results[i].blameless]
            if not wanted:
                break
            found = label_structures(
                [structures[i] for i in wanted],
                config.oracle,
                store,
                executor=campaign.executor(),
                retry_failures=retry_failures,
            )
            with closing(found):
                for one in found:
                    campaign.reporter.advance(wanted[one.index] not in results)
                    results[wanted[one.index]] = one
        if any(one.failure is not None and not one.reused for one in results.values()):
            check_room(campaign.folder)
        lost = [one for one in results.values() if one.blameless]
        if lost:
            raise SelectronError(
                f"{counted(len(lost), 'structure')} got no label, by no fault of their own ({lost[0].failure}); all other "
                "labels are kept: mend that, and the same command goes on."
            )
        fingerprint = make_oracle(config.oracle).fingerprint
        entries = [
            _entry(store, fingerprint, config.oracle, atoms, results[index]) for index, atoms in enumerate(structures)
        ]
    campaign.reporter.finish()
    for line in store.warnings:
        campaign.reporter.say(line)
    labelled = []
    for index, atoms in enumerate(structures):
        label = results[index].label
        if label is not None:
            labelled.append(labelled_atoms(atoms, label, config.oracle))
    return {
        "labels": entries,
        "labelled": campaign.keep(labelled),
        "count": len(labelled),
        "core_s": sum(entry["core_s"] for entry in entries),
    }


def unlabelled_of(output: Mapping[str, Any]) -> list[str]:
    """Why structures have no label in what :func:`label_all` gave, one reason each."""
    return [one["reason"] or "no reason was given" for one in output["labels"] if not one["ok"]]


def left_out(what: str, reasons: Sequence[str], total: int) -> str:
    """How many of the ``total`` structures of the set ``what`` the oracle gave no label, for people; no full stop."""
    lost = f"{len(reasons)} of {counted(total, 'structure')}"
    return f"{what} set: {lost} got no label and are left out (the first: {reasons[0]})"


def states_line(picks: Iterable[PickRecord]) -> str | None:
    """Charges and multiplicities of the labels of ``picks``, for people.

    None where all are stated neutral singlets, and where labels do not depend on either.
    """
    labels = {(pick.structure_hash, pick.state): pick.assumed for pick in picks if pick.labelled and pick.state}
    counts = Counter(state for _, state in labels)
    assumed = Counter(state for (_, state), by_default in labels.items() if by_default)
    if counts.keys() <= {(0, 1)} and not assumed:
        return None
    parts: list[str] = []
    for state, count in counts.most_common():
        some = assumed[state]
        how = "" if not some else " (assumed)" if some == count else f" (assumed for {some:,})"
        parts.append(f"{state[0]} {state[1]} for {counted(count, 'label') if not parts else f'{count:,}'}{how}")
    return f"Charge and multiplicity: {', '.join(parts)}."


def _entry(
    store: LabelStore, fingerprint: str, options: OracleOptions, atoms: Atoms, result: Labelled
) -> dict[str, Any]:
    """What the store says of a label or failure: the same, whether it was bought just now or before an interruption."""
    wall_s, core_s, attempts, time = result.wall_s, result.core_s, result.attempts, ""
    used = known = None
    try:
        used = options.used(atoms)
    except OracleFailure:
        pass
    else:
        key = structure_key(atoms, used.state, open_vectors=options.sees_open_vectors).key
        has_label = result.label is not None or result.refused
        known = store.get(key, fingerprint) if has_label else store.failure(key, fingerprint)
    if known is not None:
        wall_s, core_s, attempts, time = known.wall_s, known.core_s, known.attempts, known.time
    return {
        "hash": structure_hash(atoms),
        "state": None if used is None or not options.told else list(used.state),
        "assumed": used is not None and not (used.charge_from or used.multiplicity_from),
        "ok": result.label is not None,
        "reason": result.failure,
        "energy_eV": None if result.label is None else result.label.energy_eV,
        "wall_s": wall_s,
        "core_s": core_s,
        "attempts": attempts,
        "time": time,
    }
