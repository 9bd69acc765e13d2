"""Executors: the one contract, ``concurrent.futures.Executor``, in this process, in others, on a cluster."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from types import TracebackType
from typing import Any

from selectron.execution.options import ExecutionOptions

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def make_executor(options: ExecutionOptions) -> Executor:
    """The executor that ``options`` describe; a context manager, with ``workers`` and ``threads`` (each) as attributes.

    Raises:
        SelectronError: Parsl is not installed, or its configuration cannot be found or used.
    """
    if options.kind == "serial":
        return SerialExecutor(options.threads_each)
    if options.kind == "threads":
        return ThreadExecutor(options.workers, options.threads_each)
    if options.kind == "processes":
        return ProcessExecutor(options.workers, options.threads_each)
    from selectron.execution.with_parsl import parsl_executor

    return parsl_executor(options)


def workers_of(executor: Executor) -> int:
    """How many tasks ``executor`` runs at once."""
    for name in ("workers", "_max_workers"):
        count = getattr(executor, name, None)
        if isinstance(count, int) and count > 0:
            return count
    return 1


def threads_of(executor: Executor) -> int | None:
    """Threads that a worker of ``executor`` may use; None where it does not say."""
    count = getattr(executor, "threads", None)
    return count if isinstance(count, int) else None


class SerialExecutor(Executor):
    """Runs each task in :meth:`submit`, in the calling thread."""

    inline = True
    workers = 1

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done; KeyboardInterrupt and SystemExit go through."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class ThreadExecutor(ThreadPoolExecutor):
    """Threads, for tasks that only wait for processes of their own; ``threads`` are those of each such process."""

    def __init__(self, workers: int, threads: int = 1) -> None:
        super().__init__(workers, thread_name_prefix="selectron")
        self.workers, self.threads = workers, threads


class ProcessExecutor(ProcessPoolExecutor):
    """Fresh processes (spawned, not forked) that end with the one that made them, however that ends.

    Leaving a ``with`` block by an exception kills the workers and does not wait for them.
    """

    def __init__(self, workers: int, threads: int = 1) -> None:
        super().__init__(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_prepare_worker,
            initargs=(threads,),
        )
        self.workers, self.threads = workers, threads

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """As :class:`concurrent.futures.ProcessPoolExecutor`; workers see the numbers of threads when they import."""
        before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(self.threads)))
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            for process in list((self._processes or {}).values()):
                process.kill()
        self.shutdown(wait=True, cancel_futures=kind is not None)


def _prepare_worker(threads: int) -> None:
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
