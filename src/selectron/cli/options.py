"""Options that several commands share, and what they amount to.

Torch and mace-torch take seconds to import, so modules of the command line import them where a command needs them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from ase import Atoms

from selectron.errors import SelectronError

if TYPE_CHECKING:
    from selectron.features import FeatureMap, FeatureOptions, FeatureStore
    from selectron.features.force_ntk import Probes
    from selectron.potentials import Committee, Potential
    from selectron.structures import Checks, Pool

PoolArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="POOL...",
        help="Files, globs or folders with candidate structures; 'embedded' for the pool that comes along.",
    ),
]
ModelOption = Annotated[
    list[str],
    typer.Option(
        "--model",
        "-m",
        help="A mace-torch .model file (a pickle: open only what you trust), 'embedded', or a name from 'selectron models'. "
        "More than once for a committee; features come from the first.",
    ),
]
TrainOption = Annotated[
    list[str],
    typer.Option("--train", "-t", help="Structures that are labelled already; more than once for several files."),
]
FeaturesOption = Annotated[str, typer.Option("--features", "-f", help="See 'selectron features'.")]
DimOption = Annotated[int, typer.Option("--dim", help="Length of the feature sketch.")]
ParametersOption = Annotated[str, typer.Option(help="Parameters of the NTK: all, readout or last-layer.")]
NormaliseOption = Annotated[str, typer.Option(help="none, per-atom or unit (length of a structure's features).")]
ProbesOption = Annotated[
    str, typer.Option(help="Force rows a structure of the pool: a number of random probes, or 'exact' for all 3N.")
]
TrainProbesOption = Annotated[
    str,
    typer.Option(help="The same for the training set; 'auto': exact up to 30,000 force components, else 16 probes."),
]
EnergyWeightOption = Annotated[float, typer.Option(help="Weight of energies in the loss that joint-ntk stands for.")]
ForceWeightOption = Annotated[float, typer.Option(help="Weight of forces in that loss.")]
RankByOption = Annotated[
    str,
    typer.Option(help="What top-k and the shortlist go by: variance, per-component, per-atom or max-atom."),
]
EnergyKeyOption = Annotated[
    str | None,
    typer.Option(help="Key of the labels' energy.", show_default="REF_energy, else the calculator's energy"),
]
ForcesKeyOption = Annotated[
    str | None, typer.Option(help="Key of the labels' forces.", show_default="those that go with the energy")
]
StressKeyOption = Annotated[
    str | None,
    typer.Option(
        help="Key of the labels' stress, or of a virial if its name says so.",
        show_default="that which goes with the energy",
    ),
]
HeadOption = Annotated[str | None, typer.Option(help="Head of a model with several.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
DtypeOption = Annotated[str, typer.Option(help="float32 or float64.")]
SeedOption = Annotated[int, typer.Option(help="Of the sketch, of random parameters and of the selector.")]
BatchSizeOption = Annotated[str, typer.Option(help="Structures in a batch, or 'auto'.")]
MinDistanceOption = Annotated[
    float | None, typer.Option(help="Å; structures with atoms closer than this are quarantined.", show_default="0.4")
]
NoiseOption = Annotated[
    float, typer.Option(help="Noise variance of the posterior, relative to the mean squared norm of a training row.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder for feature rows, so that no row is computed twice.", show_default="the user's cache folder"
    ),
]
NoCacheOption = Annotated[bool, typer.Option("--no-cache", help="Forget feature rows at the end.")]
QuarantineOption = Annotated[
    Path | None,
    typer.Option(
        help="Where unusable structures are noted, with reasons.", show_default="quarantine.csv beside the output"
    ),
]

EXACT_COMPONENTS, TRAIN_PROBES = 30_000, 16
"""Force components of a training set up to which it gets exact rows by default, and how many probes it gets beyond."""


@dataclass
class Setup:
    """What the shared options amount to."""

    pool: Pool
    train: Pool | None
    potentials: list[Potential]
    committee: Committee | None
    features: FeatureMap
    store: FeatureStore
    train_features: FeatureMap
    train_store: FeatureStore
    checks: Checks
    batch_size: int | None


def set_up(
    pool: list[str],
    model: list[str],
    train: list[str],
    features: str,
    options: FeatureOptions,
    *,
    train_probes: str,
    head: str | None,
    device: str,
    dtype: str,
    batch_size: str,
    min_distance: float | None,
    cache: Path | None,
    no_cache: bool,
) -> Setup:
    """Opens files and models; raises SelectronError with one sentence for what cannot be used."""
    from selectron.features import FeatureStore, default_cache, make_features
    from selectron.potentials import Committee, load_potential, settle_threads
    from selectron.screening import default_checks
    from selectron.structures import Pool

    size = parse_batch_size(batch_size)
    check_min_distance(min_distance)
    opened = Pool.open(pool)
    opened_train = Pool.open(train) if train else None
    potentials = [load_potential(spec, device=device, dtype=dtype, head=head) for spec in model]
    settle_threads(potentials)
    first = potentials[0] if potentials else None
    feature_map = make_features(features, first, options)
    train_map = feature_map
    if hasattr(feature_map, "probes"):
        of_training = _probes_of_training(train_probes, opened_train)
        train_map = make_features(features, first, options._replace(probes=of_training))
    committee = Committee(potentials) if len(potentials) > 1 else None
    folder = None if no_cache else (cache or default_cache()) / "features"
    return Setup(
        pool=opened,
        train=opened_train,
        potentials=potentials,
        committee=committee,
        features=feature_map,
        store=FeatureStore(folder, feature_map.fingerprint, feature_map.dim),
        train_features=train_map,
        train_store=FeatureStore(folder, train_map.fingerprint, train_map.dim),
        checks=default_checks(feature_map, committee, min_distance),
        batch_size=size,
    )


def _probes_of_training(text: str, train: Pool | None) -> Probes:
    """What ``--train-probes`` says; "auto" looks at the size of the training set."""
    if text != "auto":
        return parse_probes(text)
    components = 0
    for chunk in train.chunks(512) if train is not None else ():
        components += sum(3 * len(atoms) for _, atoms in chunk if isinstance(atoms, Atoms))
        if components > EXACT_COMPONENTS:
            return TRAIN_PROBES
    return "exact"


def parse_probes(text: str) -> Probes:
    """A number from 1, or "exact"."""
    if text == "exact":
        return "exact"
    if not text.isdecimal() or int(text) < 1:
        raise SelectronError(f"Probes are a whole number from 1, or 'exact', not {text!r}.")
    return int(text)


def check_min_distance(length_A: float | None) -> None:
    """A sentence where it is no length."""
    if length_A is not None and not (math.isfinite(length_A) and length_A >= 0.0):
        raise SelectronError(f"The smallest distance between atoms is a length in Å from 0, not {length_A}.")


def parse_batch_size(text: str) -> int | None:
    """None for "auto"."""
    if text == "auto":
        return None
    if not text.isdecimal() or int(text) < 1:
        raise SelectronError(f"The batch size is 'auto' or a whole number from 1, not {text!r}.")
    return int(text)


def check_outputs(outputs: Iterable[Path], inputs: Iterable[str]) -> None:
    """A sentence, before any work is done, where an output cannot be written or would replace an input or another output."""
    taken = {os.path.realpath(Path(one).expanduser()) for one in inputs}
    for path in outputs:
        real = Path(os.path.realpath(path))
        if real.is_dir():
            raise SelectronError(f"{path} is a folder; name a file for the output.")
        if not real.parent.is_dir():
            raise SelectronError(f"The folder {path.parent} for the output {path.name} does not exist.")
        if not os.access(real.parent, os.W_OK | os.X_OK):
            raise SelectronError(f"You may not write into the folder {path.parent}, where {path.name} should go.")
        if str(real) in taken:
            raise SelectronError(f"{path} would be written over an input or another output; choose another name.")
        taken.add(str(real))
