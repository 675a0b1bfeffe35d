"""
The HTML page of a report.

It is one file: style sheet, script and image are parts of it, and its Content Security Policy
forbids every request. All texts of the catalog are escaped, because names come from other programs.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from importlib import resources
from typing import Final, Literal, NamedTuple

from model_catalog.cli.catalog_access import short_ref
from model_catalog.cli.commands.report.report_data import ReportData, ReportedModel
from model_catalog.cli.commands.report.treemap import Rectangle, divide
from model_catalog.cli.output import escape_controls, human_size, human_time, pluralize
from model_catalog.upkeep.duplicates import DuplicateSet

_WIDTH: Final = 1100.0
_HEIGHT: Final = 520.0
_COLOURS: Final = 6
_GROUP_HEADING: Final = 18.0
_LABEL_WIDTH_PER_CHARACTER: Final = 7.0
_OWN: Final = "your own"


class _Column(NamedTuple):
    """
    A column of a table. Values of the kind `number` are sorted as numbers.

    A value of the kind `long`, such as a path, can be broken anywhere to fit the screen.
    """

    name: str
    kind: Literal["text", "number", "long"] = "text"


class _Cell(NamedTuple):
    text: str
    sort: str | None = None
    """The value to sort by, if it is not the text."""


def report_page(data: ReportData) -> str:
    """Return the whole page as text."""
    style, script = _read_asset("report.css"), _read_asset("report.js")
    sections = _sections(data)
    links = "".join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    body = "".join(
        f'<section aria-labelledby="{name}"><h2 id="{name}">{title}</h2>{content}</section>'
        for name, title, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"style-src '{_hash(style)}'; script-src '{_hash(script)}'\">\n"
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>Models of {_text(data.database)}</title>\n<style>{style}</style>\n</head>\n"
        "<body>\n"
        f"<header><h1>Models on this machine</h1><p class='faint'>{_text(data.database)}, "
        f"{human_time(data.created_at)} UTC</p>{_totals(data)}"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav></header>\n<main>{body}</main>\n'
        "<footer>Written by model-catalog. Sizes are in decimal units. Times are in UTC.</footer>\n"
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def _sections(data: ReportData) -> list[tuple[str, str, str]]:
    return [
        ("disk-use", "Disk use", _treemap(data)),
        ("duplicates", "Duplicates", _duplicates(data.duplicates)),
        (
            "incomplete",
            "Incomplete",
            _problem_table("Models without a file that loading needs", data.incomplete),
        ),
        (
            "missing",
            "Missing or changed",
            _problem_table("Models whose files were not found as recorded", data.not_as_recorded),
        ),
        (
            "unused",
            f"Not used for {data.unused_days} days",
            _model_table("Models that were not used for long, largest first", data.unused),
        ),
        ("models", "All models", _all_models(data)),
    ]


def _totals(data: ReportData) -> str:
    total = data.stats.total
    reclaimable = sum(each.reclaimable_bytes for each in data.duplicates)
    facts = {
        "Models": f"{total.model_count:,}",
        "Size": human_size(total.size_bytes),
        "On the disk": human_size(total.disk_bytes),
        "Reclaimable": human_size(reclaimable),
        "Not as recorded": f"{len(data.not_as_recorded) + len(data.incomplete):,}",
    }
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())
    return f'<dl class="totals">{items}</dl>'


def _treemap(data: ReportData) -> str:
    by_store: dict[str, list[ReportedModel]] = {}
    for each in data.models:
        if each.row.size_bytes:
            by_store.setdefault(each.row.store or _OWN, []).append(each)
    if not by_store:
        return "<p>No model has a known size.</p>"
    groups = sorted(by_store.items(), key=lambda item: -_size_of(item[1]))
    areas = divide(Rectangle(0, 0, _WIDTH, _HEIGHT), [_size_of(models) for _, models in groups])
    parts = []
    for number, ((store, models), area) in enumerate(zip(groups, areas, strict=True)):
        parts.append(_draw_group(store, models, area, number % _COLOURS))
    summary = ", ".join(f"{store} {human_size(_size_of(models))}" for store, models in groups)
    return (
        f"<p>The area of a model is its size: {_text(summary)}.</p>"
        '<div class="scroll" role="region" aria-label="Treemap" tabindex="0">'
        f'<svg class="treemap" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
        f'aria-label="Disk use by store and model: {_text(summary)}">{"".join(parts)}</svg></div>'
    )


def _draw_group(store: str, models: Sequence[ReportedModel], area: Rectangle, colour: int) -> str:
    size = _size_of(models)
    parts = [_draw_rectangle(area, "group", f"{store}, {human_size(size)}")]
    has_heading = area.height > 3 * _GROUP_HEADING
    label = f"{store}, {human_size(size)}"
    if has_heading:
        parts.append(_draw_label(area, label, "store"))
    inner = area.inset(2, _GROUP_HEADING if has_heading else 2)
    for model, box in zip(
        models, divide(inner, [m.row.size_bytes or 0 for m in models]), strict=True
    ):
        name = f"{short_ref(model.row.ref)}, {human_size(model.row.size_bytes)}"
        parts.append(_draw_rectangle(box, f"c{colour}", name))
        if box.height > _GROUP_HEADING:
            parts.append(_draw_label(box, model.row.reference.rpartition("/")[2], "model"))
    return "".join(parts)


def _draw_rectangle(box: Rectangle, class_: str, title: str) -> str:
    return (
        f'<rect class="{class_}" x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" '
        f'height="{box.height:.1f}"><title>{_text(title)}</title></rect>'
    )


def _draw_label(box: Rectangle, text: str, class_: str) -> str:
    length = int((box.width - 8) / _LABEL_WIDTH_PER_CHARACTER)
    if length < 3:  # noqa: PLR2004 - two characters tell nothing
        return ""
    shown = text if len(text) <= length else text[: length - 1] + "…"
    return f'<text class="{class_}" x="{box.x + 5:.1f}" y="{box.y + 14:.1f}">{_text(shown)}</text>'


def _duplicates(found: Sequence[DuplicateSet]) -> str:
    if not found:
        return "<p>No file is on the disk more than once, as far as digests are recorded.</p>"
    reclaimable = sum(each.reclaimable_bytes for each in found)
    redundant = sum(each.redundant_bytes for each in found)
    rows = [
        [
            _Cell(", ".join(short_ref(copy.places[0].ref) for copy in each.copies)),
            _Cell(human_size(each.size_bytes), str(each.size_bytes)),
            _Cell(f"{len(each.copies):,}"),
            _Cell(human_size(each.reclaimable_bytes), str(each.reclaimable_bytes)),
            _Cell("\n".join(copy.places[0].path for copy in each.copies)),
        ]
        for each in found
    ]
    columns = [
        _Column("Models", "long"),
        _Column("Size", "number"),
        _Column("Copies", "number"),
        _Column("Reclaimable", "number"),
        _Column("Paths", "long"),
    ]
    return (
        f"<p>{human_size(redundant)} are redundant. {human_size(reclaimable)} of it are outside of "
        "other programs' stores, and yours to remove.</p>"
        + _table(f"{pluralize(len(found), 'file')} with more than one copy", columns, rows)
    )


def _all_models(data: ReportData) -> str:
    left_out = data.stats.total.model_count - len(data.models)
    note = f"<p>{left_out:,} smaller models are left out.</p>" if left_out > 0 else ""
    return note + _model_table("Models, largest first", data.models)


def _problem_table(caption: str, models: Sequence[ReportedModel]) -> str:
    if not models:
        return "<p>None.</p>"
    rows = [
        [
            *_name_and_size(each),
            _Cell(str(each.row.state)),
            _Cell(each.row.incomplete_reason or each.row.state_detail or "other bytes"),
            _Cell(each.row.local_path),
        ]
        for each in models
    ]
    columns = [
        _Column("Model", "long"),
        _Column("Size", "number"),
        _Column("State"),
        _Column("Reason", "long"),
        _Column("Path", "long"),
    ]
    return _table(caption, columns, rows)


def _model_table(caption: str, models: Sequence[ReportedModel]) -> str:
    if not models:
        return "<p>None.</p>"
    rows = [
        [
            *_name_and_size(each),
            _Cell(each.row.store or _OWN),
            _Cell(each.row.architecture or ""),
            _Cell(each.row.quantization or ""),
            _time_cell(each.row.last_used_at),
            _time_cell(each.row.downloaded_at),
            _Cell("; ".join(each.keepers)),
        ]
        for each in models
    ]
    columns = [
        _Column("Model", "long"),
        _Column("Size", "number"),
        _Column("Store"),
        _Column("Architecture"),
        _Column("Quantization"),
        _Column("Last used"),
        _Column("Downloaded"),
        _Column("Kept because", "long"),
    ]
    return _table(caption, columns, rows)


def _name_and_size(each: ReportedModel) -> tuple[_Cell, _Cell]:
    size = each.row.size_bytes
    # An unknown size is sorted below 0 bytes.
    return _Cell(short_ref(each.row.ref)), _Cell(
        human_size(size), str(-1 if size is None else size)
    )


def _time_cell(moment: datetime | None) -> _Cell:
    return _Cell("" if moment is None else human_time(moment))


def _table(caption: str, columns: Sequence[_Column], rows: Iterable[Sequence[_Cell]]) -> str:
    heads = "".join(
        f'<th scope="col" class="{column.kind}">'
        f'<button type="button" aria-label="sort by {column.name}">{column.name}</button></th>'
        for column in columns
    )
    lines = "".join(
        "<tr>"
        + "".join(
            _cell(column, cell, is_first=number == 0)
            for number, (column, cell) in enumerate(zip(columns, row, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" role="region" aria-label="{_text(caption)}" tabindex="0"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{lines}</tbody></table></div>"
    )


def _cell(column: _Column, cell: _Cell, *, is_first: bool) -> str:
    sort = "" if cell.sort is None else f' data-sort="{_text(cell.sort)}"'
    # Text of two directions in one name does not change the order of what is around it.
    text = "<br>".join(f"<bdi>{_text(line)}</bdi>" for line in cell.text.split("\n") if line)
    if is_first:
        return f'<th scope="row" class="{column.kind}"{sort}>{text}</th>'
    return f'<td class="{column.kind}" data-name="{column.name}"{sort}>{text}</td>'


def _size_of(models: Iterable[ReportedModel]) -> int:
    return sum(each.row.size_bytes or 0 for each in models)


def _text(text: str) -> str:
    """Return a text for HTML: controls are shown as escapes, and markup is text."""
    return escape(escape_controls(text))


def _read_asset(name: str) -> str:
    return resources.files(__package__ or "").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
