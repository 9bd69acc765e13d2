"""A sampling run from beginning to end: frames are streamed, broken trajectories are told, a killed run goes on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from selectron.potentials.base import Potential
from selectron.sampling.build import (
    Thresholds,
    build,
    check_members,
    check_structures,
    motion_of,
    stopping_of,
    with_width,
)
from selectron.sampling.checkpoint import (
    Checkpoint,
    Saved,
    check_identity,
    leaves_of,
    read_checkpoint,
    restored,
    write_checkpoint,
)
from selectron.sampling.frames import Ended, Frame, Progress, Tally, framed
from selectron.sampling.geometry import REASONS
from selectron.sampling.options import UNBIASED, SampleOptions
from selectron.sampling.pilot import piloted
from selectron.sampling.starts import checked_starts, initial_structures, origins, particles_of
from selectron.sampling.state import Info, Sampler

DEFAULT_STEPS = 10_000

_LOOK_EVERY = 20  # steps between looks at what steps found, so that an accelerator is not waited for at each of them

OnStep = Callable[[Progress], object]
OnEnded = Callable[[Ended], object]
OnEnsemble = Callable[[list[Atoms]], object]


def run_sampling(
    members: Potential | Sequence[Potential],
    starts: Sequence[Atoms],
    options: SampleOptions,
    *,
    on_step: OnStep | None = None,
    on_ended: OnEnded | None = None,
    on_ensemble: OnEnsemble | None = None,
    checkpoint: Checkpoint | None = None,
) -> Iterator[Frame]:
    """The frames of a sampling run, one after the other: every ``options.stride`` steps, and what is acquired.

    A trajectory whose geometry breaks gives no frame any more; ``on_ended`` hears of it and the others go on. The run ends
    when its steps, iterations or acquisitions are reached, or nothing moves any more.

    With a ``checkpoint`` the state is saved every ``options.checkpoint_every`` steps, and a run whose file is there goes on
    behind it: its frames are those that come after, the same as of a run that never stopped (bit for bit on one machine's
    CPU). A run that ended by its steps can be continued with more of them.

    Args:
        members: the model; for udd and hal (and langevin and brownian, if wanted) a committee of two or more.
        starts: starting structures; see :func:`~selectron.sampling.starts.initial_structures`.
        options: what to do.
        on_step: told a :class:`Progress` about every 20 steps, and at the end.
        on_ended: told of every trajectory that broke.
        on_ensemble: given the configurations that the run ends with, as starts of a run that goes on from them; of a
            trajectory that broke, where it set out.
        checkpoint: where the state goes.

    Raises SelectronError, before anything is computed, for starts, models and options that do not fit each other, and for
    a checkpoint of another run.
    """
    models = list(members) if isinstance(members, Sequence) else [members]
    check_members(models, options)
    checked = checked_starts(starts, models, options)
    spread = [checked[origin] for origin in origins(len(checked), options)]
    check_structures(models, spread, options, particles=particles_of(options, len(checked)))
    saved = None
    if checkpoint is not None:
        saved = read_checkpoint(checkpoint.path)
        if saved is not None:
            check_identity(checkpoint.path, saved, identity_of(models, checked, options))
    return _Run(models, checked, options, on_step, on_ended, on_ensemble, checkpoint, saved).frames()


def identity_of(members: Sequence[Potential], starts: Sequence[Atoms], options: SampleOptions) -> dict[str, str]:
    """What the frames are a function of, by name: each option but the number of steps, the models, the starts, the device."""
    values = options.model_dump(
        mode="json", exclude={"steps", "checkpoint_every", "constraints"}
    )  # the starts have these
    digest = hashlib.blake2b(digest_size=16)
    for atoms in starts:
        for array in (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, atoms.get_masses()):
            digest.update(np.ascontiguousarray(array).tobytes())
        digest.update(json.dumps([one.todict() for one in atoms.constraints], default=str).encode())
    device = getattr(members[0], "device", torch.device("cpu"))
    return {
        **{name: json.dumps(value) for name, value in values.items()},
        "models": ", ".join(f"{member.name} ({member.fingerprint[:8]})" for member in members),
        "starting structures": f"{len(starts)} ({digest.hexdigest()[:8]})",
        "device": torch.device(device).type,
    }


class _Prepared(NamedTuple):
    """What is made before the first step."""

    structures: list[Atoms]
    thresholds: Thresholds
    sampler: Sampler
    state: Any


class _Found(NamedTuple):
    """One step: info, and the scalars of each row as numbers."""

    step: int
    info: Info
    rows: np.ndarray  # (rows, len(_COLUMNS))


_COLUMNS = (
    "energies", "bias_norm", "temperature_K", "uncertainty", "particle", "stopped", "broken", "limited"
)  # fmt: skip
_ENERGY, _BIAS, _TEMPERATURE, _UNCERTAINTY, _PARTICLE, _STOPPED, _BROKEN, _LIMITED, _OVER = range(9)


@dataclass
class _Run:
    members: list[Potential]
    starts: list[Atoms]
    options: SampleOptions
    on_step: OnStep | None
    on_ended: OnEnded | None
    on_ensemble: OnEnsemble | None
    checkpoint: Checkpoint | None
    saved: Saved | None

    def frames(self) -> Iterator[Frame]:
        """All of them."""
        options, saved = self.options, self.saved
        prepared = self._prepared() if saved is None else self._continued(saved)
        tally = Tally() if saved is None else Tally.of(saved.tally)
        sampler, state, thresholds = prepared.sampler, prepared.state, prepared.thresholds
        self.one_moves = options.method in {"skmd", "a-skmd"}
        self.particles = particles_of(options, len(self.starts))
        tally.journeys = tally.journeys or [0] * options.ensembles
        steps, first_step = self._steps, state.step
        done = ""
        if saved is not None and (saved.done not in {"", "steps"} or (steps is not None and state.step >= steps)):
            done = saved.done or "steps"
        elif saved is None:
            self._save(prepared, state, tally, "")
        if self.on_step is not None and not done:
            self.on_step(Progress("sampling", state.step, steps, tally=tally, thresholds=thresholds))
        while not done:
            until = self._until(state.step)
            state, found = _block(sampler, state, until - state.step)
            for one in found:
                yield from self._looked_at(one, prepared, tally)
                done = self._limit(tally)
                if done:
                    break
            over = bool((state.ended >= 0).all())
            done = done or ("steps" if state.step == steps else "nothing moves any more" if over else "")
            if done or state.step % options.checkpoint_every == 0:
                self._save(prepared, state, tally, done)
            self._tell(found[-1], tally, thresholds, done)
        if self.on_step is not None and first_step == state.step:
            self.on_step(Progress("sampling", state.step, steps, tally=tally, thresholds=thresholds, finished=done))
        if self.on_ensemble is not None:
            self.on_ensemble(self._ensemble(prepared, state))

    @property
    def _steps(self) -> int | None:
        options = self.options
        if options.steps is None and options.iterations is None and options.acquisitions is None:
            return DEFAULT_STEPS
        return options.steps

    def _until(self, step: int) -> int:
        """The step at which the block that begins at ``step`` ends; blocks end where checkpoints are due."""
        every = self.options.checkpoint_every
        ends = [step - step % _LOOK_EVERY + _LOOK_EVERY, step - step % every + every]
        return min([*ends, self._steps] if self._steps is not None else ends)

    def _limit(self, tally: Tally) -> str:
        options = self.options
        if options.acquisitions is not None and tally.acquired >= options.acquisitions:
            return "acquisitions"
        if options.iterations is not None and min(tally.journeys) >= options.iterations:
            return "iterations"
        return ""

    def _prepared(self) -> _Prepared:
        options = self.options

        def told(stage: str) -> Callable[[int, int], None]:
            def tell(step: int, steps: int) -> None:
                if self.on_step is not None and (step % _LOOK_EVERY == 0 or step == steps):
                    self.on_step(Progress(stage, step, steps))

            return tell

        structures = initial_structures(self.starts, self.members, options, on_step=told("ensemble"))
        particles = particles_of(options, len(self.starts))
        pilot = piloted(self.members, structures, options, particles=particles, on_step=told("pilot"))
        sampler = self._sampler(structures, pilot.thresholds, pilot.bandwidth)
        return _Prepared(structures, pilot.thresholds, sampler, pilot.state)

    def _sampler(self, structures: list[Atoms], thresholds: Thresholds, bandwidth: Tensor | None) -> Sampler:
        self.bandwidth = bandwidth
        return build(
            self.members,
            structures,
            with_width(self.options, thresholds),
            particles=particles_of(self.options, len(self.starts)),
            stopping=stopping_of(self.options, thresholds),
            seed=self.options.seed,
            bandwidth=bandwidth,
        )

    def _continued(self, saved: Saved) -> _Prepared:
        positions = saved.prepared["positions"].numpy()
        structures, first = [], 0
        for origin in origins(len(self.starts), self.options):
            atoms = self.starts[origin].copy()
            atoms.positions = positions[first : first + len(atoms)]
            first += len(atoms)
            structures.append(atoms)
        thresholds = dict(saved.prepared["thresholds"])
        sampler = self._sampler(structures, thresholds, saved.prepared["bandwidth"])
        return _Prepared(structures, thresholds, sampler, restored(sampler.init(), saved.leaves))

    def _save(self, prepared: _Prepared, state: Any, tally: Tally, done: str) -> None:
        if self.checkpoint is None:
            return
        made = {
            "positions": torch.from_numpy(np.concatenate([atoms.positions for atoms in prepared.structures])),
            "thresholds": prepared.thresholds,
            "bandwidth": None if self.bandwidth is None else self.bandwidth.cpu(),
        }
        identity = identity_of(self.members, self.starts, self.options)
        marks = self.checkpoint.marks()
        write_checkpoint(self.checkpoint.path, Saved(identity, made, leaves_of(state), tally.plain(), marks, done))

    def _looked_at(self, found: _Found, prepared: _Prepared, tally: Tally) -> Iterator[Frame]:
        """Counts what a step found, and gives its frames."""
        options = self.options
        due = options.stride > 0 and found.step % options.stride == 0
        rows = found.rows
        moving = (rows[:, _OVER] < 0) & (rows[:, _BROKEN] < 0)
        if options.iterations is not None:
            going_on = np.array(tally.journeys) < options.iterations
            moving, rows = moving & going_on, np.where(going_on[:, None], rows, -1.0)
        tally.shortened += int(rows[moving, _LIMITED].sum())
        wanted = (rows[:, _BROKEN] >= 0) | moving & (due | (rows[:, _STOPPED] >= 0))
        for index in np.flatnonzero(wanted).tolist():
            row = rows[index]
            ensemble, particle = self._place(index, row)
            if row[_BROKEN] >= 0:
                self._broke(Ended(found.step, ensemble, particle, REASONS[int(row[_BROKEN])]), tally)
                tally.journeys[ensemble] += 1
                continue
            stopped = int(row[_STOPPED])
            if stopped >= 0:
                if options.acquisitions is not None and tally.acquired >= options.acquisitions:
                    return
                reason = prepared.sampler.stopping[stopped].name
                tally.acquired += 1
                tally.reasons[reason] = tally.reasons.get(reason, 0) + 1
                tally.journeys[ensemble] += 1
            if stopped >= 0 or due:
                tally.frames += 1
                yield self._frame(found, index, prepared)

    def _ensemble(self, prepared: _Prepared, state: Any) -> list[Atoms]:
        """The E M configurations at ``state`` in the order in which :func:`initial_structures` takes them up."""
        if self.one_moves:  # a particle whose journey broke stands where that set out
            positions = state.standing.positions.cpu().numpy().reshape(len(prepared.structures), -1, 3)
        else:
            stops = np.cumsum([len(atoms) for atoms in prepared.structures])[:-1]
            whole = (state.ended < 0).tolist()
            positions = [
                now if fine else atoms.positions
                for now, fine, atoms in zip(
                    np.split(state.positions.cpu().numpy(), stops), whole, prepared.structures, strict=True
                )
            ]
        found = []
        for index in np.arange(len(positions)).reshape(-1, self.particles).T.ravel():
            atoms = prepared.structures[index].copy()
            atoms.positions = positions[index]
            found.append(atoms)
        return found

    def _broke(self, ended: Ended, tally: Tally) -> None:
        tally.ended.append(ended)
        if self.on_ended is not None:
            self.on_ended(ended)

    def _place(self, index: int, row: np.ndarray) -> tuple[int, int]:
        """Ensemble and particle of a row: SKMD has a row an ensemble, the others a row a particle."""
        if self.one_moves:
            return index, int(row[_PARTICLE])
        return divmod(index, self.particles)

    def _frame(self, found: _Found, index: int, prepared: _Prepared) -> Frame:
        row = found.rows[index]
        ensemble, particle = self._place(index, row)
        # the rows of asynchronous SKMD are all of one size
        if self.one_moves:
            size = len(prepared.structures[0])
            atoms = slice(index * size, (index + 1) * size)
        else:
            before = sum(len(one) for one in prepared.structures[:index])
            atoms = slice(before, before + len(prepared.structures[index]))
        template = prepared.structures[ensemble * self.particles + particle]
        per_step = motion_of(self.options).time_per_step_fs
        stopped = int(row[_STOPPED])
        frame = Frame(
            atoms=template,
            step=found.step,
            time_fs=None if per_step is None else per_step * found.step,
            ensemble=ensemble,
            particle=particle,
            energy_eV=float(row[_ENERGY]),
            bias_norm=math.nan if self.options.method in UNBIASED else float(row[_BIAS]),
            temperature_K=float(row[_TEMPERATURE]),
            uncertainty_eV=float(row[_UNCERTAINTY]),
            acquired=stopped >= 0,
            stopping_reason=prepared.sampler.stopping[stopped].name if stopped >= 0 else "",
        )
        positions = found.info.positions[atoms].cpu().numpy()
        return framed(template, positions, found.info.forces[atoms].cpu().numpy(), self.options.method, frame)

    def _tell(self, found: _Found, tally: Tally, thresholds: Thresholds, done: str) -> None:
        if self.on_step is None:
            return
        moving = found.rows[found.rows[:, _OVER] < 0]
        means = moving.mean(0) if len(moving) else np.full(found.rows.shape[1], np.nan)
        per_step = motion_of(self.options).time_per_step_fs
        self.on_step(
            Progress(
                "sampling",
                found.step,
                self._steps,
                moving=len(moving),
                time_fs=None if per_step is None else per_step * found.step,
                energy_eV=float(means[_ENERGY]),
                temperature_K=float(means[_TEMPERATURE]),
                bias_norm=float(means[_BIAS]),
                tally=tally,
                thresholds=thresholds,
                finished=done,
            )
        )


def _block(sampler: Sampler, state: Any, count: int) -> tuple[Any, list[_Found]]:
    """``count`` steps, and what they found with one transfer of all scalars."""
    infos, scalars, first = [], [], state.step
    for _ in range(count):
        state, info = sampler.step(state)
        infos.append(info)
        columns = [getattr(info, name).double() for name in _COLUMNS]
        scalars.append(torch.stack([*columns, state.ended.double()], dim=1))
    rows = torch.stack(scalars).cpu().numpy()
    return state, [_Found(first + i + 1, info, rows[i]) for i, info in enumerate(infos)]
