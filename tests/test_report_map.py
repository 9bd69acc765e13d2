"""The PNG and the HTML map: every pick is there, nothing is fetched, what is embedded is what was given."""

import base64
import gzip
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from matplotlib.image import imread

from selectron.errors import SelectronError
from selectron.report.map import FeatureMapData, draw_png, write_html
from selectron.report.map_data import points_to_show, spread_over_variance, variance_scale

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def map_data(n=60, n_train=10, n_picks=5, variance=None, structures=True, **extra):
    rng = np.random.default_rng(0)
    kind = np.array(["pool"] * n, dtype="U5")
    kind[:n_train] = "train"
    picks = rng.permutation(np.arange(n_train, n))[:n_picks]
    kind[picks] = "pick"
    rank = np.full(n, -1)
    rank[picks] = np.arange(len(picks))
    names = ("H2O", "CH4", "C6H6")
    atoms = [molecule(names[i % 3]) if i % 4 else bulk("Cu", cubic=True) for i in range(n)] if structures else []
    return FeatureMapData(
        coordinates=rng.normal(size=(n, 2)),
        kind=kind,
        variance=np.exp(2 * rng.normal(size=n)) if variance is None else np.full(n, variance),
        rank=rank,
        structures=atoms,
        labels=[f"pool.extxyz {i}" for i in range(n)],
        explained=np.array([0.6, 0.2]),
        title="Picks of a <pool> & more",
        subtitle="force-ntk · lcmd · budget 5",
        **extra,
    )


def embedded(page, name):
    packed = re.search(rf'<script type="application/octet-stream" id="{name}">([^<]*)</script>', page)[1]
    return gzip.decompress(base64.b64decode(packed)).decode("utf-8")


EDGE_CASES = {
    "usual": {},
    "one structure": {"n": 1, "n_train": 0, "n_picks": 1},
    "one structure, none picked": {"n": 1, "n_train": 0, "n_picks": 0},
    "no training set": {"n_train": 0},
    "only a training set": {"n": 6, "n_train": 6, "n_picks": 0},
    "equal variances": {"variance": 0.3},
    "zero variances": {"variance": 0.0},
    "negative by rounding": {"variance": -1e-17},
    "no variances": {"variance": np.nan},
    "many picks": {"n": 300, "n_picks": 100},
}


@pytest.mark.parametrize("case", EDGE_CASES.values(), ids=EDGE_CASES)
def test_png_is_drawn_for_every_kind_of_pool(case, tmp_path):
    draw_png(map_data(structures=False, **case), tmp_path / "map.png")
    picture = imread(tmp_path / "map.png")
    assert picture.shape[:2] == (940, 1800)
    assert len(np.unique(picture[::7, ::7].reshape(-1, picture.shape[2]), axis=0)) > 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["map.png"]


def test_png_holds_the_colours_of_smallest_and_largest_variance(tmp_path):
    data = map_data(n=30, n_train=0, n_picks=0, structures=False)
    data.coordinates[:, 0] = np.arange(30)
    draw_png(data, tmp_path / "map.png")
    panel = imread(tmp_path / "map.png")[200:840, 130:1070, :3]
    for colour in ((0.267, 0.005, 0.329), (0.993, 0.906, 0.144)):
        assert np.abs(panel - colour).max(axis=2).min() < 0.02


def test_png_of_a_hundred_thousand_points_is_quick_and_small(tmp_path):
    data = map_data(n=100_000, n_train=2000, n_picks=50, structures=False)
    draw_png(data, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size < 3e6


def test_page_loads_nothing_from_anywhere(tmp_path):
    write_html(map_data(), tmp_path / "map.html")
    page = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.search(r"<link|<iframe|<img|@import|url\(", page)
    assert "default-src 'none'" in page
    assert "connect-src 'none'" in page
    assert "Picks of a &lt;pool&gt; &amp; more" in page
    assert embedded(page, "viewer").lstrip().startswith("/*! For license")
    assert not re.search(r"\{\{\w+\}\}", page)


def test_embedded_data_is_what_was_given(tmp_path):
    data = map_data(extra={"score": np.linspace(0, 1, 60)})
    write_html(data, tmp_path / "map.html")
    stored = json.loads(embedded((tmp_path / "map.html").read_text(encoding="utf-8"), "dataset"))
    values = {name: entry["values"] for name, entry in stored["properties"].items()}
    place = [int(label.split()[1]) for label in values["source"]]
    assert sorted(place) == list(range(60))
    np.testing.assert_allclose(values["variance"], data.variance[place])
    np.testing.assert_allclose(values["score"], data.extra["score"][place])
    axes = [stored["settings"]["map"][axis]["property"] for axis in "xy"]
    np.testing.assert_allclose(np.column_stack([values[name] for name in axes]), data.coordinates[place])
    for i, shown in zip(place, stored["structures"], strict=True):
        atoms = data.structures[i]
        assert shown["names"] == atoms.get_chemical_symbols()
        np.testing.assert_allclose(np.column_stack([shown[axis] for axis in "xyz"]), atoms.positions, atol=1e-4)
        assert ("cell" in shown) == bool(atoms.pbc.any())
        if atoms.pbc.any():
            np.testing.assert_allclose(np.reshape(shown["cell"], (3, 3)), atoms.cell.array)
    picks = [(rank, place[j]) for j, rank in enumerate(values["rank"]) if rank is not None]
    assert sorted(picks) == sorted((data.rank[i], i) for i in np.flatnonzero(data.kind == "pick"))
    assert stored["settings"]["map"]["color"]["property"] == "log10(variance)"
    assert stored["settings"]["map"]["symbol"] == "kind"
    assert values["rank"][stored["settings"]["pinned"][0]] == 0


@pytest.mark.parametrize("case", EDGE_CASES.values(), ids=EDGE_CASES)
def test_page_is_written_for_every_kind_of_pool(case, tmp_path):
    write_html(map_data(**case), tmp_path / "map.html")
    stored = json.loads(embedded((tmp_path / "map.html").read_text(encoding="utf-8"), "dataset"))
    colour = stored["settings"]["map"]["color"]
    assert bool(colour["property"]) == ("max" in colour)


def test_atoms_are_coloured_by_their_share_of_the_variance(tmp_path):
    data = map_data()
    data.atom_variance = [np.arange(len(atoms), dtype=float) for atoms in data.structures]
    write_html(data, tmp_path / "map.html")
    stored = json.loads(embedded((tmp_path / "map.html").read_text(encoding="utf-8"), "dataset"))
    shares = np.split(
        stored["properties"]["variance of atom"]["values"], np.cumsum([s["size"] for s in stored["structures"]])
    )
    for share, shown in zip(shares, stored["structures"], strict=False):
        np.testing.assert_array_equal(share, np.arange(shown["size"]))
    assert stored["settings"]["structure"][0]["color"]["property"] == "variance of atom"


def test_a_large_pool_is_thinned_but_keeps_every_pick_and_both_ends_of_the_variance():
    data = map_data(n=9000, n_train=3000, n_picks=150, structures=False)
    shown = points_to_show(data, 2000)
    assert len(shown) == len(set(shown.tolist())) <= 2000
    assert set(data.of_kind("pick")) <= set(shown)
    assert list(dict.fromkeys(data.kind[shown])) == ["pool", "train", "pick"]
    pool = data.of_kind("pool")
    assert {pool[np.argmin(data.variance[pool])], pool[np.argmax(data.variance[pool])]} <= set(shown)
    kept = data.variance[[i for i in shown if data.kind[i] == "pool"]]
    np.testing.assert_allclose(np.median(kept), np.median(data.variance[pool]), rtol=0.05)
    assert (data.kind[points_to_show(data, 100)] == "pick").all()
    assert set(points_to_show(data, 9000)) == set(range(9000))


def test_spread_keeps_the_largest_when_only_one_is_wanted():
    assert spread_over_variance(np.array([1.0, 5.0, 2.0]), 1).tolist() == [1]
    assert spread_over_variance(np.array([1.0, 5.0]), 0).tolist() == []


def test_training_set_does_not_stretch_the_colour_scale():
    data = map_data(variance=2.0)
    data.variance[data.kind == "train"] = 1e-9
    assert variance_scale(data) == (2.0, 2.0, False)


def test_points_that_disagree_are_refused():
    with pytest.raises(SelectronError, match="labels has 1"):
        FeatureMapData(np.zeros((2, 2)), ["pool", "pool"], [1, 2], [-1, -1], [], ["a"], [0, 0])
    with pytest.raises(SelectronError, match="got test"):
        FeatureMapData(np.zeros((1, 2)), ["test"], [1], [-1], [], ["a"], [0, 0])
    with pytest.raises(SelectronError, match="at least one"):
        FeatureMapData(np.zeros((0, 2)), [], [], [], [], [], [0, 0])
    bare = FeatureMapData(np.zeros((1, 2)), ["pool"], [1], [-1], [], ["a"], [0, 0])
    with pytest.raises(SelectronError, match="needs the structures"):
        write_html(bare, "unused.html")


def test_an_arrayless_copy_is_shown_so_that_calculators_and_info_do_not_leak(tmp_path):
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.74]], info={"secret": "not for the page"})
    data = FeatureMapData(np.zeros((1, 2)), ["pool"], [1.0], [-1], [atoms], ["pool.extxyz 0"], [0, 0])
    write_html(data, tmp_path / "map.html")
    assert "not for the page" not in embedded((tmp_path / "map.html").read_text(encoding="utf-8"), "dataset")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine to open the page with")
def test_page_opens_in_a_browser_without_network(tmp_path):
    write_html(map_data(), tmp_path / "map.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--use-gl=angle", "--use-angle=swiftshader"]
    flags += [
        "--enable-unsafe-swiftshader",
        "--disable-background-networking",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=3000", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [CHROMIUM, *flags, "--dump-dom", (tmp_path / "map.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert 'data-ready="true"' in done.stdout, done.stderr[-2000:]
    assert "could not be drawn" not in re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    assert re.search(r'id="shown">.*?<b>pick 0</b>', done.stdout)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in console if re.search(r"Refused|Uncaught|ERR_|violat", line)]
