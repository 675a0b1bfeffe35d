"""Registering a model again states that its files are there now."""

import asyncio
import io

import pytest
from conftest import a_model, moment

from model_catalog import FileRecord, FileState

FILE = FileRecord("tinyllama.gguf", 1, digest="sha256:" + 64 * "0")
ABSENT = [FileState.MISSING, FileState.OFFLINE]


async def register_one(catalog):
    await catalog.register_model(a_model("m"))


async def register_with_files(catalog):
    await catalog.register_model(a_model("m"), [FILE])


async def register_read_model(catalog):
    await catalog.register_model(await catalog.get_model("hf:m"))


async def register_in_a_batch(catalog):
    # The first call occupies the executor, and the others wait and share a batch.
    names = ["first", "m", "other"]
    await asyncio.gather(*(catalog.register_model(a_model(name)) for name in names))


async def register_many(catalog):
    await catalog.register_models([a_model("m"), a_model("other")])


async def register_dict(catalog):
    values = {"reference": "m", "provider": "hf", "local_path": "/models/tinyllama.gguf"}
    await catalog.register_models([values])


ROADS = {
    "one": register_one,
    "one with files": register_with_files,
    "a model that was read": register_read_model,
    "in a batch": register_in_a_batch,
    "many": register_many,
    "a dict": register_dict,
}


def set_state(database, state):
    database.run(
        "UPDATE models SET state = ?, state_detail = 'gone', missing_since = ?, checked_at = ?,"
        " verified_at = ?, mount_point = '/models'",
        str(state),
        *(int(moment(second).timestamp()) for second in (1, 2, 3)),
    )


@pytest.mark.parametrize("state", ABSENT)
@pytest.mark.parametrize("register", ROADS.values(), ids=ROADS)
async def test_an_absent_model_is_unchecked_again(catalog, database, register, state):
    """
    On every road to the table. Its id and the results about its bytes stay.
    """
    before = await catalog.register_model(a_model("m"), [FILE])
    set_state(database, state)

    await register(catalog)

    model = await catalog.get_model("hf:m")
    assert (model.state, model.state_detail) == (FileState.UNCHECKED, None)
    assert (model.missing_since, model.checked_at) == (None, None)
    assert (model.id, model.verified_at, model.mount_point) == (before.id, moment(3), "/models")


@pytest.mark.parametrize("state", sorted(set(FileState) - set(ABSENT)))
async def test_other_states_stay(catalog, database, state):
    """
    A file that is changed or unreadable was there, and registering says nothing more about it.
    """
    await catalog.register_model(a_model("m"))
    set_state(database, state)

    await catalog.register_model(a_model("m"))
    await catalog.register_models([a_model("m")])

    model = await catalog.get_model("hf:m")
    assert (model.state, model.state_detail, model.checked_at) == (state, "gone", moment(2))


async def test_an_update_is_no_registration(catalog, database):
    """
    It says nothing about the files, unless it changes their path.
    """
    await catalog.register_model(a_model("m"))
    set_state(database, FileState.MISSING)

    assert (await catalog.update_model("hf:m", license="mit")).state == "missing"
    assert (await catalog.update_model("hf:m", local_path="/new")).state == "unchecked"


async def test_an_import_records_the_state_of_its_line(catalog, database):
    """
    It restores what was recorded at the time of the export.
    """
    await catalog.register_model(a_model("m"))
    set_state(database, FileState.MISSING)
    export = io.StringIO()
    await catalog.export_catalog(export)

    export.seek(0)
    await catalog.import_catalog(export, "replace")

    model = await catalog.get_model("hf:m")
    assert (model.state, model.missing_since) == ("missing", moment(1))
