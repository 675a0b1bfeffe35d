"""The filter `search`: the condition that decides, and the index that makes it fast."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, cast

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Connection,
    Integer,
    Table,
    Text,
    and_,
    any_,
    column,
    func,
    literal,
    or_,
    select,
    table,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType

from model_catalog.mapping.child_tables import TAGS
from model_catalog.mapping.search_index.candidates import (
    Candidates,
    find_in_postgresql,
    find_in_sqlite,
)
from model_catalog.mapping.tables import Model

_MODELS: Final = cast("Table", Model.__table__)


class ContainsText(FunctionElement[Any]):
    """
    The condition that a model contains a case-folded text, compared row by row.

    `use_index` replaces it by a faster one with the same result.
    """

    inherit_cache = True
    # Without a type: SQLAlchemy would compare a Boolean with 1 on SQLite.
    type = NullType()

    def __init__(self, folded: str, dialect: str) -> None:
        self.folded = folded
        found = _finder(folded, dialect)
        with_tag = select(TAGS.c.model_id).where(found(TAGS.c.folded))
        super().__init__(or_(*_in_columns(folded, dialect), _MODELS.c.id.in_(with_tag)))


@compiles(ContainsText)
def _compile_condition(element: ContainsText, compiler: Any, **options: Any) -> str:
    return f"({compiler.process(element.clauses.clauses[0], **options)})"


def has_text(where: Sequence[ColumnElement[bool]]) -> bool:
    """Return whether one of the conditions is a search."""
    return any(isinstance(each, ContainsText) for each in where)


def use_index(
    connection: Connection, where: Sequence[ColumnElement[bool]], *, for_page: bool
) -> tuple[list[ColumnElement[bool]], bool]:
    """
    Return conditions with the same result, and whether a search compares few models in them.

    It reads the index, if there is a search. `for_page` says that few models are wanted, in an
    order that an index has: a search for a common text then stays as it is. So does a short one.
    """
    found = [
        _with_candidates(connection, each, for_page=for_page)
        if isinstance(each, ContainsText)
        else each
        for each in where
    ]
    is_narrow = any(new is not old for new, old in zip(found, where, strict=True))
    return found, is_narrow


def _with_candidates(
    connection: Connection, condition: ContainsText, *, for_page: bool
) -> ColumnElement[bool]:
    folded, dialect = condition.folded, connection.dialect.name
    if dialect == "sqlite":
        found = find_in_sqlite(connection, folded, for_page=for_page)
    else:
        found = find_in_postgresql(connection, folded, _MODELS, TAGS, for_page=for_page)
    if found is None:
        return condition
    # A model is compared again: the index may propose too many, and it may have changed since.
    has_tag = (
        select(literal(1))
        .where(TAGS.c.model_id == _MODELS.c.id, _finder(folded, dialect)(TAGS.c.folded))
        .correlate(_MODELS)
        .exists()
    )
    return and_(_is_candidate(found, dialect), or_(*_in_columns(folded, dialect), has_tag))


def _is_candidate(found: Candidates, dialect: str) -> ColumnElement[bool]:
    # One parameter for all ids: the number of parameters of a statement is limited.
    if dialect == "postgresql":
        return _MODELS.c.id == any_(literal(found.ids, ARRAY(BigInteger)))
    listed = func.json_each(literal(json.dumps(found.ids), Text)).table_valued("value")
    # A name instead of an alias: to copy 50 columns takes longer than the search.
    model_id = table("models", column("id", Integer)).c.id
    others = select(model_id).where(model_id > literal(found.indexed_to, Integer))
    return _MODELS.c.id.in_(select(listed.c.value).union_all(others))


def _in_columns(folded: str, dialect: str) -> list[ColumnElement[bool]]:
    found = _finder(folded, dialect)
    return [found(_MODELS.c.reference_folded), found(_MODELS.c.description_folded)]


def _finder(folded: str, dialect: str) -> Any:
    # LIKE has wildcards to escape, a maximum pattern length, and its own rules for case.
    position = func.instr if dialect == "sqlite" else func.strpos
    return lambda text: position(text, folded) > 0
