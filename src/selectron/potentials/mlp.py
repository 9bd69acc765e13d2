"""The neural network potential of a point in the plane: one hidden layer of tanh units and a confining quartic term."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from selectron.archives import load_archive
from selectron.errors import SelectronError
from selectron.potentials.planar import PlanarPotential, finite_array, finite_number
from selectron.structures.atomic import atomic_output

FORMAT = "selectron planar MLP, version 1"


class PlanarScaling(NamedTuple):
    """What a planar MLP does not learn; shared by all networks of a stack.

    | field          | unit | meaning                                                                             |
    |----------------|------|-------------------------------------------------------------------------------------|
    | centre_A       | Å    | x₀, y₀: middle of the region of interest                                            |
    | width_A        | Å    | s: the network sees u = (r − centre)/width, about −1 to 1 in the region of interest |
    | energy_eV      | eV   | what a network output of 1 means                                                    |
    | confinement_eV | eV   | c of the quartic term c‖(r − centre)/width‖⁴                                        |
    """

    centre_A: tuple[float, float] = (0.0, 0.0)
    width_A: tuple[float, float] = (1.0, 1.0)
    energy_eV: float = 1.0
    confinement_eV: float = 1.0


class MLPPotential(PlanarPotential):
    """K independent networks of one hidden layer (Stein kernelized molecular dynamics, sections 5.1 and E.1: 20 tanh units).

    V(r) = energy_eV [Σ_h v_h tanh(w_h · u + b_h) + a] + confinement_eV ‖u‖⁴,  u = (r − centre)/width.

    tanh units are bounded, so the quartic term (fixed, not fitted) makes exp(−V/kT) integrable. ``parameters`` (K, 4 H + 1)
    float64 holds, network by network, w_x (H), w_y (H), b (H), v (H), a. With K networks a batch of B = K·m structures is
    read as K groups of m structures that follow each other, group k evaluated by network k; K = 1 is an ordinary potential.
    Raises SelectronError for parameters of another shape and for batches that K does not divide.
    """

    def __init__(
        self,
        parameters: Tensor,
        scaling: PlanarScaling | None = None,
        *,
        device: torch.device | str = "cpu",
    ) -> None:
        if parameters.ndim != 2 or parameters.shape[0] == 0 or parameters.shape[1] < 5 or parameters.shape[1] % 4 != 1:
            raise SelectronError(
                f"A planar MLP needs parameters (K, 4 H + 1) for K networks of H units, not {tuple(parameters.shape)}."
            )
        self.dtype, self.device = torch.float64, torch.device(device)
        self.parameters = parameters.detach().to(self.device, self.dtype).clone()
        self.scaling = _checked(scaling if scaling is not None else PlanarScaling())
        self.networks = parameters.shape[0]
        self.hidden_units = hidden = (parameters.shape[1] - 1) // 4
        self._centre = torch.tensor(self.scaling.centre_A, dtype=self.dtype, device=self.device)
        self._inverse_width = torch.tensor(self.scaling.width_A, dtype=self.dtype, device=self.device).reciprocal()
        self._to_hidden = self.parameters[:, : 2 * hidden].view(-1, 2, hidden).contiguous()
        self._from_hidden = self._to_hidden.mT.contiguous()
        self._bias = self.parameters[:, None, 2 * hidden : 3 * hidden].contiguous()
        self._readout = self.scaling.energy_eV * self.parameters[:, None, 3 * hidden : 4 * hidden]
        self._readout_column = self._readout.mT.contiguous()
        self._constant = self.scaling.energy_eV * self.parameters[:, -1:, None]
        flat = [*self.scaling.centre_A, *self.scaling.width_A, self.scaling.energy_eV, self.scaling.confinement_eV]
        self._identify("mlp", self.parameters, torch.tensor(flat, dtype=self.dtype))

    @classmethod
    def initialise(
        cls,
        networks: int = 1,
        seed: int = 0,
        *,
        hidden_units: int = 20,
        scaling: PlanarScaling | None = None,
        device: torch.device | str = "cpu",
    ) -> MLPPotential:
        """``networks`` networks drawn at random; the first K of a larger stack are the stack of K.

        Directions w are normal with standard deviation 2, so that units bend within the region of interest;
        offsets put the bend of each unit at a point evenly drawn from u ∈ [−1, 1]²; readouts are normal with variance 1/H.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for _ in range(networks):
            directions = 2.0 * torch.randn(2, hidden_units, generator=generator, dtype=torch.float64)
            bends = 2.0 * torch.rand(2, hidden_units, generator=generator, dtype=torch.float64) - 1.0
            readout = torch.randn(hidden_units, generator=generator, dtype=torch.float64) / hidden_units**0.5
            offsets = -(directions * bends).sum(0)
            drawn.append(torch.cat([directions.reshape(-1), offsets, readout, torch.zeros(1, dtype=torch.float64)]))
        if not drawn or hidden_units < 1:
            raise SelectronError("An MLP needs at least one network and one hidden unit.")
        return cls(torch.stack(drawn), scaling, device=device)

    @classmethod
    def stack(cls, potentials: Sequence[MLPPotential]) -> MLPPotential:
        """The networks of ``potentials`` one after the other; raises SelectronError where units or scaling differ."""
        if len({(potential.hidden_units, potential.scaling) for potential in potentials}) != 1:
            raise SelectronError("Networks can be stacked only where they have the same hidden units and scaling.")
        stacked = torch.cat([potential.parameters for potential in potentials])
        return cls(stacked, potentials[0].scaling, device=potentials[0].device)

    def network(self, index: int) -> MLPPotential:
        """Network ``index`` alone."""
        return MLPPotential(self.parameters[index].unsqueeze(0), self.scaling, device=self.device)

    def energies_and_forces(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Energies (B,) in eV and forces (B, 2) in eV/Å at ``points`` (B, 2) in Å, B = K·m."""
        total = points.shape[0]
        if total % self.networks:
            raise SelectronError(
                f"{self.networks} stacked networks take as many structures each, and {total} cannot be shared out so."
            )
        u = ((points - self._centre) * self._inverse_width).view(self.networks, total // self.networks, 2)
        units = torch.tanh(torch.baddbmm(self._bias, u, self._to_hidden))
        energies = torch.baddbmm(self._constant, units, self._readout_column)
        slopes = torch.bmm(torch.addcmul(self._readout, self._readout * units, units, value=-1), self._from_hidden)
        squared = u.square().sum(2, keepdim=True)
        energies = torch.addcmul(energies, squared, squared, value=self.scaling.confinement_eV)
        slopes = torch.addcmul(slopes, squared, u, value=4 * self.scaling.confinement_eV)
        return energies.view(total), (slopes * -self._inverse_width).view(total, 2)

    def save(self, path: str | Path) -> None:
        """Writes parameters and scaling to ``path`` (usually ``*.mlp``), whole or not at all."""
        content = io.BytesIO()
        scaling = self.scaling._asdict()
        torch.save({"format": FORMAT, "parameters": self.parameters.cpu(), "scaling": scaling}, content)
        with atomic_output(path, "wb") as stream:
            stream.write(content.getbuffer())

    @classmethod
    def load(cls, path: str | Path, *, device: torch.device | str = "cpu") -> MLPPotential:
        """What :meth:`save` wrote. No code in the file is run; raises SelectronError where it is no such file."""
        content = load_archive(path, kind="a planar MLP", remedy="copy it anew, or fit it again")
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise SelectronError(f"{path} is not a planar MLP that this version of selectron wrote.")
        parameters, scaling = content.get("parameters"), content.get("scaling")
        if not isinstance(parameters, Tensor) or not isinstance(scaling, dict):
            raise SelectronError(f"{path} is not a planar MLP: it has no parameters or no scaling.")
        if not bool(parameters.isfinite().all()):
            raise SelectronError(f"{path} holds parameters that are not finite: a fit has broken it.")
        try:
            return cls(parameters, PlanarScaling(**scaling), device=device)
        except TypeError:
            raise SelectronError(
                f"{path} is not a planar MLP: its scaling lacks a number or has one too many."
            ) from None


def _checked(scaling: PlanarScaling) -> PlanarScaling:
    centre, width = finite_array("centre_A", scaling.centre_A), finite_array("width_A", scaling.width_A)
    confinement = finite_number("confinement_eV", scaling.confinement_eV, positive=False)
    if centre.shape != (2,) or width.shape != (2,) or not bool((width > 0).all()) or confinement < 0:
        raise SelectronError(
            "A planar scaling needs a centre and a positive width, two numbers each, and no negative confinement."
        )
    return PlanarScaling(
        (float(centre[0]), float(centre[1])),
        (float(width[0]), float(width[1])),
        finite_number("energy_eV", scaling.energy_eV, positive=True),
        confinement,
    )
