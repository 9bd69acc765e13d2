"""Labels for many structures: none bought twice, each on disk before its worker starts on the next."""

from __future__ import annotations

import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from ase import Atoms

from selectron.errors import SelectronError
from selectron.execution import ExecutionOptions, make_executor, threads_of, workers_of
from selectron.oracles.base import Label, OracleFailure, refusal
from selectron.oracles.options import OracleOptions, make_oracle
from selectron.oracles.store import LabelStore, StructureKey, structure_key
from selectron.oracles.worker import Order, Outcome, carry_out, stop_engines

_BEAT_S = 15.0
_LOOK_AGAIN_S = 0.5  # how often to see whether another process has finished a label that we want too


@dataclass(frozen=True)
class Labelled:
    """What came of structure ``index``: a label, or the reason why there is none.

    ``reused``: it (label or failure) was known before, or came from a structure before it in the same call; then it
    cost nothing now, and ``wall_s``, ``core_s`` and ``attempts`` are 0. ``refused``: there is a label, which the store keeps,
    but a force in it is above the oracle's ``max_force_eV_A``. ``blameless``: the failure is of the surroundings (a full disk,
    a program or a worker that is gone); it is not kept, and the next call tries again.
    """

    index: int
    label: Label | None
    failure: str | None
    reused: bool
    wall_s: float
    core_s: float
    attempts: int
    refused: bool = False
    blameless: bool = False


@dataclass(frozen=True)
class _Wanted:
    index: int
    atoms: Atoms
    key: StructureKey


def label_structures(
    structures: Iterable[Atoms],
    options: OracleOptions,
    store: LabelStore,
    *,
    executor: Executor | None = None,
    retry_failures: bool = False,
    on_label: Callable[[Labelled], object] | None = None,
) -> Generator[Labelled, None, None]:
    """Label ``structures`` and yield what comes of each, as it comes.

    A result is committed to ``store`` before the worker that made it starts on the next structure, and before it is
    yielded. What the store has is reused; equal structures are bought once; what another process is buying at the same
    moment is waited for. A known failure is not tried again unless ``retry_failures``. An engine that hangs is stopped
    at the time limit, one that crashes is a failure. A label with a force above ``options.max_force_eV_A`` is committed too,
    and yielded as a failure.

    Args:
        structures: read one by one, as workers become free.
        options: the oracle.
        store: where labels go.
        executor: from :func:`selectron.execution.make_executor`, or any other; None: one worker. It stays open.
        retry_failures: whether to try known failures again.
        on_label: called with each result too, after it was committed.

    Raises:
        SelectronError: the oracle cannot be started, the store cannot be written, or all workers are lost.
    """
    oracle = make_oracle(options)
    own = make_executor(ExecutionOptions()) if executor is None else None
    run = _Run(options, oracle.fingerprint, store, executor or own, retry_failures)  # type: ignore[arg-type]
    store.register(oracle)
    try:
        with _Heart(store.path, run.owner):
            for found in run.results(enumerate(structures)):
                labelled = _within(found, options.max_force_eV_A)
                if on_label is not None:
                    on_label(labelled)
                yield labelled
    finally:
        if run.flying:
            stop_engines(run.owner)
            for future in run.flying:
                future.cancel()
        with suppress(SelectronError):
            store.release(run.owner)
        if own is not None:
            own.shutdown(cancel_futures=True)


def _within(one: Labelled, max_force_eV_A: float | None) -> Labelled:
    """``one``, without its label where that is to be refused."""
    reason = None if one.label is None else refusal(one.label, max_force_eV_A)
    return one if reason is None else replace(one, label=None, failure=reason, refused=True)


class _Run:
    """One call of :func:`label_structures`."""

    def __init__(
        self, options: OracleOptions, fingerprint: str, store: LabelStore, executor: Executor, retry_failures: bool
    ) -> None:
        self.options, self.fingerprint, self.store, self.executor = options, fingerprint, store, executor
        self.retry_failures = retry_failures
        self.owner = secrets.token_hex(8)
        self.flying: dict[Future[Outcome], _Wanted] = {}
        self._text = options.model_dump_json()
        self._in_flight = workers_of(executor)
        self._twins: dict[str, list[int]] = {}  # of keys that fly: structures that want the same label
        self._failed: dict[str, str] = {}  # in this call
        self._elsewhere: deque[_Wanted] = deque()  # being bought by another process

    def results(self, structures: Iterator[tuple[int, Atoms]]) -> Iterator[Labelled]:
        """Keeps the workers busy and yields what is done."""
        more = True
        while more or self.flying or self._elsewhere:
            ready: list[Labelled] = []
            for future in self._done():
                ready += self._commit(future)
            while len(self.flying) < self._in_flight and not (ready and getattr(self.executor, "inline", False)):
                following = next(structures, None)
                if following is None:
                    more = False
                    break
                known = self._consider(*following)
                if known is not None:
                    ready.append(known)
                    if len(ready) >= 100:
                        break
            if len(self.flying) < self._in_flight and self._elsewhere:
                ready += self._look_again()
            yield from ready
            if not ready:
                self._wait()

    def _done(self) -> list[Future[Outcome]]:
        return [future for future in self.flying if future.done()]

    def _wait(self) -> None:
        limit = _LOOK_AGAIN_S if self._elsewhere else None
        if self.flying:
            wait(self.flying, timeout=limit, return_when=FIRST_COMPLETED)
        elif self._elsewhere:
            time.sleep(_LOOK_AGAIN_S)

    def _consider(self, index: int, atoms: Atoms) -> Labelled | None:
        """Known already, or on its way (None)."""
        try:
            _check(atoms)
            self.options.check(atoms)
            key = structure_key(atoms, self.options.state(atoms), open_vectors=self.options.sees_open_vectors)
        except OracleFailure as failure:
            return Labelled(index, None, failure.reason, False, 0.0, 0.0, 0)
        if key.key in self._twins:
            self._twins[key.key].append(index)
            return None
        return self._known(index, key) or self._order(_Wanted(index, atoms, key))

    def _known(self, index: int, key: StructureKey) -> Labelled | None:
        stored = self.store.get(key.key, self.fingerprint)
        if stored is not None:
            return Labelled(index, stored.label, None, True, 0.0, 0.0, 0)
        reason = self._failed.get(key.key)
        if reason is None and not self.retry_failures:
            failure = self.store.failure(key.key, self.fingerprint)
            reason = failure.reason if failure is not None else None
        return None if reason is None else Labelled(index, None, reason, True, 0.0, 0.0, 0)

    def _order(self, wanted: _Wanted) -> Labelled | None:
        """Gives a worker ``wanted``, unless another process is at it, or has just finished it."""
        if not self.store.claim(wanted.key.key, self.fingerprint, self.owner):
            self._elsewhere.append(wanted)
            return None
        known = self._known(wanted.index, wanted.key)  # finished between our first look and our claim
        if known is not None:
            return known
        order = Order(
            _bare(wanted.atoms, wanted.key, open_vectors=self.options.sees_open_vectors),
            self._text,
            self.options.attempts,
            self.options.time_limit_s,
            threads_of(self.executor),
            self.owner,
            self.options.memory_limit_MB,
        )
        self._twins[wanted.key.key] = []
        try:
            self.flying[self.executor.submit(carry_out, order)] = wanted
        except (BrokenExecutor, RuntimeError) as error:
            raise _lost(error) from error
        return None

    def _look_again(self) -> list[Labelled]:
        ready = []
        for _ in range(len(self._elsewhere)):
            wanted = self._elsewhere.popleft()
            if wanted.key.key in self._twins:
                self._twins[wanted.key.key].append(wanted.index)
                continue
            known = self._known(wanted.index, wanted.key)
            if known is None and len(self.flying) < self._in_flight:
                known = self._order(wanted)
            elif known is None:
                self._elsewhere.append(wanted)
            if known is not None:
                ready.append(known)
        return ready

    def _commit(self, future: Future[Outcome]) -> list[Labelled]:
        wanted = self.flying[future]
        try:
            outcome = future.result()
        except SelectronError:
            raise
        except BrokenExecutor as error:
            raise _lost(error) from error
        except Exception as error:  # a worker that was lost on a cluster; the structure is not to blame: not kept
            reason = f"its worker was lost ({type(error).__name__}: {error})"
            outcome = Outcome(None, reason, 0, 0.0, 0.0, {}, blameless=True)
        if not outcome.blameless:
            self.store.put(wanted.atoms, wanted.key, self.fingerprint, outcome)
        del self.flying[future]
        if outcome.label is None and not outcome.blameless:
            self._failed[wanted.key.key] = outcome.failure or "no reason was given"
        first = Labelled(
            wanted.index,
            outcome.label,
            outcome.failure,
            False,
            outcome.wall_s,
            outcome.core_s,
            outcome.attempts,
            blameless=outcome.blameless,
        )
        twins = self._twins.pop(wanted.key.key)
        return [first, *(replace(first, index=i, reused=True, wall_s=0.0, core_s=0.0, attempts=0) for i in twins)]


class _Heart:
    """Says every few seconds that this call lives, from a thread with a connection of its own."""

    def __init__(self, path: object, owner: str) -> None:
        self._path, self._owner, self._over = path, owner, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(_BEAT_S):
            with suppress(SelectronError), LabelStore(str(self._path), look=False) as store:
                store.beat(self._owner)


def _check(atoms: Atoms) -> None:
    if not len(atoms):
        raise OracleFailure("the structure has no atoms", final=True)
    if not np.isfinite(atoms.positions).all() or not np.isfinite(atoms.cell.array).all():
        raise OracleFailure("a position or cell vector is not finite", final=True)


def _bare(atoms: Atoms, key: StructureKey, *, open_vectors: bool) -> Atoms:
    """What an oracle may look at, which is what the key holds.

    Atoms, lattice vectors (those of open directions are zero unless ``open_vectors``), initial moments and charges, total
    charge and multiplicity.
    """
    cell = atoms.cell.array if open_vectors else np.where(atoms.pbc[:, None], atoms.cell.array, 0.0)
    bare = Atoms(atoms.numbers, atoms.positions, cell=cell, pbc=atoms.pbc, info=key.state._asdict())
    for name in ("initial_magmoms", "initial_charges"):
        if name in atoms.arrays:
            bare.set_array(name, atoms.arrays[name])
    return bare


def _lost(error: BaseException) -> SelectronError:
    return SelectronError(
        f"The workers are lost ({error or type(error).__name__}); all labels so far are kept: the same command goes on."
    )
