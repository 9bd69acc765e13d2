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
from selectron.sampling.options import SampleOptions
from selectron.sampling.output import RunFiles
from selectron.sampling.run import run_sampling
from selectron.sampling.starts import constrained
from selectron.structures import Checks, Pool
from selectron.structures.constraints import held_sentence


def sample_candidates(
    campaign: Campaign, inputs: Inputs, *, arm: str, round: int, model: str, ensemble: str | None = None
) -> Candidates:
    """The candidates of a round, from ``ensemble`` where the round before left one; the arms share a run where they have the
    same model and no such ensemble.
    """
    section = campaign.config.sampling
    assert section is not None
    arm = "" if model == inputs.model and ensemble is None else arm
    asked = {
        "inputs": inputs.key,
        "model": model,
        "sampling": section.model_dump(mode="json", exclude=_defaults(section)),
        "seed": campaign.config.seed,
        "device": campaign.config.model.device,
        "dtype": campaign.config.model.dtype,
    }
    if ensemble is not None:
        asked["ensemble"] = ensemble
    campaign.reporter.stage("sample", arm, round)
    stage = campaign.state.stage(
        "sample", asked, lambda: _sample(campaign, inputs, section, asked, (arm, round)), arm=arm, round=round
    )
    return candidates_of(campaign, stage)


def _defaults(section: SamplingSection) -> set[str]:
    """Later options that are as if they were not there, so that older campaigns go on."""
    return {name for name, usual in (("carry_on", False), ("constraints", "keep")) if getattr(section, name) == usual}


def candidates_of(campaign: Campaign, stage: Stage) -> Candidates:
    """The candidates that a stage of sampling left."""
    structures = stage.output["structures"]
    files = (str(campaign.artifacts.path(structures)),) if structures else ()
    named = f"sampled in round {stage.round}" + (f" ({stage.arm})" if stage.arm else "")
    return Candidates(files, stage.output["index"], named, stage.output.get("ensemble"))


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
    carried = asked.get("ensemble")
    starts = campaign.read([carried]) if carried else starting_structures(section)
    options = section.run_options(campaign.config.seed + round, carried=len(starts) if carried else None)
    held = held_sentence(constrained(starts, options))
    if held is not None:
        campaign.reporter.say(held)
    last, ensemble = _run(campaign, potential, starts, options, folder)
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
    if section.carry_on:
        output["ensemble"] = campaign.keep(ensemble)
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
    with Pool.open([campaign.artifacts.whole(str(output["structures"]))]) as pool:
        index, _ = index_pool(pool, Checks(elements=None, min_distance_A=0.0), [], campaign.reporter)
    index = index.without(_held_out(campaign, inputs))
    output["index"] = campaign.artifacts.put(index.write, ".npz")
    output["candidates"] = len(index)
    return output


def _run(
    campaign: Campaign, potential: Potential, starts: Sequence[Atoms], options: SampleOptions, folder: Path
) -> tuple[Progress, list[Atoms]]:
    """Fills ``frames.extxyz`` in ``folder``, from the checkpoint there if a run was interrupted; how far it came, and the
    configurations it ended with.
    """
    last = Progress("sampling", 0, None)
    ensemble: list[Atoms] = []
    told = ("", 0)

    def tell(progress: Progress) -> None:
        nonlocal last, told
        last = progress
        stage, before = told
        unit, total, now = _measure_of(progress, options)
        if stage != progress.stage:
            if stage:
                campaign.reporter.finish()
            campaign.reporter.start(f"{progress.stage}, {unit}", total)
            before = 0
        if now > before:
            campaign.reporter.advance(now - before)
        told = (progress.stage, max(now, before))

    path = folder / "state.pt"
    try:
        saved = read_checkpoint(path)
    except SelectronError as error:  # it can be made again
        campaign.reporter.say(f"The sampling of this round begins anew: {error}")
        path.unlink()
        saved = None
    marks = None if saved is None else saved.marks
    with RunFiles(folder / "frames.extxyz", ended=folder / "ended.csv", marks=marks) as files:
        frames = run_sampling(
            potential,
            starts,
            options,
            on_step=tell,
            on_ended=files.note,
            on_ensemble=ensemble.extend,
            checkpoint=Checkpoint(path, files.marks),
        )
        for frame in frames:
            files.write(frame)
        files.publish()
    if told[0]:
        campaign.reporter.finish()
    return last, ensemble


def _measure_of(progress: Progress, options: SampleOptions) -> tuple[str, int, int]:
    """What a run is counted by: its steps where they end it, else journeys or acquired structures; of how many, how many."""
    if progress.stage != "sampling" or progress.steps is not None:
        return "steps", progress.steps or 0, progress.step
    if options.iterations is not None:
        return "journeys", options.iterations, min(progress.tally.journeys, default=0)
    return "acquired", options.acquisitions or 0, progress.tally.acquired


def _held_out(campaign: Campaign, inputs: Inputs) -> set[str]:
    from selectron.structures import structure_hash

    held = [name for name in (inputs.test, inputs.validation) if name is not None]
    return {structure_hash(atoms) for atoms in campaign.read(held)}
