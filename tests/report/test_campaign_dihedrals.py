"""The Ramachandran panel of a campaign's report: there for a peptide, even where picks are torn; absent elsewhere."""

import dataclasses
import re

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write
from test_campaign_page import begin_in, calculator_by_name, page_of, prepare, read_campaign, run_quickly  # noqa: F401

from selectron.embedded import model_path
from selectron.report.backbone import find_backbone, frame_dihedrals
from selectron.report.campaign_map import draw_dihedrals

SAMPLING = {
    "starts": ["start.extxyz"],
    "method": "langevin",
    "temperature_K": 300.0,
    "particles": 2,
    "steps": 200,
    "stride": 20,
    "candidates": "frames",
}


def sampled_from(atoms, folder):
    """A finished campaign whose candidates are frames of dynamics from ``atoms`` with the embedded model."""
    path = prepare(folder, model_path(), pool=None, sampling=SAMPLING)
    write(folder / "start.extxyz", atoms)
    begin_in(path, folder / "run")
    run_quickly(folder / "run")
    return read_campaign(folder / "run")


def picks_of(arm):
    return [pick for one in arm.rounds for pick in one.picks]


@pytest.mark.slow
def test_a_dipeptide_has_the_panel(shared_data, tmp_path):
    start = read(shared_data / "alanine_dipeptide_vacuum.xyz")
    record = sampled_from(start, tmp_path)
    page_of(record, tmp_path)
    assert 'aria-label="Ramachandran map of the picks' in (tmp_path / "report.html").read_text()

    # six picks near the start lie in as many bins of 10° × 10° as their angles say
    drawn = draw_dihedrals(record)
    backbone = find_backbone(start)
    for arm, word in zip(record.arms, ("selected", "random picks"), strict=True):
        frames = [pick.structure for pick in picks_of(arm)]
        angles = [frame_dihedrals(frames, atoms).ravel() for atoms in (backbone.phi, backbone.psi)]
        bins = {tuple(np.floor(pair / 10).astype(int)) for pair in np.stack(angles, axis=1)}
        assert f"{word} covers {len(bins) / 36**2:.1%}" in drawn

    torn = record.selected.rounds[0].picks[0]
    torn.structure.positions *= 1.6
    assert draw_dihedrals(record), "one molecule in pieces, the first of all, hides no backbone"


@pytest.mark.slow
def test_ethanol_has_none(tmp_path):
    record = sampled_from(molecule("CH3CH2OH"), tmp_path)
    page = page_of(record, tmp_path)
    assert len(picks_of(record.selected)) == 6
    assert page.frames, "its map is there"
    assert not re.search("Ramachandran", (tmp_path / "report.html").read_text().split("<iframe")[0])
    assert draw_dihedrals(dataclasses.replace(record, random=None)) == ""
