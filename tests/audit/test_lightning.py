"A network that Lightning trained and saved is audited and repaired as the network inside it."

import lightning
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from memnb.audit import audit, repair
from memnb.datasets import corrupt, load
from memnb.models import load_weights
from memnb.models.structure import hidden_groups
from memnb.probes import probe_model


class Digits(lightning.LightningModule):
    "A perceptron beside its loss, as in Lightning's own examples."

    def __init__(self, width=32):
        super().__init__()
        self.save_hyperparameters()
        layers = [nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10)]
        self.model = nn.Sequential(*layers)
        self.loss = nn.CrossEntropyLoss()

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, _):
        x, y = batch
        return self.loss(self(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.fixture(scope="module")
def parts():
    train, test = load("digits")
    return corrupt(train, 0.2, "wrong", seed=0), corrupt(test, 0.2, "wrong", seed=1)


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    "The module, and its checkpoint."
    data, _ = parts
    folder = tmp_path_factory.mktemp("lightning")
    torch.manual_seed(0)
    module = Digits()
    trainer = lightning.Trainer(
        max_epochs=10,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, DataLoader(TensorDataset(data.x, data.y), 64, shuffle=True))
    trainer.save_checkpoint(folder / "digits.ckpt")
    return module, folder / "digits.ckpt"


def test_it_is_audited_as_the_network_inside(parts, trained):
    data, _ = parts
    module, _ = trained
    frame = audit(module, data)
    assert roc_auc_score(data.is_noisy, frame["suspicion"]) > 0.99
    assert frame["suspicion"].equals(audit(module.model, data)["suspicion"])


def test_it_is_probed_and_repaired_as_the_network_inside(parts, trained):
    data, held = parts
    module, _ = trained
    assert hidden_groups(module, data.x[:4]) == [
        f"model.{layer}" for layer in hidden_groups(module.model, data.x[:4])
    ]
    within = [r["accuracy"] for r in probe_model(module.model, data, held, probes=["velpic"])]
    assert [r["accuracy"] for r in probe_model(module, data, held, probes=["velpic"])] == within
    assert str(repair(module, data, held)) == str(repair(module.model, data, held))


@pytest.mark.parametrize("inside", [False, True])
def test_its_checkpoint_is_read(trained, inside):
    module, file = trained
    net = Digits().model if inside else Digits()
    with pytest.warns(UserWarning, match="digits.ckpt: the weights lie under 'state_dict'"):
        load_weights(net, file)
    x = torch.rand(5, 1, 8, 8)
    module.eval()
    assert torch.equal(net(x), module(x))
