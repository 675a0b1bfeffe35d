"""Whatever is called in whatever order, the catalog does what a few dictionaries do."""

import asyncio
import copy
import io
import itertools
import json
import operator
import os
import unicodedata
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta, timezone

import pytest
from conftest import moment
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from model_catalog import (
    Alias,
    CatalogStats,
    ImportResult,
    InvalidModelError,
    Model,
    ModelNotFoundError,
    ModelTotals,
    Sort,
    TagCount,
    open_catalog,
)

CLAIMABLE = (
    "format",
    "architecture",
    "quantization",
    "license",
    "context_length",
    "parameter_count",
)
WRITTEN = (
    *("local_path", "size_bytes", "downloaded_at", "source_url", "description"),
    *CLAIMABLE,
    *(f"claimed_{name}" for name in CLAIMABLE),
)
COUNTED = ("download_count", "use_count", "last_used_at", "pinned_at", "pin_reason")
EXACT = ("provider", "reference", "format", "architecture", "quantization", "license")
NAMES_OF_SORTS = {"provider", "reference", "architecture", "quantization", "format"}


def fold(text):
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def as_stored(fields):
    """Times as they come back."""
    return {
        name: value.astimezone(UTC).replace(microsecond=0) if isinstance(value, datetime) else value
        for name, value in fields.items()
    }


class Book:
    """What a catalog is to do, said again with dictionaries; a name is (provider, reference)."""

    def __init__(self):
        self.rows = {}
        self.aliases = {}
        self.recorded = 0

    def meant(self, name, version):
        """The key that is meant, or None."""
        if version is None:
            own = [key for key in self.rows if key[:2] == name]
            return max(own, key=self._age, default=None)
        if (*name, version) in self.rows:
            return (*name, version)
        return self.aliases.get((*name, version))

    def _age(self, key):
        at = self.rows[key]["downloaded_at"]
        return at is not None, at or moment(0), self.rows[key]["order"]

    def register(self, key, fields):
        if key not in self.rows:
            self.recorded += 1
            self.rows[key] = dict.fromkeys((*WRITTEN, *COUNTED)) | {
                **dict(zip(("provider", "reference", "version"), key, strict=True)),
                "download_count": 0,
                "use_count": 0,
                "tags": {},
                "order": self.recorded,
            }
        self.rows[key].update(as_stored(fields))
        self.rows[key]["download_count"] += 1

    def remove(self, name, version):
        gone = [key for key in self.rows if key[:2] == name]
        if version is not None:
            gone = [key for key in gone if key == self.meant(name, version)]
        for key in gone:
            del self.rows[key]
        self.aliases = {alias: key for alias, key in self.aliases.items() if key in self.rows}
        return bool(gone)

    def tag(self, key, tags):
        for tag in tags:
            self.rows[key]["tags"].setdefault(fold(tag), tag)

    def untag(self, key, tags):
        for tag in tags:
            self.rows[key]["tags"].pop(fold(tag), None)

    def known(self, key, field):
        """The user's word, or else what a header claims."""
        row = self.rows[key]
        return row[f"claimed_{field}"] if field in CLAIMABLE and row[field] is None else row[field]

    def seen(self, key):
        """All that a Model is to show."""
        row = self.rows[key]
        names = ("provider", "reference", "version", *WRITTEN, *COUNTED)
        tags = tuple(row["tags"][folded] for folded in sorted(row["tags"], key=str.encode))
        return {name: self.known(key, name) for name in names} | {"tags": tags}

    def line(self, key):
        """All that an export is to say: the user's words and the claims apart."""
        row = self.rows[key]
        aliases = [alias for *_, alias in (a for a, meant in self.aliases.items() if meant == key)]
        line = {
            **{name: row[name] for name in ("provider", "reference", "version")},
            **{name: row[name] for name in (*WRITTEN, *COUNTED)},
            "tags": list(self.seen(key)["tags"]),
            "aliases": sorted(aliases, key=lambda alias: (fold(alias), alias)),
            "state": "unchecked",
        }
        return {
            name: f"{value:%Y-%m-%dT%H:%M:%SZ}" if isinstance(value, datetime) else value
            for name, value in line.items()
            if value is not None and value != []
        }

    def passing(self, filters):
        """The keys of those that pass; a bound is passed by nothing that is not known."""
        passes = {
            "search": lambda key, text: any(
                fold(text) in fold(found)
                for row in [self.rows[key]]
                for found in [row["reference"], row["description"] or "", *row["tags"]]
            ),
            "tags": lambda key, tags: {fold(tag) for tag in tags} <= self.rows[key]["tags"].keys(),
            "any_tags": lambda key, tags: {fold(t) for t in tags} & self.rows[key]["tags"].keys(),
            "never_used": lambda key, yes: (self.rows[key]["last_used_at"] is None) == yes,
            "pinned": lambda key, yes: (self.rows[key]["pinned_at"] is not None) == yes,
            "min_size_bytes": self._compares("size_bytes", operator.ge),
            "max_size_bytes": self._compares("size_bytes", operator.le),
            "min_context_length": self._compares("context_length", operator.ge),
            "downloaded_after": self._compares("downloaded_at", operator.gt),
            "downloaded_before": self._compares("downloaded_at", operator.lt),
            **{field: self._compares(field, operator.eq) for field in EXACT},
        }
        return [
            key
            for key in self.rows
            if all(passes[name](key, value) for name, value in filters.items())
        ]

    def _compares(self, field, compare):
        def passes(key, bound):
            found = self.known(key, field)
            return found is not None and compare(found, bound)

        return passes

    def listing(self, filters, sort, descending):
        keys = sorted(self.passing(filters), key=lambda key: [part.encode() for part in key])
        if descending is None:
            descending = sort not in NAMES_OF_SORTS

        def value(key):
            found = self.known(key, str(sort))
            return found.encode() if isinstance(found, str) else found

        valued = [key for key in keys if value(key) is not None]
        valued.sort(key=value, reverse=descending)
        return valued + [key for key in keys if value(key) is None]

    def tally(self, keys):
        return ModelTotals(len(keys), sum(self.rows[key]["size_bytes"] or 0 for key in keys))

    def stats(self, filters):
        passing = self.passing(filters)

        def by(field):
            kinds = {self.known(key, field) for key in passing}
            return {
                kind: self.tally([key for key in passing if self.known(key, field) == kind])
                for kind in kinds
            }

        kinds = ("provider", "format", "architecture", "quantization")
        return CatalogStats(self.tally(passing), *(by(kind) for kind in kinds))

    def tag_counts(self, filters):
        spellings = {}
        for key in self.passing(filters):
            for folded, tag in self.rows[key]["tags"].items():
                spellings.setdefault(folded, Counter())[tag] += 1
        return [
            TagCount(
                min(counts, key=lambda tag: (-counts[tag], tag.encode())), sum(counts.values())
            )
            for folded, counts in sorted(spellings.items(), key=lambda each: each[0].encode())
        ]


# Few names, so that they meet; among them some that differ in little, and an alias like a version.
MOSTLY = ("hf", 'É\\_"\U0001f999')
NAMES = st.sampled_from([MOSTLY, MOSTLY, ("it's 100%", MOSTLY[1]), ("hf", "m")])
MADE_AS = st.sampled_from([Model, dict])
VERSIONS = st.sampled_from(["", "v1", "V1", "stable"])
EVERY_VERSION = (None, "", "v1", "V1", "stable", "latest")
WANTED = st.sampled_from(EVERY_VERSION)
ALIASES = st.sampled_from(["v1", "stable", "latest", "E\u0301 '%"])

CHARACTERS = st.one_of(
    st.sampled_from("%_\\'\"$:?*aAäÄßẞ\u017fIİ\u0131Σςé\u0301\u0308\u0345\u200d\ufb01\U00010400"),
    st.characters(exclude_categories=("Cs", "Cc")),
)
WORDS = st.text(CHARACTERS, min_size=1, max_size=8).filter(str.strip)
TEXTS = st.text(st.one_of(CHARACTERS, st.sampled_from("\n\x01\x1f\x85")), max_size=12)
TAGS = st.lists(
    st.one_of(
        st.sampled_from(["Chat", "CHAT", "chat", "Straße", "STRASSE", "E\u0301", "\u00e9", "%"]),
        WORDS,
    ),
    max_size=4,
)
NUMBERS = st.sampled_from([0, 1, 4096, 2**53 + 1, 2**63 - 1])
MOMENTS = st.builds(
    lambda second, cut, hours: (moment(second) + timedelta(microseconds=cut)).astimezone(
        timezone(timedelta(hours=hours))
    ),
    *(st.integers(0, 2), st.sampled_from([0, 1, 999_999]), st.sampled_from([0, -9, 14])),
)
PATHS = st.one_of(
    st.sampled_from(["/m", "bytes:%2Fm", "~", os.fsdecode(b"/\xff%"), "C:\\m", "/a/../b "]),
    WORDS,
)
KINDS = st.one_of(st.sampled_from(["gguf", "GGUF", "llama", "é", "e\u0301"]), WORDS)

VALUES = {
    "size_bytes": NUMBERS,
    "source_url": WORDS,
    "description": TEXTS,
    **{name: NUMBERS if name.endswith(("length", "count")) else KINDS for name in CLAIMABLE},
}
VALUES |= {f"claimed_{name}": VALUES[name] for name in CLAIMABLE}
OPTIONAL = {name: st.none() | values for name, values in VALUES.items()}
# A model without a time would be downloaded now, which no dictionary knows.
FIELDS = st.fixed_dictionaries({"local_path": PATHS, "downloaded_at": MOMENTS}, optional=OPTIONAL)
CHANGES = st.fixed_dictionaries(
    {}, optional={"local_path": PATHS, "downloaded_at": st.none() | MOMENTS, **OPTIONAL}
)
FILTERS = st.fixed_dictionaries(
    {},
    optional={
        "provider": st.sampled_from(["hf", "HF", "it's 100%"]),
        "reference": st.sampled_from(["m", "M", 'É\\_"\U0001f999']),
        "search": st.one_of(st.sampled_from(["", "M", "é", "%", "_", "ss", "cha"]), TEXTS),
        "tags": TAGS,
        "any_tags": TAGS,
        **dict.fromkeys(("format", "architecture", "quantization", "license"), KINDS),
        **dict.fromkeys(("min_size_bytes", "max_size_bytes", "min_context_length"), NUMBERS),
        **dict.fromkeys(("downloaded_after", "downloaded_before"), MOMENTS),
        **{name: st.booleans() for name in ("never_used", "pinned")},
    },
)
REFUSED = st.sampled_from(
    [
        {"size_bytes": -1},
        {"local_path": ""},
        {"architecture": " "},
        {"format": "a\nb"},
        {"description": "\0"},
        {"license": "\ud800"},
        {"context_length": True},
        {"downloaded_at": datetime(2026, 1, 1)},  # noqa: DTZ001 - it is refused
    ]
)


class UndoError(Exception):
    """What a user's block raises, so that nothing of it is kept."""


class Machine(RuleBasedStateMachine):
    """Every public operation, on a catalog and on a book."""

    def __init__(self, database):
        super().__init__()
        database.delete_rows()
        self.book = Book()
        self.exits = AsyncExitStack()
        self.runner = asyncio.Runner()
        self.catalog = self.do(self.exits.enter_async_context(open_catalog(database.target)))

    def teardown(self):
        self.do(self.exits.aclose())
        self.runner.close()

    def do(self, coroutine):
        return self.runner.run(coroutine)

    def shown(self, model):
        names = ("provider", "reference", "version", *WRITTEN, *COUNTED, "tags")
        return {name: getattr(model, name) for name in names}

    def done_to(self, key, coroutine):
        """What a call says of the model that is meant; None where there is none, and it said so."""
        if key is None:
            with pytest.raises(ModelNotFoundError):
                self.do(coroutine)
            return None
        return self.do(coroutine)

    def assert_shows(self, model, key):
        assert key is None or self.shown(model) == self.book.seen(key)

    @invariant()
    def everything_is_as_it_is_in_the_book(self):
        """Every row, what each version means, and what an export says beyond what models show."""
        stream = io.StringIO()

        async def look():
            async with self.catalog.transaction() as inner:
                await inner.export_catalog(stream)
                found = [await inner.find_model(*reversed(MOSTLY), v) for v in EVERY_VERSION]
                return await inner.list_models(), found

        listed, found = self.do(look())

        keys = self.book.listing({}, Sort.DOWNLOADED_AT, None)
        assert [self.shown(model) for model in listed] == [self.book.seen(key) for key in keys]
        meant = [self.book.meant(MOSTLY, version) for version in EVERY_VERSION]
        assert [model and self.shown(model) for model in found] == [
            key and self.book.seen(key) for key in meant
        ]
        exported = [json.loads(line) for line in stream.getvalue().splitlines()[1:]]
        keys = self.book.listing({}, Sort.PROVIDER, descending=False)
        assert exported == [self.book.line(key) for key in keys]

    @initialize(
        fields=st.tuples(FIELDS, FIELDS, FIELDS, FIELDS),
        aliases=st.lists(st.tuples(NAMES, ALIASES, WANTED), min_size=2, max_size=3),
        tags=st.lists(st.tuples(NAMES, WANTED, TAGS), min_size=2, max_size=3),
    )
    def begin_with_some(self, fields, aliases, tags):
        """In an empty catalog most calls have nothing to do."""
        keys = [(MOSTLY, "v1"), (MOSTLY, "stable"), (MOSTLY, ""), (("hf", "m"), "v1")]
        self.register_many([(*key, own) for key, own in zip(keys, fields, strict=True)])
        for each in aliases:
            self.set_alias(*each)
        for each in tags:
            self.tag(*each)

    @rule(models=st.lists(st.tuples(NAMES, VERSIONS, FIELDS), max_size=4), made=MADE_AS)
    def register_many(self, models, made=Model):
        """Of several with one key the fields that were set last are written, and it is one."""
        given = {}
        for name, version, fields in models:
            given[*name, version] = given.get((*name, version), {}) | fields

        count = self.do(
            self.catalog.register_models(
                made(provider=provider, reference=reference, version=version, **fields)
                for (provider, reference), version, fields in models
            )
        )

        assert count == len(given)
        ids = {
            (model.provider, model.reference, model.version): model.id
            for model in self.do(self.catalog.list_models())
        }
        for key in sorted(given, key=ids.__getitem__):
            self.book.register(key, given[key])

    @rule(name=NAMES, version=VERSIONS, fields=FIELDS)
    def register(self, name, version, fields):
        key = (*name, version)
        model = self.do(
            self.catalog.register_model(
                Model(provider=name[0], reference=name[1], version=version, **fields)
            )
        )

        self.book.register(key, fields)
        self.assert_shows(model, key)

    @rule(version=WANTED, text=TEXTS, removed=st.booleans())
    def change_what_was_found_and_register_it(self, version, text, removed):
        """What was read and not touched is not written: no claim becomes the user's word."""
        model = self.do(self.catalog.find_model(*reversed(MOSTLY), version))
        if model is None or model.downloaded_at is None:
            return
        key = self.book.meant(MOSTLY, version)
        fields = {"description": text}
        if removed:
            fields = {name: getattr(model, name) for name in WRITTEN} | fields
            for name in CLAIMABLE:
                if fields[name] == fields[f"claimed_{name}"]:
                    del fields[name]
            self.remove(MOSTLY, key[2])
        model.description = text

        model = self.do(self.catalog.register_model(model))

        self.book.register(key, fields)
        self.assert_shows(model, key)

    @rule(name=NAMES, version=VERSIONS, refused=REFUSED)
    def register_what_may_not_be(self, name, version, refused):
        fields = {"provider": name[0], "reference": name[1], "version": version, "local_path": "/"}
        good, bad = Model(**fields), Model(**fields | refused)

        with pytest.raises(InvalidModelError):
            self.do(self.catalog.register_models([good, bad]))
        with pytest.raises(InvalidModelError):
            self.do(self.catalog.update_model(name[1], name[0], version, **refused))

    @rule(name=NAMES, version=WANTED, changes=CHANGES)
    def update(self, name, version, changes):
        key = self.book.meant(name, version)

        model = self.done_to(key, self.catalog.update_model(name[1], name[0], version, **changes))

        if key is not None:
            self.book.rows[key].update(as_stored(changes))
        self.assert_shows(model, key)

    @rule(version=WANTED)
    def forget_when_it_was_downloaded(self, version):
        """What has no time is the oldest."""
        self.update(MOSTLY, version, {"downloaded_at": None})

    @rule(name=NAMES, version=WANTED)
    def remove(self, name, version):
        known = self.book.remove(name, version)

        assert self.do(self.catalog.remove_model(name[1], name[0], version)) is known

    @rule(name=NAMES, version=WANTED, tags=TAGS)
    def tag(self, name, version, tags):
        key = self.book.meant(name, version)

        model = self.done_to(key, self.catalog.tag_model(name[1], name[0], *tags, version=version))

        if key is not None:
            self.book.tag(key, tags)
        self.assert_shows(model, key)

    @rule(spellings=st.permutations(["Chat", "Chat", "CHAT"]))
    def tag_all(self, spellings):
        """A tag is listed as it is written most."""
        for key, spelling in zip(self.book.rows, itertools.cycle(spellings)):
            self.tag(key[:2], key[2], [spelling])
        self.ask({})

    @rule(name=NAMES, version=WANTED, tags=TAGS)
    def untag(self, name, version, tags):
        key = self.book.meant(name, version)

        model = self.done_to(
            key, self.catalog.untag_model(name[1], name[0], *tags, version=version)
        )

        if key is not None:
            self.book.untag(key, tags)
        self.assert_shows(model, key)

    @rule(name=NAMES, version=WANTED, reason=TEXTS)
    def pin(self, name, version, reason):
        """A reason that is given replaces the one that it had; one that is not does not."""
        for given in (None, reason, None):
            self.pin_for(name, version, given)

    def pin_for(self, name, version, reason):
        key = self.book.meant(name, version)
        before = datetime.now(UTC).replace(microsecond=0)

        model = self.done_to(key, self.catalog.pin_model(name[1], name[0], version, reason=reason))

        if key is not None:
            row = self.book.rows[key]
            if row["pinned_at"] is None:
                assert before <= model.pinned_at <= datetime.now(UTC)
                row["pinned_at"] = model.pinned_at
            row["pin_reason"] = row["pin_reason"] if reason is None else reason
        self.assert_shows(model, key)

    @rule(name=NAMES, version=WANTED)
    def unpin(self, name, version):
        key = self.book.meant(name, version)

        model = self.done_to(key, self.catalog.unpin_model(name[1], name[0], version))

        if key is not None:
            self.book.rows[key].update(pinned_at=None, pin_reason=None)
        self.assert_shows(model, key)

    @rule(uses=st.lists(st.tuples(NAMES, WANTED, st.integers(1, 3)), min_size=1, max_size=4))
    def use_at_once(self, uses):
        """Uses that are recorded together are all counted, and those of none are errors."""
        uses = [*uses, *uses[:1]]

        async def record():
            calls = [self.catalog.record_use(n[1], n[0], v, count) for n, v, count in uses]
            return await asyncio.gather(*calls, return_exceptions=True)

        before = datetime.now(UTC).replace(microsecond=0)
        results = self.do(record())

        for (name, version, count), result in zip(uses, results, strict=True):
            key = self.book.meant(name, version)
            if key is None:
                assert isinstance(result, ModelNotFoundError)
                continue
            assert result is None
            model = self.do(self.catalog.get_model(key[1], key[0], key[2]))
            assert before <= model.last_used_at <= datetime.now(UTC)
            self.book.rows[key]["last_used_at"] = model.last_used_at
            self.book.rows[key]["use_count"] += count

    @rule(name=NAMES, alias=ALIASES, version=WANTED)
    def set_alias(self, name, alias, version):
        key = self.book.meant(name, version)

        found = self.done_to(key, self.catalog.set_alias(name[1], name[0], alias, version))

        if key is not None:
            self.book.aliases[*name, alias] = key
            assert found == Alias(*name, alias, key[2])

    @rule(name=NAMES, alias=ALIASES)
    def remove_alias(self, name, alias):
        known = self.book.aliases.pop((*name, alias), None) is not None

        assert self.do(self.catalog.remove_alias(name[1], name[0], alias)) is known

    @rule(name=NAMES, version=WANTED)
    def find(self, name, version):
        key = self.book.meant(name, version)

        found = self.do(self.catalog.find_model(name[1], name[0], version))
        got = self.done_to(key, self.catalog.get_model(name[1], name[0], version))

        assert (found is None) == (key is None)
        self.assert_shows(found, key)
        self.assert_shows(got, key)

    @rule(filters=FILTERS)
    def ask(self, filters):
        passing = self.book.passing(filters)

        assert self.do(self.catalog.count_models(**filters)) == len(passing)
        total = self.do(self.catalog.get_total_size(**filters))
        assert total == self.book.tally(passing).size_bytes
        assert self.do(self.catalog.stats(**filters)) == self.book.stats(filters)
        assert self.do(self.catalog.list_tags(**filters)) == self.book.tag_counts(filters)

    @rule(
        filters=st.just({}) | FILTERS,
        sort=st.sampled_from(Sort),
        descending=st.none() | st.booleans(),
        limit=st.integers(1, 3),
    )
    def page(self, filters, sort, descending, limit):
        """The pages are the listing, and so is the iteration."""
        options = {"sort": sort, "descending": descending, **filters}

        async def iterate():
            return [self.shown(model) async for model in self.catalog.iter_models(**options)]

        pages = self.do(self.catalog.list_models(limit=limit, **options))
        while page := (
            self.do(self.catalog.list_models(limit=limit, after=pages[-1], **options))
            if pages
            else []
        ):
            pages += page
            assert len(pages) <= len(self.book.rows)

        expected = [self.book.seen(key) for key in self.book.listing(filters, sort, descending)]
        assert [self.shown(model) for model in pages] == expected
        assert self.do(iterate()) == expected

    @rule(provider=st.none() | st.just("hf"), reference=st.none() | st.just("m"))
    def list_aliases(self, provider, reference):
        aliases = [
            Alias(*alias, key[2])
            for alias, key in self.book.aliases.items()
            if provider in (None, alias[0]) and reference in (None, alias[1])
        ]
        aliases.sort(key=lambda a: (a.provider.encode(), a.reference.encode(), a.alias.encode()))

        assert self.do(self.catalog.list_aliases(reference, provider)) == aliases

    @rule(
        key=st.builds(lambda name, version: (*name, version), NAMES, VERSIONS),
        fields=FIELDS,
        tags=TAGS,
        gone=NAMES,
        kept=st.booleans(),
    )
    def transact(self, key, fields, tags, gone, kept):
        """All that is done in a transaction is kept, or none of it."""
        provider, reference, version = key
        book = copy.deepcopy(self.book)
        book.remove(gone, None)
        book.register(key, fields)
        book.tag(key, tags)
        book.aliases[provider, reference, "latest"] = key

        async def transact():
            async with self.catalog.transaction() as inner:
                await inner.remove_model(gone[1], gone[0])
                await inner.register_model(
                    Model(provider=provider, reference=reference, version=version, **fields)
                )
                await inner.tag_model(reference, provider, *tags, version=version)
                await inner.set_alias(reference, provider, "latest", version)
                model = await inner.get_model(reference, provider, version)
                assert self.shown(model) == book.seen(key)
                if not kept:
                    raise UndoError

        if kept:
            self.do(transact())
            self.book = book
        else:
            with pytest.raises(UndoError):
                self.do(transact())

    @rule()
    def import_what_was_exported(self):
        """A catalog that takes itself in is as it was, to the byte."""
        before, after = io.BytesIO(), io.BytesIO()
        count = self.do(self.catalog.export_catalog(before))
        assert count == len(self.book.rows)

        for on_conflict in ("keep", "newer", "replace"):
            before.seek(0)
            imported = self.do(self.catalog.import_catalog(before, on_conflict))
            written = count if on_conflict == "replace" else 0
            assert imported == ImportResult(written, count - written, ())

        self.do(self.catalog.export_catalog(after))
        assert after.getvalue() == before.getvalue()


COMMON = {
    # To explain what was found takes longer than to find it.
    "phases": [Phase.generate, Phase.shrink],
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def test_any_sequence_of_calls_does_what_dictionaries_do(database):
    """
    Register, change, tag, pin, name, use, remove, list and exchange models in any order: what the
    catalog says agrees with a model of it in plain dictionaries.
    """
    found = settings(max_examples=6, stateful_step_count=20, derandomize=True, **COMMON)

    run_state_machine_as_test(lambda: Machine(database), settings=found)


@pytest.mark.slow
def test_many_long_sequences_of_calls_do_what_dictionaries_do(database):
    """
    The same with more and longer sequences, which are others each time.
    """
    found = settings(max_examples=30, stateful_step_count=40, **COMMON)

    run_state_machine_as_test(lambda: Machine(database), settings=found)
