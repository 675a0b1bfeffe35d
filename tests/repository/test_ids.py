"""Models by their ids, and lookups of models that are there."""

import pytest
from conftest import a_model, moment

from model_catalog import FileState, InvalidModelError, ModelNotFoundError
from model_catalog.upkeep import check_models


async def test_a_model_is_found_by_its_id(catalog):
    """
    With its tags, as by its name; an unknown id finds nothing.
    """
    await catalog.register_models([a_model("a"), a_model("b")])
    expected = await catalog.tag_model("hf:b", tags=["chat"])

    found = await catalog.get_model_by_id(expected.id)

    assert (found.ref, found.tags) == (expected.ref, ("chat",))
    assert await catalog.find_model_by_id(2**63 - 1) is None
    with pytest.raises(ModelNotFoundError, match="no model with id 9") as caught:
        await catalog.get_model_by_id(9)
    assert caught.value.model_id == 9


@pytest.mark.parametrize("value", [None, "1", 1.0, True, -1, 2**63], ids=repr)
async def test_an_invalid_id_is_refused(on_sqlite, value):
    """
    Alone and in the filter.
    """
    for call in (
        lambda: on_sqlite.find_model_by_id(value),
        lambda: on_sqlite.count_models(ids=[value]),
    ):
        with pytest.raises(InvalidModelError):
            await call()


async def test_the_filter_ids_takes_any_number_of_ids(catalog):
    """
    More than the parameters of a statement; none selects no model, and no filter all of them.
    """
    await catalog.register_models([a_model(f"m{number}") for number in range(4)])
    first, second, *_ = (row.id for row in await catalog.list_rows(limit=2, provider="hf"))

    assert {row.id for row in await catalog.list_rows(ids=(second, first, second))} == {
        first,
        second,
    }
    assert await catalog.list_models(ids=[]) == []
    assert await catalog.count_models(ids=range(100_000)) == 4
    assert await catalog.count_models(ids=None) == 4
    assert await catalog.count_models(ids=iter([first]), provider="hf") == 1


async def test_ids_that_are_no_list_are_refused(on_sqlite):
    """
    A text would be read character by character.
    """
    for value in ("12", 12):
        with pytest.raises(InvalidModelError, match="list of ids"):
            await on_sqlite.list_models(ids=value)


@pytest.mark.parametrize("state", FileState)
async def test_present_finds_only_what_the_last_check_found_there(catalog, database, state):
    """
    A model that was registered since the last check is there; one that is offline is not.
    """
    await catalog.register_model(a_model("m"))
    database.run("UPDATE models SET state = ?", str(state))

    found = await catalog.find_model("hf:m", present=True)

    assert (found is not None) == (state in {FileState.UNCHECKED, FileState.PRESENT})
    assert await catalog.find_model("hf:m") is not None


async def test_present_does_not_fall_back_to_another_version(on_sqlite, tmp_path):
    """
    Without a version it is the version downloaded last, or nothing.
    """
    path = tmp_path / "m.bin"
    path.write_bytes(b"weights")
    await on_sqlite.register_model(a_model("m", local_path=path, downloaded_at=moment(0)))
    await on_sqlite.register_model(a_model("m", version="v2", local_path="/gone"))
    await check_models(on_sqlite)

    assert await on_sqlite.find_model("m", "hf", present=True) is None
    assert (await on_sqlite.find_model("m", "hf", "", present=True)).state == "present"
