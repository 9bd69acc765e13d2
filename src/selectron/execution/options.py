"""Where work runs, as a user writes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from selectron.cores import usable_cores


class ParslOptions(BaseModel):
    """Workers by Parsl: one of its configurations, or a simple description of one.

    ``config`` (module:name of a ``parsl.Config`` or of a function that returns one) wins over all else.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: str | None = Field(default=None, description="module:name of a parsl.Config or of a function giving one.")
    provider: Literal["local", "slurm"] = "local"
    partition: str | None = None
    account: str | None = None
    nodes: PositiveInt = Field(default=1, description="Nodes of one job.")
    jobs: PositiveInt = Field(default=1, description="Jobs at once, at most.")
    walltime: str = Field(default="24:00:00", pattern=r"^\d+:\d\d:\d\d$", description="Of one job, HH:MM:SS.")
    scheduler_options: str = Field(default="", description="More #SBATCH lines.")
    worker_init: str = Field(default="", description="Shell lines that make selectron available on a node.")
    folder: Path = Field(default=Path("parsl"), description="For Parsl's logs and scripts.")


class ExecutionOptions(BaseModel):
    """Which executor, how many workers (a node, for Parsl), and how many threads each may use.

    ``serial`` works in the calling thread; ``threads`` is for work that runs in processes of its own, as oracles do;
    ``processes`` for Python code; ``parsl`` for clusters.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["serial", "threads", "processes", "parsl"] = "threads"
    workers: PositiveInt = 1
    threads: PositiveInt | None = Field(
        default=None, description="OMP_NUM_THREADS of a worker; null: the cores shared among the workers."
    )
    parsl: ParslOptions = ParslOptions()

    @property
    def threads_each(self) -> int:
        """Threads of one worker: as asked, as ``OMP_NUM_THREADS`` says, or the cores divided by the workers."""
        if self.threads is not None:
            return self.threads
        said = os.environ.get("OMP_NUM_THREADS", "")
        if said.isdecimal() and int(said) > 0:
            return int(said)
        return max(1, usable_cores() // self.workers)
