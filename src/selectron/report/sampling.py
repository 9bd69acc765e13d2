"""One picture of sampling runs: the map that suits what they sampled, and their course below it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from selectron.errors import SelectronError
from selectron.report.backbone import frame_dihedrals, residues
from selectron.report.coverage import PLANE_FACT, landscape_band, plane_band, projection_band, window_fact
from selectron.report.panels import Band, Columns, columns_for, legend_entries, make_sheet, write_sheet
from selectron.report.ramachandran import FACT, backbone_of_runs, ramachandran_band
from selectron.report.samples import Samples, all_samples
from selectron.report.traces import crowded, trace_bands, trace_numbers


def draw_sampling(
    frames_by_run: Mapping[str, Sequence[Atoms]],
    path: str | Path,
    *,
    surface: Any = None,
    descriptors: Mapping[str, Any] | None = None,
    thresholds: Mapping[str, float] | None = None,
    energy_window_eV: float | None = None,
    title: str | None = None,
) -> dict[str, Any]:
    """Write the PNG ``path`` of one or more sampling runs and return its numbers.

    | what the runs hold                                   | map                                                     |
    |------------------------------------------------------|---------------------------------------------------------|
    | points: one atom of number 0, at (x, y) in Å         | contours of ``surface`` where given, else the plane     |
    | one peptide (every first frame has φ and ψ)          | Ramachandran map, ``surface`` (φ, ψ, F) behind it       |
    | anything, with ``descriptors``                       | the plane of largest variance of the descriptors        |

    Below the maps come the traces of ``traces.draw_traces``. A peptide with descriptors has both maps.

    Args:
        frames_by_run: the frames of each run, by the name that heads its panels; what ``info`` may hold is in
            ``samples.samples_of``.
        path: where the PNG goes; its folder must exist.
        surface: (x, y, energy in eV), or a mapping from the names of the runs to one each (points only).
        descriptors: by name of the run, (n, D), a row a frame.
        thresholds: dashed lines in the traces, by ``"bias_norm"`` or another quantity of the frames, in its unit.
        energy_window_eV: what counts as low in the coverage of a surface; ``landscape.default_window`` where left out.
        title: headline; a plain one where it is left out.

    Returns:
        ``kind`` ("points", "peptide" or "structures") and ``runs``: by name, the numbers of ``traces.trace_numbers``
        and, where drawn, ``surface`` (``landscape.surface_coverage``), ``ramachandran`` (coverage and entropy) and
        ``plane`` (``landscape.plane_coverage``). All JSON.

    Raises:
        SelectronError: no runs, a run without frames, points mixed with structures, or arrays that do not fit the runs.
    """
    runs = all_samples(frames_by_run)
    columns = columns_for(len(runs))
    numbers: dict[str, dict[str, Any]] = {run.name: trace_numbers(run) for run in runs}
    kind = _kind(frames_by_run)
    bands, facts = [], []

    def add(name: str, made: tuple[Band, list[dict[str, Any]]], fact: str) -> None:
        bands.append(made[0])
        if name != "plane" or len(runs) > 1:
            facts.append(fact)
        for run, number in zip(runs, made[1], strict=True):
            numbers[run.name][name] = number

    if kind == "points":
        points = [np.array([atoms.positions[0, :2] for atoms in frames]) for frames in frames_by_run.values()]
        if surface is None:
            add("plane", plane_band(runs, points, columns, ("x (Å)", "y (Å)")), PLANE_FACT)
        else:
            made = landscape_band(
                runs, points, _of_each(surface, "surface", runs), columns, energy_window_eV=energy_window_eV
            )
            add("surface", made, window_fact(made[1]))
    elif kind == "peptide":
        add("ramachandran", _ramachandran(frames_by_run, runs, columns, surface), FACT)
    if descriptors is not None:
        rows = _of_each(descriptors, "descriptors", runs)
        made = projection_band(runs, [rows[run.name] for run in runs], columns)
        add("plane", made, PLANE_FACT)
    bands += trace_bands(runs, columns, thresholds=thresholds)
    figure = make_sheet(
        columns=columns,
        title=title or f"Sampling: {len(runs)} run{'s' * (len(runs) > 1)}, {sum(map(len, runs)):,} frames",
        facts=facts[0] if facts else "",
        legend=legend_entries(
            acquired=int(sum(run.acquired.sum() for run in runs)),
            others=len(runs) > 1 and any("plane" in number for number in numbers.values()),
            threshold=bool(thresholds),
            median=crowded(runs),
        ),
        bands=bands,
    )
    write_sheet(path, figure)
    return {"kind": kind, "runs": numbers}


def _kind(frames_by_run: Mapping[str, Sequence[Atoms]]) -> str:
    points = [len(atoms) == 1 and int(atoms.numbers[0]) == 0 for frames in frames_by_run.values() for atoms in frames]
    if all(points):
        return "points"
    if any(points):
        raise SelectronError("Points of a surface (one atom of number 0) and structures do not share a figure.")
    constant = all(len({atoms.numbers.tobytes() for atoms in frames}) == 1 for frames in frames_by_run.values())
    firsts = {frames[0].numbers.tobytes(): frames[0] for frames in frames_by_run.values()}
    return "peptide" if constant and all(len(residues(atoms)) for atoms in firsts.values()) else "structures"


def _ramachandran(
    frames_by_run: Mapping[str, Sequence[Atoms]], runs: Sequence[Samples], columns: Columns, surface: Any
) -> tuple[Band, list[dict[str, Any]]]:
    backbones = backbone_of_runs(frames_by_run)
    angles = [
        (frame_dihedrals(frames, backbones[name].phi), frame_dihedrals(frames, backbones[name].psi))
        for name, frames in frames_by_run.items()
    ]
    return ramachandran_band(runs, angles, columns, free_energy=surface)


def _of_each(given: Any, what: str, runs: Sequence[Samples]) -> Any:
    """A mapping has an entry for every run; anything else serves all of them."""
    missing = [run.name for run in runs if run.name not in given] if isinstance(given, Mapping) else []
    if missing:
        raise SelectronError(f"The {what} lack the run {missing[0]!r}; give one entry for each run.")
    return given
