"""The report is one file that fetches nothing, runs nothing, escapes everything and hides no gap."""

from __future__ import annotations

import base64
import re
from html import escape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from test_figures import build_tables

from epochlens.measure import survival
from epochlens.show.figures import FIGURES
from epochlens.show.report import CHAPTERS, QUALITY, ROWS_AT_MOST, write_report
from epochlens.show.summary import settled_when, summarise
from epochlens.show.words import median_epoch, quality_sentences, sentences

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
HOSTILE = "<img src=x onerror=alert(1)>"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags, links and text of a page; fails where elements don't nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return build_tables(seeds=4, last=6)


def written(tmp_path, tables, **changed) -> str:
    given = {
        "title": "A sweep",
        "figures": {"cosine_vs_epoch": PNG},
        "extras": {"Maps over epochs": ("A sheet of maps.", PNG), "Time lapse": ("Moving.", b"GIF89a...")},
        "notices": [],
        "configuration": {"datasets": ["digits", "mnist"], "epochs": 6, "optimizer": {"name": "adam"}},
        "summary": pd.DataFrame({"model": ["small"], "accuracy": [0.97]}),
    }
    path = tmp_path / "report.html"
    write_report(path, tables=tables, **{**given, **changed})
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    return path.read_text(encoding="utf-8")


def test_the_report_stands_alone(tmp_path, tables):
    text = written(tmp_path, tables)
    page = Page(text)
    assert not re.search(r"https?://|<script|<link|url\(|@import", text)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    sources = [image["src"] or "" for image in page.named("img")]
    assert [source.split(",")[0] for source in sources] == [
        "data:image/png;base64",
        "data:image/png;base64",
        "data:image/gif;base64",
    ]
    assert base64.b64decode(sources[0].split(",")[1]) == PNG
    targets = {attributes["id"] for attributes in page.named("section")}
    assert {link["href"] for link in page.named("a")} == {f"#{target}" for target in targets}
    drawing = FIGURES["cosine_vs_epoch"]
    assert drawing.title in page.text and drawing.caption in page.text and "A sheet of maps." in page.text
    assert "digits, mnist" in page.text and "name=adam" in page.text


def test_the_report_tells_a_story_in_chapters(tmp_path, tables):
    figures = dict.fromkeys((*FIGURES, "of my own"), PNG)
    text = written(tmp_path, tables, figures=figures)
    heads = re.findall(r"<h2>(.*?)</h2>", text)
    assert heads == ["In words", "Summary", *CHAPTERS, "More views", "Tables"]
    chapters = dict(zip(heads, re.split(r"<h2>.*?</h2>", text)[1:], strict=True))
    for name, drawings in CHAPTERS.items():
        assert re.findall(r"<h3>(.*?)</h3>", chapters[name]) == [FIGURES[d].title for d in drawings]
    rest = re.findall(r"<h3>(.*?)</h3>", chapters["More views"])
    assert {"of my own", "Maps over epochs", FIGURES["properties"].title} <= set(rest)
    assert len(Page(text).named("img")) == len(figures) + 2, "every figure stands in one chapter"


def test_quality_has_a_chapter_only_where_it_was_measured(tmp_path, tables):
    figures = dict.fromkeys((*CHAPTERS[QUALITY], "cosine_vs_epoch"), PNG)
    text = written(tmp_path, tables, figures=figures, extras={})
    chapter = text.split(f"<h2>{QUALITY}</h2>")[1].split("<h2>")[0]
    assert all(f"<li>{escape(line)}</li>" in chapter for line in quality_sentences(tables))
    captions = re.findall(r"<caption>(.*?)</caption>", chapter)
    assert captions[0] == "digits · deep · lr 0.001, epoch 6, n = 4 seeds." and len(captions) == 4
    heads = re.findall(r'<th scope="col">(.*?)</th>', chapter)[:4]
    assert heads == ["method", "mean rank", "metrics ranked", "faithfulness correlation ↑"]
    summary: pd.DataFrame = tables["quality_summary"]
    best = summary.loc[(summary["epoch"] == 6) & (summary["metric"] == "faithfulness_correlation"), "mean"]
    assert f"<td>{best.max():.3g} [" in chapter and len(Page(text).named("img")) == 5
    without = {name: frame for name, frame in tables.items() if not name.startswith("quality")}
    for poor in (
        without,
        {**without, **{name: tables[name].iloc[:0] for name in tables if name not in without}},
    ):
        text = written(tmp_path, poor, figures=figures, extras={})
        assert QUALITY not in text and "quality" not in text.lower() and len(Page(text).named("img")) == 1


def test_the_same_input_gives_the_same_bytes(tmp_path, tables):
    assert written(tmp_path, tables) == written(tmp_path, tables)


def test_names_from_data_are_escaped_everywhere(tmp_path, tables):
    hostile = {}
    for name, frame in tables.items():
        names = [c for c in ("dataset", "model", "method", "run_id", "status", "a", "outcome") if c in frame]
        hostile[name] = frame.assign(**dict.fromkeys(names, HOSTILE))
    page = Page(
        written(
            tmp_path,
            hostile,
            title=HOSTILE,
            figures={HOSTILE: PNG},
            extras={HOSTILE + "2": (HOSTILE, PNG)},
            notices=[HOSTILE],
            configuration={HOSTILE: [HOSTILE]},
            summary=pd.DataFrame({HOSTILE: [HOSTILE]}),
        )
    )
    assert [set(image) for image in page.named("img")] == [{"alt", "src"}] * 2
    assert page.text.count(HOSTILE) > 20
    assert page.named("img")[0]["alt"] == HOSTILE


def test_notices_stand_at_the_top_and_at_every_table(tmp_path, tables):
    runs = tables["runs"].assign(error="")
    runs.loc[[1, 2], ["status", "error"]] = [["failed", "out of memory"], ["missing", ""]]
    text = written(tmp_path, {**tables, "runs": runs}, notices=["2 of 16 runs are missing"])
    assert text.index("2 of 16 runs are missing") < text.index("<nav")
    captions = re.findall(r"<caption>(.*?)</caption>", text)
    assert len(captions) == 8 and all("2 of 16 runs are missing" in caption for caption in captions)
    assert "out of memory" in text and runs["run_id"][1] in text.split("Runs that are not done")[-1]
    assert 'class="notice"' not in written(tmp_path, tables)


def test_comparisons_put_first_what_holds_and_count_what_is_left_out(tmp_path, tables):
    frame = pd.concat([tables["comparisons"]] * 8, ignore_index=True)
    frame["p_adjusted"] = np.r_[np.full(30, np.nan), np.linspace(1, 0.001, len(frame) - 30)]
    text = written(tmp_path, {**tables, "comparisons": frame})
    part = text.split("<h3>Comparisons</h3>")[1].split("</section>")[0]
    lines = re.findall(r"<tr>(.*?)</tr>", part)[1:]
    column = list(frame.columns).index("p_adjusted")
    shown = [float(re.findall(r"<td[^>]*>(.*?)</td>", line)[column]) for line in lines]
    assert len(shown) == ROWS_AT_MOST and shown == sorted(shown) and shown[0] == 0.001
    assert f"{len(frame) - ROWS_AT_MOST} further rows are left out" in part and "comparisons.csv" in part


def test_refused_comparisons_are_named_with_their_seeds_where_rows_are_cut(tmp_path, tables):
    row = tables["comparisons"].iloc[[0]]
    held = pd.concat([row.assign(outcome=f"outcome {i:02d}") for i in range(ROWS_AT_MOST + 5)])
    refused = row.assign(p_adjusted=np.nan, p=np.nan, n_missing=2, missing="a: 4; b: 3")
    text = written(tmp_path, {**tables, "comparisons": pd.concat([held, refused])})
    part = text.split("<h3>Comparisons</h3>")[1].split("</section>")[0]
    assert "a: 4; b: 3" not in part, "the row is cut"
    lacks = [f"seed 4 of digits · small · lr {row['a'].iloc[0]}", "seed 3 of digits · small · lr "]
    assert all(words in part for words in lacks)
    assert all(words in text.split("<h2>In words</h2>")[1].split("</section>")[0] for words in lacks)


def test_the_summary_and_the_table_of_settling_epochs_respect_censoring(tmp_path):
    # Ten seeds, the last epoch 50: half of the accuracies settled, of the maps two, or all but one.
    alone = build_tables(models=("small",), rates=(0.001,), seeds=10, last=4, metrics=("cosine",))
    frame = alone["stabilisation"].sort_values(["method", "seed"], ignore_index=True)
    few, seed = frame["method"] == "saliency", frame["seed"]
    late = np.where(few, seed >= 2, seed == 9)
    frame = frame.assign(censored=late, epoch=np.where(late, 50.0, 10.0 + seed))
    unsettled = seed >= 5
    accuracy = {"accuracy_epoch": np.where(unsettled, 50.0, 45.0 + seed), "accuracy_censored": unsettled}
    changed = {**alone, "stabilisation": frame.assign(**accuracy)}
    told = summarise(changed).set_index("method")
    assert set(told["accuracy settles"]) == {"epoch 49 (5 did not)"}
    assert told.loc["saliency", "maps settle"] == "not before epoch 50 (8 did not)"
    assert told.loc["integrated_gradients", "maps settle"] == "epoch 14 (1 did not)"
    part = written(tmp_path, changed).split("<h3>Settling epochs</h3>")[1].split("</table>")[0]
    heads = re.findall(r'<th scope="col">(.*?)</th>', part)
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", line) for line in re.findall(r"<tr>(.*?)</tr>", part)[1:]]
    ig, saliency = (dict(zip(heads, row, strict=True)) for row in rows)
    assert (ig["median epoch"], saliency["median epoch"]) == ("14", "not before 50")
    low, high = survival.median_interval(10.0 + np.arange(10), np.arange(10) < 9)[1:]
    assert ig["95 % interval"] == f"[{low:g}, {high:g}]" and "not known]" in saliency["95 % interval"]
    assert ig["accuracy epoch"] == saliency["accuracy epoch"] == "49"
    # Lags of integrated gradients: five of -35, at most -35, -34, -33 and -32, and one that may be anything.
    assert ig["median lag"] == "at most -35" and saliency["median lag"] == "not known"


@pytest.mark.parametrize(
    ("epochs", "censored", "expected"),
    [
        ([3, 5, 8], [0, 0, 0], "epoch 5"),
        ([9, 9], [1, 1], "not yet"),
        ([3, 9, 9], [0, 1, 1], "not before epoch 9 (2 did not)"),
        ([np.nan, 4], [1, 0], "epoch 4"),
        ([np.nan], [1], "undefined"),
    ],
)
def test_when_seeds_settled_in_words(epochs, censored, expected):
    assert settled_when(np.array(epochs, float), np.array(censored)) == expected


def test_empty_tables_still_make_a_report(tmp_path, tables):
    for poor in ({}, {name: frame.iloc[:0] for name, frame in tables.items()}):
        page = Page(written(tmp_path, poor, summary=pd.DataFrame(), figures={}, extras={}, configuration={}))
        assert "There are no rows" in page.text and "There are no runs" in page.text


def test_sentences_state_accuracy_settling_and_what_holds(tables):
    told = sentences(tables)
    key = ("digits", "deep", 0.001)
    epochs = tables["epochs"]
    mine = (epochs[["dataset", "model", "learning_rate"]] == list(key)).all(axis=1) & (epochs["epoch"] == 6)
    mean = epochs.loc[mine, "accuracy"].mean()
    about = next(line for line in told if line.startswith("digits · deep · lr 0.001:"))
    assert f"accuracy {mean:.3f} after epoch 6 (4 seeds, 95 % interval" in about
    assert sum(line.startswith("digits · deep · lr 0.001, ") for line in told) == 2
    frame = tables["comparisons"]
    hold, tested = int((frame["p_adjusted"] < 0.05).sum()), int(frame["p_adjusted"].notna().sum())
    assert any(line.startswith(f"{hold} of {tested} paired comparisons hold") for line in told)
    families = [line for line in told if "adjusted p " in line]
    assert [line.split(" (")[0] for line in families] == [
        "lr 0.001 minus lr 0.01: mean_cosine is higher in 2",
        "No difference found in settling_epoch between lr 0.001 and lr 0.01",
    ], "every tested family is one sentence"
    assert "lr 0.001 minus lr 0.01: mean_cosine is higher in 2" in "\n".join(told)


def test_sentences_say_how_many_runs_are_not_done(tables):
    runs = tables["runs"].copy()
    runs.loc[:2, "status"] = "failed"
    assert sentences({**tables, "runs": runs})[0].startswith(f"3 of {len(runs)} runs are not done (3 failed)")
    assert not any("not done" in line for line in sentences(tables))


@pytest.mark.parametrize(
    ("epochs", "censored", "expected"),
    [
        ([3, 5, 9], [False, False, True], (5.0, False)),
        ([3, 9, 9], [False, True, True], (9.0, True)),
        ([3, 5, 9, 9], [False, False, True, True], (5.0, False)),
    ],
)
def test_a_median_among_censored_seeds_is_a_lower_bound(epochs, censored, expected):
    assert median_epoch(pd.DataFrame({"epoch": epochs, "censored": censored})) == expected


def test_one_seed_has_no_interval_in_words():
    alone = build_tables(models=("small",), rates=(0.001,), seeds=1, last=4)
    told = [line for line in sentences(alone) if line.startswith("digits")]
    assert len(told) == 3 and all("one seed" in line for line in told)
    assert not any("interval" in line or "nan" in line or "[" in line for line in told)
