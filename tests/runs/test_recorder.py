"""Any loop's record is what the network gave, in whatever order it was handed over.

What was forgotten is found.
"""

import math
from collections import OrderedDict
from dataclasses import fields
from datetime import date, datetime, time, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from same_runs import randn
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from memnb.common.files import seal
from memnb.datasets.noisy_datasets import NoisyDataset
from memnb.runs import recorder
from memnb.runs.recorder import Journal, Recorder
from memnb.runs.run import load_run, save_run
from memnb.trainer.steps import order
from memnb.trainer.training import fit


def noisy(n=30, k=4, seed=0, index=None, **other) -> NoisyDataset:
    "A quarter of the labels wrong."
    g = torch.Generator().manual_seed(seed)
    clean = torch.arange(n) % k
    y = torch.where(torch.arange(n) % 4 == 3, (clean + 1) % k, clean)
    fields = dict(clean=clean, index=index, n_classes=k) | other
    return NoisyDataset(torch.randn(n, 5, generator=g), y, **fields)


def net(seed=0) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))


def recorded(data, *logits, test=None) -> Recorder:
    "All examples at once at the times 0, 1, ..."
    rec = Recorder(data, test)
    for t, z in enumerate(logits):
        rec.at(t)
        rec.log(data.index, z)
    return rec


# --- a Run of one's own loop


def test_a_loop_of_ones_own_gives_the_run_of_fit():
    data = noisy(50)
    test = noisy(20, seed=1)
    model = net()
    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=True)
    rec = Recorder(data, test)
    for epoch in range(5):
        rec.at(epoch)
        rec.log(data.index, model(data.x))
        rec.log(test.index, model(test.x), test=True)
        for x, y, _ in DataLoader(data, batch_size=16, sampler=order(50, epoch, 0).tolist()):
            sgd.zero_grad()
            F.cross_entropy(model(x), y).backward()
            sgd.step()
    ours = rec.run()
    theirs = fit(net(), data, 5, test, times=range(5), lr=0.1, momentum=0.9, batch=16, device="cpu")
    for f in fields(ours):
        v = getattr(ours, f.name)
        w = getattr(theirs, f.name)
        if isinstance(w, Tensor):
            assert v.dtype == w.dtype, f.name
            assert torch.equal(v, w), f.name
    assert ours.frame().equals(theirs.frame())
    assert ours.unit == theirs.unit
    assert ours.n_classes == theirs.n_classes
    assert ours.digest == theirs.digest


def test_logged_batch_by_batch_as_training_goes_on():
    data = noisy()
    model = net()
    rec = Recorder(noisy())
    rec.at(0.5)
    seen = {}
    order = torch.Generator().manual_seed(0)
    for x, y, index in DataLoader(data, batch_size=7, shuffle=True, generator=order):
        z = model(x)
        rec.log(index, z)
        losses = F.cross_entropy(z, y, reduction="none").tolist()
        pairs = zip(losses, z.argmax(1).tolist(), strict=True)
        seen |= dict(zip(index.tolist(), pairs, strict=True))
        with torch.no_grad():
            model[2].bias += 0.1 * torch.arange(4)
    run = rec.run()
    assert not run.loss.requires_grad
    assert run.time.tolist() == [0.5]
    for i in range(30):
        assert (run.loss[0, i].item(), run.prediction[0, i].item()) == pytest.approx(seen[i])


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.sampled_from([1, 2, 4]))
def test_order_and_batches_do_not_matter(seed, size, columns):
    g = torch.Generator().manual_seed(seed)
    k = max(2, columns)
    place = torch.randperm(100, generator=g)[:30]
    data = noisy(k=k, index=place)
    z = randn(30, columns, seed=seed)
    rows = torch.randperm(30, generator=g)
    rec = Recorder(data)
    rec.at(0)
    for part in rows.split(size):
        rec.log(place[part], z[part])
    run = rec.run()
    whole = recorded(data, z).run()
    both = (torch.cat([torch.zeros_like(z), z], 1) if columns == 1 else z).double()
    assert torch.allclose(
        run.loss[0].double(), F.cross_entropy(both, data.y, reduction="none"), atol=1e-5
    )
    assert torch.equal(run.prediction[0].long(), both.argmax(1))
    assert torch.equal(run.index, place)
    assert torch.equal(run.y, data.y)
    for f in fields(run):
        right = getattr(whole, f.name)
        if isinstance(right, Tensor):
            assert torch.equal(getattr(run, f.name), right)


def test_the_last_word_counts():
    data = noisy()
    old, new = randn(2, 30, 4)
    rec = recorded(data, old)
    rec.log(data.index[:10], new[:10])
    assert torch.equal(rec.run().loss, recorded(data, torch.cat([new[:10], old[10:]])).run().loss)


@pytest.mark.parametrize("index", [None, torch.arange(30).flip(0) * 7])
def test_noisy_examples_are_held_against_the_true_label_too(index):
    data = noisy(index=index)
    z = randn(2, 30, 4)
    run = recorded(data, *z).run()
    rows = noisy().is_noisy
    for i, logits in enumerate(z[:, rows].double().numpy()):
        own = np.take_along_axis(logits, data.clean[rows].numpy()[:, None], 1)[:, 0]
        pairs = zip(logits, data.clean[rows].tolist(), strict=True)
        other = [max(v for k, v in enumerate(row) if k != c) for row, c in pairs]
        loss = np.log(np.exp(logits).sum(1)) - own
        np.testing.assert_allclose(run.true_loss[i], loss, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(run.true_margin[i], own - other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("other", [dict(clean=None), dict(k=2), dict(clean=noisy().y)])
def test_no_true_loss_where_it_says_nothing_new(other):
    data = noisy(**other)
    run = recorded(data, randn(30, data.n_classes)).run()
    assert run.true_loss is None
    assert run.true_margin is None
    assert len(run.frame())


def test_a_test_set():
    data = noisy()
    test = noisy(12, seed=3, clean=None, index=torch.arange(12) + 5)
    z, w = randn(2, 30, 4)
    rec = Recorder(data, test)
    rec.at(0)
    rec.log(data.index, z)
    rec.log(test.index[6:], w[6:12], test=True)
    rec.log(test.index[:6], w[:6], test=True)
    run = rec.run()
    assert torch.allclose(
        run.test_loss[0], F.cross_entropy(w[:12], test.y, reduction="none"), atol=1e-5
    )
    assert torch.equal(run.test_prediction[0].long(), w[:12].argmax(1))
    assert torch.equal(run.test_y, test.y)
    assert torch.equal(run.loss, recorded(data, z).run().loss)


def test_times_are_those_given():
    rec = Recorder(noisy())
    times = [0.1, 1 / 3, 0.7]
    for t in times:
        rec.at(t)
        rec.log(noisy().index, randn(30, 4))
        rec.checkpoint(net().state_dict())
        rec.add([dict(a=1)])
    run = rec.run()
    assert run.time.dtype == torch.float64
    assert run.time.tolist() == times == list(run.checkpoints) == run.rows["time"].to_list()


def test_accuracy():
    data = noisy()
    z = randn(2, 30, 4)
    rec = Recorder(data)
    share = [np.mean(v.argmax(1).numpy() == data.y.numpy()) for v in z]
    for t in (0, 1):
        rec.at(t)
        rec.log(data.index, z[t])
        assert rec.accuracy() == share[t]
        rec.close()
        assert rec.accuracy() == share[t]
    assert share[0] != share[1]


def test_accuracy_of_what_was_not_logged():
    rec = Recorder(noisy())
    with pytest.raises(ValueError, match="nothing was recorded"):
        rec.accuracy()
    rec.at(0)
    with pytest.raises(ValueError, match="30 of 30 training examples were not logged"):
        rec.accuracy()
    rec.log(noisy().index[:20], randn(20, 4))
    with pytest.raises(ValueError, match="10 of 30 training examples were not logged"):
        rec.accuracy()


def test_the_time_of_a_row_is_the_present_one():
    rec = recorded(noisy(), randn(30, 4), randn(30, 4))
    rec.add([dict(time=99, a=1)])
    rows = rec.run().rows
    assert rows.columns == ["time", "a"]
    assert rows["time"].to_list() == [1.0]


def test_a_test_set_with_labels_beyond_the_classes():
    with pytest.raises(ValueError, match="labels up to 5; the training set has 4 classes"):
        Recorder(noisy(k=4), noisy(k=6))


def test_rows_may_differ():
    rec = recorded(noisy(), randn(30, 4))
    rec.add([dict(a=1, b=torch.tensor(2.5)), dict(a=1.5, name="x")])
    rec.at(1)
    rec.log(noisy().index, randn(30, 4))
    rec.add([dict(c=np.float32(0.5), b=np.int64(3))])
    assert rec.run().rows.equals(
        pl.DataFrame(
            dict(
                time=[0.0, 0.0, 1.0],
                a=[1.0, 1.5, None],
                b=[2.5, None, 3.0],
                name=[None, "x", None],
                c=[None, None, 0.5],
            )
        )
    )


@pytest.mark.parametrize(
    "value",
    [Path("x"), 1j, {1, 2}, {"a": 1}, b"x", 2**200, [1, "a"], [[1], 2], np.array([1j])],
    ids=str,
)
def test_a_value_that_no_table_holds_is_refused_when_it_comes(value):
    rec = recorded(noisy(), randn(30, 4))
    with pytest.raises(TypeError, match="column 'v': "):
        rec.add([dict(v=value)])


@pytest.mark.parametrize(
    "first, then",
    [([1], 2), (1, "x"), ("x", 2.5), (date(2020, 1, 1), 3), ([1], ["a"]), ([[1]], [1])],
)
def test_the_values_of_a_column_are_of_one_kind(first, then):
    rec = recorded(noisy(), randn(30, 4))
    rec.add([dict(v=first), dict(v=None)])
    rec.at(1)
    rec.log(noisy().index, randn(30, 4))
    with pytest.raises(TypeError, match="column 'v' holds a .* before, and now"):
        rec.add([dict(v=then)])
    again = Recorder(noisy())
    again.moments = rec.moments  # as of a journal
    again.at(1)
    with pytest.raises(TypeError, match="column 'v' holds a .* before, and now"):
        again.add([dict(v=then)])


def test_a_column_has_a_name():
    rec = recorded(noisy(), randn(30, 4))
    with pytest.raises(TypeError, match="the column 3 of a row must be a text"):
        rec.add([{3: 1}])


@pytest.mark.parametrize(
    "values, stored",
    [
        ([True, 2, None, 2.5], [1.0, 2.0, None, 2.5]),
        ([[1, 2.5], [3]], [[1.0, 2.5], [3.0]]),
        ([[], [[1], [2.5, None]]], [[], [[1.0], [2.5, None]]]),
        ([(True, 2)], [[1, 2]]),
        ([2**70, 1], [2**70, 1]),
        ([float("inf"), 1], [float("inf"), 1.0]),
        ([date(2020, 1, 1), None], [date(2020, 1, 1), None]),
        ([np.datetime64("2020-01-01T10:00")], [datetime(2020, 1, 1, 10)]),
        ([time(3), None, time(4)], [time(3), None, time(4)]),
        ([timedelta(1)], [timedelta(1)]),
        ([np.array([[1, 2]]), [[0.5]]], [[[1.0, 2.0]], [[0.5]]]),
        (["a", None, "b"], ["a", None, "b"]),
    ],
    ids=str,
)
def test_what_a_column_holds_comes_back_from_a_folder(tmp_path, values, stored):
    rec = recorded(noisy(), randn(30, 4))
    rec.add([dict(v=v) for v in values])
    run = rec.run()
    save_run(run, tmp_path / "run")
    assert run.rows["v"].to_list() == stored
    assert load_run(tmp_path / "run").rows["v"].to_list() == stored


def test_a_checkpoint_is_a_copy():
    rec = recorded(noisy(), randn(30, 4))
    model = net()
    rec.checkpoint(model.state_dict())
    nn.init.zeros_(model[0].weight)
    assert torch.equal(rec.run().at(0, net(seed=1))[0].weight, net()[0].weight)


def test_a_run_in_between():
    data = noisy()
    z = randn(3, 30, 4)
    rec = recorded(data, *z[:2])
    first = rec.run()
    rec.at(2)
    rec.log(data.index, z[2])
    assert first.time.tolist() == [0, 1]
    assert rec.run().time.tolist() == [0, 1, 2]
    assert torch.equal(rec.run().loss[:2], first.loss)


def test_so_far_is_what_was_before_the_present_time():
    rec = Recorder(noisy())
    z = randn(3, 30, 4)
    assert rec.so_far() is None
    for t in range(3):
        rec.at(t)
        if t == 0:
            assert rec.so_far() is None
        else:
            assert torch.equal(rec.so_far().loss, recorded(noisy(), *z[:t]).run().loss)
        rec.log(noisy().index, z[t])


def test_a_run_can_be_kept(tmp_path):
    rec = Recorder(noisy(), noisy(8), "step", dict(lr=0.5))
    rec.at(3)
    rec.log(noisy().index, randn(30, 4))
    rec.log(noisy(8).index, randn(8, 4), test=True)
    run = rec.run()
    save_run(run, tmp_path / "run")
    again = load_run(tmp_path / "run")
    assert again.frame().equals(run.frame())
    assert again.unit == "step"
    assert again.config == dict(lr=0.5)
    again.check(noisy())


def test_logits_of_low_precision():
    data = noisy()
    z = randn(30, 4).bfloat16()
    assert torch.allclose(
        recorded(data, z).run().loss[0].double(),
        F.cross_entropy(z.double(), data.y, reduction="none"),
        atol=1e-4,
    )


# --- what is refused


def test_unknown_index():
    rec = recorded(noisy())
    rec.at(0)
    for bad in (30, -1, 10**9):
        with pytest.raises(ValueError, match=f"index {bad} is none of the 30 training examples"):
            rec.log(torch.tensor([3, bad]), randn(2, 4))
    rec = Recorder(noisy(), noisy(8))
    rec.at(0)
    with pytest.raises(ValueError, match="index 8 is none of the 8 test examples"):
        rec.log(torch.tensor([8]), randn(1, 4), test=True)


@pytest.mark.parametrize("end", [lambda rec: rec.at(1), Recorder.run, Recorder.close])
def test_missing_examples(end):
    rec = Recorder(noisy(), noisy(8))
    rec.at(0)
    rec.log(torch.arange(28), randn(28, 4))
    with pytest.raises(ValueError, match="2 of 30 training examples were not logged"):
        end(rec)
    rec.log(torch.arange(30), randn(30, 4))
    with pytest.raises(ValueError, match="8 of 8 test examples were not logged"):
        end(rec)


def test_every_time_needs_every_example():
    rec = recorded(noisy(), randn(30, 4))
    rec.at(1)
    with pytest.raises(ValueError, match="30 of 30 training"):
        rec.run()


@pytest.mark.parametrize("which", ["training", "test"])
def test_an_index_that_occurs_twice(which):
    sets = [noisy(), noisy(8)]
    sets[which == "test"] = noisy(8, index=torch.tensor([0, 1, 2, 3, 4, 5, 6, 3]))
    with pytest.raises(ValueError, match=f"an index occurs twice among the {which} examples"):
        Recorder(*sets)


@pytest.mark.parametrize(
    "act",
    [
        lambda rec: rec.log(torch.arange(30), randn(30, 4)),
        lambda rec: rec.add([dict(a=1)]),
        lambda rec: rec.checkpoint(net().state_dict()),
    ],
)
def test_first_comes_the_time(act):
    with pytest.raises(RuntimeError, match=r"say at\(time\) first"):
        act(Recorder(noisy()))
    rec = recorded(noisy(), randn(30, 4))
    rec.run()
    with pytest.raises(RuntimeError, match=r"say at\(time\) first"):
        act(rec)


@pytest.mark.parametrize("time", [1, 0.5, -1, math.nan])
def test_time_goes_forward(time):
    rec = recorded(noisy(), randn(30, 4), randn(30, 4))
    with pytest.raises(ValueError, match=f"time {time} is not after 1"):
        rec.at(time)


def test_there_is_no_test_set():
    rec = recorded(noisy(), randn(30, 4))
    with pytest.raises(ValueError, match="without a test set"):
        rec.log(torch.arange(3), randn(3, 4), test=True)


def test_nothing_was_recorded():
    with pytest.raises(ValueError, match="nothing was recorded"):
        Recorder(noisy()).run()


@pytest.mark.parametrize("shape", [(3, 4), (2,)])
def test_logits_that_do_not_fit(shape):
    rec = Recorder(noisy())
    rec.at(0)
    with pytest.raises(ValueError, match="2 examples came with logits|2 labels need"):
        rec.log(torch.arange(2), randn(*shape))


# --- the journal

ME = dict(lr=0.1, times=[0.0, 1.0])


def written(folder, n=3) -> list[dict]:
    rec = Recorder(noisy(), noisy(8))
    for t in range(n):
        rec.at(t)
        rec.log(noisy().index, randn(30, 4, seed=t))
        rec.log(noisy(8).index, randn(8, 4, seed=t), test=True)
        rec.add([dict(a=t, name="x")])
        rec.checkpoint(net(t).state_dict())
        rec.close()
        Journal(folder, ME).write(rec.moments, dict(step=t, model=OrderedDict(net(t).state_dict())))
    return rec.moments


def test_a_journal_gives_back_what_was_written(tmp_path):
    moments = written(tmp_path / "j")
    read, state = Journal(tmp_path / "j", ME).read()
    a = Recorder(noisy(), noisy(8))
    b = Recorder(noisy(), noisy(8))
    a.moments = moments
    b.moments = read
    for f in fields(a.run()):
        v = getattr(a.run(), f.name)
        w = getattr(b.run(), f.name)
        if isinstance(v, Tensor):
            assert torch.equal(v, w)
            assert v.dtype == w.dtype
    assert a.run().rows.equals(b.run().rows)
    assert state["step"] == 2
    for t in range(3):
        assert torch.equal(b.run().at(t, net(9))[0].weight, net(t)[0].weight)


def test_no_journal(tmp_path):
    assert Journal(tmp_path / "none", ME).read() == ([], None)


def test_a_journal_that_another_process_removed_is_whole_again(tmp_path):
    "Two processes make the same run; the one that is done removes what the other still writes."
    moments = written(tmp_path / "other")
    journal = Journal(tmp_path / "j", ME)
    for n in (1, 2):
        journal.write(moments[:n], dict(step=n))
    Journal(tmp_path / "j", ME).remove()

    journal.write(moments, dict(step=3))

    read, state = Journal(tmp_path / "j", ME).read()
    assert [m["time"] for m in read] == [0, 1, 2]
    assert state == dict(step=3)


def test_a_journal_may_go_away_while_one_writes(tmp_path, monkeypatch):
    moments = written(tmp_path / "other")
    journal = Journal(tmp_path / "j", ME)
    journal.write(moments[:1], dict(step=1))

    def go_away(*_):
        journal.remove()
        raise FileNotFoundError("a file in it")

    monkeypatch.setattr(recorder, "add", go_away)
    journal.write(moments[:2], dict(step=2))

    assert [m["time"] for m in Journal(tmp_path / "j", ME).read()[0]] == [0, 1]


def test_what_the_state_does_not_know_of_is_not_read(tmp_path):
    written(tmp_path / "j")
    (tmp_path / "j" / "000003.pt").write_bytes((tmp_path / "j" / "000001.pt").read_bytes())
    assert [m["time"] for m in Journal(tmp_path / "j", ME).read()[0]] == [0, 1, 2]


@pytest.mark.parametrize(
    "other, says",
    [
        (ME | dict(lr=0.2), "differs in lr"),
        (dict(lr=0.1), "differs in times"),
        (ME | dict(new=1, lr=1), "differs in lr, new"),
    ],
)
def test_another_runs_journal(tmp_path, other, says):
    written(tmp_path / "j")
    with pytest.raises(ValueError, match=f"j holds another run: it {says}.*another folder"):
        Journal(tmp_path / "j", other).read()


def set_aside(folder) -> bool:
    "Whether the journal is read as none, with a warning, and what was there is kept beside it."
    with pytest.warns(
        UserWarning,
        match="j is not a whole journal.*begins anew, and what was there is now .damaged-j-",
    ):
        read = Journal(folder / "j", ME).read()
    (aside,) = folder.iterdir()
    return read == ([], None) and aside.name.startswith(".damaged-j-")


@pytest.mark.parametrize(
    "thing",
    [
        [],
        3,
        torch.zeros(3),
        {},
        dict(identity=ME),
        dict(identity=ME, count=9, state={}),
        dict(identity=7, count=0, state={}),
    ],
)
def test_a_state_that_is_none(tmp_path, thing):
    "Though its checksum is right."
    written(tmp_path / "j")
    torch.save(thing, tmp_path / "j" / "state.pt")
    seal(tmp_path / "j")
    assert set_aside(tmp_path)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.999])
def test_every_cut_of_a_state_is_noticed(tmp_path, share):
    written(tmp_path / "j", 1)
    place = tmp_path / "j" / "state.pt"
    place.write_bytes(place.read_bytes()[: int(share * place.stat().st_size)])
    assert set_aside(tmp_path)


@pytest.mark.parametrize("file", ["state.pt", "000000.pt"])
def test_nothing_is_unpickled(tmp_path, file):
    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").mkdir, ()

    written(tmp_path / "j", 1)
    torch.save(Trap(), tmp_path / "j" / file)
    seal(tmp_path / "j")
    assert set_aside(tmp_path)
    torch.load(next(tmp_path.glob(f".damaged*/{file}")), weights_only=False)
    assert (tmp_path / "sprung").exists()  # the trap works


@pytest.mark.parametrize(
    "folder, says",
    [(None, "journal=None must be a path"), (3, "journal=3"), ("s3://bucket/j", "is an address")],
)
def test_places_that_are_none(folder, says):
    with pytest.raises(ValueError, match=says):
        Journal(folder, ME)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda rec: Recorder(None), "the training data are None; they must be a NoisyDataset"),
        (lambda rec: Recorder(noisy(8), 3), "the test data are 3; they must be a NoisyDataset"),
        (lambda rec: Recorder(noisy(8), unit=3), "unit=3 must be a text"),
        (lambda rec: Recorder(noisy(8), config=[1]), "config=.1. must be a dictionary"),
        (lambda rec: rec.at("noon"), "time='noon' must be a number"),
        (lambda rec: rec.at(None), "time=None"),
        (lambda rec: rec.at([1]), "time="),
        (
            lambda rec: rec.log(None, randn(8, 4)),
            "the index is None; it must be a tensor of integers",
        ),
        (lambda rec: rec.log([0, 1], randn(2, 4)), "the index is .0, 1.; it must be a tensor"),
        (
            lambda rec: rec.log(torch.zeros(8), randn(8, 4)),
            "float32 .8,.; it must be a tensor of integers",
        ),
        (lambda rec: rec.log(torch.arange(8), None), "the logits are None; they must be a tensor"),
        (lambda rec: rec.add(3), "rows=3 must be a list of dictionaries"),
        (lambda rec: rec.add(dict(a=1)), "must be a list of dictionaries"),
        (lambda rec: rec.add(["a"]), "the rows hold 'a'; they must be dictionaries"),
        (lambda rec: rec.checkpoint(None), "the state is None; it must be a state dict"),
        (lambda rec: rec.checkpoint(net()), "Sequential"),
        (lambda rec: rec.checkpoint(dict(a=1)), "it must be a state dict"),
    ],
)
def test_bad_calls(call, says):
    rec = Recorder(noisy(8))
    rec.at(0)
    with pytest.raises(TypeError, match=says):
        call(rec)


def test_what_is_no_journal_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds other files and no journal"):
        Journal(tmp_path, ME).read()
    with pytest.raises(ValueError, match="is a file"):
        Journal(tmp_path / "thesis.tex", ME)
    (tmp_path / "new").mkdir()
    assert Journal(tmp_path / "new", ME).read() == ([], None)


def test_remove(tmp_path):
    written(tmp_path / "j")
    Journal(tmp_path / "j", ME).remove()
    assert not list(tmp_path.iterdir())
    Journal(tmp_path / "j", ME).remove()


@pytest.mark.parametrize("shape", [(5, 2), (5, 4), (5, 1), (4, 3), (5,)])
def test_logits_of_another_shape(shape):
    rec = Recorder(NoisyDataset(torch.zeros(5, 1), torch.arange(5) % 3, n_classes=3))
    rec.at(0)
    with pytest.raises(ValueError, match=r"5 examples came with logits .*3 classes need \(5, 3\)"):
        rec.log(torch.arange(5), torch.zeros(shape))


def test_times_are_finite():
    with pytest.raises(ValueError, match="time nan is not finite"):
        Recorder(noisy()).at(math.nan)


def test_a_configuration_that_no_file_can_hold():
    with pytest.raises(ValueError, match="config must hold JSON values"):
        Recorder(noisy(), config=dict(a={1, 2}))
