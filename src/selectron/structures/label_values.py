"""The numbers behind the keys: an energy, forces and a stress of one structure, as one source of labels has them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms

from selectron.errors import SelectronError
from selectron.structures.label_weights import counts_for_nothing


class LabelSource(NamedTuple):
    """The keys of a file that labels come from.

    ``energy``, ``forces`` and ``stress`` stand for the results of the structure's calculator, everything else for keys of
    ``info`` and per-atom arrays; ``forces`` and ``stress`` are None where there are none. A ``stress`` whose name holds
    "virial" is a virial.
    """

    energy: str
    forces: str | None
    stress: str | None = None


class LabelValues(NamedTuple):
    """What one structure's labels are: energy in eV, forces (N, 3) in eV/Å, stress (3, 3) in eV/Å³; None: it has none."""

    energy_eV: float | None
    forces: np.ndarray | None
    stress: np.ndarray | None


def results_of(atoms: Atoms) -> Mapping[str, Any]:
    """What the structure's calculator holds, without asking it to compute anything."""
    return (getattr(atoms.calc, "results", None) or {}) if atoms.calc is not None else {}


def places(atoms: Atoms) -> Iterator[Mapping[str, Any]]:
    """Where a label may stand, in the order in which a name is looked up."""
    yield from (results_of(atoms), atoms.info, atoms.arrays)


def value_of(atoms: Atoms, key: str) -> Any:
    """What stands under ``key`` as the calculator's result, in ``info`` or as an array; None where nothing does."""
    return next((place[key] for place in places(atoms) if place.get(key) is not None), None)


def read_labels(atoms: Atoms, source: LabelSource, *, index: int, what: str = "training") -> LabelValues:
    """The labels of structure ``index`` of the ``what`` set, from ``source``.

    The stress is (1/V) dE/dε, positive under tension, as ASE and MACE have it. A virial is −dE/dε (GAP's and mace-torch's
    sign: mace-torch 0.3.16 returns −dE/dε as "virials" and (1/V) dE/dε as "stress"), so that stress = −virial / V, with V the
    volume of the cell. A stress needs a volume, thus three periodic directions, and is None without them; so is one that
    holds numbers that are not finite, since programs write such where they computed none.

    A label whose weight is 0 is not read: it is what its owner says not to use.

    Raises SelectronError for an energy or forces that are text, not finite or of the wrong shape, and a stress that is text
    or of the wrong shape.
    """
    where = f"Structure {index} of the {what} set"
    energy_key = None if counts_for_nothing(atoms, "energy") else source.energy
    forces_key = None if counts_for_nothing(atoms, "forces") else source.forces
    stress_key = None if counts_for_nothing(atoms, "stress") else source.stress
    energy, forces = _numbers(atoms, energy_key, where), _numbers(atoms, forces_key, where)
    if energy is not None and energy.size != 1:
        raise SelectronError(f"{where} has {energy.size} numbers as its {source.energy}, where an energy is one.")
    if forces is not None and forces.shape != (len(atoms), 3):
        shape = " x ".join(str(size) for size in forces.shape) or "one number"
        raise SelectronError(
            f"{where} has {source.forces} of the shape {shape}, where forces of its {len(atoms)} atoms are "
            f"{len(atoms)} x 3 numbers."
        )
    for key, numbers in ((source.energy, energy), (source.forces, forces)):
        if numbers is not None and not np.isfinite(numbers).all():
            wrong = numbers[~np.isfinite(numbers)].flat[0]
            raise SelectronError(f"{where} has the {key} {wrong}: not a finite number.")
    return LabelValues(None if energy is None else float(energy.flat[0]), forces, _stress(atoms, stress_key, where))


def has_volume(atoms: Atoms) -> bool:
    """Whether a stress means anything: three periodic directions and a cell that is not flat."""
    return bool(atoms.pbc.all()) and bool(np.isfinite(atoms.cell.array).all()) and atoms.cell.volume > 0.0


def _stress(atoms: Atoms, key: str | None, where: str) -> np.ndarray | None:
    found = _numbers(atoms, key, where)
    if key is None or found is None:
        return None
    if found.size not in (6, 9):
        raise SelectronError(
            f"{where} has {found.size} numbers as its {key}: six in Voigt order (xx, yy, zz, yz, xz, xy) or nine are right."
        )
    if not np.isfinite(found).all() or not has_volume(atoms):
        return None
    values = found.ravel()
    tensor = values[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3) if values.size == 6 else values.reshape(3, 3)
    if np.abs(tensor - tensor.T).max() > 1e-3 * np.abs(tensor).max() + 1e-6:
        raise SelectronError(f"{where} has a {key} that is not symmetric: {tensor.tolist()}.")
    tensor = 0.5 * (tensor + tensor.T)
    return -tensor / atoms.cell.volume if "virial" in key.lower() else tensor


def _numbers(atoms: Atoms, key: str | None, where: str) -> np.ndarray | None:
    """What stands under ``key`` as float64 of whatever shape; None where nothing does."""
    given = None if key is None else value_of(atoms, key)
    if given is None:
        return None
    try:
        found = np.asarray(given)
        if found.dtype.kind not in "iuf":
            raise TypeError
        return found.astype(np.float64)
    except (TypeError, ValueError):
        raise SelectronError(f"{where} has the {key} {_shortened(given)}, which is not a number.") from None


def _shortened(given: Any) -> str:
    if isinstance(given, np.ndarray):
        given = [*given.ravel()[:3].tolist(), "..."]
    text = repr(given)
    return text if len(text) <= 60 else text[:57] + "..."
