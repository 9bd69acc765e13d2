"""The streamed posterior, second moments, scale, shortlist and duplicate detection."""

import pytest
import torch

from selectron.acquisition import Posterior, SecondMoment, Shortlist, default_scale, duplicate_groups
from selectron.errors import SelectronError
from selectron.rows import Rows, one_row_each


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small gain nothing from more, and on a busy machine wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_rows(n, dim, *, seed=0, max_rows=1):
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(1, max_rows + 1, (n,), generator=generator)
    return Rows(torch.randn(int(counts.sum()), dim, generator=generator, dtype=torch.float64), counts)


@pytest.mark.parametrize("max_rows", [1, 5])
@pytest.mark.parametrize(("prior_precision", "noise_variance"), [(1.0, 1e-3), (0.3, 0.7)])
def test_variance_is_that_of_the_kernel_formula(max_rows, prior_precision, noise_variance):
    train, pool = random_rows(12, 30, max_rows=max_rows), random_rows(9, 30, seed=1, max_rows=max_rows)
    posterior = Posterior(30, prior_precision=prior_precision, noise_variance=noise_variance)
    posterior.update(train)
    k_pt = pool.values @ train.values.T / prior_precision
    k_tt = train.values @ train.values.T / prior_precision
    k_pp = pool.values @ pool.values.T / prior_precision
    noisy = k_tt + noise_variance * torch.eye(k_tt.shape[0], dtype=torch.float64)
    expected = (k_pp - k_pt @ torch.linalg.solve(noisy, k_pt.T)).diagonal()
    torch.testing.assert_close(posterior.variance(pool, per="row"), expected, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(posterior.variance(pool), pool.sum_per_structure(expected), atol=1e-8, rtol=1e-8)


def test_variance_agrees_with_gpytorch():
    gpytorch = pytest.importorskip("gpytorch")
    train, pool = random_rows(10, 6).values, random_rows(7, 6, seed=1).values
    noise = 0.05

    class Linear(gpytorch.models.ExactGP):
        def __init__(self):
            likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(torch.full((10,), noise).double())
            super().__init__(train, torch.zeros(10).double(), likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = gpytorch.kernels.LinearKernel().double()
            self.covar_module.variance = 1.0

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    model = Linear().eval()
    with torch.no_grad(), gpytorch.settings.fast_pred_var(False):
        expected = model(pool).covariance_matrix.diagonal()
    posterior = Posterior(6, noise_variance=noise)
    posterior.update(one_row_each(train))
    torch.testing.assert_close(posterior.variance(one_row_each(pool)), expected, atol=1e-8, rtol=1e-8)


def test_without_training_data_the_variance_is_the_prior():
    pool = random_rows(5, 4, max_rows=3)
    expected = pool.sum_per_structure(pool.values.square().sum(1)) / 2.0
    torch.testing.assert_close(Posterior(4, prior_precision=2.0).variance(pool), expected)


def test_shards_merge_to_one_pass_and_chunks_do_not_matter():
    rows = random_rows(40, 8, max_rows=4)
    whole, left, right = Posterior(8), Posterior(8, chunk_rows=3), Posterior(8, chunk_rows=1000)
    whole.update(rows)
    left.update(rows.take(list(range(17))))
    right.update(rows.take(list(range(17, 40))))
    left.merge(right)
    torch.testing.assert_close(left.precision, whole.precision, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(left.variance(rows), whole.variance(rows), rtol=1e-9, atol=1e-12)
    assert (left.moment.n_structures, left.moment.n_rows) == (40, rows.values.shape[0])


def test_state_survives_saving(tmp_path):
    rows = random_rows(20, 5)
    posterior = Posterior(5, prior_precision=0.4, noise_variance=0.2)
    posterior.update(rows)
    torch.save(posterior.state_dict(), tmp_path / "posterior.pt")
    loaded = Posterior.from_state_dict(torch.load(tmp_path / "posterior.pt", weights_only=True))
    assert torch.equal(loaded.variance(rows), posterior.variance(rows))
    loaded.update(rows)
    assert (loaded.variance(rows) < posterior.variance(rows)).all()


def test_float32_rows_are_accumulated_in_float64():
    rows = random_rows(3000, 6)
    single = Rows(rows.values.float(), rows.counts)
    moment, exact = SecondMoment(6), SecondMoment(6)
    moment.update(single)
    exact.update(Rows(single.values.double(), rows.counts))
    assert torch.equal(moment.matrix, exact.matrix)


def test_errors_are_sentences():
    with pytest.raises(SelectronError, match="features"):
        Posterior(3).update(random_rows(2, 4))
    with pytest.raises(SelectronError, match="not a number"):
        Posterior(2).update(one_row_each(torch.tensor([[0.0, float("nan")]])))
    with pytest.raises(SelectronError, match="positive"):
        Posterior(2, noise_variance=0.0)
    with pytest.raises(SelectronError, match="different"):
        Posterior(2).merge(Posterior(2, noise_variance=0.5))


def test_a_huge_noise_ratio_still_factorises():
    direction = torch.randn(1, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    posterior = Posterior(30, noise_variance=1e-12)
    posterior.update(one_row_each(1e3 * direction.repeat(50, 1)))
    variance = posterior.variance(one_row_each(direction))
    assert torch.isfinite(variance).all()
    assert float(variance[0]) < 1e-6 * float(direction.square().sum())


def test_default_scale_gives_unit_prior_variance():
    rows = random_rows(50, 10, max_rows=6)
    scale = default_scale(Rows(rows.values * 37.0, rows.counts))
    scaled = scale.apply(Rows(rows.values * 37.0, rows.counts))
    prior = Posterior(10, prior_precision=scale.prior_precision, noise_variance=scale.noise_variance)
    assert float(prior.variance(scaled).mean()) == pytest.approx(1.0)
    assert scale.noise_variance == pytest.approx(1e-3 * float(scaled.values.square().sum(1).mean()))
    with pytest.raises(SelectronError, match="zero"):
        default_scale(one_row_each(torch.zeros(3, 2)))


@pytest.mark.parametrize("chunk", [1, 7, 100])
def test_shortlist_keeps_the_best_whatever_the_chunks(chunk):
    scores = torch.randint(0, 12, (100,), generator=torch.Generator().manual_seed(0)).double()
    rows = random_rows(100, 3, max_rows=3)
    expected = sorted(range(100), key=lambda i: (-float(scores[i]), i))[:30]
    shortlist = Shortlist(30)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    for part in order.split(chunk):
        shortlist.offer(part, scores[part], rows.take(part))
    assert shortlist.result().tolist() == expected
    assert torch.equal(shortlist.scores, scores[expected])
    assert shortlist.rows is not None
    assert torch.equal(shortlist.rows.values, rows.take(expected).values)
    assert torch.equal(shortlist.rows.counts, rows.counts[expected])


def test_shortlist_longer_than_the_pool_holds_the_pool():
    shortlist = Shortlist(10)
    assert shortlist.result().numel() == 0
    shortlist.offer(torch.tensor([4, 2]), torch.tensor([1.0, 1.0]))
    assert shortlist.result().tolist() == [2, 4]
    with pytest.raises(SelectronError, match="not a number"):
        shortlist.offer(torch.tensor([7]), torch.tensor([float("nan")]))


@pytest.mark.parametrize("dim", [1, 3, 200])
@pytest.mark.parametrize("mean", [0.0, 30.0])
def test_duplicates_are_those_of_the_full_distance_matrix(dim, mean):
    generator = torch.Generator().manual_seed(dim)
    distinct = torch.randn(60, dim, generator=generator, dtype=torch.float64) + mean
    copies = distinct[torch.randint(0, 60, (140,), generator=generator)]
    noise = 2e-6 * copies.norm(dim=1, keepdim=True) / dim**0.5
    vectors = torch.cat([distinct, copies + noise * torch.randn(140, dim, generator=generator, dtype=torch.float64)])
    vectors = vectors[torch.randperm(200, generator=generator)]
    norms = vectors.norm(dim=1)
    same = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist") <= 1e-5 * torch.maximum(
        norms[:, None], norms[None, :]
    )
    expected = torch.argmax(same.to(torch.uint8), dim=1)
    if not torch.equal(same, expected[:, None] == expected[None, :]):
        pytest.skip("two of the random vectors are neighbours by chance")
    assert torch.equal(duplicate_groups(vectors), expected)


def test_a_slow_drift_is_not_one_group():
    steps = torch.arange(200, dtype=torch.float64)[:, None] * 4e-6
    vectors = torch.tensor([[1.0, 0.0]]).double() + steps * torch.tensor([[0.0, 1.0]]).double()
    groups = duplicate_groups(vectors)
    assert 30 <= torch.unique(groups).numel() <= 100
    assert (vectors - vectors[groups]).norm(dim=1).max() <= 2e-5


def test_many_copies_and_zero_vectors_are_cheap_and_grouped():
    assert torch.equal(duplicate_groups(torch.ones(5000, 8)), torch.zeros(5000, dtype=torch.int64))
    assert torch.equal(duplicate_groups(torch.zeros(50, 8)), torch.zeros(50, dtype=torch.int64))
    assert duplicate_groups(torch.zeros(0, 3)).numel() == 0
