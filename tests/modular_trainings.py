"The trainings of the modular notebooks, for tests of what is made of them."

from functools import partial

import polars as pl

from memnb.datasets import NoisyDataset, corrupt
from memnb.lab.experiments import cases_of, each
from memnb.lab.parameters import Params
from memnb.models import ModularNet, build
from memnb.modular import fit_modular, operation_table
from memnb.modular.fourier import ResidueView
from memnb.papers import modular
from memnb.papers.modular import HELD
from memnb.runs.run import Run
from memnb.trainer import fit


def prepare(
    p: Params, rho: float, operation: str | None = None
) -> tuple[NoisyDataset, NoisyDataset, NoisyDataset]:
    "Training pairs and held-out ones, both with noise, and test pairs."
    share = p.share + HELD
    operation = operation or p.operation
    table, test = operation_table(
        p.modulus, operation, share, rho, noise=p.noise, seed=p.noise_seed
    )
    return *table.split(HELD / share, p.noise_seed), test


def trained(
    p: Params, rho: float, seed: int, frozen: bool = False, watch: bool = False, **other
) -> tuple[Run, ModularNet]:
    "One run and its network; `other`: operation, width or weight decay in place of `p`'s."
    how = {k: other.get(k, p[k]) for k in ("operation", "width", "weight_decay")}
    model = dict(name="modular", p=p.modulus, width=how["width"], activation=p.activation)

    def experiment(rho, seed):
        train, _, test = prepare(p, rho, how["operation"])
        net = build(**model, seed=seed)
        if frozen:
            net = modular.freeze_first_layer(net)
        settings = dict(lr=p.lr, weight_decay=how["weight_decay"], device="cpu")
        if watch:
            settings |= dict(observe=[modular.inside(how["operation"], train, test)])
        else:
            settings |= dict(times=[0, p.epochs])
        return partial(fit_modular, net, train, p.epochs, test, **settings)

    (run,) = each(p, experiment, rho=[rho], seed=[seed]).values()
    return run, run.at(p.epochs, build(**model, seed=seed))


def summary(p: Params, rho: float, seed: int, net: ModularNet) -> pl.DataFrame:
    "What the projections of a network and of one with frozen features answer on test pairs."
    nets = {"extracted": net, "extracted, frozen": trained(p, rho, seed, frozen=True)[1]}
    rows = modular.projections(nets, p.operation, prepare(p, rho)[2])
    return rows.with_columns(rho=pl.lit(rho), seed=pl.lit(seed), epoch=pl.lit(float(p.epochs)))


def views(p: Params, rho: float, seed: int, operation: str) -> dict[str, ResidueView]:
    "The trained network and its controls."
    net, frozen = (trained(p, rho, seed, f, operation=operation)[1] for f in (False, True))
    untrained = ModularNet(p.modulus, p.width, p.activation, seed)
    train = prepare(p, rho, operation)[0]
    return modular.views_of(net, frozen, untrained, train, operation, seed)


def extractions(p: Params, rho: float, seed: int, operation: str) -> pl.DataFrame:
    _, held, test = prepare(p, rho, operation)
    rows = modular.extractions(views(p, rho, seed, operation), held, test)
    return rows.with_columns(rho=pl.lit(rho), seed=pl.lit(seed), operation=pl.lit(operation))


def pictured(p: Params, rho: float, classes: int) -> list[dict]:
    "Rows of `partitions` for a network on pictures of so many classes, each seed."
    clean, test = modular.load_pictures(p, classes)
    train, held = corrupt(clean, rho, p.noise, p.noise_seed).split(HELD, p.noise_seed)

    def network(seed):
        if classes == 2:
            return build("two_layer_relu", d=train.x[0].numel(), width=256, seed=seed)
        return build("mlp", shape=train.x.shape[1:], widths=(256,), n_classes=10, seed=seed)

    def experiment(seed):
        epochs = 300 if classes == 2 else 100
        how = dict(times=[0, epochs], lr=0.02, momentum=0.9, batch=32, seed=seed, device="cpu")
        return partial(fit, network(seed), train, epochs, **how)

    rows = []
    for case, run in each(p, experiment, seed=p.seeds).items():
        net = run.at(max(run.checkpoints), network(case.seed))
        found = modular.partitions(net, train, held, test, case.seed)
        rows += [row | dict(seed=case.seed) for row in found]
    return rows


def framed(run: Run, **case) -> pl.DataFrame:
    "The rows of one run, with its case in columns."
    (one,) = cases_of({k: [v] for k, v in case.items()})
    return modular.modular_frame({one: run})
