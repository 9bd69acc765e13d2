"""Rows of many structures: cut into batches that fit, taken from the store where they are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from ase import Atoms

from selectron.errors import SelectronError
from selectron.features.base import FeatureMap
from selectron.features.store import DamagedRows, FeatureStore
from selectron.rows import Rows, concatenate

AUTO_ATOMS = {"cpu": 256, "cuda": 16384}
"""Atoms in a batch of automatic size: enough to keep the device busy, few enough for its caches and memory."""
AUTO_STRUCTURES = {"cpu": 64, "cuda": 1024}


def extract(
    features: FeatureMap,
    structures: Sequence[Atoms],
    hashes: Sequence[str],
    store: FeatureStore,
    batch_size: int | None = None,
    advance: Callable[[int], None] | None = None,
    retry: bool = True,
) -> tuple[Rows, dict[str, str]]:
    """Rows of ``structures``, float32 on the CPU, and the reason for each hash whose rows are not finite.

    What the store lacks is computed in batches and put there at once, batch by batch. Structures of failed hashes are
    left out of the rows; the store never keeps them.

    Args:
        features: the map.
        structures: what to map.
        hashes: their :func:`selectron.structures.structure_hash`.
        store: where rows are kept.
        batch_size: structures in a batch; None chooses by the number of atoms, and halves where CUDA memory runs out.
        advance: told how many more of ``structures`` are done, batch by batch.
        retry: whether rows of the store that turn out to be damaged are computed anew.
    """
    known = store.known(hashes)
    wanted = {key: atoms for key, atoms in zip(hashes, structures, strict=True) if key not in known}
    failed: dict[str, str] = {}
    advance = advance or (lambda count: None)
    advance(len(hashes) - len(wanted))
    # structures of like size together: little padding, even batches
    ordered = sorted(wanted, key=lambda key: (len(wanted[key]), key))
    for keys in _batches(ordered, [len(wanted[key]) for key in ordered], batch_size, _device(features)):
        failed.update(_compute(features, keys, [wanted[key] for key in keys], store))
        advance(len(keys))
    try:
        return store.get([key for key in hashes if key not in failed]), failed
    except DamagedRows:
        if not retry:
            raise
    # they are gone from the store now
    return extract(features, structures, hashes, store, batch_size, retry=False)


def _compute(features: FeatureMap, keys: list[str], structures: list[Atoms], store: FeatureStore) -> dict[str, str]:
    rows = _rows(features, structures)
    finite = torch.isfinite(rows.values).all(dim=1)
    bad = rows.sum_per_structure((~finite).to(torch.float32)) > 0
    good = torch.nonzero(~bad).squeeze(1).tolist()
    store.put([keys[i] for i in good], rows if len(good) == len(keys) else rows.take(good))
    return {keys[i]: "its features are not finite" for i in torch.nonzero(bad).squeeze(1).tolist()}


def _rows(features: FeatureMap, structures: list[Atoms]) -> Rows:
    try:
        return features.rows(structures)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
    if len(structures) == 1:
        raise SelectronError(
            f"The GPU's memory does not hold one structure of {len(structures[0])} atoms; use --device cpu."
        )
    half = len(structures) // 2
    return concatenate([_rows(features, structures[:half]), _rows(features, structures[half:])])


def _device(features: FeatureMap) -> str:
    potential = getattr(features, "potential", None)
    return "cpu" if potential is None else potential.device.type


def _batches(keys: list[str], atoms: list[int], batch_size: int | None, device: str) -> list[list[str]]:
    most_structures = batch_size or AUTO_STRUCTURES[device]
    most_atoms = None if batch_size else AUTO_ATOMS[device]
    batches: list[list[str]] = []
    total = 0
    for key, count in zip(keys, atoms, strict=True):
        full = bool(batches) and (
            len(batches[-1]) >= most_structures or (most_atoms is not None and total + count > most_atoms)
        )
        if not batches or full:
            batches.append([])
            total = 0
        batches[-1].append(key)
        total += count
    return batches
