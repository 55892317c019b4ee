"Left-out ridge probes of features of any scale, against a loop that leaves each example out."

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from memnb.audit.feature_audit import audit_features
from memnb.localization.left_out_ridge import leave_one_out_ridge
from memnb.probes.geometry import unit


def clouds(n=60, d=5, k=3):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, k, (n,), generator=g)
    centres = torch.randn(k, d, generator=g, dtype=torch.float64)
    return centres[y] + 0.5 * torch.randn(n, d, generator=g, dtype=torch.float64), y


def by_a_loop(x, y, k):
    z = (x - x.mean(0)).numpy()
    z = np.c_[z / np.linalg.norm(z, axis=1, keepdims=True), np.ones(len(z))]
    targets = np.eye(k)[y]
    ridge = np.trace(z.T @ z) / z.shape[1] * np.eye(z.shape[1])
    rest = [np.arange(len(z)) != i for i in range(len(z))]
    return [z[i] @ np.linalg.solve(z[m].T @ z[m] + ridge, z[m].T @ targets[m]) for i, m in
            enumerate(rest)]  # fmt: skip


@pytest.mark.parametrize("scale", [1e-250, 1e-20, 1e-13, 1, 1e30, 1e250])
def test_left_out_predictions_do_not_depend_on_the_scale(scale):
    x, y = clouds()
    right = torch.tensor(np.array(by_a_loop(x, y, 3)))
    torch.testing.assert_close(leave_one_out_ridge(x * scale, y, 3), right, rtol=0, atol=1e-9)
    curved = leave_one_out_ridge(x, y, 3, curved=True)
    got = leave_one_out_ridge(x * scale, y, 3, curved=True)
    torch.testing.assert_close(got, curved, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-20, 1e-13, 1e20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_audit_of_features_does_not_depend_on_the_scale(scale, dtype):
    x, y = clouds(300)
    y[::9] = (y[::9] + 1) % 3
    right = audit_features(x.numpy(), y, progress=False)
    got = audit_features((x.numpy() * scale).astype(dtype), y, progress=False)
    assert (got["suggested"] == right["suggested"]).mean() > 0.99
    assert np.abs(got["suspicion"] - right["suspicion"]).max() < 0.02


def test_features_whose_squares_vanish_and_masked_labels_are_refused():
    x, y = clouds()
    with pytest.raises(ValueError, match="largest number of the features is .*at least 1e-140"):
        audit_features(x.numpy() * 1e-200, y, progress=False)
    with pytest.raises(ValueError, match="labels hold a masked value at row 3"):
        audit_features(x.numpy(), np.ma.array(y, mask=np.arange(60) == 3), progress=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unit_vectors_at_the_edges_of_the_precision(dtype):
    edge = torch.finfo(dtype)
    v = torch.tensor([[3.0, 4.0], [0, 0], [-1, 0]], dtype=dtype)
    for scale in (edge.tiny, edge.max / 8, 1.0):
        right = torch.tensor([[0.6, 0.8], [0, 0], [-1, 0]], dtype=dtype)
        torch.testing.assert_close(unit(v * scale), right)
    assert torch.equal(unit(v), F.normalize(v, dim=1))


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(ridge=-1), "ridge=-1 must be above 0"),
        (dict(ridge=float("nan")), "ridge=nan must be above 0"),
        (dict(n_classes=2), r"y spans 0 to 2; it must lie in \[0, 1\]"),
        (dict(n_classes=1), "n_classes=1 must be"),
        (dict(y=torch.zeros(60)), "must be whole numbers"),
        (dict(y=torch.zeros(10, dtype=torch.int64)), "must be whole numbers"),
    ],
)
def test_what_no_ridge_is_fitted_to(change, says):
    x, y = clouds()
    with pytest.raises(ValueError, match=says):
        leave_one_out_ridge(**(dict(x=x, y=y, n_classes=3) | change))
