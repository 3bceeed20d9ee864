"""The style sheet: enough contrast in light and dark, and text that fits its charts."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from conformance.report.html import charts, words
from conformance.report.html.charts import Point
from conformance.report.terminal import WORDS

CSS = (Path(charts.__file__).parent / "static" / "report.css").read_text(encoding="utf-8")
#: Contrast of text (WCAG 2.2, success criterion 1.4.3) and of signs without text (1.4.11).
TEXT, GRAPHIC = 4.5, 3.0


def palette(scheme: str) -> dict[str, str]:
    """Name -> colour, of a scheme."""
    roots = {
        "light": CSS.split(":root {")[1],
        "dark": CSS.split("@media (prefers-color-scheme: dark)")[1],
        "print": CSS.split("@media print")[1].split(":root {")[1],
    }
    body = roots[scheme].split("}")[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", body))


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    """WCAG 2.2's contrast ratio."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


PAIRS = [
    *((text, ground) for text in ("text", "muted", "link") for ground in ("bg", "surface")),
    *((kind, f"{kind}-bg") for kind in ("ok", "bad", "known", "err", "na")),
    *((kind, "bg") for kind in ("ok", "na")),
    *(("text", shade) for shade in ("s1", "s2", "s3", "s4")),
]


def test_contrast_is_wcag_s() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("scheme", ["light", "dark", "print"])
def test_text_stands_out_from_its_ground(scheme: str) -> None:
    colours = palette(scheme)
    low = {pair: contrast(*(colours[name] for name in pair)) for pair in PAIRS}
    assert {pair: ratio for pair, ratio in low.items() if ratio < TEXT} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_focus_stand_out(scheme: str) -> None:
    colours = palette(scheme)
    for name in ("focus", "bar", "line-measured", "line-allowed", "bad-line", "muted"):
        assert contrast(colours[name], colours["bg"]) >= GRAPHIC, name


def test_both_schemes_colour_the_same_things() -> None:
    assert set(palette("light")) == set(palette("dark"))
    used = set(re.findall(r"var\(--([\w-]+)\)", CSS))
    assert used == set(palette("light"))


def test_cells_have_the_signs_of_their_words() -> None:
    rules = re.findall(r'td\.c\[data-w="(\w+)"\] a::before \{ content: "(.) " / ""', CSS)
    other = {WORDS[outcome]: sign for outcome, sign in words.SIGNS.items()}
    assert {**dict(rules), WORDS["not_applicable"]: words.NOTHING} == other


# --- numbers and charts -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, words.NOTHING),
        (0.0, "0"),
        (1.25e-15, "1.2e-15"),
        (9.99e-4, "1.0e-3"),
        (0.25, "0.25"),
        (5.0279, "5"),
        (1.6e12, "1.6e12"),
        ("nan", "NaN"),
        ("inf", "∞"),
        (float("-inf"), "-∞"),
    ],
)
def test_measurements_are_written_short(given: object, said: str) -> None:
    assert words.sci(given) == said


@pytest.mark.parametrize(
    ("given", "said"), [(1.0, "100 %"), (0.99999, "99.9 %"), (0.875, "87.5 %"), (0.0, "0.0 %")]
)
def test_a_share_is_never_rounded_up_to_all(given: float, said: str) -> None:
    assert words.percent(given) == said


def test_sizes_are_written_short() -> None:
    assert [words.count(n) for n in (7, 64_176, 134_515_008, 8e9)] == [
        "7",
        "64.2 k",
        "135 M",
        "8 B",
    ]
    assert [words.size(n) for n in (2**28, 3 * 2**29)] == ["256 MiB", "1.50 GiB"]
    assert [words.duration(n) for n in (1.25, 70)] == ["1.2 s", "1 min 10 s"]


def heights(chart: str) -> list[float]:
    return [float(y) for y in re.findall(r'<circle[^>]* cy="([\d.]+)"', chart)]


def test_a_larger_error_is_drawn_higher() -> None:
    points = [Point(n, 10.0 ** (n - 18), 1e-12) for n in range(5)]
    drawn = heights(str(charts.by_layer(points, "x", "t", "w")))
    assert drawn == sorted(drawn, reverse=True)
    steps = [a - b for a, b in itertools.pairwise(drawn)]
    assert max(steps) - min(steps) <= 0.2  # a decade is a decade


def test_equal_is_below_everything_and_nan_above() -> None:
    points = [Point(0, 0.0, 1e-12), Point(1, 1e-16, 1e-12), Point(2, float("nan"), 1e-12)]
    chart = str(charts.by_layer(points, "x", "t", "w"))
    low, high = heights(chart)
    assert low > high
    assert chart.count('class="cross"') == 1


@pytest.mark.parametrize("layers", [1, 2, 13, 126])
def test_a_chart_keeps_its_frame(layers: int) -> None:
    points = [Point(n, 1e-300 if n % 2 else 1e300, 1e-12) for n in range(layers)]
    chart = str(charts.by_layer(points, "x", "t", "w"))
    for name, most in (("x", 480.0), ("x1", 480.0), ("cx", 480.0), ("y", 250.0), ("cy", 250.0)):
        found = [float(v) for v in re.findall(rf' {name}="([-\d.]+)"', chart)]
        assert all(0 <= v <= most for v in found), name
    assert len(re.findall('class="tick"', chart)) < 40


def test_bars_are_as_tall_as_their_counts() -> None:
    chart = str(charts.histogram({-30: 10, -29: 5, -10: 1}, "x", "t", 1e-12))
    bars = re.findall(r'<rect class="bar"[^>]* height="([\d.]+)"', chart)
    tall, half, small = map(float, bars)
    assert tall == pytest.approx(2 * half, rel=0.01)
    assert 0 < small < half
    assert 'class="allowed"' in chart
    assert "16 entries differ" in chart
