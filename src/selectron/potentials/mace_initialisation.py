"""Parameters of a MACE drawn anew: the papers' control."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CONSTANT = {"alpha": 20.0, "beta": 0.0}


def reinitialise(model: torch.nn.Module, seed: int) -> None:
    """Draws every parameter anew, in place, from the distribution that mace-torch 0.3.16 initialises it with.

    e3nn linear maps, tensor products and radial layers: standard normal, their biases zero, the embeddings of sender and
    receiver in a non-linear interaction uniform in ±0.001; symmetric contractions: normal with standard deviation
    1 / number of paths; density normalisation: α = 20, β = 0; ``torch.nn`` layers: their own ``reset_parameters``; what is
    left, a normal with the trained parameter's own root mean square.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal_like(parameter: Tensor, scale: float) -> Tensor:
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale
        return draw.to(parameter.device, parameter.dtype)

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        done: set[int] = set()
        module: Any
        for module_name, module in model.named_modules():
            own: list[Any] = list(module.parameters(recurse=False))
            if not own:
                continue
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            elif type(module).__name__ == "Contraction" and module.weights_max.dim() == 3:
                for weight in [module.weights_max, *module.weights]:
                    if bool(weight.any()):
                        weight.copy_(normal_like(weight, 1.0 / weight.shape[1]))
                    done.add(id(weight))
            else:
                for name, parameter in module.named_parameters(recurse=False):
                    if id(parameter) in done:
                        continue
                    if name in _CONSTANT and type(module).__name__ == "RealAgnosticResidualNonLinearInteractionBlock":
                        parameter.fill_(_CONSTANT[name])
                        continue
                    if name == "bias":
                        parameter.zero_()
                        continue
                    if module_name.endswith(("source_embedding", "target_embedding")):
                        draw = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
                        parameter.copy_(((2.0 * draw - 1.0) * 1e-3).to(parameter.device, parameter.dtype))
                        continue
                    known = type(module).__name__ in {"Linear", "FullyConnectedTensorProduct", "_Layer"}
                    scale = 1.0 if known else float(parameter.double().square().mean().sqrt())
                    parameter.copy_(normal_like(parameter, scale))
            done.update(id(parameter) for parameter in own)
