"""Agreement with independent implementations: bmdal_reg 3.0.2 (with the NumPy 2 patch) and scikit-matter."""

import numpy as np
import pytest
import torch

from selectron.acquisition import select_batch
from selectron.acquisition.bait import select_bait
from selectron.acquisition.problem import make_problem
from selectron.rows import one_row_each

NOISE_VARIANCE = 1e-3
BUDGET = 40


@pytest.fixture(autouse=True)
def one_thread():
    """Tensors this small gain nothing from more, and on a busy machine wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bmdal():
    """The selection module of bmdal_reg, which still uses a name that NumPy 2 has removed."""
    pytest.importorskip("bmdal_reg")
    before = getattr(np, "Inf", None)
    np.Inf = np.inf  # noqa: NPY201
    from bmdal_reg.bmdal import selection

    yield selection
    if before is None:
        del np.inf


def random_features(n_pool, n_train, dim, seed, mean=0.0):
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.arange(1, dim + 1, dtype=torch.float64) ** -0.5
    features = (torch.randn(n_pool + n_train, dim, generator=generator, dtype=torch.float64) + mean) * spectrum
    features /= features.square().sum(1).mean().sqrt()
    return features[:n_pool], features[n_pool:]


def reference_features(bmdal, pool, train, *, posterior):
    identity = bmdal.IdentityFeatureMap(n_features=pool.shape[1])
    both = [bmdal.Features(identity, bmdal.TensorFeatureData(values)) for values in (pool, train)]
    if posterior:
        transform = both[1].posterior_tfm(NOISE_VARIANCE**0.5, allow_kernel_space_posterior=False)
        both = [transform(features) for features in both]
    return [features.precompute() for features in both]


def reference_picks(bmdal, name, pool, train, **options):
    posterior = name in ("maxdet", "maxdet-features", "bait")
    method, settings = {
        "lcmd": (bmdal.LargestClusterMaxDistSelectionMethod, {"sel_with_train": True}),
        "fps": (bmdal.MaxDistSelectionMethod, {"sel_with_train": True}),
        "kmeans++": (bmdal.KmeansppSelectionMethod, {"sel_with_train": True}),
        "maxdet": (bmdal.MaxDetSelectionMethod, {"noise_sigma": NOISE_VARIANCE**0.5}),
        "maxdet-features": (bmdal.MaxDetFeatureSpaceSelectionMethod, {"noise_sigma": NOISE_VARIANCE**0.5}),
        "bait": (bmdal.BaitFeatureSpaceSelectionMethod, {"noise_sigma": NOISE_VARIANCE**0.5}),
    }[name]
    features = reference_features(bmdal, pool, train, posterior=posterior)
    return method(*features, verbosity=0, **settings, **options).select(BUDGET)


@pytest.mark.parametrize("mean", [0.0, 3.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ["lcmd", "fps", "maxdet", "maxdet-features"])
def test_picks_equal_those_of_bmdal_reg(bmdal, name, seed, mean):
    pool, train = random_features(300, 30, 20, seed, mean)
    expected = reference_picks(bmdal, name, pool, train)
    ours = select_batch(
        name.removesuffix("-features"),
        one_row_each(pool),
        train=one_row_each(train),
        budget=BUDGET,
        noise_variance=NOISE_VARIANCE,
    )
    assert ours.indices.tolist() == expected.tolist()


@pytest.mark.parametrize("overselection", [1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bait_forward_and_backward_equal_bmdal_reg(bmdal, seed, overselection):
    pool, train = random_features(300, 30, 20, seed)
    expected = reference_picks(bmdal, "bait", pool, train, overselection_factor=overselection)
    problem = make_problem(
        one_row_each(pool),
        train=one_row_each(train),
        prior_precision=1.0,
        noise_variance=NOISE_VARIANCE,
        pool_second_moment=None,
        variances=None,
        seed=0,
        exclude=None,
    )
    assert select_bait(problem, BUDGET, overselection=overselection).indices.tolist() == expected.tolist()


def test_kmeans_plus_plus_draws_what_bmdal_reg_draws_from_the_same_random_numbers(bmdal):
    pool, train = random_features(300, 30, 20, 0)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        expected = reference_picks(bmdal, "kmeans++", pool, train)
    ours = select_batch("kmeans++", one_row_each(pool), train=one_row_each(train), budget=BUDGET, seed=5)
    assert ours.indices.tolist() == expected.tolist()


@pytest.mark.parametrize("name", ["lcmd", "fps"])
def test_without_training_set_picks_equal_bmdal_reg(bmdal, name):
    pool, train = random_features(200, 1, 15, 4)
    expected = reference_picks(bmdal, name, pool, train[:0])
    assert select_batch(name, one_row_each(pool), train=None, budget=BUDGET).indices.tolist() == expected.tolist()


def test_the_base_class_of_bmdal_reg_masks_one_score_and_maximises_another(bmdal):
    """Why a criterion that does not itself forget its picks is filled up at random there, and what happens here."""
    pool, train = random_features(20, 1, 4, 0)

    class Constant(bmdal.IterativeSelectionMethod):
        def get_scores(self):
            return self.pool_features.get_kernel_matrix_diag()

        def add(self, new_idx):
            pass

    features = reference_features(bmdal, pool, train, posterior=False)
    method = Constant(*features, sel_with_train=False, verbosity=0)
    best = torch.argsort(pool.square().sum(1), descending=True)[:5].tolist()
    method.select(5)
    assert method.status is not None
    ours = select_batch("top-k", one_row_each(pool), train=None, budget=5)
    assert ours.indices.tolist() == best


def test_farthest_points_equal_scikit_matter():
    selection = pytest.importorskip("skmatter.sample_selection")
    pool, _ = random_features(150, 1, 10, 7)
    reference = selection.FPS(n_to_select=25, initialize=3).fit(pool.numpy())
    ours = select_batch("fps", one_row_each(pool), train=one_row_each(pool[3:4]), budget=24)
    assert ours.indices.tolist() == reference.selected_idx_[1:].tolist()
