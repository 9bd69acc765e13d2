"""One YAML file for a whole campaign."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from selectron.config.fields import POOL_WORDS, FilePath, beside, model_file_beside
from selectron.config.load import Section
from selectron.config.sampling import SamplingSection
from selectron.config.sections import (
    Budget,
    FeaturesSection,
    HeldOut,
    ModelSection,
    PoolSection,
    SelectorSection,
    StoppingRules,
    TrainingData,
)
from selectron.execution.options import ExecutionOptions
from selectron.oracles.options import OracleOptions
from selectron.training.options import TrainOptions


def _oracle_beside(options: Any, info: ValidationInfo) -> Any:
    """The oracle with its files seen from the folder of the YAML file."""
    if options.kind == "mace":
        return options.model_copy(update={"model": model_file_beside(options.model, info)})
    if options.kind == "ase" and options.scratch is not None:
        return options.model_copy(update={"scratch": Path(beside(str(options.scratch), info))})
    return options


def _trainer_beside(options: TrainOptions, info: ValidationInfo) -> TrainOptions:
    """The same for the trainer; an interpreter without a slash is looked for in the PATH."""
    replay = [text if text in POOL_WORDS else beside(text, info) for text in options.replay]
    interpreter = options.interpreter if os.sep not in options.interpreter else beside(options.interpreter, info)
    return options.model_copy(update={"replay": replay, "interpreter": interpreter})


class CampaignConfig(Section):
    """From a pretrained model and a budget of labels to a better model.

    Relative paths are taken from the folder of the file.
    """

    name: str = "campaign"
    """What the report calls it."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of everything random: sketches, selectors, the random twin, the split of the pool; added to the trainer's own seed."""

    pool: PoolSection | None = None
    """Candidates from files."""

    sampling: SamplingSection | None = None
    """Candidates that are sampled with the model of each round; instead of ``pool``."""

    model: ModelSection
    """The pretrained model."""

    train: TrainingData | None = None
    """What it knows already."""

    test: HeldOut
    """Structures on which errors are reported."""

    validation: HeldOut | None = None
    """Structures for the trainer's own choices and for stopping rules; without them a part of the labels is used for the
    former (``trainer.validation_fraction``), and there are none of the latter."""

    features: FeaturesSection = Field(default_factory=FeaturesSection)
    """What the posterior sees."""

    selector: SelectorSection = Field(default_factory=SelectorSection)
    """How picks are made."""

    oracle: Annotated[OracleOptions, AfterValidator(_oracle_beside)]
    """Where labels come from."""

    trainer: Annotated[TrainOptions, AfterValidator(_trainer_beside)] = Field(
        default_factory=lambda: TrainOptions.model_validate({})
    )
    """How the model is fine-tuned."""

    fine_tune_from: Literal["initial", "previous"] = "initial"
    """Each round starts at the pretrained model with all labels so far, or at the model of the round before. From the
    start is the default: the model then does not depend on the order in which labels came."""

    execution: ExecutionOptions = Field(default_factory=ExecutionOptions)
    """Where oracle calls run."""

    budget: Budget
    """How much may be labelled."""

    stop: StoppingRules = Field(default_factory=StoppingRules)
    """When to end before the budget is spent."""

    baseline: Literal["random"] | None = None
    """``random``: a twin that picks by chance under the same budget, seeds and trainer, to tell what selection saved."""

    label_store: FilePath | None = None
    """SQLite file of labels, shared between campaigns; by default each campaign has its own."""

    @model_validator(mode="after")
    def _consistent(self) -> CampaignConfig:
        if (self.pool is None) == (self.sampling is None):
            raise ValueError("give either pool or sampling: candidates come from one of them")
        rules = self.stop
        if self.validation is None and (rules.target or rules.plateau or rules.variance):
            raise ValueError("the stopping rules need a validation set: add the section validation")
        sampling = self.sampling
        acquired = sampling.acquisitions if sampling is not None and sampling.only_acquired else None
        if self.baseline and (acquired or math.inf) <= self.budget.per_round:
            raise ValueError(
                f"a run of {acquired} acquisitions leaves nothing to choose for {self.budget.per_round} labels a round, so "
                "that a random twin would do the same: leave baseline out, or acquire more than is labelled"
            )
        held = [one for one in (self.test, self.validation) if one is not None and one.fraction is not None]
        if held and self.pool is None:
            raise ValueError("a fraction of the pool can be held out only where there is a pool: name files for test")
        if sum(one.fraction or 0.0 for one in held) >= 1.0:
            raise ValueError("test and validation would hold out the whole pool")
        return self
