"""The report of a campaign: it tells the record's numbers, needs nothing from outside, and lets no file write into the page."""

import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

CAMPAIGNS = Path(__file__).parents[1] / "campaign"
if str(CAMPAIGNS) not in sys.path:
    sys.path.insert(0, str(CAMPAIGNS))

from ase.io import read, write  # noqa: E402
from quick_campaign import begin_in, history_rewritten, prepare, quick_fine_tune, rattled, run_quickly  # noqa: E402
from rich.console import Console  # noqa: E402
from scipy.spatial.distance import pdist  # noqa: E402

from selectron.campaign.history import read_campaign  # noqa: E402
from selectron.campaign.measuring import QUANTITIES, Predictions  # noqa: E402
from selectron.cli.status import summarise  # noqa: E402
from selectron.report import campaign_style, campaign_tables  # noqa: E402
from selectron.report.campaign_map import draw_map  # noqa: E402
from selectron.report.campaign_page import write_campaign_report  # noqa: E402
from selectron.report.campaign_points import read_map  # noqa: E402
from selectron.report.campaign_statistics import (  # noqa: E402
    curves_of,
    difference,
    resampled_errors,
    saved_share,
)
from selectron.report.campaign_summary import number, sentences  # noqa: E402
from selectron.training.fine_tune import TrainingFailed  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = '"><img src=x onerror="document.title=1"><script>document.title=2</script>{{sections}}\x0c7'


@pytest.fixture(scope="module", autouse=True)
def calculator_by_name():
    """The engine that calls the oracle finds the quick calculator by import path."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(CAMPAIGNS)
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="module")
def played(tmp_path_factory, tiny_model):
    """A campaign with failures and with text from hell in every field that a file can fill."""
    folder = tmp_path_factory.mktemp("played")
    path = prepare(folder, tiny_model, fails="CH4", name=EVIL[:60], budget={"labels": 8, "per_round": 4})
    structures = read(folder / "pool.extxyz", ":")
    for atoms in structures:
        atoms.info.update(
            kind="<script>document.title=3</script>", smiles="C#N<b onclick=x>", reaction="'><svg onload=x>"
        )
    write(folder / "pool.extxyz", structures)
    path.write_text(path.read_text() + "# </pre><script>document.title=4</script>\n")
    begin_in(path, folder / "run")
    run_quickly(folder / "run")
    return read_campaign(folder / "run")


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.attributes, self.text, self.frames = [], [], [], []
        self._depth_of_code = 0
        self.feed(Path(path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attributes if name != "srcdoc"]
        self.frames += [value for name, value in attributes if name == "srcdoc"]
        self._depth_of_code += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._depth_of_code -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._depth_of_code:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def page_of(record, tmp_path):
    write_campaign_report(record, tmp_path / "report.html")
    return Page(tmp_path / "report.html")


def begun(tmp_path, tiny_model, *, water=0, **changes):
    if water:
        write(tmp_path / "water.extxyz", [a for a in rattled(6 * water, 7) if a.get_chemical_formula() == "H2O"])
    begin_in(prepare(tmp_path, tiny_model, **changes), tmp_path / "run")
    return tmp_path / "run"


def test_text_from_files_stays_text(played, tmp_path):
    page = page_of(played, tmp_path)
    assert page.tags.count("script") == 1, "only the page's own"
    assert not {"img", "base", "form", "object", "embed"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "<script>document.title=3</script>" in page.words
    assert "</pre><script>document.title=4</script>" in page.words
    assert EVIL[:60].strip() in page.words
    inner = page.frames[0]
    title = re.search(r"<title>(.*?)</title>", inner, re.DOTALL)[1]
    assert "<" not in title, "the frame escapes the name a second time"


def test_nothing_is_fetched(played, tmp_path):
    page = page_of(played, tmp_path)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "poster"):
            assert value.startswith(("#", "data:")), f"{tag} {name}={value[:60]}"
        assert name == "style" or "url(http" not in value
    policy = next(v for t, n, v in page.attributes if t == "meta" and n == "content" and "default-src" in v)
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    text = (tmp_path / "report.html").read_text()
    assert "@import" not in text.split("<iframe")[0]
    assert len(text) < 15_000_000


def test_every_pick_and_every_failure_is_told(played, tmp_path):
    page = page_of(played, tmp_path)
    picks = [pick for arm in played.arms for one in arm.rounds for pick in one.picks]
    assert any(pick.labelled is False for pick in picks)
    text = (tmp_path / "report.html").read_text()
    sortable = re.findall(r'<table class="sortable">.*?<tbody>(.*?)</tbody>', text, re.DOTALL)
    assert sum(body.count("<tr>") for body in sortable) == len(picks)
    lost = sum(len(arm.failures) for arm in played.arms)
    assert page.words.count("RuntimeError: the electrons do not converge") == 2 * lost, "in the picks and the failures"


def test_the_summary_tells_the_errors_that_the_predictions_give(played):
    first, second, third = sentences(played, curves_of(played))
    for one in (played.start, played.selected.rounds[-1]):
        found = Predictions.read(one.test.path)
        rmse = float(np.sqrt(np.mean((found.forces - found.force_labels) ** 2)))
        energy = (found.energy_eV - found.energy_label_eV) / found.atoms
        assert number(rmse) in first
        assert number(1e3 * float(np.sqrt(np.mean(energy**2)))) in first
    assert "With 8 " in first
    assert "2 rounds" in first
    assert "random picks" in second
    assert "budget" in third


def test_costs_add_up_to_all_that_was_spent(played):
    parts = campaign_tables.core_seconds(played)
    spent = played.oracle_core_s + sum(
        cost.core_s for name, cost in played.costs.items() if name in ("pick", "map", "train", "measure")
    )
    assert sum(sum(one.values()) for one in parts.values()) == pytest.approx(spent)


def test_resampled_errors_are_those_of_the_resampled_test_set(played):
    found = played.start.test.predictions()
    weights = {}
    draws = resampled_errors(found, weights)
    starts = np.cumsum(found.atoms) - found.atoms
    for draw in (0, 17):
        chosen = np.repeat(np.arange(len(found.atoms)), weights[len(found.atoms)][draw].astype(int))
        atoms = np.concatenate([np.arange(starts[i], starts[i] + found.atoms[i]) for i in chosen])
        again = Predictions(
            found.atoms[chosen],
            found.energy_eV[chosen],
            found.energy_label_eV[chosen],
            found.forces[atoms],
            found.force_labels[atoms],
        ).errors()
        expected = (again.force_rmse, again.force_mae, again.energy_rmse_meV_atom, again.energy_mae_meV_atom)
        assert [draws[name][draw] for name in QUANTITIES] == pytest.approx(expected)


def test_an_arm_against_itself_saves_nothing(played):
    curve = curves_of(played)["random"]
    same = {"selected": curve, "random": curve}
    gap = difference(same, "energy_rmse_meV_atom")
    assert (gap.low, gap.high) == (0.0, 0.0)
    assert "no difference" in gap.word
    share = saved_share(same, "energy_rmse_meV_atom")
    assert share.low == share.high == pytest.approx(0.0)
    assert share.reached == 1.0
    assert not share.open_above


def test_a_twin_that_never_gets_there_leaves_the_saving_open(played):
    curve = curves_of(played)["selected"]
    worse = curve._replace(draws={name: 3.0 * values for name, values in curve.draws.items()})
    share = saved_share({"selected": curve, "random": worse}, "energy_rmse_meV_atom")
    assert share.open_above
    assert share.reached < 1.0
    assert difference({"selected": curve, "random": worse}, "energy_rmse_meV_atom").word == "lower with selection"


def test_a_campaign_that_has_not_started_says_so(tmp_path, tiny_model):
    page = page_of(read_campaign(begun(tmp_path, tiny_model)), tmp_path)
    for phrase in ("Nothing has been measured yet", "Nothing has been picked yet", "interrupted"):
        assert phrase in page.words
    assert "svg" not in page.tags


def test_an_oracle_that_always_fails(tmp_path, tiny_model):
    path = prepare(tmp_path, tiny_model, fails="CH4", pool={"files": ["methane.extxyz"]})
    write(tmp_path / "methane.extxyz", [a for a in rattled(60, 9) if a.get_chemical_formula() == "CH4"])
    begin_in(path, tmp_path / "run")
    run_quickly(tmp_path / "run")
    page = page_of(read_campaign(tmp_path / "run"), tmp_path)
    assert "No label has been obtained" in page.words
    assert "3 oracle calls failed" in page.words
    assert "No fine-tuned model has been measured yet" in page.words


def test_failed_trainings_without_a_twin_are_told(tmp_path, tiny_model):
    from selectron.campaign.run import run_campaign

    def fails_first(model, train, valid, options, folder, **rest):
        if len(train) < 10:
            raise TrainingFailed("the loss is <nan>")
        return quick_fine_tune(model, train, valid, options, folder, **rest)

    folder = begun(tmp_path, tiny_model, baseline=None)
    run_campaign(folder, fine_tune=fails_first)
    page = page_of(read_campaign(folder), tmp_path)
    assert "the loss is <nan>" in page.words
    assert "failed in 1 of 2 rounds" in page.words
    assert "no random twin" in page.words
    assert "Labels at equal error" not in page.words


def copied(folder, target):
    """The campaign as it comes to another machine: without what can be made again."""
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("scratch"))
    return target


def without_planes(folder):
    """The campaign in ``folder`` as a version without planes left it."""
    with history_rewritten(folder) as connection:
        connection.execute("DELETE FROM trail WHERE key IN (SELECT key FROM stages WHERE name = 'map')")
        trail = connection.execute("SELECT key FROM trail ORDER BY position").fetchall()
        connection.execute("DELETE FROM trail")
        connection.executemany("INSERT INTO trail VALUES (?, ?)", [(place, key) for place, (key,) in enumerate(trail)])
        connection.execute("DELETE FROM stages WHERE name = 'map'")
        for key, text in connection.execute("SELECT key, output FROM stages WHERE name = 'pick'").fetchall():
            output = json.loads(text)
            output.pop("plane", None)
            connection.execute("UPDATE stages SET output = ? WHERE key = ?", (json.dumps(output), key))
    return read_campaign(folder)


def picked(record):
    return {pick.structure_hash for arm in record.arms for one in arm.rounds for pick in one.picks}


def test_the_map_is_there_on_another_machine_with_every_pick(played, tmp_path):
    copy = read_campaign(copied(played.folder, tmp_path / "copy"))
    found, before = read_map(copy), read_map(played)
    assert picked(played) <= set(found.hashes), "failed picks and those of the twin too"
    assert len(found.hashes) == len(set(found.hashes))
    np.testing.assert_array_equal(found.coordinates, before.coordinates)
    page = page_of(copy, tmp_path)
    assert page.frames
    assert draw_map(copy, found) == draw_map(played, before)


def test_the_map_lies_as_the_feature_rows_do(played, tmp_path):
    shutil.copytree(played.folder, tmp_path / "old")
    kept, of_rows = read_map(played), read_map(without_planes(tmp_path / "old"))
    places = {name: i for i, name in enumerate(of_rows.hashes)}
    both = [(i, places[name]) for i, name in enumerate(kept.hashes) if name in places]
    assert len(both) > 30
    here, there = (points[list(chosen)] for points, chosen in zip(
        (kept.coordinates, of_rows.coordinates), zip(*both, strict=True), strict=True))  # fmt: skip
    # the planes are of nearly the same structures, and the signs of their axes are open
    assert np.corrcoef(pdist(here), pdist(there))[0, 1] > 0.999


def test_a_campaign_of_an_older_version_has_a_page_without_its_map(played, tmp_path):
    old = without_planes(copied(played.folder, tmp_path / "copy"))
    page = page_of(old, tmp_path)
    assert not page.frames
    assert "There is no map" in page.words


def test_a_damaged_plane_costs_the_map_alone(played, tmp_path):
    copy = copied(played.folder, tmp_path / "copy")
    read_campaign(copy).plane_paths[0].write_bytes(b"PK damaged")
    page = page_of(read_campaign(copy), tmp_path)
    assert "There is no map" in page.words
    assert "Learning curves" in page.words


SAMPLING = {
    "starts": ["train.extxyz"],
    "start_indices": [0],
    "method": "skmd",
    "particles": 3,
    "temperature_K": 300.0,
    "iterations": 6,
    "initial": {"burn_in_steps": 10, "snapshot_every": 5},
    "stopping": [{"kind": "fixed-steps", "steps": 10}],
}


def test_picks_of_the_twin_from_its_own_samples_are_in_the_map(tmp_path, tiny_model):
    folder = begun(tmp_path, tiny_model, pool=None, sampling=SAMPLING, features={"name": "joint-ntk", "dim": 16})
    run_quickly(folder)
    record = read_campaign(folder)
    assert not record.random.rounds[1].sampled.shared, "samples that the selected arm's screening never saw"
    assert picked(record) <= set(read_map(record).hashes)
    assert "random picks: 6 picks in" in (page_of(record, tmp_path), (tmp_path / "report.html").read_text())[1]


def test_broken_trajectories_are_counted_by_reason(tmp_path, tiny_model):
    limits = {"max_force_eV_A": 1e-6}  # so that every particle breaks at its first step
    starts = {"starts": ["water.extxyz"], "start_indices": None}  # as many as particles: no dynamics before
    folder = begun(tmp_path, tiny_model, pool=None, sampling={**SAMPLING, **starts, "geometry": limits}, water=3)
    run_quickly(folder)
    record = read_campaign(folder)
    assert len(record.selected.rounds[0].sampled.ended) == 3
    words = page_of(record, tmp_path).words
    assert "3 trajectories broke a force became too large" in words
    said = io.StringIO()
    summarise(record, Console(file=said, width=200))
    assert "3 trajectories broke" in said.getvalue()
    assert "a force became too large" in said.getvalue()


def test_pictures_take_the_colours_of_the_page(played, tmp_path):
    page_of(played, tmp_path)
    text = re.sub(r"<iframe.*?</iframe>", "", (tmp_path / "report.html").read_text(), flags=re.DOTALL)
    pictures = re.findall(r"<svg .*?</svg>", text, re.DOTALL)
    assert len(pictures) >= 4
    for picture in pictures:
        root = ElementTree.fromstring(picture)
        assert root.get("role") == "img"
        assert len(root.get("aria-label")) > 20
        assert not re.search("|".join(campaign_style._THEME), picture, re.IGNORECASE)
        assert "var(--ink)" in picture


def test_the_same_record_gives_the_same_page(played, tmp_path):
    for name in ("one.html", "two.html"):
        write_campaign_report(played, tmp_path / name)
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_a_record_of_a_running_campaign_says_that_it_runs(played):
    arms = dataclasses.replace(played.selected, stop=None, stop_rule=None)
    running = dataclasses.replace(played, selected=arms, process=1)
    assert "still running" in sentences(running, curves_of(running))[2]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_it_sorts_and_runs_no_text_of_files_in_a_browser(played, tmp_path):
    write_campaign_report(played, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    click = """
    const table = document.querySelector("details[open] table.sortable");
    const heads = [...table.tHead.rows[0].cells];
    const column = heads.findIndex((head) => head.textContent === "variance");
    const values = () => [...table.tBodies[0].rows].map((row) => parseFloat(row.cells[column].dataset.key));
    const button = heads[column].querySelector("button");
    button.click(); const up = values(); button.click(); const down = values();
    document.body.dataset.sorted = JSON.stringify([up, down]);
    </script>
    </body>"""
    (tmp_path / "clicked.html").write_text(text.replace("</script>\n</body>", click))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([*command, f"file://{tmp_path}/clicked.html"], capture_output=True, text=True, timeout=120)
    up, down = (np.array(one) for one in json.loads(re.search(r'data-sorted="(.*?)"', done.stdout)[1]))
    assert len(up) > 2
    assert (np.diff(up) >= 0).all()
    assert (np.diff(down) <= 0).all()
    assert re.search(r"<title>(.*?)</title>", done.stdout)[1].endswith("report of a selectron campaign")
