"Trainings of modular networks, as the notebooks make them, for tests of what is made of them."

from memnb.datasets import NoisyDataset
from memnb.models import ModularNet
from memnb.modular import operation_table
from memnb.papers.modular import HELD
from memnb.papers.modular_measures import freeze_first_layer, views_of
from memnb.trainer import fit

P = 13
WIDTH = 65
SHARE = 0.8


def pairs(
    rho: float, operation: str = "add", p: int = P
) -> tuple[NoisyDataset, NoisyDataset, NoisyDataset]:
    "Training pairs and held-out ones, both with noise, and test pairs."
    table, test = operation_table(p, operation, SHARE + HELD, rho, noise="wrong")
    train, held = table.split(HELD / (SHARE + HELD), 0)
    return train, held, test


def trained(
    train: NoisyDataset, seed: int = 0, frozen: bool = False, epochs: int = 300, **other
) -> ModularNet:
    "A network that was trained on a table; frozen, it is the control of `modular_extraction`."
    net = ModularNet(train.n_classes, **dict(width=WIDTH, seed=seed) | other)
    how = dict(lr=1e-3, weight_decay=0.1)
    if frozen:
        net = freeze_first_layer(net)
        how = dict(lr=1e-2, weight_decay=0.0)
    fit(net, train, epochs, times=[epochs], batch=None, optimizer="adamw", device="cpu", **how)
    return net


def views(rho: float, operation: str = "add", seed: int = 0, p: int = P, **other):
    "The five views of `modular_extraction`."
    train = pairs(rho, operation, p)[0]
    nets = (trained(train, seed, frozen, **other) for frozen in (False, True))
    untrained = ModularNet(p, other.get("width", WIDTH), seed=seed)
    return views_of(*nets, untrained, train, operation, seed)
