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
    the call that placed the order, for :func:`stop_engines`.
    """

    atoms: Atoms
    options: str
    attempts: int
    time_limit_s: float | None
    threads: int | None
    customer: str


class Outcome(NamedTuple):
    """What came of an order: a label or the reason why not, and what it cost over all attempts.

    ``core_s`` is CPU time of the engine and of what it started; for an engine that had to be killed, wall time times
    threads.
    """

    label: Label | None
    failure: str | None
    attempts: int
    wall_s: float
    core_s: float
    versions: dict[str, str]


class _Kept:
    """An engine and whom it works for; the engine ends with the thread that kept it."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.customer = engine, ""

    def __del__(self) -> None:
        self.engine.stop()


_here = threading.local()  # an engine a thread
_running: weakref.WeakSet[_Kept] = weakref.WeakSet()
_stopped: set[str] = set()  # customers whose orders are not wanted any more


def carry_out(order: Order) -> Outcome:
    """Labels one structure; raises SelectronError only where no structure at all could be labelled."""
    wall_s = core_s = 0.0
    reasons: list[str] = []
    versions: dict[str, str] = {}
    for attempt in range(order.attempts):
        if order.customer in _stopped:
            reasons.append("stopped")
            break
        kept = _engine(order)
        versions = kept.engine.versions
        began = time.monotonic()
        try:
            answer = kept.engine.label(order.atoms, attempt, order.time_limit_s)
        except EngineGone as gone:
            _running.discard(kept)
            _here.kept = None
            spent = time.monotonic() - began
            wall_s, core_s = wall_s + spent, core_s + spent * (order.threads or 1)
            reasons.append(gone.reason)
            if gone.timeout:
                break
            continue
        wall_s, core_s = wall_s + time.monotonic() - began, core_s + answer.core_s
        if answer.label is not None:
            return Outcome(answer.label, None, attempt + 1, wall_s, core_s, versions)
        reasons.append(answer.failure.reason if answer.failure else "no label")
        if answer.failure and answer.failure.final:
            break
    return Outcome(None, _told(reasons), len(reasons), wall_s, core_s, versions)


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
