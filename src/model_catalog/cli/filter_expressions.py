"""What `--filter` and `--sort` are typed as, and which filters of the catalog they mean."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, cast

from model_catalog.domain.validation import MAX_SIZE
from model_catalog.errors import InvalidModelError
from model_catalog.repository.statements.filters import Filters
from model_catalog.repository.statements.pagination import Sort

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)b?", re.IGNORECASE | re.ASCII)
_THOUSANDS: Final = {unit: 1000**power for power, unit in enumerate(("", "k", "m", "g", "t", "p"))}
_AGE: Final = re.compile(r"(\d+)(s|mo|m|h|d|w|y)", re.ASCII)
_SECONDS: Final = {
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": 86400,
    "w": 7 * 86400,
    "mo": 30 * 86400,
    "y": 365 * 86400,
}
_EXPRESSION: Final = re.compile(r"([a-z]+)\s*(<=|>=|!=|<|>|=)\s*(.*)", re.DOTALL)

_WORDS: Final = {
    "provider": "provider",
    "reference": "reference",
    "search": "search",
    "format": "format",
    "arch": "architecture",
    "architecture": "architecture",
    "quant": "quantization",
    "quantization": "quantization",
    "license": "license",
    "version": "version",
    "state": "state",
    "digest": "digest",
    "store": "store",
}
_FLAGS: Final = ("pinned", "damaged", "incomplete", "foreign")
_YES_NO: Final = {"yes": True, "true": True, "no": False, "false": False}

KEYS: Final = (
    "size (> >= < <= =, as 1GB), context (>=, in tokens), downloaded and used (< or > an age, as "
    "30d, or a date; used=never), tag (=), pinned, damaged, incomplete and "
    "foreign (=yes or no), and with = provider, reference, version, search, format, arch, quant, "
    "license, state (missing, changed, ...), digest, store (ollama, huggingface, ...)"
)

_SORTS: Final = {
    "downloaded": Sort.DOWNLOADED_AT,
    "used": Sort.LAST_USED_AT,
    "uses": Sort.USE_COUNT,
    "downloads": Sort.DOWNLOAD_COUNT,
    "size": Sort.SIZE_BYTES,
    "context": Sort.CONTEXT_LENGTH,
    "parameters": Sort.PARAMETER_COUNT,
    "provider": Sort.PROVIDER,
    "reference": Sort.REFERENCE,
    "arch": Sort.ARCHITECTURE,
    "quant": Sort.QUANTIZATION,
    "format": Sort.FORMAT,
}


def parse_filters(expressions: Iterable[str], now: datetime) -> Filters:
    """
    The filters that expressions mean; all are to hold, of two bounds the narrower.

    An age is counted back from `now`: `used<30d` was used less than thirty days ago.
    Raises InvalidModelError, which lists what there is.
    """
    found: dict[str, Any] = {}
    for expression in expressions:
        match = _EXPRESSION.fullmatch(expression.strip())
        if match is None:
            raise _refused(expression, "is no filter")
        key, operator, value = match.groups()
        for name, meant in _meaning(expression, key, operator, value, now).items():
            found[name] = _narrower(name, found[name], meant) if name in found else meant
    return cast("Filters", found)


def parse_size(text: str) -> int:
    """A number of bytes, as in `20GB`. Raises InvalidModelError."""
    return _bytes(text, text)


def parse_age(text: str) -> timedelta:
    """A length of time, as in `30m`, `12h` or `7d`. Raises InvalidModelError."""
    match = _AGE.fullmatch(text)
    try:
        if match is not None:
            return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
    except OverflowError:
        pass
    raise InvalidModelError("the time", text, "is no length of time: give one as 30m, 12h or 7d")


def parse_sort(text: str | None) -> tuple[Sort, bool | None]:
    """What to sort by, and whether downwards, where that was said. Raises InvalidModelError."""
    if text is None:
        return Sort.DOWNLOADED_AT, None
    key, colon, direction = text.partition(":")
    if key not in _SORTS or (colon and direction not in ("asc", "desc")):
        raise InvalidModelError(
            "--sort", text, f"is no order: give one of {', '.join(_SORTS)}, and :asc or :desc"
        )
    return _SORTS[key], direction == "desc" if colon else None


def _meaning(
    expression: str, key: str, operator: str, value: str, now: datetime
) -> dict[str, object]:
    if operator == "=" and (same := _same(key, value)):
        return same
    if key == "size":
        return _bounds(operator, _bytes(expression, value), "size_bytes", expression)
    if key == "context" and operator == ">=":
        return {"min_context_length": _bytes(expression, value)}
    if key in ("downloaded", "used") and operator in ("<", ">"):
        return _moment(expression, key, operator, value, now)
    raise _refused(expression, "is no filter")


def _same(key: str, value: str) -> dict[str, object]:
    if key in _WORDS:
        return {_WORDS[key]: value}
    if key == "tag" and value.strip():
        return {"tags": [value]}
    if key in _FLAGS and value in _YES_NO:
        return {key: _YES_NO[value]}
    return {"never_used": True} if (key, value) == ("used", "never") else {}


def _bounds(operator: str, number: int, name: str, expression: str) -> dict[str, object]:
    least, most = f"min_{name}", f"max_{name}"
    bounds: dict[str, Callable[[], dict[str, object]]] = {
        "=": lambda: {least: number, most: number},
        ">=": lambda: {least: number},
        ">": lambda: {least: number + 1},
        "<=": lambda: {most: number},
        "<": lambda: {most: number - 1},
    }
    if operator not in bounds or (operator == "<" and number == 0):
        raise _refused(expression, "is no filter")
    return bounds[operator]()


def _bytes(expression: str, value: str) -> int:
    match = _SIZE.fullmatch(value)
    if match is None:
        raise _refused(expression, "has no number such as 500MB or 1.5GB")
    number = int(Decimal(match[1]) * _THOUSANDS[match[2].lower()])
    if number >= MAX_SIZE:
        raise _refused(expression, "has a number that is too large")
    return number


def _moment(
    expression: str, key: str, operator: str, value: str, now: datetime
) -> dict[str, object]:
    age = _AGE.fullmatch(value)
    try:
        if age is not None:
            moment = now - timedelta(seconds=int(age[1]) * _SECONDS[age[2]])
            # What is less than an age ago is later than that.
            later = operator == "<"
        else:
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            later = operator == ">"
    except (ValueError, OverflowError) as error:
        raise _refused(expression, "has neither an age such as 30d nor a date") from error
    return {f"{key}_{'after' if later else 'before'}": moment}


def _narrower(name: str, first: Any, second: Any) -> Any:
    if name == "tags":
        return [*first, *second]
    if name.startswith("min_") or name.endswith("_after"):
        return max(first, second)
    if name.startswith("max_") or name.endswith("_before"):
        return min(first, second)
    if first != second:
        raise InvalidModelError("--filter", f"{name}={second}", f"cannot hold beside {first!r}")
    return first


def _refused(expression: str, why: str) -> InvalidModelError:
    return InvalidModelError("--filter", expression, f"{why}: the keys are {KEYS}")
