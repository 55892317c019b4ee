"Charts that change while they are looked at, without a browser."

import json
import re

import altair as alt
import polars as pl
import pytest
import vl_convert

from memnb.explorer.live_charts import LiveChart, split_chart, vega_script
from memnb.lab.charts import curves
from memnb.lab.layouts import panels


def drawing(values, title="a title", domain=(0, 1)):
    "Two charts in one, of other data each."
    n = len(values)
    frame = pl.DataFrame(dict(epoch=range(1, n + 1), a=values, b=values[::-1], group=["clean"] * n))
    parts = [
        curves(frame, name, f"of {name}", "share", log_x=False, domain=domain)
        for name in ("a", "b")
    ]
    return panels(parts, title, f"{n} values")


def put_together(spec, data, words):
    "What the page hands to Vega."
    params = [dict(name=name, value=value) for name, value in words.items()]
    return spec | dict(datasets=data, params=params)


def picture(spec) -> str:
    "The SVG, without the numbers that Vega gives to its parts."
    return re.sub(r"clip\d+|gradient_\d+", "", vl_convert.vegalite_to_svg(spec))


@pytest.mark.parametrize(
    "chart",
    [
        drawing([0.1, 0.5, 0.9]),
        alt.Chart(pl.DataFrame(dict(x=[1, 2]))).mark_point().encode(x="x:Q"),
        alt.Chart(pl.DataFrame(dict(x=[1])), title=["two", "lines"]).mark_bar().encode(x="x:Q"),
    ],
)
def test_the_parts_make_the_same_picture(chart):
    parts = split_chart(chart)

    assert picture(put_together(*parts)) == picture(chart.to_dict())


def test_other_data_and_titles_leave_the_specification():
    one = split_chart(drawing([0.1, 0.5, 0.9]))
    other = split_chart(drawing([0.3] * 40, "another"))

    assert one[0] == other[0]
    assert one[1] != other[1]
    assert one[2] != other[2]
    assert "another" not in json.dumps(other[0])


def test_another_axis_is_another_specification():
    one = split_chart(drawing([0.1, 0.5]))
    other = split_chart(drawing([0.1, 0.5], domain=(0, 0.5)))

    assert one[0] != other[0]


def test_only_what_changed_is_sent():
    live = LiveChart(drawing([0.1, 0.5]))
    sent = []
    live.state.observe(lambda change: sent.append(change["name"]))

    live.chart = drawing([0.1, 0.6])
    live.chart = drawing([0.1, 0.6])
    live.chart = drawing([0.1, 0.6], "another")

    assert sent == ["data", "words"]


def test_charts_share_the_code_that_draws():
    code = LiveChart().code

    assert LiveChart().code is code
    assert code.text.rstrip().endswith("as vegaEmbed};")
    assert not re.findall(r"^\s*import\b|import\(\s*[\"']http", code.text, re.MULTILINE)
    assert len(LiveChart._esm) < 10_000


def test_charts_are_made_after_all_widgets_were_closed():
    before = LiveChart().code
    before.close()

    live = LiveChart(drawing([0.1, 0.5]))

    assert live.code is not before
    assert live.code.comm is not None
    assert live.code.text == before.text


def test_the_code_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda *_, **__: "export {};")

    first = vega_script(tmp_path / "kept")
    monkeypatch.delattr(vl_convert, "javascript_bundle")

    assert vega_script(tmp_path / "kept") == first == "export {};"


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda *_, **__: "export {};")
    (tmp_path / "file").write_text("")

    assert vega_script(tmp_path / "file") == "export {};"


def test_a_click_is_told():
    told = []
    live = LiveChart(field="row", clicked=told.append)

    live.state._handle_custom_msg(dict(clicked=3), [])
    live.state._handle_custom_msg(dict(other=4), [])

    assert told == [3]
