"""The name of a model in one text."""

import enum

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_catalog import InvalidModelError, ModelRef

PARSED = {
    "colons in the reference": ("hf:org/repo:Q4_K_M", ModelRef("hf", "org/repo:Q4_K_M")),
    "version": ("hf:TheBloke/TinyLlama@v1", ModelRef("hf", "TheBloke/TinyLlama", "v1")),
    "both": ("hf:org/repo:Q4_K_M@main", ModelRef("hf", "org/repo:Q4_K_M", "main")),
    "nothing after the at": ("hf:org/repo@", ModelRef("hf", "org/repo", "")),
    "two ats": ("hf:a@b@c", ModelRef("hf", "a@b", "c")),
    "blanks": (" hf : m @ v ", ModelRef(" hf ", " m ", " v ")),
    "at before the colon": ("me@home:m", ModelRef("me@home", "m")),
    "not ASCII": ("ü:模型@🦙", ModelRef("ü", "模型", "🦙")),
}


@pytest.mark.parametrize(("text", "expected"), PARSED.values(), ids=PARSED)
def test_a_text_names_a_model(text, expected):
    """
    The provider ends at the first colon, the version begins after the last `@`.
    """
    assert ModelRef.parse(text) == expected
    assert str(expected) == text


REFUSED = {
    "nothing": ("", "ref", ""),
    "no provider": ("TinyLlama", "ref", "TinyLlama"),
    "empty provider": (":m", "provider", ""),
    "blank provider": (" :m", "provider", " "),
    "empty reference": ("hf:", "reference", ""),
    "blank reference": ("hf:\t@v1", "reference", "\t"),
    "version alone": ("hf:@v1", "reference", ""),
    "NUL": ("hf:m\0", "ref", "hf:m\0"),
    "lone surrogate": ("hf:\udcff", "ref", "hf:\udcff"),
    "bytes": (b"hf:m", "ref", b"hf:m"),
    "None": (None, "ref", None),
}


@pytest.mark.parametrize(("text", "field", "value"), REFUSED.values(), ids=REFUSED)
def test_a_text_that_names_no_model_is_refused(text, field, value):
    """
    The error names the part that is wrong, and what it is.
    """
    with pytest.raises(InvalidModelError) as caught:
        ModelRef.parse(text)

    assert (caught.value.field, caught.value.value) == (field, value)


@pytest.mark.parametrize(
    ("provider", "reference", "version", "field"),
    [
        ("", "m", None, "provider"),
        ("hf", " ", None, "reference"),
        (None, "m", None, "provider"),
        ("hf", "m\0", None, "reference"),
        ("hf", "m", "\ud800", "version"),
        ("hf", "m", 1, "version"),
    ],
    ids=["no provider", "blank", "None", "NUL", "lone surrogate", "number"],
)
def test_a_name_of_bad_parts_is_refused(provider, reference, version, field):
    """
    A ModelRef that exists names something.
    """
    with pytest.raises(InvalidModelError) as caught:
        ModelRef(provider, reference, version)

    assert caught.value.field == field


class Mixed(str, enum.Enum):  # noqa: UP042 - this is the one whose str() is its name
    HF = "hf"


def test_a_name_is_of_texts_whatever_they_say_of_themselves():
    """
    What is written is what `parse` reads back, also of a member of an enum.
    """
    name = ModelRef(Mixed.HF, Mixed.HF, Mixed.HF)

    assert str(name) == "hf:hf@hf"
    assert {type(part) for part in (name.provider, name.reference, name.version)} == {str}


def test_a_name_is_a_value():
    """
    Equal names are one key of a dict, and none changes.
    """
    name = ModelRef("hf", "m", "v1")

    assert {name: 1}[ModelRef.parse("hf:m@v1")] == 1
    assert name != ModelRef("hf", "m")
    with pytest.raises(AttributeError):
        name.version = "v2"


texts = st.one_of(
    st.text(),
    st.text(alphabet=":@ ab/\0\ud800", max_size=12),
    st.tuples(st.text(), st.text(), st.text()).map("{0[0]}:{0[1]}@{0[2]}".format),
)


@given(text=texts)
@example(text="a:b@")
@example(text="a@b:c")
@example(text="a::@@")
def test_any_text_is_a_name_or_is_refused(text):
    """
    What parses is written as it was read, and read again as the same; the rest is
    InvalidModelError.
    """
    try:
        name = ModelRef.parse(text)
    except InvalidModelError:
        return

    assert str(name) == text
    assert ModelRef.parse(str(name)) == name


@given(
    provider=st.text(alphabet=st.characters(exclude_characters=":\0", codec="utf-8")),
    reference=st.text(alphabet=st.characters(exclude_characters="@\0", codec="utf-8")),
    version=st.none() | st.text(alphabet=st.characters(exclude_characters="@\0", codec="utf-8")),
)
def test_a_name_is_read_back_from_its_text(provider, reference, version):
    """
    Without a colon in the provider and an `@` in the rest, a name and its text are the same.
    """
    try:
        name = ModelRef(provider, reference, version)
    except InvalidModelError:
        return

    assert ModelRef.parse(str(name)) == name
