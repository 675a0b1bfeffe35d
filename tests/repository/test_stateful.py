"""Random sequences of calls have the results of a reference catalog in plain dictionaries."""

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

HEADER_FIELDS = (
    "format",
    "architecture",
    "quantization",
    "license",
    "context_length",
    "parameter_count",
)
USER_FIELDS = (
    *("local_path", "size_bytes", "downloaded_at", "source_url", "description"),
    *HEADER_FIELDS,
    *(f"claimed_{name}" for name in HEADER_FIELDS),
)
USAGE_FIELDS = ("download_count", "use_count", "last_used_at", "pinned_at", "pin_reason")
EXACT_FILTERS = ("provider", "reference", "format", "architecture", "quantization", "license")
NAME_SORTS = {"provider", "reference", "architecture", "quantization", "format"}


def fold(text):
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def as_stored(fields):
    """Return fields with times as the catalog returns them."""
    return {
        name: value.astimezone(UTC).replace(microsecond=0) if isinstance(value, datetime) else value
        for name, value in fields.items()
    }


class ReferenceCatalog:
    """The expected behaviour of a catalog, in dictionaries; a name is (provider, reference)."""

    def __init__(self):
        self.rows = {}
        self.aliases = {}
        self.recorded = 0

    def key_of(self, name, version):
        """Return the key of the model that is meant, or None."""
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
            self.rows[key] = dict.fromkeys((*USER_FIELDS, *USAGE_FIELDS)) | {
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
            gone = [key for key in gone if key == self.key_of(name, version)]
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

    def effective(self, key, field):
        """Return the user's value, or the header's if that is None."""
        row = self.rows[key]
        return (
            row[f"claimed_{field}"] if field in HEADER_FIELDS and row[field] is None else row[field]
        )

    def model_fields(self, key):
        """Return all values that a Model has to show."""
        row = self.rows[key]
        names = ("provider", "reference", "version", *USER_FIELDS, *USAGE_FIELDS)
        tags = tuple(row["tags"][folded] for folded in sorted(row["tags"], key=str.encode))
        return {name: self.effective(key, name) for name in names} | {"tags": tags}

    def export_line(self, key):
        """Return the export line of a model: user's values and header's values are separate."""
        row = self.rows[key]
        aliases = [alias for *_, alias in (a for a, meant in self.aliases.items() if meant == key)]
        line = {
            **{name: row[name] for name in ("provider", "reference", "version")},
            **{name: row[name] for name in (*USER_FIELDS, *USAGE_FIELDS)},
            "tags": list(self.model_fields(key)["tags"]),
            "aliases": sorted(aliases, key=lambda alias: (fold(alias), alias)),
            "state": "unchecked",
        }
        return {
            name: f"{value:%Y-%m-%dT%H:%M:%SZ}" if isinstance(value, datetime) else value
            for name, value in line.items()
            if value is not None and value != []
        }

    def matching(self, filters):
        """Return the keys of models that pass the filters; an unknown value passes no bound."""
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
            **{field: self._compares(field, operator.eq) for field in EXACT_FILTERS},
        }
        return [
            key
            for key in self.rows
            if all(passes[name](key, value) for name, value in filters.items())
        ]

    def _compares(self, field, compare):
        def passes(key, bound):
            found = self.effective(key, field)
            return found is not None and compare(found, bound)

        return passes

    def listing(self, filters, sort, descending):
        keys = sorted(self.matching(filters), key=lambda key: [part.encode() for part in key])
        if descending is None:
            descending = sort not in NAME_SORTS

        def value(key):
            found = self.effective(key, str(sort))
            return found.encode() if isinstance(found, str) else found

        valued = [key for key in keys if value(key) is not None]
        valued.sort(key=value, reverse=descending)
        return valued + [key for key in keys if value(key) is None]

    def tally(self, keys):
        rows = [self.rows[key] for key in keys]
        sizes = [row["size_bytes"] or 0 for row in rows]
        # No model has a list of files: each path is counted once.
        paths = sorted((str(row["local_path"]), row["size_bytes"] or 0) for row in rows)
        return ModelTotals(len(keys), sum(sizes), sum(dict(paths).values()))

    def stats(self, filters):
        passing = self.matching(filters)

        def by(field):
            kinds = {self.effective(key, field) for key in passing}
            return {
                kind: self.tally([key for key in passing if self.effective(key, field) == kind])
                for kind in kinds
            }

        kinds = ("provider", "format", "architecture", "quantization")
        return CatalogStats(self.tally(passing), *(by(kind) for kind in kinds))

    def tag_counts(self, filters):
        spellings = {}
        for key in self.matching(filters):
            for folded, tag in self.rows[key]["tags"].items():
                spellings.setdefault(folded, Counter())[tag] += 1
        return [
            TagCount(
                min(counts, key=lambda tag: (-counts[tag], tag.encode())), sum(counts.values())
            )
            for folded, counts in sorted(spellings.items(), key=lambda each: each[0].encode())
        ]


# Few names, so that calls meet; some differ in little, and one alias has the name of a version.
MAIN_NAME = ("hf", 'É\\_"\U0001f999')
NAMES = st.sampled_from([MAIN_NAME, MAIN_NAME, ("it's 100%", MAIN_NAME[1]), ("hf", "m")])
MADE_AS = st.sampled_from([Model, dict])
VERSIONS = st.sampled_from(["", "v1", "V1", "stable"])
ALL_VERSIONS = (None, "", "v1", "V1", "stable", "latest")
WANTED_VERSIONS = st.sampled_from(ALL_VERSIONS)
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
    **{name: NUMBERS if name.endswith(("length", "count")) else KINDS for name in HEADER_FIELDS},
}
VALUES |= {f"claimed_{name}": VALUES[name] for name in HEADER_FIELDS}
OPTIONAL = {name: st.none() | values for name, values in VALUES.items()}
# Without a time the catalog would set the current time, which the reference does not know.
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
    """Rolls a transaction back."""


class CatalogMachine(RuleBasedStateMachine):
    """Calls every public method of a catalog, and compares it with a ReferenceCatalog."""

    def __init__(self, database):
        super().__init__()
        database.delete_rows()
        self.reference = ReferenceCatalog()
        self.exits = AsyncExitStack()
        self.runner = asyncio.Runner()
        self.catalog = self.do(self.exits.enter_async_context(open_catalog(database.target)))

    def teardown(self):
        self.do(self.exits.aclose())
        self.runner.close()

    def do(self, coroutine):
        return self.runner.run(coroutine)

    def fields_of(self, model):
        names = ("provider", "reference", "version", *USER_FIELDS, *USAGE_FIELDS, "tags")
        return {name: getattr(model, name) for name in names}

    def result_for(self, key, coroutine):
        """Return the result of a call; without a model check that it raises, and return None."""
        if key is None:
            with pytest.raises(ModelNotFoundError):
                self.do(coroutine)
            return None
        return self.do(coroutine)

    def assert_equal(self, model, key):
        assert key is None or self.fields_of(model) == self.reference.model_fields(key)

    @invariant()
    def everything_equals_the_reference(self):
        """Compare every row, the model that each version means, and the export."""
        stream = io.StringIO()

        async def look():
            async with self.catalog.transaction() as inner:
                await inner.export_catalog(stream)
                found = [await inner.find_model(*reversed(MAIN_NAME), v) for v in ALL_VERSIONS]
                return await inner.list_models(), found

        listed, found = self.do(look())

        keys = self.reference.listing({}, Sort.DOWNLOADED_AT, None)
        assert [self.fields_of(model) for model in listed] == [
            self.reference.model_fields(key) for key in keys
        ]
        meant = [self.reference.key_of(MAIN_NAME, version) for version in ALL_VERSIONS]
        assert [model and self.fields_of(model) for model in found] == [
            key and self.reference.model_fields(key) for key in meant
        ]
        exported = [json.loads(line) for line in stream.getvalue().splitlines()[1:]]
        keys = self.reference.listing({}, Sort.PROVIDER, descending=False)
        assert exported == [self.reference.export_line(key) for key in keys]

    @initialize(
        fields=st.tuples(FIELDS, FIELDS, FIELDS, FIELDS),
        aliases=st.lists(st.tuples(NAMES, ALIASES, WANTED_VERSIONS), min_size=2, max_size=3),
        tags=st.lists(st.tuples(NAMES, WANTED_VERSIONS, TAGS), min_size=2, max_size=3),
    )
    def start_with_models(self, fields, aliases, tags):
        """Record some models: in an empty catalog most calls have nothing to do."""
        keys = [(MAIN_NAME, "v1"), (MAIN_NAME, "stable"), (MAIN_NAME, ""), (("hf", "m"), "v1")]
        self.register_many([(*key, own) for key, own in zip(keys, fields, strict=True)])
        for each in aliases:
            self.set_alias(*each)
        for each in tags:
            self.tag(*each)

    @rule(models=st.lists(st.tuples(NAMES, VERSIONS, FIELDS), max_size=4), made=MADE_AS)
    def register_many(self, models, made=Model):
        """Of models with the same key the fields that were set last are written."""
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
            self.reference.register(key, given[key])

    @rule(name=NAMES, version=VERSIONS, fields=FIELDS)
    def register(self, name, version, fields):
        key = (*name, version)
        model = self.do(
            self.catalog.register_model(
                Model(provider=name[0], reference=name[1], version=version, **fields)
            )
        )

        self.reference.register(key, fields)
        self.assert_equal(model, key)

    @rule(version=WANTED_VERSIONS, text=TEXTS, removed=st.booleans())
    def change_and_register_a_found_model(self, version, text, removed):
        """Unchanged fields of a found model are not written: no header value becomes the user's."""
        model = self.do(self.catalog.find_model(*reversed(MAIN_NAME), version))
        if model is None or model.downloaded_at is None:
            return
        key = self.reference.key_of(MAIN_NAME, version)
        fields = {"description": text}
        if removed:
            own = {name: getattr(model, f"user_{name}") for name in HEADER_FIELDS}
            fields = {name: getattr(model, name) for name in USER_FIELDS} | own | fields
            self.remove(MAIN_NAME, key[2])
        model.description = text

        model = self.do(self.catalog.register_model(model))

        self.reference.register(key, fields)
        self.assert_equal(model, key)

    @rule(name=NAMES, version=VERSIONS, refused=REFUSED)
    def register_an_invalid_model(self, name, version, refused):
        fields = {"provider": name[0], "reference": name[1], "version": version, "local_path": "/"}
        good, bad = Model(**fields), Model(**fields | refused)

        with pytest.raises(InvalidModelError):
            self.do(self.catalog.register_models([good, bad]))
        with pytest.raises(InvalidModelError):
            self.do(self.catalog.update_model(name[1], name[0], version, **refused))

    @rule(name=NAMES, version=WANTED_VERSIONS, changes=CHANGES)
    def update(self, name, version, changes):
        key = self.reference.key_of(name, version)

        model = self.result_for(
            key, self.catalog.update_model(name[1], name[0], version, **changes)
        )

        if key is not None:
            self.reference.rows[key].update(as_stored(changes))
        self.assert_equal(model, key)

    @rule(version=WANTED_VERSIONS)
    def clear_downloaded_at(self, version):
        """A model without a time is the oldest."""
        self.update(MAIN_NAME, version, {"downloaded_at": None})

    @rule(name=NAMES, version=WANTED_VERSIONS)
    def remove(self, name, version):
        known = self.reference.remove(name, version)

        assert self.do(self.catalog.remove_model(name[1], name[0], version)) is known

    @rule(name=NAMES, version=WANTED_VERSIONS, tags=TAGS)
    def tag(self, name, version, tags):
        key = self.reference.key_of(name, version)

        model = self.result_for(
            key, self.catalog.tag_model(name[1], name[0], *tags, version=version)
        )

        if key is not None:
            self.reference.tag(key, tags)
        self.assert_equal(model, key)

    @rule(spellings=st.permutations(["Chat", "Chat", "CHAT"]))
    def tag_all(self, spellings):
        """A tag is listed in its most frequent spelling."""
        for key, spelling in zip(self.reference.rows, itertools.cycle(spellings)):
            self.tag(key[:2], key[2], [spelling])
        self.ask({})

    @rule(name=NAMES, version=WANTED_VERSIONS, tags=TAGS)
    def untag(self, name, version, tags):
        key = self.reference.key_of(name, version)

        model = self.result_for(
            key, self.catalog.untag_model(name[1], name[0], *tags, version=version)
        )

        if key is not None:
            self.reference.untag(key, tags)
        self.assert_equal(model, key)

    @rule(name=NAMES, version=WANTED_VERSIONS, reason=TEXTS)
    def pin(self, name, version, reason):
        """A new reason replaces the old one; without a reason the old one stays."""
        for given in (None, reason, None):
            self.pin_for(name, version, given)

    def pin_for(self, name, version, reason):
        key = self.reference.key_of(name, version)
        before = datetime.now(UTC).replace(microsecond=0)

        model = self.result_for(
            key, self.catalog.pin_model(name[1], name[0], version, reason=reason)
        )

        if key is not None:
            row = self.reference.rows[key]
            if row["pinned_at"] is None:
                assert before <= model.pinned_at <= datetime.now(UTC)
                row["pinned_at"] = model.pinned_at
            row["pin_reason"] = row["pin_reason"] if reason is None else reason
        self.assert_equal(model, key)

    @rule(name=NAMES, version=WANTED_VERSIONS)
    def unpin(self, name, version):
        key = self.reference.key_of(name, version)

        model = self.result_for(key, self.catalog.unpin_model(name[1], name[0], version))

        if key is not None:
            self.reference.rows[key].update(pinned_at=None, pin_reason=None)
        self.assert_equal(model, key)

    @rule(
        uses=st.lists(st.tuples(NAMES, WANTED_VERSIONS, st.integers(1, 3)), min_size=1, max_size=4)
    )
    def record_uses_concurrently(self, uses):
        """Concurrent uses are all counted, and uses of unknown models raise."""
        uses = [*uses, *uses[:1]]

        async def record():
            calls = [self.catalog.record_use(n[1], n[0], v, count) for n, v, count in uses]
            return await asyncio.gather(*calls, return_exceptions=True)

        before = datetime.now(UTC).replace(microsecond=0)
        results = self.do(record())

        for (name, version, count), result in zip(uses, results, strict=True):
            key = self.reference.key_of(name, version)
            if key is None:
                assert isinstance(result, ModelNotFoundError)
                continue
            assert result is None
            model = self.do(self.catalog.get_model(key[1], key[0], key[2]))
            assert before <= model.last_used_at <= datetime.now(UTC)
            self.reference.rows[key]["last_used_at"] = model.last_used_at
            self.reference.rows[key]["use_count"] += count

    @rule(name=NAMES, alias=ALIASES, version=WANTED_VERSIONS)
    def set_alias(self, name, alias, version):
        key = self.reference.key_of(name, version)

        found = self.result_for(key, self.catalog.set_alias(name[1], name[0], alias, version))

        if key is not None:
            self.reference.aliases[*name, alias] = key
            assert found == Alias(*name, alias, key[2])

    @rule(name=NAMES, alias=ALIASES)
    def remove_alias(self, name, alias):
        known = self.reference.aliases.pop((*name, alias), None) is not None

        assert self.do(self.catalog.remove_alias(name[1], name[0], alias)) is known

    @rule(name=NAMES, version=WANTED_VERSIONS)
    def find(self, name, version):
        key = self.reference.key_of(name, version)

        found = self.do(self.catalog.find_model(name[1], name[0], version))
        got = self.result_for(key, self.catalog.get_model(name[1], name[0], version))

        assert (found is None) == (key is None)
        self.assert_equal(found, key)
        self.assert_equal(got, key)

    @rule(filters=FILTERS)
    def ask(self, filters):
        passing = self.reference.matching(filters)

        assert self.do(self.catalog.count_models(**filters)) == len(passing)
        total = self.do(self.catalog.get_total_size(**filters))
        assert total == self.reference.tally(passing).size_bytes
        assert self.do(self.catalog.stats(**filters)) == self.reference.stats(filters)
        assert self.do(self.catalog.list_tags(**filters)) == self.reference.tag_counts(filters)

    @rule(
        filters=st.just({}) | FILTERS,
        sort=st.sampled_from(Sort),
        descending=st.none() | st.booleans(),
        limit=st.integers(1, 3),
    )
    def page(self, filters, sort, descending, limit):
        """The pages make up the list, and so does the iteration."""
        options = {"sort": sort, "descending": descending, **filters}

        async def iterate():
            return [self.fields_of(model) async for model in self.catalog.iter_models(**options)]

        pages = self.do(self.catalog.list_models(limit=limit, **options))
        while page := (
            self.do(self.catalog.list_models(limit=limit, after=pages[-1], **options))
            if pages
            else []
        ):
            pages += page
            assert len(pages) <= len(self.reference.rows)

        expected = [
            self.reference.model_fields(key)
            for key in self.reference.listing(filters, sort, descending)
        ]
        assert [self.fields_of(model) for model in pages] == expected
        assert self.do(iterate()) == expected

    @rule(provider=st.none() | st.just("hf"), reference=st.none() | st.just("m"))
    def list_aliases(self, provider, reference):
        aliases = [
            Alias(*alias, key[2])
            for alias, key in self.reference.aliases.items()
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
        """All calls in a transaction are committed, or none."""
        provider, reference, version = key
        after = copy.deepcopy(self.reference)
        after.remove(gone, None)
        after.register(key, fields)
        after.tag(key, tags)
        after.aliases[provider, reference, "latest"] = key

        async def transact():
            async with self.catalog.transaction() as inner:
                await inner.remove_model(gone[1], gone[0])
                await inner.register_model(
                    Model(provider=provider, reference=reference, version=version, **fields)
                )
                await inner.tag_model(reference, provider, *tags, version=version)
                await inner.set_alias(reference, provider, "latest", version)
                model = await inner.get_model(reference, provider, version)
                assert self.fields_of(model) == after.model_fields(key)
                if not kept:
                    raise UndoError

        if kept:
            self.do(transact())
            self.reference = after
        else:
            with pytest.raises(UndoError):
                self.do(transact())

    @rule()
    def import_the_own_export(self):
        """A catalog that imports its own export is unchanged, to the byte."""
        before, after = io.BytesIO(), io.BytesIO()
        count = self.do(self.catalog.export_catalog(before))
        assert count == len(self.reference.rows)

        for on_conflict in ("keep", "newer", "replace"):
            before.seek(0)
            imported = self.do(self.catalog.import_catalog(before, on_conflict))
            written = count if on_conflict == "replace" else 0
            assert imported == ImportResult(written, count - written, ())

        self.do(self.catalog.export_catalog(after))
        assert after.getvalue() == before.getvalue()


COMMON = {
    # Explaining a failure takes longer than finding it.
    "phases": [Phase.generate, Phase.shrink],
    "deadline": None,
    "database": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


@pytest.mark.slow
@pytest.mark.slow_with("asyncpg")
def test_any_sequence_of_calls_equals_the_reference_catalog(database):
    """
    Register, update, tag, pin, alias, use, remove, list, export and import models in any order:
    the catalog agrees with a reference in plain dictionaries.
    """
    found = settings(max_examples=6, stateful_step_count=20, derandomize=True, **COMMON)

    run_state_machine_as_test(lambda: CatalogMachine(database), settings=found)


@pytest.mark.slow
def test_many_long_sequences_of_calls_equal_the_reference_catalog(database):
    """
    More and longer sequences, which are different in each run.
    """
    # PostgreSQL has two drivers, so it gets half of the sequences with each.
    examples = 10 if database.path is not None else 5
    found = settings(max_examples=examples, stateful_step_count=40, **COMMON)

    run_state_machine_as_test(lambda: CatalogMachine(database), settings=found)
