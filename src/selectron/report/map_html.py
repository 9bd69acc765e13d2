"""The interactive picture of a selection: one HTML file with chemiscope, the data and nothing to fetch."""

from __future__ import annotations

import base64
import gzip
import html
import json
import math
import re
import warnings
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import chemiscope
import numpy as np
from ase import Atoms

from selectron import __version__
from selectron.errors import SelectronError
from selectron.report.map_data import KINDS, FeatureMapData, points_to_show, variance_scale
from selectron.report.map_page import PAGE
from selectron.structures import atomic_output

STRUCTURE_LIMIT = 2000
# The browser itself refuses every request with this policy: what the page shows is what the file holds.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval' blob:; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; worker-src blob:; connect-src 'none'; form-action 'none'; base-uri 'none'"
)
# chemiscope gives plotly's symbols 0, 1, 2 to the kinds in the order in which they first appear.
SYMBOLS = (
    '<svg viewBox="0 0 12 12"><circle cx="6" cy="6" r="4.5"/></svg>',
    '<svg viewBox="0 0 12 12"><rect x="2" y="2" width="8" height="8"/></svg>',
    '<svg viewBox="0 0 12 12"><path d="M6 0 12 6 6 12 0 6z"/></svg>',
)
MARKER_SIZE = {"pool": 0.25, "train": 0.05, "pick": 1.0}


def write_html(data: FeatureMapData, path: str | Path, limit: int = STRUCTURE_LIMIT) -> None:
    """Write the interactive map of ``data`` to the HTML file ``path``; it opens from disk, offline.

    At most ``limit`` structures are shown: every pick, then training set and pool thinned as in ``points_to_show``;
    the page says how many were left out. Positions are rounded to 1e-4 Å. The viewer and the dataset are stored in the
    page, compressed. The file appears whole or not at all.

    Raises ``SelectronError`` when ``data`` holds no structures.
    """
    if not len(data.structures):
        raise SelectronError("The HTML map shows each structure in 3-D, so it needs the structures; got none.")
    shown = data.take(points_to_show(data, limit))
    counts = {kind: int(np.sum(data.kind == kind)) for kind in KINDS}
    present = [kind for kind in KINDS if np.any(shown.kind == kind)]
    names = kind_names(data)
    legend = "".join(
        f"<span>{symbol}{names[kind]} ({counts[kind]:,})</span>" for symbol, kind in zip(SYMBOLS, present, strict=False)
    )
    parts = {
        "policy": POLICY,
        "version": __version__,
        "chemiscope": version("chemiscope"),
        "title": html.escape(data.title),
        "subtitle": html.escape(data.subtitle),
        "legend": legend,
        "note": html.escape(_note(data, shown)),
        "viewer": _packed(_viewer()),
        "dataset": _packed(json.dumps(dataset(shown), allow_nan=False, separators=(",", ":"))),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], PAGE)
    with atomic_output(path) as stream:
        stream.write(page)


def kind_names(data: FeatureMapData) -> dict[str, str]:
    """What the page calls each kind."""
    return {"pool": data.pool_name, "train": "training set", "pick": "pick"}


def dataset(data: FeatureMapData) -> dict[str, Any]:
    """The chemiscope dataset of all points of ``data``, in strict JSON: NaN is null.

    The map opens coloured by variance, or by its logarithm when that spans more than a decade, with one symbol a kind
    and the first pick shown in 3-D.
    """
    low, high, logarithmic = variance_scale(data)
    names = kind_names(data)
    periodic = any(atoms.pbc.any() for atoms in data.structures)
    axes = [f"PC {i + 1} ({data.explained[i]:.0%} of feature variance)" for i in range(2)]
    properties: dict[str, Any] = {
        axes[0]: _property(data.coordinates[:, 0]),
        axes[1]: _property(data.coordinates[:, 1]),
        "variance": _property(data.variance, "posterior variance", "feature units"),
        "kind": _property([names[kind] for kind in data.kind]),
        "rank": _property(np.where(data.rank >= 0, data.rank, np.nan), "order of the pick"),
        "source": _property(list(data.labels), "file and place in it"),
        "formula": _property([atoms.get_chemical_formula() for atoms in data.structures]),
        "atoms": _property([len(atoms) for atoms in data.structures], "number of atoms"),
        "marker size": _property([MARKER_SIZE[kind] for kind in data.kind], "picks are drawn larger"),
    }
    colour: dict[str, Any] = {"property": "", "palette": "viridis"}
    if high > low:
        colour["property"] = "variance"
        if logarithmic:
            with np.errstate(divide="ignore", invalid="ignore"):
                properties["log10(variance)"] = _property(np.log10(data.variance), "decimal logarithm of the variance")
            low, high, colour["property"] = math.log10(low), math.log10(high), "log10(variance)"
        colour |= {"min": low, "max": high}
    properties |= {name: _property(values) for name, values in data.extra.items() if name not in properties}
    structure_settings: dict[str, Any] = {"unitCell": periodic, "keepOrientation": False}
    environments = None
    if data.atom_variance is not None:
        shares = np.concatenate([np.asarray(share, dtype=np.float64) for share in data.atom_variance])
        properties["variance of atom"] = _property(shares, "share of the variance", "feature units", target="atom")
        environments = chemiscope.all_atomic_environments(list(data.structures))
        structure_settings["color"] = {"property": "variance of atom", "palette": "viridis"}
    picks = data.of_kind("pick")
    settings = {
        "target": "structure",
        "map": {
            "x": {"property": axes[0]},
            "y": {"property": axes[1]},
            "color": colour,
            "symbol": "kind",
            "size": {"property": "marker size", "mode": "linear", "factor": 35},
        },
        "structure": [structure_settings],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = chemiscope.create_input(
            structures=[_bare(atoms) for atoms in data.structures],
            metadata={"name": data.title, "description": data.subtitle},
            properties=properties,
            environments=environments,
            settings=settings,
        )
    built["settings"]["pinned"] = [int(picks[0]) if len(picks) else 0]
    cleaned: dict[str, Any] = json.loads(json.dumps(built, default=float), parse_constant=lambda _: None)
    return cleaned


def _property(values: Any, description: str = "", units: str = "", target: str = "structure") -> dict[str, Any]:
    array = np.asarray(values)
    listed = array.tolist() if array.dtype.kind in "OUS" else array.astype(np.float64)
    made: dict[str, Any] = {"target": target, "values": listed}
    if description:
        made["description"] = description
    if units:
        made["units"] = units
    return made


def _bare(atoms: Atoms) -> Atoms:
    """The atoms and their cell alone, positions rounded to 1e-4 Å, without a cell that is not periodic."""
    cell = atoms.cell if atoms.pbc.any() else None
    return Atoms(atoms.numbers, np.round(atoms.positions, 4), cell=cell, pbc=atoms.pbc)


def _note(data: FeatureMapData, shown: FeatureMapData) -> str:
    low, high, _ = variance_scale(shown)
    colour = "Colour: posterior variance." if high > low else "All variances are equal."
    hint = f"{colour if math.isfinite(low) else 'No variance was computed.'} Click a point to see its structure."
    if len(shown) < len(data):
        hint += f" {len(shown):,} of {len(data):,} structures are shown: all picks, the others thinned."
    return hint


def _packed(text: str) -> str:
    """Base64 of the gzip of ``text``; the same text gives the same bytes on every day."""
    return base64.b64encode(gzip.compress(text.encode("utf-8"), 9, mtime=0)).decode("ascii")


@cache
def _viewer() -> str:
    """The chemiscope viewer as one script, from the installed Python package."""
    script = files("chemiscope").joinpath("sphinx", "static", "chemiscope.min.js")
    if not script.is_file():
        raise SelectronError(
            f"The installed chemiscope {version('chemiscope')} carries no viewer script; selectron needs 1.1 or later."
        )
    return script.read_text(encoding="utf-8")
