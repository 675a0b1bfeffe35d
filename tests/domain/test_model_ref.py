"""`ModelRef`: parsing and printing provider:reference@version."""

import enum

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model_catalog import InvalidModelError, ModelRef

VALID_TEXTS = {
    "colons in the reference": ("hf:org/repo:Q4_K_M", ModelRef("hf", "org/repo:Q4_K_M")),
    "version": ("hf:TheBloke/TinyLlama@v1", ModelRef("hf", "TheBloke/TinyLlama", "v1")),
    "both": ("hf:org/repo:Q4_K_M@main", ModelRef("hf", "org/repo:Q4_K_M", "main")),
    "nothing after the at": ("hf:org/repo@", ModelRef("hf", "org/repo", "")),
    "two ats": ("hf:a@b@c", ModelRef("hf", "a@b", "c")),
    "at in the version": ("hf:m@a%40b/50%25.gguf", ModelRef("hf", "m", "a@b/50%.gguf")),
    "percent in the version": ("hf:m@50%", ModelRef("hf", "m", "50%")),
    "percent that is not an escape": ("hf:m@%25", ModelRef("hf", "m", "%25")),
    "an escape as the version": ("hf:m@a%2540b", ModelRef("hf", "m", "a%40b")),
    "blanks": (" hf : m @ v ", ModelRef(" hf ", " m ", " v ")),
    "at before the colon": ("me@host:m", ModelRef("me@host", "m")),
    "not ASCII": ("ü:模型@🦙", ModelRef("ü", "模型", "🦙")),
}


@pytest.mark.parametrize(("text", "expected"), VALID_TEXTS.values(), ids=VALID_TEXTS)
def test_text_is_parsed_and_printed(text, expected):
    """
    The provider ends at the first colon, the version begins after the last `@`.
    """
    assert ModelRef.parse(text) == expected
    assert str(expected) == text


INVALID_TEXTS = {
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


@pytest.mark.parametrize(("text", "field", "value"), INVALID_TEXTS.values(), ids=INVALID_TEXTS)
def test_text_without_a_valid_key_is_rejected(text, field, value):
    """
    The error has the name and the value of the invalid part.
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
def test_invalid_part_is_rejected(provider, reference, version, field):
    """
    A ModelRef cannot be constructed with a blank or unstorable part.
    """
    with pytest.raises(InvalidModelError) as caught:
        ModelRef(provider, reference, version)

    assert caught.value.field == field


class Mixed(str, enum.Enum):  # noqa: UP042 - str() of this kind of enum is the member's name
    HF = "hf"


def test_parts_become_plain_str():
    """
    A part of a str subclass, such as an enum member, is stored as its plain text.
    """
    ref = ModelRef(Mixed.HF, Mixed.HF, Mixed.HF)

    assert str(ref) == "hf:hf@hf"
    assert {type(part) for part in (ref.provider, ref.reference, ref.version)} == {str}


def test_refs_are_hashable_and_immutable():
    """
    Equal refs are the same dict key, and attributes cannot be assigned.
    """
    ref = ModelRef("hf", "m", "v1")

    assert {ref: 1}[ModelRef.parse("hf:m@v1")] == 1
    assert ref != ModelRef("hf", "m")
    with pytest.raises(AttributeError):
        ref.version = "v2"


PERCENTS = st.lists(st.sampled_from(["%25", "%40", "%", "@", "25", "40"])).map("".join)
texts = st.one_of(
    st.text(),
    st.text(alphabet=":@ ab/\0\ud800", max_size=12),
    PERCENTS.map("a:b@{}".format),
    st.tuples(st.text(), st.text(), st.text()).map("{0[0]}:{0[1]}@{0[2]}".format),
)


@pytest.mark.slow
@given(text=texts)
@example(text="a:b@")
@example(text="a@b:c")
@example(text="a::@@")
def test_parsed_text_is_printed_unchanged(text):
    """
    A text that parses is printed unchanged and parses to an equal ref; others raise
    InvalidModelError.
    """
    try:
        ref = ModelRef.parse(text)
    except InvalidModelError:
        return

    assert str(ref) == text
    assert ModelRef.parse(str(ref)) == ref


@pytest.mark.slow
@given(
    provider=st.text(alphabet=st.characters(exclude_characters=":\0", codec="utf-8")),
    reference=st.text(alphabet=st.characters(exclude_characters="@\0", codec="utf-8")),
    version=st.none()
    | st.text(alphabet=st.characters(exclude_characters="\0", codec="utf-8"))
    | PERCENTS,
)
def test_printed_ref_parses_to_an_equal_ref(provider, reference, version):
    """
    This is true for every ref without a colon in the provider and `@` in the reference.
    """
    try:
        ref = ModelRef(provider, reference, version)
    except InvalidModelError:
        return

    assert ModelRef.parse(str(ref)) == ref
