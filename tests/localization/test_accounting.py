"""Both parts of a gradient against plain autograd, at fixed weights and while training.

They leave the training as it is.
"""

from functools import cache, partial

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from interruptions import Killed, breaks
from states import same, state
from torch import nn
from torch.nn import functional as F
from torch.optim import SGD

from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.accounting import Accounting, account, group_mask
from memnb.models.networks import build
from memnb.trainer import training as trainer
from memnb.trainer.steps import order

fit = partial(trainer.fit, device="cpu")
train = partial(trainer.train, device="cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def points(n=40, k=3, d=6, rho=0.3, dtype=torch.float64) -> NoisyDataset:
    g = torch.Generator().manual_seed(0)
    y = torch.arange(n) % k
    return corrupt(
        NoisyDataset(
            (torch.randn(n, d, generator=g) + 2 * F.one_hot(y, d)).to(dtype), y, y, n_classes=k
        ),
        rho,
        "wrong",
    )


@cache
def digits(n=30, dtype=torch.float64) -> NoisyDataset:
    data = corrupt(load("digits", n=n, test_share=0)[0], 0.3, "wrong")
    return NoisyDataset(data.x.to(dtype), data.y, data.clean, data.index, 10)


@cache
def pictures(n=10) -> NoisyDataset:
    y = torch.arange(n) % 10
    return corrupt(
        NoisyDataset(
            torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)).double(),
            y,
            y,
            n_classes=10,
        ),
        0.3,
        "wrong",
    )


class Own(nn.Module):
    """Functional activations, a sum in place, a layer called twice, a tied weight.

    Also a layer never called, and parameters of the root.
    """

    def __init__(self, d=6, k=3, bias=True):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(k))
        self.encoder = nn.Linear(8, 8)
        self.twice = nn.Linear(8, 8)
        self.decoder = nn.Linear(8, 8, bias)
        self.first = nn.Linear(d, 8)
        self.never = nn.Linear(2, 2)
        self.out = nn.Linear(8, k)
        self.decoder.weight = self.encoder.weight

    def forward(self, x):
        h = self.first(x.flatten(1)).relu()
        a = F.dropout(self.encoder(h), 0.4, self.training)
        a += self.twice(F.relu(self.twice(h)))
        return self.scale * self.out(torch.tanh(self.decoder(a)))


def small() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 5), nn.Tanh()), nn.Linear(5, 3)
    ).double()


def blocks(n=12) -> nn.Module:
    "blocks.1 and blocks.11, each of two layers of different size."
    net = nn.Module()
    net.first = nn.Linear(6, 4)
    net.blocks = nn.ModuleList(
        nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 4, bias=False)) for _ in range(n)
    )
    net.out = nn.Linear(4, 3)

    def forward(x):
        return net.out(sum(b(net.first(x)) for b in net.blocks))

    net.forward = forward
    return net.double()


NETS = dict(
    mlp=(lambda: build("mlp", shape=(1, 8, 8), widths=(12, 7)), digits),
    resnet9=(lambda: build("resnet9", shape=(1, 8, 8), width=0.0625), digits),
    vit=(
        lambda: build("vit", shape=(1, 8, 8), patch=4, width=8, depth=2, heads=2, hidden=8),
        digits,
    ),
    resnet18=(lambda: torchvision.models.resnet18(num_classes=10), pictures),
    own=(Own, points),
)
every = pytest.mark.parametrize("make, data", NETS.values(), ids=NETS)
few = pytest.mark.parametrize(
    "make, data", [NETS[k] for k in ("resnet9", "vit", "own")], ids=["resnet9", "vit", "own"]
)


def gradient(net, data, rows, mean_of=None) -> dict:
    "Of the sum of these examples' losses over the number of all, one backward pass."
    named = dict(net.named_parameters())
    loss = F.cross_entropy(net(data.x[rows]), data.y[rows], reduction="sum") / (
        mean_of or len(data)
    )
    g = torch.autograd.grad(loss, [p for p in named.values() if p.requires_grad], allow_unused=True)
    g = dict(zip((k for k, p in named.items() if p.requires_grad), g, strict=True))
    return {k: torch.zeros_like(p) if g.get(k) is None else g[k].detach() for k, p in named.items()}


def members(net) -> dict:
    "Module -> its own parameters, a tied one with the first."
    own = {}
    for k, _ in net.named_parameters():
        own.setdefault(k.rpartition(".")[0] or "(root)", []).append(k)
    return own


def by_hand(clean, noisy, parts) -> tuple:
    "Norms and cosine of a layer whose members have these parameters."

    def mean(g):
        return sum(
            (sum(g[k].square().sum() for k in m) / sum(g[k].numel() for k in m)).sqrt().item()
            for m in parts
        ) / len(parts)

    def dot(a, b):
        return sum((a[k] * b[k]).sum().item() for m in parts for k in m)

    scale = (dot(clean, clean) * dot(noisy, noisy)) ** 0.5
    return (
        mean(clean),
        mean(noisy),
        dot(clean, noisy) / scale if scale else None,
        sum(clean[k].numel() for m in parts for k in m),
    )


def check(rows, clean, noisy, parts: dict, rel=1e-9, tiny=1e-12):
    assert [(r["layer"], r["group"]) for r in rows] == [
        (layer, group) for layer in parts for group in ("clean", "noisy")
    ]
    for c, n in zip(rows[::2], rows[1::2], strict=True):
        a, b, cosine, size = by_hand(clean, noisy, parts[c["layer"]])
        assert (c["norm"], n["norm"]) == pytest.approx((a, b), rel, tiny)
        assert c["parameters"] == n["parameters"] == size
        assert (
            c["cosine"]
            == n["cosine"]
            == (None if cosine is None else pytest.approx(cosine, rel, max(rel, 1e-7)))
        )


# --- at fixed weights


@every
def test_norms_and_cosines_against_a_plain_loop(make, data):
    net = make().double().eval()
    data = data()
    clean, noisy = (gradient(net, data, rows) for rows in (~data.is_noisy, data.is_noisy))
    check(
        account(net.train(), data).to_dicts(),
        clean,
        noisy,
        {k: [v] for k, v in members(net).items()},
    )


@few
def test_clean_and_noisy_are_the_total(make, data):
    net = make().double().eval()
    data = data()
    total = gradient(net, data, torch.arange(len(data)))
    own = members(net)
    rows = account(net, data).to_dicts()
    for c, n in zip(rows[::2], rows[1::2], strict=True):
        whole = (
            sum(total[k].square().mean() * total[k].numel() for k in own[c["layer"]])
            / c["parameters"]
        )
        assert c["norm"] ** 2 + n["norm"] ** 2 + 2 * (c["cosine"] or 0) * c["norm"] * n[
            "norm"
        ] == pytest.approx(whole.item(), 1e-9)


@settings(max_examples=15, deadline=None)
@given(
    mask=st.lists(st.booleans(), min_size=20, max_size=20).filter(lambda m: len(set(m)) == 2),
    batch=st.integers(1, 25),
)
def test_any_mask_and_any_batch(mask, batch):
    torch.manual_seed(0)
    net = small()
    data = points(20)
    mask = torch.tensor(mask)
    clean = gradient(net, data, ~mask)
    noisy = gradient(net, data, mask)
    check(
        account(net, data, mask=mask, batch=batch).to_dicts(),
        clean,
        noisy,
        {k: [v] for k, v in members(net).items()},
    )


def test_true_labels_need_not_be_known():
    net = small()
    data = points()
    unknown = NoisyDataset(data.x, data.y, n_classes=3)
    for mask in (data.is_noisy, data.is_noisy.tolist()):
        assert account(net, unknown, mask=mask).equals(account(net, data))
    with pytest.raises(ValueError, match="unknown"):
        account(net, unknown)
    for how, says in (
        (dict(batch=0), "batch=0 must be 1 or more"),
        (dict(layers=[]), "names no layer"),
    ):
        with pytest.raises(ValueError, match=says):
            account(net, points(), **how)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        account(net.requires_grad_(False), points())


def test_one_logit():
    data = points(k=2)
    net = nn.Linear(6, 1).double()
    for group, rows in (("clean", ~data.is_noisy), ("noisy", data.is_noisy)):
        loss = F.softplus((1 - 2 * data.y[rows]) * net(data.x[rows])[:, 0]).sum() / len(data)
        norm = (
            sum(g.square().sum() for g in torch.autograd.grad(loss, list(net.parameters())))
            .div(7)
            .sqrt()
            .item()
        )
        assert account(net, data).filter(group=group)["norm"].to_list() == [pytest.approx(norm)]


def test_a_group_is_the_mean_of_its_members():
    net = blocks()
    data = points()
    clean = gradient(net, data, ~data.is_noisy)
    noisy = gradient(net, data, data.is_noisy)
    own = members(net)

    def within(top):
        return [v for k, v in own.items() if k.startswith(top)]

    parts = {
        "blocks.1": within("blocks.1."),
        "blocks": within("blocks."),
        "blocks.11.2": [["blocks.11.2.weight"]],
        "blocks.11": within("blocks.11."),
    }
    assert [len(v) for v in parts.values()] == [2, 24, 1, 2]
    check(account(net, data, list(parts)).to_dicts(), clean, noisy, parts)


def test_the_root_is_its_own_parameters_only():
    net = Own().double()
    data = points()
    assert account(net, data, ["(root)"])["parameters"].to_list() == [3, 3]


def test_what_a_tied_weight_belongs_to():
    sizes = {r["layer"]: r["parameters"] for r in account(Own().double(), points()).to_dicts()}
    assert sizes["encoder"] == 72
    assert sizes["decoder"] == 8
    assert sum(sizes.values()) == sum(p.numel() for p in Own().parameters())


def test_a_layer_that_owns_nothing_but_a_tied_weight():
    net = Own(bias=False).double()
    assert account(net, points())["layer"].unique(maintain_order=True).to_list() == list(
        members(net)
    )
    assert "decoder" not in members(net)
    with pytest.raises(ValueError, match="'decoder' has no parameters of its own.*encoder"):
        account(net, points(), ["decoder"])


def test_frozen_and_unused_parameters_have_no_gradient():
    net = Own().double().eval()
    data = points()
    net.first.requires_grad_(False)
    net.out.bias.requires_grad_(False)
    rows = account(net, data)
    clean = gradient(net, data, ~data.is_noisy)
    for layer in ("first", "never"):
        assert rows.filter(layer=layer).select("norm", "cosine").rows() == [(0, None)] * 2
    norm = (clean["out.weight"].square().sum() / 27).sqrt().item()
    assert rows.filter(layer="out", group="clean")["norm"].item() == pytest.approx(norm)


@pytest.mark.parametrize("seen", ["clean", "noisy"])
def test_a_part_that_is_zero_has_no_cosine(seen):
    data = points()
    data = NoisyDataset(
        data.x * (data.is_noisy == (seen == "noisy"))[:, None], data.y, data.clean, n_classes=3
    )
    rows = account(nn.Linear(6, 3, bias=False).double(), data)
    assert rows["cosine"].to_list() == [None, None]
    assert [r["group"] for r in rows.to_dicts() if r["norm"]] == [seen]


@few
def test_the_network_is_left_as_it_is(make, data):
    net = make().double().train()
    data = data()
    next(net.children()).eval()
    first, *_, last = net.parameters()
    first.requires_grad_(False)
    last.grad = torch.ones_like(last)
    before = state(net)
    rng = torch.random.get_rng_state()

    def switches():
        return [m.training for m in net.modules()] + [p.requires_grad for p in net.parameters()]

    was = switches()
    account(net, data)
    assert same(state(net), before)
    assert switches() == was
    assert torch.equal(last.grad, torch.ones_like(last))
    assert all(p.grad is None for p in net.parameters() if p is not last)
    assert torch.equal(torch.random.get_rng_state(), rng)


def test_modes_come_back_after_an_error():
    net = small().train()
    with pytest.raises(
        ValueError,
        match=r"does not take inputs \(5,\).*0.weight, is torch.float64 \(8, 6\)",
    ):
        account(net, points(d=5))
    assert all(m.training for m in net.modules())


# --- refusals


@pytest.mark.parametrize(
    "mask, says",
    [
        (torch.ones(40).bool(), "all 40 examples are in the noisy group"),
        (torch.zeros(40).bool(), "all 40 examples are in the clean group"),
        (torch.arange(39) < 9, r"torch.bool \(39,\); 40 examples need torch.bool \(40,\)"),
        (torch.arange(40)[:, None] < 9, r"\(40, 1\)"),
        (torch.arange(40) % 2, "torch.int64"),
        (torch.arange(9), r"torch.int64 \(9,\)"),
    ],
)
@pytest.mark.parametrize(
    "ask", [group_mask, Accounting, lambda data, mask: account(small(), data, mask=mask)]
)
def test_masks_that_say_nothing(ask, mask, says):
    with pytest.raises(ValueError, match=says):
        ask(points(), mask)


@pytest.mark.parametrize("ask", [group_mask, Accounting, lambda data: account(small(), data)])
def test_data_without_noise(ask):
    with pytest.raises(ValueError, match="clean group"):
        ask(points(rho=0))


@pytest.mark.parametrize("layer", ["1", "fc7", "2.1", "(root)", "", "0.weight"])
def test_layers_without_parameters(layer):
    data = points()
    a = Accounting(data, layers=["0", layer])
    for ask in (
        lambda: account(small(), data, ["0", layer]),
        lambda: fit(small(), data, 1, backward=a.backward, observe=[a.rows]),
    ):
        with pytest.raises(ValueError) as e:
            ask()
        assert repr(layer) in str(e.value)
        assert str(e.value).endswith("0, 2.0, 3")


# --- while training


def accounted(net, data, epochs=2, a=None, **how):
    "A run with its accounting, and the sums at each recorded time."
    sums = []
    a = a or Accounting(data)

    def look(s):
        rows = a.rows(s) if a.noisy is None else None
        sums.append([[v.clone() for v in part] for part in (a.total, a.noisy)])
        return rows or a.rows(s)

    return fit(
        net, data, epochs, backward=a.backward, observe=[look], **dict(lr=0.05, batch=16) | how
    ), sums


def plain(net, data, epochs, lr=0.05, batch=16, mask=None, **how) -> list:
    "Sums of the clean and noisy gradients of each epoch's steps: one backward pass for each part."
    net.train()
    mask = data.is_noisy if mask is None else mask
    sums = []
    opt = SGD(net.parameters(), lr, fused=True, **how)
    for epoch in range(epochs):
        whole = [{k: torch.zeros_like(p) for k, p in net.named_parameters()} for _ in range(2)]
        for rows in order(len(data), epoch, 0).split(batch):
            losses = F.cross_entropy(net(data.x[rows]), data.y[rows], reduction="none")
            opt.zero_grad()
            for total, of in zip(whole, (~mask[rows], mask[rows]), strict=True):
                g = torch.autograd.grad(
                    (losses * of).sum() / len(rows),
                    list(net.parameters()),
                    retain_graph=True,
                    allow_unused=True,
                )
                for (k, _), v in zip(net.named_parameters(), g, strict=True):
                    if v is not None:
                        total[k] += v
            losses.mean().backward()
            opt.step()
        sums.append(whole)
    return sums


WITHOUT_DROPOUT = {k: v for k, v in NETS.items() if k not in ("own", "vit")} | dict(
    vit=(
        lambda: build(
            "vit", shape=(1, 8, 8), patch=4, width=8, depth=1, heads=2, hidden=8, dropout=0
        ),
        digits,
    ),
    small=(small, points),
)


@pytest.mark.parametrize("make, data", WITHOUT_DROPOUT.values(), ids=WITHOUT_DROPOUT)
def test_sums_of_an_epoch_against_a_plain_loop(make, data):
    epochs = 1 if data is pictures else 2
    data = data()
    ours = make().double()
    theirs = make().double()
    theirs.load_state_dict(ours.state_dict())
    run, _ = accounted(ours, data, epochs, momentum=0.9)
    sums = plain(theirs, data, epochs, momentum=0.9)
    parts = {k: [v] for k, v in members(ours).items()}
    rows = run.rows.partition_by("time")
    assert run.rows.columns == ["time", "layer", "group", "norm", "cosine", "parameters"]
    assert len(rows) == epochs + 1
    assert rows[0].select("norm", "cosine").unique().rows() == [(0, None)]
    for got, (clean, noisy) in zip(rows[1:], sums, strict=True):
        check(got.to_dicts(), clean, noisy, parts, 1e-5)


@pytest.mark.parametrize(
    "dtype, tolerance, name",
    [
        *((torch.float32, 1e-5, k) for k in NETS),
        *((torch.float64, 1e-12, k) for k in NETS if k != "resnet18"),
    ],
)
def test_training_is_the_same_with_and_without(dtype, tolerance, name):
    make, data = NETS[name]
    data = data()
    net = make()
    if dtype == torch.float32:
        data = NoisyDataset(data.x.float(), data.y, data.clean, n_classes=data.n_classes)
    nets = [make().to(dtype) for _ in range(2)]
    for n in nets:
        n.load_state_dict(net.state_dict())
    how = dict(lr=0.02, batch=16, momentum=0.9, seed=3)
    a, _ = accounted(nets[0], data, 1, **how)
    b = fit(nets[1], data, 1, **how)
    torch.testing.assert_close(
        nets[0].state_dict(), nets[1].state_dict(), rtol=tolerance, atol=tolerance
    )
    torch.testing.assert_close(a.loss, b.loss, rtol=max(tolerance, 1e-6), atol=max(tolerance, 1e-6))


@pytest.mark.parametrize("make, data", [NETS["own"], NETS["resnet9"]], ids=["own", "resnet9"])
def test_sums_are_the_displacement(make, data):
    net = make().double()
    data = data()
    was = []
    a = Accounting(data)
    for s in train(net, data, 3, times=[0, 1, 3], lr=0.01, batch=16, backward=a.backward):
        if s.time:
            torch.testing.assert_close(
                [(w - p) / 0.01 for w, p in zip(was, net.parameters(), strict=True)],
                a.total,
                rtol=1e-9,
                atol=1e-9,
            )
        was = [p.detach().clone() for p in net.parameters()]
        a.rows(s)
        assert not any(v.any() for v in a.total + a.noisy)


def test_recorded_times_within_and_across_epochs():
    data = points()
    nets = [small() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    steps = accounted(nets[0], data, times=[0, *(i / 3 for i in range(1, 7))])[1]
    parts = accounted(nets[1], data, times=[0, 1 / 3, 2])[1]
    for i in range(2):
        torch.testing.assert_close(
            parts[2][i], [sum(v) for v in zip(*(s[i] for s in steps[2:]), strict=True)]
        )
    assert len(steps) == 7
    assert len(parts) == 3


@pytest.mark.parametrize("how", [dict(mask=points().y == 0), dict(layers=["2", "0"])])
def test_a_mask_and_layers_of_ones_own(how):
    data = points()
    nets = [small() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    run, _ = accounted(nets[0], data, 1, Accounting(data, **how))
    clean, noisy = plain(nets[1], data, 1, mask=how.get("mask"))[0]
    parts = (
        {k: [v] for k, v in members(nets[0]).items()}
        if "mask" in how
        else {"2": [["2.0.weight", "2.0.bias"]], "0": [["0.weight", "0.bias"]]}
    )
    check(run.rows.filter(time=1).drop("time").to_dicts(), clean, noisy, parts)


def test_frozen_parameters_stay():
    net = small()
    data = points()
    net[0].requires_grad_(False)
    before = state(net)
    run, _ = accounted(net, data, 1)
    assert run.rows.filter(layer="0")["norm"].to_list() == [0] * 4
    assert torch.equal(net[0].weight, before["0.weight"])
    assert (run.rows.filter(time=1, layer="3")["norm"] > 0).all()


def test_batches_of_one_group_only():
    data = points(rho=0.1)
    run, sums = accounted(small(), data, 1, batch=1, times=[i / 40 for i in range(41)])
    rows = run.rows.filter(layer="3").partition_by("time")[1:]
    noisy = data.is_noisy[order(40, 0, 0)].tolist()
    for r, n in zip(rows, noisy, strict=True):
        assert (r["norm"] > 0).to_list() == [not n, n]
        assert r["cosine"].to_list() == [None, None]


def test_clipping_comes_after_it():
    data = points()
    nets = [small() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    run = accounted(nets[0], data, 1, clip=1e-9)[0]
    other = accounted(nets[1], data, 1, lr=1e-12)[0]
    assert run.rows["norm"].to_list() == pytest.approx(other.rows["norm"].to_list(), 1e-6)


@pytest.mark.parametrize("n", [39, 10])
def test_other_data_are_refused(n):
    data = points()
    net = small()
    before = state(net)
    a = Accounting(data)
    with pytest.raises(ValueError, match=f"of 40 examples, the training of {n}"):
        fit(net, data.subset(torch.arange(n)), 1, backward=a.backward, observe=[a.rows])
    assert same(state(net), before)


def go(net, folder, a):
    *_, s = train(
        net,
        points(),
        4,
        lr=0.05,
        momentum=0.9,
        batch=16,
        journal=folder,
        backward=a.backward,
        observe=[a.rows],
        each_step=[breaks],
    )
    return s.recorder.run()


@pytest.mark.parametrize("dies", [1, 3, 7, 11])  # three steps an epoch
@pytest.mark.parametrize("again", [False, True])
def test_a_journal_goes_on(tmp_path, dies, again):
    net = small()
    other = small()
    a = Accounting(points())
    start = state(net)
    other.load_state_dict(start)
    with pytest.MonkeyPatch.context() as m, pytest.raises(Killed):
        m.setenv("BREAK_AT", str(dies))
        go(net, tmp_path / "journal", a)
    net.load_state_dict(start)
    run = go(net, tmp_path / "journal", a if again else Accounting(points()))
    whole = go(other, None, Accounting(points()))
    assert run.rows.equals(whole.rows)
    assert same(state(net), state(other))


@pytest.mark.parametrize("other", [dict(mask=points().y == 0), dict(layers=["0"])])
def test_the_journal_of_another_accounting_is_refused(tmp_path, monkeypatch, other):
    net = small()
    start = state(net)
    with monkeypatch.context() as m, pytest.raises(Killed):
        m.setenv("BREAK_AT", "4")
        go(net, tmp_path / "journal", Accounting(points()))
    net.load_state_dict(start)
    with pytest.raises(ValueError, match="differs in backward, observe"):
        go(net, tmp_path / "journal", Accounting(points(), **other))


def test_used_for_a_second_training():
    data = points()
    a = Accounting(points())
    for net in (small(), small()):
        b = Accounting(data)
        other = small()
        other.load_state_dict(net.state_dict())
        assert accounted(net, data, 1, a)[0].rows.equals(accounted(other, data, 1, b)[0].rows)


def test_a_second_training_of_another_network():
    a = Accounting(points())
    accounted(small(), points(), 1, a)
    torch.manual_seed(1)
    nets = [Own().double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    rows, fresh = (
        accounted(net, points(), 1, of)[0].rows for net, of in zip(nets, (a, None), strict=True)
    )
    assert rows.equals(fresh)
    assert set(rows["layer"]) == {*members(nets[0])}
    with pytest.raises(ValueError, match="of 40 examples, the training of 39"):
        accounted(small(), points().subset(torch.arange(39)), 1, a)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision_are_summed_in_single(dtype):
    "Against sums of the same gradients in float64."
    data = points(dtype=torch.float32)
    net = nn.Linear(6, 3).to(dtype)
    accounting = Accounting(data)
    sums = [torch.zeros_like(p, dtype=torch.float64) for p in net.parameters()]

    def add(s):
        for total, p in zip(sums, net.parameters(), strict=True):
            total += p.grad

    with pytest.warns(UserWarning, match="cast"):
        run = fit(
            net,
            data,
            50,
            times=[50],
            lr=1e-6,
            batch=1,
            backward=accounting.backward,
            each_step=[add],
            observe=[lambda s: [dict(sums=v.norm().item()) for v in accounting.total]],
        )
    got = run.rows["sums"].to_list()
    torch.testing.assert_close(got, [v.norm().item() for v in sums], rtol=1e-5, atol=0)


def test_parts_of_many_batches_in_half_precision():
    data = points(n=2000, dtype=torch.float32)
    single = nn.Linear(6, 3)
    half = nn.Linear(6, 3).bfloat16()
    half.load_state_dict(single.state_dict())
    single.load_state_dict(half.state_dict())  # rounded weights
    with pytest.warns(UserWarning, match="cast"):
        got = account(half, data, batch=1)["norm"]
    expected = account(single, data, batch=1)["norm"]
    torch.testing.assert_close(got.to_list(), expected.to_list(), rtol=0.01, atol=1e-4)
