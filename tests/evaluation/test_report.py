"""The HTML report, read back with a parser: contents, layout, escaping and self-containment."""

import base64
import html
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from videogen_jax.evaluation import report
from videogen_jax.generate import contact_sheet

HOSTILE = (
    """</script><script>alert("1")</script> 'x' & $title ${sections} <img src="http://x.org">"""
)
VOID = {"meta", "link", "img", "br"}


class Reader(HTMLParser):
    """Parses [tag, attributes, text] of each element in order; checks that elements are closed in order."""

    def __init__(self, page):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        element = [tag, dict(attrs), ""]
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for element in self._open:
            element[2] += data

    def all(self, tag, **attributes):
        return [e for e in self.elements if e[0] == tag and attributes.items() <= e[1].items()]

    def texts(self, tag, **attributes):
        return [text for _, _, text in self.all(tag, **attributes)]


def read(path, **changes):
    """Writes and parses a page of these parts; others are empty."""
    parts = {"title": "t", "scores": [], "protocol": {}, "options": {}, "curves": {}, "videos": []}
    report.write_report(path / "report.html", **parts | changes)
    page = (path / "report.html").read_text(encoding="utf-8")
    assert [p.name for p in path.iterdir()] == ["report.html"]
    return page, Reader(page)


def some_gif():
    videos = np.random.default_rng(0).integers(0, 256, (3, 5, 8, 8, 3), np.uint8)
    return contact_sheet.animation(videos, fps=10)


def read_chart(page):
    """Reads the points of the only curve from its tick labels, as a person would."""
    reader = Reader(page)
    numbers = [
        (float(e[1]["x"]), float(e[1]["y"]), e[1]["text-anchor"], float(e[2].replace(",", "")))
        for e in reader.all("text")
    ]
    bottom = max(y for _, y, _, _ in numbers)
    # Labels are 3.5 below their grid line.
    y_marks = sorted((y - 3.5, value) for _, y, _, value in numbers if y < bottom)
    x_marks = [(x, value) for x, y, _, value in numbers if y == bottom]
    assert len(x_marks) >= 2 and len(y_marks) >= 2
    log = "log axis" in reader.all("svg")[0][1]["aria-label"]
    points = reader.all("polyline")[0][1]["points"].split(" ")
    xs, ys = np.array([[float(number) for number in point.split(",")] for point in points]).T
    positions, values = np.array(y_marks).T
    line = np.polyfit(positions, np.log(values) if log else values, 1)
    values = np.polyval(line, ys)
    steps = np.polyval(np.polyfit(*np.array(x_marks).T, 1), xs)
    return steps, np.exp(values) if log else values, xs, ys


def test_all_text_is_escaped(tmp_path):
    gif, size = some_gif()
    page, reader = read(
        tmp_path,
        title=HOSTILE,
        scores=[{"name": HOSTILE, "value": 1.5, "note": HOSTILE}],
        protocol={HOSTILE: HOSTILE},
        options={f"{HOSTILE}.{HOSTILE[:9]}": [HOSTILE]},
        curves={f"{HOSTILE}/{HOSTILE}": ([1, 2], [1.0, 2.0]), HOSTILE[:9]: ([1], [np.nan])},
        videos=[{"title": HOSTILE, "gif": gif}],
    )
    assert len(reader.all("script")) == 1 and len(reader.all("img")) == 1
    assert reader.texts("title") == reader.texts("h1") == [HOSTILE]
    assert reader.texts("th", scope="row") == [HOSTILE, HOSTILE, HOSTILE[:9]]
    assert reader.texts("td", **{"class": "faint"}) == [HOSTILE]
    assert HOSTILE in reader.texts("td") and str([HOSTILE]) in reader.texts("td")
    assert HOSTILE in reader.texts("summary") and HOSTILE in reader.texts("figcaption")
    assert reader.all("img")[0][1]["alt"] == HOSTILE


def test_the_page_is_self_contained_and_its_videos_complete(tmp_path):
    gif, (width, height) = some_gif()
    page, reader = read(
        tmp_path, curves={"a/b": ([1], [1.0])}, videos=[{"title": "clips", "gif": gif}]
    )
    addresses = [
        value
        for _, attributes, _ in reader.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "poster", "action")
    ]
    assert addresses and all(address.startswith("data:") for address in addresses)
    assert not re.search(r"https?://|url\(|@import|//[a-z]+\.", page)
    image = reader.all("img")[0][1]
    assert (int(image["width"]), int(image["height"])) == (width, height)
    data = base64.b64decode(image["src"].removeprefix("data:image/gif;base64,"))
    assert data == gif and Image.open(io.BytesIO(data)).n_frames == 5


def test_scores_are_shown_with_interval_count_and_protocol(tmp_path):
    scores = [
        {"name": "FVD", "value": 10.1381, "low": 9.5, "high": 11.25, "n": 128, "note": "ddof 1"},
        {"name": "rate", "value": 0.84375, "low": None, "high": None},
        {"name": "absent", "value": None},
    ]
    _, reader = read(tmp_path, scores=scores, protocol={"frames": 16, "ddof": 1})
    assert reader.texts("th", scope="col") == ["Score", "Value", "Interval", "N", "Notes"]
    assert reader.texts("td")[:5] == ["10.1381", "9.5 to 11.25", "128", "ddof 1", "0.84375"]
    assert reader.texts("td")[5:12] == ["", "", "", "none", "", "", ""]
    assert reader.texts("td")[12:] == ["16", "1"]


def test_bounds_have_columns_and_parts_a_list(tmp_path):
    scores = [
        {"name": "FVD", "value": 200.0, "floor": 100.0, "ceiling": 500.0, "share": 0.75},
        {
            "name": "label accuracy",
            "value": 0.5,
            "parts": [{"name": "<pong>", "value": 0.25, "note": "1 of 4"}],
        },
    ]
    page, reader = read(tmp_path, scores=scores)
    head = ["Score", "Value", "Interval", "Floor", "Ceiling", "Of the way", "Notes"]
    assert reader.texts("th", scope="col") == head
    assert reader.texts("td")[:6] == ["200", "", "100", "500", "75.0%", ""]
    assert reader.texts("td")[6:11] == ["0.5", "", "", "", ""]
    assert "<pong>" in reader.texts("th", scope="row") and "25.0% (1 of 4)" in reader.texts("td")
    assert "Each" in reader.texts("summary")


def test_curves_are_grouped_by_the_prefix_of_their_tag(tmp_path):
    curves = {tag: ([1, 2], [1.0, 2.0]) for tag in ("speed/a", "loss/b", "loss/c/d", "alone")}
    _, reader = read(tmp_path, curves=curves)
    assert reader.texts("h3") == ["", "loss", "speed"]
    names = [text.split("2")[0] for text in reader.texts("figcaption")]
    assert names == ["alone", "b", "c/d", "a"]


@pytest.mark.parametrize(
    "tag, values",
    [
        ("loss/train", [0.9, 0.3, 0.25, 0.05, 0.021, 0.02]),  # log axis
        ("loss/train", [1e3, 10.0, 1e-2, 1e-4, 1e-5, 2e-5]),
        ("loss/train", [0.9, 0.8, 0.7, 0.75, 0.6, 0.55]),  # linear: its range is small
        ("optimisation/learning_rate", [0.0, 3e-3, 2.9e-3, 2e-3, 1e-3, 1e-5]),
        ("evaluation/difference", [-1500.0, 20.0, 3e3, 12345.0, -7.0, 0.0]),
    ],
)
def test_a_curve_can_be_read_from_its_axes(tmp_path, tag, values):
    steps = [5, 10, 400, 1000, 3500, 4200]
    page, _ = read(tmp_path, curves={tag: (steps, values)})
    read_steps, read_values, xs, ys = read_chart(page)
    assert ("log axis" in page) == (tag == "loss/train" and max(values) > 5 * min(values))
    # Positions are rounded to 0.1 of about 240 in x and 140 in y.
    np.testing.assert_allclose(read_steps, steps, atol=4200 / 240 * 0.2)
    if "log axis" in page:
        decades = np.log(max(values) / min(values) * 1.21)
        np.testing.assert_allclose(np.log(read_values), np.log(values), atol=decades / 140 * 0.2)
    else:
        np.testing.assert_allclose(read_values, values, atol=np.ptp(values) * 1.1 / 140 * 0.2)
    assert xs.min() >= 40 and xs.max() <= 300 and ys.min() >= 0 and ys.max() <= 150


def test_a_second_row_of_labels_has_the_time_of_training(tmp_path):
    """Half a second a step up to step 400, then two seconds."""
    curves = {"loss/train": ([100, 1000], [2.0, 1.0])}
    assert 'class="time"' not in read(tmp_path, curves=curves)[0]
    curves["speed/step_seconds"] = ([200, 400, 1000], [0.5, 0.5, 2.0])
    page, _ = read(tmp_path, curves=curves)
    svg = page[page.index("<svg") : page.index("</svg>")]
    texts = re.findall(r'<text (class="time" )?x="([\d.]+)"[^>]*>([^<]*)</text>', svg)
    times = {x: text for is_time, x, text in texts if is_time}
    steps = {x: text for is_time, x, text in texts if not is_time and x in times}
    assert {steps[x]: times[x] for x in times} == {
        "200": "100 s",
        "400": "3.33 min",
        "600": "10 min",
        "800": "16.7 min",
        "1000": "23.3 min",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (90, "90 s"), (720, "12 min"), (12_600, "3.5 h"), (345_600, "4 d")],
)
def test_times_have_a_unit_of_their_size(seconds, text):
    assert report.format_time(seconds) == text


def test_the_caption_shows_the_last_value_and_the_pointer_each_value(tmp_path):
    _, reader = read(tmp_path, curves={"a/b": ([1, 2000], [0.5, 1.25e-7])})
    assert reader.texts("output") == ["1.25e-7 step 2,000"]
    points = json.loads(reader.all("figure")[0][1]["data-curve"])
    assert [point[2:] for point in points] == [["1", "0.5"], ["2,000", "1.25e-7"]]
    placed = reader.all("polyline")[0][1]["points"]
    assert placed == " ".join(f"{x},{y}" for x, y, *_ in points)


def test_a_spike_in_a_long_curve_is_not_lost(tmp_path):
    values = np.sin(np.arange(30_000) / 3000)
    values[17_003], values[9], values[29_990] = 7.0, -4.0, -5.0
    steps = list(range(1, 30_001))
    page, reader = read(tmp_path, curves={"a/b": (steps, values.tolist())})
    points = json.loads(reader.all("figure")[0][1]["data-curve"])
    assert len(points) <= 600
    labels = {point[2]: point[3] for point in points}
    assert labels["17,004"] == "7" and labels["10"] == "-4" and labels["29,991"] == "-5"
    assert "1" in labels and "30,000" in labels
    drawn = [int(point[2].replace(",", "")) for point in points]
    assert drawn == sorted(drawn)


@pytest.mark.parametrize(
    "steps, values, drawn",
    [
        ([7], [3.0], 1),
        ([0, 1], [0.0, 0.0], 2),
        ([1, 2, 3], [5.0, 5.0, 5.0], 3),
        ([1, 2, 3, 4], [np.nan, 1.0, np.inf, 2.0], 2),
        ([1, 2], [np.nan, -np.inf], 0),
        ([1, 2], [1e-300, 1e300], 2),
        ([], [], 0),
    ],
)
@pytest.mark.parametrize("tag", ["loss/x", "speed/x"])
def test_degenerate_curves_are_drawn_without_non_finite_values(tmp_path, tag, steps, values, drawn):
    page, reader = read(tmp_path, curves={tag: (steps, values)})
    lines = reader.all("polyline")
    count = len(lines[0][1]["points"].split(" ")) if lines else 0
    assert count == drawn
    missing = len(steps) - drawn
    assert (f"{missing} not finite" in page) == bool(missing)
    assert "nan" not in " ".join(html.unescape(str(e[1])) for e in reader.elements).lower()


def test_options_are_grouped_by_section(tmp_path):
    options = {"seed": 0, "data.path": "p", "model.patch": [1, 2], "data.size": 8, "train.text": {}}
    _, reader = read(tmp_path, options=options)
    assert reader.texts("summary") == ["All options", "data", "model", "train"]
    assert reader.texts("th", scope="row") == ["seed", "path", "size", "patch", "text"]
    assert reader.texts("td") == ["0", "p", "8", "[1, 2]", "{}"]
    assert not any("open" in e[1] for e in reader.all("details"))


def test_a_page_without_scores_says_so(tmp_path):
    page, reader = read(tmp_path)
    assert "Not evaluated yet." in page and reader.texts("h2") == ["Scores"]


def test_other_formats_than_gif_and_mp4_are_an_error_and_leave_the_old_page(tmp_path):
    before, _ = read(tmp_path)
    with pytest.raises(ValueError, match="'clips' is neither a GIF nor an mp4"):
        read(tmp_path, videos=[{"title": "clips", "gif": b"\x1aE\xdf\xa3 webm"}])
    assert (tmp_path / "report.html").read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
