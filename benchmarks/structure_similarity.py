"""Which similarity of two structures with many force rows serves LCMD best?

    python benchmarks/structure_similarity.py [--quick]

LCMD picks 20 of a pool of reactive molecules (MACE-OFF23-small, 4 probes a structure) by one of four vectors:

* ``rows``: Hilbert-Schmidt kernel of the row blocks;
* ``whitened``: the same of rows whitened by the posterior, φ Λ^(-1/2);
* ``pooled``: the energy row beside the root mean square of the force rows, feature by feature;
* ``energy``: the energy row alone.

Judged with exact rows, which no method saw: the fraction of the pool's summed force variance that is left after
conditioning on the picks, and the mean true force error of the picks over that of the pool; maxdet and ipv on the
probed rows, and random picks, stand beside them. Spread over draws of training set and pool. Writes
structure_similarity.json.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

from _common import add_common_arguments, machine_facts, reactive_molecules, sample, save
from selectron.acquisition import Posterior, default_scale, select_batch, structure_embedding
from selectron.features import EnergyNTKFeatures, ForceNTKFeatures
from selectron.potentials import load_potential
from selectron.rows import Rows, concatenate, one_row_each

NOISE, PICKS, BATCH = 1e-3, 20, 8


def main() -> None:
    """Runs all seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    potential = load_potential(arguments.shared / "models" / "MACE-OFF23_small.model", device=arguments.device)
    frames = reactive_molecules(arguments.shared)
    entries: list[dict[str, Any]] = []
    for seed in range(1 if arguments.quick else arguments.seeds):
        entries += one_seed(potential, frames, seed, 30 if arguments.quick else 100, arguments.quick)
        print(f"seed {seed}", flush=True)
    summary = {}
    for method in dict.fromkeys(entry["method"] for entry in entries):
        chosen = [entry for entry in entries if entry["method"] == method]
        summary[method] = {
            key: [float(np.mean([e[key] for e in chosen])), float(np.std([e[key] for e in chosen]))]
            for key in ("variance left", "error of picks over pool")
        }
        print(method, summary[method])
    save(
        arguments.output,
        f"structure_similarity{'_quick' if arguments.quick else ''}",
        {
            "what": __doc__.split("\n")[0],
            "picks": PICKS,
            "machine": machine_facts(arguments.device),
            "summary, mean and standard deviation over seeds": summary,
            "raw": entries,
        },
    )


def rows_of(features: Any, structures: list[Any]) -> Rows:
    """Rows, float64 on the CPU."""
    parts = [features.rows(structures[i : i + BATCH]) for i in range(0, len(structures), BATCH)]
    return concatenate([Rows(part.values.to("cpu", torch.float64), part.counts.cpu()) for part in parts])


def one_seed(potential: Any, frames: list[Any], seed: int, count: int, quick: bool) -> list[dict[str, Any]]:
    """All methods on one draw of training set and pool."""
    groups = np.random.default_rng(seed).permutation(sorted({a.info["group"] for a in frames}))
    known = set(groups[: len(groups) // 4])
    train = sample(
        [a for a in frames if a.info["group"] in known and a.info["tag"] in {"R", "P"}], 8 if quick else 20, seed
    )
    pool = sample([a for a in frames if a.info["group"] not in known], count, seed)
    exact_map, probed_map = ForceNTKFeatures(potential, probes="exact"), ForceNTKFeatures(potential, probes=4)
    energy_map = EnergyNTKFeatures(potential)
    exact_train, exact_pool = rows_of(exact_map, train), rows_of(exact_map, pool)
    scale = default_scale(exact_train)
    noise = NOISE / float(exact_train.counts.double().mean())
    exact_train, exact_pool = scale.apply(exact_train), scale.apply(exact_pool)
    probed = {"train": scale.apply(rows_of(probed_map, train)), "pool": scale.apply(rows_of(probed_map, pool))}
    energy = {"train": rows_of(energy_map, train), "pool": rows_of(energy_map, pool)}
    posterior = Posterior(exact_train.dim, noise_variance=noise)
    posterior.update(exact_train)
    before = float(posterior.variance(exact_pool).sum())
    error = true_errors(potential, pool)

    def pooled(part: str) -> torch.Tensor:
        square = torch.zeros(probed[part].n_structures, probed[part].dim, dtype=torch.float64)
        square.index_add_(0, probed[part].owner, probed[part].values.square())
        unit = energy["train"].values.square().sum(1).mean().sqrt()
        return torch.cat([energy[part].values / unit, square.sqrt()], dim=1)

    vectors = {
        "lcmd, rows": lambda part: structure_embedding(probed[part], single=False),
        "lcmd, whitened": lambda part: structure_embedding(
            Rows(posterior.whiten(probed[part].values).T, probed[part].counts), single=False
        ),
        "lcmd, pooled": pooled,
        "lcmd, energy": lambda part: energy[part].values,
    }
    picks = {
        name: select_batch("lcmd", one_row_each(of("pool")), train=one_row_each(of("train")), budget=PICKS).indices
        for name, of in vectors.items()
    }
    for name in ("maxdet", "ipv"):
        chosen = select_batch(name, probed["pool"], train=exact_train, budget=PICKS, noise_variance=noise)
        picks[f"{name}, probed rows"] = chosen.indices
    for draw in range(5):
        picks[f"random {draw}"] = torch.from_numpy(np.random.default_rng(100 * seed + draw).permutation(count)[:PICKS])
    entries = []
    for name, chosen in picks.items():
        after = Posterior(exact_train.dim, noise_variance=noise)
        after.update(exact_train)
        after.update(exact_pool.take(chosen))
        entries.append(
            {
                "seed": seed,
                "method": "random" if name.startswith("random") else name,
                "variance left": float(after.variance(exact_pool).sum()) / before,
                "error of picks over pool": float(error[chosen.numpy()].mean() / error.mean()),
            }
        )
    return entries


def true_errors(potential: Any, structures: list[Any]) -> np.ndarray:
    """Force RMSE of each structure against its labels, eV/Å."""
    errors = []
    for atoms in structures:
        forces = potential.evaluate(potential.batch([atoms])).forces.cpu().numpy()
        errors.append(float(np.sqrt(np.mean((forces - atoms.get_forces()) ** 2))))
    return np.array(errors)


if __name__ == "__main__":
    main()
