"""Candidates from a sampling run with the round's model; a run that was killed goes on from its checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase import Atoms

from selectron.campaign.candidates import Candidates, index_pool
from selectron.campaign.context import Campaign, bare
from selectron.campaign.inputs import Inputs
from selectron.campaign.state import Stage, digest
from selectron.config.sampling import SamplingSection
from selectron.errors import SelectronError
from selectron.potentials import Potential
from selectron.sampling.checkpoint import Checkpoint, read_checkpoint
from selectron.sampling.frames import Progress
from selectron.sampling.output import RunFiles
from selectron.sampling.run import run_sampling
from selectron.structures import Checks, Pool


def sample_candidates(campaign: Campaign, inputs: Inputs, *, arm: str, round: int, model: str) -> Candidates:
    """The candidates of a round; the arms share a run where they have the same model."""
    section = campaign.config.sampling
    assert section is not None
    arm = "" if model == inputs.model else arm
    asked = {
        "inputs": inputs.key,
        "model": model,
        "sampling": section.model_dump(mode="json"),
        "seed": campaign.config.seed,
        "device": campaign.config.model.device,
        "dtype": campaign.config.model.dtype,
    }
    campaign.reporter.stage("sample", arm, round)
    stage = campaign.state.stage(
        "sample", asked, lambda: _sample(campaign, inputs, section, asked, (arm, round)), arm=arm, round=round
    )
    return candidates_of(campaign, stage)


def candidates_of(campaign: Campaign, stage: Stage) -> Candidates:
    """The candidates that a stage of sampling left."""
    structures = stage.output["structures"]
    files = (str(campaign.artifacts.path(structures)),) if structures else ()
    named = f"sampled in round {stage.round}" + (f" ({stage.arm})" if stage.arm else "")
    return Candidates(files, stage.output["index"], named)


def starting_structures(section: SamplingSection) -> list[Atoms]:
    """The structures that runs start from; raises SelectronError where one cannot be read or does not exist."""
    with Pool.open(section.starts) as pool:
        chosen: Sequence[int] = range(len(pool)) if section.start_indices is None else section.start_indices
        if max(chosen) >= len(pool):
            raise SelectronError(
                f"There is no starting structure {max(chosen)}: the files have {len(pool)}, counted from 0."
            )
        return [pool[index] for index in chosen]


def _sample(
    campaign: Campaign, inputs: Inputs, section: SamplingSection, asked: dict[str, Any], where: tuple[str, int]
) -> dict[str, Any]:
    model, round = asked["model"], where[1]
    potential = campaign.potential(model)
    folder = campaign.scratch / "sampling" / digest({"asked": asked, "where": where})[:16]
    for other in folder.parent.iterdir() if folder.parent.is_dir() else ():
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    last = _run(campaign, potential, section, folder, seed=campaign.config.seed + round)
    with_frames = [path for path in (folder / "frames.extxyz",) if path.stat().st_size]
    frames = Pool.open(with_frames)[:] if with_frames else []
    checks = Checks(elements=potential.elements)
    output = {
        "structures": None,
        "index": None,
        "frames": len(frames),
        "acquired": last.tally.acquired,
        "ended": [list(one) for one in last.tally.ended],
        "finished": last.finished,
        "candidates": 0,
        "left_out": 0,
    }
    usable = [atoms for atoms in frames if atoms.info.get("acquired") or not section.only_acquired]
    kept = [atoms for atoms in usable if checks.check(atoms) is None]
    output["left_out"] = len(usable) - len(kept)
    if not kept:
        return output
    names = ("step", "ensemble", "particle", "stopping_reason")
    structures = [
        bare(atoms, **{name: atoms.info[name] for name in names if name in atoms.info}, method=section.method)
        for atoms in kept
    ]
    output["structures"] = campaign.keep(structures)
    with Pool.open([campaign.artifacts.path(str(output["structures"]))]) as pool:
        index, _ = index_pool(pool, Checks(elements=None, min_distance_A=0.0), [], campaign.reporter)
    index = index.without(_held_out(campaign, inputs))
    output["index"] = campaign.artifacts.put(index.write, ".npz")
    output["candidates"] = len(index)
    return output


def _run(campaign: Campaign, potential: Potential, section: SamplingSection, folder: Path, *, seed: int) -> Progress:
    """Fills ``frames.extxyz`` in ``folder``, from the checkpoint there if a run was interrupted."""
    last = Progress("sampling", 0, None)
    told = ("", 0)

    def tell(progress: Progress) -> None:
        nonlocal last, told
        last = progress
        stage, before = told
        unit, total, now = _measure_of(progress, section)
        if stage != progress.stage:
            if stage:
                campaign.reporter.finish()
            campaign.reporter.start(f"{progress.stage}, {unit}", total)
            before = 0
        if now > before:
            campaign.reporter.advance(now - before)
        told = (progress.stage, max(now, before))

    path = folder / "state.pt"
    saved = read_checkpoint(path)
    marks = None if saved is None else saved.marks
    with RunFiles(folder / "frames.extxyz", ended=folder / "ended.csv", marks=marks) as files:
        frames = run_sampling(
            potential,
            starting_structures(section),
            section.run_options(seed),
            on_step=tell,
            on_ended=files.note,
            checkpoint=Checkpoint(path, files.marks),
        )
        for frame in frames:
            files.write(frame)
        files.publish()
    if told[0]:
        campaign.reporter.finish()
    return last


def _measure_of(progress: Progress, section: SamplingSection) -> tuple[str, int, int]:
    """What a run is counted by: its steps where they end it, else journeys or acquired structures; of how many, how many."""
    if progress.stage != "sampling" or progress.steps is not None:
        return "steps", progress.steps or 0, progress.step
    if section.iterations is not None:
        return "journeys", section.iterations, min(progress.tally.journeys, default=0)
    return "acquired", section.acquisitions or 0, progress.tally.acquired


def _held_out(campaign: Campaign, inputs: Inputs) -> set[str]:
    from selectron.structures import structure_hash

    held = [name for name in (inputs.test, inputs.validation) if name is not None]
    return {structure_hash(atoms) for atoms in campaign.read(held)}
