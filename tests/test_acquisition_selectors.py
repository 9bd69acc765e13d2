"""Properties that every batch selector has to have, and brute-force checks of their criteria."""

import pytest
import torch

from selectron.acquisition import (
    SELECTORS,
    Posterior,
    SecondMoment,
    committee_disagreement,
    select_batch,
    structure_embedding,
)
from selectron.acquisition.covariance import RowCovariances
from selectron.acquisition.distances import NearestCentre
from selectron.acquisition.problem import make_problem
from selectron.errors import SelectronError
from selectron.rows import Rows, concatenate, one_row_each

NOISE = 0.05
NAMES = list(SELECTORS)
DETERMINISTIC = [name for name in NAMES if name not in ("random", "kmeans++")]


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small gain nothing from more, and on a busy machine wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_rows(n, dim=6, *, seed=0, max_rows=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, max_rows + 1, (n,), generator=generator)
    return Rows(torch.randn(int(counts.sum()), dim, generator=generator, dtype=torch.float64).to(dtype), counts)


def select(name, pool, train, budget, **options):
    if name.startswith("committee"):
        options.setdefault("variances", pool.sum_per_structure(pool.values.double().abs().sum(1)))
    return select_batch(name, pool, train=train, budget=budget, noise_variance=NOISE, **options)


@pytest.mark.parametrize("max_rows", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_training_structures_and_copies_of_picks_are_never_picked(name, max_rows, dtype):
    distinct, train = (
        random_rows(12, seed=1, max_rows=max_rows, dtype=dtype),
        random_rows(5, max_rows=max_rows, dtype=dtype),
    )
    pool = concatenate([distinct, train, distinct, distinct])
    pool = Rows(pool.values * (1 + 1e-7 * torch.arange(pool.values.shape[0], dtype=dtype)[:, None] / 200), pool.counts)
    picks = select(name, pool, train, 100).indices.tolist()
    assert not set(picks) & set(range(12, 17))
    assert sorted(i if i < 12 else (i - 17) % 12 for i in picks) == list(range(12))


@pytest.mark.parametrize("name", NAMES)
def test_budgets_and_pools_of_all_sizes(name):
    pool, train = random_rows(8), random_rows(3, seed=1)
    assert sorted(select(name, pool, train, 50).indices.tolist()) == list(range(8))
    assert sorted(select(name, pool, None, 50).indices.tolist()) == list(range(8))
    assert select(name, pool.take([4]), train, 3).indices.tolist() == [0]
    assert select(name, pool.take([4]), None, 3).indices.tolist() == [0]
    assert select(name, train, train, 3).indices.numel() == 0
    empty = select(name, pool.take([]), train, 3)
    assert (empty.indices.shape, empty.indices.dtype, empty.scores.dtype) == ((0,), torch.int64, torch.float64)
    for budget in (0, -2):
        with pytest.raises(SelectronError, match="at least 1"):
            select(name, pool, train, budget)


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_picks_and_prefixes(name):
    pool, train = random_rows(60), random_rows(9, seed=1)
    first, again = select(name, pool, train, 12, seed=4), select(name, pool, train, 12, seed=4)
    assert torch.equal(first.indices, again.indices)
    assert torch.equal(first.scores, again.scores)
    if name != "bait":
        assert torch.equal(select(name, pool, train, 5, seed=4).indices, first.indices[:5])
    if name in ("random", "kmeans++"):
        assert not torch.equal(select(name, pool, train, 12, seed=5).indices, first.indices)


@pytest.mark.parametrize("max_rows", [1, 3])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_order_of_the_candidates_does_not_matter(name, max_rows):
    pool, train = random_rows(60, max_rows=max_rows), random_rows(9, seed=1, max_rows=max_rows)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    picks = select(name, pool, train, 15).indices
    permuted = select(name, pool.take(order), train, 15).indices
    assert torch.equal(order[permuted].sort().values, picks.sort().values)


@pytest.mark.parametrize("max_rows", [1, 3])
@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("committee")])
def test_a_rotation_of_feature_space_does_not_matter(name, max_rows):
    pool, train = random_rows(60, max_rows=max_rows), random_rows(9, seed=1, max_rows=max_rows)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64))[0]
    turned = [Rows(rows.values @ rotation, rows.counts) for rows in (pool, train)]
    assert torch.equal(select(name, *turned, 15).indices, select(name, pool, train, 15).indices)


@pytest.mark.parametrize("name", NAMES)
def test_excluded_candidates_and_their_copies_are_left_alone(name):
    pool = random_rows(10)
    pool = concatenate([pool, pool.take([3])])
    exclude = torch.zeros(11, dtype=torch.bool)
    exclude[[0, 3]] = True
    picks = select(name, pool, None, 20, exclude=exclude).indices.tolist()
    assert sorted(picks) == [1, 2, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_equal_scores_go_to_the_lowest_index(name):
    corners = torch.eye(4, dtype=torch.float64)
    picks = select(name, one_row_each(corners), None, 4, variances=torch.ones(4)).indices.tolist()
    assert picks[0] == 0
    if name not in ("bait", "herding"):
        assert picks == [0, 1, 2, 3]


def summed_variance(train, picked, moment):
    posterior = Posterior(moment.shape[0], noise_variance=NOISE)
    for rows in (train, picked):
        posterior.update(rows)
    return float((torch.linalg.inv(posterior.precision) * moment).sum())


@pytest.mark.parametrize("whole_pool", [True, False])
@pytest.mark.parametrize("max_rows", [1, 4])
def test_ipv_gain_is_the_drop_in_summed_variance(max_rows, whole_pool):
    pool, train = random_rows(25, max_rows=max_rows), random_rows(4, seed=1, max_rows=max_rows)
    moment = SecondMoment(6)
    moment.update(pool)
    if whole_pool:
        moment.update(random_rows(300, seed=9))
    selection = select("ipv", pool, train, 8, pool_second_moment=moment.matrix if whole_pool else None)
    chosen = []
    for pick, gain in zip(selection.indices.tolist(), selection.scores.tolist(), strict=True):
        before = summed_variance(train, pool.take(chosen), moment.matrix)
        drops = {
            i: before - summed_variance(train, pool.take([*chosen, i]), moment.matrix)
            for i in range(25)
            if i not in chosen
        }
        assert gain == pytest.approx(drops[pick], rel=1e-8)
        assert drops[pick] == pytest.approx(max(drops.values()), rel=1e-9)
        chosen.append(pick)


@pytest.mark.parametrize("max_rows", [1, 4])
@pytest.mark.parametrize("name", ["isd", "irv"])
def test_the_first_score_of_isd_and_irv_is_the_drop_to_first_order(name, max_rows):
    """Of Σ s and of Σ ln s², once over the pool; the smaller a label's effect, the closer."""
    pool, train = random_rows(25, max_rows=max_rows), random_rows(30, seed=1, max_rows=max_rows)
    summed = {"isd": lambda variances: variances.sqrt().sum(), "irv": lambda variances: variances.log().sum()}[name]
    misses = []
    for noise in (10.0, 100.0, 1000.0):
        posterior = Posterior(6, noise_variance=noise)
        posterior.update(train)
        before = summed(posterior.variance(pool))
        selection = select_batch(name, pool, train=train, budget=1, noise_variance=noise)
        drops = []
        for i in range(25):
            after = Posterior(6, noise_variance=noise)
            after.update(concatenate([train, pool.take([i])]))
            drops.append(float(before - summed(after.variance(pool))))
        misses.append(abs(float(selection.scores[0]) / drops[int(selection.indices[0])] - 1.0))
    assert drops[int(selection.indices[0])] == pytest.approx(max(drops), rel=1e-3)
    assert misses[2] < misses[1] < misses[0] < 0.3
    assert misses[2] < 0.01


def test_what_the_pool_holds_most_of_counts_more_the_less_its_variance_does():
    """Three directions: 2 structures of variance 100, 12 of 9, 60 of 1. The sums of s², s and ln s² rank them otherwise."""
    counts, lengths = (2, 12, 60), (10.0, 3.0, 1.0)
    generator = torch.Generator().manual_seed(0)
    rows = torch.zeros(sum(counts), 3, dtype=torch.float64)
    kind = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    near_one = 1.0 + 0.05 * torch.rand(len(kind), generator=generator, dtype=torch.float64)
    rows[torch.arange(len(kind)), kind] = torch.tensor(lengths, dtype=torch.float64)[kind] * near_one
    first = {
        name: int(kind[select(name, one_row_each(rows), None, 1).indices.item()]) for name in ("ipv", "isd", "irv")
    }
    assert first == {"ipv": 0, "isd": 2, "irv": 2}
    fewer = one_row_each(rows[:44])  # 30 of the last kind: Σ s is 20, 36, 30
    assert [int(kind[select(name, fewer, None, 1).indices.item()]) for name in ("isd", "irv")] == [1, 2]


@pytest.mark.parametrize("max_rows", [1, 4])
def test_maxdet_scores_add_up_to_the_log_determinant_of_the_batch(max_rows):
    pool, train = random_rows(25, max_rows=max_rows), random_rows(4, seed=1, max_rows=max_rows)
    selection = select("maxdet", pool, train, 8)
    posterior = Posterior(6, noise_variance=NOISE)
    posterior.update(train)

    def log_determinant(chosen):
        rows = pool.take(chosen).values
        covariance = rows @ torch.linalg.solve(posterior.precision, rows.T)
        return float(torch.logdet(torch.eye(rows.shape[0], dtype=torch.float64) + covariance / NOISE))

    picks = selection.indices.tolist()
    for k, score in enumerate(selection.scores.tolist()):
        base = log_determinant(picks[:k]) if k else 0.0
        gains = [log_determinant([*picks[:k], i]) - base for i in range(25) if i not in picks[:k]]
        assert score == pytest.approx(max(gains), rel=1e-8)
        assert score == pytest.approx(log_determinant(picks[: k + 1]) - base, rel=1e-8)


def test_bait_gives_back_what_raises_the_summed_variance_least():
    pool, train = random_rows(30, max_rows=3), random_rows(4, seed=1, max_rows=3)
    moment = SecondMoment(6)
    for rows in (pool, train):
        moment.update(rows)
    forward = select("ipv", pool, train, 10, pool_second_moment=moment.matrix).indices.tolist()
    kept = list(forward)
    while len(kept) > 5:
        left = {i: summed_variance(train, pool.take([k for k in kept if k != i]), moment.matrix) for i in kept}
        kept.remove(min(left, key=left.__getitem__))
    assert select("bait", pool, train, 5).indices.tolist() == kept


def test_adding_and_removing_a_structure_restores_the_covariances():
    pool = random_rows(15, max_rows=4)
    moment = SecondMoment(6)
    moment.update(pool)
    posterior = Posterior(6, noise_variance=NOISE)
    covariances = RowCovariances(posterior, pool, moment.matrix)
    before = covariances.gains(), covariances.log_determinants()
    for pick in (3, 8):
        covariances.add(pick)
    for pick in (3, 8):
        covariances.remove(pick)
    torch.testing.assert_close(covariances.gains(), before[0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(covariances.log_determinants(), before[1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("mean", [0.0, 100.0])
def test_distances_screened_in_float32_are_those_of_float64(mean, size):
    pool, train = random_rows(200, 40), random_rows(10, 40, seed=1)
    pool, train = (Rows(size * (rows.values + mean), rows.counts) for rows in (pool, train))
    problem = make_problem(
        pool,
        train=train,
        prior_precision=1.0,
        noise_variance=NOISE,
        pool_second_moment=None,
        variances=None,
        seed=0,
        exclude=None,
    )
    nearest = NearestCentre(problem)
    for pick in range(0, 60, 3):
        nearest.add(pick)
    centres = torch.cat([train.values, pool.values[0:60:3]])
    exact = torch.cdist(pool.values, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
    torch.testing.assert_close(nearest.distance, exact.min(1).values, rtol=1e-9, atol=1e-9 * size**2)
    assert torch.equal(nearest.centre, exact.argmin(1))


def test_lcmd_and_fps_look_where_the_training_set_is_not():
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    crowd = torch.randn(60, 3, generator=generator, dtype=torch.float64) + torch.tensor([20.0, 0.0, 0.0])
    pool = one_row_each(torch.cat([known[100:], crowd]))
    for name in ("lcmd", "fps", "kmeans++", "maxdet", "ipv", "isd", "bait", "top-k", "herding"):
        assert select(name, pool, one_row_each(known[:100]), 1).indices.item() >= 100


def test_kmeans_plus_plus_draws_in_proportion_to_squared_distance():
    pool = one_row_each(torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64))
    train = one_row_each(torch.zeros(1, 1, dtype=torch.float64))
    drawn = [select("kmeans++", pool, train, 1, seed=seed).indices.item() for seed in range(1400)]
    for i, expected in enumerate((100, 400, 900)):
        assert abs(drawn.count(i) - expected) < 4 * (expected * (1 - expected / 1400)) ** 0.5


def test_herding_lowers_the_discrepancy_more_than_chance():
    generator = torch.Generator().manual_seed(0)
    points = torch.cat(
        [torch.randn(150, 2, generator=generator) - 4, 0.3 * torch.randn(50, 2, generator=generator) + 4]
    ).double()
    pool, squared = one_row_each(points), torch.cdist(points, points).square()
    kernel = torch.exp(-squared / squared[squared > 0].median())

    def discrepancy(chosen):
        return float(kernel.mean() - 2 * kernel[chosen].mean() + kernel[chosen][:, chosen].mean())

    chance = min(discrepancy(select("random", pool, None, 10, seed=seed).indices) for seed in range(20))
    assert discrepancy(select("herding", pool, None, 10).indices) < chance


def test_committee_disagreement_is_a_standard_deviation():
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([2, 3, 1])
    energies = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    forces = torch.randn(4, 6, 3, generator=generator, dtype=torch.float64)
    found = committee_disagreement(energies, forces, counts)
    per_atom = ((forces - forces.mean(0)) ** 2).sum(2).mean(0).sqrt()
    torch.testing.assert_close(found.energy, energies.std(0, correction=0) / counts)
    torch.testing.assert_close(found.force_max, torch.stack([p.max() for p in per_atom.split([2, 3, 1])]))
    torch.testing.assert_close(found.force_mean, torch.stack([p.mean() for p in per_atom.split([2, 3, 1])]))
    with pytest.raises(SelectronError, match="two"):
        committee_disagreement(energies[:1], forces[:1], counts)
    with pytest.raises(SelectronError, match="committee"):
        select_batch("committee-force", random_rows(3), train=None, budget=1)


@pytest.mark.parametrize("dim", [5, 60])
def test_the_embedding_of_several_rows_does_not_see_their_order_or_rotation(dim):
    rows = random_rows(20, dim, max_rows=6)
    mixed = [torch.linalg.qr(torch.randn(int(m), int(m), dtype=torch.float64))[0] for m in rows.counts]
    turned = torch.cat([q @ block for q, block in zip(mixed, rows.values.split(rows.counts.tolist()), strict=True)])
    torch.testing.assert_close(
        structure_embedding(Rows(turned, rows.counts), single=False), structure_embedding(rows, single=False)
    )


def test_the_sketched_embedding_has_the_distances_of_the_exact_one():
    rows = random_rows(12, 20, max_rows=4)
    exact = torch.pdist(structure_embedding(rows, single=False, width=400))
    sketch = torch.pdist(structure_embedding(rows, single=False, width=399))
    assert ((sketch / exact - 1).abs() < 0.5).all()
    assert float((sketch / exact - 1).abs().mean()) < 0.1


def test_bad_input_is_named():
    pool = random_rows(4)
    with pytest.raises(SelectronError, match="lcmd"):
        select_batch("best", pool, train=None, budget=1)
    broken = Rows(pool.values.clone(), pool.counts)
    broken.values[2, 1] = float("inf")
    with pytest.raises(SelectronError, match="candidate 2"):
        select_batch("fps", broken, train=None, budget=1)
    with pytest.raises(SelectronError, match="shape"):
        select_batch("top-k", pool, train=None, budget=1, variances=torch.ones(3))
    with pytest.raises(SelectronError, match="features"):
        select_batch("top-k", pool, train=random_rows(3, 5), budget=1)
