"""The feature maps by name, and how to make one."""

from __future__ import annotations

from typing import Any, NamedTuple

from selectron.errors import SelectronError
from selectron.features.activation import ActivationFeatures
from selectron.features.base import FeatureMap, check_normalisation
from selectron.features.energy_ntk import EnergyNTKFeatures
from selectron.features.force_ntk import ForceNTKFeatures, JointNTKFeatures, Probes
from selectron.features.soap import SoapFeatures
from selectron.potentials.base import Potential
from selectron.potentials.mace import MacePotential


class FeatureInfo(NamedTuple):
    """One line for ``selectron features``, and what the map asks of the potential."""

    summary: str
    needs: frozenset[str]


FEATURES: dict[str, FeatureInfo] = {
    "activation": FeatureInfo(
        "invariant node features of all layers, summed over atoms; cheapest", frozenset({"node-features"})
    ),
    "energy-ntk": FeatureInfo(
        "gradient of the energy with respect to the parameters, sketched; the default",
        frozenset({"parameter-gradients"}),
    ),
    "force-ntk": FeatureInfo(
        "gradients of all forces with respect to the parameters, by random probes or exact",
        frozenset({"parameter-gradients"}),
    ),
    "joint-ntk": FeatureInfo(
        "energy and force NTK together, weighted as in the training loss", frozenset({"parameter-gradients"})
    ),
    "soap": FeatureInfo("SOAP power spectrum, no model; control", frozenset()),
    "random": FeatureInfo(
        "energy NTK of the same architecture with random parameters; control", frozenset({"parameter-gradients"})
    ),
    "random-activation": FeatureInfo(
        "activations of the same architecture with random parameters; control", frozenset({"node-features"})
    ),
}


class FeatureOptions(NamedTuple):
    """Settings of a feature map, each with its default.

    | field         | meaning                                                                      |
    |---------------|------------------------------------------------------------------------------|
    | dim           | D, length of the sketch                                                      |
    | parameters    | of the NTK: "all", "readout" or "last-layer"                                 |
    | normalise     | "none", "per-atom" or "unit"                                                 |
    | seed          | of the sketch, and of random parameters                                      |
    | probes        | of force rows: how many a structure, or "exact"                              |
    | energy_weight | w_E of the joint kernel's loss                                               |
    | force_weight  | w_F                                                                          |
    """

    dim: int = 512
    parameters: str = "all"
    normalise: str = "none"
    seed: int = 0
    probes: Probes = 4
    energy_weight: float = 1.0
    force_weight: float = 10.0


def make_features(name: str, potential: Potential | None, options: FeatureOptions | None = None) -> FeatureMap:
    """The feature map ``name`` on ``potential``; raises SelectronError where there is none or the potential cannot give it."""
    options = options or FeatureOptions()
    if name not in FEATURES:
        raise SelectronError(f"There are no features called {name!r}; there are {', '.join(FEATURES)}.")
    if options.dim < 1:
        raise SelectronError(f"Features need at least 1 dimension, not {options.dim}.")
    normalise = check_normalisation(options.normalise)
    if name == "soap":
        return SoapFeatures(dim=options.dim, seed=options.seed, normalise=normalise)
    if potential is None:
        raise SelectronError(f"{name} features are made from a model: name one with --model.")
    missing = FEATURES[name].needs - potential.capabilities
    if missing or not isinstance(potential, MacePotential):
        raise SelectronError(
            f"{potential.name} cannot give {name} features: they need {' and '.join(sorted(FEATURES[name].needs))}, "
            "which only MACE models offer here."
        )
    if name.startswith("random"):
        potential = potential.randomly_initialised(options.seed)
    if name.endswith("activation"):
        return ActivationFeatures(potential, normalise=normalise)
    shared: dict[str, Any] = {
        "dim": options.dim,
        "parameters": options.parameters,
        "seed": options.seed,
        "normalise": normalise,
    }
    if name == "force-ntk":
        return ForceNTKFeatures(potential, probes=options.probes, **shared)
    if name == "joint-ntk":
        weights = {"energy_weight": options.energy_weight, "force_weight": options.force_weight}
        return JointNTKFeatures(potential, probes=options.probes, **weights, **shared)
    return EnergyNTKFeatures(potential, **shared)
