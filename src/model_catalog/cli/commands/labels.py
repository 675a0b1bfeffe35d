"""Commands that label models: tags, descriptions, pins and aliases."""

from __future__ import annotations

import sys
from argparse import Namespace

from model_catalog.cli.catalog_access import model_name, use_existing_catalog, use_existing_model
from model_catalog.cli.exit_codes import DONE, FAILED
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
    """Add tags to a model."""
    model = await use_existing_model(
        options,
        lambda catalog, ref: catalog.tag_model(ref, *options.tags),
    )
    print_notice(f"{model_name(model, exact=False)} has the tags {', '.join(model.tags)}")
    return DONE


async def untag(options: Namespace) -> int:
    """Remove tags from a model."""
    model = await use_existing_model(
        options,
        lambda catalog, ref: catalog.untag_model(ref, *options.tags),
    )
    remaining = f"the tags {', '.join(model.tags)}" if model.tags else "no tags"
    print_notice(f"{model_name(model, exact=False)} has {remaining}")
    return DONE


async def note(options: Namespace) -> int:
    """Set or remove the description of a model."""
    text = sys.stdin.read() if options.text == "-" else options.text
    model = await use_existing_model(
        options,
        lambda catalog, ref: catalog.update_model(ref, description=text or None),
    )
    outcome = "has a new description" if text else "has no description now"
    print_notice(f"{model_name(model, exact=False)} {outcome}")
    return DONE


async def pin(options: Namespace) -> int:
    """Pin a model."""
    model = await use_existing_model(
        options,
        lambda catalog, ref: catalog.pin_model(ref, reason=options.reason),
    )
    reason = f": {model.pin_reason}" if model.pin_reason else ""
    print_notice(f"{model_name(model, exact=False)} is pinned{reason}")
    return DONE


async def unpin(options: Namespace) -> int:
    """Remove the pin of a model."""
    model = await use_existing_model(
        options,
        lambda catalog, ref: catalog.unpin_model(ref),
    )
    print_notice(f"{model_name(model, exact=False)} is not pinned")
    return DONE


async def alias(options: Namespace) -> int:
    """Set, delete or list aliases."""
    if options.ref is None:
        return await _list_aliases(options)
    if options.name is None:
        raise InvalidModelError("NAME", None, "is missing: write alias REF NAME")
    if options.delete:
        return await _delete_alias(options)
    new_alias = await use_existing_model(
        options,
        lambda catalog, ref: catalog.set_alias(ref, options.name),
    )
    version = new_alias.version or "the model without a version"
    print_notice(f"{_alias_ref(new_alias)} is {version}")
    return DONE


async def _delete_alias(options: Namespace) -> int:
    ref = ModelRef.parse(options.ref)
    was_deleted = await use_existing_catalog(
        options,
        lambda catalog: catalog.remove_alias(ref, options.name),
        default=False,
    )
    if not was_deleted:
        print_error(f"error: {ref.provider}:{ref.reference} has no alias {options.name!r}")
        return FAILED
    print_notice(f"the alias {options.name} of {ref.provider}:{ref.reference} was deleted")
    return DONE


async def _list_aliases(options: Namespace) -> int:
    aliases = await use_existing_catalog(
        options, lambda catalog: catalog.list_aliases(), list[Alias]()
    )
    fields = ("provider", "reference", "alias", "version")
    rows = [[getattr(each, field) for field in fields] for each in aliases]
    if options.format == "json":
        print_json([dict(zip(fields, row, strict=True)) for row in rows])
    elif options.format == "tsv":
        print_tsv(fields, rows)
    elif options.format == "quiet":
        for each in aliases:
            print_line(_alias_ref(each))
    else:
        if rows:
            print_table([field.upper() for field in fields], rows, cut=["VERSION", "REFERENCE"])
        print_notice(pluralize(len(rows), "alias", "aliases"))
    return DONE


def _alias_ref(alias_: Alias) -> str:
    return str(ModelRef(alias_.provider, alias_.reference, alias_.alias))
