"""Fields of `Model` that are computed from columns, in Python and in SQL alike."""

from __future__ import annotations

from typing import Any, Final, cast

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.ext.hybrid import Comparator, hybrid_property
from sqlalchemy.orm import InstrumentedAttribute
from sqlalchemy.sql.operators import OperatorType

from model_catalog.domain import validation
from model_catalog.domain.fields import ATTRIBUTES
from model_catalog.domain.search_text import fold_case
from model_catalog.mapping.child_tables import TAGS
from model_catalog.mapping.column_types import TAG_SEPARATOR, TagsText

STORED_TAGS: Final = "_stored_tags"
"""The attribute with the tags that a session has loaded, or that the catalog has read."""


def effective_value(name: str) -> hybrid_property[Any]:
    """
    Return the attribute of a HEADER field: the user's value, or the header's claim without one.

    Setting or deleting it sets or deletes the user's value, on an object and in UPDATE and INSERT.
    """
    user, claimed = ATTRIBUTES[name], f"claimed_{name}"

    def get(self: Any) -> Any:
        value = getattr(self, user)
        return getattr(self, claimed) if value is None else value

    def expression(cls: Any) -> ColumnElement[Any]:
        return func.coalesce(getattr(cls, user), getattr(cls, claimed))

    def update(cls: Any, value: Any) -> list[tuple[Any, Any]]:
        return [(getattr(cls, user), value)]

    def set_parameter(_cls: Any, parameters: dict[str, Any], value: Any) -> None:
        parameters[user] = value

    get.__name__ = name
    return hybrid_property(
        get,
        lambda self, value: setattr(self, user, value),
        lambda self: delattr(self, user),
        expression,
        update_expr=update,
        bulk_dml_setter=cast("Any", set_parameter),  # its type forbids any name but `self`
    )


def read_tags(model: Any) -> tuple[str, ...]:
    """Return the tags of a model, as a session loaded them, or the catalog read them."""
    # It is None for a new model.
    return getattr(model, STORED_TAGS) or ()


def select_tags_text(model_id: InstrumentedAttribute[int]) -> ColumnElement[tuple[str, ...]]:
    """Return the expression of a model's tags as a `TagsText`, in their order."""
    of_model = (
        select(TAGS.c.tag)
        .where(TAGS.c.model_id == model_id)
        .order_by(TAGS.c.folded)
        .correlate(model_id.class_)
        .subquery()
    )
    # SQLite has ORDER BY in an aggregate since 3.44. Both databases aggregate the rows of an
    # ordered subquery in its order.
    joined = select(func.aggregate_strings(of_model.c.tag, TAG_SEPARATOR)).scalar_subquery()
    # An id is never NULL. It stands here for `select(Model.tags)`, which selects from the table
    # only because of a column outside the subquery.
    return func.coalesce(joined, case((model_id.is_not(None), "")), type_=TagsText())


class TagsComparator(Comparator[tuple[str, ...]]):
    """
    `Model.tags` in a statement.

    `contains(tag)` is true for a model with the tag, regardless of case. `==` compares all tags.
    `order_by` compares the tags one after the other; models without tags come first.
    """

    def __init__(self, tags: Any, model_id: Any) -> None:
        super().__init__(tags)
        self._model_id: Final = model_id

    def operate(self, op: OperatorType, *other: Any, **options: Any) -> ColumnElement[Any]:
        """Apply any other operator to the joined tags."""
        expression: Any = self.__clause_element__()
        return op(expression, *other, **options)  # type: ignore[no-any-return]

    def contains(self, other: Any, **_options: Any) -> ColumnElement[bool]:
        """Whether a model has this tag, regardless of case. Raises InvalidModelError."""
        (tag,) = validation.tags("tag", [other])
        with_tag = select(TAGS.c.model_id).where(TAGS.c.folded == fold_case(tag))
        return self._model_id.in_(with_tag)  # type: ignore[no-any-return]
