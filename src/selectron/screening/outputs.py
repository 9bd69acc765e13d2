"""What a screening leaves behind: picks, scores, pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from selectron.report.map import FeatureMapData, draw_png, write_html
from selectron.report.map_data import points_to_show
from selectron.report.projection import Projection
from selectron.report.table import PickRow
from selectron.rows import Rows
from selectron.screening.atoms import atom_variances, resolves_atoms
from selectron.screening.catalogue import Catalogue
from selectron.screening.result import Pick, Screening
from selectron.screening.vectors import structure_vectors
from selectron.structures import WEIGHT_KEY, atomic_output, write_extxyz
from selectron.structures.electronic_state import named
from selectron.structures.writing import warn
from selectron.wording import counted

SCORE_COLUMNS = (
    *("index", "source", "source_index", "formula", "n_atoms"),
    *("variance", "variance_per_atom", "variance_per_component", "variance_max_atom", "known"),
)


def write_picks(screening: Screening, path: str | Path, *, tell: Callable[[str], object] = warn) -> int:
    """The picks as extended XYZ, best first; each one's ``info`` says where it comes from and why it was picked.

    Keys: source, source_index, rank, score, variance, features, selector, and nearest_training, nearest_distance where there is
    a training set; represents, how many structures of the pool are nearest to this pick, and config_weight, what its label
    counts for in training (mace-torch's name), unless the whole batch is random; the array ``atom_variance`` where exact force
    rows were computed. Picks by chance have the selector ``chance`` and no score. An entry of the pool under one of these
    names is kept as ``pool_<name>``. What a structure states of its electrons stands under charge and multiplicity. What
    cannot be written is given to ``tell``, as by ``write_extxyz``.
    """
    renamed: set[str] = set()
    count = write_extxyz(path, (_annotated(pick, screening, renamed) for pick in screening.picks), tell=tell)
    _tell_renamed(renamed, tell)
    return count


def _tell_renamed(renamed: set[str], tell: Callable[[str], object]) -> None:
    if renamed:
        tell(f"What the pool has under names of the output is kept as {', '.join(sorted(renamed))}.")


def _annotated(pick: Pick, screening: Screening, renamed: set[str]) -> Atoms:
    facts: dict[str, object] = {
        "source": pick.source.path,
        "source_index": pick.source.index,
        "rank": pick.rank,
        "variance": _shown(pick.variance),
        "features": screening.features.name,
        "selector": "chance" if pick.by_chance else screening.selector,
    }
    if not pick.by_chance:
        facts["score"] = _shown(pick.score)
    if pick.represents is not None:
        facts |= {"represents": pick.represents, WEIGHT_KEY: _shown(pick.weight)}
    if pick.nearest_training is not None:
        facts["nearest_training"] = f"{pick.nearest_training.path} {pick.nearest_training.index}"
        facts["nearest_distance"] = _shown(pick.nearest_distance or 0.0)
    return _with_facts(pick.atoms, facts, pick.atom_variance, renamed)


def _with_facts(
    original: Atoms, facts: Mapping[str, Any], atom_variance: np.ndarray | None, renamed: set[str]
) -> Atoms:
    """A copy with ``facts`` in its ``info``; what the pool had under one of these names stays as ``pool_<name>``.

    Such names are added to ``renamed``.
    """
    atoms = original.copy()
    atoms.calc = original.calc
    atoms.info = named(atoms)
    arrays = {} if atom_variance is None else {"atom_variance": atom_variance}
    for mine, theirs in ((facts, atoms.info), (arrays, atoms.arrays)):
        for key, value in mine.items():
            if key in theirs and not np.array_equal(theirs[key], value):
                other = _other_name(key, theirs)
                theirs[other] = theirs[key]
                renamed.add(other)
            theirs[key] = value
    return atoms


def _other_name(name: str, taken: Mapping[str, object]) -> str:
    """``name`` with ``pool_`` before it, as often as it takes."""
    while name in taken:
        name = f"pool_{name}"
    return name


def _shown(value: float) -> float:
    """Seven digits: as many as rows in float32 carry."""
    return float(f"{value:.7g}")


def write_scores(screening: Screening, path: str | Path) -> None:
    """One line a usable structure of the pool, in its order, with the columns of :data:`SCORE_COLUMNS`.

    ``index`` counts over the whole pool, ``source_index`` inside the file; variances are in feature units squared,
    scaled so that the mean squared norm of a training structure (of a pool structure without a training set) is 1;
    ``known`` is 1 where the structure stands in the training set too.
    """
    catalogue = screening.catalogue
    per_component = screening.criterion("per-component")
    with atomic_output(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(SCORE_COLUMNS)
        for place, index in enumerate(catalogue.indices.tolist()):
            source = catalogue.pool.source(index)
            variance, atoms = float(screening.variance[place]), int(catalogue.atoms[place])
            facts = (index, source.path, source.index, catalogue.formula[place], atoms)
            numbers = (variance, variance / atoms, per_component[place], screening.max_atom[place])
            texts = ("" if np.isnan(number) else f"{number:.9g}" for number in numbers)
            writer.writerow((*facts, *texts, int(screening.known[place])))


def write_scored(screening: Screening, path: str | Path, *, tell: Callable[[str], object] = warn) -> int:
    """The usable structures of the pool as extended XYZ with their variances.

    Keys of ``info``: source, source_index, variance; array ``atom_variance`` (feature units squared) with exact force rows.
    """
    renamed: set[str] = set()
    count = write_extxyz(path, _scored(screening, renamed), tell=tell)
    _tell_renamed(renamed, tell)
    return count


def _scored(screening: Screening, renamed: set[str]) -> Iterator[Atoms]:
    catalogue = screening.catalogue
    for places, rows in catalogue.chunks(256):
        by_atom: Sequence[np.ndarray | None] = [None] * len(places)
        if resolves_atoms(screening.features):
            by_atom = atom_variances(screening.posterior, screening.scale, rows, screening.features)
        for place, atom_variance in zip(places.tolist(), by_atom, strict=True):
            index = int(catalogue.indices[place])
            source, atoms = catalogue.pool.source(index), catalogue.pool[index]
            facts = {"source": source.path, "source_index": source.index, "variance": float(screening.variance[place])}
            yield _with_facts(atoms, facts, atom_variance, renamed)


def pick_rows(screening: Screening) -> list[PickRow]:
    """The picks as rows of a table for the terminal."""
    return [
        PickRow(
            rank=pick.rank,
            source=pick.source.path,
            index=pick.source.index,
            formula=screening.catalogue.formula[pick.place],
            score=pick.score,
            variance=pick.variance,
            distance=pick.nearest_distance,
        )
        for pick in screening.picks
    ]


def draw(screening: Screening, png: str | Path | None, html: str | Path | None, *, subtitle: str) -> None:
    """The map of pool, training set and picks in the plane of largest feature variance, as PNG and as HTML with 3-D."""
    if not len(screening.catalogue) or (png is None and html is None):
        return
    projection = Projection.of_batches(_vectors(screening))
    parts = [("pool", screening.catalogue)]
    if screening.training is not None:
        parts.append(("train", screening.training))
    coordinates = np.concatenate([_coordinates(catalogue, projection, screening) for _, catalogue in parts])
    kind = np.concatenate([np.full(len(catalogue), name, dtype="<U5") for name, catalogue in parts])
    variance = np.full(len(kind), np.nan)
    variance[: len(screening.catalogue)] = screening.variance
    rank = np.full(len(kind), -1)
    for pick in screening.picks:
        kind[pick.place], rank[pick.place] = "pick", pick.rank
    data = FeatureMapData(
        coordinates=coordinates,
        kind=kind,
        variance=variance,
        rank=rank,
        structures=[],
        labels=[label for _, catalogue in parts for label in _labels(catalogue)],
        explained=projection.explained,
        title=f"{counted(len(screening.picks), 'pick')} out of {counted(len(screening.catalogue), 'structure')}",
        subtitle=subtitle,
        extra={"atoms": np.concatenate([catalogue.atoms for _, catalogue in parts])},
    )
    if png is not None:
        draw_png(data, png)
    if html is not None:
        shown = points_to_show(data)
        part = data.take(shown)
        starts = np.cumsum([0, *(len(catalogue) for _, catalogue in parts)])
        part.structures = [_structure(parts, starts, int(point)) for point in shown]
        part.atom_variance = _atom_variances(screening, part.structures, part.variance, shown)
        write_html(part, html)


def _atom_variances(
    screening: Screening, structures: Sequence[Atoms], variance: np.ndarray, shown: np.ndarray
) -> list[np.ndarray] | None:
    """Each atom's part of the variance, for the colours in 3-D; the mean over atoms where single atoms are not resolved."""
    resolved = {pick.place: pick.atom_variance for pick in screening.picks if pick.atom_variance is not None}
    if not resolved:
        return None
    return [
        resolved.get(int(point), np.full(len(atoms), np.nan_to_num(value) / max(len(atoms), 1)))
        for point, atoms, value in zip(shown, structures, variance, strict=True)
    ]


def _structure(parts: list[tuple[str, Catalogue]], starts: np.ndarray, point: int) -> Atoms:
    part = int(np.searchsorted(starts, point, side="right")) - 1
    catalogue = parts[part][1]
    return catalogue.pool[int(catalogue.indices[point - starts[part]])]


def _labels(catalogue: Catalogue) -> Iterator[str]:
    for index in catalogue.indices.tolist():
        source = catalogue.pool.source(index)
        yield f"{Path(source.path).name} {source.index}"


def _vectors(screening: Screening) -> Iterator[np.ndarray]:
    for part in (screening.catalogue, screening.training):
        if part is not None:
            for _, rows in part.chunks():
                yield _pooled(rows, screening)


def _coordinates(catalogue: Catalogue, projection: Projection, screening: Screening) -> np.ndarray:
    parts = [projection.transform(_pooled(rows, screening)) for _, rows in catalogue.chunks()]
    return np.concatenate(parts) if parts else np.zeros((0, 2))


def _pooled(rows: Rows, screening: Screening) -> np.ndarray:
    """(n, q) float64: one vector a structure, of its scaled rows.

    Of several rows a structure the direction alone is drawn, for few structures with very large rows would fill the map.
    """
    vectors = structure_vectors(screening.scale.apply(rows), screening.features)
    if hasattr(screening.features, "nominal_rows"):
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    return vectors.numpy()
