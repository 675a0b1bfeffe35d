"""Models that this package constructs itself equal those that SQLAlchemy constructs."""

import copy
import dataclasses
import inspect
import pickle
import pydoc
import re
import subprocess
import sys
import threading
import typing
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import pytest
import sqlalchemy
from conftest import moment
from sqlalchemy import event
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    make_transient_to_detached,
    mapped_column,
)
from sqlalchemy.orm.exc import DetachedInstanceError

from model_catalog import Model
from model_catalog.domain.fields import ATTRIBUTES, COLUMN_DEFAULTS
from model_catalog.mapping.base import Base
from model_catalog.mapping.computed_fields import STORED_TAGS
from model_catalog.mapping.model_construction import STATE_SLOT, require_state_slot
from model_catalog.mapping.tables import new_detached_model

GIVEN = {"reference": "m", "provider": "hf", "local_path": "/m", "size_bytes": 7, "license": None}
READ = {
    ATTRIBUTES[name]: value
    for name, value in {**COLUMN_DEFAULTS, **GIVEN, "id": 3, "downloaded_at": moment(1)}.items()
}


def construct_with_sqlalchemy(values: dict) -> Model:
    """Construct a model with the default constructor of SQLAlchemy's registry."""
    model = Model.__mapper__.class_manager.new_instance()
    Base.registry.constructor(model, **values)
    return model


def detach_with_sqlalchemy(values: dict) -> Model:
    """Construct a model that was read with SQLAlchemy's public function."""
    model = Model.__mapper__.class_manager.new_instance()
    model.__dict__.update(values)
    make_transient_to_detached(model)
    return model


CONSTRUCTORS = {
    "new": (lambda: Model(**GIVEN), lambda: construct_with_sqlalchemy(GIVEN)),
    "detached": (lambda: new_detached_model(dict(READ)), lambda: detach_with_sqlalchemy(READ)),
}


@pytest.fixture(params=CONSTRUCTORS)
def pair(request):
    """A model that this package constructed, and an equal one that SQLAlchemy constructed."""
    return tuple(construct() for construct in CONSTRUCTORS[request.param])


def description_of(model: Model) -> dict:
    """Everything that SQLAlchemy's public inspection tells about an instance."""
    state = sqlalchemy.inspect(model)
    return {
        "values": dict(vars(model)),
        "key": state.key,
        "flags": (state.transient, state.pending, state.persistent, state.detached),
        "modified": state.modified,
        "unmodified": state.unmodified,
        "unloaded": state.unloaded,
        "history": {attribute.key: attribute.history for attribute in state.attrs},
    }


def test_the_state_of_a_model_is_that_of_sqlalchemys_constructor(pair):
    """Values, identity, flags and the history of each attribute are equal."""
    ours, plain = pair

    assert description_of(ours) == description_of(plain)


def test_a_change_is_recorded_as_on_a_model_of_sqlalchemys_constructor(pair):
    """The history of an attribute that is set later, and of one that is deleted, is equal."""
    for model in pair:
        model.size_bytes = 8
        model.format = "gguf"
        del model.license

    ours, plain = pair

    assert description_of(ours) == description_of(plain)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_is_that_of_a_model_of_sqlalchemys_constructor(pair, copied):
    """Copies and pickles have the same values and the same identity."""
    ours, plain = map(copied, pair)

    assert description_of(ours) == description_of(plain)


def test_a_listener_of_a_program_is_told_of_each_model():
    """The events `init` and `init_failure` of SQLAlchemy come with the model and its keywords."""
    calls = []

    def on_init(model, _args, values):
        calls.append(("init", type(model), dict(values)))

    def on_failure(model, _args, values):
        calls.append(("init_failure", type(model), dict(values)))

    event.listen(Model, "init_failure", on_failure)
    try:
        with pytest.raises(TypeError, match="unexpected keyword argument: colour"):
            Model(**GIVEN, colour="red")
        event.listen(Model, "init", on_init)
        Model(**GIVEN)
        event.remove(Model, "init", on_init)
        Model(**GIVEN)
    finally:
        event.remove(Model, "init_failure", on_failure)

    assert calls == [
        ("init_failure", Model, {**GIVEN, "colour": "red"}),
        ("init", Model, GIVEN),
    ]


CLASS_MAPPED_LATER = """
from sqlalchemy.orm import Mapped, mapped_column
from model_catalog import Model
from model_catalog.mapping.base import Base

Model(reference="m", provider="hf", local_path="/m")

class Shelf(Base):
    __tablename__ = "shelves"
    id: Mapped[int] = mapped_column(primary_key=True)

print(Shelf.__mapper__.configured)
Model(reference="m", provider="hf", local_path="/m")
print(Shelf.__mapper__.configured)
"""


def test_a_new_model_configures_the_classes_that_were_mapped_since_the_last():
    """SQLAlchemy's own constructor does so, and a relationship to Model needs it."""
    program = [sys.executable, "-c", CLASS_MAPPED_LATER]

    printed = subprocess.run(program, check=True, capture_output=True, text=True).stdout

    assert printed.split() == ["False", "True"]


def test_a_model_is_constructed_again_in_place():
    """A second call of the constructor replaces the values, and keeps the state of SQLAlchemy."""
    model = Model(**GIVEN)
    state = sqlalchemy.inspect(model)

    model.__init__(**{**GIVEN, "size_bytes": 8})

    assert sqlalchemy.inspect(model) is state
    assert model.size_bytes == 8


def test_a_model_of_sqlalchemy_without_values_keeps_its_state_in_the_constructor():
    """An instance that a session has expired has a state and no values."""
    model = Model.__mapper__.class_manager.new_instance()
    state = sqlalchemy.inspect(model)

    model.__init__(**GIVEN)

    assert sqlalchemy.inspect(model) is state


def test_a_model_that_was_read_is_constructed_again_in_place():
    """It stays the model with its id, of which the new values are changes."""
    ours, plain = new_detached_model(dict(READ)), detach_with_sqlalchemy(READ)

    for model in (ours, plain):
        model.__init__(**{**GIVEN, "size_bytes": 8})

    assert description_of(ours) == description_of(plain)
    assert sqlalchemy.inspect(ours).detached


def test_the_state_of_a_model_that_was_read_is_made_at_its_first_use():
    """Most programs only read the values, and the state takes five times as long as the rest."""
    model = new_detached_model({**READ, STORED_TAGS: ("a",)})
    slot = vars(Model)[STATE_SLOT]

    assert model.size_bytes == 7
    assert "reference='m'" in repr(model)
    assert model.tags == ("a",)
    with pytest.raises(AttributeError):
        slot.__get__(model)
    assert sqlalchemy.inspect(model) is slot.__get__(model)
    assert sqlalchemy.inspect(model) is sqlalchemy.inspect(model)


def test_threads_that_use_a_model_for_the_first_time_get_the_same_state():
    """Otherwise one of them would record its changes in a state that is then lost."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(300):
                model = new_detached_model(dict(READ))
                barrier = threading.Barrier(4)

                def use(model=model, barrier=barrier):
                    barrier.wait(timeout=10)
                    return sqlalchemy.inspect(model)

                states = [future.result() for future in [pool.submit(use) for _ in range(4)]]

                assert len(set(map(id, states))) == 1
    finally:
        sys.setswitchinterval(interval)


def test_a_missing_attribute_raises_the_error_of_python():
    """The message, the name and the object are those of any class, also without a state."""
    for model in (Model(**GIVEN), new_detached_model(dict(READ)), Model.__new__(Model)):
        with pytest.raises(AttributeError, match="'Model' object has no attribute 'colour'") as no:
            _ = model.colour
        assert (no.value.name, no.value.obj) == ("colour", model)
    foreign = Model.__new__(Model)
    for values in ({}, {"size_bytes": 7}):
        vars(foreign).update(values)
        with pytest.raises(NoInspectionAvailable):
            sqlalchemy.inspect(foreign)


def test_an_attribute_error_inside_a_property_names_its_cause(monkeypatch):
    """The error of the code of a property is not replaced by one that denies the property."""
    monkeypatch.setattr(Model, "shown", property(lambda model: model.ref.colour), raising=False)

    with pytest.raises(AttributeError, match="colour"):
        _ = new_detached_model(dict(READ)).shown


def test_a_model_that_was_read_can_be_changed_in_a_session():
    """SQLAlchemy attaches it as one that it has detached itself."""
    engine = sqlalchemy.create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Model(**GIVEN, downloaded_at=moment(1)))
    with Session(engine) as session:
        values = dict(vars(session.scalars(sqlalchemy.select(Model)).one()))
    model = new_detached_model(dict(values))

    with Session(engine) as session, session.begin():
        session.add(model)
        model.size_bytes = 8
        assert session.get(Model, model.id) is model

    with Session(engine) as session:
        assert session.scalars(sqlalchemy.select(Model.size_bytes)).all() == [8]
        assert session.merge(new_detached_model({**values, "size_bytes": 9})).size_bytes == 9
    engine.dispose()


def test_a_deferred_column_of_a_model_that_was_read_is_not_loaded():
    """It belongs to no session, as a model that SQLAlchemy has detached."""
    for model in (new_detached_model(dict(READ)), detach_with_sqlalchemy(READ)):
        with pytest.raises(DetachedInstanceError):
            _ = model.reference_folded


def test_a_model_that_was_read_takes_over_the_dict_of_values():
    """The values are not copied, because a copy of the dict takes longer than the construction."""
    values = dict(READ)

    assert vars(new_detached_model(values)) is values


class _OtherBase(DeclarativeBase):
    pass


class _WithoutSlot(_OtherBase):
    __tablename__ = "without_slot"

    id: Mapped[int] = mapped_column(primary_key=True)


def test_an_import_fails_if_sqlalchemy_keeps_its_state_outside_the_slot():
    """The error names the version of SQLAlchemy. Without it, each model would lose its state."""
    require_state_slot(Model)

    with pytest.raises(RuntimeError, match=f"SQLAlchemy {sqlalchemy.__version__} does not store"):
        require_state_slot(_WithoutSlot)


def test_a_pickle_names_the_public_module():
    """Pickles stay readable when the mapping moves to another module."""
    assert Model.__module__ == "model_catalog"
    assert b"model_catalog.mapping" not in pickle.dumps(Model)
    assert pickle.loads(pickle.dumps(Model)) is Model


def test_the_annotations_of_a_model_can_be_resolved():
    """`typing.get_type_hints` works although the class names another module as its own."""
    assert typing.get_type_hints(Model)["size_bytes"] == Mapped[int | None]


def test_the_signature_shows_the_keywords_of_the_constructor():
    """Each input field is a keyword with its type and its default; three have no default."""
    parameters = inspect.signature(Model).parameters

    assert {each.kind for each in parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert parameters["reference"].annotation is str
    assert parameters["reference"].default is inspect.Parameter.empty
    assert parameters["version"].default == ""
    assert parameters["downloaded_at"].annotation == datetime | None
    assert parameters["downloaded_at"].default is None
    assert "id" not in parameters
    assert "download_count" not in parameters


def test_the_signature_is_that_of_the_dataclass():
    """Type checkers see the constructor of a dataclass. It has the same keywords, in that order."""
    fields = [field for field in dataclasses.fields(Model) if field.init]
    parameters = inspect.signature(Model).parameters

    assert list(parameters) == [field.name for field in fields]
    assert [parameters[field.name].default is inspect.Parameter.empty for field in fields] == [
        field.default is dataclasses.MISSING for field in fields
    ]


def test_help_shows_the_keywords_of_the_constructor():
    """`help(Model)` prints the keywords instead of `**values`."""
    text = pydoc.render_doc(Model, renderer=pydoc.plaintext)
    # Since Python 3.13, pydoc breaks a long signature into lines that begin with a bar.
    text = re.sub(r"\s*\n \|\s*", " ", text).replace("( *", "(*")

    assert "Model(*, reference: str, provider: str, local_path: str" in text
    assert "size_bytes: int | None = None" in text
