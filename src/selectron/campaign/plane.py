"""Where the structures of a screening lie in the plane of its features: what the map of the report is drawn from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms

from selectron.campaign.context import Campaign
from selectron.features import FeatureMap, FeatureStore, extract
from selectron.report.projection import Projection
from selectron.rows import Rows
from selectron.screening import Catalogue, Screening
from selectron.screening.vectors import structure_vectors
from selectron.structures import structure_hash

CANDIDATES, KNOWN = 4000, 2000
"""Structures of the pool and of the training set that are kept; picks and what the campaign labelled come on top."""

_CHUNK = 512


class Plane(NamedTuple):
    """Structures in the plane of largest variance of the features of one screening.

    | field       | shape   | meaning                                                                      |
    |-------------|---------|------------------------------------------------------------------------------|
    | keys        | (n, 16) | uint8, structure hashes                                                      |
    | coordinates | (n, 2)  | float32, position in the plane                                               |
    | explained   | (2,)    | fraction of the feature variance along each axis                             |
    | mean, axes  | (q,), (q, 2) | float32, centre and axes in the space of the vectors                    |

    A structure is its vector (:func:`selectron.screening.vectors.structure_vectors`); of several rows the direction alone
    counts, for few structures with very large rows would fill the map.
    """

    keys: np.ndarray
    coordinates: np.ndarray
    explained: np.ndarray
    mean: np.ndarray
    axes: np.ndarray

    def hashes(self) -> list[str]:
        """Structure hashes in hexadecimal."""
        return [bytes(key).hex() for key in self.keys]

    def write(self, path: Path) -> None:
        """To a NumPy archive."""
        with open(path, "wb") as stream:
            np.savez(stream, **self._asdict())

    @classmethod
    def read(cls, path: Path) -> Plane:
        """From :meth:`write`."""
        with np.load(path) as data:
            return cls(**{name: data[name] for name in cls._fields})


def plane_of(screening: Screening, keep: Collection[str]) -> Plane | None:
    """The plane of a screening with its picks, the structures ``keep``, and even parts of the others.

    None where there are fewer than three structures.
    """
    picked = {pick.place for pick in screening.picks}
    parts = [(screening.catalogue, _chosen(screening.catalogue, CANDIDATES, keep, picked))]
    if screening.training is not None:
        parts.append((screening.training, _chosen(screening.training, KNOWN, keep, set())))
    if sum(len(places) for _, places in parts) < 3:
        return None

    def vectors() -> Iterator[np.ndarray]:
        for catalogue, places in parts:
            for start in range(0, len(places), _CHUNK):
                yield _directions(catalogue.rows(places[start : start + _CHUNK]), screening.features)

    projection = Projection.of_batches(vectors())
    mean, axes = projection.mean.astype(np.float32), projection.axes.astype(np.float32)
    coordinates = np.concatenate([(batch - mean) @ axes for batch in vectors()])
    keys = np.concatenate([catalogue.hashes[places] for catalogue, places in parts])
    _, first = np.unique(keys, axis=0, return_index=True)  # a candidate may stand in the training set too
    first.sort()
    return Plane(keys[first], coordinates[first].astype(np.float32), projection.explained, mean, axes)


def place_others(
    campaign: Campaign, name: str, features: FeatureMap, structures: Sequence[Atoms]
) -> dict[str, str | None]:
    """Puts those of ``structures`` into the plane ``name`` that are not in it: picks of the twin from its own samples.

    Gives the artifact of a :class:`Plane` with these alone, under "others"; None where there are none. ``features`` are
    those of the screening, on its model.
    """
    plane = Plane.read(campaign.artifacts.whole(name))
    there = set(plane.hashes())
    missing = {key: atoms for key, atoms in ((structure_hash(one), one) for one in structures) if key not in there}
    if not missing:
        return {"others": None}
    batch = campaign.config.features.batch_size
    store = FeatureStore(None, features.fingerprint, features.dim)
    campaign.reporter.start("map", len(missing))
    rows, failed = extract(
        features,
        list(missing.values()),
        list(missing),
        store,
        None if batch == "auto" else batch,
        campaign.reporter.advance,
    )
    campaign.reporter.finish()
    store.close()
    keys = [bytes.fromhex(key) for key in missing if key not in failed]
    if not keys:
        return {"others": None}
    coordinates = (_directions(rows, features) - plane.mean) @ plane.axes
    hashes = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(-1, 16)
    found = plane._replace(keys=hashes, coordinates=coordinates.astype(np.float32))
    return {"others": campaign.artifacts.put(found.write, ".npz")}


def _directions(rows: Rows, features: FeatureMap) -> np.ndarray:
    vectors = structure_vectors(rows, features)
    if hasattr(features, "nominal_rows"):
        vectors = torch.nn.functional.normalize(vectors, dim=1)
    found: np.ndarray[Any, Any] = vectors.numpy()
    return found


def _chosen(catalogue: Catalogue, most: int, keep: Collection[str], also: Collection[int]) -> np.ndarray:
    """Places of every so-manieth distinct structure, at most ``most``, of ``keep`` and of ``also``."""
    distinct = np.flatnonzero(catalogue.first)
    even = distinct[:: max(1, -(-len(distinct) // most))]
    wanted = [place for place in distinct.tolist() if place in also]
    if keep:
        keys = {bytes.fromhex(key) for key in keep}
        wanted += [place for place in distinct.tolist() if bytes(catalogue.hashes[place]) in keys]
    return np.unique(np.concatenate([even, np.array(wanted, dtype=np.int64)]))
