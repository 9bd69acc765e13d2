"""What an oracle is: a structure in, energy and forces at one level of theory out, or a failure with its reason."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from importlib import metadata
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from ase import Atoms

from selectron.structures.electronic_state import MOMENTS, ElectronicState, StateError, stated

Multiplicity = int | Literal["lowest"]
Cause = Literal["structure", "engine", "surroundings"]


class Label(NamedTuple):
    """What an oracle says of one structure of N atoms.

    | field     | shape  | unit  | sign and meaning                                                         |
    |-----------|--------|-------|--------------------------------------------------------------------------|
    | energy_eV | –      | eV    | total energy                                                             |
    | forces    | (N, 3) | eV/Å  | −∂E/∂r, float64, constraints not applied                                 |
    | stress    | (3, 3) | eV/Å³ | (1/V) ∂E/∂ε, positive under tension; None unless periodic in all directions |
    """

    energy_eV: float
    forces: np.ndarray
    stress: np.ndarray | None = None


class OracleFailure(Exception):
    """An oracle has no label for a structure: ``reason`` is one sentence for a person.

    ``final``: no other recipe can help (a wrong electron count, an element without parameters). ``cause``: whose fault it
    is; "engine" where that cannot be told, and a fresh engine has to decide; "surroundings" for a full disk and the like.
    """

    def __init__(self, reason: str, *, final: bool = False, cause: Cause = "structure") -> None:
        super().__init__(reason)
        self.reason, self.final, self.cause = reason, final, cause


class Used(NamedTuple):
    """The state that a label is for, and the keys that stated it; no keys: it was assumed."""

    state: ElectronicState
    charge_from: tuple[str, ...] = ()
    multiplicity_from: tuple[str, ...] = ()


class Oracle(Protocol):
    """A level of theory.

    ``settings`` (JSON) is all that a label depends on besides the structure and its electronic state, and
    ``fingerprint`` its hash; ``versions`` are those of the programs, by name.
    """

    name: str
    settings: dict[str, Any]
    versions: dict[str, str]
    fingerprint: str

    def prepare(self) -> None:
        """Imports and loads what labels need; raises SelectronError where that is missing."""
        ...

    def label(self, atoms: Atoms, *, attempt: int = 0) -> Label:
        """The label of ``atoms``.

        ``attempt`` chooses the recipe: 0 the usual one, 1 and more other ways (another start, more damping) to the same
        level of theory. ``atoms.info`` may hold ``charge`` and ``multiplicity``. Raises OracleFailure.
        """
        ...


def electronic_state(
    atoms: Atoms, charge: int, multiplicity: Multiplicity, *, given: Collection[str] = ("charge", "multiplicity")
) -> Used:
    """Charge and multiplicity of ``atoms``: what it states, else those given.

    "lowest" is 1 for an even number of electrons and 2 for an odd one. ``given`` names what a user chose for structures that
    state nothing: it wins over initial magnetic moments, and over keys that are not understood; a usual value does not.

    Raises OracleFailure where a structure contradicts itself, or holds a key that is not understood and nothing besides.
    """
    try:
        found = stated(atoms)
    except StateError as error:
        raise OracleFailure(str(error), final=True) from None
    for what, value, unread in (
        ("charge", found.charge, found.unread_charge),
        ("multiplicity", found.multiplicity, found.unread_multiplicity),
    ):
        telling = next((one for one in unread if one.telling), None)
        if value is None and telling is not None and what not in given:
            raise OracleFailure(
                f"{telling.key} is {telling.value}, which is not read as a {what}: state it as {what}=..., or give the {what} "
                f"of all structures that state none (--{what}, or {what} of the oracle)",
                final=True,
            )
    charge = charge if found.charge is None else found.charge
    if found.multiplicity_from == (MOMENTS,) and "multiplicity" in given:
        found = found._replace(multiplicity=None, multiplicity_from=())
    if found.multiplicity is not None:
        multiplicity = found.multiplicity
    elif multiplicity == "lowest":
        multiplicity = 1 + (int(atoms.numbers.sum()) - charge) % 2
    return Used(ElectronicState(charge, multiplicity), found.charge_from, found.multiplicity_from)


def check_electrons(atoms: Atoms, state: ElectronicState) -> None:
    """Raises OracleFailure where the number of electrons contradicts the multiplicity."""
    electrons = int(atoms.numbers.sum()) - state.charge
    unpaired = state.multiplicity - 1
    if electrons < 0:
        raise OracleFailure(f"charge {state.charge} leaves {electrons} electrons", final=True)
    if unpaired > electrons or (electrons - unpaired) % 2:
        possible = f"up to {electrons + 1}" if unpaired > electrons else "odd" if electrons % 2 == 0 else "even"
        raise OracleFailure(
            f"{electrons} electrons (charge {state.charge}) contradict multiplicity {state.multiplicity}: "
            f"their multiplicity is {possible}",
            final=True,
        )


def checked(label: Label, atoms: Atoms) -> Label:
    """``label`` in float64 and the right shapes; raises OracleFailure where a number in it is not finite."""
    forces = np.array(label.forces, dtype=np.float64)
    if forces.shape != (len(atoms), 3):
        raise OracleFailure(f"forces of shape {forces.shape} for {len(atoms)} atoms")
    if not np.isfinite(label.energy_eV):
        raise OracleFailure(f"the energy is not finite ({label.energy_eV})")
    if not np.isfinite(forces).all():
        atom = int(np.argmin(np.isfinite(forces).all(axis=1)))
        raise OracleFailure(f"the force on atom {atom} is not finite")
    stress = None if label.stress is None else np.array(label.stress, dtype=np.float64).reshape(3, 3)
    if stress is not None and not np.isfinite(stress).all():
        raise OracleFailure("the stress is not finite")
    return Label(float(label.energy_eV), forces, stress)


def refusal(label: Label, max_force_eV_A: float | None) -> str | None:
    """Why ``label`` is not given out: the norm of a force (eV/Å) is above the limit; None where it is given out."""
    if max_force_eV_A is None or not len(label.forces):
        return None
    norms = np.linalg.norm(label.forces, axis=1)
    atom = int(np.argmax(norms))
    if norms[atom] <= max_force_eV_A:
        return None
    return f"the force on atom {atom} is {norms[atom]:,.1f} eV/Å, above max_force_eV_A of {max_force_eV_A:g}"


def fingerprint_of(settings: dict[str, Any]) -> str:
    """32 hexadecimal digits of BLAKE2b over the settings as JSON with sorted keys."""
    text = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def versions_of(distributions: Iterable[str]) -> dict[str, str]:
    """Versions of the installed ones among ``distributions``, and of selectron."""
    found = {}
    for name in ("selectron", *distributions):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
