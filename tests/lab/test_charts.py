"What is drawn: thinning that keeps extremes, fixed colours, files that are pictures."

import base64
import io
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
import torch
from chart_pictures import picture
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from memnb.datasets.label_noise import corrupt
from memnb.datasets.loading import load
from memnb.lab.charts import COLORS, DASHES, curves, dots, heat, level, thin
from memnb.lab.layouts import accuracies, facets, live, overlay, panels, pictures, regions
from memnb.lab.theme import LIVE_CHART, use_theme
from memnb.models.networks import build
from memnb.trainer.training import fit


def frame(n=50, groups=("clean", "noisy"), seeds=1):
    return pl.concat(
        [
            pl.DataFrame(
                dict(
                    epoch=range(1, n + 1),
                    group=g,
                    seed=s,
                    y=[(i * 7 + s) % 11 / 10 for i in range(n)],
                )
            )
            for g in groups
            for s in range(seeds)
        ]
    )


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000), st.integers(10, 400))
@settings(max_examples=30, deadline=None)
def test_thinning_keeps_extremes_and_order(values, most):
    f = pl.DataFrame(dict(time=range(len(values)), y=values, group="clean"))
    t = thin(f, "y", ["group"], most=most)
    assert len(t) <= max(most, 1)
    assert t["time"].is_sorted()
    assert (t["y"].min(), t["y"].max()) == (min(values), max(values))


def spec(chart):
    return chart.to_dict()


def find(node, key):
    if isinstance(node, dict):
        for k, v in node.items():
            if k == key:
                yield v
            yield from find(v, key)
    elif isinstance(node, list):
        for v in node:
            yield from find(v, key)


@pytest.mark.parametrize("groups", [("clean", "noisy"), ("noisy",), ("noisy", "clean", "net")])
def test_a_group_keeps_its_colour(groups):
    for color in find(spec(curves(frame(groups=groups), "y", "t", "y")), "color"):
        if isinstance(color, dict) and "scale" in color:
            colors = zip(color["scale"]["domain"], color["scale"]["range"], strict=True)
            assert dict(colors) == {g: COLORS[g] for g in groups}


def test_seeds_are_drawn_as_a_band():
    def marks(f):
        found = find(spec(curves(f, "y", "t", "y")), "mark")
        return [m["type"] if isinstance(m, dict) else m for m in found]

    assert "area" in marks(frame(seeds=3))
    assert "area" not in marks(frame(seeds=1))


def test_epoch_zero_is_left_out_of_a_log_axis():
    f = pl.DataFrame(dict(epoch=[0, 1, 10], group="clean", y=[5.0, 1, 2]))
    rows = [r for data in spec(curves(f, "y", "t", "y"))["datasets"].values() for r in data]
    assert {r["epoch"] for r in rows} == {1, 10}


def test_saved_as_svg_and_png(tmp_path):
    use_theme()
    chart = panels(
        [
            regions(
                curves(frame(), "y", "left", "y", rules={"half": 0.5}),
                {"early": (1, 20), "late": (20, 50)},
            ),
            curves(frame(), "y", "right", "y"),
        ],
        "Both",
        "sub",
    )
    chart.save(str(tmp_path / "c.png"))
    chart.save(str(tmp_path / "c.svg"))
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    svg = (tmp_path / "c.svg").read_text()
    for text in ("left", "right", "Both", "half", "clean", "early"):
        assert text in svg
    assert COLORS["clean"].lower() in svg.lower()


def rows(chart):
    return [r for data in spec(chart)["datasets"].values() for r in data]


def colours(chart):
    "Value -> colour, one and the same wherever it is said."
    tables = [
        dict(zip(c["scale"]["domain"], c["scale"]["range"], strict=True))
        for c in find(spec(chart), "color")
        if isinstance(c, dict) and "scale" in c
    ]
    assert tables
    assert all(t == tables[0] for t in tables)
    return tables[0]


def many(k, *more):
    return pl.concat(
        [
            frame(10, [name]).rename({"group": "layer"})
            for name in [*(f"layer{i:02}" for i in range(k)), *more]
        ]
    )


@pytest.mark.parametrize("k", [1, 2, 6, 7, 11, 19, 54])
def test_each_of_many_lines_has_a_colour_of_its_own(k):
    found = colours(curves(many(k, "model"), "y", "t", "y", color="layer"))
    assert len(found) == k + 1 == len(set(found.values()))
    assert found["model"] == "#4D4D4D"
    assert all(len(c) == 7 and int(c[1:], 16) >= 0 for c in found.values())


def test_colours_follow_the_order_along_the_palette():
    names = [f"layer{i:02}" for i in range(9)]
    there, back = (
        colours(curves(many(9), "y", "t", "y", color="layer", order=o))
        for o in (names, names[::-1])
    )
    assert list(there) == names
    assert list(back) == names[::-1]
    assert list(there.values()) == list(back.values())
    assert list(there.values())[0] == "#440154"
    assert list(there.values())[-1] == "#90d743"


def test_the_groups_of_atypical_examples_are_drawn_as_the_others():
    assert (COLORS["typical"], COLORS["atypical"]) == (COLORS["clean"], COLORS["noisy"])
    assert DASHES["atypical"] == DASHES["noisy"]
    assert colours(curves(frame(groups=("typical", "atypical")), "y", "t", "y")) == {
        g: COLORS[g] for g in ("typical", "atypical")
    }


CELLS = pl.DataFrame(
    [
        dict(epoch=e, layer=k, cosine=v, other=0)
        for e, k, v in [(0, "b", -1.0), (0, "a", 1.0), (1, "b", 0.0), (1, "a", None)]
    ]
)


def hot(**more):
    return heat(CELLS, "epoch", "layer", "cosine", "Heat", "cosine", **more)


def test_heat_says_what_is_seen():
    s = spec(hot(order=["b", "a"], x_title="time"))
    e = s["encoding"]
    assert s["mark"]["type"] == "rect"
    assert s["title"] == "Heat"
    assert [e[k]["field"] for k in ("x", "y", "color")] == ["epoch", "layer", "cosine"]
    assert e["y"]["sort"] == ["b", "a"]
    assert e["x"]["axis"]["title"] == "time"
    assert e["color"]["legend"]["title"] == "cosine"
    assert rows(hot()) == [{k: v for k, v in r.items() if k != "other"} for r in CELLS.to_dicts()]


@pytest.mark.parametrize("domain, middle", [((-1, 1), 0), ((2, 8), 5)])
def test_heat_is_white_in_the_middle(domain, middle):
    scale = spec(hot(domain=domain))["encoding"]["color"]["scale"]
    assert scale["domain"] == [domain[0], middle, domain[1]]
    assert scale["range"] == [COLORS["clean"], "#ffffff", COLORS["noisy"]]
    assert scale["clamp"]


def test_heat_from_zero_begins_white():
    scale = spec(hot(domain=(0, 0.5)))["encoding"]["color"]["scale"]
    assert scale["domain"] == [0, 0.5]
    assert scale["range"] == ["#ffffff", COLORS["noisy"]]


def test_heat_labels_at_most_a_dozen_columns():
    ticks = spec(
        heat(
            pl.DataFrame(dict(epoch=list(range(60)), layer=["a"] * 60, cosine=[0.0] * 60)),
            "epoch",
            "layer",
            "cosine",
            "t",
            "v",
        )
    )["encoding"]["x"]["axis"]["values"]
    assert ticks == list(range(0, 60, 5))


def test_heat_in_colour():
    seen = {"#%02X%02X%02X" % c for _, c in picture(hot()).getcolors(1 << 20)}
    assert {COLORS["clean"], COLORS["noisy"]} <= seen


def decoded(url):
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def urls(chart):
    return [r["url"] for r in rows(chart) if "url" in r]


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 5, 7), (5, 7)])
def test_pictures_as_png(shape):
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [1.0, 5, 0.1, 100]
    ).view(-1, *[1] * len(shape))
    for v, url in zip(x.view(4, -1, 5, 7), urls(pictures(x, list("abcd"), "t")), strict=True):
        got = decoded(url)
        lo = v.min().item()
        hi = v.max().item()
        expected = ((v.double() - lo) / (hi - lo) * 255).movedim(0, 2).numpy()
        assert got.shape == ((5, 7) if len(v) == 1 else (5, 7, 3))
        assert got.dtype == np.uint8
        assert np.abs(got.reshape(expected.shape) - expected).max() <= 1.001
        assert (
            got.min(),
            got.max(),
        ) == (0, 255)


def test_levels_of_grey_are_exact_and_a_flat_picture_is_one():
    x = torch.stack([torch.arange(256).view(1, 16, 16) / 255, torch.full((1, 16, 16), 0.7)])
    grey, flat = map(decoded, urls(pictures(x, ["", ""], "t")))
    assert grey.flatten().tolist() == list(range(256))
    assert len(np.unique(flat)) == 1


def test_pictures_lie_in_rows():
    r = rows(pictures(torch.rand(5, 1, 4, 4), list("abcde"), "t", columns=2))
    assert [(v["caption"], v["column"], v["row"]) for v in r] == [
        ("a", 0, 0),
        ("b", 1, 0),
        ("c", 0, 1),
        ("d", 1, 1),
        ("e", 0, 2),
    ]


@pytest.mark.parametrize("k, captions", [(3, ["a"]), (0, ["a"]), (2, []), (1, ["a", "b"])])
def test_captions_that_do_not_fit(k, captions):
    with pytest.raises(ValueError, match=f"{k} pictures.* given {len(captions)}"):
        pictures(torch.rand(k, 1, 4, 4), captions, "t")


CHARTS = {
    "heat": lambda: hot(),
    "pictures": lambda: pictures(torch.rand(12, 1, 8, 8), [str(i) for i in range(12)], "t"),
    "colour pictures": lambda: pictures(torch.rand(2, 3, 8, 8), ["", ""], "t"),
    "no pictures": lambda: pictures(torch.zeros(0, 1, 8, 8), [], "t"),
    "many curves": lambda: curves(many(9, "model"), "y", "t", "y", color="layer", log_x=False),
    "dots": lambda: dots(many(3).with_columns(mode=pl.lit("own")), "layer", "y", "t", "y", "mode"),
    "levels": lambda: curves(frame(), "y", "t", "y", rules=dict(a=0.2), rules_at="right"),
    "panels": lambda: panels([hot(), curves(frame(), "y", "t", "y")], "Both", columns=1),
    "one legend": lambda: panels(
        [curves(many(8), "y", t, "y", color="layer") for t in "ab"], "Both", legend="one"
    ),
}


@pytest.mark.parametrize("name", CHARTS)
def test_everything_becomes_a_picture(name):
    use_theme()
    image = picture(CHARTS[name]())
    assert min(image.size) > 20
    assert name == "no pictures" or len(image.getcolors(1 << 22)) > 3


def test_no_levels():
    assert level({}) == []


@pytest.mark.parametrize("every, shown", [(0, 5), (1e9, 2)])
def test_live_chart_is_one_display_that_is_updated(monkeypatch, every, shown):
    drawn = []
    handle = type("Handle", (), dict(update=lambda self, chart: drawn.append(chart)))()
    monkeypatch.setattr(
        "IPython.display.display", lambda chart, display_id: drawn.append(chart) or handle
    )
    if every:
        monkeypatch.setattr("memnb.lab.layouts.time.monotonic", lambda: 2 * every)
    data = corrupt(load("digits", n=100, test_share=0)[0], 0.2, "wrong")
    fit(build("mlp", shape=[1, 8, 8], widths=(8,)), data, 5, lr=0.1, observe=[live(every)])
    assert len(drawn) == shown
    last = [r for rows in drawn[-1].to_dict()["datasets"].values() for r in rows]
    assert {r["group"] for r in last} == {"clean", "noisy"}
    assert max(r["time"] for r in last) == 5


# --- within what can be shown


def drawn(chart):
    return max((rows for rows in spec(chart)["datasets"].values()), key=len)


def long(k=30, n=2000):
    "k curves of n points each, with one high and one low point."
    parts = [
        dict(
            epoch=list(range(1, n + 1)),
            layer=f"layer{i:02}",
            y=[0.5] * 700 + [9.0 + i] + [0.5] * 500 + [-9.0 - i] + [0.5] * (n - 1202),
        )
        for i in range(k)
    ]
    return pl.concat([pl.DataFrame(p) for p in parts])


def test_a_curve_of_one_point_is_seen():
    def drawn(accuracy):
        f = pl.DataFrame(dict(epoch=[5.0], group=["clean"], accuracy=[accuracy]))
        return np.asarray(picture(accuracies(f, "title")))

    assert (drawn(0.2) != drawn(0.8)).any()


@pytest.mark.parametrize("k", [1, 13, 54, 200])
def test_many_long_curves_can_be_shown_and_keep_their_extremes(k):
    f = long(k)
    chart = curves(f, "y", "title", "y", color="layer", log_x=False)
    few = pl.DataFrame(drawn(chart))
    assert len(few) <= 5000
    ends = few.group_by("layer").agg(lo=pl.col("y").min(), hi=pl.col("y").max()).sort("layer")
    assert ends.equals(
        f.group_by("layer").agg(lo=pl.col("y").min(), hi=pl.col("y").max()).sort("layer")
    )
    (note,) = spec(chart)["title"]["subtitle"]
    assert note == f"drawn: {len(few):,} of {len(f):,} points, each curve's extremes among them"


def test_what_is_drawn_whole_says_nothing():
    assert spec(curves(frame(), "y", "title", "y"))["title"] == "title"


def test_a_band_is_that_of_all_seeds_however_much_is_thinned():
    f = pl.concat(
        [frame(3000, ["clean"]).with_columns(seed=pl.lit(s), y=pl.col("y") + s) for s in range(3)]
    )
    few = pl.DataFrame(drawn(curves(f, "y", "t", "y", log_x=False)))
    assert 100 < len(few) <= 400
    for row in few.iter_rows(named=True):
        (at,) = [f.filter(epoch=row["epoch"])["y"].to_list()]
        assert (row["lowest"], row["y"], row["highest"]) == (min(at), sorted(at)[1], max(at))


def test_dots_are_summed_up_before_they_are_drawn():
    f = pl.concat([many(3).with_columns(mode=pl.lit("own"), seed=pl.lit(s)) for s in range(500)])
    few = pl.DataFrame(drawn(dots(f, "layer", "y", "t", "y", "mode")))
    assert len(few) == 3
    assert few.sort("layer")["y"].to_list() == pytest.approx(
        f.group_by("layer").agg(pl.col("y").mean()).sort("layer")["y"].to_list()
    )


def test_a_wide_heat_map_shows_every_so_many_columns_and_says_so():
    f = (
        pl.DataFrame(dict(epoch=range(3000), layer="a", cosine=0.5))
        .join(pl.DataFrame(dict(k=range(4))), how="cross")
        .with_columns(layer=pl.format("l{}", "k"))
    )
    chart = heat(f, "epoch", "layer", "cosine", "Heat", "cosine")
    columns = sorted({r["epoch"] for r in drawn(chart)})
    assert len(drawn(chart)) <= 5000
    assert columns == list(range(0, 3000, 3))
    assert spec(chart)["title"]["subtitle"] == ["drawn: 1,000 of 3,000 columns, one in 3"]


NOTHING = frame().clear()
REFUSED = {
    "no rows": (lambda: curves(NOTHING, "y", "t", "y"), "nothing to draw: the frame has no rows"),
    "no dots": (lambda: dots(NOTHING, "group", "y", "t", "y", "group"), "nothing to draw"),
    "no cells": (lambda: heat(NOTHING, "epoch", "group", "y", "t", "v"), "nothing to draw"),
    "no panels": (lambda: panels([], "Title"), "'Title' has no panels"),
    "nothing above 0": (lambda: curves(frame().with_columns(epoch=0), "y", "t", "y"), "above 0"),
    "no values": (
        lambda: curves(frame().with_columns(y=pl.lit(None, pl.Float64)), "y", "t", "y"),
        "none of the 100 rows",
    ),
    "no column": (
        lambda: curves(frame(), "z", "t", "y"),
        "no column 'z'; the frame has epoch, group",
    ),
    "words": (
        lambda: curves(frame().with_columns(y=pl.lit("a")), "y", "t", "y"),
        "'y' holds String",
    ),
    "a list": (lambda: curves([1, 2], "y", "t", "y"), "a polars DataFrame"),
    "another group": (
        lambda: curves(frame(groups=("clean", "loud")), "y", "t", "y"),
        "loud.*the groups are clean",
    ),
    "too many curves": (
        lambda: curves(long(3000, 1300), "y", "t", "y", color="layer"),
        "3,000 curves are more than a chart can show",
    ),
    "a domain": (lambda: curves(frame(), "y", "t", "y", domain=(1, 0)), r"domain=\(1, 0\)"),
    "a rule": (lambda: curves(frame(), "y", "t", "y", rules={"half": "x"}), "'half' is at 'x'"),
    "a side": (lambda: level({"a": 1}, "top"), "side='top'"),
    "stretches": (
        lambda: regions(curves(frame(), "y", "t", "y"), {k: (0, 1) for k in "abcde"}),
        "5 stretches",
    ),
    "no chart": (lambda: panels(["x"], "t"), "must be a chart"),
    "columns of two lengths": (
        lambda: panels([[hot(), hot()], [hot()]], "t"),
        r"columns have \[2, 1\] charts",
    ),
    "a rule of two heights": (
        lambda: facets(frame(), "group", {"clean": "t"}, "y", "y", rules={"half": "y"}),
        "'half' has 11 heights",
    ),
    "a column to lay over": (
        lambda: overlay(frame(), {"z": "Z"}, "t", "y"),
        "column='z'",
    ),
    "columns": (lambda: panels([hot()], "t", columns=0), "columns=0"),
    "channels": (lambda: pictures(torch.rand(1, 5, 4, 4), ["a"], "t"), r"\(5, 4, 4\)"),
    "a wall of pictures": (
        lambda: pictures(torch.zeros(5001, 1, 1, 1), [""] * 5001, "t"),
        "5,001 pictures",
    ),
    "a renderer": (lambda: use_theme("paper"), "renderer='paper' is unknown"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_drawn_is_refused_with_a_word(what):
    draw, says = REFUSED[what]
    with pytest.raises(ValueError, match=says):
        draw()


def strokes(chart):
    "Value -> dashes of its line."
    found = [d for d in find(spec(chart), "strokeDash") if isinstance(d, dict) and "scale" in d]
    scale = found[0]["scale"]
    return dict(zip(scale["domain"], map(tuple, scale["range"]), strict=True))


def test_neighbours_in_the_palette_differ_in_their_strokes():
    found = list(strokes(curves(many(9), "y", "t", "y", color="layer")).values())
    assert all(a != b for a, b in pairwise(found))


def test_numbers_are_told_apart_by_shade_alone():
    rates = pl.concat([frame(10, [str(r)]).with_columns(rho=pl.lit(r)) for r in (0.1, 0.2, 0.3)])
    assert set(strokes(curves(rates, "y", "t", "y", color="rho")).values()) == {(1, 0)}


def test_a_subtitle_may_have_several_lines():
    both = panels([curves(frame(), "y", "t", "y")], "title", ["one", "", "two"])
    assert spec(both)["title"]["subtitle"] == ["one", "two"]


@pytest.mark.parametrize("from_zero", [False, True])
def test_an_axis_of_x_starts_at_0_where_it_is_asked_for(from_zero):
    f = pl.DataFrame(dict(share=[0.2, 0.4], y=[1.0, 2.0], group="test"))
    c = curves(f, "y", "title", "y", x="share", log_x=False, from_zero=from_zero).to_dict()
    assert c["layer"][0]["encoding"]["x"]["scale"].get("zero", False) == from_zero


@pytest.mark.parametrize("draw", [curves, dots], ids=["curves", "dots"])
def test_facets_are_the_charts_drawn_one_by_one(draw):
    rows = frame(4, ["clean", "noisy"])
    both = pl.concat([rows.with_columns(rho=pl.lit(r)) for r in (0.1, 0.2)])
    axes = dict(y="y", y_title="y", color="group", x="epoch")

    charts = facets(both, "rho", {0.2: "two", 0.1: "one"}, chart=draw, size=dict(width=70), **axes)

    alone = [draw(both.filter(rho=r), title=t, **axes) for r, t in ((0.2, "two"), (0.1, "one"))]
    assert [spec(c) for c in charts] == [spec(c.properties(width=70)) for c in alone]


def test_facets_name_a_value_without_rows():
    axes = dict(y="y", y_title="y")
    with pytest.raises(ValueError, match="nothing to draw"):
        facets(frame(), "group", {"nowhere": "title"}, **axes)


def titles(charts):
    return [spec(c)["title"] for c in charts]


def test_columns_of_charts_are_a_grid():
    left, right = [[accuracies(frame(), f"{side}{i}", y="y") for i in (1, 2)] for side in "lr"]
    grid = spec(panels([left, right], "title", columns=5))
    assert [c["title"] for c in grid["concat"]] == ["l1", "r1", "l2", "r2"]
    assert grid["columns"] == 2


def test_stretches_behind_several_charts_have_one_legend():
    charts = regions([curves(frame(), "y", t, "y") for t in "abc"], {"early": (1, 2)})
    legends = [next(find(spec(c), "fill"))["legend"] for c in charts]
    assert titles(charts) == ["a", "b", "c"]
    assert legends[0] is not None
    assert legends[1:] == [None, None]


def test_shares_are_on_linear_axes_from_0_to_1():
    axes = spec(accuracies(frame(), "t", y="y"))["layer"][0]["encoding"]
    assert axes["x"]["scale"]["type"] == "linear"
    assert axes["y"]["scale"]["domain"] == [0, 1]


def heights(chart):
    "Label -> height of a chart's dashed lines."
    rows = [r for data in spec(chart)["datasets"].values() for r in data if "label" in r]
    return {r["label"]: r["y"] for r in rows}


def test_a_rule_of_facets_may_be_a_column():
    f = frame().with_columns(half=pl.when(group="clean").then(0.25).otherwise(0.75))
    names = {"noisy": "Noisy", "clean": "Clean"}
    charts = facets(f, "group", names, "y", "y", rules={"level": "half", "one": 1})
    assert titles(charts) == ["Noisy", "Clean"]
    assert [heights(c)["level"] for c in charts] == [0.75, 0.25]
    assert [heights(c)["one"] for c in charts] == [1, 1]


def test_facets_of_another_chart():
    f = frame(seeds=2)
    (chart,) = facets(f, "seed", {1: "t"}, "y", "y", chart=dots, x="group", color="group", width=99)
    assert spec(chart)["width"] == 99


def test_columns_laid_over_each_other_are_the_curves_of_a_long_frame():
    f = frame(groups=("clean",), seeds=2).with_columns(z=1 - pl.col("y"))
    seen = overlay(f, {"y": "why", "z": "zed"}, "t", "measure", color="column")
    long = pl.concat(
        [
            f.select("epoch", "seed", value=pl.col(name), column=pl.lit(label))
            for name, label in (("y", "why"), ("z", "zed"))
        ]
    )
    assert spec(seen) == spec(curves(long, "value", "t", "measure", color="column"))


def test_a_point_says_what_it_is():
    tips = next(find(spec(curves(frame(seeds=2), "y", "t", "accuracy")), "tooltip"))

    assert [t["title"] if "title" in t else t["field"] for t in tips] == [
        "group",
        "epoch (flow time / learning rate)",
        "accuracy",
        "lowest",
        "highest",
    ]


@pytest.mark.parametrize("groups, filters", [(("clean", "noisy"), 1), (("clean",), 0)])
@pytest.mark.parametrize(
    "draw",
    [
        lambda f: curves(f, "y", "t", "y"),
        lambda f: dots(f, "seed", "y", "t", "y", "group"),
    ],
    ids=["curves", "dots"],
)
def test_a_legend_filters_where_there_is_one(draw, groups, filters):
    drawn = spec(draw(frame(groups=groups, seeds=2)))

    params = drawn.get("params", [])
    assert len(params) == filters
    assert all((p["bind"], p["select"]["fields"]) == ("legend", ["group"]) for p in params)


def test_panels_are_filtered_together():
    one = curves(frame(), "y", "one", "y")
    two = dots(frame(), "epoch", "y", "two", "y", "group")

    (choice,) = spec(panels([one, two], "both"))["params"]

    assert len(choice["views"]) >= 2


def bundle(chart) -> dict:
    "What a notebook keeps of a chart."
    data = chart._repr_mimebundle_()
    return data[0] if isinstance(data, tuple) else data


@pytest.fixture
def themed():
    yield
    use_theme()


def test_only_an_open_notebook_keeps_the_chart_beside_its_picture(monkeypatch, themed):
    chart = curves(frame(), "y", "t", "y")

    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    use_theme()
    stored = bundle(chart)
    monkeypatch.setenv("JPY_SESSION_NAME", "a.ipynb")
    use_theme()
    live_bundle = bundle(chart)
    monkeypatch.undo()

    assert set(stored) == {"image/png"}
    assert set(live_bundle) == {"image/png", LIVE_CHART}
    assert live_bundle["image/png"] == stored["image/png"]
    assert live_bundle[LIVE_CHART]["$schema"].endswith("vega-lite/v5.json")
