"""The report: self-contained, accessible, escaped, and every number of it from the tables."""

from __future__ import annotations

import itertools
import re
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from synthetic_results import make_tables

from Model_Evaluation.derived import compute_derived
from Model_Evaluation.discordant_sheets import sheet_name
from Model_Evaluation.entries import over_seeds
from Model_Evaluation.figures import BAR, INTERVAL, write_figures
from Model_Evaluation.figures_study import COLOURS
from Model_Evaluation.report import split_clauses, write_report
from Model_Evaluation.report_page import breakable, format_interval, format_value, nice_ticks
from Model_Evaluation.verdict import NOT_MEASURED

NASTY = '<script>alert("x")</script> & <b>ox'
ACCURACIES = {
    ("2d_original", "original", "original"): 0.6,
    ("3d_static", "clip:static", "clip:static"): 0.55,
    ("3d_svd", "clip:svd", "clip:svd"): 0.8,
    ("3d_svd", "clip:svd", "shuffled:svd"): 0.75,
}
VOID = {"meta", "img", "line", "circle", "rect", "wbr"}


class Page(HTMLParser):
    """What a reader's software makes of the page: elements with attributes and text, in order, and their nesting."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(html)
        assert not self.open, f"not closed: {[name for name, _, _ in self.open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = (tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, *tags: str) -> list[tuple[str, dict[str, str], str]]:
        """Elements of these names with their text."""
        return [(tag, attrs, "".join(texts).strip()) for tag, attrs, texts in self.elements if tag in tags]

    def texts(self, *tags: str) -> list[str]:
        """Their text alone."""
        return [text for _, _, text in self.all(*tags)]

    def table(self, caption: str) -> list[list[str]]:
        """The body's cells of the table whose caption begins like this."""
        found, rows, inside = False, [], False
        for tag, _, texts in self.elements:
            if tag == "caption":
                inside = "".join(texts).startswith(caption)
                found |= inside
            elif inside and tag == "tr":
                rows.append([])
            elif inside and tag in ("th", "td"):
                rows[-1].append("".join(texts).strip())
        assert found, caption
        # The caption stands before the head's row.
        return rows[1:]


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> dict[str, pd.DataFrame]:
    options = {"seeds": 2, "num_items": 60, "num_classes": 3, "with_end_to_end": True}
    options["protocol_values"] = {"3d_static": {"lr": "0.01"}}
    options["columns"] = {"2d_original": {"selection_split": "val"}}
    measured = make_tables(tmp_path_factory.mktemp("study"), ACCURACIES, **options)
    predictions = measured["predictions"].replace({"class 1": NASTY})
    measured["predictions"] = predictions
    return measured | compute_derived(measured)


@pytest.fixture(scope="module")
def folder(tables, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    first_runs = tables["confusion_flat"][tables["confusion_flat"]["seed"] == 0]
    write_figures(tables | {"confusion_flat": first_runs}, folder / "figures")
    write_report(tables, folder)
    return folder


@pytest.fixture(scope="module")
def html(folder) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_the_page_asks_for_nothing_outside_and_runs_nothing(page, html):
    assert not page.all("script", "link", "iframe", "object")
    for _, attrs, _ in page.all("img", "a"):
        target = attrs.get("src") or attrs.get("href")
        assert target.startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#")), target[:60]
    style = page.texts("style")[0]
    assert "url(" not in style and "@import" not in style
    without_pictures = re.sub(r'src="data:[^"]*"', "", html)
    assert "http" not in without_pictures
    assert not [name for _, attrs, _ in page.all(*{e[0] for e in page.elements}) for name in attrs if name[:2] == "on"]


def test_the_page_is_accessible(page):
    assert page.all("html")[0][1]["lang"] == "en"
    assert page.texts("title") == ["Does motion help? Undecided. Evaluation report"]
    headings = page.all("h1", "h2", "h3")
    levels = [int(tag[1]) for tag, _, _ in headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in itertools.pairwise(levels))
    images = page.all("img")
    assert len(images) >= 7
    assert all(re.search(r"\d", attrs["alt"]) and attrs["width"].isdigit() for _, attrs, _ in images)
    tables = page.all("table")
    assert len(tables) == len(page.all("caption")) and all(page.texts("caption"))
    assert all(attrs.get("scope") in ("row", "col") for _, attrs, _ in page.all("th"))
    ids = [attrs["id"] for _, attrs, _ in page.all("section")]
    assert len(ids) == len(set(ids))
    assert [attrs["href"] for _, attrs, _ in page.all("a")] == [f"#{name}" for name in ids]


def test_the_verdict_comes_first(page, tables):
    first = tables["verdict"].iloc[0]
    assert page.texts("h1") == [first["question"]]
    assert next(tag for tag, _, _ in page.all("h1", "table", "figure", "ul")) == "h1"
    text = "".join(page.texts("header"))
    assert text.index(first["question"]) < text.index(first["answer"].capitalize()) < text.index("points")
    findings = "".join(page.texts("main"))
    for row in tables["verdict"].iloc[1:].to_dict("records"):
        assert f"{row['question']} {row['answer'].capitalize()}." in findings


def _written(tables: dict[str, pd.DataFrame], folder: Path) -> Page:
    write_report(tables, folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_questions_that_were_not_measured_are_one_line_behind_the_others(html, tables):
    verdict = tables["verdict"]
    unanswered = verdict["answer"] == NOT_MEASURED
    assert 0 < unanswered.sum() < len(verdict) - 1 and not unanswered.iloc[0]
    section = html[html.index('<section id="findings">') : html.index('<section id="accuracy">')]
    shown, folded = section.split("<details>")
    assert f"<summary>Not measured: {unanswered.sum()} questions</summary>" in folded
    for row, is_folded in zip(verdict.iloc[1:].to_dict("records"), unanswered.iloc[1:], strict=True):
        question = escape(row["question"])
        assert (question in folded, question in shown) == (is_folded, not is_folded)


def test_a_report_whose_headline_was_not_measured_opens_with_what_was(tables, tmp_path):
    verdict = tables["verdict"].copy()
    verdict.loc[verdict["position"] == 1, ["answer", "sentence"]] = [NOT_MEASURED, "Not measured: no shuffled clips."]
    page = _written(tables | {"verdict": verdict}, tmp_path)
    assert page.texts("title") == page.texts("h1") == ["Evaluation report"]
    (lead,) = [text for _, attrs, text in page.all("p") if attrs.get("class") == "lead"]
    assert lead == "What was measured of each entry. Not measured: Does motion help? (no shuffled clips)."
    assert page.texts("h2")[:2] == ["Findings", "Accuracy"]
    count = (verdict["answer"] == NOT_MEASURED).sum()
    assert f"Not measured: {count} questions" in page.texts("summary")


def test_a_report_without_any_answer_shows_the_accuracy_first(tables, tmp_path):
    verdict = tables["verdict"].iloc[:1].assign(answer=NOT_MEASURED, sentence="Not measured: there is one entry.")
    page = _written(tables | {"verdict": verdict}, tmp_path)
    assert page.texts("h2")[:4] == ["Accuracy", "Comparisons", "Findings", "What to keep in mind"]
    assert "Not measured: 1 question" in page.texts("summary")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("2d_original/original_paper_geometry", ["2d_original/", "original_", "paper_geometry"]),
        ("3d_camera/clip:camera_motion/t3", ["3d_camera/", "clip:", "camera_motion/", "t3"]),
        ("lr: 0.1 / 0.01 for a_b", ["lr: 0.1 / 0.01 for a_b"]),
        ("first_second_third_fourth", ["first_second_", "third_fourth"]),
        ("<b>/&", ["&lt;b&gt;/&amp;"]),
        ("", [""]),
    ],
)
def test_long_names_break_behind_their_separators_only(name, parts):
    assert breakable(name).split("<wbr>") == parts


def test_no_style_breaks_words_or_hides_that_there_is_more(page):
    style = page.texts("style")[0]
    assert "anywhere" not in style and "word-break" not in style and "hyphens" not in style
    (rule,) = re.findall(r"\.scroll, \.card \{\s*overflow-x: auto;([^}]*)\}", style)
    assert rule.count("no-repeat local") == rule.count("no-repeat scroll") == 2  # covers move along, shadows do not
    in_print = style[style.index("@media print") :]
    assert ".scroll, .card { overflow: visible; background: none; }" in in_print


def test_what_planned_pairs_differ_in_is_short_in_the_table_and_whole_elsewhere(page, tables):
    planned = over_seeds(tables["comparisons"])
    unmatched = planned[planned["differs_in"] != ""]
    assert set(unmatched["differs_in"]) == {"selection_split: hold_out / val", "lr: 0.001 / 0.01"}
    keys = {row["entry_b"]: row["differs_in"].split(":")[0] for row in unmatched.to_dict("records")}
    cells = {cells[1]: cells[-1] for cells in page.table("Planned comparisons")}
    assert {entry_b: cells[entry_b] for entry_b in keys} == keys
    assert {cells[-1] for cells in page.table("All comparisons")} == {
        *tables["comparisons"]["differs_in"],
        "\u2013",
    } - {""}


def test_contrast_is_enough_in_both_modes(page):
    style = page.texts("style")[0]
    light, dark = (dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", part)) for part in _modes(style))
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for name in ("text", "muted", "accent", "second"):
            assert contrast(colours[name], colours["page"]) >= 4.5, (name, colours)
        assert contrast(colours["text"], colours["note"]) >= 4.5


def test_marks_of_figures_stand_out():
    for colour in (*COLOURS, BAR):
        assert contrast(colour, "#ffffff") >= 3, colour
    assert contrast(INTERVAL, BAR) >= 3
    assert len(set(COLOURS)) == 7


def test_networks_of_two_and_three_dimensions_differ_in_shape(page, tables):
    shapes = [(tag, attrs["class"]) for tag, attrs, _ in page.all("circle", "rect") if attrs["class"] == "mean"]
    arms = [("rect" if model.endswith("_3d") else "circle", "mean") for model in tables["arms"]["model"]]
    assert shapes[: len(arms)] == arms and len(set(arms)) == 2
    key = next(text for text in page.texts("p") if "2-D network" in text)
    assert "\u25cf 2-D network" in key and "\u25a0 3-D network" in key


def test_what_can_be_opened_is_open_in_print(page):
    style = page.texts("style")[0]
    in_print = style[style.index("@media print") :]
    (rule,) = re.findall(r"details::details-content \{([^}]*)\}", in_print)
    assert "content-visibility: visible" in rule and "block-size: auto" in rule
    assert page.all("details")


def _modes(style: str) -> tuple[str, str]:
    start = style.index("@media (prefers-color-scheme: dark)")
    end = style.index("* {", start)
    return style[:start], style[start:end]


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours `#rrggbb`."""
    values = []
    for colour in (one, other):
        channels = np.array([int(colour[start : start + 2], 16) for start in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        values.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(values) + 0.05) / (min(values) + 0.05)


def test_names_are_escaped(page, html):
    assert "<script>" not in html and "<b>ox" not in html
    cells = [row[0] for row in page.table("Classes, entries on their own kind")]
    assert NASTY in cells
    assert any(NASTY in attrs["alt"] for _, attrs, _ in page.all("img"))


def test_numbers_of_the_arms_are_those_of_the_table(page, tables):
    rows = page.table("Top-1 of each entry")
    assert [row[0] for row in rows] == tables["arms"]["entry_id"].tolist()
    for row, arm in zip(rows, tables["arms"].to_dict("records"), strict=True):
        assert row[3:8] == [
            str(arm["num_frames"]),
            "2",
            "60",
            f"{100 * arm['top1_mean']:.1f}",
            f"{100 * arm['top1_low']:.1f} to {100 * arm['top1_high']:.1f}",
        ]
    planned = over_seeds(tables["comparisons"])
    rows = page.table("Planned comparisons")
    assert [row[4] for row in rows] == [f"{100 * d:+.1f}".replace("-", "\u2212") for d in planned["difference"]]
    assert [row[9] for row in rows] == [str(count) for count in planned["only_a_right"]]
    assert len(page.table("All comparisons")) == len(tables["comparisons"])


def test_a_number_of_the_tables_is_all_that_changes(tables, folder, html, tmp_path):
    arms = tables["arms"].copy()
    assert "98.7" not in re.sub(r'src="data:[^"]*"', "", html)
    arms.loc[arms.index[0], "majority_top1"] = 0.987
    (tmp_path / "figures").symlink_to(folder / "figures")
    write_report(tables | {"arms": arms}, tmp_path)
    lines = zip(html.splitlines(), (tmp_path / "report.html").read_text().splitlines(), strict=True)
    changed = [(before, after) for before, after in lines if before != after]
    old = format_value(tables["arms"]["majority_top1"].iloc[0], "percent")
    assert len(changed) == 1 and changed[0][0].count(old) >= 1
    assert changed[0][1] == changed[0][0][::-1].replace(old[::-1], "7.89", 1)[::-1]


def test_equal_tables_give_equal_bytes(tables, folder, tmp_path):
    (tmp_path / "figures").symlink_to(folder / "figures")
    write_report({name: frame.copy() for name, frame in tables.items()}, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == (folder / "report.html").read_bytes()
    assert (folder / "report.html").stat().st_size < 5e6


def test_what_is_unmatched_is_marked_and_said(page, html, tables):
    planned = over_seeds(tables["comparisons"])
    unmatched = planned[planned["differs_in"] != ""]
    assert "lr: 0.01 / 0.001" in " ".join(unmatched["differs_in"]) or "lr: 0.001 / 0.01" in " ".join(
        unmatched["differs_in"]
    )
    start = html.index("Planned comparisons")
    table = html[start : html.index("</table>", start)]
    assert table.count('<tr class="marked">') == len(unmatched) > 0
    notes = [text for tag, attrs, text in page.all("p") if attrs.get("class") == "note"]
    for pair in unmatched.to_dict("records"):
        assert any(pair["entry_b"] in note and pair["differs_in"] in note for note in notes)
    assert any(note.startswith("Selected on the reported items: 2d_original/original.") for note in notes)
    assert any(note.startswith("Few seeds: fewer than 3") and "3d_svd/clip:svd" in note for note in notes)
    undecided = planned[planned["outcome"] == "undecided"]
    (sentence,) = [note for note in notes if note.startswith("Undecided is not equal")]
    (too_few,) = [note for note in notes if note.startswith("Too few to decide")]
    is_known = undecided["minimal_detectable_difference"].notna()
    assert set(is_known) == {True, False}
    for pair in undecided[is_known].to_dict("records"):
        detectable = format_value(pair["minimal_detectable_difference"], "size")
        assert f"{detectable} points for {pair['entry_a']} against {pair['entry_b']}" in sentence
    for pair in undecided[~is_known].to_dict("records"):
        assert f"{pair['entry_a']} against {pair['entry_b']}" in too_few


def test_intervals_say_whose_they_are(page):
    head = page.texts("th")
    assert head.count("95 % interval") == 3  # of the entries, and of the comparisons in two tables
    assert head.count("Mean of the seeds' intervals") == 1
    (text,) = [text for text in page.texts("dd") if text.startswith("The range of values")]
    assert "Wilson's" in text and "source images" in text and "other trainings" in text


def test_rows_of_one_seed_decide_nothing(page, tables):
    rows = page.table("All comparisons")
    better = {row[2] == "all": set() for row in rows}
    for row in rows:
        better[row[2] == "all"].add(row[7])
    names = {"a": "A", "b": "B"}
    over_all = tables["comparisons"]["outcome"][tables["comparisons"]["seed"].isna()]
    assert better == {True: {names.get(outcome, outcome) for outcome in over_all}, False: {"\u2013"}}
    assert any("majority vote" in text and "means over seeds" in text for text in page.texts("p"))


def test_the_text_of_the_cost_figure_names_what_it_draws(page):
    (alt,) = [attrs["alt"] for _, attrs, _ in page.all("img") if attrs["alt"].startswith("Top-1 against cost")]
    named = re.findall(r"(\S+) \d+\.\d % at", alt)
    assert named == ["2d_original/original", "3d_static/clip:static/t3", "3d_svd/clip:svd/t3"]


def test_protocols_stages_and_costs_are_listed(page):
    values = page.table("What the protocols set")
    assert ["lr", "0.01", "3d_static"] in values
    assert ["lr", "0.001", "2d_original, 3d_svd"] in values
    assert ["batch_size", "32", "all"] in values
    stages = page.table("Latency from the image through generation")
    assert {row[4] for row in stages} == {"read", "generate", "classify", "total"}
    assert {row[7] for row in stages if row[4] == "total"} == {"100.0"}
    cost = {row[0]: row for row in page.table("Cost of each entry")}
    assert cost["3d_svd/clip:svd/t3"][2:6] == ["147.2", "1", "67.6", "30.1"]


def test_without_any_table_the_page_says_so(tmp_path):
    write_report({}, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert page.texts("h2") == ["Glossary"]
    assert "no comparison" in page.texts("p")[0]


def test_pictures_that_others_drew_are_shown_while_there_is_room(tables, tmp_path):
    figures = tmp_path / "figures"
    figures.mkdir()
    pair = over_seeds(tables["comparisons"], ("claim",)).iloc[0]
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (1400, 1400, 3), dtype=np.uint8))
    for number in range(6):  # more than 1 MB each, even as JPEG
        noise.save(figures / f"curves_{number}.png")
    small = Image.new("RGB", (20, 10))
    small.save(figures / f"{sheet_name(pair['comparison_id'], 'a')}.png")
    small.save(figures / "grad_cam_lions.png")
    write_report(tables, tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    assert (tmp_path / "report.html").stat().st_size < 5e6
    alts = [attrs["alt"] for _, attrs, _ in page.all("img")]
    assert any("3d_svd/clip:svd/t3 is right" in alt and str(pair["only_a_right"]) in alt for alt in alts)
    assert "Grad-CAM: brighter is more evidence: lions" in alts
    shown = sum(alt.startswith("Training curves") for alt in alts)
    (left_out,) = [text for text in page.texts("p") if text.startswith("To keep this page small")]
    assert shown + left_out.count("curves_") == 6 and 0 < shown < 6


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.7584, "percent", "75.8"),
        (-0.0123, "points", "\u22121.2"),
        (0.2, "points", "+20.0"),
        (0.0009, "p", "<0.001"),
        (0.0281, "p", "0.028"),
        (128812810, "millions", "128.8"),
        (12345.6, "measure", "12,346"),
        (0.51299, "measure", "0.513"),
        (pd.NA, "count", "\u2013"),
        ("NA", "text", "NA"),
        (float("nan"), "percent", "\u2013"),
        (None, "text", "\u2013"),
        ("", "text", "\u2013"),
        ("a-b", "text", "a-b"),
        (np.int64(1500), "count", "1,500"),
    ],
)
def test_values_have_one_form(value, kind, text):
    assert format_value(value, kind) == text


def test_an_interval_with_a_missing_end_is_missing():
    assert format_interval({"low": 0.1, "high": 0.25}, "low", "high", "percent") == "10.0 to 25.0"
    assert format_interval({"low": 0.1, "high": None}, "low", "high", "percent") == "\u2013"
    assert format_interval({}, "low", "high", "percent") == "\u2013"


def test_clauses_end_at_semicolons_outside_brackets():
    assert split_clauses("a (b; c (d; e); f); g; h") == ["a (b; c (d; e); f)", "g", "h"]
    assert split_clauses("alone") == ["alone"]


@pytest.mark.parametrize(("low", "high"), [(-4.2, 28.1), (0.0, 1.0), (61.3, 61.9), (-1e-3, 2e-3), (0.0, 1e6)])
def test_ticks_are_round_and_inside(low, high):
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 7 and low <= ticks[0] and ticks[-1] <= high
    step = np.diff(ticks)
    assert step == pytest.approx(step[0])
    assert round(step[0] / 10 ** np.floor(np.log10(step[0] * 1.0001)), 6) in (1, 2, 5)
