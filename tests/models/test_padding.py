"Padding of texts does not count, compared with a plain masked mean."

import pytest
import torch
from torch import nn

from memnb.audit import audit, estimate_noise
from memnb.datasets import NoisyDataset
from memnb.datasets.inputs import in_memory
from memnb.models.features import layer_features
from memnb.models.layers import activations, real_tokens, without_padding
from memnb.probes import probe_model, transfer

pytestmark = pytest.mark.filterwarnings("ignore:the inputs are token ids")
N, WORDS = 90, 60


def texts(length: int) -> tuple[dict, torch.Tensor]:
    "Texts of 4 to 12 words, of which class c uses those of its third more often."
    g = torch.Generator().manual_seed(0)
    y = torch.arange(N) % 3
    ids = torch.zeros(N, length, dtype=torch.int64)
    for i in range(N):
        words = int(torch.randint(4, 13, (1,), generator=g))
        own = 1 + 20 * int(y[i]) + torch.randint(0, 19, (words,), generator=g)
        any_word = torch.randint(1, WORDS, (words,), generator=g)
        ids[i, :words] = torch.where(torch.rand(words, generator=g) < 0.6, own, any_word)
    return dict(input_ids=ids, attention_mask=(ids > 0).long()), y


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=WORDS + 1,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=3,
    )
    torch.manual_seed(0)
    return transformers.BertForSequenceClassification(config).eval()


class Encoder(nn.Module):
    "Reads token ids alone; 0 is padding."

    def __init__(self, padding_idx: int | None = 0):
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(WORDS + 1, 8, padding_idx=padding_idx)
        self.hidden = nn.Linear(8, 12)
        self.out = nn.Linear(12, 3)

    def forward(self, ids):
        real = (ids != 0)[..., None]
        h = self.hidden(self.words(ids)).relu()
        return self.out((h * real).sum(1) / real.sum(1))


def bert_data(length: int) -> NoisyDataset:
    batch, y = texts(length)
    return NoisyDataset(in_memory(batch), y, n_classes=3)


def plain_data(length: int) -> NoisyDataset:
    batch, y = texts(length)
    return NoisyDataset(batch["input_ids"], y, n_classes=3)


def masked_mean(model, data, layer, mask) -> torch.Tensor:
    "By a hook of torch and a loop over the texts."
    kept = []
    module = model.get_submodule(layer.removesuffix(".input"))
    if layer.endswith(".input"):
        handle = module.register_forward_pre_hook(lambda m, args: kept.append(args[0]))
    else:
        handle = module.register_forward_hook(lambda m, args, out: kept.append(out))
    batch = data.x if isinstance(data.x, torch.Tensor) else data.x.batch()
    with torch.no_grad():
        model(**batch) if isinstance(batch, dict) else model(batch)
    handle.remove()
    return torch.stack([v[m].mean(0) for v, m in zip(kept[0], mask.bool(), strict=True)])


CASES = {
    "bert": (bert, bert_data, "bert.encoder.layer.1.output.dense"),
    "encoder": (Encoder, plain_data, "hidden"),
    "encoder's input": (Encoder, plain_data, "hidden.input"),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def features_of(model, data, layer) -> torch.Tensor:
    pools = {(layer, "all"): lambda v: v.flatten(1)}
    with layer_features(model, data.x, pools, 32) as features:
        return features[layer, "all"].rows(slice(None))


@pytest.mark.parametrize("length", [16, 64])
def test_features_are_masked_means(case, length):
    make, data_of, layer = case
    model = make()
    data = data_of(length)
    mask = texts(length)[0]["attention_mask"]
    expected = masked_mean(model, data, layer, mask)
    torch.testing.assert_close(features_of(model, data, layer), expected, rtol=1e-4, atol=1e-5)


def test_activations_of_probes_are_masked_means(case):
    make, data_of, layer = case
    model = make()
    mask = texts(16)[0]["attention_mask"]
    expected = masked_mean(model, data_of(16), layer, mask)
    for length in (16, 64):
        parts = activations(model, data_of(length).x, [layer], 32, averaged=True)
        got = torch.cat([part[layer] for _, part in parts])
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "encoder"])
def test_the_audit_does_not_depend_on_padding(name):
    make, data_of, layer = CASES[name]
    model = make()
    short, long = (audit(model, data_of(length)) for length in (16, 64))
    assert short["rank"].to_list() == long["rank"].to_list()
    assert short["suggested"].to_list() == long["suggested"].to_list()
    torch.testing.assert_close(short["sure"].to_torch(), long["sure"].to_torch(), rtol=0, atol=1e-4)
    rates = [estimate_noise(model, data_of(length)).rate for length in (16, 64)]
    assert abs(rates[0] - rates[1]) < 1e-6


@pytest.mark.parametrize("name", ["bert", "encoder"])
def test_probes_and_a_head_on_tokens_do_not_depend_on_padding(name):
    make, data_of, layer = CASES[name]
    model = make()
    rows = [
        probe_model(model, data_of(length), layers=[layer], groups=["clean"]) for length in (16, 64)
    ]
    assert [r["accuracy"] for r in rows[0]] == [r["accuracy"] for r in rows[1]]
    cut = transfer(model, data_of(16), layer)
    with torch.no_grad():
        answers = []
        for length in (16, 64):
            x = data_of(length).x
            batch = x if isinstance(x, torch.Tensor) else x.batch()
            answers.append(cut(**batch) if isinstance(batch, dict) else cut(batch))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)


def test_without_a_mask_all_tokens_count():
    model = Encoder(padding_idx=None)
    ids = plain_data(16).x
    assert real_tokens(model, ids) is None
    got = features_of(model, plain_data(16), "hidden")
    assert got.shape == (N, 16 * 12)


@pytest.mark.parametrize(
    "batch, expected",
    [
        (
            dict(a=torch.tensor([[1, 0]]), attention_mask=torch.tensor([[1.0, 0.0]])),
            [[True, False]],
        ),
        (dict(a=torch.tensor([[1, 0]]), attention_mask=torch.zeros(1, 1, 2, 2)), None),
        ((torch.tensor([[1, 0]]), torch.tensor([[0, 2]])), None),  # which of them are the words?
        (torch.tensor([[1.0, 0.0]]), None),
        ((torch.tensor([[1, 0]]), torch.tensor([4])), [[True, False]]),
    ],
)
def test_what_says_which_tokens_are_real(batch, expected):
    real = real_tokens(Encoder(), batch)
    assert (None if real is None else real.tolist()) == expected


def test_a_text_without_words_and_numbers_that_are_not_finite():
    value = torch.tensor([[[1.0], [3.0]], [[5.0], [torch.nan]]])
    real = torch.tensor([[False, False], [True, False]])
    model = nn.Sequential(nn.Linear(1, 1))
    assert without_padding(model, "0", value, real).tolist() == [[2.0], [5.0]]


def test_channels_before_tokens_and_layers_of_another_length():
    model = nn.Sequential(nn.Conv1d(2, 3, 1))
    value = torch.randn(4, 3, 5)
    real = torch.rand(4, 5) > 0.5
    real[:, 0] = True
    expected = torch.stack([v[:, m].mean(1) for v, m in zip(value, real, strict=True)])
    torch.testing.assert_close(without_padding(model, "0", value, real), expected)
    shorter = torch.randn(4, 3, 2)
    assert without_padding(model, "0", shorter, real) is shorter
