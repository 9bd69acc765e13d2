"""Workers by Parsl: from a configuration of the user's, or from a few words about a machine."""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
from collections.abc import Callable
from concurrent.futures import Executor, Future
from types import TracebackType
from typing import TYPE_CHECKING, Any

from selectron.errors import SelectronError
from selectron.execution.options import ExecutionOptions

if TYPE_CHECKING:
    from parsl import Config, DataFlowKernel


class ParslExecutor(Executor):
    """Tasks on Parsl's workers: ``workers`` of them, all nodes and jobs together, with ``threads`` each."""

    def __init__(self, kernel: DataFlowKernel, workers: int, threads: int) -> None:
        from parsl.concurrent import ParslPoolExecutor

        self._kernel, self._pool = kernel, ParslPoolExecutor(dfk=kernel)
        self.workers, self.threads, self._open = workers, threads, True

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that counts as running from the beginning: Parsl does not cancel tasks."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def pass_on(done: Future[Any]) -> None:
            error = done.exception()
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(done.result())

        self._pool.submit(fn, *args, **kwargs).add_done_callback(pass_on)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends the workers and their jobs; waits for tasks first unless they are to be cancelled."""
        if self._open:
            self._open = False
            self._pool.shutdown(wait=wait and not cancel_futures)
            self._kernel.cleanup()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown(cancel_futures=kind is not None)


def parsl_executor(options: ExecutionOptions) -> ParslExecutor:
    """A Parsl executor that has been started.

    Raises:
        SelectronError: Parsl is missing, or the configuration cannot be found or started.
    """
    try:
        from parsl import DataFlowKernel
    except ImportError as error:
        raise SelectronError(f"Parsl is missing: pip install 'selectron[parsl]' ({error}).") from None
    _see_scripts()
    config = _named_config(options.parsl.config) if options.parsl.config else described_config(options)
    try:
        kernel = DataFlowKernel(config)
    except Exception as error:  # whatever a provider raises
        raise SelectronError(f"Parsl does not start: {error or type(error).__name__}.") from error
    return ParslExecutor(kernel, _workers(config), options.threads_each)


def described_config(options: ExecutionOptions) -> Config:
    """High-throughput workers on this machine, or in SLURM jobs."""
    from parsl import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.launchers import SingleNodeLauncher, SrunLauncher
    from parsl.providers import LocalProvider, SlurmProvider

    wanted = options.parsl
    cores = options.workers * options.threads_each
    init = f"{wanted.worker_init}\nexport OMP_NUM_THREADS={options.threads_each}".strip()
    if wanted.provider == "local":
        provider: Any = LocalProvider(
            init_blocks=1, max_blocks=wanted.jobs, worker_init=init, launcher=SingleNodeLauncher()
        )
    else:
        provider = SlurmProvider(
            partition=wanted.partition,
            account=wanted.account,
            nodes_per_block=wanted.nodes,
            cores_per_node=cores,
            init_blocks=1,
            min_blocks=0,
            max_blocks=wanted.jobs,
            walltime=wanted.walltime,
            scheduler_options=wanted.scheduler_options,
            worker_init=init,
            launcher=SrunLauncher(),
            exclusive=False,
        )
    local = wanted.provider == "local"
    return Config(
        executors=[
            HighThroughputExecutor(
                label="selectron",
                max_workers_per_node=options.workers,
                cores_per_worker=options.threads_each if not local else 1e-6,
                provider=provider,
                encrypted=False,
                address="127.0.0.1" if local else None,
            )
        ],
        run_dir=str(wanted.folder),
        strategy="simple",
        retries=1,
        initialize_logging=False,
    )


def _see_scripts() -> None:
    """Parsl starts programs by name that lie beside this Python, which is not on the path unless its environment is active."""
    scripts = sysconfig.get_path("scripts")
    path = os.environ.get("PATH", "")
    if scripts not in path.split(os.pathsep):
        os.environ["PATH"] = f"{scripts}{os.pathsep}{path}"


def _named_config(path: str) -> Config:
    from parsl import Config

    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a configuration usually lies beside the campaign
    try:
        config = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SelectronError(
            f"There is no Parsl configuration at {path!r} ({error}); write it as module:name."
        ) from None
    if callable(config) and not isinstance(config, Config):
        config = config()
    if not isinstance(config, Config):
        raise SelectronError(f"{path} is no parsl.Config and does not return one.")
    return config


def _workers(config: Config) -> int:
    """How many tasks run at once when all blocks are up; 1 a node where an executor does not say."""
    total = 0
    for executor in config.executors:
        provider = getattr(executor, "provider", None)
        nodes = getattr(provider, "max_blocks", 1) * getattr(provider, "nodes_per_block", 1)
        each = getattr(executor, "max_workers_per_node", None) or getattr(executor, "max_threads", None) or 1
        total += int(nodes * each) if isinstance(each, int) else nodes
    return max(1, total)
