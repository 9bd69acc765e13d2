"""What goes into a labelled structure besides the label, and the sentences about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ase import Atoms

from selectron.oracles.base import ElectronicState, Label, Used
from selectron.oracles.options import OracleOptions
from selectron.oracles.store import with_label
from selectron.structures.electronic_state import StateError, Unread, named, stated, with_state
from selectron.structures.label_values import results_of
from selectron.structures.old_labels import PREFIX, set_aside
from selectron.wording import counted, listed

_SHOWN = 8  # states that a line lists


def labelled_atoms(atoms: Atoms, label: Label, options: OracleOptions) -> Atoms:
    """A copy of ``atoms`` with ``label``, with the charge and multiplicity that it is for, and old labels set aside."""
    labelled = with_label(atoms, label)
    labelled.info = named(labelled)
    if options.told:
        state = options.state(atoms)._asdict()
        told = {what: state[what] if what in options.told else None for what in state}
        labelled.info = with_state(labelled.info, told["charge"], told["multiplicity"])
    return labelled


class StateTally:
    """Counts what charges and multiplicities labels are for, and what of them structures state; :meth:`lines` says it."""

    def __init__(self, options: OracleOptions, name: str) -> None:
        self._options, self._name = options, name
        self._stated: dict[ElectronicState, list[Used]] = {}
        self._assumed: Counter[ElectronicState] = Counter()
        self._unread: dict[str, list[Unread]] = {}
        self._unseen: Counter[str] = Counter()
        self._contradict = ""

    def add(self, atoms: Atoms) -> None:
        """Counts a structure that has a label."""
        try:
            found = stated(atoms)
        except StateError as error:  # only where labels do not depend on it
            self._contradict = self._contradict or str(error)
            return
        for one in (*found.unread_charge, *found.unread_multiplicity):
            self._unread.setdefault(one.key, []).append(one)
        usual = {"charge": 0, "multiplicity": 1}
        for what, value in (("charge", found.charge), ("multiplicity", found.multiplicity)):
            if what not in self._options.told and value not in (None, usual[what]):
                self._unseen[what] += 1
        if not self._options.told:
            return
        used = self._options.used(atoms)
        if used.charge_from or used.multiplicity_from:
            self._stated.setdefault(used.state, []).append(used)
        else:
            self._assumed[used.state] += 1

    def lines(self) -> Iterator[str]:
        """Sentences for a person: what was used, what was not understood, what the oracle does not see."""
        groups = sorted(self._stated.items(), key=lambda item: -len(item[1]))
        parts = [_group(state, used, first=not place) for place, (state, used) in enumerate(groups[:_SHOWN])]
        if len(groups) > _SHOWN:
            rest = sum(len(used) for _, used in groups[_SHOWN:])
            parts.append(f"others for {rest:,}")
        assumed: list[str] = []
        for state, count in self._assumed.most_common(_SHOWN):
            many = f"{count:,}" if parts or assumed else counted(count, "structure")
            assumed.append(f"{state.charge} {state.multiplicity} for {many}")
        said = ", ".join(parts)
        if assumed:
            none = "states" if self._assumed.total() == 1 else "state"
            said += f"{'; ' if said else ''}assumed {', '.join(assumed)} that {none} none"
        if said:
            yield f"Charge and multiplicity: {said}."
        for what, count in self._unseen.items():
            have = "states" if count == 1 else "state"
            yield (
                f"Warning: {counted(count, 'structure')} {have} a {what} that {self._name} is not told of: it does not enter "
                f"the labels{self._how_to_tell(what)}."
            )
        for key, seen in self._unread.items():
            has = "has" if len(seen) == 1 else "have"
            yield (
                f"Warning: {counted(len(seen), 'structure')} {has} {key} (the first: {seen[0].value}), which is not read as "
                "charge or multiplicity."
            )
        if self._contradict:
            yield f"Warning: {self._contradict}; {self._name} does not look at either."

    def _how_to_tell(self, what: str) -> str:
        """What to write for an ASE calculator; nothing can be written for the other oracles that see no electrons."""
        words = {"charge": '"{charge}"', "multiplicity": '"{multiplicity}" or "{unpaired}"'}[what]
        return f"; {words} among its arguments tells it" if self._options.kind == "ase" else ""


def _group(state: ElectronicState, used: list[Used], *, first: bool) -> str:
    names = dict.fromkeys(key for one in used for key in (*one.charge_from, *one.multiplicity_from))
    notes = [", ".join(names)]
    for what in ("charge", "multiplicity"):
        lacking = sum(not getattr(one, f"{what}_from") for one in used)
        if lacking:
            notes.append(f"{what} assumed" + ("" if lacking == len(used) else f" for {lacking:,}"))
    count = counted(len(used), "structure") if first else f"{len(used):,}"
    return f"{state.charge} {state.multiplicity} for {count} ({'; '.join(notes)})"


class OldLabels:
    """Counts structures that had labels before; :meth:`line` says what became of those."""

    def __init__(self) -> None:
        self._aside: Counter[str] = Counter()
        self._structures = self._replaced = 0

    def add(self, atoms: Atoms) -> None:
        """Counts a structure as it was read."""
        copy = atoms.copy()
        copy.calc = atoms.calc
        gone = set_aside(copy)
        replaced = bool({"energy", "forces"} & results_of(atoms).keys())
        self._aside.update(gone)
        self._replaced += replaced
        self._structures += bool(gone) or replaced

    def line(self) -> str | None:
        """One sentence, or None where there were none."""
        if not self._structures:
            return None
        parts = []
        if self._aside:
            kept = "is kept as" if len(self._aside) == 1 else "are kept as"
            parts.append(f"{listed(self._aside)} {kept} {listed(PREFIX + key for key in self._aside)}")
        if self._replaced:
            parts.append(f"energy and forces of a calculator are replaced in {self._replaced:,}")
        return f"{counted(self._structures, 'structure')} had labels before: {', '.join(parts)}."
