"The trainings of the latent-generalization notebooks, for tests of what is made of them."

from collections.abc import Callable, Sequence
from functools import partial

from memnb.datasets import NoisyDataset, corrupt, load
from memnb.lab.experiments import each
from memnb.lab.parameters import Params
from memnb.models import build
from memnb.papers import latent
from memnb.probes import resist
from memnb.runs.run import Run
from memnb.trainer import fit

NAMES = [
    *("rho", "rhos", "dataset", "model", "widths", "n", "scale", "optimizer", "lr", "momentum"),
    *("batch", "epochs", "every", "seeds"),
]


def params(figure: str = "latent_probes", **given) -> Params:
    fixed = dict(noise="redraw", noise_seed=0, preset="ci", out="", store="")
    return latent.latent_parameters(figure, **dict.fromkeys(NAMES) | fixed | given)


def prepare(
    p: Params, rho: float, seed: int, clean: tuple[NoisyDataset, NoisyDataset] | None = None
) -> tuple[NoisyDataset, NoisyDataset, dict]:
    "Noisy training data, test data, and the network's name and arguments."
    how = dict(n=p.n, test_share=p.test_share, scale=p.scale, seed=p.noise_seed)
    train, test = clean or load(p.dataset, **how)
    data = corrupt(train, rho, p.noise, p.noise_seed)
    return data, test, latent.latent_network(p, train.x.shape[1:], data.n_classes, seed)


def trainings(
    p: Params, observe: Sequence[Callable] = (), variants: dict[str, dict] | None = None
) -> dict[tuple, Run]:
    "By variant, rho and seed; a variant may have `lr` (a factor), `clip`, `init` and `exchange`."
    variants = variants or {"standard": {}}
    how = dict(n=p.n, test_share=p.test_share, scale=p.scale, seed=p.noise_seed)
    clean = load(p.dataset, **how)

    def experiment(variant, rho, seed):
        how = variants[variant]
        data, test, model = prepare(p, rho, seed, clean)
        net = build(**model)
        if how.get("init") == "velpic":
            net = resist(net, data)
        extra = [latent.exchange(p, how["exchange"])] if "exchange" in how else []
        settings = latent.training_settings(p) | dict(observe=[*observe, *extra], seed=seed)
        settings |= dict(lr=p.lr * how.get("lr", 1), clip=how.get("clip"))
        return partial(fit, net, data, p.epochs, test, config=dict(model=model), **settings)

    return each(p, experiment, variant=variants, rho=p.rhos, seed=p.seeds)
