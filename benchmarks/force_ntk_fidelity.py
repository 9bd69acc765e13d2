"""How well do probed force variances stand for exact ones?

    python benchmarks/force_ntk_fidelity.py [--quick] [--case molecules|surfaces]

For p = 1, 2, 4, 8, 16 probes and D = 256, 512, 1024 features: Spearman correlation of probed with exact posterior
variances, overlap of the 5 % of largest variance, and overlap of a batch of 20 picked with ipv and with maxdet. The
training set has exact rows, and once probed rows with the same p; beside them plain random signs on all components.
Spread: standard deviation over independent sets of probes. Writes force_ntk_fidelity_CASE.json and .png.
"""

from __future__ import annotations

import argparse
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from ase import Atoms

from _common import add_common_arguments, machine_facts, reactive_molecules, sample, save, slabs, spearman
from selectron.acquisition import Posterior, default_scale, select_batch
from selectron.features import ForceNTKFeatures
from selectron.features.probes import colour, couplings
from selectron.potentials import load_potential
from selectron.rows import Rows, concatenate

mpl.use("Agg")
import matplotlib.pyplot as plt

BATCH, PICKS, NOISE = 8, 20, 1e-3


def exact_rows(features: ForceNTKFeatures, structures: list[Atoms]) -> Rows:
    """All 3N rows of each."""
    parts = [features.rows(structures[i : i + BATCH]) for i in range(0, len(structures), BATCH)]
    return concatenate([Rows(part.values.to("cpu", torch.float64), part.counts.cpu()) for part in parts])


def probed_rows(exact: Rows, coupling: list[np.ndarray] | None, probes: int, random: np.random.Generator) -> Rows:
    """Sign combinations of exact rows: what probing gives but for the error of the difference quotient (5e-3 in float32).

    With ``coupling`` signs on coloured groups, without it signs on all components.
    """
    blocks = []
    for place, (start, count) in enumerate(zip(exact.offsets[:-1].tolist(), exact.counts.tolist(), strict=True)):
        if coupling is None:
            signs = random.choice([-1.0, 1.0], size=(probes, count)) * probes**-0.5
        else:
            signs = colour(coupling[place], probes, random).transpose(1, 0, 2).reshape(probes, count)
        blocks.append(torch.from_numpy(signs) @ exact.values[start : start + count])
    return Rows(torch.cat(blocks), torch.full_like(exact.counts, probes))


def judge(train: Rows, pool: Rows, reference: dict[str, Any] | None, nominal: float) -> dict[str, Any]:
    """Variances and picks, and how they compare with the reference's."""
    scale = default_scale(train)
    noise = NOISE / nominal
    posterior = Posterior(train.dim, prior_precision=1.0, noise_variance=noise)
    posterior.update(scale.apply(train))
    scaled = scale.apply(pool)
    variance = posterior.variance(scaled).numpy()
    picks = {
        name: set(
            select_batch(
                name, scaled, train=scale.apply(train), budget=min(PICKS, len(variance) // 2), noise_variance=noise
            ).indices.tolist()
        )
        for name in ("ipv", "maxdet")
    }
    result: dict[str, Any] = {"variance": variance, "picks": picks}
    if reference is not None:
        top = max(1, round(0.05 * len(variance)))
        best = set(np.argsort(-variance)[:top]) & set(np.argsort(-reference["variance"])[:top])
        result["spearman"] = spearman(variance, reference["variance"])
        result["top 5 %"] = len(best) / top
        for name, chosen in picks.items():
            result[f"batch {name}"] = len(chosen & reference["picks"][name]) / len(chosen)
    return result


def main() -> None:
    """Runs the case and writes its results."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--case", choices=["molecules", "surfaces"], default="molecules")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pool", type=int)
    parser.add_argument("--dims", type=int, nargs="+", default=[256, 512, 1024])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    on_surfaces = arguments.case == "surfaces"
    frames = (slabs if on_surfaces else reactive_molecules)(arguments.shared)
    model = "mace_mp_small.model" if on_surfaces else "MACE-OFF23_small.model"
    if on_surfaces:  # the smaller slabs: exact rows of a hundred atoms take half a minute
        frames = [atoms for atoms in frames if len(atoms) <= 50]
    count = arguments.pool or ((12 if on_surfaces else 30) if arguments.quick else (40 if on_surfaces else 150))
    n_train = 4 if arguments.quick else (8 if on_surfaces else 30)
    groups = np.random.default_rng(0).permutation(sorted({a.info["group"] for a in frames}))
    known = set(groups[: max(1, len(groups) // 4)])
    train = sample([a for a in frames if a.info["group"] in known], n_train, 0)
    pool = sample([a for a in frames if a.info["group"] not in known], count, 0)
    potential = load_potential(arguments.shared / "models" / model, device=arguments.device)
    pool_coupling = [couplings(potential.batch([atoms]))[0] for atoms in pool]
    train_coupling = [couplings(potential.batch([atoms]))[0] for atoms in train]
    entries: list[dict[str, Any]] = []
    rows: dict[int, tuple[Rows, Rows]] = {}
    dims = [512] if arguments.quick else arguments.dims
    for dim in dims:
        features = ForceNTKFeatures(potential, dim=dim, probes="exact")
        rows[dim] = exact_rows(features, train), exact_rows(features, pool)
        print(f"exact rows, D = {dim}", flush=True)
    nominal = float(rows[dims[0]][0].counts.double().mean())
    widest = judge(*rows[dims[-1]], None, nominal)
    for dim, (exact_train, exact_pool) in rows.items():
        reference = judge(exact_train, exact_pool, None, nominal)
        entries.append({"dim": dim, "probes": "exact", **compared(judge(exact_train, exact_pool, widest, nominal))})
        for probes in (1, 2, 4, 8, 16):
            for seed in range(arguments.seeds):
                random = np.random.default_rng(seed)
                plain = judge(exact_train, probed_rows(exact_pool, None, probes, random), reference, nominal)
                pool_rows = probed_rows(exact_pool, pool_coupling, probes, random)
                with_exact = judge(exact_train, pool_rows, reference, nominal)
                probed_train = probed_rows(exact_train, train_coupling, probes, random)
                with_probed = judge(probed_train, pool_rows, reference, nominal)
                kinds = (("exact", with_exact), ("probed", with_probed), ("exact, plain signs", plain))
                for kind, judged in kinds:
                    entries.append({"dim": dim, "probes": probes, "seed": seed, "train": kind, **compared(judged)})
    name = f"force_ntk_fidelity_{arguments.case}{'_quick' if arguments.quick else ''}"
    summary = summarise(entries)
    save(
        arguments.output,
        name,
        {
            "what": __doc__.split("\n")[0],
            "model": model,
            "training structures": len(train),
            "pool structures": len(pool),
            "mean force components": nominal,
            "machine": machine_facts(arguments.device),
            "summary": summary,
            "raw": entries,
        },
    )
    for line in summary:
        if line["dim"] == 512:
            print(line)
    draw(summary, arguments.output / f"{name}.png", f"{model}, {len(pool)} structures, exact training rows")


def compared(judged: dict[str, Any]) -> dict[str, float]:
    """Only the numbers that compare."""
    return {k: round(float(v), 4) for k, v in judged.items() if k not in {"variance", "picks"}}


def summarise(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds."""
    kinds = sorted({(e["dim"], e["probes"], e["train"]) for e in entries if e["probes"] != "exact"})
    out = []
    for dim, probes, train in kinds:
        chosen = [e for e in entries if (e["dim"], e["probes"], e.get("train")) == (dim, probes, train)]
        line: dict[str, Any] = {"dim": dim, "probes": probes, "train": train}
        for key in ("spearman", "top 5 %", "batch ipv", "batch maxdet"):
            values = [e[key] for e in chosen]
            line[key], line[f"{key} std"] = round(float(np.mean(values)), 4), round(float(np.std(values)), 4)
        out.append(line)
    return out


def draw(summary: list[dict[str, Any]], path: Any, title: str) -> None:
    """One panel a measure, one line a D."""
    keys = ("spearman", "top 5 %", "batch ipv", "batch maxdet")
    figure, panels = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained", sharex=True)
    for axes, key in zip(panels, keys, strict=True):
        for dim in sorted({line["dim"] for line in summary}):
            lines = [line for line in summary if line["dim"] == dim and line["train"] == "exact"]
            axes.errorbar(
                [line["probes"] for line in lines],
                [line[key] for line in lines],
                [line[f"{key} std"] for line in lines],
                marker="o",
                ms=4,
                capsize=2,
                label=f"D = {dim}",
            )
        axes.set_xscale("log", base=2)
        axes.set_xlabel("probes a structure")
        axes.set_title(
            {"spearman": "rank correlation", "top 5 %": "overlap of the top 5 %"}.get(key, f"overlap, {key}")
        )
        axes.set_ylim(0, 1.02)
    panels[0].axhline(0.95, color="grey", lw=0.7, ls="--")
    panels[0].legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
