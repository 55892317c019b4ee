"""A network that writes into its inputs is trained as one that does not, and the data stay."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.localization.rewinding import CONVENTIONS, retrain, rewind
from memnb.models.evaluation import predict
from memnb.probes.over_training import default_layers, probe_model
from memnb.trainer.stacked import fit_stacked
from memnb.trainer.training import fit


def noisy(n=60, seed=0) -> NoisyDataset:
    "A blob for each of three classes, and a sixth of the labels wrong."
    clean = torch.arange(n) % 3
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g) + 2 * F.one_hot(clean, 6)
    return NoisyDataset(x, torch.where(torch.arange(n) % 6 == 0, (clean + 1) % 3, clean), clean)


class Halved(nn.Module):
    "Reads half of its inputs, in place or not."

    def __init__(self, writes: bool):
        super().__init__()
        self.writes = writes
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            self.hidden = nn.Linear(6, 8)
            self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        half = x.mul_(0.5) if self.writes else x * 0.5
        return self.out(self.hidden(half).relu())


def trained(model: nn.Module, data: NoisyDataset, test: NoisyDataset | None = None):
    return fit(model, data, 4, test, lr=0.1, batch=16, checkpoints=[0, 4], device="cpu")


USES = {
    "fit": lambda net, data, test: trained(net, data, test).frame(),
    "probe": lambda net, data, test: probe_model(net, data, test, groups=["clean", "test"]),
    "layers": lambda net, data, test: default_layers(net, data.x),
    "predict": lambda net, data, test: predict(net, data.x, batch=7).tolist(),
    "retrain": lambda net, data, test: retrain(trained(net, data), data, ["hidden"], 2, model=net),
} | {
    f"rewind, {way}": lambda net, data, test, way=way: rewind(
        trained(net, data), data, convention=way, model=net, batch=16
    )
    for way in CONVENTIONS
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_data_stay_and_the_answers_are_those_of_a_network_that_copies(use: Callable):
    data = noisy()
    test = noisy(20, seed=1)
    x = data.x.clone()
    test_x = test.x.clone()
    ours = use(Halved(writes=True), data, test)
    right = use(Halved(writes=False), noisy(), noisy(20, seed=1))
    assert torch.equal(data.x, x)
    assert torch.equal(test.x, test_x)
    assert ours.equals(right) if hasattr(ours, "equals") else ours == right


def test_writing_is_seen_where_it_changes_no_number():
    "The first examples are above 0, where a ReLU in place writes what was there."
    data = noisy()
    data.x[:2] = data.x[:2].abs()
    x = data.x.clone()
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))
    fit(model, data, 1, device="cpu")
    assert torch.equal(data.x, x)


def test_a_run_of_the_same_data_is_found_again(tmp_path):
    data = noisy()
    first = fit(Halved(writes=True), data, 2, folder=tmp_path / "run", device="cpu")
    again = fit(Halved(writes=True), data, 2, folder=tmp_path / "run", device="cpu")
    assert torch.equal(first.loss, again.loss)
    assert first.digest == noisy().digest


def test_networks_of_a_stack_that_write_share_their_inputs():
    data = noisy()
    x = data.x.clone()

    def nets(writes: bool) -> list[nn.Module]:
        nets = []
        for seed in range(2):
            torch.manual_seed(seed)
            nets.append(nn.Sequential(nn.Flatten(), nn.ReLU(writes), nn.Linear(6, 3)))
        return nets

    ours = fit_stacked(nets(True), [data, data], 3, lr=0.1, batch=16, device="cpu")
    right = fit_stacked(nets(False), [data, data], 3, lr=0.1, batch=16, device="cpu")
    assert torch.equal(data.x, x)
    assert all(torch.equal(a.loss, b.loss) for a, b in zip(ours, right, strict=True))


@pytest.mark.parametrize("writes", [False, True])
def test_only_batches_that_are_written_into_are_copied(writes):
    "A network that leaves its inputs alone is given the data's own memory after its first batch."
    x = noisy().x
    seen = []

    def look(module, args):
        start = x.data_ptr()
        seen.append(start <= args[0].data_ptr() < start + x.numel() * x.element_size())

    net = Halved(writes)
    net.register_forward_pre_hook(look)
    predict(net, x, batch=20)
    assert seen == [False, not writes, not writes]
