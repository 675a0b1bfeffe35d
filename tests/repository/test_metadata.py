"""The metadata of a model: the user's value has priority over the one that the header states."""

import pytest
from conftest import a_model, moment

from model_catalog import InvalidModelError, ModelNotFoundError

USER_VALUES = {
    "kind": "adapter",
    "format": "gguf",
    "architecture": "llama",
    "quantization": "Q4_K_M",
    "license": "apache-2.0",
    "context_length": 4096,
    "parameter_count": 1_100_048_384,
}
HEADER_VALUES = {
    "kind": "projector",
    "format": "safetensors",
    "architecture": "qwen2",
    "quantization": "F16",
    "license": "mit",
    "context_length": 32768,
    "parameter_count": 7_000_000_000,
}


def claims(**changes):
    return {f"claimed_{name}": value for name, value in {**HEADER_VALUES, **changes}.items()}


def known(model):
    return {name: getattr(model, name) for name in USER_VALUES}


async def test_the_metadata_that_a_user_sets_is_recorded(catalog):
    """
    Every field is recorded as it was set, and other fields stay unknown.
    """
    model = await catalog.register_model(
        a_model(
            **USER_VALUES,
            source_url="https://huggingface.co/org/repo",
            description="Für den Chat.\n",
        )
    )

    assert known(model) == USER_VALUES
    assert model.source_url == "https://huggingface.co/org/repo"
    assert model.description == "Für den Chat.\n"
    assert known(await catalog.register_model(a_model("other"))) == dict.fromkeys(USER_VALUES)


async def test_a_header_value_is_shown_where_the_user_set_none(catalog, database):
    """
    The value that a header states is stored in a column of its own.
    """
    model = await catalog.register_model(a_model(**claims(), architecture="llama"))

    assert known(model) == {**HEADER_VALUES, "architecture": "llama"}
    assert model.claimed_architecture == "qwen2"
    assert database.run("SELECT architecture, claimed_architecture, format FROM models") == [
        ("llama", "qwen2", None)
    ]


async def test_a_later_header_value_does_not_overwrite_the_users_value(catalog):
    """
    Registering the file again with another header changes the claimed fields alone.
    """
    await catalog.register_model(a_model(**USER_VALUES, **claims()))

    model = await catalog.register_model(a_model(**claims(architecture="gemma3")))

    assert known(model) == USER_VALUES
    assert model.claimed_architecture == "gemma3"


async def test_a_header_value_that_was_read_does_not_become_the_users_value(catalog):
    """
    A found model that is changed and registered again sets only the changed fields.
    """
    await catalog.register_model(a_model(**claims()))
    model = await catalog.get_model("TinyLlama-1.1B-Chat-v1.0", "hf")

    model.license = "llama3"
    await catalog.register_model(model)
    again = await catalog.register_model(a_model(**claims(architecture="gemma3", license="gpl")))

    assert (again.architecture, again.license) == ("gemma3", "llama3")


async def test_a_model_that_was_read_and_removed_can_be_registered_again(catalog):
    """
    The claimed fields of the new record are those of the model that was read.
    """
    await catalog.register_model(
        a_model(**claims(), size_bytes=5, downloaded_at=moment(1), description="mine")
    )
    model = await catalog.get_model("TinyLlama-1.1B-Chat-v1.0", "hf")
    await catalog.remove_model("TinyLlama-1.1B-Chat-v1.0", "hf")

    await catalog.register_model(model)
    again = await catalog.update_model("TinyLlama-1.1B-Chat-v1.0", "hf", claimed_format="gguf")

    assert (again.size_bytes, again.downloaded_at) == (5, moment(1))
    assert (again.description, again.format) == ("mine", "gguf")


async def test_update_model_sets_only_the_named_fields(catalog):
    """
    update_model does not count as a download, and returns the model.
    """
    before = await catalog.register_model(
        a_model(**USER_VALUES, size_bytes=7, downloaded_at=moment(1))
    )

    model = await catalog.update_model(
        "TinyLlama-1.1B-Chat-v1.0", "hf", local_path="/new.gguf", context_length=8192
    )

    assert known(model) == {**USER_VALUES, "context_length": 8192}
    assert (model.id, model.local_path, model.size_bytes) == (before.id, "/new.gguf", 7)
    assert (model.downloaded_at, model.download_count) == (moment(1), 1)


async def test_a_cleared_field_shows_the_header_value(catalog):
    """
    Without the user's value the header's value is shown again.
    """
    await catalog.register_model(a_model(**USER_VALUES, **claims(), description="mine"))

    model = await catalog.update_model(
        "TinyLlama-1.1B-Chat-v1.0", "hf", architecture=None, description=None
    )

    assert known(model) == {**USER_VALUES, "architecture": "qwen2"}
    assert model.description is None


async def test_update_model_without_fields_changes_nothing(catalog):
    """
    It returns the model, and raises if there is none.
    """
    await catalog.register_model(a_model("m", size_bytes=3))

    assert (await catalog.update_model("m", "hf")).size_bytes == 3
    with pytest.raises(ModelNotFoundError):
        await catalog.update_model("other", "hf")
    with pytest.raises(ModelNotFoundError):
        await catalog.update_model("m", "hf", "v1", size_bytes=4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", ""),
        ("architecture", "a" * 129),
        ("quantization", "Q4\n"),
        ("license", 3),
        ("context_length", -1),
        ("context_length", 2**63),
        ("kind", "lora"),
        ("kind", 1),
        ("parameter_count", 7e9),
        ("parameter_count", True),
        ("source_url", "https://" + "x" * 2041),
        ("description", "x" * (64 * 1024 + 1)),
        ("description", "ü" * (32 * 1024 + 1)),
        ("description", "a\0b"),
        ("description", "\ud800"),
        ("claimed_format", " "),
        ("claimed_context_length", -1),
        ("local_path", None),
        ("local_path", ""),
        ("size_bytes", "1"),
        ("id", 3),
        ("tags", ["a"]),
        ("pinned_at", moment(1)),
        ("nonsense", 1),
    ],
)
@pytest.mark.slow_with("asyncpg")
async def test_update_model_refuses_invalid_values(catalog, field, value):
    """
    The error names a value out of bounds or a field that cannot be set, and nothing is written.
    """
    before = await catalog.register_model(a_model("m", size_bytes=1))

    with pytest.raises(InvalidModelError, match=field) as caught:
        await catalog.update_model("m", "hf", **{field: value, "format": "gguf"} | {field: value})

    assert (caught.value.field, caught.value.value) == (field, value)
    after = await catalog.get_model("m", "hf")
    assert (after.local_path, after.format) == (before.local_path, None)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("description", "x" * (64 * 1024)),
        ("description", "tab\t esc\x1b line\n"),
        ("description", ""),
        ("context_length", 0),
        ("parameter_count", 2**63 - 1),
        ("architecture", "a" * 128),
        ("source_url", "https://" + "x" * 2040),
    ],
    ids=["64 KiB", "control characters", "empty", "zero", "2**63 - 1", "128", "2048"],
)
async def test_values_at_their_limits_are_recorded(catalog, field, value):
    """
    The limits are allowed, and such values are returned as they were set.
    """
    model = await catalog.register_model(a_model(**{field: value}))

    assert getattr(model, field) == value
