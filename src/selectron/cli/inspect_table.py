"""The table of ``selectron inspect``: a line or a few for everything that was looked at."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from selectron.inspection.result import Energies, Forces, Inspection, Judgement, ModelErrors, Place, Range
from selectron.wording import counted, listed

SHOWN, SHOWN_VALUES, WORST = 12, 6, 10
"""Names, and values of one name, that are listed before the rest is only counted."""

_JOIN = "\ue000"  # no space, so that a line is not broken there


def print_table(found: Inspection, console: Console) -> None:
    """Prints ``found`` within the width of ``console``."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, lines in _rows(found):
        for i, line in enumerate(lines):
            table.add_row(Text(name if i == 0 else "", style="bold"), Text(line))
    with console.capture() as text:
        console.print(table, highlight=False)
    # what belongs together is joined by spaces that do not break, and a table's lines are filled up to its width
    for line in text.get().replace(_JOIN, " ").splitlines():
        console.out(line.rstrip(), highlight=False)


def _rows(found: Inspection) -> Iterator[tuple[str, list[str]]]:
    yield "files", [_files(found.files)]
    yield "structures", _structures(found)
    makeup = found.makeup
    if found.usable:
        sizes, total = makeup.sizes, sum(makeup.atoms.values())
        yield "atoms", [f"{_span(sizes, ',.0f')} a structure; {total:,} in all"]
        yield "elements", [_elements(found)]
        yield "periodicity", _periodicity(found)
    yield "labels", _labels(found)
    if found.energies is not None and found.usable and (found.energies.per_atom_eV.count or found.energies.ignored):
        yield "  energies", _energies(found.energies, found)
    if found.forces is not None and found.forces.largest_eV_A.count:
        yield "  forces", _forces(found.forces, found)
    if found.stress is not None:
        yield "  stresses", [f"in {found.stress.count:,}; largest component {_span(found.stress, '.3g')} eV/Å³"]
    if found.isolated_atoms:
        yield "isolated atoms", [_isolated(found)]
    if found.usable:
        yield "charges", _charges(found)
        yield "repeats", _repeats(found)
    if found.constraints:
        yield "held fixed", [_counts(found.constraints)]
    if found.weights:
        yield "weights", [_weight(name, one.range, one.zeros) for name, one in found.weights.items()]
    if found.texts:
        yield "names", [f"{key}: {_values(values)}" for key, values in found.texts.items()]
    yield "other keys", _keys(found)
    if found.warnings:
        yield "warnings", found.warnings
    if found.model is not None:
        yield "model", list(_model(found.model, found))
    yield "for training", [_verdict(found)]


def _files(files: list[str]) -> str:
    if len(files) <= 3:
        return ", ".join(files)
    return f"{len(files):,} files, from {files[0]} to {files[-1]}"


def _structures(found: Inspection) -> list[str]:
    parts = [f"{found.usable:,} usable" if found.usable != found.frames else "all usable"]
    if found.isolated_atoms:
        parts.append(counted(found.isolated_atoms, "isolated atom"))
    if found.refused_count:
        parts.append(f"{found.refused_count:,} refused")
    lines = [f"{found.frames:,}: {listed(parts)}"]
    for kind in found.refusal_kinds[:SHOWN]:
        first = kind.first
        where = f"structure {first.index}" + (f" of {Path(first.file).name}" if len(found.files) > 1 else "")
        lines.append(
            f"{kind.count:,} refused: {first.reason} ({where}{', and others like it' if kind.count > 1 else ''})"
        )
    return lines


def _elements(found: Inspection) -> str:
    structures, atoms = found.makeup.structures, found.makeup.atoms
    if len(structures) <= SHOWN:
        each = [f"{symbol} in {structures[symbol]:,} ({counted(atoms[symbol], 'atom')})" for symbol in structures]
        return ", ".join(one.replace(" ", _JOIN) for one in each)
    return f"{len(structures)}, in so many structures: " + _counts(structures, len(structures))


def _periodicity(found: Inspection) -> list[str]:
    makeup = found.makeup
    lines = [_counts(makeup.kinds)]
    if makeup.with_vacuum:
        lines += [
            f"{count:,} with more than 8 Å of vacuum along {axes}, where they are periodic"
            for axes, count in list(makeup.with_vacuum.items())[:SHOWN]
        ]
    return lines


def _labels(found: Inspection) -> list[str]:
    if found.label_source is None:
        if not found.labelled:
            return ["none"]
        return ["no one source of labels", *(_label_key(found, key) for key in list(found.label_keys)[:SHOWN])]
    keys = [f"{key} in {found.label_keys[key]:,}" for key in found.label_source.values() if key]
    return [listed(keys), *(f"{note}" for note in found.label_notes)]


def _label_key(found: Inspection, key: str) -> str:
    found_range = found.label_ranges[key]
    span = f": {_span(found_range, '.4g')}" if found_range.count else ""
    return f"{key} in {found.label_keys[key]:,}{span}"


def _energies(one: Energies, found: Inspection) -> list[str]:
    lines = [f"{_span(one.per_atom_eV, '.3f')} eV/atom"] if one.per_atom_eV.count else []
    if one.ignored:
        lines.append(f"{one.ignored:,} more count for nothing (config_energy_weight is 0)")
    if one.determined:
        lines.append(f"beyond what the composition explains they spread by {1e3 * one.spread_eV_atom:.3g} meV/atom")
        if one.outliers:
            lines.append(f"{one.outliers:,} far off from that:")
            lines += [f"  {_where(place, found)}: {1e3 * place.value:+,.0f} meV/atom" for place in one.worst]
    return lines


def _forces(one: Forces, found: Inspection) -> list[str]:
    lines = [f"the largest on an atom: {_span(one.largest_eV_A, '.3g')} eV/Å"]
    if one.zero:
        lines.append(f"all exactly zero in {counted(one.zero, 'structure')} of several atoms")
    if one.large:
        lines.append(f"above 50 eV/Å in {counted(one.large, 'structure')}:")
        lines += [f"  {_where(place, found)}: {place.value:.0f} eV/Å" for place in one.worst]
    return lines


def _isolated(found: Inspection) -> str:
    each = []
    for symbol, count in found.isolated_elements.items():
        energies = found.isolated_energies_eV.get(symbol, [])
        several = f" ({count})" if count > 1 else ""
        each.append(f"{symbol}{several}" + (f" {' or '.join(f'{e:.3f}' for e in energies[:3])} eV" if energies else ""))
    return f"{found.isolated_atoms:,}: {', '.join(each)}; they give references and are not trained on"


def _charges(found: Inspection) -> list[str]:
    one = found.charges
    if not (one.charges or one.multiplicities or one.unread):
        lines = ["none stated: charge 0 and multiplicity 1 are assumed"]
    else:
        lines = [
            _stated("charge", one.charges, one.assumed_charge, 0),
            _stated("multiplicity", one.multiplicities, one.assumed_multiplicity, 1),
        ]
        if one.keys:
            lines.append(f"stated as {_counts(one.keys)}")
    lines += [
        f"{key} in {counted(count, 'structure')} is not understood (one says {one.unread_examples[key]})"
        for key, count in one.unread.items()
    ]
    if one.odd_assumed:
        lines.append(
            f"{counted(one.odd_assumed, 'molecule')} with an odd number of electrons and no multiplicity: label them with "
            "--multiplicity lowest"
        )
    if one.impossible:
        lines.append(f"{counted(one.impossible, 'molecule')} with a multiplicity that their electrons do not allow")
    return lines


def _stated(what: str, values: dict[int, int], assumed: int, usual: int) -> str:
    sign = "+d" if what == "charge" else "d"
    each = [f"{format(value, sign) if value else '0'} in {count:,}" for value, count in values.items()]
    if assumed:
        each.append(f"not stated in {assumed:,} ({usual} is assumed)")
    return f"{what}: {', '.join(each)}"


def _repeats(found: Inspection) -> list[str]:
    one = found.repeats
    if not one.duplicates:
        return ["none"]
    lines = [f"{counted(one.duplicates, 'structure')} with the same atoms in the same places as an earlier one"]
    if one.other_state:
        lines.append(f"{one.other_state:,} of them with another charge or multiplicity")
    if one.other_label:
        lines.append(f"{one.other_label:,} of them with another energy than before:")
        lines += [
            f"  {_where(later, found)}: {later.value:.3g} eV apart from {earlier.index}"
            for earlier, later in found.repeat_examples
        ]
    return lines


def _weight(name: str, values: Range, zeros: int) -> str:
    zero = f", of which {zeros:,} are 0" if zeros else ""
    return f"{name} in {values.count:,}: {_span(values, '.3g')}{zero}"


def _keys(found: Inspection) -> list[str]:
    told = {*found.label_keys, *found.texts, *found.weights, *found.charges.keys}
    info = {key: count for key, count in found.info_keys.items() if key not in told}
    arrays = {key: count for key, count in found.array_keys.items() if key not in told}
    results = {key: count for key, count in found.result_keys.items() if key not in told}
    kinds = (("info", info), ("arrays", arrays), ("results of a calculator", results))
    lines = [f"{what}: {_counts(keys)}" for what, keys in kinds if keys]
    return lines or ["none"]


def _model(one: Judgement, found: Inspection) -> Iterator[str]:
    which = f"all {one.of:,}" if one.structures == one.of else f"{one.structures:,} of {one.of:,}, drawn by chance"
    yield f"{one.model} on {which} structures"
    if one.lacking:
        yield f"it does not know {_counts(one.lacking)} (structures)"
    if one.before is not None and one.after is not None:
        yield f"errors: {_errors(one.before)}"
        if one.shift:
            yield f"after the shift of level: {_errors(one.after)}"
            each = (
                f"{symbol} {1e3 * value.eV:+,.0f}"
                + (f" ± {1e3 * value.error_eV:,.0f}" if isfinite(value.error_eV) else " (open)")
                for symbol, value in one.shift.items()
            )
            yield "shift of level, meV for an atom: " + ", ".join(text.replace(" ", _JOIN) for text in each)
            if not one.shift_determined:
                yield "the compositions do not determine every element by itself: their sums hold, others may not"
    if one.worst:
        yield "the ten that stand out most:" if len(one.worst) == WORST else "those that stand out most:"
        for place in one.worst:
            of = f" of {Path(place.file).name}" if len(found.files) > 1 else ""
            numbers = [f"energy {place.energy_meV_atom:+,.0f} meV/atom" if isfinite(place.energy_meV_atom) else ""]
            numbers.append(f"forces {place.force_rmse_eV_A:.3g} eV/Å off" if isfinite(place.force_rmse_eV_A) else "")
            if place.why == "forces":
                numbers.reverse()
            yield f"  structure {place.index}{of}, {place.formula}: {', '.join(filter(None, numbers))}"
    if one.structures:
        yield (
            f"energies and forces took {one.seconds:.1f} s; energy-ntk features of all {one.of:,} for selectron select take "
            f"about {_duration(one.features_s)}"
        )


def _errors(one: ModelErrors) -> str:
    energy = f"energy MAE {one.energy_mae_meV_atom:,.1f}, RMSE {one.energy_rmse_meV_atom:,.1f} meV/atom"
    forces = f"forces MAE {one.force_mae_eV_A:.3f}, RMSE {one.force_rmse_eV_A:.3f} eV/Å"
    known = [
        text for text, value in ((energy, one.energy_mae_meV_atom), (forces, one.force_mae_eV_A)) if isfinite(value)
    ]
    return "; ".join(known) or "none"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _verdict(found: Inspection) -> str:
    if found.trainable:
        return "selectron train takes these labels as they are"
    if found.refusal:
        return "selectron train would refuse this; see the last line"
    return "no labels; as a pool for selectron select it can be used"


def _values(counts: dict[str, int]) -> str:
    if len(counts) > 2 * SHOWN_VALUES:
        return f"{len(counts)} values, such as {_counts(dict(list(counts.items())[:3]))}"
    return _counts(counts, SHOWN_VALUES)


def _counts(counts: dict[str, int], at_most: int = SHOWN) -> str:
    each = [f"{name}{_JOIN}{count:,}" for name, count in list(counts.items())[:at_most]]
    rest = len(counts) - len(each)
    return ", ".join(each) + (f" and {rest:,} more" if rest else "")


def _span(values: Range, how: str) -> str:
    low, middle, high = (format(value, how) for value in values[1:])
    return low if low == high else f"{low} to {high} (median {middle})"


def _where(place: Place, found: Inspection) -> str:
    of = f" of {Path(place.file).name}" if len(found.files) > 1 else ""
    return f"structure {place.index}{of}, {place.formula}"
