"""The points of a campaign's map: candidates, training set and picks in the plane of its features."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from ase import Atoms

from selectron.report.projection import Projection

if TYPE_CHECKING:
    from selectron.campaign.records import CampaignRecord

MOST = 8000  # structures of the background
_QUERY = 500


@dataclass(frozen=True)
class PickMap:
    """Structures in the plane of largest variance of the features of the last screening.

    | field       | shape   | meaning                                                       |
    |-------------|---------|---------------------------------------------------------------|
    | hashes      | n       | structure hashes                                              |
    | coordinates | (n, 2)  | position in the plane                                         |
    | explained   | (2,)    | fraction of the feature variance along each axis              |
    | known       |         | hashes of the initial training set                            |
    """

    hashes: tuple[str, ...]
    coordinates: np.ndarray
    explained: np.ndarray
    known: frozenset[str]


def read_map(record: CampaignRecord) -> PickMap | None:
    """The map of the last screening, from the plane that the campaign keeps; None where there is none.

    A point may belong to a candidate, a pick of either arm or the training set. Campaigns of versions that kept no plane give
    one from the feature rows in ``scratch`` as long as these are there.
    """
    from selectron.campaign.plane import Plane
    from selectron.structures import structure_hash

    train = frozenset(structure_hash(atoms) for atoms in read_structures(record.train_path))
    try:
        planes = [Plane.read(path) for path in record.plane_paths]
    except (OSError, ValueError, KeyError, BadZipFile):
        return None  # damaged: a map is not worth a report
    if not planes:
        return _map_of_rows(record, train)
    hashes = tuple(name for plane in planes for name in plane.hashes())
    coordinates = np.concatenate([plane.coordinates for plane in planes]).astype(np.float64)
    return PickMap(hashes, coordinates, planes[0].explained, train)


def _map_of_rows(record: CampaignRecord, train: frozenset[str]) -> PickMap | None:
    """From the feature rows of the last screening; of more than 8,000 every so-manieth is drawn, all picks among them."""
    stores = sorted((record.folder / "scratch" / "features").glob("*/*.sqlite"))
    if not stores:
        return None
    picks = {pick.structure_hash for arm in record.arms for one in arm.rounds for pick in one.picks}
    try:
        vectors = _vectors(stores, picks | train)
    except (sqlite3.Error, ValueError, KeyError):
        return None  # being written, or damaged: a map is not worth a report
    if len(vectors) < 3:
        return None
    hashes = tuple(vectors)
    rows = np.stack([vectors[name] for name in hashes])
    if not np.isfinite(rows).all():
        return None
    plane = Projection.of_batches([rows])
    return PickMap(hashes, plane.transform(rows), plane.explained, train)


def _vectors(stores: Sequence[Path], wanted: set[str]) -> dict[str, np.ndarray]:
    """One vector a structure, as :func:`selectron.screening.outputs.draw` makes them."""
    import torch

    from selectron.acquisition import structure_embedding
    from selectron.rows import Rows

    found: dict[str, tuple[int, bytes]] = {}
    for store in stores:
        where = (
            f"file:{store.absolute().as_posix().replace('%', '%25').replace('?', '%3f').replace('#', '%23')}?mode=ro"
        )
        with closing(sqlite3.connect(where, uri=True, timeout=5.0)) as connection:
            every = [row[0] for row in connection.execute("SELECT key FROM rows ORDER BY id")]
            keep = every[:: max(1, math.ceil(len(every) / MOST))]
            chosen = list(dict.fromkeys([*keep, *(key for key in every if key.hex() in wanted)]))
            for start in range(0, len(chosen), _QUERY):
                keys = chosen[start : start + _QUERY]
                marks = ",".join("?" * len(keys))
                for key, m, data in connection.execute(f"SELECT key, m, data FROM rows WHERE key IN ({marks})", keys):
                    found.setdefault(key.hex(), (m, data))
    if not found:
        return {}
    counts = [m for m, _ in found.values()]
    dim = len(next(iter(found.values()))[1]) // (4 * counts[0])
    values = np.concatenate([np.frombuffer(data, "<f4").reshape(m, dim) for m, data in found.values()])
    rows = Rows(torch.from_numpy(values), torch.tensor(counts))
    single = all(count == 1 for count in counts)
    vectors = structure_embedding(rows, single=single).to(torch.float64)
    if not single:
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    return dict(zip(found, vectors.numpy(), strict=True))


def read_structures(path: Path | None) -> list[Atoms]:
    """The structures of an artifact; none where it is None."""
    from selectron.structures import Pool

    if path is None:
        return []
    with Pool.open([path]) as pool:
        return pool[:]
