"""Small randomly initialised MACE models of many kinds, structures for them, and what plain mace-torch says of those.

Everything here goes through mace-torch's own data pipeline, neighbour list and layers: it shares no code with selectron.
"""

import copy
import functools

import mace  # noqa: F401  must come before e3nn
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, graphene, molecule
from e3nn import o3
from mace import data, modules, tools
from mace.tools import torch_geometric

ELEMENTS = [1, 6, 8]
ATOMIC_ENERGIES = [-1.0, -3.0, -5.0]

_L1 = "6x0e + 6x1o"
_FIRST = "RealAgnosticInteractionBlock"
_RESIDUAL = "RealAgnosticResidualInteractionBlock"
VARIANTS = {
    "L=0": {"hidden_irreps": "6x0e"},
    "L=1": {"hidden_irreps": _L1},
    "L=2": {"hidden_irreps": "4x0e + 4x1o + 4x2e", "correlation": 2},
    "residual first": {"hidden_irreps": _L1, "first": _RESIDUAL},
    "three layers": {"hidden_irreps": _L1, "num_interactions": 3, "correlation": 2},
    "one layer": {"hidden_irreps": _L1, "num_interactions": 1},
    "density": {
        "hidden_irreps": _L1,
        "first": "RealAgnosticDensityInteractionBlock",
        "rest": "RealAgnosticDensityResidualInteractionBlock",
    },
    "nonlinear": {
        "hidden_irreps": _L1,
        "first": "RealAgnosticResidualNonLinearInteractionBlock",
        "rest": "RealAgnosticResidualNonLinearInteractionBlock",
        "keep_last_layer_irreps": True,
    },
    "bias readout": {"hidden_irreps": "6x0e", "readout_cls": modules.NonLinearBiasReadoutBlock},
    "two heads": {"hidden_irreps": _L1, "heads": ["first", "second"]},
    "no scale-shift": {"hidden_irreps": _L1, "scale_shift": False},
    "ZBL and Agnesi": {"hidden_irreps": "6x0e", "pair_repulsion": True, "distance_transform": "Agnesi"},
    "agnostic product": {"hidden_irreps": _L1, "use_agnostic_product": True},
    "correlation 1": {"hidden_irreps": _L1, "correlation": 1},
    "last readout only": {"hidden_irreps": _L1, "use_last_readout_only": True},
}


def small_mace(
    *,
    hidden_irreps=_L1,
    first=_FIRST,
    rest=_RESIDUAL,
    heads=("Default",),
    scale_shift=True,
    correlation=3,
    num_interactions=2,
    r_max=3.5,
    seed=0,
    untouched=False,
    **options,
):
    """A random float64 model; the seed fixes every parameter. ``untouched``: as mace-torch makes it, constants and all."""
    heads = list(heads)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            settings = {
                "r_max": r_max,
                "num_bessel": 4,
                "num_polynomial_cutoff": 5,
                "max_ell": 2,
                "interaction_cls": modules.interaction_classes[rest],
                "interaction_cls_first": modules.interaction_classes[first],
                "num_interactions": num_interactions,
                "num_elements": len(ELEMENTS),
                "hidden_irreps": o3.Irreps(hidden_irreps),
                "MLP_irreps": o3.Irreps("5x0e"),
                "atomic_energies": np.array([np.array(ATOMIC_ENERGIES) + i for i in range(len(heads))]).squeeze(),
                "avg_num_neighbors": 6.0,
                "atomic_numbers": ELEMENTS,
                "correlation": correlation,
                "gate": torch.nn.functional.silu,
                "radial_MLP": [7, 7],
                "heads": heads,
                **options,
            }
            if scale_shift:
                scale = 0.8 if len(heads) == 1 else [0.8 + 0.1 * i for i in range(len(heads))]
                shift = 0.1 if len(heads) == 1 else [0.1 * i for i in range(len(heads))]
                model = modules.ScaleShiftMACE(atomic_inter_scale=scale, atomic_inter_shift=shift, **settings)
            else:
                model = modules.MACE(**settings)
            with torch.no_grad():  # parameters that start at a constant would hide mistakes
                for name, parameter in [] if untouched else model.named_parameters():
                    if name.endswith(("alpha", "beta", "bias")) or "embedding.weight" in name:
                        parameter.add_(0.3 * torch.randn_like(parameter))
    finally:
        torch.set_default_dtype(before)
    return model


_SELDOM = {"three layers", "one layer", "correlation 1", "last readout only", "residual first", "no scale-shift"}
CASES = [
    pytest.param(variant, dtype, marks=[pytest.mark.slow] * (variant in _SELDOM and dtype == torch.float32))
    for variant in VARIANTS
    for dtype in (torch.float64, torch.float32)
]
"""Every kind in both precisions; the plainest kinds in float32 are for the slow run."""


@functools.cache
def _made_once(variant):
    return small_mace(**VARIANTS[variant])


def model_of(variant):
    """A copy of the random model of that name; each is made once a session."""
    return copy.deepcopy(_made_once(variant))


def structures(seed=0):
    """Molecules, atoms alone and far apart, crystals with many images, a slab, a chain, a sheet without a third vector."""
    random = np.random.default_rng(seed)
    primitive = bulk("C", "diamond", a=3.4)
    skewed = Atoms("CO", [[0, 0, 0], [1.2, 0.3, 0.2]], cell=[[2.1, 0, 0], [0.9, 2.3, 0], [-0.7, 0.6, 2.6]], pbc=True)
    slab = graphene("CO", a=2.5, vacuum=6.0) + Atoms("H", [[0.1, 0.2, 7.2]])
    slab.pbc = (True, True, False)
    chain = Atoms("OCH", [[0, 0, 0], [1.2, 0.2, 0], [2.1, -0.4, 0.3]], cell=[3.1, 0, 0], pbc=(True, False, False))
    open_sheet = Atoms("CO", [[0, 0, 0], [1.3, 0.4, 0.1]], cell=[[2.4, 0, 0], [0.4, 2.2, 0], [0, 0, 0]], pbc=(1, 1, 0))
    everything = [
        molecule("CH3CH2OH"),
        molecule("H2O"),
        primitive * (2, 1, 1),
        Atoms("O"),
        skewed,
        molecule("CO2"),
        slab,
        Atoms("HH", [[0, 0, 0], [0, 0, 9.0]]),
        chain,
        open_sheet,
    ]
    for atoms in everything:
        atoms.positions += random.normal(0, 0.05, (len(atoms), 3))
    return everything


def stock_batch(model, structures, *, head=None):
    """mace-torch's own batch of ``structures``, in the model's dtype."""
    dtype = next(model.parameters()).dtype
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        table = tools.AtomicNumberTable([int(z) for z in model.atomic_numbers])
        heads = list(getattr(model, "heads", None) or ["Default"])
        head = head or heads[0]
        graphs = []
        for atoms in structures:
            plain = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
            config = data.config_from_atoms(plain, head_name=head)
            graphs.append(data.AtomicData.from_config(config, table, float(model.r_max), heads=heads))
        loader = torch_geometric.dataloader.DataLoader(graphs, batch_size=len(graphs), shuffle=False)
        return next(iter(loader)).to_dict()
    finally:
        torch.set_default_dtype(before)


def stock_evaluation(model, structures, *, head=None):
    """What plain mace-torch says of one batch: energy, forces, stress, node_feats."""
    out = model(stock_batch(model, structures, head=head), compute_force=True, compute_stress=True)
    return {key: out[key].detach() for key in ("energy", "forces", "stress", "node_feats")}


def loop_gradients(model, structures, *, head=None):
    """(n, P) ∂E/∂θ of each structure by itself: plain autograd through the plain model, all parameters in their order."""
    parameters = list(model.parameters())
    rows = []
    for parameter in parameters:
        parameter.requires_grad_(True)
    for atoms in structures:
        energy = model(stock_batch(model, [atoms], head=head), compute_force=False)["energy"].sum()
        found = torch.autograd.grad(energy, parameters, allow_unused=True)
        rows.append(
            torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, found, strict=True)]
            )
        )
    for parameter in parameters:
        parameter.requires_grad_(False)
    return torch.stack(rows).detach()


def parameter_slices(model):
    """Where each parameter lies in a row of :func:`loop_gradients`."""
    start, slices = 0, {}
    for name, parameter in model.named_parameters():
        slices[name] = slice(start, start + parameter.numel())
        start += parameter.numel()
    return slices
