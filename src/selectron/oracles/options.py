"""What a user asks of an oracle, in YAML or after ``--oracle``, and the oracle that it means."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl

from ase import Atoms
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError

from selectron.errors import SelectronError
from selectron.oracles.base import ElectronicState, Oracle, OracleFailure, Used, electronic_state

_MINUTE, _HOUR = 60.0, 3600.0


class _Common(BaseModel):
    """What all oracles share.

    Charge and multiplicity (2S + 1) hold for structures whose ``info`` has none; "lowest" is 1 for an even number of
    electrons and 2 for an odd one. ``time_limit_s`` is for one attempt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    charge: int = 0
    multiplicity: PositiveInt | Literal["lowest"] = 1
    time_limit_s: PositiveFloat | None = Field(default=10 * _MINUTE, description="Of one attempt; null for none.")
    attempts: PositiveInt = Field(default=3, description="Recipes that are tried, one after the other.")
    memory_limit_MB: PositiveInt | None = Field(
        default=4000, description="An engine that has grown beyond it is started anew; null for no limit."
    )
    max_force_eV_A: PositiveFloat | None = Field(
        default=200.0,
        description="Labels with a larger force on an atom are kept, but not given out; null for no limit.",
    )

    @property
    def told(self) -> frozenset[str]:
        """Which of charge and multiplicity reach the program."""
        return frozenset(("charge", "multiplicity"))

    @property
    def knows_electrons(self) -> bool:
        """Whether labels depend on charge and multiplicity."""
        return bool(self.told)

    def used(self, atoms: Atoms) -> Used:
        """Charge and multiplicity of ``atoms`` here, and who said so; raises OracleFailure where they make no sense."""
        if not self.knows_electrons:
            return Used(ElectronicState())
        return electronic_state(atoms, self.charge, self.multiplicity, given=self.model_fields_set)

    def state(self, atoms: Atoms) -> ElectronicState:
        """Charge and multiplicity of ``atoms`` here, a neutral singlet where labels do not depend on them."""
        return self.used(atoms).state

    @property
    def sees_open_vectors(self) -> bool:
        """Whether the lattice vectors of directions that are not periodic reach the engine, and so belong to the key."""
        return False

    def check(self, atoms: Atoms) -> None:
        """Raises OracleFailure where ``atoms`` are not for this oracle, whatever a store has of them."""
        del atoms


class _WithoutElectrons(_Common):
    """An oracle that knows no electrons: charge and multiplicity do not matter to it."""

    @property
    def told(self) -> frozenset[str]:
        """Neither."""
        return frozenset()


class XtbOptions(_Common):
    """GFN2-xTB or GFN1-xTB by tblite."""

    kind: Literal["gfn2-xtb", "gfn1-xtb"] = "gfn2-xtb"
    accuracy: PositiveFloat = Field(default=1.0, description="Factor on all numerical thresholds.")
    electronic_temperature_K: PositiveFloat = 300.0
    spin_polarised: bool = Field(default=False, description="Spin-polarised tight binding for open shells.")
    vacuum_A: PositiveFloat | None = Field(
        default=None,
        description="Å of vacuum that slabs and wires get in their open directions; null: they are refused.",
    )

    def check(self, atoms: Atoms) -> None:
        """Refuses one or two open directions unless the vacuum is given: tblite takes such a structure for a crystal."""
        periodic = int(atoms.pbc.sum())
        if periodic in (1, 2) and self.vacuum_A is None:
            raise OracleFailure(
                f"it is periodic in {periodic} of 3 directions, and tblite would take it for a crystal: make it periodic in "
                "all three, with the vacuum in its cell, or give the vacuum in Å as vacuum_A",
                final=True,
            )


class DftOptions(_Common):
    """Kohn-Sham DFT of molecules by PySCF, restricted for singlets and unrestricted for all else."""

    kind: Literal["dft"] = "dft"
    functional: str = "wb97x"
    basis: str = "6-31g*"
    density_fitting: bool = True
    auxiliary_basis: str | None = Field(default=None, description="Of density fitting; null: PySCF's choice.")
    grid_level: int = Field(default=3, ge=0, le=9, description="PySCF's grids; below 3 forces are noisy.")
    dispersion: str | None = Field(default=None, description="d3zero, d3bj, d4 and others of pyscf-dispersion.")
    scf_tolerance: PositiveFloat = Field(default=1e-9, description="Of the energy, Hartree.")
    max_cycles: PositiveInt = Field(default=100, description="SCF cycles of one attempt.")
    memory_MB: PositiveInt = 4000
    time_limit_s: PositiveFloat | None = 6 * _HOUR


class MaceOptions(_WithoutElectrons):
    """A MACE model as the teacher."""

    kind: Literal["mace"] = "mace"
    model: str = Field(description="A .model file, 'embedded', or a name from 'selectron models'.")
    dtype: Literal["float32", "float64"] = "float64"
    device: str = "cpu"
    head: str | None = None


class SurfaceOptions(_WithoutElectrons):
    """An analytic surface."""

    kind: Literal["surface"] = "surface"
    surface: str = Field(description="Its name, such as mueller-brown.")
    arguments: dict[str, Any] = Field(default_factory=dict, description="Of the surface, such as scale.")
    time_limit_s: PositiveFloat | None = 1 * _MINUTE
    max_force_eV_A: PositiveFloat | None = None


class AseOptions(_Common):
    """Any ASE calculator.

    ``arguments`` go to its constructor. The words "{charge}", "{multiplicity}" and "{unpaired}" among them become the
    structure's numbers, and {"import": "module:Name", "arguments": {...}} becomes what that call returns.
    """

    kind: Literal["ase"] = "ase"
    calculator: str = Field(description="package.module:Class")
    arguments: dict[str, Any] = Field(default_factory=dict)
    force_consistent: bool = Field(default=False, description="The free energy, of which forces are derivatives.")
    scratch: Path | None = Field(default=None, description="Folder that keeps the files of all runs.")
    attempts: PositiveInt = 1
    time_limit_s: PositiveFloat | None = 24 * _HOUR

    @property
    def told(self) -> frozenset[str]:
        """What the arguments mention."""
        words = json.dumps(self.arguments)
        places = {"charge": ("charge",), "multiplicity": ("multiplicity", "unpaired")}
        return frozenset(what for what, names in places.items() if any(f'"{{{name}}}"' in words for name in names))

    @property
    def sees_open_vectors(self) -> bool:
        """They do: plane-wave programs fill the whole cell, periodic or not."""
        return True


OracleOptions = Annotated[
    XtbOptions | DftOptions | MaceOptions | SurfaceOptions | AseOptions, Field(discriminator="kind")
]
"""Told apart by ``kind``: gfn2-xtb, gfn1-xtb, dft, mace, surface, ase."""

_ADAPTER: TypeAdapter[OracleOptions] = TypeAdapter(OracleOptions)

FORMS = (
    "gfn2-xtb, gfn1-xtb, dft:FUNCTIONAL/BASIS, mace:MODEL, surface:NAME or ase:MODULE:CLASS, "
    "each with ?OPTION=VALUE&... where wanted, or the path of a .yaml file"
)


def parse_oracle(spec: str | Mapping[str, Any], **overrides: Any) -> OracleOptions:
    """Options from one word of a command line, or from a mapping as YAML has it.

    Known forms: ``gfn2-xtb``, ``gfn1-xtb``, ``dft:wb97x/6-31g*``, ``mace:PATH``, ``surface:mueller-brown`` and
    ``ase:module:Class``. After a question mark come options, as in ``dft:b3lyp/def2-svp?dispersion=d3bj&grid_level=4``;
    those of ``ase`` and ``surface`` go to the calculator and the surface. A path that ends in .yaml or .yml is a file with
    such a mapping. ``overrides`` that are not None win. Raises SelectronError.
    """
    if isinstance(spec, str):
        values = _from_yaml(Path(spec)) if spec.endswith((".yaml", ".yml")) else _from_text(spec)
    else:
        values = dict(spec)
    values.update({key: value for key, value in overrides.items() if value is not None})
    try:
        return _ADAPTER.validate_python(values)
    except ValidationError as error:
        raise SelectronError(f"The oracle {_shown(spec)} cannot be used: {_sentence(error)}.") from None


def make_oracle(options: OracleOptions) -> Oracle:
    """The oracle that ``options`` mean; imports nothing heavy before :meth:`Oracle.prepare` or the first label."""
    if isinstance(options, XtbOptions):
        from selectron.oracles.xtb import XtbOracle

        return XtbOracle(options)
    if isinstance(options, DftOptions):
        from selectron.oracles.dft import DftOracle

        return DftOracle(options)
    if isinstance(options, AseOptions):
        from selectron.oracles.ase_oracle import AseOracle

        return AseOracle(options)
    from selectron.oracles.potential_oracle import PotentialOracle

    return PotentialOracle(options)


def options_from_json(text: str) -> OracleOptions:
    """The inverse of ``options.model_dump_json()``."""
    return _ADAPTER.validate_json(text)


def _from_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SelectronError(f"The oracle file {path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SelectronError(f"The oracle file {path} is no YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(content, dict) or "kind" not in content:
        raise SelectronError(f"The oracle file {path} holds no mapping with a 'kind', such as kind: gfn2-xtb.")
    return content


def _from_text(text: str) -> dict[str, Any]:
    head, _, query = text.partition("?")
    given = {key: _literal(value) for key, value in parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)}
    kind, _, rest = head.partition(":")
    if kind in ("gfn2-xtb", "gfn1-xtb") and not rest:
        return {"kind": kind, **given}
    if kind == "dft":
        functional, _, basis = rest.partition("/")
        if bool(functional) != bool(basis):
            raise SelectronError(f"The oracle {text!r} needs a functional and a basis, as in dft:wb97x/6-31g*.")
        level = {"functional": functional, "basis": basis} if functional else {}
        return {"kind": kind, **level, **given}
    if kind == "mace" and rest:
        return {"kind": kind, "model": rest, **given}
    if kind == "surface" and rest:
        return {"kind": kind, "surface": rest, "arguments": given}
    if kind == "ase" and re.fullmatch(r"[\w.]+:\w+", rest):
        return {"kind": kind, "calculator": rest, "arguments": given}
    raise SelectronError(f"{text!r} is no oracle; write {FORMS}.")


def _literal(value: str) -> Any:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


def _shown(spec: str | Mapping[str, Any]) -> str:
    return repr(spec) if isinstance(spec, str) else repr(spec.get("kind", "without a kind"))


def _sentence(error: ValidationError) -> str:
    parts = []
    for one in error.errors():
        place = ".".join(str(part) for part in one["loc"][1:] if part not in ("constrained-int", "literal['lowest']"))
        said = one["msg"][:1].lower() + one["msg"][1:]
        parts.append(f"{place}: {said}" if place else said)
    return "; ".join(dict.fromkeys(parts))
