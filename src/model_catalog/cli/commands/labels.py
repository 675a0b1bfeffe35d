"""The commands that attach something to a model: tags, a description, a pin, an alias."""

from __future__ import annotations

import sys
from argparse import Namespace

from model_catalog.cli.catalog_access import (
    DONE,
    FAILED,
    existing_catalog,
    existing_model,
    model_name,
)
from model_catalog.cli.output import (
    pluralize,
    print_error,
    print_json,
    print_line,
    print_notice,
    print_table,
    print_tsv,
)
from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import InvalidModelError
from model_catalog.repository.operations.labels import Alias


async def tag(options: Namespace) -> int:
    model = await existing_model(
        options,
        lambda catalog, ref: catalog.tag_model(
            ref.reference, ref.provider, *options.tags, version=ref.version
        ),
    )
    print_notice(f"{model_name(model, exact=False)} has the tags {', '.join(model.tags)}")
    return DONE


async def untag(options: Namespace) -> int:
    model = await existing_model(
        options,
        lambda catalog, ref: catalog.untag_model(
            ref.reference, ref.provider, *options.tags, version=ref.version
        ),
    )
    left = f"the tags {', '.join(model.tags)}" if model.tags else "no tags"
    print_notice(f"{model_name(model, exact=False)} has {left}")
    return DONE


async def note(options: Namespace) -> int:
    text = sys.stdin.read() if options.text == "-" else options.text
    model = await existing_model(
        options,
        lambda catalog, ref: catalog.update_model(
            ref.reference, ref.provider, ref.version, description=text or None
        ),
    )
    print_notice(
        f"{model_name(model, exact=False)} is {'described' if text else 'no longer described'}"
    )
    return DONE


async def pin(options: Namespace) -> int:
    model = await existing_model(
        options,
        lambda catalog, ref: catalog.pin_model(
            ref.reference, ref.provider, ref.version, reason=options.reason
        ),
    )
    why = f": {model.pin_reason}" if model.pin_reason else ""
    print_notice(f"{model_name(model, exact=False)} is pinned{why}")
    return DONE


async def unpin(options: Namespace) -> int:
    model = await existing_model(
        options,
        lambda catalog, ref: catalog.unpin_model(ref.reference, ref.provider, ref.version),
    )
    print_notice(f"{model_name(model, exact=False)} is not pinned")
    return DONE


async def alias(options: Namespace) -> int:
    if options.ref is None:
        return await _list_aliases(options)
    if options.name is None:
        raise InvalidModelError("NAME", None, "is missing: write alias REF NAME")
    ref = ModelRef.parse(options.ref)
    if options.delete:
        known = await existing_catalog(
            options,
            lambda catalog: catalog.remove_alias(ref.reference, ref.provider, options.name),
            nothing=False,
        )
        if not known:
            print_error(f"error: {ref.provider}:{ref.reference} has no alias {options.name!r}")
            return FAILED
        print_notice(f"{ref.provider}:{ref.reference} has no alias {options.name} any more")
        return DONE
    made = await existing_model(
        options,
        lambda catalog, ref: catalog.set_alias(
            ref.reference, ref.provider, options.name, ref.version
        ),
    )
    print_notice(f"{_aliased(made)} is {made.version or 'the one without a version'}")
    return DONE


async def _list_aliases(options: Namespace) -> int:
    aliases = await existing_catalog(options, lambda catalog: catalog.list_aliases(), list[Alias]())
    fields = ("provider", "reference", "alias", "version")
    rows = [[getattr(each, field) for field in fields] for each in aliases]
    if options.format == "json":
        print_json([dict(zip(fields, row, strict=True)) for row in rows])
    elif options.format == "tsv":
        print_tsv(fields, rows)
    elif options.format == "quiet":
        for each in aliases:
            print_line(_aliased(each))
    else:
        if rows:
            print_table([field.upper() for field in fields], rows, cut=["VERSION", "REFERENCE"])
        print_notice(pluralize(len(rows), "alias", "aliases"))
    return DONE


def _aliased(made: Alias) -> str:
    return str(ModelRef(made.provider, made.reference, made.alias))
