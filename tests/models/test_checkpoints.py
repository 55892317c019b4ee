"Weights are found inside whatever wraps them, and nothing in their file is run."

import warnings

import pytest
import torch
from torch import nn

from memnb.models.checkpoints import load_weights, read_weights


def small(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


def prefixed(state, prefix):
    return {prefix + name: v for name, v in state.items()}


WRAPPED = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "optimizer": {"lr": 0.1}},
    "model_state_dict": lambda s: {"model_state_dict": s, "loss": 0.5},
    "nested": lambda s: {"model": {"state_dict": s, "arch": "small"}},
    "parallel": lambda s: prefixed(s, "module."),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "lightning": lambda s: {"state_dict": prefixed(s, "model."), "hyper_parameters": {"lr": 1.0}},
    "all of them": lambda s: {"state_dict": prefixed(s, "module._orig_mod.model.")},
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
def test_weights_are_unwrapped_and_that_is_said(tmp_path, wrap):
    net = small(1)
    torch.save(wrap(small(0).state_dict()), tmp_path / "w.pt")
    with pytest.warns(UserWarning, match="w.pt: (the weights lie under|9 names)"):
        load_weights(net, tmp_path / "w.pt")
    for name, v in small(0).state_dict().items():
        assert torch.equal(net.state_dict()[name], v)
    assert not net.training


@pytest.mark.filterwarnings("error")
def test_plain_weights_are_taken_in_silence(tmp_path):
    torch.save(small(0).state_dict(), tmp_path / "w.pt")
    load_weights(small(1), tmp_path / "w.pt")


@pytest.mark.filterwarnings("ignore")
def test_a_wrapped_network_takes_plain_weights(tmp_path):
    torch.save(small(0).state_dict(), tmp_path / "w.pt")
    net = nn.DataParallel(torch.compile(small(1), backend="eager"))
    load_weights(net, tmp_path / "w.pt")
    inner = net.module._orig_mod
    assert torch.equal(inner[0].weight, small(0)[0].weight)


@pytest.mark.filterwarnings("ignore")
def test_a_network_with_a_part_called_model_is_left_alone(tmp_path):
    def made(seed):
        torch.manual_seed(seed)
        net = nn.Module()
        net.model = nn.Linear(2, 2)
        net.head = nn.Linear(2, 2)
        return net

    torch.save(made(0).state_dict(), tmp_path / "w.pt")
    net = load_weights(made(1), tmp_path / "w.pt")
    assert torch.equal(net.model.weight, made(0).model.weight)


class TwoParts(nn.Module):
    "Its parts are called as wrappers call theirs."

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.model = nn.Linear(2, 2)
        self.net = nn.Linear(2, 2)


@pytest.mark.filterwarnings("ignore:.*names lose")
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "model.net."])
def test_a_networks_own_names_are_no_wrappers(tmp_path, prefix):
    state = TwoParts(0).state_dict()
    torch.save(prefixed(state, prefix), tmp_path / "w.pt")
    net = load_weights(TwoParts(1), tmp_path / "w.pt")
    for name, v in state.items():
        assert torch.equal(net.state_dict()[name], v)


def test_what_weights_have_besides_is_said_where_parts_are_called_as_wrappers(tmp_path):
    torch.save(TwoParts(0).state_dict() | {"queue": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="does not fit TwoParts: it has 'queue' besides$"):
        load_weights(TwoParts(1), tmp_path / "w.pt")


def test_a_network_whose_one_part_is_called_model_takes_the_parts_weights(tmp_path):
    net = nn.Module()
    net.model = small(1)
    torch.save(small(0).state_dict(), tmp_path / "w.pt")
    with pytest.warns(UserWarning, match="names are changed, such as '0.weight' to 'model.0.weig"):
        load_weights(net, tmp_path / "w.pt")
    assert torch.equal(net.model[0].weight, small(0)[0].weight)


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(small(0).state_dict(), tmp_path / "w.safetensors")
    net = load_weights(small(1), tmp_path / "w.safetensors")
    assert torch.equal(net[0].weight, small(0)[0].weight)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "held, says",
    [
        (
            {"state_dict": {"other": torch.zeros(1)}},
            "does not fit Sequential: it lacks .*; it has 'other' besides",
        ),
        ({"state_dict": {"0.weight": torch.zeros(2, 2)}}, "does not fit Sequential"),
        ([1, 2], "holds a list that is no state dict"),
        ({1: torch.zeros(1)}, "no state dict"),
        ({"epoch": 3}, "does not fit Sequential"),
        ({**small().state_dict(), "0.bias": torch.tensor(1.0)}, r"0.bias is \(\) in it, \(\d,\)"),
        ({**small().state_dict(), "0.bias": "abc"}, "'0.bias' are no tensors"),
        ({**small().state_dict(), "0.bias": None}, "'0.bias' are no tensors"),
    ],
)
def test_files_that_do_not_fit(tmp_path, held, says):
    torch.save(held, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=f"(?s){says}"):
        load_weights(small(), tmp_path / "w.pt")


def test_nothing_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    torch.save({"state_dict": Trap()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="which could run anything"):
        read_weights(tmp_path / "w.pt")
    assert not (tmp_path / "sprung").exists()


def test_a_truncated_file(tmp_path):
    torch.save(small().state_dict(), tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a whole file of weights"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("of", [b"PK\x01\x02", b"PK\x05\x06"])
def test_a_damaged_directory_of_a_file(tmp_path, of):
    torch.save(small().state_dict(), tmp_path / "w.pt")
    content = bytearray((tmp_path / "w.pt").read_bytes())
    at = content.rfind(of)
    content[at : at + 4] = b"XXXX"
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match="is not a whole file of weights"):
        read_weights(tmp_path / "w.pt")


def test_weights_that_are_refused_leave_the_model_as_it_was(tmp_path):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    before = {name: v.clone() for name, v in model.state_dict().items()}
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    torch.save(other.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match="does not fit"):
        load_weights(model, tmp_path / "w.pt")
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


def test_a_wrapped_network_whose_parts_are_called_like_wrappers(tmp_path):
    model, other = (nn.ModuleDict(dict(model=nn.Linear(3, 4), net=nn.Linear(3, 4))) for _ in "ab")
    wrapped = {f"module.{name}": v for name, v in other.state_dict().items()}
    torch.save(wrapped, tmp_path / "w.pt")
    with pytest.warns(UserWarning, match="4 names lose 'module.'"):
        load_weights(model, tmp_path / "w.pt")
    assert torch.equal(model["net"].weight, other["net"].weight)
    assert torch.equal(model["model"].weight, other["model"].weight)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_program_of_torch_jit_is_named(tmp_path):
    torch.jit.script(nn.Linear(3, 2)).save(tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"holds a program of torch.jit, .*torch.jit.load\(path\)"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_numbers_that_are_no_floats_are_refused_and_leave_the_model_alone(tmp_path, dtype):
    net = nn.Linear(3, 2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.save({k: (100 * v).to(dtype) for k, v in before.items()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=f"holds 'weight' as {dtype}, the model torch.float32"):
        load_weights(net, tmp_path / "w.pt")
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_another_precision_are_cast_and_said(tmp_path, dtype):
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in net.state_dict().items()}
    torch.save(stored, tmp_path / "w.pt")
    with pytest.warns(UserWarning, match=f"6 tensors are cast from {dtype} to .* torch.float32"):
        load_weights(net, tmp_path / "w.pt")
    assert torch.equal(net[0].weight, stored["0.weight"].float())


@pytest.mark.parametrize(
    "name, value, says",
    [
        ("0.weight", float("nan"), "NaN or infinity in '0.weight'"),
        ("0.bias", float("-inf"), "NaN or infinity in '0.bias'"),
        ("1.running_mean", float("nan"), "NaN or infinity in '1.running_mean'"),
        ("0.weight", 1e9, "'0.weight' that are too large for the model's torch.float16"),
        ("1.running_var", 1e9, "'1.running_var' that are too large"),
        ("1.num_batches_tracked", 0.5, "fractions in '1.num_batches_tracked'.*torch.int64"),
    ],
)
def test_values_that_a_model_cannot_hold_are_refused(tmp_path, name, value, says):
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).half()
    stored = {k: v.float() for k, v in net.state_dict().items()}
    before = {k: v.clone() for k, v in net.state_dict().items()}
    stored[name].view(-1)[0] = value
    torch.save(stored, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=says):
        load_weights(net, tmp_path / "w.pt")
    assert all(torch.equal(net.state_dict()[k], v) for k, v in before.items())


def test_a_mask_may_hold_infinity(tmp_path):
    net = nn.Linear(2, 2)
    net.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    assert load_weights(net, tmp_path / "w.pt").mask[0, 1] == -torch.inf


def test_a_counter_that_is_a_float_is_taken_in_silence(tmp_path):
    net = nn.BatchNorm1d(2)
    torch.save({k: v.float() for k, v in net.state_dict().items()}, tmp_path / "w.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_weights(net, tmp_path / "w.pt")
