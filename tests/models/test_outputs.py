"Any network is asked in one way, and its logits are found wherever they are."

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer, VisionTransformer, get_model

from memnb.audit import Noise, audit, estimate_noise, repair
from memnb.datasets import NoisyDataset, corrupt, in_memory
from memnb.localization import account, critical_units, rewind
from memnb.models import Classifier, answer, hidden_groups, predict
from memnb.models.layers import first_tensor
from memnb.models.outputs import logits_of, outputs_of
from memnb.probes import probe_model, transfer
from memnb.trainer import fit
from memnb.trainer.steps import check_outputs

Z = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
LOSS = torch.tensor(0.5)


@dataclass
class Given:
    loss: torch.Tensor
    logits: torch.Tensor
    hidden: torch.Tensor


Named = namedtuple("Named", "logits aux")


@pytest.mark.parametrize(
    "out",
    [
        Z,
        (LOSS, Z),
        [Z, (LOSS, LOSS)],
        {"loss": LOSS, "logits": Z, "hidden": Z + 1},
        OrderedDict(score=Z, length=torch.tensor([1, 2])),
        Given(LOSS, Z, Z + 1),
        Named(Z, Z + 1),
    ],
)
def test_where_the_logits_are(out):
    assert torch.equal(logits_of(out, 2), Z)


def test_one_number_an_example_is_a_column():
    assert logits_of(torch.tensor([1.0, -1]), 2).tolist() == [[1.0], [-1.0]]


def test_half_precision_comes_out_as_float32():
    assert logits_of(Z.to(torch.bfloat16), 2).dtype == torch.float32


@pytest.mark.parametrize(
    "out, error, says",
    [
        ({"coarse": Z, "fine": Z}, ValueError, "coarse.*fine.*output='coarse'"),
        ({"loss": LOSS}, TypeError, "with loss; it must give"),
        ("word", TypeError, "'word'"),
        (None, TypeError, "None"),
        ((LOSS, LOSS), TypeError, "tensor of logits"),
        ((Z[:, :2], Z), ValueError, r"0 \(2, 2\), 1 \(2, 3\), and each.*output=0"),
        ([Z, Z[:, 0]], ValueError, "each could be the logits"),
        (dict(hidden=Z, out=Z[:, 0]), ValueError, r"hidden \(2, 3\), out \(2,\)"),
        (Z.T, ValueError, r"\(3, 2\) for 2 inputs, of torch.float32.*\(2, K\)"),
        (Z[0], ValueError, r"\(3,\) for 2 inputs"),
        (Z[:, :, None, None], ValueError, "Classifier"),
        (dict(logits=Z[:, None]), ValueError, r"\(2, 1, 3\)"),
        (Z.argmax(1), ValueError, "torch.int64"),
        (Z.long(), ValueError, "torch.int64"),
    ],
)
def test_where_there_are_none(out, error, says):
    with pytest.raises(error, match=says):
        logits_of(out, 2)


def test_a_squeezed_example_is_not_mistaken_for_its_features():
    features = torch.ones(1, 8)
    with pytest.raises(ValueError, match="each could be the logits"):
        logits_of((torch.zeros(3), features), 1)


@pytest.mark.parametrize("output", [0, "logits", -1])
def test_no_example_is_taken_for_a_part(output):
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"names a part, and the model gives one tensor \(2, 2\)"):
        answer(Classifier(net, output), Z)


class TwoHeads(nn.Module):
    "Gives the second head's logits in training alone."

    def __init__(self):
        super().__init__()
        self.main = nn.Linear(3, 2)
        self.second = nn.Linear(3, 2)

    def forward(self, x):
        return (self.main(x), self.second(x)) if self.training else self.main(x)


def test_a_part_of_what_is_given_in_training_is_all_of_it_in_evaluation():
    net = TwoHeads()
    with pytest.raises(ValueError, match=r"say which by Classifier\(model, output=0\)"):
        answer(net, Z)
    as_told = Classifier(net, output=0)
    assert torch.equal(answer(as_told, Z), net.main(Z))
    assert torch.equal(answer(as_told.eval(), Z), net.main(Z))


@pytest.mark.parametrize("output", [1, "second"])
def test_another_part_is_not_there_in_evaluation(output):
    with pytest.raises(ValueError, match="give a function that takes either"):
        answer(Classifier(TwoHeads(), output).eval(), Z)


def test_a_network_of_two_heads_is_trained_as_it_is_told():
    x = torch.randn(8, 3)
    data = NoisyDataset(x, torch.arange(8) % 2)
    run = fit(Classifier(TwoHeads(), output=0), data, 2)
    assert torch.isfinite(run.loss).all()


class Several(nn.Module):
    def forward(self, x):
        return {"coarse": x[:, :2], "fine": (x, x + 1)}


@pytest.mark.parametrize(
    "output, expected", [("coarse", Z[:, :2]), (lambda out: out["fine"][1], Z + 1)]
)
def test_the_part_that_is_named(output, expected):
    assert torch.equal(answer(Classifier(Several(), output), Z), expected)


def test_a_part_that_is_not_there():
    with pytest.raises(ValueError, match="output='logits' is not there.*coarse.*fine"):
        answer(Classifier(Several(), "logits"), Z)


def test_floats_take_the_type_of_the_weights():
    net = nn.Linear(3, 2)
    assert torch.allclose(answer(net, Z.double()), net(Z))
    assert torch.allclose(answer(net.double(), Z), net(Z.double()))


# --- whole networks: what can be asked of one can be asked of all

K = 3


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(60, 12)
        self.rnn = nn.LSTM(12, 12, batch_first=True)
        self.out = nn.Linear(12, K)

    def forward(self, x):
        states, _ = self.rnn(self.words(x))
        return self.out(states[:, -1]), states


class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.bag = nn.EmbeddingBag(60, 12)
        self.hidden = nn.Linear(12, 12)
        self.out = nn.Linear(12, K)

    def forward(self, x):
        return self.out(self.hidden(self.bag(x)).relu())


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(60, 12)
        layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(12, K)

    def forward(self, input_ids, attention_mask):
        padded = attention_mask == 0
        states = self.encoder(self.words(input_ids), src_key_padding_mask=padded)
        return {"logits": self.out(states.mean(1)), "states": states}


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=K,
        max_position_embeddings=16,
    )
    return transformers.BertForSequenceClassification(config)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(60, 8)
        self.out = nn.Linear(12, K)

    def forward(self, ids, numbers):
        return self.out(torch.cat([self.words(ids).mean(1), numbers], 1))


def _noisy(x, y):
    return corrupt(NoisyDataset(x, y, y, n_classes=K), 0.2, "wrong")


def pictures(n=40, size=32):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, K, (n,), generator=g)
    return _noisy(torch.rand(n, 3, size, size, generator=g) + 0.3 * y[:, None, None, None], y)


def words(form, n=40):
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, K, (n,), generator=g)
    ids = torch.randint(1, 60, (n, 10), generator=g)
    ids[:, :4] = 15 * y[:, None] + torch.randint(1, 15, (n, 4), generator=g)
    mask = (torch.arange(10) < torch.randint(5, 11, (n, 1), generator=g)).long()
    ids = ids * mask
    forms = dict(
        ids=ids,
        named=in_memory({"input_ids": ids, "attention_mask": mask}),
        pair=in_memory((ids, torch.randn(n, 4, generator=g))),
    )
    return _noisy(forms[form], y)


def vision(name, **how):
    return lambda: get_model(name, weights=None, num_classes=K, **how)


def vit():
    "As torchvision's vit_b_16, narrow and of a third of its layers."
    return VisionTransformer(
        32, 16, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=K
    )


def swin():
    "As torchvision's swin_t, a quarter as wide and of two thirds of its layers."
    return SwinTransformer(
        [4, 4], 24, [2, 2, 2, 2], [1, 2, 4, 8], window_size=[7, 7], num_classes=K
    )


NETWORKS = dict(
    resnet18=(vision("resnet18"), pictures),
    densenet121=(vision("densenet121"), pictures),
    vit=(vit, pictures),
    swin=(swin, pictures),
    convnext_tiny=(vision("convnext_tiny"), pictures),
    mobilenet_v3_small=(vision("mobilenet_v3_small"), pictures),
    googlenet=(vision("googlenet", init_weights=False), lambda: pictures(size=64)),
    lstm=(Recurrent, lambda: words("ids")),
    bag=(Bag, lambda: words("ids")),
    encoder=(Encoder, lambda: words("named")),
    bert=(bert, lambda: words("named")),
    two_inputs=(TwoInputs, lambda: words("pair")),
    parallel=(lambda: nn.DataParallel(vision("resnet18")()), pictures),
    compiled=(lambda: torch.compile(Recurrent(), backend="eager"), lambda: words("ids")),
    bfloat16=(lambda: vision("resnet18")().to(torch.bfloat16), pictures),
)
LARGE = dict(
    vit_b_16=(vision("vit_b_16", image_size=32), pictures),
    swin_t=(vision("swin_t"), pictures),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_probes_and_heads_of_any_network(name):
    torch.manual_seed(0)
    make, of = NETWORKS[name]
    net = make()
    data = of()
    hidden = hidden_groups(net, data.x)
    rows = probe_model(net, data, layers=hidden[-2:], probes=["velpic"], groups=["clean"])
    better = transfer(net, data)
    assert len(hidden) >= 1
    assert {row["layer"] for row in rows} == {"output", *hidden[-2:]}
    assert predict(better, data.x).shape == (len(data), K)
    assert account(net, data)["parameters"].sum() >= 2 * sum(p.numel() for p in net.parameters())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in (NETWORKS | LARGE) if n not in ("vit", "swin")])
def test_an_audit_of_any_network(name):
    torch.manual_seed(0)
    make, of = (NETWORKS | LARGE)[name]
    net = make()
    data = of()
    found = audit(net, data)
    assert found["rank"].sort().to_list() == list(range(1, len(data) + 1))
    assert found["sure"].is_finite().all()
    assert 0 <= estimate_noise(net, data).rate <= 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    ["vit", "swin", "mobilenet_v3_small", "googlenet", "lstm", "encoder", "bert", "two_inputs"],
)
def test_a_repair_of_any_network(name):
    torch.manual_seed(0)
    make, of = NETWORKS[name]
    net = make()
    examples = of()
    data = examples.subset(torch.arange(20))
    held = examples.subset(torch.arange(20, 40))
    last = hidden_groups(net, data.x)[-1:]
    noise = Noise(0.2, 0.1, 0.3, 0.7 * torch.eye(K).double() + 0.3 / K)
    r = repair(net, data, held, noise, layers=last, probes=["velpic"])
    assert r.table["layer"][0] == "output"
    assert last[0] in r.table["layer"].to_list()
    assert r.table["accuracy"].is_between(0, 1).all()
    assert predict(r.model, data.x).shape == (20, K)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["resnet18", "encoder", "bert"])
def test_units_of_any_network(name):
    torch.manual_seed(0)
    make, of = NETWORKS[name]
    net = make()
    data = of()
    fit(net, data, 2, lr=0.01, batch=16, device="cpu")
    rows = critical_units(net, data, [0, 1], check=0, most=3)
    place = "input" if name == "resnet18" else rows["noise"][0]
    assert rows["row"].to_list() == [0, 1]
    assert place in ("input", "words", "bert.embeddings.word_embeddings")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["googlenet", "lstm", "encoder", "bert", "two_inputs"])
def test_training_and_rewinding_of_any_network(name):
    torch.manual_seed(0)
    make, of = NETWORKS[name]
    net = make()
    data = of()
    run = fit(net, data, 2, lr=0.01, batch=16, checkpoints=[0, 2], device="cpu")
    rows = rewind(run, data, model=net)
    assert run.prediction.shape[1] == len(data)
    assert rows["time"].n_unique() == 2


def test_training_on_several_inputs_against_a_plain_loop():
    torch.manual_seed(0)
    net = Encoder()
    data = words("named")
    plain = Encoder()
    plain.load_state_dict(net.state_dict())
    batch = data.x.batch()
    sgd = torch.optim.SGD(plain.parameters(), lr=0.1)
    for _ in range(3):
        sgd.zero_grad()
        nn.functional.cross_entropy(plain(**batch)["logits"], data.y).backward()
        sgd.step()
    fit(net, data, 3, lr=0.1, batch=None, device="cpu")
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_head_of_one_logit_answers_as_one_of_two():
    g = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (80,), generator=g)
    data = NoisyDataset(torch.randn(80, 6, generator=g) + y[:, None], y)
    two = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    one = nn.Sequential(two[0], nn.ReLU(), nn.Linear(8, 1))
    logits = predict(transfer(two, data), data.x)
    assert torch.allclose(
        predict(transfer(one, data), data.x)[:, 0], logits[:, 1] - logits[:, 0], atol=1e-5
    )


@pytest.mark.parametrize("k", [1, 3])
def test_a_network_that_squeezes_its_answer(k):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, k))
    squeezed = Classifier(net, output=torch.squeeze)
    x = torch.randn(9, 6)
    assert torch.equal(predict(squeezed, x, batch=4), predict(net, x, batch=4))


class _InPlace(nn.Module):
    "Normalises its inputs where they lie."

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, x):
        return self.body(x.sub_(0.5).mul_(2))


def test_a_network_that_changes_its_inputs_leaves_the_data_as_they_are():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(90, 6, generator=g)
    y = torch.arange(90) % 3
    net = _InPlace()
    given = x.clone()
    found = audit(net, NoisyDataset(x, y))
    noise = estimate_noise(net, NoisyDataset(x, y))
    assert torch.equal(x, given)
    expected = net(given.clone()).argmax(1)
    assert found["predicted"].to_list() == expected.tolist()
    assert noise.agreement == (expected == y).double().mean().item()


@pytest.mark.parametrize("wrap", [lambda v: v[..., None], lambda v: {"out": {"deep": v}}])
def test_answers_that_are_no_logits_name_the_remedy(wrap):
    class Odd(nn.Linear):
        def forward(self, x):
            return wrap(super().forward(x))

    data = NoisyDataset(torch.randn(6, 4), torch.arange(6) % 3)
    net = Odd(4, 3)
    with pytest.raises((ValueError, TypeError), match=r"Classifier\(model, output=function\)"):
        check_outputs(net, data)
    flat = Classifier(net, output=lambda out: first_tensor(out).reshape(-1, 3))
    assert check_outputs(flat, data).n_classes == 3


@pytest.mark.parametrize("token, spans", [(50, "from 0 to 50"), (-1, "from -1 to 0")])
def test_tokens_beyond_the_vocabulary_are_said(token, spans):
    net = nn.Sequential(nn.Embedding(50, 4), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(
        ValueError, match=f"{spans}, and the network's largest embedding takes 0 to 49"
    ):
        outputs_of(net, torch.tensor([[0, token]]))


def test_an_index_error_of_the_network_s_own_stays_what_it_is():
    class Own(nn.Module):
        def forward(self, x):
            return [][3]

    with pytest.raises(IndexError, match="list index"):
        outputs_of(Own(), torch.zeros(1, 2))
