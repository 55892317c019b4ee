"Numbers for runs, and two runs held against each other, number by number."

import torch

from memnb.runs.run import Run

TENSORS = (
    *("time", "prediction", "loss", "margin", "y", "clean", "index", "true_loss", "true_margin"),
    *("test_y", "test_prediction", "test_loss", "test_margin"),
)


def randn(*shape: int, seed=0) -> torch.Tensor:
    "As wide as the outputs of a network: of standard deviation 3."
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same_tensors(a: Run, b: Run):
    "Every recorded number is the same, or absent from both."
    for name in TENSORS:
        v = getattr(a, name)
        w = getattr(b, name)
        assert (v is None) == (w is None), name
        assert v is None or (v.dtype == w.dtype and torch.equal(v, w)), name


def assert_same_run(a: Run, b: Run):
    "The same tensors, configuration, rows and checkpoints."
    assert_same_tensors(a, b)
    for f in ("config", "unit", "n_classes", "digest"):
        assert getattr(a, f) == getattr(b, f)
    assert a.rows.equals(b.rows)
    assert a.rows.schema == b.rows.schema
    assert a.checkpoints.keys() == b.checkpoints.keys()
    for t, s in a.checkpoints.items():
        assert s.keys() == b.checkpoints[t].keys()
        assert all(torch.equal(v, b.checkpoints[t][k]) for k, v in s.items())
