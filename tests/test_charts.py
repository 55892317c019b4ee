"What is drawn: thinning that keeps extremes, fixed colours, files that are pictures."
import polars as pl
import pytest
from hypothesis import given, settings, strategies as st

from memnb.charts import COLORS, curves, panels, regions, thin, use_theme


def frame(n=50, groups=("clean", "noisy"), seeds=1):
    return pl.concat([pl.DataFrame(dict(epoch=range(1, n + 1), group=g, seed=s, y=[(i * 7 + s) % 11 / 10 for i in range(n)]))
                      for g in groups for s in range(seeds)])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000), st.integers(10, 400))
@settings(max_examples=30, deadline=None)
def test_thinning_keeps_extremes_and_order(values, most):
    f = pl.DataFrame(dict(time=range(len(values)), y=values, group="clean"))
    t = thin(f, "y", ["group"], most=most)
    assert len(t) <= max(most, 1) and t["time"].is_sorted()
    assert (t["y"].min(), t["y"].max()) == (min(values), max(values))


def spec(chart): return chart.to_dict()


def find(node, key):
    if isinstance(node, dict):
        for k, v in node.items():
            if k == key: yield v
            yield from find(v, key)
    elif isinstance(node, list):
        for v in node: yield from find(v, key)


@pytest.mark.parametrize("groups", [("clean", "noisy"), ("noisy",), ("noisy", "clean", "net")])
def test_a_group_keeps_its_colour(groups):
    for color in find(spec(curves(frame(groups=groups), "y", "t", "y")), "color"):
        if isinstance(color, dict) and "scale" in color:
            assert dict(zip(color["scale"]["domain"], color["scale"]["range"])) == {g: COLORS[g] for g in groups}


def test_seeds_are_drawn_as_a_band():
    marks = lambda f: [m["type"] if isinstance(m, dict) else m for m in find(spec(curves(f, "y", "t", "y")), "mark")]
    assert "area" in marks(frame(seeds=3)) and "area" not in marks(frame(seeds=1))


def test_epoch_zero_is_left_out_of_a_log_axis():
    f = pl.DataFrame(dict(epoch=[0, 1, 10], group="clean", y=[5.0, 1, 2]))
    rows = [r for data in spec(curves(f, "y", "t", "y"))["datasets"].values() for r in data]
    assert {r["epoch"] for r in rows} == {1, 10}


def test_saved_as_svg_and_png(tmp_path):
    use_theme()
    chart = panels([regions(curves(frame(), "y", "left", "y", rules={"half": 0.5}), {"early": (1, 20), "late": (20, 50)}), curves(frame(), "y", "right", "y")], "Both", "sub")
    chart.save(str(tmp_path / "c.png"))
    chart.save(str(tmp_path / "c.svg"))
    assert (tmp_path / "c.png").read_bytes()[:4] == b"\x89PNG"
    svg = (tmp_path / "c.svg").read_text()
    for text in ("left", "right", "Both", "half", "clean", "early"): assert text in svg
    assert COLORS["clean"].lower() in svg.lower()
