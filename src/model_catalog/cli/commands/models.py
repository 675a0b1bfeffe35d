"""What each command does: fetch from the catalog, print, return an exit code."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from model_catalog.cli.catalog_access import DONE, FAILED, existing_catalog, model_name
from model_catalog.cli.commands import database, demo, labels, stores, upkeep
from model_catalog.cli.filter_expressions import parse_filters, parse_sort
from model_catalog.cli.output import (
    ProgressBar,
    human_size,
    human_time,
    pluralize,
    print_error,
    print_json,
    print_line,
    print_notice,
    print_table,
    print_tsv,
    text_bar,
)
from model_catalog.domain.fields import SHOWN_FIELDS
from model_catalog.domain.model_ref import ModelRef
from model_catalog.domain.ndjson import iso_time
from model_catalog.errors import ModelNotFoundError
from model_catalog.files.safe_open import non_regular_kind
from model_catalog.mapping.tables import Model
from model_catalog.opening import open_catalog
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.repository.operations.statistics import CatalogStats, ModelTotals
from model_catalog.upkeep import register_path

_FIRST_FIELDS: Final = (
    "provider",
    "reference",
    "version",
    "size_bytes",
    "downloaded_at",
    "local_path",
    "format",
    "architecture",
    "quantization",
    "context_length",
    "parameter_count",
    "license",
    "download_count",
    "last_used_at",
    "use_count",
    "pinned_at",
    "pin_reason",
    "tags",
    "description",
    "source_url",
    "state",
    "state_detail",
    "checked_at",
    "missing_since",
    "incomplete_reason",
)
# The other fields follow in the order of the field table, so that a new field is shown last.
_FIELDS: Final = (*_FIRST_FIELDS, *(name for name in SHOWN_FIELDS if name not in _FIRST_FIELDS))


_NAMES_WIDTH: Final = 17
_NOTHING: Final = CatalogStats(ModelTotals(0, 0), {}, {}, {}, {})


async def run(options: Namespace) -> int:
    """Run the command that was typed."""
    return await _COMMANDS[options.command](options)


async def add(options: Namespace) -> int:
    path = Path(options.path)
    try:
        # Before a catalog is made for it.
        if (found := non_regular_kind(path.stat())) not in (None, "a directory"):
            print_error(f"error: {os.fspath(path)!r} is {found} and neither a file nor a folder")
            return FAILED
        async with open_catalog(options.db) as catalog:
            with ProgressBar() as progress:
                recorded = await register_path(
                    catalog,
                    path,
                    provider=options.provider,
                    reference=options.reference,
                    version=options.version,
                    digest=options.digest,
                    on_progress=lambda seen: progress.show(
                        seen.done_bytes, seen.total_bytes, seen.path
                    ),
                )
    except OSError as error:
        print_error(f"error: {os.fspath(path.absolute())!r} cannot be read: {error.strerror}")
        return FAILED
    model = recorded.model
    for reason in recorded.reasons:
        print_error(f"warning: it is not whole: {reason}")
    if model.unsafe:
        print_error("warning: its weights are pickled: loading them runs whatever code is in them")
    known = (model.format, model.architecture, model.quantization, human_size(model.size_bytes))
    about = ", ".join(each for each in known if each)
    print_notice(f"recorded {model_name(model, exact=False)}, {about}, at {model.local_path}")
    return DONE


async def ls(options: Namespace) -> int:
    only = [] if options.provider is None else [f"provider={options.provider}"]
    filters = parse_filters([*only, *options.filter], datetime.now(UTC))
    sort, descending = parse_sort(options.sort)

    async def read(catalog: ModelCatalog) -> tuple[list[Model], set[tuple[str, str]]]:
        models = await catalog.list_models(
            sort=sort, descending=descending, limit=options.limit, **filters
        )
        # Which of the listed have a sibling that is perhaps not listed: a quiet name has to be
        # exact, for it may be handed to `rm`.
        versions: Counter[tuple[str, str]] = Counter()
        if options.format == "quiet":
            async for model in catalog.iter_models():
                versions[model.provider, model.reference] += 1
        return models, {name for name, count in versions.items() if count > 1}

    nothing: tuple[list[Model], set[tuple[str, str]]] = ([], set())
    models, ambiguous = await existing_catalog(options, read, nothing)
    if options.format == "json":
        print_json([_facts(model) for model in models])
    elif options.format == "tsv":
        print_tsv(_FIELDS, (_cells(model) for model in models))
    elif options.format == "quiet":
        for model in models:
            print_line(model_name(model, exact=(model.provider, model.reference) in ambiguous))
    else:
        if models:
            _print_models(models, paths=options.paths)
        known = sum(model.size_bytes or 0 for model in models)
        print_notice(f"{pluralize(len(models), 'model')}, {human_size(known)}")
    return DONE


def _print_models(models: Sequence[Model], *, paths: bool) -> None:
    columns: dict[str, Callable[[Model], str]] = {
        "PROVIDER": lambda model: model.provider,
        "REFERENCE": lambda model: model.reference,
        "VERSION": lambda model: model.version,
        "ARCH": lambda model: model.architecture or "",
        "QUANT": lambda model: model.quantization or "",
        "SIZE": lambda model: human_size(model.size_bytes),
        "DOWNLOADED": lambda model: human_time(model.downloaded_at),
        "STATE": _state_of,
        "STORE": lambda model: model.store or "",
        "PATH": lambda model: model.local_path,
    }
    for optional in ("VERSION", "ARCH", "QUANT", "STATE", "STORE"):
        if not any(map(columns[optional], models)):
            del columns[optional]
    if not paths:
        del columns["PATH"]
    print_table(
        list(columns),
        [[column(model) for column in columns.values()] for model in models],
        right=["SIZE"],
        cut=["VERSION", "REFERENCE", "QUANT", "ARCH", "PROVIDER"],
    )


def _state_of(model: Model) -> str:
    """What is not as recorded of a model, in a word; nothing where all is well."""
    if model.found_digest is not None:
        return "damaged"
    if not model.state.is_as_recorded:
        return str(model.state)
    return "incomplete" if model.incomplete_reason is not None else ""


async def show(options: Namespace) -> int:
    ref = ModelRef.parse(options.ref)

    async def read(catalog: ModelCatalog) -> Model | None:
        return await catalog.find_model(ref.reference, ref.provider, ref.version)

    model = await existing_catalog(options, read, None)
    if model is None:
        raise ModelNotFoundError(ref.reference, ref.provider, ref.version)
    facts = _facts(model)
    if options.format == "json":
        print_json(facts)
    elif options.format == "tsv":
        print_tsv(_FIELDS, [_cells(model)])
    elif options.format == "quiet":
        print_line(model_name(model, exact=True))
    else:
        if model.size_bytes is not None:
            facts["size_bytes"] = f"{model.size_bytes} ({human_size(model.size_bytes)})"
        facts["tags"] = ", ".join(model.tags)
        # What nobody has said or claimed is not worth a line, but for the size and the date.
        told = {
            field: value
            for field, value in facts.items()
            if value not in (None, "") or field in ("size_bytes", "downloaded_at")
        }
        width = max(_NAMES_WIDTH, *(len(field) + 2 for field in told))
        for field, value in told.items():
            print_line(f"{field + ':':<{width}}{'?' if value is None else value}")
    return DONE


async def rm(options: Namespace) -> int:
    refs = list(dict.fromkeys(map(ModelRef.parse, options.refs)))

    async def read(catalog: ModelCatalog) -> int | None:
        known: list[ModelRef] = []
        meant: list[tuple[str, str, str | None]] = []
        for ref in refs:
            found = await catalog.list_models(provider=ref.provider, reference=ref.reference)
            if ref.version is not None:
                # It may be an alias.
                one = await catalog.find_model(ref.reference, ref.provider, ref.version)
                found = [one] if one else []
            if not found:
                print_error(
                    f"error: {ModelNotFoundError(ref.reference, ref.provider, ref.version)}"
                )
                continue
            known.append(ref)
            # By its version, and not by its alias, which may point elsewhere before the answer.
            version = None if ref.version is None else found[0].version
            meant.append((ref.reference, ref.provider, version))
            for model in found:
                name = model_name(model, exact=ref.version is not None or bool(found[1:]))
                print_notice(f"{name}, {human_size(model.size_bytes)}, at {model.local_path}")
        if not known:
            return FAILED
        if not options.yes and not _agreed("Forget them? The files stay. [y/N] "):
            print_notice("nothing was forgotten")
            return FAILED
        for key in meant:
            await catalog.remove_model(*key)
        print_notice("forgotten; the files stay")
        return DONE if known == refs else FAILED

    code = await existing_catalog(options, read, None)
    if code is None:
        raise ModelNotFoundError(refs[0].reference, refs[0].provider, refs[0].version)
    return code


async def du(options: Namespace) -> int:
    found = await existing_catalog(options, lambda catalog: catalog.stats(), _NOTHING)
    rows = [
        (provider, tally.model_count, tally.size_bytes)
        for provider, tally in found.by_provider.items()
    ]
    fields = ("provider", "models", "size_bytes")
    if options.format == "json":
        providers = [dict(zip(fields, row, strict=True)) for row in rows]
        total = {"models": found.total.model_count, "size_bytes": found.total.size_bytes}
        print_json({**total, "providers": providers})
    elif options.format == "tsv":
        print_tsv(fields, rows)
    elif options.format == "quiet":
        print(found.total.size_bytes)
    else:
        most = max((size for _, _, size in rows), default=0)
        bars = [text_bar(size / most) if most else "" for _, _, size in rows]
        rows.append(("total", found.total.model_count, found.total.size_bytes))
        cells = [[provider, f"{models:,}", human_size(size)] for provider, models, size in rows]
        names = ["PROVIDER", "MODELS", "SIZE"]
        if sys.stdout.isatty():
            names.append("")
            cells = [[*row, drawn] for row, drawn in zip(cells, [*bars, ""], strict=True)]
        print_table(names, cells, right=["MODELS", "SIZE"])
    return DONE


async def stats(options: Namespace) -> int:
    found = await existing_catalog(options, lambda catalog: catalog.stats(), _NOTHING)
    kinds: dict[str, Mapping[Any, ModelTotals]] = {
        "provider": found.by_provider,
        "format": found.by_format,
        "architecture": found.by_architecture,
        "quantization": found.by_quantization,
    }
    rows = [
        (kind, name, tally.model_count, tally.size_bytes)
        for kind, tallies in kinds.items()
        for name, tally in tallies.items()
    ]
    fields = ("kind", "name", "models", "size_bytes")
    if options.format == "json":
        print_json([dict(zip(fields, row, strict=True)) for row in rows])
    elif options.format == "tsv":
        print_tsv(fields, rows)
    elif options.format == "quiet":
        print(found.total.model_count)
    else:
        print_table(
            ["KIND", "NAME", "MODELS", "SIZE"],
            [
                [kind, name or "?", f"{models:,}", human_size(size)]
                for kind, name, models, size in rows
            ],
            right=["MODELS", "SIZE"],
            cut=["NAME"],
        )
        print_notice(
            f"{pluralize(found.total.model_count, 'model')}, {human_size(found.total.size_bytes)}"
        )
    return DONE


async def show_demo(_options: Namespace) -> int:
    await demo.run_demo()
    return DONE


def _facts(model: Model) -> dict[str, Any]:
    facts = {field: getattr(model, field) for field in _FIELDS}
    for field, value in facts.items():
        if isinstance(value, datetime):
            facts[field] = iso_time(value)
    return facts


def _cells(model: Model) -> list[object]:
    return list({**_facts(model), "tags": ",".join(model.tags)}.values())


def _agreed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline() if sys.stdin is not None else ""
    if not answer:
        print_notice("")
    return answer.strip().lower() in ("y", "yes")


_COMMANDS: Final[dict[str, Callable[[Namespace], Awaitable[int]]]] = {
    "accept": upkeep.accept,
    "add": add,
    "alias": labels.alias,
    "check": upkeep.check,
    "db backup": database.db_backup,
    "db check": database.db_check,
    "db current": database.db_current,
    "db repair": database.db_repair,
    "db restore": database.db_restore,
    "db upgrade": database.db_upgrade,
    "demo": show_demo,
    "du": du,
    "dupes": stores.dupes,
    "export": database.export,
    "import": database.import_,
    "ls": ls,
    "note": labels.note,
    "pin": labels.pin,
    "relink": upkeep.relink,
    "relocate": upkeep.relocate,
    "rm": rm,
    "scan": stores.scan,
    "show": show,
    "sign-verify": upkeep.sign_verify,
    "stats": stats,
    "tag": labels.tag,
    "unpin": labels.unpin,
    "untag": labels.untag,
    "verify": upkeep.verify,
}
