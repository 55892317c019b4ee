"What does something else has another fingerprint; what does the same has the same, anywhere."

import enum
import functools
import operator
import os
import random
import re
import subprocess
import sys
import threading
import types
from collections import OrderedDict, deque, namedtuple
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from memnb.runs.identity import Unknown, architecture, differences, fingerprint, start_of

FACTOR = 2


def helper(x):
    return FACTOR * x


def user(s):
    return helper(s)


class Scale:
    "An object that is called."

    kind = "scale"

    def __init__(self, k):
        self.k = k

    def __call__(self, s):
        return self.k * s


class Used(Scale):
    "An object that says which of its attributes decide what it does."

    decided_by = ("k",)

    def __call__(self, s):
        self.seen = s


class Slotted:
    __slots__ = ("a",)

    def __init__(self, a):
        self.a = a


class Colour(enum.Enum):
    RED, BLUE = 1, 2


class Net(nn.Module):
    def __init__(self, p=0.1):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.p = p
        self.seen = []

    def forward(self, x):
        return self.p * self.layer(x)


class Remembering:
    @functools.cached_property
    def size(self):
        return 3

    @functools.cache  # noqa: B019, it lives as long as the test
    def grow(self, s):
        return self.size * s


class RememberingMore(Remembering):
    @functools.cached_property
    def size(self):
        return 4


def by_type(k):
    "A function that answers by the type of what it is given."

    @functools.singledispatch
    def answer(s):
        return s

    @answer.register
    def _(s: int):
        return k * s

    return answer


def closing(v):
    return lambda s: v


def cyclic():
    held = [1]
    held.append(held)
    return held


def open_file():
    return open(os.devnull)  # noqa: SIM115, a value that is told from no other


def drawn(seed):
    return torch.Generator().manual_seed(seed)


PAIRS = [  # makers of values of which no two are alike
    lambda: None,
    lambda: 0,
    lambda: 0.0,
    lambda: False,
    lambda: "",
    lambda: b"",
    lambda: 1,
    lambda: True,
    lambda: 1.5,
    lambda: float("nan"),
    lambda: [1],
    lambda: (1,),
    lambda: {1},
    lambda: {1: 2},
    lambda: {2: 1},
    lambda: deque([1]),
    lambda: {"a", "b", "c", "d"},
    lambda: {"a", "b", "c", "e"},
    lambda: range(3),
    lambda: torch.zeros(2),
    lambda: torch.zeros(2).double(),
    lambda: torch.zeros(1, 2),
    lambda: torch.tensor([0.0, 1e-9]),
    lambda: torch.zeros(2, dtype=torch.bfloat16),
    lambda: np.zeros(2),
    lambda: np.zeros(2, "f4"),
    lambda: np.array(["a"], object),
    lambda: Path("a"),
    lambda: torch.float32,
    lambda: re.compile("a"),
    lambda: pl.DataFrame(dict(a=[1])),
    lambda: pl.DataFrame(dict(a=[2])),
    lambda: pl.Series([1]),
    lambda: Scale(1),
    lambda: Scale(2),
    lambda: Slotted(1),
    lambda: Slotted(2),
    lambda: Colour.RED,
    lambda: Colour.BLUE,
    lambda: closing(1),
    lambda: closing(2),
    lambda: closing(torch.ones(2)),
    lambda: closing(None),
    lambda: Scale(1).__call__,
    lambda: Scale(2).__call__,
    lambda: lambda s, k=1: k,
    lambda: lambda s, k=2: k,
    lambda: lambda s, *, k=1: k,
    lambda: lambda s: s + 1,
    lambda: lambda s: s + 2,
    lambda: lambda s: -s,
    lambda: user,
    lambda: helper,
    lambda: functools.partial(helper, 1),
    lambda: functools.partial(helper, 2),
    lambda: torch.relu,
    lambda: torch.tanh,
    lambda: operator.add,
    lambda: len,
    lambda: [].append,
    lambda: [1].append,
    lambda: drawn(0),
    lambda: drawn(1),
    lambda: np.random.default_rng(0),
    lambda: np.random.default_rng(1),
    lambda: random.Random(0),
    lambda: random.Random(1),
    cyclic,
    lambda: nn.Linear(2, 1, device="meta"),
    lambda: nn.ReLU(),
    lambda: Net,
    lambda: Scale,
    lambda: torch.optim.SGD([torch.zeros(1)], 0.1),
    lambda: torch.optim.SGD([torch.zeros(1)], 0.2),
    lambda: OrderedDict(a=1),
    lambda: dict(a=1),
    lambda: np.float32(1),
    lambda: sys,
    lambda: Remembering,
    lambda: RememberingMore,
    lambda: by_type(2),
    lambda: by_type(3),
    lambda: namedtuple("Pair", "a b"),
    lambda: namedtuple("Pair", "a c"),
    lambda: operator.itemgetter(1),
    lambda: operator.itemgetter(2),
    lambda: operator.attrgetter("a"),
    lambda: operator.methodcaller("a", 1),
    lambda: operator.methodcaller("a", k=1),
]


def test_no_two_of_many_are_alike_and_each_is_like_itself():
    prints = [fingerprint(make()) for make in PAIRS]
    assert len(set(prints)) == len(PAIRS)
    assert [fingerprint(make()) for make in PAIRS] == prints


def test_another_process_agrees():
    "With other seeds of Python's hashes, and other places in memory."
    program = """
import sys
sys.path.insert(0, "tests/runs")
from test_identity import *
held = [object() for _ in range(999)]
print(*map(fingerprint, [make() for make in PAIRS]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env=os.environ | dict(PYTHONHASHSEED="7"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.split() == [fingerprint(make()) for make in PAIRS], done.stderr


@pytest.mark.parametrize(
    "make",
    [
        open_file,
        lambda: (i for i in ()),
        lambda: iter([1]),
        threading.Lock,
        lambda: closing(open_file()),
        lambda: Scale((i for i in ())),
        lambda: [object(), threading.Lock()],
    ],
)
def test_what_cannot_be_told_from_another_one(make):
    with pytest.raises(Unknown):
        fingerprint(make())
    assert fingerprint(make(), strict=False) == fingerprint(make(), strict=False)


def test_use_is_no_part_of_an_object_that_names_what_is():
    v = Used(2)
    before = fingerprint(v)
    v(threading.Lock())
    assert fingerprint(v.__call__) == fingerprint(Used(2).__call__)
    assert fingerprint(v) == before
    assert fingerprint(Used(3)) != before


def test_use_is_no_part_of_a_function_that_names_what_is():
    def counter(k):
        seen = []

        def count(s):
            seen.append(k * s)

        count.decided_by = ("k",)
        return count

    used = counter(2)
    used(3)
    assert fingerprint(used) == fingerprint(counter(2)) != fingerprint(counter(3))


def test_a_set_has_no_order_whatever_its_members_hold():
    "In another process the members of a set lie in another order."

    class Member:
        def __init__(self, name, twin):
            self.name = name
            self.twin = twin

        def __hash__(self):  # of two with one hash, the first that is put in is the first
            return 0

    def named(*names):
        twin = [3]
        members = {Member(name, twin) for name in names}
        assert [m.name for m in members] == list(names)
        return fingerprint([members, twin])

    assert named("a", "b") == named("b", "a") != named("a", "c")


@pytest.mark.parametrize(
    "make",
    [
        lambda given: functools.partial(helper, **given),
        dict,
        OrderedDict,
        lambda given: {Path(k): v for k, v in given.items()},
        lambda given: {(k,): v for k, v in given.items()},
        lambda given: types.SimpleNamespace(**given),
    ],
)
def test_the_order_of_names_does_not_matter_where_they_share_a_value(make):
    twin = [3]
    assert fingerprint(make(dict(a=twin, b=twin))) == fingerprint(make(dict(b=twin, a=twin)))
    assert fingerprint(make(dict(a=twin, b=twin))) != fingerprint(make(dict(a=twin, b=[3])))


def test_what_a_function_remembers_is_no_part_of_it():
    answer = by_type(2)
    answer(1)
    answer("a")
    assert fingerprint(answer) == fingerprint(by_type(2))
    used = Remembering()
    used.grow(2)
    assert fingerprint(used) == fingerprint(Remembering())


def test_what_a_layer_remembers_is_no_part_of_it():
    class Layer(nn.Linear):
        @functools.cached_property
        def scale(self):
            return self.in_features**-0.5

    used = Layer(3, 2)
    fresh = architecture(used)
    assert used.scale < 1
    assert architecture(used) == fresh


def test_names_comments_and_places_do_not_matter():
    def one(s):
        return 2 * s  # a comment

    def other(s):

        return 2 * s

    assert fingerprint(one) == fingerprint(other)


def test_a_helper_and_a_global_count(monkeypatch):
    before = fingerprint(user)
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert fingerprint(user) != before
    monkeypatch.undo()
    assert fingerprint(user) == before
    monkeypatch.setitem(globals(), "helper", lambda x: x + x)
    assert fingerprint(user) != before


def test_what_is_used_of_a_users_module_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").touch()
    (tmp_path / "mine" / "losses.py").write_text(
        "def used(s): return 2 * s\ndef unused(s): return s\n"
    )
    import mine.losses

    def by_module(s):
        return mine.losses.used(s)

    before = fingerprint(by_module)
    monkeypatch.setattr(mine.losses, "unused", lambda s: 3 * s)
    assert fingerprint(by_module) == before
    monkeypatch.setattr(mine.losses, "used", lambda s: 3 * s)
    assert fingerprint(by_module) != before


def test_what_a_function_imports_when_it_is_called_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "later_losses.py").write_text("K = 2\ndef used(s): return K * s\n")

    def by_module(s):
        import later_losses as ours

        return ours.used(s)

    def by_name(s):
        from later_losses import used

        return used(s)

    before = fingerprint(by_module), fingerprint(by_name)  # it is not imported yet
    assert (fingerprint(by_module), fingerprint(by_name)) == before
    monkeypatch.setattr(sys.modules.pop("later_losses"), "K", 2)
    assert (fingerprint(by_module), fingerprint(by_name)) == before
    monkeypatch.setattr(sys.modules["later_losses"], "K", 3)
    assert fingerprint(by_module) != before[0]
    assert fingerprint(by_name) != before[1]


def test_an_import_that_fails_is_left_to_the_function():
    def absent(s):
        import no_such_module_at_all

        return no_such_module_at_all.used(s)

    assert fingerprint(absent) == fingerprint(absent)


def test_an_attribute_of_a_function_counts():
    def kept(s):
        return kept.k * s

    kept.k = 2
    before = fingerprint(kept)
    kept.k = 3
    assert fingerprint(kept) != before
    kept.k = 2
    assert fingerprint(kept) == before


class Metre(float):
    "A plain type with more to it."

    def __call__(self, s):
        return self.k * s


def test_what_derives_from_a_plain_type_is_more_than_its_text():
    a, b = Metre(1), Metre(1)
    a.k, b.k = 2, 3
    assert repr(a) == repr(b)
    assert fingerprint(a) != fingerprint(b)
    b.k = 2
    assert fingerprint(a) == fingerprint(b)


class Counted(type):
    k = 2


class Made(metaclass=Counted):
    def __call__(self, s):
        return type(self).k * s


def test_the_class_of_a_class_counts(monkeypatch):
    before = fingerprint(Made())
    monkeypatch.setattr(Counted, "k", 3)
    assert fingerprint(Made()) != before


def test_an_optimizers_hooks_count():
    def optimizer():
        return torch.optim.SGD([torch.zeros(2)], lr=0.1)

    hooked = optimizer()
    hooked.register_step_pre_hook(lambda o, a, k: None)
    assert fingerprint(optimizer()) == fingerprint(optimizer()) != fingerprint(hooked)


def changed(change):
    model = Net()
    change(model)
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.eval(),
        lambda m: m.layer.eval(),
        lambda m: setattr(m, "p", 0.2),
        lambda m: m.register_buffer("b", torch.zeros(1)),
        lambda m: m.layer.register_forward_hook(lambda m, a, o: o),
        lambda m: setattr(m, "layer", nn.Linear(3, 2, bias=False)),
        lambda m: m.double(),
        lambda m: setattr(m, "forward", m.layer.forward),
        lambda m: m.layer.weight.register_hook(lambda g: 2 * g),
        lambda m: m.layer.weight.register_post_accumulate_grad_hook(lambda p: None),
    ],
)
def test_an_architecture_is_layers_settings_modes_and_hooks(change):
    assert architecture(Net()) == architecture(Net()) != architecture(changed(change))


class Pair(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.load_state_dict(self.a.state_dict())
        if tied:
            self.b.weight = self.a.weight


def test_a_shared_parameter_is_not_two_that_are_equal_at_the_start():
    torch.manual_seed(0)
    tied = Pair(True)
    torch.manual_seed(0)
    apart = Pair(False)
    assert start_of(tied) == start_of(apart)
    assert architecture(tied) != architecture(apart)
    assert architecture(tied) == architecture(Pair(True))
    assert architecture(apart) == architecture(Pair(False))


def test_a_start_is_every_number():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    prints = {start_of(model)}
    for name in ("0.weight", "0.bias", "1.weight", "1.running_mean", "1.num_batches_tracked"):
        model.state_dict()[name].flatten()[0] += 1
        prints.add(start_of(model))
    assert len(prints) == 6


def test_differences():
    in_another_order = dict(b=[2], a=1, c=float("nan"))
    assert differences(dict(a=1, b=[2], c=float("nan")), in_another_order) == ""
    says = differences(dict(a=1, b=2), dict(a=1, b=3, c="x"))
    assert says == "b, c (b is 2 there and 3 here; c is None there and 'x' here)"


@pytest.mark.parametrize("bad", [None, 3, "mlp", torch.zeros(2), nn.Linear])
def test_what_is_no_network(bad):
    for f in (start_of, architecture):
        with pytest.raises(ValueError, match="must be a network"):
            f(bad)


@pytest.mark.parametrize(
    "value, known",
    [
        ({1: 2, "a": 3}, "54ed3da2d66c2572"),
        ({"x", "y", (1, "z")}, "1c16c64e04deaa9a"),
        ({frozenset({1}): 2, frozenset({3}): 1}, "e4aec084a2afcfa1"),
        ({i: {j: [1] for j in range(100)} for i in range(60)}, "39b6e3802f1f5a67"),
        ([{(i, j) for j in range(20)} for i in range(400)], "5ffbed08ada8872b"),
    ],
    ids=["keys", "set", "sets as keys", "many keys", "many sets"],
)
def test_stored_fingerprints_of_containers_stay(value, known):
    "As runs that were stored before have them."
    assert fingerprint(value) == known
