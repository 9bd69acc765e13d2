"""Labels: energies and forces at a level of theory, each paid for once and kept; failures are values with reasons."""

from selectron.oracles.base import ElectronicState, Label, Oracle, OracleFailure, electronic_state
from selectron.oracles.label import Labelled, label_structures
from selectron.oracles.options import (
    AseOptions,
    DftOptions,
    MaceOptions,
    OracleOptions,
    SurfaceOptions,
    XtbOptions,
    make_oracle,
    parse_oracle,
)
from selectron.oracles.store import LabelStore, StoredFailure, StoredLabel, structure_key, with_label

__all__ = [
    "AseOptions",
    "DftOptions",
    "ElectronicState",
    "Label",
    "LabelStore",
    "Labelled",
    "MaceOptions",
    "Oracle",
    "OracleFailure",
    "OracleOptions",
    "StoredFailure",
    "StoredLabel",
    "SurfaceOptions",
    "XtbOptions",
    "electronic_state",
    "label_structures",
    "make_oracle",
    "parse_oracle",
    "structure_key",
    "with_label",
]
