"""How a potential is trained: every option with its meaning, default and range."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from ase.data import atomic_numbers
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from selectron.training.extra import UNIVERSAL, loss_of, refusal

PRESETS: dict[str, dict[str, Any]] = {
    "paper-lora": {
        "method": "lora",
        "rank": 4,
        "loss": "squares",
        "epochs": 100,
        "learning_rate": 0.01,
        "final_rate": None,
        "ema": None,
        "energy_weight": 40.0,
        "forces_weight": 1000.0,
        "stage_two_start": 50,
        "stage_two_learning_rate": 0.001,
        "stage_two_energy_weight": 1000.0,
        "stage_two_forces_weight": 10.0,
    },
}
"""``paper-lora`` is the schedule of SKMD (arXiv:2606.04100, appendix E.2); its LoRA scaling factor and batch size are not
stated in the text that we have, so mace-torch's own (alpha 1) and ours stand in."""


def _elements_known(energies: dict[str, float] | None) -> dict[str, float] | None:
    for symbol in energies or {}:
        if atomic_numbers.get(symbol, 0) == 0:
            raise ValueError(f"{symbol!r} is no chemical element")
    return energies


AtomEnergies = Annotated[dict[str, float], AfterValidator(_elements_known)]


class TrainOptions(BaseModel):
    """What to train, how, and with which interpreter."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["mace", "mlp"] = Field(
        "mace", description="mace: fine-tune a MACE; mlp: fit the small MLP potential."
    )
    preset: Literal["paper-lora"] | None = Field(
        None, description="Fills what is not given: paper-lora is LoRA of rank 4 in the two stages of the SKMD paper."
    )
    method: Literal["full", "lora"] = Field(
        "full", description="full: all parameters; lora: low-rank corrections of the linear layers, merged at the end."
    )
    rank: int = Field(4, ge=1, description="Rank of the LoRA corrections.")
    alpha: float = Field(1.0, gt=0, description="LoRA scaling factor; corrections are multiplied by alpha / rank.")
    epochs: int = Field(40, ge=1, description="Passes through the training set.")
    loss: Literal["absolute", "squares"] = Field(
        "absolute",
        description="absolute: |ΔE|/N and the length of an atom's force error, which a few bad structures do not rule; "
        "squares: of the energy error per atom and of a force component, which stage two always counts.",
    )
    learning_rate: float = Field(0.01, gt=0, description="Of Adam, at the beginning.")
    final_rate: float | None = Field(
        0.02,
        gt=0,
        le=1,
        description="Share of the learning rate that is left after the last epoch; it falls exponentially. "
        "None: it falls where the validation loss does not (mace-torch's ReduceLROnPlateau).",
    )
    energy_weight: float = Field(100.0, ge=0, description="Of the energy term of the loss, in eV/atom or its square.")
    forces_weight: float = Field(10.0, ge=0, description="Of the force term of the loss, in eV/Å or its square.")
    stress_weight: float = Field(
        0.0,
        ge=0,
        description="Of the stress term of the loss, in eV/Å³ (mean of the components' absolute errors) or its square; 0: "
        "stresses are not fitted. Structures without a stress or an open direction have none. A stress error of 1 GPa is "
        "0.006 eV/Å³.",
    )
    stage_two_start: int | None = Field(
        None, ge=1, description="Epoch at which the weights and learning rate of stage two take over; none: one stage."
    )
    stage_two_learning_rate: float = Field(0.0001, gt=0, description="Learning rate of stage two.")
    stage_two_energy_weight: float = Field(1000.0, ge=0, description="Energy weight of stage two.")
    stage_two_forces_weight: float = Field(100.0, ge=0, description="Force weight of stage two.")
    batch_size: int = Field(10, ge=1, description="Structures a step, at most; made to divide the training set well.")
    valid_batch_size: int = Field(64, ge=1, description="Structures at a time in validation.")
    ema: float | None = Field(
        0.99, gt=0, lt=1, description="Decay of the moving average of parameters that is validated and kept; none: off."
    )
    weight_decay: float = Field(5e-7, ge=0, description="Of products and linear layers.")
    clip_grad: float | None = Field(10.0, gt=0, description="Norm at which gradients are clipped; none: not at all.")
    patience: int | None = Field(
        None,
        ge=1,
        description="Stop after so many epochs of the last stage without a better validation loss; none: never.",
    )
    keep: Literal["auto", "last", "best"] = Field(
        "auto",
        description="Which epoch's model is the result. last: the last one's, unless its validation loss is more than a tenth "
        "above the lowest; best: that of the lowest validation loss; auto: last where the learning rate falls to "
        "final_rate in one stage without patience, else best.",
    )
    weights: Literal["given", "equal"] = Field(
        "given",
        description="What labels count for in the loss. given: as their config_weight says, which picks carry for what they "
        "stand for in the pool, and config_energy_weight, config_forces_weight and config_stress_weight; equal: all the same, "
        "but for a label of weight 0, which is never used. Validation and replayed structures always count the same.",
    )
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the training set set aside where no validation set is given."
    )
    replay: list[str] = Field(
        [], description="Files of old data (any pool format), of which replay_count structures join the training set."
    )
    replay_count: int = Field(100, ge=1, description="How many old structures join, drawn at random with the seed.")
    replay_level: Literal["labels", "model"] = Field(
        "labels",
        description="Whose level of theory the old data has: that of the new labels, or that of the model; the latter's "
        "energies move with the atomic references.",
    )
    references: Literal["auto", "keep", "fit", "atoms"] = Field(
        "auto",
        description="Atomic reference energies. auto: fit a shift of level of theory and apply it where it is significant; "
        "fit: apply it anyway; keep: leave them; atoms: take isolated-atom energies, from atom_energies_eV or the data.",
    )
    atom_energies_eV: AtomEnergies | None = Field(
        None,
        description="Energies of isolated atoms at the level of the labels, for references: atoms; none: those in the data.",
    )
    model_atom_energies_eV: AtomEnergies | None = Field(
        None, description="The same at the level of the model; none: the model's own reference energies."
    )
    divergence_factor: float = Field(
        2.0, gt=1, description="A model whose validation loss, as an error, has grown by this factor is thrown away."
    )
    seed: int = Field(0, ge=0, description="Of shuffling, LoRA, validation split and replay.")
    device: str = Field("cpu", description="cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "float64"] = Field("auto", description="auto: the precision the model file has.")
    head: str | None = Field(
        None,
        description="Head of a model with several, which the result has alone; of a training set with several (head) the "
        "structures of this one are used.",
    )
    layers: Literal["auto", "fast", "plain"] = Field(
        "auto",
        description="What computes energies and forces in training. fast: selectron's layers, on the same parameters; plain: "
        "mace-torch's; auto: fast where these cover the model and the interpreter has this selectron, else plain.",
    )
    interpreter: str = Field(
        default_factory=lambda: sys.executable,
        description="Python that runs mace-torch; it needs mace-torch, not selectron.",
    )
    threads: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="CPU threads of the training; auto: one for a small model, all cores for a larger one."
    )
    time_limit_s: float | None = Field(None, gt=0, description="Longest a training may take; none: no limit.")
    extra: list[str] = Field(
        [],
        description="Further arguments of mace_run_train, verbatim; they win over all of the above. Refused are those that "
        "name keys, data, references or places, and losses that leave out weights.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("preset") in PRESETS:
            return {**PRESETS[given["preset"]], **given}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> TrainOptions:
        if self.stage_two_start is not None and self.stage_two_start >= self.epochs:
            raise ValueError(
                f"stage_two_start is an epoch before the last: with {self.epochs} epochs it is at most {self.epochs - 1}, "
                f"not {self.stage_two_start}"
            )
        if not (self.energy_weight or self.forces_weight):
            raise ValueError("one of energy_weight and forces_weight has to be above zero")
        if (reason := refusal(self.extra)) is not None:
            raise ValueError(reason)
        if self.stress_weight and loss_of(self.extra) not in (None, UNIVERSAL):
            raise ValueError(
                f"--loss={loss_of(self.extra)} in extra has no stress term, but stress_weight is {self.stress_weight}"
            )
        return self

    @property
    def rate_factor(self) -> float | None:
        """By which the learning rate is multiplied after each epoch; None where the plateau scheduler rules."""
        return None if self.final_rate is None else float(self.final_rate ** (1 / self.epochs))

    @property
    def keeps_last(self) -> bool:
        """Whether the last epoch's model is the result, as long as its validation loss is near the lowest."""
        if self.keep != "auto":
            return self.keep == "last"
        return self.final_rate is not None and self.stage_two_start is None and self.patience is None

    @property
    def counts_squares(self) -> bool:
        """Whether the last stage's loss is of squares; mace-torch knows no other in stage two."""
        return self.loss == "squares" or self.stage_two_start is not None

    @property
    def final_weights(self) -> tuple[float, float]:
        """Energy and force weight of the last stage."""
        if self.stage_two_start is None:
            return self.energy_weight, self.forces_weight
        return self.stage_two_energy_weight, self.stage_two_forces_weight


def resolved(path: str | Path) -> Path:
    """Absolute path, for a process that runs in another folder."""
    return Path(path).expanduser().absolute()
