"""Training a small MLP (30,000 parameters, batches of 32) against a plain loop over a DataLoader.

The DataLoader draws from a TensorDataset, without workers, in the same order. Its optimizer is
torch's default SGD. Beside it stands the same loop with torchvision's transforms on pictures.
`deviation` is the largest difference of the parameters at the end of an epoch. The ratio of the
stacked fit is per model, of 18 at once.
"""

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms import v2

from bench import alternate, row
from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.models.networks import build
from memnb.trainer.stacked import train_stacked
from memnb.trainer.steps import order
from memnb.trainer.training import train

HOW = dict(lr=0.01, momentum=0.9, batch=32, device="cpu")
MODELS = 18


class Pictures(Dataset):
    "Digits as byte images, turned into tensors item by item."

    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.3], [0.4])]
    )

    def __init__(self, data):
        self.x = (data.x * 255).byte().movedim(1, -1).numpy()
        self.y = data.y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.transform(self.x[i]), self.y[i]


def network(data, seed: int = 0):
    return build("mlp", shape=data.x.shape[1:], widths=(32, 64, 128, 128), seed=seed)


def plain_epochs(model, dataset, epochs: int):
    "The loop that anybody would write."
    sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for epoch in range(epochs):
        for x, y in DataLoader(dataset, batch_sampler=order(len(dataset), epoch, 0).split(32)):
            sgd.zero_grad()
            F.cross_entropy(model(x), y).backward()
            sgd.step()
    return model


def single(model, data, epochs: int):
    for _ in train(model, data, epochs, times=[epochs], **HOW):
        pass
    return model


def stacked(models, data, epochs: int):
    for _ in train_stacked(models, [data] * len(models), epochs, times=[epochs], **HOW):
        pass
    return models


def largest_difference(a, b) -> float:
    "Of the parameters of two networks."
    return max(
        float((p - q).detach().abs().max())
        for p, q in zip(a.parameters(), b.parameters(), strict=True)
    )


def run(quick: bool, full: bool) -> list[dict]:
    data = corrupt(load("digits", n=1200, test_share=0)[0], 0.4, "redraw")
    tensors = TensorDataset(data.x, data.y)
    epochs = 1 if quick else 10
    rounds = 3 if quick else 7

    def plain():
        return plain_epochs(network(data), tensors, epochs)

    def plain_on_pictures():
        return plain_epochs(network(data), Pictures(data), epochs)

    def one(n: int = epochs):
        return single(network(data), data, n)

    def many(n: int = epochs):
        return stacked([network(data) for _ in range(MODELS)], data, n)

    reference = plain_epochs(network(data), tensors, 1)
    base, ours = alternate(plain, one, rounds)
    off = largest_difference(reference, one(1))
    rows = [row("DataLoader over a TensorDataset / one model", base / ours, 1.4, off)]
    base, ours = alternate(plain, many, rounds)
    off = largest_difference(reference, many(1)[0])
    name = f"DataLoader over a TensorDataset / stacked, a model of {MODELS}"
    rows.append(row(name, base / ours * MODELS, 4, off))
    base, ours = alternate(plain_on_pictures, one, rounds)
    rows.append(row("DataLoader with torchvision's transforms / one model", base / ours))
    return rows
