"""The pool: the same chemistry seen in reaction, with GFN2-xTB labels.

Four kinds of structures, each made by a generator that yields candidates until its share is full:
hot dynamics, bond-breaking scans, proton transfers, and images of paths between isomers or conformers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.constraints import FixBondLengths, Hookean
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.mep import NEB
from ase.optimize import FIRE
from labels import gfn2, labelled, write_gzip
from molecules import Molecule, distance_ratios, read_molecules
from thermal import WORK, relaxed_conformer

SEED = 7
SHARES = {"hot-dynamics": 140, "bond-scan": 100, "proton-transfer": 80, "path-image": 80}
MAX_FORCE, MIN_DISTANCE = 25.0, 0.6  # eV/Å, Å
MOST_NEIGHBOURS = {1: 1, 6: 4, 7: 3, 8: 2}
HOT_TEMPERATURES_K = (1500.0, 2000.0, 2500.0)
HOT_FRAMES, HOT_STEPS, HOT_TIMESTEP_FS = 3, 300, 0.5


def hot_dynamics(molecule: Molecule, others: list[Molecule], rng: np.random.Generator) -> Iterator[Atoms]:
    """Three frames, 150 fs apart, of Langevin dynamics from a relaxed conformer at 1500, 2000 or 2500 K."""
    structure = _conformer(molecule, rng)
    temperature = float(rng.choice(HOT_TEMPERATURES_K))
    MaxwellBoltzmannDistribution(structure, temperature_K=2 * temperature, rng=rng)
    # ASE's default holds the centre of mass and so heats small molecules: see the data card.
    dynamics = Langevin(
        structure, HOT_TIMESTEP_FS * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng
    )
    for _ in range(HOT_FRAMES):
        dynamics.run(HOT_STEPS)
        yield _named(structure, molecule.smiles, f"dynamics of {molecule.smiles} at {temperature:.0f} K")


def bond_scan(molecule: Molecule, others: list[Molecule], rng: np.random.Generator) -> Iterator[Atoms]:
    """One bond outside rings at two lengths, 1.3 to 2.4 times its own; all else relaxed for ten steps."""
    structure = _conformer(molecule, rng)
    cuts = [(bond, side) for bond in molecule.bonds if (side := _side(molecule, len(structure), bond)) is not None]
    if not cuts:
        return
    (i, j), side = cuts[rng.integers(len(cuts))]
    for low, high in ((1.3, 1.75), (1.75, 2.4)):
        stretched = structure.copy()
        bond = structure.positions[j] - structure.positions[i]
        stretched.positions[side] += (rng.uniform(low, high) - 1.0) * bond
        stretched.positions += rng.normal(scale=0.03, size=stretched.positions.shape)
        _relax(stretched, [FixBondLengths([(i, j)])], steps=10)
        yield _named(stretched, molecule.smiles, f"{_atom(structure, i)}-{_atom(structure, j)} of {molecule.smiles}")


def proton_transfer(molecule: Molecule, others: list[Molecule], rng: np.random.Generator) -> Iterator[Atoms]:
    """A hydrogen on its way from N or O to another N or O, of the same molecule or of a second one.

    The distances of the hydrogen to donor and acceptor are 1.0 + 0.5 t and 1.0 + 0.5 (1 − t) Å, with t
    drawn from 0.1 to 0.9.
    """
    structure = _conformer(molecule, rng)
    symbols = np.array(structure.get_chemical_symbols())
    donors = [
        (a, b) for pair in molecule.bonds for a, b in (pair, pair[::-1]) if symbols[b] == "H" and symbols[a] in "NO"
    ]
    if not donors:
        return
    donor, hydrogen = donors[rng.integers(len(donors))]
    inside = [
        k for k in np.flatnonzero(np.isin(symbols, ["N", "O"])) if k != donor and structure.get_distance(donor, k) < 3.2
    ]
    if inside and rng.random() < 0.5:
        pair, acceptor, smiles = structure, int(rng.choice(inside)), molecule.smiles
    else:
        docked = _docked(structure, donor, hydrogen, others[rng.integers(len(others))], rng)
        if docked is None:
            return
        pair, acceptor, smiles = docked
    for t in (rng.uniform(0.1, 0.5), rng.uniform(0.5, 0.9)):
        moved = pair.copy()
        moved.positions[hydrogen] = _between(
            moved, donor, acceptor, 1.0 + 0.5 * t, 1.5 - 0.5 * t, away=np.delete(moved.positions, hydrogen, 0).mean(0)
        )
        _relax(moved, [FixBondLengths([(donor, hydrogen), (acceptor, hydrogen)])], steps=10)
        yield _named(moved, smiles, f"{_atom(pair, donor)} to {_atom(pair, acceptor)} in {smiles}")


def path_image(molecule: Molecule, others: list[Molecule], rng: np.random.Generator) -> Iterator[Atoms]:
    """Three of five inner images of an IDPP path to an isomer or another conformer, after five steps of an NEB."""
    start = _conformer(molecule, rng)
    end = _conformer(molecule, rng) if rng.random() < 0.05 else _isomer(molecule, start, rng)
    _align(end, start)
    if np.abs(end.positions - start.positions).max() < 0.7:
        return
    images = [start.copy() for _ in range(6)] + [end.copy()]
    band = NEB(images, k=1.0, allow_shared_calculator=False)
    band.interpolate("idpp")
    for image in images:
        image.calc = gfn2()
    FIRE(band, logfile=None).run(fmax=0.3, steps=5)
    name = "isomer" if _bonds(end) != _bonds(start) else "conformer"
    for k in sorted(rng.choice(np.arange(1, 6), size=3, replace=False)):
        yield _named(images[k], molecule.smiles, f"{molecule.smiles} to {name} {_bond_change(start, end)}".strip())


def _conformer(molecule: Molecule, rng: np.random.Generator) -> Atoms:
    structure = relaxed_conformer(molecule, int(rng.integers(2**30)))
    if structure is None:
        raise ValueError(f"no conformer of {molecule.smiles}")
    return structure


def _named(structure: Atoms, smiles: str, reaction: str) -> Atoms:
    named = Atoms(structure.symbols, positions=structure.positions)
    named.info = {"smiles": smiles, "reaction": reaction}
    return named


def _atom(structure: Atoms, index: int) -> str:
    return f"{structure.symbols[index]}{index}"


def _relax(structure: Atoms, constraints: list, steps: int) -> None:
    structure.set_constraint(constraints)
    structure.calc = gfn2()
    FIRE(structure, logfile=None, maxstep=0.1).run(fmax=0.1, steps=steps)
    structure.set_constraint()


def _side(molecule: Molecule, n_atoms: int, bond: tuple[int, int]) -> list[int] | None:
    """Atoms on the second atom's side of a bond; None for a bond in a ring."""
    side, frontier = {bond[1]}, [bond[1]]
    neighbours: dict[int, set[int]] = {a: set() for a in range(n_atoms)}
    for i, j in molecule.bonds:
        if (i, j) != bond:
            neighbours[i].add(j)
            neighbours[j].add(i)
    while frontier:
        for k in neighbours[frontier.pop()] - side:
            side.add(k)
            frontier.append(k)
    return None if bond[0] in side else sorted(side)


def _between(
    structure: Atoms, first: int, second: int, first_distance: float, second_distance: float, away: np.ndarray
) -> np.ndarray:
    """The point at given distances (Å) from two atoms, on the far side from ``away``; on their line if out of reach."""
    origin, axis = structure.positions[first], structure.positions[second] - structure.positions[first]
    length = np.linalg.norm(axis)
    axis = _unit(axis)
    along = (length**2 + first_distance**2 - second_distance**2) / (2 * length)
    if first_distance**2 <= along**2:
        return origin + axis * length * first_distance / (first_distance + second_distance)
    out = origin - away - axis * ((origin - away) @ axis)
    return origin + along * axis + np.sqrt(first_distance**2 - along**2) * _unit(out)


def _docked(
    structure: Atoms, donor: int, hydrogen: int, other: Molecule, rng: np.random.Generator
) -> tuple[Atoms, int, str] | None:
    """A second molecule whose N or O lies 2.4 to 2.7 Å from the donor, on the line of its bond to the hydrogen."""
    guest = _conformer(other, rng)
    sites = np.flatnonzero(np.isin(guest.get_chemical_symbols(), ["N", "O"]))
    if len(sites) == 0 or len(guest) + len(structure) > 20:
        return None
    site = int(rng.choice(sites))
    direction = _unit(structure.positions[hydrogen] - structure.positions[donor])
    place = structure.positions[donor] + rng.uniform(2.4, 2.7) * direction
    for _ in range(200):
        turned = guest.copy()
        turned.rotate(360 * rng.random(), rng.normal(size=3))
        turned.translate(place - turned.positions[site])
        distances = np.linalg.norm(structure.positions[:, None] - turned.positions[None], axis=-1)
        distances[hydrogen, site] = distances[donor, site] = np.inf
        if distances.min() > 1.9:
            smiles = f"{structure.info['smiles']}.{other.smiles}"
            return structure + turned, len(structure) + site, smiles
    return None


def _isomer(molecule: Molecule, start: Atoms, rng: np.random.Generator) -> Atoms:
    """A relaxed structure with other bonds: a hydrogen moved to a free valence, or two of these joined."""
    ratios = distance_ratios(start)
    neighbours = np.bincount(np.array(molecule.bonds).ravel(), minlength=len(start))
    free = [k for k, z in enumerate(start.numbers) if neighbours[k] < MOST_NEIGHBOURS[int(z)]]
    bonded = {frozenset(bond) for bond in molecule.bonds}
    movable = np.flatnonzero(start.numbers == 1) if rng.random() < 0.8 else free
    pairs = [
        (int(i), j)
        for i, j in itertools.product(movable, free)
        if i != j and frozenset((int(i), j)) not in bonded and ratios[i, j] < 3.0
    ]
    if not pairs:
        raise ValueError(f"no pair of atoms to bring together in {start.symbols}")
    i, j = pairs[rng.integers(len(pairs))]
    bond_length = start.get_distance(i, j) / ratios[i, j]
    moved = start.copy()
    if start.numbers[i] == 1:
        heavy = moved.positions[j]
        moved.positions[i] = heavy + bond_length * _unit(moved.positions[i] - heavy)
    _relax(moved, [Hookean(i, j, k=20.0, rt=bond_length)], steps=25)
    _relax(moved, [], steps=40)
    if _bonds(moved) == _bonds(start):
        raise ValueError("the two atoms came apart again")
    return moved


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _bonds(structure: Atoms) -> set[tuple[int, int]]:
    ratios = distance_ratios(structure)
    return {(int(i), int(j)) for i, j in zip(*np.nonzero(np.triu(ratios < 1.3, k=1)), strict=True)}


def _bond_change(start: Atoms, end: Atoms) -> str:
    before, after = _bonds(start), _bonds(end)
    marks = [f"-{_atom(start, i)}{_atom(start, j)}" for i, j in sorted(before - after)]
    return " ".join(marks + [f"+{_atom(start, i)}{_atom(start, j)}" for i, j in sorted(after - before)])


def _align(mobile: Atoms, fixed: Atoms) -> None:
    """Kabsch superposition of equally ordered atoms."""
    a, b = mobile.positions - mobile.positions.mean(0), fixed.positions - fixed.positions.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    turn = u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt
    mobile.positions = a @ turn + fixed.positions.mean(0)


def is_sane(structure: Atoms) -> bool:
    """Whether no two atoms are closer than 0.6 Å and no force exceeds 25 eV/Å."""
    distances = structure.get_all_distances()[np.triu_indices(len(structure), 1)]
    return bool(distances.min() > MIN_DISTANCE and np.linalg.norm(structure.get_forces(), axis=1).max() < MAX_FORCE)


Generator = Callable[[Molecule, list[Molecule], np.random.Generator], Iterator[Atoms]]
GENERATORS: dict[str, Generator] = {
    "hot-dynamics": hot_dynamics,
    "bond-scan": bond_scan,
    "proton-transfer": proton_transfer,
    "path-image": path_image,
}


def structures_of_kind(kind: str, molecules: list[Molecule], seed: int) -> tuple[list[Atoms], dict[str, int]]:
    """Labelled structures of one kind until its share is full, and how many candidates were lost to what."""
    rng = np.random.default_rng(seed)
    kept: list[Atoms] = []
    lost = {"not made": 0, "no SCF": 0, "absurd": 0}
    for index in itertools.chain.from_iterable(rng.permutation(len(molecules)) for _ in itertools.count()):
        try:
            candidates = list(GENERATORS[kind](molecules[index], molecules, rng))
        except Exception:  # a failed SCF or embedding on the way, or an isomer that fell back
            lost["not made"] += 1
            continue
        for candidate in candidates:
            structure = labelled(candidate)
            if structure is None or not is_sane(structure):
                lost["no SCF" if structure is None else "absurd"] += 1
                continue
            structure.info |= {"kind": kind}
            kept.append(structure)
            if len(kept) == SHARES[kind]:
                return kept, lost
    raise AssertionError("the chain of permutations does not end")


def main() -> None:
    """Write ``work/pool.extxyz.gz``, in a random order, and ``work/pool-losses.txt``."""
    molecules = read_molecules()
    pool, report = [], []
    for k, kind in enumerate(SHARES):
        structures, lost = structures_of_kind(kind, molecules, SEED + k)
        report.append(f"{kind}: {len(structures)} kept; " + ", ".join(f"{n} {why}" for why, n in lost.items()))
        print(report[-1])
        pool += structures
    order = np.random.default_rng(SEED).permutation(len(pool))
    write_gzip(Path(WORK, "pool.extxyz.gz"), [pool[i] for i in order])
    Path(WORK, "pool-losses.txt").write_text("\n".join(report) + "\n")


if __name__ == "__main__":
    main()
