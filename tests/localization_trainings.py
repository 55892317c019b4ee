"The trainings of the localization notebooks, for tests of what is made of them."

from functools import partial

from torch import Tensor, nn

from memnb.datasets import NoisyDataset, corrupt, load
from memnb.lab.experiments import each, expect
from memnb.lab.parameters import Params
from memnb.localization import Accounting, TiedDropout
from memnb.models import build, layer_groups
from memnb.papers import localization
from memnb.runs.run import Run
from memnb.trainer import fit
from memnb.trainer.steps import pick_device


def prepare(p: Params, rho: float) -> tuple[NoisyDataset, NoisyDataset]:
    "Training data, with noise if `rho` is above 0, and test data."
    how = dict(n=p.n, test_share=p.test_share, seed=p.noise_seed, device=pick_device("auto"))
    train, test = load(p.dataset, scale="symmetric", **how)
    return corrupt(train, rho, p.noise, p.noise_seed) if rho else train, test


def network(p: Params, data: NoisyDataset, seed: int) -> dict:
    "Name and arguments of the network."
    return localization.localization_network(p, data.x.shape[1:], data.n_classes, seed)


def _call(
    p: Params,
    data: NoisyDataset,
    test: NoisyDataset,
    seed: int,
    mask: Tensor | None = None,  # (n,) bool; default: the noisy examples
    what: dict | None = None,  # is attached
) -> partial:
    model = network(p, data, seed)
    net = build(**model)
    attached = localization.attach(net, what, seed)
    epochs = localization.checkpoint_epochs(p)
    how = localization.localization_settings(p) | dict(times=epochs, seed=seed)
    if attached is None:
        ledger = Accounting(data, mask, layer_groups(net))
        how |= dict(times=range(p.epochs + 1), checkpoints=epochs)
        how |= dict(backward=ledger.backward, observe=[ledger.rows])
    elif isinstance(attached, TiedDropout):
        how |= dict(observe=[localization.memory_modes(attached, mask)])
    return partial(fit, net, data, p.epochs, test, config=dict(model=model), **how)


def trained(
    p: Params,
    data: NoisyDataset,
    test: NoisyDataset,
    seed: int,
    mask: Tensor | None = None,
    what: dict | None = None,
) -> tuple[Run, nn.Module, TiedDropout | None]:
    "The run, the trained network, and what is attached to it."

    def experiment(seed):
        return _call(p, data, test, seed, mask, what)

    (run,) = each(p, experiment, seed=[seed]).values()
    net = build(**network(p, data, seed))
    attached = localization.attach(net, what, seed)
    net.load_state_dict(run.checkpoints[max(run.checkpoints)])
    return run, net.to(data.x.device).eval(), attached


def expected(p: Params, runs: int) -> str:
    "What a notebook says before so many trainings."
    data, test = prepare(p, p.rho)

    def experiment(seed):
        return _call(p, data, test, seed)

    return expect(p, experiment, seed=range(runs))
