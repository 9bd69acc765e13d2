"""Candidates that a campaign samples itself."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from selectron.config.sections import Files
from selectron.sampling.options import COMMITTEE, SampleOptions


class SamplingSection(SampleOptions):
    """Candidates from a sampling run with the model of each round; all keys of a sampling run, and where it starts."""

    starts: Files
    """Files of starting structures. Stein ensembles (skmd, a-skmd, synchronous-skmd) sample one system: the same atoms in
    the same order."""

    start_indices: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Only these structures of the files, counted from 0 over all of them."""

    candidates: Literal["acquired", "frames"] | None = None
    """What may be picked: structures at which a stopping criterion held, or all frames. Acquired structures where the run has
    stopping criteria, else frames, where it is not given."""

    carry_on: bool = False
    """Rounds after the first start where the particles of the round before ended, not from ``starts``; momenta, hills and
    schedules begin anew."""

    @model_validator(mode="after")
    def _one_model(self) -> SamplingSection:
        if self.method in COMMITTEE:
            raise ValueError(f"{self.method} needs a committee of models, and a campaign fine-tunes one")
        if self.candidates == "acquired" and not self.criteria:
            raise ValueError(f"{self.method} without a stopping criterion acquires nothing: say 'candidates: frames'")
        return self

    @property
    def only_acquired(self) -> bool:
        """Whether only acquired structures are candidates."""
        return self.candidates == "acquired" if self.candidates is not None else bool(self.criteria)

    def run_options(self, seed: int, *, carried: int | None = None) -> SampleOptions:
        """The options of one run; ``seed`` is added to their own, and frames that nobody may pick are not made.

        A run that starts with ``carried`` configurations of another has as many particles, and relaxes none.
        """
        values: dict[str, Any] = self.model_dump(include=set(SampleOptions.model_fields))
        values["seed"] = self.seed + seed
        if self.only_acquired:
            values["stride"] = 0
        if carried is not None:
            values["particles"] = carried // self.ensembles
            values["initial"]["relax"] = False
        return SampleOptions.model_validate(values)
