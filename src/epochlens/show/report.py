"""One HTML file with everything in it: words, figures, tables; nothing is fetched and nothing runs."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd

from epochlens.measure import survival
from epochlens.record.files import write_whole
from epochlens.show import frames, lags, style
from epochlens.show.compared import untested
from epochlens.show.figures import FIGURES
from epochlens.show.frames import KEYS, groups, keep, numbers
from epochlens.show.summary import last_quality, quality_by_configuration
from epochlens.show.words import quality_sentences, sentences

__all__ = ["sentences", "write_report"]

# A heading, what stands under it (HTML), and its parts: headings with their HTML.
Chapter = tuple[str, str, Sequence[tuple[str, str]]]

ROWS_AT_MOST = 40
SUMMARY = (
    "What each configuration reached. Settling epochs here are Kaplan-Meier medians over seeds, a seed's "
    "maps being followed by their mean similarity over images; the sentences above follow every image if "
    "known."
)
QUALITY = "How good are the maps"
QUALITY_CELLS = (
    "Cells are means over seeds with 95 % t intervals, each seed the mean over the images where the metric "
    "is defined. The arrow tells whether higher or lower is better; # is the rank among the rows, controls "
    "included, 1 the best. The mean rank counts every ranked metric alike, related ones too."
)
CHAPTERS: dict[str, list[str]] = {
    "When do maps settle": ["survival", "settling", "lag", "cosine_to_final", "accuracy_and_convergence"],
    "Can it be trusted": ["nulls", "calibrated", "agreement", "conditioned", "drift"],
    QUALITY: ["quality_bars", "quality_vs_epoch", "deletion_insertion", "quality_tradeoffs"],
    "Effects and comparisons": ["dataset_effect", "model_effect", "learning_rate_effect", "effect_sizes"],
}
STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0 auto;max-width:68rem;padding:1rem 1.1rem 4rem;background:#fff;color:#1a1a1a;
 font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:break-word}
h1{font-size:1.7rem;line-height:1.2;margin:.6rem 0 1rem}
h2{font-size:1.25rem;margin:2.6rem 0 .7rem;padding-top:.5rem;border-top:1px solid #ddd}
h3{font-size:1.05rem;margin:2rem 0 .5rem}
p,li{max-width:46rem}
a{color:#0059a3}
nav ul{columns:2 18rem;padding-left:1.1rem;margin:.4rem 0}
nav ul ul{columns:1;font-size:.9rem;margin:0 0 .3rem}
.notice{background:#fff1d6;border:1px solid #d55e00;border-left-width:.4rem;color:#5c2300;
 padding:.6rem .9rem;margin:1rem 0;font-weight:600}
.notice p{margin:.2rem 0;max-width:none}
figure{margin:1rem 0 2rem}
figure img{max-width:100%;height:auto;display:block}
figcaption{color:#444;font-size:.9rem;max-width:46rem;margin-top:.4rem}
.scroll{overflow-x:auto;margin:.8rem 0 1.4rem}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
caption{caption-side:top;text-align:left;color:#444;padding:.2rem 0 .5rem;max-width:46rem}
caption strong{color:#8a3500}
th,td{padding:.25rem .6rem;border-bottom:1px solid #e4e4e4;text-align:left;vertical-align:top;
 white-space:nowrap}
th{border-bottom:2px solid #999}
td.number{text-align:right}
td.long{white-space:normal;min-width:14rem;overflow-wrap:anywhere}
@media print{body{max-width:none;font-size:10pt;padding:0}nav{display:none}.scroll{overflow:visible}
 table{font-size:6.5pt}th,td{padding:.1rem .25rem;white-space:normal}
 figure,tr{break-inside:avoid}h2,h3{break-after:avoid}}
"""


def write_report(
    path: str | Path,
    title: str,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, bytes],
    extras: Mapping[str, tuple[str, bytes]],
    notices: Sequence[str],
    configuration: Mapping[str, object],
    summary: pd.DataFrame,
) -> None:
    """Write the report: figures are PNG bytes by name, extras (caption, PNG or GIF bytes) by heading."""
    warned = " ".join(notices)
    told = {name for names in CHAPTERS.values() for name in names}
    chapters = {**CHAPTERS, "More views": [name for name in figures if name not in told]}
    shown = {name for name in figures if name not in FIGURES or FIGURES[name].is_shown(tables)}
    drawn = {
        title: [illustration(name, figures[name]) for name in names if name in shown]
        for title, names in chapters.items()
    }
    above = {QUALITY: quality_section(tables, warned)}
    drawn["More views"] += [
        (name, image(content, name, caption)) for name, (caption, content) in extras.items()
    ]
    sections: list[Chapter] = [
        ("In words", bullets(sentences(tables)), []),
        ("Summary", table(summary, SUMMARY, warned), []),
        *((name, above.get(name, ""), parts) for name, parts in drawn.items() if parts or above.get(name)),
        (
            "Tables",
            "",
            [
                ("Settling epochs", settling_table(tables, warned)),
                ("Comparisons", comparison_table(tables, warned)),
                ("Runs that are not done", lacking_table(tables, warned)),
                ("Configuration", settings(configuration)),
            ],
        ),
    ]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page(title, sections, notices).encode())


def page(title: str, chapters: Sequence[Chapter], notices: Sequence[str]) -> str:
    """The whole document; headings are plain text, contents HTML."""
    banner = "".join(f"<p>{escape(notice)}</p>" for notice in notices)
    banner = f'<div class="notice" role="note">{banner}</div>' if banner else ""
    contents = body = ""
    for i, (name, content, parts) in enumerate(chapters):
        entries = "".join(link(f"s{i}-{k}", part) for k, (part, _) in enumerate(parts))
        contents += link(f"s{i}", name, f"<ul>{entries}</ul>" if entries else "")
        content += "".join(section(f"s{i}-{k}", "h3", *part) for k, part in enumerate(parts))
        body += section(f"s{i}", "h2", name, content)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f'<body><h1>{escape(title)}</h1>{banner}<nav aria-label="Contents"><ul>{contents}</ul></nav>\n'
        f"<main>{body}</main></body></html>\n"
    )


def link(target: str, name: str, below: str = "") -> str:
    """An entry of the contents, with those below it."""
    return f'<li><a href="#{target}">{escape(name)}</a>{below}</li>'


def section(target: str, heading: str, name: str, content: str) -> str:
    """A heading with what it stands over, to be linked to."""
    return f'<section id="{target}"><{heading}>{escape(name)}</{heading}>{content}</section>\n'


def bullets(lines: Iterable[str]) -> str:
    """Sentences as a list."""
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else "<p>Nothing to tell yet.</p>"


def settings(configuration: Mapping[str, object]) -> str:
    """The sweep's configuration as a table of two columns."""
    lines = "".join(
        f'<tr><th scope="row">{escape(str(name))}</th><td class="long">{escape(plain(value))}</td></tr>'
        for name, value in configuration.items()
    )
    return f'<div class="scroll"><table><tbody>{lines}</tbody></table></div>'


def plain(value: object) -> str:
    """A setting as text: lists with commas, mappings as name=value."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={plain(inner)}" for name, inner in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(inner) for inner in value)
    return "" if value is None else str(value)


def illustration(name: str, content: bytes) -> tuple[str, str]:
    """A figure's heading and its image with caption; an unknown name is its own heading."""
    drawing = FIGURES.get(name)
    if drawing is None:
        return name, image(content, name, "")
    return drawing.title, image(content, drawing.title, drawing.caption)


def image(content: bytes, alternative: str, caption: str) -> str:
    """An image inside the page, with its caption."""
    kind = "gif" if content.startswith(b"GIF8") else "png"
    data = base64.b64encode(content).decode("ascii")
    return (
        f'<figure><img alt="{escape(alternative)}" src="data:image/{kind};base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(frame: pd.DataFrame, caption: str, warned: str = "") -> str:
    """A data frame as an HTML table; numbers have four significant digits, undefined ones a dash."""
    if frame.empty:
        return f"<p>{escape(caption)} There are no rows.</p>" + (
            f"<p><strong>{escape(warned)}</strong></p>" if warned else ""
        )
    head = "".join(f'<th scope="col">{escape(str(column))}</th>' for column in frame.columns)
    lines = "".join(
        f"<tr>{''.join(cell(value) for value in row)}</tr>"
        for row in frame.itertuples(index=False, name=None)
    )
    warning = f" <strong>{escape(warned)}</strong>" if warned else ""
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}{warning}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def cell(value: object) -> str:
    """One table cell."""
    if isinstance(value, (bool, np.bool_)):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, (int, float, np.integer, np.floating)):
        return f'<td class="number">{number(float(value))}</td>'
    text = "" if value is None or value is pd.NA or value is pd.NaT else str(value)
    kind = ' class="long"' if len(text) > 40 else ""
    return f"<td{kind}>{escape(text)}</td>"


def number(value: float) -> str:
    """A number in few digits; a dash where it is undefined."""
    if np.isnan(value):
        return "–"
    return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def quality_section(tables: Mapping[str, pd.DataFrame], warned: str) -> str:
    """Quality of the maps in sentences and a table per configuration; nothing where none was measured."""
    found = quality_by_configuration(tables)
    if not found:
        return ""
    content = f"{bullets(quality_sentences(tables))}<p>{escape(QUALITY_CELLS)}</p>"
    for key, part in groups(last_quality(tables)).items():
        epoch, count = numbers(part, "epoch").max(), frames.counted([numbers(part, "n_seeds").max()])
        content += table(found[key], f"{style.named(key)}, epoch {epoch:g}, {count}.", warned)
    return content


def settling_table(tables: Mapping[str, pd.DataFrame], warned: str) -> str:
    """Settling epochs per configuration, method and metric: median, range and number censored."""
    needed = [*KEYS, "seed", "method", "metric", "epoch", "censored", "accuracy_epoch", "lag"]
    frame = frames.rows(tables, "stabilisation", needed)
    lines = [
        {
            **dict(zip([*KEYS, "method", "metric"], key, strict=True)),
            "seeds": len(part),
            **median_of_seeds(part),
            "earliest": numbers(part, "epoch").min(),
            "latest": numbers(part, "epoch").max(),
            "not settled": int(numbers(part, "censored").sum()),
            "accuracy epoch": accuracy_median(part),
            "median lag": median_lag(part),
        }
        for key, part in groups(frame, [*KEYS, "method", "metric"]).items()
    ]
    caption = (
        "First epoch from which maps stay similar to the final ones: Kaplan-Meier medians over seeds with "
        "95 % intervals. Seeds that did not settle count as settling at the last epoch or later, so latest "
        "is a lower bound where there are some. Lag: epochs after accuracy settled. Every seed is in "
        "stabilisation.csv."
    )
    return table(pd.DataFrame(lines), caption, warned)


def median_of_seeds(part: pd.DataFrame) -> dict[str, object]:
    """The median settling epoch of some seeds, or that it is not before one, and its interval."""
    epochs, settled = numbers(part, "epoch"), numbers(part, "censored") == 0
    _, low, high = survival.median_interval(epochs, settled)
    ends = f"[{lags.end(low)}, {lags.end(high)}]" if np.isfinite(low) else "not known"
    return {"median epoch": epoch_or_bound(epochs, settled), "95 % interval": ends}


def accuracy_median(part: pd.DataFrame) -> float | str:
    """The median epoch at which the accuracy of some seeds settled, or that it is not before one."""
    return epoch_or_bound(numbers(part, "accuracy_epoch"), ~accuracy_censored(part))


def accuracy_censored(part: pd.DataFrame) -> np.ndarray:
    """Whether each row's accuracy had not settled, [rows]; no where that was not recorded."""
    none = np.zeros(len(part), bool)
    return numbers(part, "accuracy_censored") > 0 if "accuracy_censored" in part else none


def epoch_or_bound(epochs: np.ndarray, settled: np.ndarray) -> float | str:
    """The Kaplan-Meier median epoch, or `not before` the earliest that it can be."""
    middle, bound = survival.median_or_bound(epochs, settled)
    return f"not before {middle:g}" if bound else middle


def median_lag(part: pd.DataFrame) -> float | str:
    """The median lag of some seeds, or the bounds between which censoring leaves it."""
    late, unknown = numbers(part, "censored") > 0, accuracy_censored(part)
    found = survival.paired_lag(numbers(part, "epoch"), numbers(part, "accuracy_epoch"), late, unknown)
    first, last = found["median_low"], found["median_high"]
    if first == last or np.isnan(first):
        return first
    if np.isinf(first) and np.isinf(last):
        return "not known"
    if np.isinf(last):
        return f"at least {first:g}"
    return f"{first:g} to {last:g}" if np.isfinite(first) else f"at most {last:g}"


def comparison_table(tables: Mapping[str, pd.DataFrame], warned: str) -> str:
    """Paired comparisons, the smallest adjusted p first, at most ROWS_AT_MOST, and why others have none."""
    needed = ["factor", "a", "b", *KEYS, "method", "outcome", "n", "p_adjusted"]
    frame = frames.rows(tables, "comparisons", needed)
    hold = int((numbers(frame, "p_adjusted") < 0.05).sum())
    shown = frame.sort_values("p_adjusted", kind="stable", na_position="last").head(ROWS_AT_MOST)
    left_out = len(frame) - len(shown)
    rest = f" {left_out} further rows are left out here; all are in comparisons.csv." if left_out else ""
    caption = (
        "Wilcoxon signed-rank tests over seeds of a minus b; * marks the factor compared. "
        f"{hold} of {len(frame)} have a p below 0.05 after Holm's correction; they come first.{rest}"
    )
    if "n_censored" in frame and (numbers(frame, "n_censored") > 0).any():
        caption += (
            " n_censored: pairs of which a side had not settled at the end; n_unknown: those of which "
            "neither had, which n leaves out. Where a pair in n is censored the mean difference is not known."
        )
    # Refused rows have no p, so they sort last and may be left out: what they lack is said in words.
    return "".join(f"<p>{escape(line)}</p>" for line in untested(tables)) + table(shown, caption, warned)


def lacking_table(tables: Mapping[str, pd.DataFrame], warned: str) -> str:
    """Runs that failed, are missing or unfinished, with what is known about them."""
    frame = frames.rows(tables, "runs", ["status"])
    lacking = keep(frame, frame["status"] != "done")
    if lacking.empty:
        return f"<p>All {len(frame)} runs are done.</p>" if len(frame) else "<p>There are no runs.</p>"
    wanted = ["run_id", *KEYS, "seed", "status", "error"]
    other = [column for column in lacking if column not in wanted]
    caption = (
        f"{len(lacking)} of {len(frame)} runs; running the same sweep again does these and nothing else."
    )
    return table(lacking.drop(columns=other), caption, warned)
