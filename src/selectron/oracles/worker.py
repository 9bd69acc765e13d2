"""What an executor's worker does: keeps an engine, and gets a label out of it within time and attempts."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import weakref
from typing import NamedTuple

from ase import Atoms

from selectron.oracles.base import Label
from selectron.oracles.engine import Engine, EngineGone


class Order(NamedTuple):
    """One structure to label; everything in it can be pickled.

    ``options`` is JSON; ``threads`` those that the engine may use (None: as the environment says); ``customer`` names
    the call that placed the order, for :func:`stop_engines`. ``memory_limit_MB``: an engine that holds more afterwards is
    started anew for the next order.
    """

    atoms: Atoms
    options: str
    attempts: int
    time_limit_s: float | None
    threads: int | None
    customer: str
    memory_limit_MB: float | None = None


class Outcome(NamedTuple):
    """What came of an order: a label or the reason why not, and what it cost over all attempts.

    ``core_s`` is CPU time of the engine and of what it started; for an engine that had to be killed, wall time times
    threads. ``blameless``: the failure is of the surroundings, and not to be kept as the structure's.
    """

    label: Label | None
    failure: str | None
    attempts: int
    wall_s: float
    core_s: float
    versions: dict[str, str]
    blameless: bool = False


class _Kept:
    """An engine and whom it works for; the engine ends with the thread that kept it."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.customer = engine, ""
        self.asked = 0  # how many structures it has seen
        self.first_MB = 0.0  # what it held after the first

    def __del__(self) -> None:
        self.engine.stop()


_here = threading.local()  # an engine a thread
_running: weakref.WeakSet[_Kept] = weakref.WeakSet()
_stopped: set[str] = set()  # customers whose orders are not wanted any more


def carry_out(order: Order) -> Outcome:
    """Labels one structure; raises SelectronError only where no structure at all could be labelled.

    Where a used engine died, or failed in a way that the oracle cannot explain, a fresh one decides: what an earlier
    structure did to the engine, its folder or its memory is not charged to this one. That costs no attempt.
    """
    wall_s = core_s = 0.0
    reasons: list[str] = []
    versions: dict[str, str] = {}
    while len(reasons) < order.attempts:
        if order.customer in _stopped:
            reasons.append("stopped")
            break
        kept = _engine(order)
        versions, fresh = kept.engine.versions, not kept.asked
        kept.asked += 1
        began = time.monotonic()
        try:
            answer = kept.engine.label(order.atoms, len(reasons), order.time_limit_s)
        except EngineGone as gone:
            _retire(kept)
            spent = time.monotonic() - began
            wall_s, core_s = wall_s + spent, core_s + spent * (order.threads or 1)
            if not fresh and not gone.timeout:
                continue
            reasons.append(gone.reason)
            if gone.timeout:
                break
            continue
        wall_s, core_s = wall_s + time.monotonic() - began, core_s + answer.core_s
        failure = answer.failure
        doubted = failure is not None and failure.cause != "structure" and not fresh
        if doubted or not answer.well or _has_grown(kept, answer.memory_MB, order.memory_limit_MB):
            _retire(kept)
        if doubted:
            continue
        if answer.label is not None:
            return Outcome(answer.label, None, len(reasons) + 1, wall_s, core_s, versions)
        reasons.append(failure.reason if failure else "no label")
        if failure and failure.cause == "surroundings":
            return Outcome(None, _told(reasons), len(reasons), wall_s, core_s, versions, blameless=True)
        if failure and failure.final:
            break
    return Outcome(None, _told(reasons), len(reasons), wall_s, core_s, versions)


def _has_grown(kept: _Kept, memory_MB: float, limit_MB: float | None) -> bool:
    """Whether the engine holds more than the limit, and distinctly more than after its first structure.

    One that needs more than the limit from the beginning would otherwise be started anew each time.
    """
    if kept.asked == 1:
        kept.first_MB = memory_MB
    return limit_MB is not None and memory_MB > max(limit_MB, 1.25 * kept.first_MB)


def _retire(kept: _Kept) -> None:
    """Ends this thread's engine; the next order gets a fresh one."""
    _running.discard(kept)
    kept.engine.stop()
    _here.kept = None


def stop_engines(customer: str) -> None:
    """Kills the engines of this process that work for ``customer``."""
    _stopped.add(customer)
    for kept in list(_running):
        if kept.customer == customer:
            with contextlib.suppress(Exception):
                kept.engine.kill()


def _engine(order: Order) -> _Kept:
    """This thread's engine if it runs what ``order`` wants, else a new one."""
    wanted = (order.options, order.threads)
    kept: _Kept | None = getattr(_here, "kept", None)
    if kept is None or _here.wanted != wanted or kept.engine.ended:
        if kept is not None:
            _running.discard(kept)
            kept.engine.stop()
        kept = _here.kept = _Kept(Engine(*wanted))
        _here.wanted = wanted
        _running.add(kept)
    kept.customer = order.customer
    return kept


def _told(reasons: list[str]) -> str:
    """Different reasons once each, in order."""
    return "; then ".join(dict.fromkeys(reasons))


def _end() -> None:
    for kept in list(_running):
        kept.engine.stop()


atexit.register(_end)
