"""Validators of what is recorded about a host. None of them lets a key or a password through."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any, Final, NoReturn, cast
from urllib.parse import parse_qsl, urlsplit

from model_catalog.domain import validation
from model_catalog.domain.fleet.host import HostFields
from model_catalog.errors import InvalidModelError

MAX_LABELS: Final = 100
MAX_PORT: Final = 65_535
_HIDDEN: Final = "..."
"""Stands for a value in an error message, because the value may be a secret."""

_KEY_MARKS: Final = (
    *("-----BEGIN", "PRIVATE KEY", "PuTTY-User-Key-File"),
    # The first bytes of a key of OpenSSH, and of a public key, in base64.
    *("b3BlbnNzaC1rZXktdjE", "AAAAB3NzaC1", "AAAAC3NzaC1", "AAAAE2VjZHNh"),
)
# A key without its armour: no path is that long without a separator or a dot.
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9+=]{64,}|[A-Za-z0-9+/=]{200,}")
_SECRET_NAME: Final = re.compile(
    "pass(word|wd|phrase)?|pwd|secret|token|api[-_]?key|private[-_]?key", re.IGNORECASE
)


def host_fields(fields: HostFields) -> dict[str, Any]:
    """
    Return the columns of the given fields, validated. A labels column is a JSON object.

    Raises InvalidModelError for an invalid value and for a secret, and TypeError for an unknown
    field.
    """
    unknown = set(fields) - _VALIDATORS.keys()
    if unknown:
        raise TypeError(f"a host has no field {min(unknown)!r}: use {', '.join(_VALIDATORS)}")
    return {
        name: None if value is None else _VALIDATORS[name](name, value)
        for name, value in fields.items()
    }


def lost_after(field: str, value: object) -> float:
    """Validate the seconds without a heartbeat after which a host is lost: more than 0."""
    seconds = validation.seconds(field, value)
    if not 0 < seconds < validation.MAX_COUNT:
        problem = f"is out of range: give more than 0 and less than {validation.MAX_COUNT:,} s"
        raise InvalidModelError(field, value, problem)
    return seconds


def label_filter(field: str, value: object) -> dict[str, str]:
    """Validate labels to select hosts by."""
    return {} if value is None else _label_dict(field, value)


def _address(field: str, value: object) -> str:
    text = _text(field, value, validation.MAX_URL)
    _, separator, rest = text.partition("//")
    authority = re.split("[/?#]", rest if separator else text)[0]
    user, at, _ = authority.rpartition("@")
    if at and ":" in user:
        _refuse(field, "contains a password: leave it out, and name a key by ssh_key_path")
    try:
        parameters = parse_qsl(urlsplit(text).query)
    except ValueError as error:
        raise InvalidModelError(field, text, f"is not an address: {error}") from error
    if secret := next((name for name, _ in parameters if _SECRET_NAME.search(name)), None):
        _refuse(field, f"contains the secret {secret!r}: leave this parameter out")
    return text


def _labels(field: str, value: object) -> str:
    return json.dumps(_label_dict(field, value), sort_keys=True, ensure_ascii=False)


def _label_dict(field: str, value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        problem = f"is a {type(value).__name__}: give a dict, as in {{'gpu': 'h100'}}"
        raise InvalidModelError(field, value, problem)
    given = cast("Mapping[object, object]", value)
    if len(given) > MAX_LABELS:
        problem = f"has {len(given)} labels: at most {MAX_LABELS} are allowed"
        raise InvalidModelError(field, given, problem)
    labels: dict[str, str] = {}
    for name, text in given.items():
        key = _text(field, name, validation.MAX_NAME)
        if "=" in key:
            problem = "must not contain '=', which separates the name and the value of a label"
            raise InvalidModelError(field, key, problem)
        if _SECRET_NAME.search(key):
            _refuse(field, f"has the name {key!r}: a label is not the place for a secret")
        labels[key] = _text(field, text, validation.MAX_NAME)
    return labels


def _ssh_user(field: str, value: object) -> str:
    text = _text(field, value, validation.MAX_NAME)
    if ":" in text:
        _refuse(field, "contains ':', as `user:password` does: give only the name of the user")
    if "@" in text:
        problem = "must not contain '@': give the host as ssh_host"
        raise InvalidModelError(field, text, problem)
    return text


def _ssh_host(field: str, value: object) -> str:
    text = _text(field, value, validation.MAX_REASON_BYTES)
    if "@" in text:
        _refuse(field, "contains '@': give the user as ssh_user, and never a password")
    return text


def _ssh_port(field: str, value: object) -> int | None:
    port = validation.non_negative_int(field, value)
    if not port or port > MAX_PORT:
        raise InvalidModelError(field, value, f"is out of range: give 1 to {MAX_PORT:,}")
    return port


def _ssh_key_path(field: str, value: object) -> str:
    kind = type(value).__name__
    raw = value
    if isinstance(value, os.PathLike):
        raw = os.fspath(cast("os.PathLike[str]", value))
    if not isinstance(raw, str):
        # Bytes may be a key. A path that is not text could not be printed.
        _refuse(field, f"is a {kind}: give the path of a key as a str or a Path")
    if looks_like_key(raw):
        _refuse(field, "is a key itself: save it in a file that only you can read, give its path")
    return _text(field, raw, validation.MAX_PATH_BYTES)


def looks_like_key(text: str) -> bool:
    """Return whether a text looks like a key, private or public, rather than like a name."""
    return any(mark in text for mark in _KEY_MARKS) or bool(_BARE_KEY.fullmatch(text.strip()))


def _text(field: str, value: object, limit: int) -> str:
    if isinstance(value, str) and looks_like_key(value):
        _refuse(field, "looks like a key: give the path of its file as ssh_key_path")
    return validation.non_blank_text(field, value, limit)


def _refuse(field: str, problem: str) -> NoReturn:
    # The value itself must reach neither a log nor a traceback.
    raise InvalidModelError(field, _HIDDEN, problem) from None


_VALIDATORS: Final = {
    "address": _address,
    "labels": _labels,
    "ssh_user": _ssh_user,
    "ssh_host": _ssh_host,
    "ssh_port": _ssh_port,
    "ssh_key_path": _ssh_key_path,
    "capacity_bytes": validation.non_negative_int,
    "free_bytes": validation.non_negative_int,
}
