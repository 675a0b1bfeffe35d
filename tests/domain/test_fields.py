"""The field table equals the mapping, and everything that lists fields equals the table."""

import dataclasses
import typing
from types import NoneType

from model_catalog import FileState, InvalidModelError, Model, ModelChanges, ModelRow
from model_catalog.domain import fields
from model_catalog.domain.fields import ATTRIBUTES, FIELD_TYPES, FIELDS, Group

SERVER_DEFAULTS = {"''": "", "1": 1, "0": 0, "'unchecked'": FileState.UNCHECKED}


def mapped_columns() -> dict:
    """The columns of the mapping without those that only the search reads."""
    columns = Model.__table__.columns
    return {column.key: column for column in columns if not column.key.endswith("_folded")}


def test_the_table_has_the_columns_of_the_mapping():
    """A column without a line in the table, or a line without a column, fails here."""
    assert set(FIELDS) == set(mapped_columns())


def test_the_table_has_the_types_of_the_mapping():
    """`Mapped[T]` in the mapping is `T` in ModelRow, and a column is nullable if T allows None."""
    hints = typing.get_type_hints(Model)
    mapped = {name: typing.get_args(hints[attribute])[0] for name, attribute in ATTRIBUTES.items()}

    assert mapped == FIELD_TYPES
    for name, column in mapped_columns().items():
        assert column.nullable is fields.is_nullable(name), name


def test_the_table_has_the_server_defaults_of_the_mapping():
    """A row that was just inserted is returned with the table's defaults, without being read."""
    for name, column in mapped_columns().items():
        default = column.server_default
        if default is not None and hasattr(default, "arg"):
            assert SERVER_DEFAULTS[default.arg.text] == FIELDS[name].default, name
        else:
            assert FIELDS[name].default is None, name


def test_a_caller_sets_exactly_the_fields_that_the_constructor_takes():
    """A field is an input field if and only if the mapping has no `init=False`."""
    init = {field.name for field in dataclasses.fields(Model) if field.init}

    assert set(fields.INPUT_FIELDS) == init


def test_a_row_has_the_fields_of_the_table_and_the_tags():
    """The order of the table is the order of a ModelRow."""
    assert ModelRow._fields == (*FIELDS, "tags")


def test_the_changes_of_an_update_have_the_fields_and_types_of_the_table():
    """ModelChanges is written by hand for type checkers, which cannot derive it."""
    assert typing.get_type_hints(ModelChanges) == {
        name: FIELD_TYPES[name] for name in fields.UPDATABLE_FIELDS
    }


def test_the_key_has_the_fields_of_its_group():
    """KEY_FIELDS has its own order, that of the index."""
    assert set(fields.KEY_FIELDS) == {
        name for name, field in FIELDS.items() if field.group is Group.KEY
    }


def test_each_header_field_has_a_claim_of_the_same_kind():
    """A claim has the type and the validator of its field."""
    claims = [name for name, field in FIELDS.items() if field.group is Group.CLAIM]

    assert claims == [f"claimed_{name}" for name in fields.HEADER_FIELDS]
    for name in fields.HEADER_FIELDS:
        claim = FIELDS[f"claimed_{name}"]
        assert claim.validate is FIELDS[name].validate, name
        assert FIELD_TYPES[f"claimed_{name}"] == FIELD_TYPES[name], name


def test_a_validator_accepts_none_if_the_field_may_be_none():
    """Counters are the exception: their validator is shared, and an import checks them itself."""
    for name, field in FIELDS.items():
        if field.group in (Group.USAGE, Group.ROW_ID) and not fields.is_nullable(name):
            continue
        try:
            field.validate(name, None)
            accepts_none = True
        except InvalidModelError:
            accepts_none = False
        assert accepts_none is (NoneType in typing.get_args(FIELD_TYPES[name])), name


def test_an_import_takes_every_field_except_the_row_id_and_the_host():
    """An export is complete: what is exported can be imported, to any host."""
    assert set(fields.IMPORT_FIELDS) == set(FIELDS) - {"id", "host"}
