"""Features of layers against whole activations, of one pass and however they are kept."""

import errno
import gc
import os
import subprocess
import sys
import tempfile
import textwrap

import pytest
import torch
from torch import nn

from memnb.models import feature_storage as module
from memnb.models.feature_storage import Features, storage_kind
from memnb.models.features import (
    average_maps,
    batch_for,
    fold,
    layer_features,
    row_blocks,
)
from memnb.models.layers import activations
from memnb.models.networks import build

KINDS = ("whole", "half", "file")


@pytest.fixture
def net() -> nn.Module:
    return build("cnn", shape=(1, 8, 8), channels=[3, 4], widths=[6], n_classes=3, seed=0).train()


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    "A folder that takes the temporary files."
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def pictures(n=50) -> torch.Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def flatten(value):
    return value.flatten(1)


POOLS = {
    ("block1", "mean"): lambda v: v.mean((2, 3)),
    ("block1", "all"): flatten,
    ("fc1", "all"): flatten,
    ("input", "all"): flatten,
}


def by_hand(net, x) -> dict:
    "Of the modules themselves, called one after the other."
    net = net.eval()
    with torch.no_grad():
        block1 = net.block1(x)
        fc1 = net.fc1(net.block2(block1).flatten(1))
    return {
        ("block1", "mean"): block1.mean((2, 3)),
        ("block1", "all"): block1.flatten(1),
        ("fc1", "all"): fc1,
        ("input", "all"): x.flatten(1),
    }


def open_files() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


# --- rows of one layer


@pytest.mark.parametrize("n, d", [(1, 1), (4096, 3), (10_000, 3000), (5, 10**9)])
def test_blocks_cover_all_rows_once(n, d):
    rows = [i for part in row_blocks(n, d) for i in range(n)[part]]
    assert rows == list(range(n))


def test_larger_pictures_come_in_smaller_batches():
    sizes = [batch_for(torch.zeros(1, 3, side, side)) for side in (8, 32, 64, 224, 1024)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 256
    assert sizes[-1] == 8


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_kept_rows_are_near_the_given_ones(kind, offset, scale):
    x = scale * (offset + torch.randn(300, 7, generator=torch.Generator().manual_seed(0)))
    x[:, 3] = 0
    kept = Features(x[:100], 300, kind)
    for part in x.split(100):
        kept.add(part)
    read = torch.cat([kept.rows(rows) for rows in (slice(0, 30), slice(30, 290), slice(290, 300))])
    assert read.dtype == torch.float32
    assert (read[:, 3] == 0).all()
    tolerance = 0 if kind == "whole" else 2e-3 * scale
    torch.testing.assert_close(read, x, atol=tolerance, rtol=0 if kind == "whole" else 1e-6)
    kept.close()


@pytest.mark.parametrize("outlier", [1e4, 1e6, 1e20])
@pytest.mark.parametrize("kind", ["half", "file"])
def test_a_huge_row_in_the_first_batch_leaves_the_others_precise(kind, outlier):
    x = 10 + torch.randn(300, 7, generator=torch.Generator().manual_seed(0))
    x[2] = outlier
    kept = Features(x[:100], 300, kind)
    kept.add(x)
    error = (kept.rows(slice(0, 300)) - x).abs().amax(1) / x.abs().amax(1)
    assert error.max() < 2**-11
    kept.close()


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_added_after_others_were_read(kind):
    x = torch.arange(24.0).view(8, 3)
    kept = Features(x[:2], 8, kind)
    other = Features(x[:2], 8, kind)
    for part in x.split(2):
        kept.add(part)
        torch.testing.assert_close(kept.rows(slice(0, 1)), x[:1])
        other.restore(kept.part(slice(kept.end - 2, kept.end)))
        torch.testing.assert_close(other.rows(slice(0, 1)), x[:1])
    torch.testing.assert_close(kept.rows(slice(0, 8)), x)
    torch.testing.assert_close(other.rows(slice(0, 8)), x)
    kept.close()
    other.close()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_of_what_is_read(kind, dtype):
    x = torch.randn(10, 3).to(dtype)
    kept = Features(x, 10, kind)
    kept.add(x)
    assert kept.rows(slice(2, 5)).dtype == (dtype if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(kept.rows(slice(2, 5)).double(), x[2:5].double(), atol=3e-3, rtol=0)


def test_memory_decides_how_features_are_kept():
    batch = [torch.zeros(2, 10), torch.zeros(2, 30)]
    whole = 100 * 40 * 4
    half = 100 * (40 * 2 + 2 * 8)
    assert storage_kind(100, batch, whole) == "whole"
    with pytest.warns(UserWarning, match="half precision.*in memory"):
        assert storage_kind(100, batch, whole - 1) == "half"
    with pytest.warns(UserWarning, match="half precision.*in a temporary file"):
        assert storage_kind(100, batch, half - 1) == "file"


def test_folding_keeps_inner_products():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3000, generator=g) + torch.randn(3000, generator=g)
    small = fold(x, 1024)
    assert small.shape == (40, 1024)
    exact = x @ x.T / 3000
    error = (small @ small.T / 3000 - exact).square().mean().sqrt()
    assert error < 0.1 * exact.mean()
    assert torch.equal(fold(x, 3000), x)
    assert torch.equal(fold(x, 1024), small)


def test_maps_are_averaged_by_blocks():
    x = torch.arange(64.0).view(1, 1, 8, 8)
    blocks = x.view(1, 1, 2, 4, 2, 4).mean((3, 5)).flatten(1)
    assert torch.equal(average_maps(x, 2), blocks)


# --- all layers


@pytest.mark.parametrize("memory, tolerance", [(2**30, 0), (14_000, 2e-3), (0, 2e-3)])
@pytest.mark.filterwarnings("ignore:the features of the layers take")
def test_one_pass_gives_what_the_modules_give(net, scratch, memory, tolerance):
    x = pictures()
    expected = by_hand(net, x)
    net.train()
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    with layer_features(net, x, POOLS, batch=16, memory=memory) as features:
        kinds = {kept.kind for kept in features.values()}
        read = {key: kept.rows(slice(0, 50)) for key, kept in features.items()}
    assert kinds == {{2**30: "whole", 14_000: "half", 0: "file"}[memory]}
    assert list(read) == list(POOLS)
    for key, value in read.items():
        torch.testing.assert_close(value, expected[key], atol=max(tolerance, 1e-5), rtol=0)
    assert len(calls) == 4
    assert net.training
    assert not os.listdir(scratch)


def test_layers_that_change_their_input_in_place_change_nothing_that_was_read():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    x = torch.randn(9, 4)
    with layer_features(net, x, {("0", "a"): flatten}) as features:
        read = features["0", "a"].rows(slice(0, 9))
    torch.testing.assert_close(read, net[0](x).detach())


@pytest.mark.filterwarnings("ignore:the features of the layers take")
def test_an_interruption_leaves_nothing_behind(net, scratch):
    files = open_files()
    calls = []

    def interrupt(*_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = net.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), layer_features(net, pictures(), POOLS, 16, memory=0):
        raise AssertionError("the pass was not interrupted")
    handle.remove()
    assert not os.listdir(scratch)
    assert open_files() == files
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert net.training


@pytest.mark.filterwarnings("ignore:the features of the layers take")
def test_an_error_of_the_reader_leaves_nothing_behind(net, scratch):
    files = open_files()
    with pytest.raises(ZeroDivisionError), layer_features(net, pictures(), POOLS, memory=0):
        assert open_files() > files
        1 / 0  # noqa: B018 an error of whoever reads
    assert open_files() == files
    assert not os.listdir(scratch)


@pytest.mark.filterwarnings("ignore:the features of the layers take")
def test_too_little_disk_is_said_before_anything_is_written(net, scratch, monkeypatch):
    usage = module.shutil.disk_usage(scratch)
    needed = 2 * 50 * (3 + 3 * 16 + 6 + 64)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with (
        pytest.raises(OSError, match=f"do not fit into {scratch}.* are free") as e,
        layer_features(net, pictures(), POOLS, memory=0),
    ):
        raise AssertionError("the features were kept")
    assert e.value.errno == errno.ENOSPC
    assert not os.listdir(scratch)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_FSIZE")
def test_a_disk_that_fills_up_is_said(tmp_path):
    "In a process of its own, whose files may not grow beyond 2,000 bytes."
    code = """
        import resource, os, warnings, torch
        from torch import nn
        from memnb.models.features import layer_features
        warnings.simplefilter("ignore")
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        net = nn.Sequential(nn.Linear(4, 10), nn.Linear(10, 3))
        before = len(os.listdir("/proc/self/fd"))
        try:
            with layer_features(net, torch.randn(200, 4), {("0", "a"): torch.clone}, 16, memory=0):
                pass
        except OSError as e:
            print(e, len(os.listdir("/proc/self/fd")) - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert f"do not fit into {tmp_path}" in run.stdout, run.stderr
    assert "one layer takes" in run.stdout
    assert run.stdout.strip().endswith(" 0")
    assert not os.listdir(tmp_path)


class Trimmed(nn.Module):
    "Cuts each batch of token vectors (n, T, C) to its longest text; padding is 0."

    def __init__(self):
        super().__init__()
        self.tokens = nn.Identity()
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        longest = int((x != 0).any(2).sum(1).max())
        return self.out(self.tokens(x[:, :longest]).mean(1))


def test_tokens_whose_number_varies_are_averaged():
    x = torch.randn(12, 6, 4, generator=torch.Generator().manual_seed(0))
    x[4:8, 3:] = 0
    with (
        pytest.warns(UserWarning, match="width of layer 'tokens' changes.*averaged"),
        layer_features(Trimmed(), x, {("tokens", "a"): flatten}, 4) as features,
    ):
        read = features["tokens", "a"].rows(slice(0, 12))
    expected = torch.cat([x[:4].mean(1), x[4:8, :3].mean(1), x[8:].mean(1)])
    torch.testing.assert_close(read, expected)


class Layouts(nn.Module):
    "Channels first and last, of sequences, pictures and volumes."

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv1d(5, 6, 3)
        self.conv3 = nn.Conv3d(5, 6, 1)
        self.norm = nn.LayerNorm(5)
        self.turned = nn.Sequential(nn.Linear(5, 6), nn.Identity())

    def forward(self, x):  # (n, 5, 4, 3, 2)
        self.conv1(x.flatten(2))
        self.conv3(x)
        last = self.norm(x.movedim(1, -1).flatten(1, 2))  # (n, 12, 2, 5)
        self.turned(last.flatten(1, 2))  # (n, 24, 6)
        return x


@pytest.mark.parametrize(
    "layer, shape",
    [
        ("conv1", (22, 6)),
        ("conv1.input", (24, 5)),
        ("conv3", (6, 12, 2)),
        ("conv3.input", (5, 12, 2)),
        ("norm", (5, 12, 2)),
        ("norm.input", (5, 12, 2)),
        ("turned", (24, 6)),
        ("turned.0.input", (24, 5)),
        ("turned.input", (24, 5)),
        ("input", (5, 12, 2)),
    ],
)
def test_pools_get_tokens_and_maps(layer, shape):
    got = []

    def pool(value):
        got.append(tuple(value.shape[1:]))
        return value.flatten(1)

    with layer_features(Layouts(), torch.randn(3, 5, 4, 3, 2), {(layer, "a"): pool}):
        assert got == [shape]


class Odd(nn.Module):
    "A layer that is called twice, one that gives token ids, and one that is never called."

    def __init__(self):
        super().__init__()
        self.ids = nn.Identity()
        self.twice = nn.Linear(4, 4)
        self.spare = nn.Linear(4, 4)
        self.turned = nn.Identity()

    def forward(self, x):
        self.ids(x.long())
        return self.turned(self.twice(self.twice(x)).T).T


def test_integers_are_left_out_and_said():
    pools = {("ids", "a"): flatten, ("input", "a"): flatten}
    with (
        pytest.warns(UserWarning, match="'ids' gives whole numbers .torch.int64.*left out"),
        layer_features(Odd(), torch.randn(6, 4), pools) as features,
    ):
        assert list(features) == [("input", "a")]


@pytest.mark.parametrize(
    "layer, error, says",
    [
        ("twice", RuntimeError, "'twice' is called more than once"),
        ("spare", RuntimeError, "spare are never called"),
        ("turned", ValueError, r"'turned' gives \(4, 6\) for 6 inputs"),
        ("fc9", ValueError, "there is no layer 'fc9'"),
    ],
)
def test_layers_that_cannot_be_read(layer, error, says):
    with (
        pytest.raises(error, match=says),
        layer_features(Odd(), torch.randn(6, 4), {(layer, "a"): flatten}),
    ):
        raise AssertionError("the layer was read")


@pytest.mark.parametrize("memory", [-1, float("nan"), "all"])
def test_refused_memory(net, memory):
    with (
        pytest.raises((TypeError, ValueError), match="memory"),
        layer_features(net, pictures(), POOLS, memory=memory),
    ):
        raise AssertionError("the features were kept")


class Branch(nn.Module):
    "Takes one of two layers, by the mean of the batch."

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.large = nn.Linear(4, 3)
        self.small = nn.Linear(4, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        x = self.stem(x) + x
        return self.head(self.large(x) if x.mean() > 50 else self.small(x))


def two_batches() -> torch.Tensor:
    "Six inputs of one branch, then four of the other."
    return torch.cat([100 + torch.rand(6, 4), torch.rand(4, 4)])


@pytest.mark.parametrize("layer", ["large", "small"])
def test_a_layer_in_a_branch_is_left_out_and_said(layer):
    net = Branch()
    x = two_batches()
    pools = {("stem", "a"): flatten, (layer, "a"): flatten}
    with (
        pytest.warns(UserWarning, match=f"layers {layer} are called in a branch that depends on"),
        layer_features(net, x, pools, batch=6) as features,
    ):
        assert list(features) == [("stem", "a")]
        assert torch.allclose(features["stem", "a"].rows(slice(0, 10)), net.stem(x))


def test_branches_alone_are_refused_with_how_often_they_are_not_called():
    pools = {("large", "a"): flatten, ("small", "a"): flatten}
    with (
        pytest.raises(RuntimeError, match="small, large are .* for 6 of 10.; name other layers"),
        layer_features(Branch(), two_batches(), pools, batch=6),
    ):
        pass


def test_activations_of_a_branch_name_the_examples():
    with pytest.raises(RuntimeError, match="layers large are not called .* over examples 6 to 9"):
        list(activations(Branch(), two_batches(), ["large"], batch=6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_features_that_were_stored_on_the_way_are_the_same(kind, dtype):
    x = (1000 + torch.randn(30, 5, generator=torch.Generator().manual_seed(0))).to(dtype)
    whole = Features(x[:10], 30, kind)
    for part in x.split(10):
        whole.add(part)
    again = Features(torch.zeros(1, 5, dtype=dtype), 30, kind)
    for rows in (slice(0, 10), slice(10, 30)):
        again.restore(whole.part(rows))
    assert torch.equal(again.rows(slice(3, 28)), whole.rows(slice(3, 28)))
    for kept in (whole, again):
        kept.close()
