"""Screening end to end, against the kernel formulae in NumPy, with feature rows that need no model."""

import csv
from importlib import import_module

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import read, write
from scipy.stats import chisquare

from selectron.acquisition import SELECTORS, SecondMoment, select_batch
from selectron.errors import SelectronError
from selectron.features import FeatureStore
from selectron.potentials.committee import CommitteeEvaluation
from selectron.rows import Rows, one_row_each
from selectron.screening import pick_rows, write_picks, write_scores
from selectron.screening import screen as screen_function
from selectron.screening.outputs import SCORE_COLUMNS
from selectron.screening.vectors import structure_vectors
from selectron.structures import Checks, Pool, Quarantine

DIM, NOISE = 7, 1e-2

# the package exports functions of the same names
catalogue_module, screen_module, representation_module = (
    import_module(f"selectron.screening.{name}") for name in ("catalogue", "screen", "representation")
)


class PlaneWaves:
    """As many rows as a structure has atoms: sines of random projections of its positions."""

    name, dim = "plane-waves", DIM
    settings: dict = {}  # noqa: RUF012
    fingerprint = "00" * 16

    def rows(self, structures):
        waves = np.random.default_rng(0).normal(size=(3, DIM))
        blocks = [np.sin(atoms.positions @ waves) * (1 + atoms.numbers[:, None] / 8) for atoms in structures]
        values = np.concatenate(blocks) if blocks else np.zeros((0, DIM))
        return Rows(torch.tensor(values, dtype=torch.float32), torch.tensor([len(atoms) for atoms in structures]))

    def nominal_rows(self, atoms):
        return atoms


class SummedWaves:
    """One row a structure: the sum of those of :class:`PlaneWaves`."""

    name, dim = "summed-waves", DIM
    settings: dict = {}  # noqa: RUF012
    fingerprint = "01" * 16

    def rows(self, structures):
        rows = PlaneWaves().rows(structures)
        return one_row_each(torch.zeros(len(structures), DIM).index_add_(0, rows.owner, rows.values))


def molecules(count, seed):
    random = np.random.default_rng(seed)
    return [_one(random) for _ in range(count)]


def _one(random):
    size = int(random.integers(2, 5))
    return Atoms(random.choice([1, 6, 8], size), random.uniform(-3, 3, (size, 3)))


@pytest.fixture
def screen(tmp_path):
    """``screen`` of lists of structures, through files, without a cache that outlives the test."""

    def run(pool, train=None, **options):
        write(tmp_path / "pool.extxyz", pool)
        opened = None
        if train is not None:
            write(tmp_path / "train.extxyz", train)
            opened = Pool.open([tmp_path / "train.extxyz"])
        features = options.pop("features", PlaneWaves())
        options.setdefault("checks", Checks(min_distance_A=0.0))
        store = FeatureStore(tmp_path / f"cache{len(list(tmp_path.iterdir()))}", features.fingerprint, features.dim)
        return screen_function(
            Pool.open([tmp_path / "pool.extxyz"]), features, train=opened, store=store, noise=NOISE, **options
        )

    return run


def kernel_variances(pool, train):
    """tr[K_xx − K_xT (K_TT + σ²)⁻¹ K_Tx] of each structure, in the scale where a training structure has norm 1."""
    features = PlaneWaves()
    of_train = features.rows(train)
    phi_t = of_train.values.double().numpy()
    scale = 1.0 / np.sqrt((phi_t**2).sum() / len(train))
    phi_t = phi_t * scale
    noise = NOISE / (len(phi_t) / len(train))
    inverse = np.linalg.inv(phi_t @ phi_t.T + noise * np.eye(len(phi_t)))
    out = []
    for atoms in pool:
        phi = features.rows([atoms]).values.double().numpy() * scale
        cross = phi @ phi_t.T
        out.append(np.trace(phi @ phi.T - cross @ inverse @ cross.T))
    return np.array(out)


def places(screening):
    return [pick.place for pick in screening.picks]


def test_variances_and_top_k_are_those_of_the_kernel_formula(screen):
    pool, train = molecules(40, 1), molecules(4, 2)
    screening = screen(pool, train, selector="top-k", budget=6)
    expected = kernel_variances(pool, train)
    np.testing.assert_allclose(screening.variance, expected, rtol=2e-4, atol=1e-6)
    assert places(screening) == np.argsort(-expected, kind="stable")[:6].tolist()
    assert [pick.rank for pick in screening.picks] == [1, 2, 3, 4, 5, 6]
    for pick in screening.picks:
        assert pick.variance == pytest.approx(expected[pick.place], rel=2e-4)
        np.testing.assert_allclose(pick.atoms.positions, pool[pick.place].positions, atol=1e-7)


def test_without_a_training_set_variances_are_those_of_the_prior(screen):
    pool = molecules(12, 3)
    norms = np.array([float(PlaneWaves().rows([atoms]).values.square().sum()) for atoms in pool])
    np.testing.assert_allclose(screen(pool).variance, norms / norms.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "selector", ["ipv", "isd", "irv", "maxdet", "lcmd", "fps", "kmeans++", "bait", "herding", "random"]
)
def test_the_size_of_chunks_changes_nothing(screen, monkeypatch, selector):
    pool, train = molecules(30, 4), molecules(5, 5)
    whole = screen(pool, train, selector=selector, budget=5)
    monkeypatch.setattr(catalogue_module, "CHUNK", 7)
    pieces = catalogue_module.Catalogue.chunks
    monkeypatch.setattr(catalogue_module.Catalogue, "chunks", lambda self, size=3: pieces(self, size))
    cut = screen(pool, train, selector=selector, budget=5)
    np.testing.assert_allclose(cut.variance, whole.variance, rtol=1e-9)
    assert places(cut) == places(whole)


def test_what_cannot_be_used_is_noted_and_shifts_nothing(screen, tmp_path):
    good, train = molecules(10, 6), molecules(3, 7)
    broken = good[0].copy()
    broken.positions[0] = np.nan
    pool = [broken, *good[:4], Atoms("Si2", [[0, 0, 0], [0, 0, 2]]), *good[4:]]
    with Quarantine(tmp_path / "q.csv") as quarantine:
        screening = screen(
            pool,
            train,
            selector="top-k",
            budget=10,
            quarantine=quarantine,
            checks=Checks(elements=frozenset({1, 6, 8}), min_distance_A=0.0),
        )
    assert screening.catalogue.indices.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    np.testing.assert_allclose(screening.variance, kernel_variances(good, train), rtol=2e-4, atol=1e-6)
    for pick in screening.picks:
        np.testing.assert_allclose(pick.atoms.positions, pool[pick.source.index].positions, atol=1e-7)
    with open(tmp_path / "q.csv", newline="") as stream:
        assert [row["index"] for row in csv.DictReader(stream)] == ["0", "5"]


def test_features_that_are_not_finite_are_quarantined(screen, tmp_path):
    class Poles(PlaneWaves):
        def rows(self, structures):
            rows = super().rows(structures)
            for i, atoms in enumerate(structures):
                if atoms.positions[0, 0] > 2:
                    rows.values[int(rows.offsets[i])] = torch.inf
            return rows

    pool = molecules(20, 8)
    bad = [i for i, atoms in enumerate(pool) if atoms.positions[0, 0] > 2]
    assert bad
    with Quarantine(tmp_path / "q.csv") as quarantine:
        screening = screen(pool, features=Poles(), quarantine=quarantine)
        assert len(quarantine) == len(bad)
    assert not set(bad) & set(screening.catalogue.indices.tolist())


@pytest.mark.parametrize("what", ["pool", "training set"])
def test_nothing_usable_is_one_sentence(screen, what):
    silicon, good = [Atoms("Si", [[0, 0, 0]])] * 2, molecules(3, 9)
    pool, train = (silicon, good) if what == "pool" else (good, silicon)
    with pytest.raises(SelectronError, match=rf"^None of the 2 structures of the {what} can be used .*Si\)\.$"):
        screen(pool, train, checks=Checks(elements=frozenset({1, 6, 8}), min_distance_A=0.0))


@pytest.mark.parametrize(
    "selector", ["ipv", "isd", "irv", "maxdet", "lcmd", "fps", "kmeans++", "bait", "top-k", "random", "herding"]
)
def test_training_structures_and_repeats_are_never_picked(screen, selector):
    train, fresh = molecules(4, 10), molecules(5, 11)
    pool = [fresh[0], train[1], fresh[1], fresh[0], *fresh[2:], train[0], fresh[4]]
    screening = screen(pool, train, selector=selector, budget=50)
    assert sorted(places(screening)) == [0, 2, 4, 5, 6]
    assert screening.known.tolist() == [False, True, False, False, False, False, False, True, False]
    assert any("budget is 50" in note for note in screening.notes)


def test_a_pool_that_is_known_gives_nothing_and_says_so(screen):
    train = molecules(4, 12)
    screening = screen(train, train, selector="ipv", budget=2)
    assert not screening.picks
    assert "Nothing is left to pick" in screening.notes[-1]


def test_one_structure(screen):
    screening = screen(molecules(1, 13), selector="ipv", budget=1)
    assert places(screening) == [0]
    assert screening.variance == pytest.approx([1.0], rel=1e-5)
    assert not screening.notes


@pytest.mark.parametrize("selector", ["ipv", "isd", "irv", "bait"])
def test_the_density_of_the_pool_counts_a_repeated_structure_once(screen, selector):
    pool, train = molecules(25, 14), molecules(5, 15)
    once = screen(pool, train, selector=selector, budget=6)
    repeated = screen([*pool, *[pool[3]] * 200], train, selector=selector, budget=6)
    assert places(repeated) == places(once)


def test_ipv_weighs_the_whole_pool_even_from_a_shortlist(screen):
    pool, train = molecules(40, 16), molecules(5, 17)
    screening = screen(pool, train, selector="ipv", budget=1, shortlist=10)
    features = PlaneWaves()
    scale = screening.scale.factor
    rows = [features.rows([atoms]).values.double().numpy() * scale for atoms in pool]
    phi_t = features.rows(train).values.double().numpy() * scale
    inverse = np.linalg.inv(np.eye(DIM) + phi_t.T @ phi_t / screening.scale.noise_variance)
    summed = sum(row.T @ row for row in rows)

    def left(row):
        """Summed variance of the pool once ``row`` is labelled."""
        after = np.linalg.inv(np.linalg.inv(inverse) + row.T @ row / screening.scale.noise_variance)
        return np.trace(after @ summed)

    best = np.argsort(-screening.variance, kind="stable")[:10]
    assert places(screening) == [int(min(best, key=lambda i: left(rows[i])))]
    assert any("10 structures of largest variance" in note for note in screening.notes)


@pytest.mark.parametrize("selector", ["isd", "irv"])
def test_weights_of_the_whole_pool_are_kept_when_a_shortlist_is_chosen_from(screen, selector):
    pool, train = molecules(40, 16), molecules(5, 17)
    whole = screen(pool, train, selector=selector, budget=40)
    features, scale = PlaneWaves(), whole.scale
    known, rows = scale.apply(features.rows(train)), scale.apply(features.rows(pool))
    posterior = {"prior_precision": scale.prior_precision, "noise_variance": scale.noise_variance}
    direct = select_batch(selector, rows, train=known, budget=40, **posterior)
    assert places(whole) == direct.indices.tolist()
    moment = SecondMoment(DIM)
    moment.update(SELECTORS[selector].weight.weighted(rows, torch.from_numpy(whole.variance)))
    best = np.argsort(-whole.variance, kind="stable")[:10].tolist()

    def score(place):
        alone = rows.take(torch.tensor([place]))
        one = select_batch(selector, alone, train=known, budget=1, pool_second_moment=moment.matrix, **posterior)
        return float(one.scores[0])

    narrowed = screen(pool, train, selector=selector, budget=1, shortlist=10)
    assert places(narrowed) == [max(best, key=score)]
    assert narrowed.picks[0].score == pytest.approx(max(map(score, best)), rel=1e-5)
    # what is labelled already has no say, however often it stands in the pool
    assert places(screen([*pool, *train], train, selector=selector, budget=6)) == places(whole)[:6]


def test_random_draws_from_the_whole_pool_and_a_shortlist_narrows_it(screen, monkeypatch):
    pool, train = molecules(40, 18), molecules(5, 19)
    order = np.argsort(-kernel_variances(pool, train), kind="stable")
    free = [set(places(screen(pool, train, selector="random", budget=8, seed=seed))) for seed in range(6)]
    assert len(set().union(*free)) > 20
    narrow = screen(pool, train, selector="random", budget=8, shortlist=8)
    assert set(places(narrow)) == set(order[:8].tolist())
    # a pool too large for memory: still uniform, not the structures of largest variance
    monkeypatch.setattr(screen_module, "ALL_CANDIDATES_UP_TO", 10)
    drawn = [set(places(screen(pool, train, selector="random", budget=8, seed=seed))) for seed in range(6)]
    assert len(set().union(*drawn)) > 20
    assert all(len(one) == 8 for one in drawn)


def test_a_share_by_chance_comes_from_the_whole_pool_and_counts_as_labelled(screen, tmp_path):
    pool, train = molecules(40, 18), molecules(5, 19)
    options = {"selector": "fps", "budget": 8, "by_chance": 0.5, "shortlist": 10}
    found = [screen(pool, train, seed=seed, **options) for seed in range(8)]
    drawn = [places(one)[:4] for one in found]
    best = set(np.argsort(-kernel_variances(pool, train), kind="stable")[:10].tolist())
    assert all([pick.by_chance for pick in one.picks] == [True] * 4 + [False] * 4 for one in found)
    assert len({place for one in drawn for place in one}) > 16  # 32 draws: 22 of 40 expected
    assert any(place not in best for one in drawn for place in one)
    for seed, first in enumerate(drawn):
        # the rest is what the selector picks when those are in the training set
        rest = places(screen(pool, train, seed=seed, **{**options, "shortlist": None}))
        again = screen(pool, [*train, *(pool[i] for i in first)], selector="fps", budget=4)
        assert rest == [*first, *places(again)]
    write_picks(found[0], tmp_path / "picks.extxyz")
    infos = [atoms.info for atoms in read(tmp_path / "picks.extxyz", ":")]
    assert [(info["selector"], "score" in info) for info in infos] == [("chance", False)] * 4 + [("fps", True)] * 4


def test_all_by_chance_is_a_random_batch(screen):
    pool, train = molecules(12, 18), molecules(3, 19)
    counts = np.zeros(12)
    for seed in range(60):
        found = screen(pool, train, selector="ipv", budget=3, by_chance=1.0, seed=seed)
        assert all(pick.by_chance and np.isnan(pick.score) for pick in found.picks)
        counts[places(found)] += 1
    assert counts.sum() == 180
    assert chisquare(counts).pvalue > 1e-3
    assert len(screen(pool, train, selector="ipv", budget=30, by_chance=0.9).picks) == 12


def test_equal_seeds_give_equal_bytes(screen, tmp_path):
    pool, train = molecules(30, 20), molecules(5, 21)
    for name in ("a", "b"):
        write_picks(screen(pool, train, selector="kmeans++", budget=6, seed=3), tmp_path / f"{name}.xyz")
    assert (tmp_path / "a.xyz").read_bytes() == (tmp_path / "b.xyz").read_bytes()
    other = screen(pool, train, selector="kmeans++", budget=6, seed=4)
    write_picks(other, tmp_path / "c.xyz")
    assert (tmp_path / "c.xyz").read_bytes() != (tmp_path / "a.xyz").read_bytes()


def test_the_second_screening_computes_nothing(screen, tmp_path):
    computed = []

    class Counting(PlaneWaves):
        def rows(self, structures):
            computed.extend(structures)
            return super().rows(structures)

    write(tmp_path / "pool.extxyz", molecules(15, 22))
    store = FeatureStore(tmp_path / "cache", "11" * 16, DIM)
    pool = Pool.open([tmp_path / "pool.extxyz"])
    for selector in ("ipv", "fps"):
        screen_function(pool, Counting(), store=store, selector=selector, budget=3, checks=Checks(min_distance_A=0.0))
        assert len(computed) == 15


class Quarrel:
    """Two members, who differ by a force that grows with the first atom's height, and know nothing of large structures."""

    members = (None, None)
    elements = None

    def evaluate(self, structures):
        if any(len(atoms) == 4 for atoms in structures):
            raise SelectronError("four atoms are too many")
        counts = torch.tensor([len(atoms) for atoms in structures])
        forces = torch.zeros(2, int(counts.sum()), 3, dtype=torch.float64)
        starts = torch.cumsum(counts, 0) - counts
        for start, atoms in zip(starts.tolist(), structures, strict=True):
            forces[1, start, 0] = float(atoms.positions[0, 2]) + 10
        return CommitteeEvaluation(torch.zeros(2, len(structures), dtype=torch.float64), forces, counts)


def test_a_committee_ranks_and_what_it_cannot_judge_is_quarantined(screen, tmp_path):
    pool = molecules(30, 23)
    able = [i for i, atoms in enumerate(pool) if len(atoms) < 4]
    assert 3 < len(able) < 30
    with Quarantine(tmp_path / "q.csv") as quarantine:
        screening = screen(pool, selector="committee-force", budget=3, committee=Quarrel(), quarantine=quarantine)
        assert len(quarantine) == 30 - len(able)
    expected = sorted(able, key=lambda i: -pool[i].positions[0, 2])[:3]
    assert [pick.source.index for pick in screening.picks] == expected
    assert screening.picks[0].score == pytest.approx((pool[expected[0]].positions[0, 2] + 10) / 2, abs=1e-6)


def test_picks_on_disk_say_where_they_come_from(screen, tmp_path):
    pool, train = molecules(12, 24), molecules(4, 25)
    for number, atoms in enumerate(pool):
        atoms.info.update(rank="mine", note=f"number {number}")
    screening = screen(pool, train, selector="top-k", budget=3, features=SummedWaves())
    assert write_picks(screening, tmp_path / "picks.extxyz") == 3

    def summed(atoms):
        return SummedWaves().rows([atoms]).values.double()[0].numpy() * screening.scale.factor

    for rank, (atoms, pick) in enumerate(zip(read(tmp_path / "picks.extxyz", ":"), screening.picks, strict=True), 1):
        distances = [np.linalg.norm(summed(pick.atoms) - summed(one)) for one in train]
        assert atoms.info["rank"] == rank
        assert atoms.info["pool_rank"] == "mine"
        assert atoms.info["note"] == f"number {atoms.info['source_index']}"
        assert atoms.info["selector"] == "top-k"
        assert atoms.info["features"] == "summed-waves"
        assert atoms.info["nearest_training"].split()[-1] == str(int(np.argmin(distances)))
        assert atoms.info["nearest_distance"] == pytest.approx(min(distances), rel=1e-4)
    assert [row.rank for row in pick_rows(screening)] == [1, 2, 3]


@pytest.mark.parametrize("features", [SummedWaves(), PlaneWaves()])
def test_each_structure_that_could_be_picked_is_represented_by_its_nearest_pick(
    screen, tmp_path, monkeypatch, features
):
    fresh, train = molecules(40, 40), molecules(4, 41)
    pool = [*fresh, fresh[3], train[0], *[fresh[7]] * 5]  # repeats and what is known stand for nothing
    monkeypatch.setattr(representation_module, "CHUNK", 7)
    screening = screen(pool, train, selector="isd", budget=5, features=features)
    rows = [features.rows([atoms]) for atoms in fresh]
    vectors = np.stack([structure_vectors(screening.scale.apply(one), features)[0].numpy() for one in rows])
    apart = np.linalg.norm(vectors[:, None] - vectors[places(screening)], axis=2)
    expected = np.bincount(apart.argmin(axis=1), minlength=5)
    assert [pick.represents for pick in screening.picks] == expected.tolist()
    assert expected.sum() == len(fresh)
    weights = np.array([pick.weight for pick in screening.picks])
    assert weights.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(weights**2 / expected, (weights**2 / expected)[0])
    write_picks(screening, tmp_path / "picks.extxyz")
    on_disk = read(tmp_path / "picks.extxyz", ":")
    assert [atoms.info["represents"] for atoms in on_disk] == expected.tolist()
    np.testing.assert_allclose([atoms.info["config_weight"] for atoms in on_disk], weights, rtol=1e-6)


def test_a_random_batch_stands_for_its_pool_with_equal_weights(screen, tmp_path):
    screening = screen(molecules(20, 42), selector="random", budget=5)
    assert [(pick.represents, pick.weight) for pick in screening.picks] == [(None, 1.0)] * 5
    write_picks(screening, tmp_path / "picks.extxyz")
    assert all("config_weight" not in atoms.info for atoms in read(tmp_path / "picks.extxyz", ":"))


def test_scores_on_disk(screen, tmp_path):
    pool, train = molecules(6, 26), molecules(3, 27)
    screening = screen([*pool, train[0]], train)
    write_scores(screening, tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == SCORE_COLUMNS
    assert [int(row["index"]) for row in rows] == list(range(7))
    assert [int(row["known"]) for row in rows] == [0] * 6 + [1]
    expected = kernel_variances([*pool, train[0]], train)
    np.testing.assert_allclose([float(row["variance"]) for row in rows], expected, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"selector": "best", "budget": 1}, "no selector 'best'"),
        ({"selector": "ipv", "budget": 0}, "at least 1, not 0"),
        ({"selector": "ipv", "budget": 3, "shortlist": 2}, "too short"),
        ({"selector": "committee-force", "budget": 1}, "needs a committee"),
        ({"selector": "ipv", "budget": 3, "by_chance": 1.5}, "from 0 to 1, not 1.5"),
    ],
)
def test_settings_that_make_no_sense(screen, options, sentence):
    with pytest.raises(SelectronError, match=sentence):
        screen(molecules(3, 28), **options)


def test_repeats_that_differ_in_charge_alone_are_told_and_picks_state_their_charge(screen, tmp_path):
    pool = molecules(4, 40)
    ion, same, silent = pool[0].copy(), pool[1].copy(), pool[2].copy()
    pool[0].info, ion.info = {"charge": 0}, {"total_charge": -1}
    pool[1].info, same.info = {"spin": 1}, {"multiplicity": 1}
    pool[2].info, silent.info = {"net_charge": "1"}, {}
    screening = screen([*pool, ion, same, silent], selector="top-k", budget=4)
    told = "1 structure of the pool differs from an earlier one in charge or multiplicity alone"
    assert sum(told in note for note in screening.notes) == 1
    write_picks(screening, tmp_path / "picks.extxyz")
    stated = {atoms.info["source_index"]: atoms.info for atoms in read(tmp_path / "picks.extxyz", ":")}
    assert (stated[0]["charge"], stated[1]["multiplicity"], stated[2]["charge"]) == (0, 1, 1)
    assert "charge" not in stated[3]


def test_what_a_pool_has_under_names_of_the_output_is_kept_and_told():
    from selectron.screening.outputs import _with_facts

    atoms = Atoms("H2O", np.arange(9.0).reshape(3, 3))
    atoms.info = {"score": np.arange(3.0), "pool_score": "older", "rank": 1}
    atoms.arrays["atom_variance"] = np.ones(3)
    renamed: set[str] = set()
    given = _with_facts(atoms, {"score": 0.5, "rank": 1}, np.zeros(3), renamed)
    assert renamed == {"pool_pool_score", "pool_atom_variance"}
    assert given.info.keys() == {"score", "pool_score", "pool_pool_score", "rank"}
    assert given.info["pool_pool_score"].tolist() == [0, 1, 2]
    assert given.info["pool_score"] == "older"
    assert given.arrays["pool_atom_variance"].all()
    assert not given.arrays["atom_variance"].any()
    assert atoms.info["score"].tolist() == [0, 1, 2]


def test_isolated_atoms_are_neither_picked_nor_part_of_the_pool(tmp_path):
    """Their rows are the largest here: what is left out for another reason than its variance."""
    pool = [*molecules(5, 50), Atoms("Og", [[0.3, 0.2, 0.1]]), Atoms("Og", [[1, 2, 3]], cell=[20, 20, 20], pbc=True)]
    write(tmp_path / "pool.extxyz", pool)
    with Pool.open([tmp_path / "pool.extxyz"]) as opened, Quarantine(tmp_path / "bad.csv") as bad:
        found = screen_function(opened, PlaneWaves(), selector="top-k", budget=7, quarantine=bad)
    assert sorted(pick.source.index for pick in found.picks) == [0, 1, 2, 3, 4]
    assert [row["index"] for row in csv.DictReader((tmp_path / "bad.csv").open())] == ["5", "6"]
