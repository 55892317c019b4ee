"The package's face; every analysis on networks that are not memnb's."

from dataclasses import replace

import polars as pl
import pytest
import torch
import torchvision
from torch import nn

from memnb import localization
from memnb.datasets.label_noise import corrupt
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization import (
    Accounting,
    TiedDropout,
    account,
    accounting,
    by_mode,
    critical_units,
    detection,
    label_evidence,
    mislabel_scores,
    remembered,
    retrain,
    retraining_scores,
    rewind,
    rewinding,
    scores,
    token_probes,
    unit_masks,
    unit_search,
)
from memnb.localization import tied_dropout as tied
from memnb.models.evaluation import examples, predict
from memnb.models.structure import layer_groups
from memnb.trainer import training as trainer

FROM = {
    accounting: ["Accounting", "account"],
    rewinding: ["retrain", "rewind"],
    unit_masks: ["Masked", "unit_layers"],
    unit_search: ["critical_units"],
    label_evidence: ["layer_evidence", "layer_opinions", "layer_scores"],
    tied: ["SparseChannels", "StandardDropout", "TiedDropout", "by_mode", "remembered"],
    scores: ["detection", "mislabel_scores", "prediction_depth"],
    retraining_scores: ["leave_out_memorization", "second_split_forgetting"],
    token_probes: ["token_evidence"],
}


@pytest.mark.parametrize("module, names", FROM.items(), ids=lambda v: getattr(v, "__name__", ""))
def test_names_are_those_of_their_modules(module, names):
    for n in names:
        assert getattr(localization, n) is getattr(module, n)
        assert n in module.__all__


def test_nothing_else_is_exported():
    assert sorted(localization.__all__) == sorted(sum(FROM.values(), []))


def resnet():
    return torchvision.models.resnet18(num_classes=10)


def vit():
    return torchvision.models.vision_transformer.VisionTransformer(
        image_size=16,
        patch_size=8,
        num_layers=1,
        num_heads=2,
        hidden_dim=16,
        mlp_dim=16,
        num_classes=10,
    )


GROUPS = {
    resnet: ["conv1", "bn1", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)), "fc"],
    vit: [
        "(root)",
        "conv_proj",
        "encoder.(root)",
        *(f"encoder.layers.encoder_layer_0.{k}" for k in ("ln_1", "self_attention", "ln_2", "mlp")),
        "encoder.ln",
        "heads",
    ],
}
TIED = {resnet: ["bn1", "layer3.1"], vit: ["encoder", "encoder.layers.encoder_layer_0.mlp"]}
REWOUND = {resnet: ["conv1", "layer4.1", "fc"], vit: ["(root)", "encoder", "heads"]}


def data():
    torch.manual_seed(0)
    return corrupt(
        NoisyDataset(
            torch.randn(30, 3, 16, 16),
            torch.arange(30) % 10,
            torch.arange(30) % 10,
            torch.arange(30) + 100,
        ),
        0.2,
        "wrong",
    )


@pytest.fixture(scope="module", params=GROUPS, ids=lambda v: v.__name__)
def case(request):
    "A run of two epochs with accounting, its network, and a skeleton of other weights."
    make = request.param
    d = data()
    torch.manual_seed(1)
    net = make()
    skeleton = make()
    ledger = Accounting(d)
    run = trainer.fit(
        net,
        d,
        2,
        d,
        times=[0, 1, 2],
        checkpoints=[0, 1, 2],
        batch=10,
        lr=0.02,
        momentum=0.9,
        device="cpu",
        backward=ledger.backward,
        observe=[ledger.rows],
    )
    return make, d, run, net.eval(), skeleton


def test_parts_of_a_network(case):
    assert layer_groups(case[3]) == GROUPS[case[0]]


def test_accounting(case):
    make, d, run, net, _ = case
    still = account(net, d, layer_groups(net))
    assert still["layer"].unique(maintain_order=True).to_list() == GROUPS[make]
    assert still["norm"].is_finite().all()
    assert still["parameters"].sum() >= 2 * sum(p.numel() for p in net.parameters())
    z = net(d.x)
    for group, rows in (("noisy", d.is_noisy), ("clean", ~d.is_noisy)):
        g = torch.autograd.grad(
            nn.functional.cross_entropy(z[rows], d.y[rows], reduction="sum") / 30,
            [p for k, p in net.named_parameters() if k.startswith(GROUPS[make][-1])],
            retain_graph=True,
        )
        owner = account(net, d, ["fc" if make is resnet else "heads.head"]).filter(group=group)
        assert owner["norm"].item() == pytest.approx(
            (sum(v.square().sum() for v in g) / sum(v.numel() for v in g)).sqrt().item(), rel=1e-4
        )
    online = run.rows.filter(pl.col("time") > 0)
    assert set(online["time"]) == {1, 2}
    assert online["norm"].is_finite().all()
    assert online["norm"].max() > 0
    assert online["cosine"].drop_nulls().is_between(-1.001, 1.001).all()


def test_accounting_is_training_as_always(case):
    "In float64: batch normalisation over single pixels makes much of rounding."
    make = case[0]
    d = replace(case[1], x=case[1].x.double())
    ledger = Accounting(d)
    runs = []
    for how in ({}, dict(backward=ledger.backward, observe=[ledger.rows])):
        torch.manual_seed(1)
        runs.append(
            trainer.fit(
                make().double(),
                d,
                1,
                times=[0, 1],
                batch=10,
                lr=0.02,
                momentum=0.9,
                device="cpu",
                **how,
            )
        )
    torch.testing.assert_close(runs[0].loss, runs[1].loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("convention", rewinding.CONVENTIONS)
def test_rewinding(case, convention):
    make, d, run, net, skeleton = case
    f = rewind(run, d, REWOUND[make], convention=convention, model=skeleton)
    assert f.height == 3 * 3 * 2
    assert f["accuracy"].is_between(0, 1).all()
    if convention == "reestimated" and make is resnet:
        return
    hit = predict(net, d.x).argmax(1) == d.y
    for layer in REWOUND[make]:  # put back to the end, everything is as it was
        assert f.filter(layer=layer, time=2)["accuracy"].to_list() == [
            hit[~d.is_noisy].double().mean().item(),
            hit[d.is_noisy].double().mean().item(),
        ]
    assert f.equals(
        rewind(run, d, REWOUND[make], convention=convention, model=skeleton, cache=False)
    )


def inside(key: str, layer: str) -> bool:
    "Whether a parameter is one of a layer's, or of the root's own."
    return "." not in key if layer == "(root)" else key.startswith(f"{layer}.")


def test_rewinding_by_hand(case):
    make, d, run, net, skeleton = case
    for layer in REWOUND[make]:
        skeleton.load_state_dict(
            {k: run.checkpoints[0 if inside(k, layer) else 2][k] for k in run.checkpoints[2]}
        )
        hit = predict(skeleton, d.x).argmax(1) == d.y
        assert rewind(run, d, [layer], [0], "buffers", model=make())["accuracy"].to_list() == [
            hit[~d.is_noisy].double().mean().item(),
            hit[d.is_noisy].double().mean().item(),
        ]


def test_retraining(case):
    make, d, run, net, skeleton = case
    seen = []
    layers = [REWOUND[make][0], REWOUND[make][-1]]
    f = retrain(
        run,
        d,
        layers,
        epochs=1,
        batch=10,
        model=skeleton,
        look=lambda layer, anew: seen.append((layer, anew)),
    )
    assert f["layer"].unique(maintain_order=True).to_list() == layers == [k for k, _ in seen]
    assert set(f["time"]) == {0, 1}
    assert f["accuracy"].is_between(0, 1).all()
    trained = dict(net.named_parameters())
    for layer, anew in seen:
        for k, p in anew.named_parameters():
            assert torch.equal(p, trained[k]) != inside(k, layer), k


def test_units_and_scores(case):
    make, d, run, net, skeleton = case
    units = critical_units(net, d, [0, 5, 7, 11], mode="shared", copies=1, check=8, most=10)
    assert units["index"].to_list() == [100, 105, 107, 111]
    assert set(units["outcome"]) <= {
        "flipped",
        "kept",
        "misclassified",
    }
    assert set(units.explode("layer", empty_as_null=True)["layer"].drop_nulls()) <= set(
        unit_masks.unit_layers(net, d.x)
    )
    f = mislabel_scores(
        run, d, net, units, k=5, layers=["input", *[g for g in REWOUND[make] if g != "(root)"]]
    )
    assert len(f) == 30
    assert f["prediction_depth"].is_between(0, 4).all()
    assert f["probe_disagreement"].is_between(0, 1).all()
    assert f["noisy"].sum() == 6
    assert set(detection(f)["score"]) == set(f.columns) & set(scores.SCORES)
    assert detection(f)["auc"].drop_nulls().is_between(0, 1).all()
    assert mislabel_scores(run, d, net, k=5)["prediction_depth"].max() <= len(GROUPS[make]) + 1


def test_tied_dropout(case):
    make, d, *_ = case
    torch.manual_seed(2)
    net = make()
    put = TiedDropout(net, TIED[make], 0.4, 0.3)
    run = trainer.fit(
        net, d, 1, d, times=[0, 1], batch=10, lr=0.02, device="cpu", observe=[remembered(put)]
    )
    rows = by_mode(net, put, d, d)
    assert rows == run.rows.filter(time=1).drop("time").to_dicts()
    assert {(r["mode"], r["group"]) for r in rows} == {
        (m, g) for m in ("own", "drop") for g in ("clean", "noisy", "test")
    }
    with pytest.raises(RuntimeError, match="index"):
        net.eval()(d.x)
    own = predict(net, d.x, index=d.index)
    with put.using("drop"):
        dropped = predict(net, d.x, index=d.index)
    with examples(None):
        strange = predict(net, d.x)
    assert torch.equal(dropped, strange)
    assert not torch.equal(own, dropped)
    assert torch.equal(own.argmax(1).to(torch.int16), run.prediction[-1])
    put.remove()
    assert predict(net, d.x).isfinite().all()
