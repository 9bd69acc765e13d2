"""The plane of the map: principal components from streamed moments."""

import numpy as np
import pytest
import torch

from selectron.errors import SelectronError
from selectron.report.projection import Projection


def cloud(n=200, dim=12, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    return (
        rng.normal(size=(n, dim)) * np.linspace(3.0, 0.2, dim) @ np.linalg.qr(rng.normal(size=(dim, dim)))[0] + offset
    )


def test_agrees_with_the_singular_value_decomposition():
    features = cloud(offset=1.5)
    plane = Projection.fit(features.T @ features / len(features), features.mean(axis=0))
    centred = features - features.mean(axis=0)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(np.sum(plane.axes * right[:2].T, axis=0)), 1.0, atol=1e-10)
    np.testing.assert_allclose(np.abs(plane.transform(features)), np.abs(left[:, :2] * singular[:2]), atol=1e-9)
    np.testing.assert_allclose(plane.explained, singular[:2] ** 2 / np.sum(singular**2), rtol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_streamed_batches_give_the_same_plane_far_from_the_origin_too(offset):
    features = cloud(offset=offset)
    near = cloud()
    streamed = Projection.of_batches([features[:1], features[1:1], features[1:130], features[130:]])
    direct = Projection.fit(near.T @ near / len(near), near.mean(axis=0))
    np.testing.assert_allclose(streamed.axes, direct.axes, atol=1e-7)
    np.testing.assert_allclose(streamed.transform(features), direct.transform(near), atol=1e-6)


def test_coordinates_do_not_depend_on_the_sign_or_order_of_the_data():
    features = cloud()
    plane, mirrored = Projection.of_batches([features]), Projection.of_batches([-features[::-1]])
    np.testing.assert_allclose(plane.axes, mirrored.axes, atol=1e-10)
    assert (plane.axes[np.argmax(np.abs(plane.axes), axis=0), [0, 1]] > 0).all()


def test_torch_rows_and_numpy_rows_are_the_same():
    features = cloud()
    tensor = torch.as_tensor(features, dtype=torch.float64).requires_grad_()
    np.testing.assert_array_equal(Projection.of_batches([tensor]).transform(tensor), _plain(features))


def _plain(features):
    return Projection.of_batches([features]).transform(features)


@pytest.mark.parametrize("features", [np.ones((1, 5)), np.ones((7, 5)), np.arange(6.0).reshape(6, 1)])
def test_flat_clouds_have_coordinates_too(features):
    plane = Projection.of_batches([features])
    coordinates = plane.transform(features)
    assert coordinates.shape == (len(features), 2)
    np.testing.assert_allclose(coordinates[:, 1], 0.0, atol=1e-12)
    assert np.isfinite(coordinates).all()
    assert ((plane.explained >= 0) & (plane.explained <= 1)).all()


def test_moments_that_make_no_sense_are_refused():
    with pytest.raises(SelectronError, match="shape"):
        Projection.fit(np.eye(3), np.zeros(2))
    with pytest.raises(SelectronError, match="not finite"):
        Projection.fit(np.full((2, 2), np.nan), np.zeros(2))
    with pytest.raises(SelectronError, match="at least one"):
        Projection.of_batches([])
