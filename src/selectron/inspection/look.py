"""One pass over files: every structure is shown to each census once, and nothing of it is kept but a few numbers."""

from __future__ import annotations

from collections import Counter

import numpy as np
from ase import Atoms
from ase.data import chemical_symbols

from selectron.errors import SelectronError
from selectron.inspection.columns import LabelColumns
from selectron.inspection.compositions import Compositions, fit_compositions
from selectron.inspection.electrons import ElectronsCensus
from selectron.inspection.isolated import IsolatedCensus
from selectron.inspection.keys import KeysCensus
from selectron.inspection.makeup import MakeupCensus, counts_of
from selectron.inspection.refusals import RefusalCensus
from selectron.inspection.repeats import RepeatsCensus
from selectron.inspection.result import Energies, Forces, Inspection, Place, Range
from selectron.inspection.texts import TextsCensus, WeightsCensus
from selectron.structures import Checks, Pool, UnreadableFrame
from selectron.structures.electronic_state import StateError, stated
from selectron.structures.heads import check_heads, head_of
from selectron.structures.isolated import is_isolated_atom
from selectron.structures.label_source import REFERENCE, RESULTS, LabelCensus, LabelKeys
from selectron.structures.label_values import LabelSource
from selectron.structures.label_weights import counts_for_nothing, label_weights
from selectron.wording import counted

LARGE_FORCE_eV_A = 50.0
NAMED = 5
"""How many of the worst are named."""


class Look:
    """Takes the structures of ``pool`` in one by one, in order, and says what it saw."""

    def __init__(self, pool: Pool, keys: LabelKeys, checks: Checks, head: str | None = None) -> None:
        self._pool, self._checks, self._head = pool, checks, head
        self._heads: Counter[str | None] = Counter()
        self.labels, self.columns = LabelCensus(keys), LabelColumns(keys)
        self._refusals, self._isolated = RefusalCensus(), IsolatedCensus()
        self._makeup, self._keys = MakeupCensus(), KeysCensus()
        self._texts, self._weights = TextsCensus(), WeightsCensus()
        self._electrons = ElectronsCensus()
        self._repeats, self._compositions = RepeatsCensus(), Compositions()
        self._frames = 0
        self.lacking: dict[str, int] = {}
        """Structures by element that the model does not know."""
        self._weightless: list[int] = []
        self._faults: dict[str, str] = {}

    def add(self, place: int, entry: Atoms | UnreadableFrame) -> None:
        """Takes structure ``place`` of the pool."""
        self._frames += 1
        if isinstance(entry, UnreadableFrame):
            self._faults.setdefault("frame", f"Structure {place} of the training set cannot be read: {entry.reason}.")
            self._refuse(place, entry.reason)
            return
        index, keys = len(self.labels), set(self.labels.candidates(entry))
        self._heads[head_of(entry)] += 1
        for census in (self.labels, self._keys, self._texts, self._weights):
            census.add(entry)
        try:
            label_weights(entry, index=index)
            found = stated(entry)
        except StateError as error:
            wrong = str(error)
        except SelectronError as error:
            self._faults.setdefault("weight", str(error))
            wrong = about_one(str(error))
        else:
            wrong = ""
        if reason := self._checks.check(entry) or wrong:
            self._refuse(place, reason)
            self._note_lacking(entry)
        elif is_isolated_atom(entry):
            self._isolated.add(entry, keys)
        else:
            if counts_for_nothing(entry, "energy"):
                self._weightless.append(len(self.columns.places))
            counts = counts_of(entry)
            self.columns.add(place, index, entry, keys)
            self._makeup.add(entry, counts)
            self._compositions.add(counts)
            self._repeats.add(entry, self._electrons.add(entry, found))

    def result(self) -> Inspection:
        """What was seen."""
        source, why = self._source()
        shown = source or self._likely()
        read = list(filter(None, shown)) if shown is not None else []
        for key in read:
            for place, sentence in self.columns.faults[key]:
                self._refuse(place, about_one(sentence))
        isolated = self._isolated.elements.total()
        usable = self._frames - self._refusals.count - isolated
        counts = self.labels.counts()
        nothing = "" if usable else self._nothing_usable(isolated)
        repeats = self._repeats.result(self.columns.column(read[0] if read else None))
        return Inspection(
            files=self._pool.files,
            frames=self._frames,
            usable=usable,
            refused=self._refusals.listed(),
            refused_count=self._refusals.count,
            refusal_kinds=self._refusals.kinds(),
            warnings=list(self._pool.warnings),
            makeup=self._makeup.result(),
            label_source=None if source is None else source._asdict(),
            labelled=bool(counts),
            trainable=not (why or nothing),
            why=why or nothing or None,
            isolated_atoms=isolated,
            isolated_elements=dict(self._isolated.elements),
            isolated_energies_eV=self._isolated.energies_eV(read[0] if read else None),
            charges=self._electrons.result(),
            repeats=repeats,
            repeat_examples=[(self._place(i, off), self._place(j, off)) for i, j, off in repeats.examples],
            label_keys=counts,
            label_ranges={key: self._range(key) for key in counts},
            label_notes=[] if source is None else self.labels.notes(source),
            energies=None if shown is None else self._energies(shown.energy),
            forces=None if shown is None or shown.forces is None else self._forces(shown.forces),
            stress=None if shown is None or shown.stress is None else Range.of(self.columns.column(shown.stress)),
            weights=self._weights.result(),
            texts=self._texts.result(),
            info_keys=dict(self._keys.info.most_common()),
            array_keys=dict(self._keys.arrays.most_common()),
            result_keys=dict(self._keys.results.most_common()),
            constraints={},
        )

    def places(self, source: LabelSource | None) -> np.ndarray:
        """Places in the pool of what is usable and, where there is a source of labels, has one that can be read."""
        places = np.array(self.columns.places)
        if source is None:
            return places
        rows = np.isfinite(self.columns.column(source.energy)) | np.isfinite(self.columns.column(source.forces))
        faulty = [place for key in filter(None, source) for place, _ in self.columns.faults[key]]
        return places[rows & ~np.isin(places, faulty)]

    def _note_lacking(self, atoms: Atoms) -> None:
        known = self._checks.elements
        if known is None:
            return
        for z in np.unique(atoms.numbers).tolist():
            if z not in known and 0 < z < len(chemical_symbols):
                symbol = chemical_symbols[z]
                self.lacking[symbol] = self.lacking.get(symbol, 0) + 1

    def _refuse(self, place: int, reason: str) -> None:
        self._refusals.add(place, self._pool.source(place), reason)

    def _source(self) -> tuple[LabelSource | None, str]:
        """Where the labels come from, and why ``train`` would not take them, in the order in which it would notice."""
        if not self.labels.counts():
            return None, self._faults.get("frame", "") or "The structures have no labels."
        try:
            check_heads(self._heads, self._head)
            source = self.labels.source()
        except SelectronError as error:
            return None, self._faults.get("frame", str(error))
        faults = [min(self.columns.faults[key])[1] for key in filter(None, source) if self.columns.faults[key]]
        return source, next(iter([*self._faults.values(), *faults]), "")

    def _likely(self) -> LabelSource | None:
        """Whose numbers are shown where not all structures have one source."""
        counts, keys = self.labels.counts(), self.labels.keys
        for energy, forces in ((keys.energy, keys.forces), (REFERENCE.energy, REFERENCE.forces), RESULTS[:2]):
            if energy in counts:
                return LabelSource(energy, forces if forces in counts else None)
        return None

    def _nothing_usable(self, isolated: int) -> str:
        if isolated == self._frames:
            return (
                f"All {counted(isolated, 'structure')} are isolated atoms, which give references and are never trained on nor "
                "picked: nothing else is there."
            )
        first = self._refusals.listed()[0].reason
        return f"None of the {counted(self._frames, 'structure')} can be used (the first: {first})."

    def _range(self, key: str) -> Range:
        column = self.columns.column(key)
        return Range.of(column / self._atoms() if self.columns.role(key) == "energy" else column)

    def _atoms(self) -> np.ndarray:
        table, of, _ = self._compositions.matrix()
        return table.sum(axis=1)[of] if len(of) else np.zeros(0)

    def _energies(self, key: str) -> Energies:
        column = self.columns.column(key)
        column[self._weightless] = np.nan
        table, of, _ = self._compositions.matrix()
        fit = fit_compositions(table, of, column)
        far = fit.outliers() if fit.determined else []
        return Energies(
            per_atom_eV=Range.of(column / fit.atoms),
            spread_eV_atom=fit.spread_eV_atom,
            determined=fit.determined,
            outliers=len(far),
            worst=[self._place(one.row, one.off_eV_atom) for one in far[:NAMED]],
            ignored=len(self._weightless),
        )

    def _forces(self, key: str) -> Forces:
        column = self.columns.column(key)
        large = np.flatnonzero(np.nan_to_num(column) > LARGE_FORCE_eV_A)
        worst = large[np.argsort(-column[large], kind="stable")][:NAMED]
        return Forces(
            largest_eV_A=Range.of(column),
            large=len(large),
            worst=[self._place(int(row), float(column[row])) for row in worst],
            zero=int(((column == 0.0) & (self._atoms() > 1)).sum()),
        )

    def _place(self, row: int, value: float) -> Place:
        place = int(self.columns.places[row])
        source = self._pool.source(place)
        return Place(source.path, source.index, self._pool[place].get_chemical_formula(), value)


def about_one(sentence: str) -> str:
    """A sentence about a structure of a set, without naming the set: "it has …"."""
    rest = sentence.partition(" set ")[2]
    return f"it {rest.removesuffix('.')}" if rest else sentence
