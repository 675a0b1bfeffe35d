"""Parse the values of `--filter`, `--sort`, sizes and times."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, cast

from model_catalog.domain.fields import Sort
from model_catalog.domain.validation import MAX_SIZE
from model_catalog.errors import InvalidModelError
from model_catalog.repository.statements.filters import Filters

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)b?", re.IGNORECASE | re.ASCII)
_UNIT_BYTES: Final = {unit: 1000**power for power, unit in enumerate(("", "k", "m", "g", "t", "p"))}
_AGE: Final = re.compile(r"(\d+)(s|mo|m|h|d|w|y)", re.ASCII)
_UNIT_SECONDS: Final = {
    "s": 1,
    "m": 60,
    "h": 3600,
    "d": 86400,
    "w": 7 * 86400,
    "mo": 30 * 86400,
    "y": 365 * 86400,
}
_EXPRESSION: Final = re.compile(r"([a-z]+)\s*(<=|>=|!=|<|>|=)\s*(.*)", re.DOTALL)

_TEXT_FILTERS: Final = {
    "provider": "provider",
    "reference": "reference",
    "search": "search",
    "kind": "kind",
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
_BOOLEAN_FILTERS: Final = ("pinned", "damaged", "incomplete", "foreign")
_YES_NO: Final = {"yes": True, "true": True, "no": False, "false": False}

KEYS: Final = (
    "size (> >= < <= =, for example size>1GB), context (>=, in tokens), downloaded and used "
    "(< or >, an age such as 30d or a date; or used=never), tag (=), "
    "pinned, damaged, incomplete and foreign (=yes or =no), and with =: provider, reference, "
    "version, search, kind (model, adapter, ...), format, arch, quant, license, "
    "state (missing, changed, ...), digest, store (ollama, huggingface, ...)"
)
"""The keys of a filter, for error messages."""

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
    Parse filter expressions. All of them must match; of two bounds the narrower one counts.

    An age is counted back from `now`: `used<30d` means used within the last thirty days. Raises
    InvalidModelError, whose message lists the keys.
    """
    filters: dict[str, Any] = {}
    for expression in expressions:
        match = _EXPRESSION.fullmatch(expression.strip())
        if match is None:
            raise _filter_error(expression, "is not a filter")
        key, operator, value = match.groups()
        for name, parsed in _parse_filter(expression, key, operator, value, now).items():
            filters[name] = _combine(name, filters[name], parsed) if name in filters else parsed
    return cast("Filters", filters)


def parse_size(option: str, text: str) -> int:
    """Parse the size of an option, such as `20GB`, and return bytes. Raises InvalidModelError."""
    number = _find_bytes(text)
    if number is None:
        raise InvalidModelError(option, text, "is not a size: give one such as 500MB or 1.5GB")
    if number >= MAX_SIZE:
        raise InvalidModelError(option, text, f"is too large: give less than {MAX_SIZE} bytes")
    return number


def parse_age(option: str, text: str) -> timedelta:
    """Parse the duration of an option: `30m`, `12h` or `7d`. Raises InvalidModelError."""
    match = _AGE.fullmatch(text)
    try:
        if match is not None:
            return timedelta(seconds=int(match[1]) * _UNIT_SECONDS[match[2]])
    except OverflowError:
        pass
    raise InvalidModelError(option, text, "is not a duration: give one such as 30m, 12h or 7d")


def parse_sort(text: str | None) -> tuple[Sort, bool | None]:
    """
    Return the sort key and whether to sort descending; None means the key's default direction.

    Raises InvalidModelError.
    """
    if text is None:
        return Sort.DOWNLOADED_AT, None
    key, colon, direction = text.partition(":")
    if key not in _SORTS or (colon and direction not in ("asc", "desc")):
        raise InvalidModelError(
            "--sort",
            text,
            f"is not a sort order: give one of {', '.join(_SORTS)}, optionally with :asc or :desc",
        )
    return _SORTS[key], direction == "desc" if colon else None


def _parse_filter(
    expression: str, key: str, operator: str, value: str, now: datetime
) -> dict[str, object]:
    if operator == "=" and (filters := _parse_equality(key, value)):
        return filters
    if key == "size":
        return _parse_bounds(operator, _parse_bytes(expression, value), "size_bytes", expression)
    if key == "context" and operator == ">=":
        return {"min_context_length": _parse_bytes(expression, value)}
    if key in ("downloaded", "used") and operator in ("<", ">"):
        return _parse_time(expression, key, operator, value, now)
    raise _filter_error(expression, "is not a filter")


def _parse_equality(key: str, value: str) -> dict[str, object]:
    if key in _TEXT_FILTERS:
        return {_TEXT_FILTERS[key]: value}
    if key == "tag" and value.strip():
        return {"tags": [value]}
    if key in _BOOLEAN_FILTERS and value in _YES_NO:
        return {key: _YES_NO[value]}
    return {"never_used": True} if (key, value) == ("used", "never") else {}


def _parse_bounds(operator: str, number: int, name: str, expression: str) -> dict[str, object]:
    minimum, maximum = f"min_{name}", f"max_{name}"
    bounds: dict[str, Callable[[], dict[str, object]]] = {
        "=": lambda: {minimum: number, maximum: number},
        ">=": lambda: {minimum: number},
        ">": lambda: {minimum: number + 1},
        "<=": lambda: {maximum: number},
        "<": lambda: {maximum: number - 1},
    }
    if operator not in bounds or (operator == "<" and number == 0):
        raise _filter_error(expression, "is not a filter")
    return bounds[operator]()


def _parse_bytes(expression: str, value: str) -> int:
    number = _find_bytes(value)
    if number is None:
        raise _filter_error(expression, "does not contain a number such as 500MB or 1.5GB")
    if number >= MAX_SIZE:
        raise _filter_error(expression, "contains a number that is too large")
    return number


def _find_bytes(text: str) -> int | None:
    """Return the bytes of a size such as `20GB`; None if the text is not a size."""
    match = _SIZE.fullmatch(text)
    return None if match is None else int(Decimal(match[1]) * _UNIT_BYTES[match[2].lower()])


def _parse_time(
    expression: str, key: str, operator: str, value: str, now: datetime
) -> dict[str, object]:
    age = _AGE.fullmatch(value)
    try:
        if age is not None:
            moment = now - timedelta(seconds=int(age[1]) * _UNIT_SECONDS[age[2]])
            # A smaller age is a later time.
            is_after = operator == "<"
        else:
            moment = datetime.fromisoformat(value)
            moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            is_after = operator == ">"
    except (ValueError, OverflowError) as error:
        reason = "contains neither an age such as 30d nor a date"
        raise _filter_error(expression, reason) from error
    return {f"{key}_{'after' if is_after else 'before'}": moment}


def _combine(name: str, first: Any, second: Any) -> Any:
    if name == "tags":
        return [*first, *second]
    if name.startswith("min_") or name.endswith("_after"):
        return max(first, second)
    if name.startswith("max_") or name.endswith("_before"):
        return min(first, second)
    if first != second:
        raise InvalidModelError("--filter", f"{name}={second}", f"contradicts {name}={first}")
    return first


def _filter_error(expression: str, reason: str) -> InvalidModelError:
    return InvalidModelError("--filter", expression, f"{reason}: the keys are {KEYS}")
