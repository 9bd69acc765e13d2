"""The cases of one_shot.py: pool, validation and test structures with labels, and the model that is to learn."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from ase import Atoms
from ase.io import read

from _common import reactive_molecules
from selectron import embedded
from selectron.features import default_cache
from selectron.oracles import LabelStore, XtbOptions, label_structures
from selectron.training.labels import Labelled, labelled


class Case(NamedTuple):
    """One model and what it may learn from; pool, validation and test are of different reactions.

    ``known`` are structures that the model can be assumed to know: they condition the selectors, and are trained on only
    where ``train_known`` is true. ``candidates`` are what the pool of each seed is drawn from. ``replay`` is old data that may
    join any training; where ``replay_by_model`` is true its labels are to be made with the model that is about to learn.
    """

    name: str
    model: Path
    known: list[Labelled]
    train_known: bool
    candidates: list[Labelled]
    valid: list[Labelled]
    test: list[Labelled]
    replay: list[Labelled]
    replay_by_model: bool = False


class Sizes(NamedTuple):
    """How many structures; the pool of a seed is drawn from the candidates."""

    candidates: int
    pool: int
    valid: int
    test: int
    picks: int


FULL = Sizes(candidates=1200, pool=1000, valid=30, test=250, picks=100)
POOL = Sizes(candidates=270, pool=240, valid=30, test=100, picks=60)
QUICK = Sizes(candidates=60, pool=50, valid=6, test=20, picks=10)
LEVEL_MODELS = {"level": "mace_spice_2022_converted_f32.model", "off": "MACE-OFF23_small.model"}
"""Models of the cases where labels are of another level of theory."""


def load_case(name: str, shared: Path, sizes: Sizes) -> Case:
    """``same``: embedded model and RDB7 geometries, GFN2-xTB throughout; ``pool``: the same with the embedded pool;
    ``level``: a small SPICE model and T1x-like labels; ``off``: the same with MACE-OFF23-small.
    """
    if name in ("same", "pool"):
        if name == "same":
            parts = [_with_gfn2(part) for part in _parts(_rdb7(shared, sizes), sizes)]
        else:
            parts = [labelled(part) for part in _parts(_embedded_pool(), sizes)]
        known = labelled(read(embedded.train_path(), ":"))
        return Case(name, embedded.model_path(), known, False, *parts, replay=known)
    candidates, valid, test = _parts(reactive_molecules(shared), sizes)
    minima = [atoms for atoms in candidates if atoms.info["tag"] in {"R", "P"}]
    chosen = np.random.default_rng(0).permutation(len(minima))[: min(30, len(minima) // 4)]
    known_places = {id(minima[i]) for i in chosen}
    return Case(
        name,
        shared / "models" / LEVEL_MODELS[name],
        labelled([minima[i] for i in chosen]),
        True,
        labelled([atoms for atoms in candidates if id(atoms) not in known_places]),
        labelled(valid),
        labelled(test),
        replay=_ani1x(shared),
        replay_by_model=True,
    )


def _ani1x(shared: Path) -> list[Labelled]:
    """Off-equilibrium organic molecules, without their labels."""
    frames = read(shared / "data" / "ani1x_1000.xyz", ":")
    return [Labelled(Atoms(a.numbers, a.positions), 0.0, np.zeros((len(a), 3))) for a in frames]


def _embedded_pool() -> list[Atoms]:
    """The embedded pool with its labels; structures of one molecule are a group."""
    frames: list[Atoms] = read(embedded.pool_path(), ":")
    for atoms in frames:
        atoms.info.update(group=atoms.info["smiles"], tag=atoms.info["kind"])
    return frames


def _rdb7(shared: Path, sizes: Sizes) -> list[Atoms]:
    """Reactant, transition state and product of reactions drawn at random, without labels."""
    data = np.load(shared / "data" / "rdb7_r_ts_p.npz")
    stops = np.cumsum(data["n"])
    wanted = (sizes.candidates + sizes.valid + sizes.test) // 3 + 6
    frames = []
    for reaction in np.random.default_rng(0).permutation(len(stops))[:wanted]:
        rows = slice(stops[reaction] - data["n"][reaction], stops[reaction])
        for tag in ("R", "TS", "P"):
            atoms = Atoms(data["Z"][rows].astype(int), data[tag][rows].astype(float))
            atoms.info.update(group=str(data["idx"][reaction]), tag=tag)
            frames.append(atoms)
    return frames


def _parts(frames: list[Atoms], sizes: Sizes) -> tuple[list[Atoms], list[Atoms], list[Atoms]]:
    """Candidates, validation and test; no reaction in two of them."""
    groups = np.random.default_rng(0).permutation(sorted({atoms.info["group"] for atoms in frames}))
    members: dict[str, list[Atoms]] = {}
    for atoms in frames:
        members.setdefault(atoms.info["group"], []).append(atoms)
    parts: list[list[Atoms]] = []
    order = iter(groups)
    for size in (sizes.test, sizes.valid, sizes.candidates):
        part: list[Atoms] = []
        while len(part) < size and (group := next(order, None)) is not None:
            part += members[group]
        parts.append(part)
    test, valid, candidates = parts
    return candidates, valid, test


def _with_gfn2(frames: list[Atoms]) -> list[Labelled]:
    """Labels, each bought once and kept in selectron's cache."""
    folder = default_cache() / "one_shot"
    folder.mkdir(parents=True, exist_ok=True)
    with LabelStore(folder / "labels.sqlite") as store:
        found = {one.index: one for one in label_structures(frames, XtbOptions(), store)}
    labels = []
    for index, atoms in enumerate(frames):
        label = found[index].label
        if label is None or label.forces is None:
            raise SystemExit(f"GFN2-xTB fails for structure {index} of the case: {found[index].failure}")
        labels.append(Labelled(atoms, label.energy_eV, label.forces))
    return labels
