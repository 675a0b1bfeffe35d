"""
Constructs models with less work than SQLAlchemy does: new ones, and ones that were read.

This module and execution/prepared_statement.py are the only ones that use parts of SQLAlchemy
without a documented promise. tests/mapping/test_model_construction.py compares the results with
those of SQLAlchemy's own functions.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache, wraps
from threading import RLock
from types import MemberDescriptorType
from typing import Any, Final, TypeVar
from weakref import getweakrefcount

import sqlalchemy
from sqlalchemy.orm import DeclarativeBase, InstanceState, class_mapper
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.orm.base import NO_VALUE

from model_catalog.domain.fields import (
    ATTRIBUTES,
    COLUMN_DEFAULTS,
    FIELD_TYPES,
    FIELDS,
    HEADER_FIELDS,
    INPUT_FIELDS,
    REQUIRED_FIELDS,
)

M = TypeVar("M", bound=DeclarativeBase)

STATE_SLOT: Final = "_sa_instance_state"
"""The slot of Model. SQLAlchemy's state is outside the dict, which the functions below replace."""

_REQUIRED: Final = frozenset(REQUIRED_FIELDS)
_HEADER: Final = frozenset(HEADER_FIELDS)


# The constructor of a mapped dataclass sets each attribute through its descriptor: 7.0 us instead
# of 2.9 us, longer than it takes to store the model.
def initialize(self: Any, **values: Any) -> None:
    """Construct a Model from the fields that the caller sets, all as keywords."""
    _set_values(self, instance_state(self), values)


def _set_values(model: Any, state: InstanceState[Any], values: dict[str, Any]) -> None:
    attributes, history = _attributes_of(tuple(values))
    if len(values) == len(INPUT_FIELDS):
        values = _without_claims(values)
        history = dict.fromkeys(values, NO_VALUE)
    elif attributes is not None:
        values = dict(zip(attributes, values.values(), strict=False))
    state.committed_state = history.copy()
    state.modified = True
    model.__dict__ = values


def install_constructor(model_class: type[DeclarativeBase]) -> None:
    """
    Replace the constructor that SQLAlchemy has generated around `initialize` by a shorter one.

    SQLAlchemy's own runs for a subclass, if a program listens to the event `init`, and if mappers
    are to be configured.
    """
    generated: Callable[..., None] = vars(model_class)["__init__"]
    mapper = class_mapper(model_class, configure=False)
    manager: Any = mapper.class_manager
    registry: Any = mapper.registry
    new_state, set_state = manager._state_constructor, manager._state_setter  # noqa: SLF001
    init_listeners = manager.dispatch.init

    # Takes 4 us. SQLAlchemy's own takes 6 us: it packs the keywords twice more, and calls its
    # listener, which configures mappers. A state has a weak reference to its model. To look for the
    # state itself takes 1 us, because `__getattr__` is called for an empty slot.
    @wraps(generated)
    def construct(self: Any, **values: Any) -> None:
        if (
            type(self) is not model_class
            or registry._new_mappers  # noqa: SLF001
            or len(init_listeners) != 1
            or self.__dict__
            or getweakrefcount(self)
        ):
            generated(self, **values)
            return
        state = new_state(self, manager)
        set_state(self, state)
        try:
            _set_values(self, state, values)
        except BaseException:
            manager.dispatch.init_failure(state, (), values)
            raise

    type.__setattr__(model_class, "__init__", construct)


# A program has a handful of combinations of keywords. Deriving these values again takes 1.5 us.
@lru_cache(maxsize=256)
def _attributes_of(
    names: tuple[str, ...],
) -> tuple[tuple[str, ...] | None, dict[str, Any]]:
    """
    Return the attributes that store these keywords, None if they have the same names.

    The second value is the history that each attribute would have recorded: it was set and had no
    value before. Raises TypeError for unknown or missing keywords.
    """
    if not (_REQUIRED <= set(names) <= INPUT_FIELDS):
        raise _keyword_error(set(names))
    attributes = tuple(ATTRIBUTES[name] for name in names)
    return None if attributes == names else attributes, dict.fromkeys(attributes, NO_VALUE)


def _without_claims(values: dict[str, Any]) -> dict[str, Any]:
    """
    Return the attributes for all keywords, without those that only repeat a header's claim.

    `dataclasses.replace` passes every keyword, and the value that it has read. A value equal to the
    header's claim is that claim, and must not become the user's own.
    """
    claims = {
        name
        for name in _HEADER
        if values[name] is not None and values[name] == values[f"claimed_{name}"]
    }
    return {ATTRIBUTES[name]: value for name, value in values.items() if name not in claims}


def _keyword_error(names: AbstractSet[str]) -> TypeError:
    """The TypeError that Python raises for unknown or missing keywords."""
    unknown, missing = sorted(names - INPUT_FIELDS), sorted(_REQUIRED - names)
    fault = "got an unexpected" if unknown else "is missing a required"
    return TypeError(f"Model() {fault} keyword argument: {', '.join(unknown or missing)}")


def constructor_signature() -> inspect.Signature:
    """The signature of `initialize`: a keyword for each input field, with type and default."""
    keywords = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if name in _REQUIRED else COLUMN_DEFAULTS[name],
            annotation=FIELD_TYPES[name],
        )
        for name in FIELDS
        if name in INPUT_FIELDS
    ]
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Signature([this, *keywords], return_annotation=None)


def detached_constructor(
    model_class: type[M],
) -> Callable[[dict[str, Any]], M]:
    """
    Return the function that constructs models of `model_class` from rows that were read.

    Changes `model_class`: SQLAlchemy's state of such a model is made at its first use. Raises
    RuntimeError if this version of SQLAlchemy does not store its state in the slot.
    """
    require_state_slot(model_class)
    _install_late_state(model_class)
    mapper = class_mapper(model_class, configure=False)

    # Takes 0.2 us, and the state 1.0 us more: most programs only read the values. With it,
    # `gc` would have nine objects of each model to examine instead of two.
    def new_detached_model(values: dict[str, Any]) -> M:
        """
        Construct a model that was read. It belongs to no session, and `values` becomes its dict.

        A session would expire the models that it contains when it commits. A detached model stays
        readable.
        """
        if not mapper.configured:
            # The constructor of the first model configures the mappers. A process that only reads
            # models calls no constructor.
            mapper.registry.configure()
        model: M = model_class.__new__(model_class)
        model.__dict__ = values
        return model

    return new_detached_model


def _install_late_state(model_class: type[DeclarativeBase]) -> None:
    """
    Make SQLAlchemy's state of a model that was read when it is first used.

    It is that of a model that `make_transient_to_detached` has detached.
    """
    mapper = class_mapper(model_class, configure=False)
    manager: Any = mapper.class_manager
    new_state, set_state = manager._state_constructor, manager._state_setter  # noqa: SLF001
    get_state = vars(model_class)[STATE_SLOT].__get__
    identity_class, _, token = mapper.identity_key_from_primary_key((0,))

    # Python calls it for an attribute that is not there, and the slot of the state is empty.
    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807 - installed as the method
        if name != STATE_SLOT or "id" not in self.__dict__:
            # Raises the error again, which Python has suppressed.
            return object.__getattribute__(self, name)
        state = new_state(self, manager)
        state.key = (identity_class, (self.__dict__["id"],), token)
        with _state_lock:
            try:
                return get_state(self)
            except AttributeError:
                set_state(self, state)
        return state

    type.__setattr__(model_class, "__getattr__", __getattr__)


# Two threads that use a model for the first time must get the same state. In the block, `gc` may
# call a finalizer that uses another model.
_state_lock: Final = RLock()
if hasattr(os, "register_at_fork"):
    # The thread that holds it does not exist in a child.
    os.register_at_fork(
        before=_state_lock.acquire,
        after_in_parent=_state_lock.release,
        after_in_child=_state_lock.release,
    )


def duplicate(model: M) -> M:
    """
    Return a copy of a model that belongs to no session, with its own state in SQLAlchemy.

    It has the values that are loaded, and none of the relationships that a host has added.
    """
    mapper = class_mapper(type(model))
    copy: M = mapper.class_manager.new_instance()
    columns = mapper.column_attrs.keys()
    copy.__dict__ = {name: value for name, value in vars(model).items() if name in columns}
    old, new = instance_state(model), instance_state(copy)
    new.key, new.identity_token = old.key, old.identity_token
    new.committed_state.update(old.committed_state)
    new.modified = old.modified
    new.expired = old.expired
    new.expired_attributes.update(old.expired_attributes)
    return copy


def describe(model: DeclarativeBase) -> str:
    """Return the class and the loaded fields of a model; nothing is read from the database."""
    loaded = vars(model)
    values = [
        f"{name}={loaded[attribute]!r}"
        for name, attribute in ATTRIBUTES.items()
        if attribute in loaded
    ]
    return f"{type(model).__name__}({', '.join(values)})"


def dataclass_fields(
    mapped: Mapping[str, dataclasses.Field[Any]],
) -> dict[str, dataclasses.Field[Any]]:
    """
    Return the fields of the dataclass `Model`: those of the field table, then the tags.

    `mapped` are the fields that SQLAlchemy made. They contain the internal columns and the `user_`
    attributes, but no computed field.
    """
    computed: list[tuple[str, Any, Any]] = [
        (name, FIELD_TYPES[name], dataclasses.field(default=None)) for name in HEADER_FIELDS
    ]
    computed.append(("tags", tuple[str, ...], dataclasses.field(init=False)))
    made = dataclasses.fields(dataclasses.make_dataclass("Computed", computed, kw_only=True))
    known = {**mapped, **{field.name: field for field in made}}
    return {name: known[name] for name in (*FIELDS, "tags")}


def require_state_slot(model_class: type[DeclarativeBase]) -> None:
    """
    Raise RuntimeError if SQLAlchemy does not store the state of an instance in the slot.

    The functions above replace `__dict__`. A state inside that dict would be lost.
    """
    instance = class_mapper(model_class, configure=False).class_manager.new_instance()
    state = sqlalchemy.inspect(instance)
    slot = vars(model_class).get(STATE_SLOT)
    is_in_slot = isinstance(slot, MemberDescriptorType) and slot.__get__(instance) is state
    if not is_in_slot or vars(instance):
        raise RuntimeError(
            f"SQLAlchemy {sqlalchemy.__version__} does not store its state of a "
            f"{model_class.__name__} in the slot {STATE_SLOT!r}, which this package relies on: "
            f"install a version that this release of model-catalog supports"
        )
