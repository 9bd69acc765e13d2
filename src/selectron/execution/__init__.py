"""Where work runs: one contract, ``concurrent.futures.Executor``; in this process, in others, on a cluster by Parsl."""

from selectron.execution.executors import (
    ProcessExecutor,
    SerialExecutor,
    ThreadExecutor,
    make_executor,
    threads_of,
    workers_of,
)
from selectron.execution.options import ExecutionOptions, ParslOptions

__all__ = [
    "ExecutionOptions",
    "ParslOptions",
    "ProcessExecutor",
    "SerialExecutor",
    "ThreadExecutor",
    "make_executor",
    "threads_of",
    "workers_of",
]
