"""Does the score know where the model is wrong? Rank correlation of each score with the true error, and calibration.

    python benchmarks/error_alignment.py [--quick] [--case molecules|surfaces]

molecules: MACE-OFF23-small on frames along reactions, 60 reactants and products as training set, frames of other
reactions as pool. surfaces: MACE-MP-0-small on OC20 relaxations, the last frames of some systems as training set,
frames of other systems as pool. Error bars: bootstrap over reactions or systems. Energy errors are per atom, after a
fit of atomic references to the training set, for the labels are of another level of theory than the model. Writes
error_alignment_CASE.json and .png.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from ase import Atoms

from _common import add_common_arguments, machine_facts, reactive_molecules, sample, save, slabs, spearman
from selectron.acquisition import Posterior, committee_disagreement, default_scale
from selectron.features import FeatureMap, FeatureOptions, make_features
from selectron.potentials import Committee, load_potential
from selectron.rows import Rows, concatenate

mpl.use("Agg")
import matplotlib.pyplot as plt

RELATIVE_NOISE = 1e-3
BATCH = 16


def rows_of(features: FeatureMap, structures: list[Atoms]) -> Rows:
    """Rows, float64 on the CPU, batch by batch."""
    parts = [features.rows(structures[i : i + BATCH]) for i in range(0, len(structures), BATCH)]
    return concatenate([Rows(part.values.to("cpu", torch.float64), part.counts.cpu()) for part in parts])


def variances(train: Rows, pool: Rows, nominal: float) -> np.ndarray:
    """Posterior variance of each pool structure, its rows summed."""
    scale = default_scale(train)
    posterior = Posterior(train.dim, prior_precision=1.0, noise_variance=RELATIVE_NOISE / nominal)
    posterior.update(scale.apply(train))
    return posterior.variance(scale.apply(pool)).numpy()


def molecules(shared: Path, quick: bool, seed: int) -> tuple[list[Atoms], list[Atoms], str, list[str]]:
    """Training set, pool, model, committee."""
    frames = reactive_molecules(shared)
    groups = np.random.default_rng(seed).permutation(sorted({a.info["group"] for a in frames}))
    known = set(groups[: 30 if not quick else 6])
    train = [a for a in frames if a.info["group"] in known and a.info["tag"] in {"R", "P"}]
    pool = sample([a for a in frames if a.info["group"] not in known], 60 if quick else 400, seed)
    return train, pool, "MACE-OFF23_small.model", ["MACE-OFF23_small.model", "mace_test_f32_mace-md.model"]


def surfaces(shared: Path, quick: bool, seed: int) -> tuple[list[Atoms], list[Atoms], str, list[str]]:
    """Training set, pool, model, no committee."""
    frames = slabs(shared)
    groups = np.random.default_rng(seed).permutation(sorted({a.info["group"] for a in frames}))
    known = set(groups[: 3 if quick else 12])
    last = {a.info["group"]: a for a in frames}
    train = [atoms for group, atoms in last.items() if group in known]
    pool = sample([a for a in frames if a.info["group"] not in known], 12 if quick else 150, seed)
    return train, pool, "mace_mp_small.model", []


def errors(potential: Any, train: list[Atoms], pool: list[Atoms]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each pool structure: force RMSE of its free atoms (eV/Å), energy error per atom (eV), predicted rms force."""

    def predict(structures: list[Atoms]) -> tuple[np.ndarray, list[np.ndarray]]:
        energies, forces = [], []
        for start in range(0, len(structures), BATCH):
            part = structures[start : start + BATCH]
            result = potential.evaluate(potential.batch(part))
            energies.append(result.energies.cpu().double().numpy())
            forces += [f.double().numpy() for f in torch.split(result.forces.cpu(), [len(a) for a in part])]
        return np.concatenate(energies), forces

    numbers = sorted({z for a in train + pool for z in a.numbers})

    def composition(structures: list[Atoms]) -> np.ndarray:
        return np.array([[np.sum(a.numbers == z) for z in numbers] for a in structures], dtype=float)

    train_energy, _ = predict(train)
    energy, forces = predict(pool)
    difference = np.array([a.get_potential_energy() for a in train]) - train_energy
    shift = np.linalg.lstsq(composition(train), difference, rcond=None)[0]
    true = np.array([a.get_potential_energy() for a in pool]) - composition(pool) @ shift
    sizes = np.array([len(a) for a in pool])
    force_error = np.array([rms((f - a.get_forces())[a.arrays["free"]]) for f, a in zip(forces, pool, strict=True)])
    return force_error, np.abs(true - energy) / sizes, np.array([rms(f) for f in forces])


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def with_spread(score: np.ndarray, error: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, float]:
    """Spearman correlation, and its standard deviation by bootstrap over groups."""
    random = np.random.default_rng(seed)
    names = np.unique(groups)
    members = {name: np.flatnonzero(groups == name) for name in names}
    draws = []
    for _ in range(200):
        chosen = np.concatenate([members[name] for name in random.choice(names, len(names))])
        draws.append(spearman(score[chosen], error[chosen]))
    return {"rho": spearman(score, error), "std": float(np.std(draws))}


def calibration(variance: np.ndarray, error: np.ndarray, groups: np.ndarray, seed: int) -> dict[str, float]:
    """error² ≈ c · variance^γ, fitted on half of the groups in logarithms; how it does on the other half.

    Coverage: fraction of errors below the 50 % and 90 % quantiles that the fit half's residuals predict. Sharpness: the
    standard deviation of ln(error / prediction), beside that of a constant prediction.
    """
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    fit = np.isin(groups, names[: len(names) // 2])
    x, y = 0.5 * np.log(np.maximum(variance, 1e-300)), np.log(np.maximum(error, 1e-12))
    slope, intercept = np.polyfit(x[fit], y[fit], 1)
    residual, test = y[fit] - slope * x[fit] - intercept, y[~fit] - slope * x[~fit] - intercept
    return {
        "slope": float(slope),
        "coverage_50": float(np.mean(test < np.quantile(residual, 0.5))),
        "coverage_90": float(np.mean(test < np.quantile(residual, 0.9))),
        "residual_std": float(np.std(test)),
        "constant_residual_std": float(np.std(y[~fit])),
    }


def main() -> None:
    """Runs the case and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--case", choices=["molecules", "surfaces"], default="molecules")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probes", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    case = molecules if arguments.case == "molecules" else surfaces
    train, pool, model, members = case(arguments.shared, arguments.quick, arguments.seed)
    folder = arguments.shared / "models"
    potential = load_potential(folder / model, device=arguments.device)
    force_error, energy_error, predicted = errors(potential, train, pool)
    groups = np.array([a.info["group"] for a in pool])
    sizes = np.array([len(a) for a in pool])
    train_probes: Any = "exact" if arguments.case == "molecules" else 16
    scores: dict[str, np.ndarray] = {"number of atoms": sizes.astype(float), "predicted rms force": predicted}
    seconds: dict[str, float] = {}
    plain = ("activation", "energy-ntk", "soap", "random", "random-activation")
    maps: dict[str, tuple[str, Any, Any]] = {name: (name, None, None) for name in plain}
    maps["force-ntk"] = ("force-ntk", train_probes, arguments.probes)
    maps["joint-ntk"] = ("joint-ntk", train_probes, arguments.probes)
    for label, (name, probes_of_train, probes_of_pool) in maps.items():
        began = time.perf_counter()
        options = FeatureOptions(seed=arguments.seed)
        of_train = make_features(name, potential, options._replace(probes=probes_of_train or 4))
        of_pool = make_features(name, potential, options._replace(probes=probes_of_pool or 4))
        nominal = 1.0 if probes_of_train is None else float(np.mean([3 * len(a) for a in train]))
        variance = variances(rows_of(of_train, train), rows_of(of_pool, pool), nominal)
        scores[label], scores[f"{label} per atom"] = variance, variance / sizes
        seconds[label] = time.perf_counter() - began
        print(f"{label:20} {seconds[label]:6.1f} s  force {spearman(variance / sizes, force_error):.3f}", flush=True)
    if members:
        committee = Committee([load_potential(folder / name, device=arguments.device) for name in members])
        parts = [committee.evaluate(pool[i : i + BATCH]) for i in range(0, len(pool), BATCH)]
        said = [committee_disagreement(p.energies, p.forces, p.counts) for p in parts]
        scores[f"committee of {len(members)}, mean force"] = np.concatenate([d.force_mean for d in said])
        scores[f"committee of {len(members)}, energy"] = np.concatenate([d.energy for d in said])
    table = {
        label: {
            "force": with_spread(score, force_error, groups, arguments.seed),
            "energy per atom": with_spread(score, energy_error, groups, arguments.seed),
            "calibration force": calibration(score, force_error, groups, arguments.seed),
        }
        for label, score in scores.items()
    }
    name = f"error_alignment_{arguments.case}{'_quick' if arguments.quick else ''}"
    save(
        arguments.output,
        name,
        {
            "what": __doc__.split("\n")[0],
            "model": model,
            "training structures": len(train),
            "pool structures": len(pool),
            "groups in the pool": len(set(groups)),
            "seed": arguments.seed,
            "probes": {"training set": train_probes, "pool": arguments.probes},
            "machine": machine_facts(arguments.device),
            "seconds": seconds,
            "spearman": table,
            "raw": {
                "group": groups.tolist(),
                "force_rmse_eV_per_A": np.round(force_error, 5).tolist(),
                "energy_error_eV_per_atom": np.round(energy_error, 6).tolist(),
                "scores": {label: [float(f"{v:.5g}") for v in score] for label, score in scores.items()},
            },
        },
    )
    draw(
        table,
        arguments.output / f"{name}.png",
        f"{Path(model).stem}, {len(pool)} structures of {len(set(groups))} groups",
    )
    for label, entry in table.items():
        force, energy = entry["force"], entry["energy per atom"]
        print(
            f"{label:32} force {force['rho']:6.3f} ± {force['std']:.3f}   energy {energy['rho']:6.3f} ± {energy['std']:.3f}"
        )


def draw(table: dict[str, Any], path: Path, title: str) -> None:
    """Bars with error bars, best force score on top."""
    labels = sorted(table, key=lambda label: table[label]["force"]["rho"])
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(labels) + 1.2), layout="constrained")
    places = np.arange(len(labels))
    for shift, kind, colour in ((0.2, "force", "#31688e"), (-0.2, "energy per atom", "#b5b5b5")):
        values = [table[label][kind]["rho"] for label in labels]
        spread = [table[label][kind]["std"] for label in labels]
        axes.barh(
            places + shift, values, 0.38, xerr=spread, color=colour, label=f"error of {kind}", error_kw={"lw": 0.8}
        )
    axes.set_yticks(places, labels)
    axes.set_xlabel("Spearman correlation of the score with the true error")
    axes.set_title(title, fontsize=10)
    axes.axvline(0, color="black", lw=0.6)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
