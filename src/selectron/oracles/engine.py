"""An oracle in a process of its own, which may hang, crash or be killed without harm to the one that asked.

The process is started once and labels one structure after the other. Questions and answers are pickles on its standard
input and output; what programs inside it print goes to a log file, whose end explains a crash. It leads a session of its
own, so that what it started (mpirun, a quantum-chemistry program) is killed with it.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ase import Atoms

from selectron.errors import SelectronError
from selectron.oracles.base import Label, OracleFailure
from selectron.oracles.surroundings import fault_of_surroundings, memory_MB

START_LIMIT_S = 600.0
_HEADER = struct.Struct("<Q")
_LAST_WORDS = 300  # characters of a dead engine's log that go into the reason


class Answer(NamedTuple):
    """What an engine says of one attempt: a label or a failure, the CPU seconds of it and its children, and how it is.

    ``memory_MB``: what its process holds afterwards. ``well``: its folder is still there.
    """

    label: Label | None
    failure: OracleFailure | None
    core_s: float
    memory_MB: float
    well: bool


class EngineGone(Exception):
    """The engine was stopped for taking too long (``timeout``) or died; ``reason`` says how, for a person."""

    def __init__(self, reason: str, *, timeout: bool) -> None:
        super().__init__(reason)
        self.reason, self.timeout = reason, timeout


class Engine:
    """The process that runs the oracle ``options`` (JSON), seen from outside.

    Args:
        options: an oracle's options as JSON.
        threads: that the engine may use; None: as the environment says.

    Raises:
        SelectronError: the oracle cannot be made (a package or a file is missing).
    """

    def __init__(self, options: str, threads: int | None = None) -> None:
        self._stopped = False
        try:
            self._scratch = Path(tempfile.mkdtemp(prefix="selectron-engine-"))
        except OSError as error:
            raise SelectronError(f"The oracle does not start: no folder can be made for it ({error}).") from None
        environment = dict(os.environ, OMP_WAIT_POLICY=os.environ.get("OMP_WAIT_POLICY", "PASSIVE"))
        if threads is not None:
            for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
                environment[variable] = str(threads)
        command = [sys.executable, "-P", "-c", "from selectron.oracles.engine import main; main()", str(self._scratch)]
        with open(self._scratch / "engine.log", "wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
                bufsize=0,
            )
        try:
            ready = self._ask((options, sys.path), START_LIMIT_S)
        except EngineGone as gone:
            raise SelectronError(f"The oracle does not start: {gone.reason}.") from None
        if isinstance(ready, str):
            self.stop()
            raise SelectronError(ready)
        self.versions: dict[str, str] = ready

    def label(self, atoms: Atoms, attempt: int, time_limit_s: float | None) -> Answer:
        """The engine's answer; raises :class:`EngineGone` when there is none, and then the engine has ended."""
        answer: Answer = self._ask((atoms, attempt), time_limit_s)
        return answer

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def kill(self) -> None:
        """Kills the process and all that it started; safe from any thread while another waits for an answer."""
        if not self._stopped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Kills the process and all that it started, and removes its files."""
        if self._stopped:
            return
        self.kill()
        self._stopped = True
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _ask(self, question: Any, limit_s: float | None) -> Any:
        deadline = None if limit_s is None else time.monotonic() + limit_s
        try:
            _send(self._process.stdin, pickle.dumps(question))  # type: ignore[arg-type]
            (length,) = _HEADER.unpack(self._receive(_HEADER.size, deadline))
            return pickle.loads(self._receive(length, deadline))
        except TimeoutError:
            self.stop()
            raise EngineGone(f"stopped at the time limit of {limit_s:g} s", timeout=True) from None
        except (EOFError, OSError):
            raise EngineGone(self._cause_of_death(), timeout=False) from None
        except BaseException:
            self.stop()  # half an answer is in the pipe
            raise

    def _receive(self, length: int, deadline: float | None) -> bytes:
        descriptor = self._process.stdout.fileno()  # type: ignore[union-attr]
        data = bytearray()
        while len(data) < length:
            left = None if deadline is None else deadline - time.monotonic()
            if (left is not None and left <= 0) or not select.select([descriptor], [], [], left)[0]:
                raise TimeoutError
            part = os.read(descriptor, length - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _cause_of_death(self) -> str:
        try:
            code = self._process.wait(timeout=10.0)  # the pipe closes a moment before the process ends
        except subprocess.TimeoutExpired:
            code = 0
        words = b""
        with contextlib.suppress(OSError):
            words = (self._scratch / "engine.log").read_bytes()[-_LAST_WORDS:]
        self.stop()
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        said = " ".join(words.decode("utf-8", "replace").split())
        return f"the engine {how}" + (f"; it said last: {said}" if said else "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _send(stream: BinaryIO, data: bytes) -> None:
    view = memoryview(_HEADER.pack(len(data)) + data)
    while view:
        view = view[stream.write(view) or 0 :]


def main() -> None:
    """Runs in the engine: makes the oracle, then answers until whoever asks is gone."""
    scratch = Path(sys.argv[1])
    questions, answers = _take_pipes()
    options, path = next(questions)
    sys.path.extend(entry for entry in (os.path.abspath(entry) for entry in path) if entry not in sys.path)
    sys.path.append(os.getcwd())
    try:
        from selectron.oracles.options import make_oracle, options_from_json

        oracle = make_oracle(options_from_json(options))
        os.chdir(scratch)
        oracle.prepare()
    except SelectronError as error:
        _send(answers, pickle.dumps(str(error)))
        return
    _send(answers, pickle.dumps(oracle.versions))
    for atoms, attempt in questions:
        before = _cpu_seconds()
        label, failure = None, None
        try:
            scratch.mkdir(exist_ok=True)  # a program, or who tidies up, may have removed it
            os.chdir(scratch)
            label = oracle.label(atoms, attempt=attempt)
        except OracleFailure as error:
            failure = OracleFailure(error.reason, final=error.final, cause=error.cause)
        except Exception as error:  # whatever a third party's program raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
            outside = fault_of_surroundings(error, reason, scratch)
            failure = OracleFailure(reason, cause="surroundings" if outside else "engine")
        well = scratch.is_dir()
        if failure is not None and not well and not failure.final and failure.cause == "structure":
            failure.cause = "engine"
        _send(answers, pickle.dumps(Answer(label, failure, _cpu_seconds() - before, memory_MB(), well)))


def _take_pipes() -> tuple[Iterator[Any], BinaryIO]:
    """The questions and where answers go; standard input becomes empty and standard output the log.

    A thread reads the questions. When the pipe ends, whoever asked has ended, however: the engine then kills itself and
    all that it started, in the middle of whatever it does.
    """
    source = os.fdopen(os.dup(0), "rb")
    target = os.fdopen(os.dup(1), "wb", buffering=0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(2, 1)
    waiting: list[bytes] = []
    arrived = threading.Semaphore(0)

    def read() -> None:
        while len(header := source.read(_HEADER.size)) == _HEADER.size:
            waiting.append(source.read(_HEADER.unpack(header)[0]))
            arrived.release()
        shutil.rmtree(sys.argv[1], ignore_errors=True)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=read, daemon=True).start()

    def questions() -> Iterator[Any]:
        while True:
            arrived.acquire()
            yield pickle.loads(waiting.pop(0))

    return questions(), target


def _cpu_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)
