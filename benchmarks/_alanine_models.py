"""Oracle, surrogate and test sets of alanine_dipeptide.py: made once, kept in a work folder, never in the repository."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from ase.neighborlist import natural_cutoffs, neighbor_list

from _one_shot_training import Recipe, train
from selectron.acquisition import select_batch
from selectron.features import make_features
from selectron.features.registry import FeatureOptions
from selectron.potentials import load_potential
from selectron.potentials.mace import MacePotential
from selectron.potentials.mace_torch import o3
from selectron.report.ramachandran import Backbone, dihedral, find_backbone
from selectron.rows import concatenate
from selectron.sampling.options import sample_options
from selectron.sampling.run import run_sampling
from selectron.sampling.starts import initial_structures
from selectron.structures.writing import write_extxyz
from selectron.training.evaluate import batches, errors
from selectron.training.labels import labelled

ORACLE = "MACE-OFF23_small.model"
ELEMENTS = (1, 6, 7, 8)
SEED = 5
VALIDATION, HELD_OUT = 50, 100
"""Of the organic molecules; the others are trained on."""
BASINS = ((-160, 160), (-80, 75), (-80, -20), (70, -60), (60, 40), (-160, -160), (-110, 10), (60, -150))
"""φ and ψ in degrees from which the oracle's minima are looked for."""


class Surrogate(NamedTuple):
    """How the surrogate is fitted: epochs of both stages and how many of the thousand structures are used."""

    structures: int
    first_epochs: int
    second_epochs: int
    batch_size: int = 16


class TestSets(NamedTuple):
    """Counts and lengths of the two test sets.

    ``structures`` is the size of each; the oracle's SKMD makes ``journeys`` of ``journey_steps`` and leaves a frame every
    ``stride`` steps, of which the most diverse are taken; its dynamics goes ``dynamics_steps`` from each of the first
    ``basins`` after ``settling_steps``. ``directions`` of the oracle's 192 descriptors make the kernel, all where it is None.
    """

    structures: int
    journeys: int
    journey_steps: int
    stride: int
    burn_in_steps: int
    snapshot_every: int
    settling_steps: int
    dynamics_steps: int
    particles: int = 30
    basins: int = len(BASINS)
    directions: int | None = None


def oracle(shared: Path, device: str, dtype: str = "float64") -> MacePotential:
    """MACE-OFF23-small; labels are made in float64, long dynamics in float32."""
    potential = load_potential(shared / "models" / ORACLE, device=device, dtype=dtype)
    assert isinstance(potential, MacePotential)
    return potential


def molecule(shared: Path) -> Atoms:
    """Alanine dipeptide in vacuum, 22 atoms, in the extended conformation C5 of the file."""
    return read(shared / "data" / "alanine_dipeptide_vacuum.xyz")


def with_labels(structures: list[Atoms], potential: MacePotential) -> list[Atoms]:
    """Copies that carry energy (eV) and forces (eV/Å) of ``potential``, and nothing else; evaluated in batches."""
    found: list[Atoms | None] = [None] * len(structures)
    for batch in batches(np.array([len(atoms) for atoms in structures]), atoms=400):
        evaluated = potential.evaluate(potential.batch([structures[i] for i in batch]))
        assert evaluated.forces is not None
        forces = evaluated.forces.double().cpu().numpy()
        stops = np.cumsum([len(structures[i]) for i in batch])
        for i, energy, rows in zip(
            batch, evaluated.energies.double().cpu().tolist(), np.split(forces, stops[:-1]), strict=True
        ):
            atoms = Atoms(structures[i].numbers, structures[i].positions)
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=rows)
            found[i] = atoms
    return [atoms for atoms in found if atoms is not None]


def surrogate(folder: Path, shared: Path, recipe: Surrogate, device: str) -> tuple[Path, dict[str, Any]]:
    """The surrogate's file and what is known of it; fitted where the folder lacks it.

    A MACE of 32 invariant channels and two layers from random parameters, with the oracle's isolated-atom energies, fitted
    to geometries of ANI-1x that the oracle labelled: forces first, then energies, as the embedded model was.
    """
    place = folder / f"surrogate-{_digest(recipe)}"
    path, facts = place / "surrogate.model", place / "facts.json"
    if facts.exists():
        return path, json.loads(facts.read_text())
    place.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter(), time.process_time()
    frames = [atoms for atoms in read(shared / "data" / "ani1x_1000.xyz", ":") if len(atoms) > 1]
    order = np.random.default_rng(SEED).permutation(len(frames))[: recipe.structures]
    reference = oracle(shared, device)
    labels = labelled(with_labels([frames[i] for i in order], reference))
    part = min(HELD_OUT, len(labels) // 5), min(VALIDATION, len(labels) // 10)
    held_out, valid, fitted = labels[: part[0]], labels[part[0] : sum(part)], labels[sum(part) :]
    print(f"surrogate: {len(fitted)} structures", flush=True)
    model = _random_model(reference, fitted)
    first = Recipe(
        epochs=recipe.first_epochs,
        learning_rate=0.01,
        gamma=0.05 ** (1 / recipe.first_epochs),
        energy_weight=10.0,
        forces_weight=100.0,
        batch_size=recipe.batch_size,
        ema=0.995,
    )
    second = first._replace(epochs=recipe.second_epochs, learning_rate=1e-3, gamma=0.97, energy_weight=1000.0)
    potential, _ = train(model, fitted, valid, first, SEED)
    potential, _ = train(potential.model, fitted, valid, second, SEED + 1)
    torch.save(potential.model, path)
    result = errors(load_potential(path, device=device, dtype="float64"), held_out)
    known = {
        "recipe": recipe._asdict(),
        "trained_on": len(fitted),
        "validated_on": len(valid),
        "held_out": len(held_out),
        "parameters": sum(p.numel() for p in potential.model.parameters()),
        "held_out_errors": plain_errors(result),
        "seconds": time.perf_counter() - began[0],
        "core_s": time.process_time() - began[1],
        "fingerprint": load_potential(path).fingerprint,
    }
    facts.write_text(json.dumps(known, indent=1))
    print(f"surrogate: {known['held_out_errors']}, {known['seconds']:.0f} s", flush=True)
    return path, known


def _random_model(reference: MacePotential, fitted: list[Any]) -> torch.nn.Module:
    """32 invariant channels, two layers, drawn anew; scale and shift from the labels that it will be fitted to."""
    from mace import modules

    table: Any = reference.model.atomic_energies_fn.atomic_energies
    own = table.reshape(-1)[[reference.atomic_numbers.index(z) for z in ELEMENTS]].double().cpu().numpy()
    counts = np.array([[int((one.atoms.numbers == z).sum()) for z in ELEMENTS] for one in fitted])
    interaction = np.array([one.energy_eV for one in fitted]) - counts @ own
    neighbours = [len(neighbor_list("i", one.atoms, 4.5)) / len(one.atoms) for one in fitted[:200]]
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript complains of e3nn's annotations
        torch.manual_seed(SEED)
        return modules.ScaleShiftMACE(
            r_max=4.5,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=2,
            interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
            num_interactions=2,
            num_elements=len(ELEMENTS),
            hidden_irreps=o3.Irreps("32x0e"),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=own,
            avg_num_neighbors=float(np.mean(neighbours)),
            atomic_numbers=list(ELEMENTS),
            correlation=3,
            gate=torch.nn.functional.silu,
            radial_MLP=[32, 32, 32],
            atomic_inter_scale=float(np.sqrt(np.mean(np.concatenate([one.forces for one in fitted]) ** 2))),
            atomic_inter_shift=float(interaction.sum() / counts.sum()),
        ).to(torch.float32)


def plain_errors(found: Any) -> dict[str, float]:
    """The totals of :class:`~selectron.training.evaluate.Errors`, and the spread of ΔE, which a constant does not touch."""
    return {
        "energy_rmse_meV_atom": found.energy_rmse_meV_atom,
        "energy_mae_meV_atom": found.energy_mae_meV_atom,
        "energy_rmse_eV": found.energy_rmse_eV,
        "energy_spread_eV": float(found.energy_errors_eV.std()),
        "force_rmse": found.force_rmse,
        "force_mae": found.force_mae,
    }


def angles(structures: list[Atoms], backbone: Backbone) -> np.ndarray:
    """(n, 2) φ and ψ in degrees."""
    if not structures:
        return np.zeros((0, 2))
    positions = np.stack([atoms.positions for atoms in structures])
    return np.stack([dihedral(positions, backbone.phi[0]), dihedral(positions, backbone.psi[0])], axis=1)


def unit_descriptors(structures: list[Atoms], potential: MacePotential) -> Any:
    """The sampler's descriptor, summed invariant node features of all layers, at unit length; one row a structure."""
    features = make_features("activation", potential, FeatureOptions(normalise="unit"))
    return concatenate([features.rows(structures[i : i + 16]) for i in range(0, len(structures), 16)])


def turned(atoms: Atoms, phi: float, psi: float) -> Atoms:
    """``atoms`` with its backbone dihedrals at ``phi`` and ``psi`` (degrees)."""
    backbone = find_backbone(atoms)
    bonds = np.stack(neighbor_list("ij", atoms, natural_cutoffs(atoms, mult=1.15)), axis=1)
    turned = atoms.copy()
    for torsion, angle in ((backbone.phi[0], phi), (backbone.psi[0], psi)):
        side = {int(torsion[2])}
        while True:
            more = {int(j) for i, j in bonds if int(i) in side and int(j) != torsion[1]} - side
            if not more:
                break
            side |= more
        turned.set_dihedral(*torsion.tolist(), angle, indices=sorted(side))
    return turned


def snapshots(potential: MacePotential, start: Atoms, sizes: Any, seed: int) -> list[Atoms]:
    """``sizes.particles`` configurations: ``start`` relaxed with ``potential``, burn-in at 300 K, then regular snapshots."""
    options = sample_options(
        {
            "method": "skmd",
            "particles": sizes.particles,
            "seed": seed,
            "initial": {
                "relax": True,
                "burn_in_steps": sizes.burn_in_steps,
                "snapshot_every": sizes.snapshot_every,
                "temperature_K": 300,
            },
        }
    )
    return initial_structures([start], [potential], options)


def make_tests(
    folder: Path, shared: Path, sizes: TestSets, device: str
) -> tuple[dict[str, list[Atoms]], dict[str, Any]]:
    """Test sets by name with the oracle's labels, and what is known of them; made where the folder lacks them.

    ``skmd``: diverse structures of SKMD with the oracle, as the paper has it. ``md``: Langevin dynamics with the oracle at
    500 K from several minima, which favours none of the samplers that are compared.
    """
    place = folder / f"tests-{_digest(sizes)}"
    facts = place / "facts.json"
    if not facts.exists():
        place.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter(), time.process_time()
        reference, runner = oracle(shared, device), oracle(shared, device, "float32")
        start = molecule(shared)
        minima = _minima(start, runner, sizes.basins)
        of_minima = [atoms.get_potential_energy() for atoms in with_labels(minima, reference)]
        sets = {"md": _dynamics(minima, runner, sizes), "skmd": _stein(start, runner, sizes)}
        known: dict[str, Any] = {
            "sizes": sizes._asdict(),
            "minimum_eV": min(of_minima),
            "minima": [
                {"phi_psi": pair, "energy_eV": energy - min(of_minima)}
                for pair, energy in zip(angles(minima, find_backbone(start)).round(1).tolist(), of_minima, strict=True)
            ],
        }
        for name, structures in sets.items():
            labels = with_labels(structures, reference)
            write_extxyz(place / f"{name}.extxyz", labels)
            above = np.array([atoms.get_potential_energy() for atoms in labels]) - min(of_minima)
            known[name] = {
                "structures": len(labels),
                "energy_above_minimum_eV": dict(
                    zip(("median", "95 %"), np.quantile(above, [0.5, 0.95]).round(4).tolist(), strict=True)
                ),
                "phi_psi": angles(labels, find_backbone(start)).round(1).tolist(),
            }
        known["seconds"] = time.perf_counter() - began[0]
        known["core_s"] = time.process_time() - began[1]
        facts.write_text(json.dumps(known, indent=1))
        print(f"test sets: {known['seconds']:.0f} s", flush=True)
    known = json.loads(facts.read_text())
    return {name: read(place / f"{name}.extxyz", ":") for name in ("skmd", "md")}, known


def _minima(start: Atoms, potential: MacePotential, basins: int) -> list[Atoms]:
    """Where the oracle relaxes to from each of the basins; several may be the same."""
    starts = [turned(start, phi, psi) for phi, psi in BASINS[:basins]]
    options = sample_options({"method": "langevin", "initial": {"relax": True}})
    return initial_structures(starts, [potential], options)


def _dynamics(minima: list[Atoms], potential: MacePotential, sizes: TestSets) -> list[Atoms]:
    each = -(-sizes.structures // len(minima))
    every = sizes.dynamics_steps // each
    options = sample_options(
        {
            "method": "langevin",
            "temperature_K": 500,
            "steps": sizes.settling_steps + each * every,
            "stopping": [{"kind": "fixed-steps", "steps": every}],
            "stride": 0,
            "seed": SEED,
        }
    )
    frames = [one.atoms for one in run_sampling(potential, minima, options) if one.step > sizes.settling_steps]
    chosen = np.linspace(0, len(frames) - 1, min(sizes.structures, len(frames))).round().astype(int)
    return [frames[i] for i in chosen]


def _stein(start: Atoms, potential: MacePotential, sizes: TestSets) -> list[Atoms]:
    options = sample_options(
        {
            "method": "skmd",
            "temperature_K": 50,
            "timestep_fs": 0.1,
            "damping_amu_per_ps": 75,
            "particles": sizes.particles,
            "iterations": sizes.journeys,
            "stopping": [{"kind": "fixed-steps", "steps": sizes.journey_steps}],
            "descriptor": {"directions": sizes.directions},
            "kernel": {"bandwidth": "median"},
            "stride": sizes.stride,
            "seed": SEED,
        }
    )
    frames = [one.atoms for one in run_sampling(potential, snapshots(potential, start, sizes, SEED), options)]
    rows = unit_descriptors(frames, potential)
    picked = select_batch("fps", rows, train=None, budget=sizes.structures).indices.cpu().tolist()
    return [frames[i] for i in sorted(picked)]


def _digest(settings: Surrogate | TestSets) -> str:
    return hashlib.blake2b(json.dumps([SEED, BASINS, settings._asdict()]).encode(), digest_size=4).hexdigest()
