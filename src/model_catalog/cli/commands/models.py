"""Commands for models: `add`, `ls`, `show`, `rename` and `rm`."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from model_catalog.cli.catalog_access import (
    model_name,
    open_named,
    use_existing_catalog,
    use_existing_model,
)
from model_catalog.cli.exit_codes import DONE, FAILED, MISUSED
from model_catalog.cli.filter_expressions import parse_filters, parse_sort
from model_catalog.cli.output import (
    human_disk_usage,
    human_size,
    human_time,
    is_confirmed,
    pluralize,
    print_error,
    print_json,
    print_line,
    print_notice,
    print_table,
    print_tsv,
)
from model_catalog.cli.output.named_commands import complete_commands, completed_command
from model_catalog.cli.output.progress import ProgressBar
from model_catalog.domain.json_fields import JSON_FIELDS
from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import ModelNotFoundError
from model_catalog.files.safe_open import non_regular_kind
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog, executor_of
from model_catalog.repository.operations.lookup import find_several_versions

_MIN_NAME_WIDTH: Final = 17


async def add(options: Namespace) -> int:
    """Register the model at a path."""
    # The readers of files take 50 ms to import, and the other commands of this module need none.
    from model_catalog.upkeep import register_path  # noqa: PLC0415

    path = Path(options.path)
    try:
        # Checked before a new catalog is created.
        if (file_kind := non_regular_kind(path.stat())) not in (None, "a directory"):
            print_error(f"error: {os.fspath(path)!r} is {file_kind}: give a file or a folder")
            return FAILED
        async with open_named(options) as catalog:
            with ProgressBar() as bar:
                recorded = await register_path(
                    catalog,
                    path,
                    provider=options.provider,
                    reference=options.reference,
                    version=options.version,
                    digest=options.digest,
                    on_progress=bar.show,
                )
    except OSError as error:
        print_error(f"error: {os.fspath(path.absolute())!r} cannot be read: {error.strerror}")
        return FAILED
    print_recorded(recorded.model, recorded.reasons)
    return DONE


def print_recorded(model: Model, reasons: Sequence[str]) -> None:
    """Print a recorded model in one line, and warnings about its files."""
    for reason in reasons:
        print_error(f"warning: the model is incomplete: {reason}")
    if model.unsafe:
        print_error("warning: the weights are pickled: loading them can run arbitrary code")
    kind = None if model.kind == "model" else model.kind
    facts = (
        kind,
        model.format,
        model.architecture,
        model.quantization,
        human_size(model.size_bytes),
    )
    summary = ", ".join(fact for fact in facts if fact)
    print_notice(f"recorded {model_name(model, exact=False)}, {summary}, at {model.local_path}")


async def ls(options: Namespace) -> int:
    """List models."""
    if options.fleet:
        from model_catalog.cli.commands.fleet.models import ls_fleet  # noqa: PLC0415

        return await ls_fleet(options)
    provider = [] if options.provider is None else [f"provider={options.provider}"]
    filters = parse_filters([*provider, *options.filter], datetime.now(UTC))
    sort, descending = parse_sort(options.sort)

    async def read(catalog: ModelCatalog) -> tuple[list[Model], set[tuple[str, str]], int]:
        models = await catalog.list_models(
            sort=sort, descending=descending, limit=options.limit, **filters
        )
        ambiguous: set[tuple[str, str]] = set()
        disk_bytes = 0
        if options.format == "quiet":
            # A quiet name may be passed to `rm`, which removes every version of a ref without a
            # version. So the names of such references must contain the version.
            names = {(model.provider, model.reference) for model in models}
            ambiguous = await executor_of(catalog).run(find_several_versions(names))
        elif options.format == "human":
            disk_bytes = await catalog.get_disk_usage(ids=[model.id for model in models])
        return models, ambiguous, disk_bytes

    found = await use_existing_catalog(options, read, None)
    models, ambiguous, disk_bytes = found or ([], set(), 0)
    if options.format == "json":
        print_json([model.to_dict() for model in models])
    elif options.format == "tsv":
        print_tsv(JSON_FIELDS, (_tsv_fields(model) for model in models))
    elif options.format == "quiet":
        for model in models:
            print_line(model_name(model, exact=(model.provider, model.reference) in ambiguous))
    else:
        _print_models(models, disk_bytes, paths=options.paths)
    if found is None and options.format == "human":
        scan = completed_command(["scan"], options)
        print_notice(f"there is no catalog: run {scan} to record the models of this machine")
    return DONE


def _print_models(models: Sequence[Model], disk_bytes: int, *, paths: bool) -> None:
    if models:
        _print_table_of_models(models, paths=paths)
    sizes = human_disk_usage(disk_bytes, sum(model.size_bytes or 0 for model in models))
    print_notice(f"{pluralize(len(models), 'model')}, {sizes}")


def _print_table_of_models(models: Sequence[Model], *, paths: bool) -> None:
    columns: dict[str, Callable[[Model], str]] = {
        "PROVIDER": lambda model: model.provider,
        "REFERENCE": lambda model: model.reference,
        "VERSION": lambda model: model.version,
        "KIND": lambda model: model.kind or "",
        "ARCH": lambda model: model.architecture or "",
        "QUANT": lambda model: model.quantization or "",
        "SIZE": lambda model: human_size(model.size_bytes),
        "DOWNLOADED": lambda model: human_time(model.downloaded_at),
        "STATE": _state_label,
        "STORE": lambda model: model.store or "",
        "PATH": lambda model: model.local_path,
    }
    for optional in ("VERSION", "ARCH", "QUANT", "STATE", "STORE"):
        if not any(map(columns[optional], models)):
            del columns[optional]
    if all(model.kind in {None, "model"} for model in models):
        del columns["KIND"]
    if not paths:
        del columns["PATH"]
    print_table(
        list(columns),
        [[column(model) for column in columns.values()] for model in models],
        right=["SIZE"],
        cut=["VERSION", "REFERENCE", "QUANT", "ARCH", "KIND", "PROVIDER", "STORE"],
    )


def _state_label(model: Model) -> str:
    """Return one word for a problem of a model; an empty text if there is none."""
    if model.found_digest is not None:
        return "damaged"
    if not model.state.is_as_recorded:
        return str(model.state)
    return "incomplete" if model.incomplete_reason is not None else ""


async def show(options: Namespace) -> int:
    """Print all fields of one model."""
    ref = ModelRef.parse(options.ref)

    async def read(catalog: ModelCatalog) -> Model | None:
        return await catalog.find_model(ref)

    model = await use_existing_catalog(options, read, None)
    if model is None:
        raise ModelNotFoundError(ref.reference, ref.provider, ref.version)
    if options.format == "json":
        print_json(model.to_dict())
    elif options.format == "tsv":
        print_tsv(JSON_FIELDS, [_tsv_fields(model)])
    elif options.format == "quiet":
        print_line(model_name(model, exact=True))
    else:
        _print_fields(model)
    return DONE


def _print_fields(model: Model) -> None:
    fields = model.to_dict()
    if model.size_bytes is not None:
        fields["size_bytes"] = f"{model.size_bytes} ({human_size(model.size_bytes)})"
    fields["tags"] = ", ".join(model.tags)
    # Empty fields are left out, except the size and the download time.
    shown = {
        name: value
        for name, value in fields.items()
        if value not in (None, "") or name in ("size_bytes", "downloaded_at")
    }
    width = max(_MIN_NAME_WIDTH, *(len(name) + 2 for name in shown))
    for name, value in shown.items():
        print_line(f"{name + ':':<{width}}{'?' if value is None else value}")


async def rename(options: Namespace) -> int:
    """Change the reference or the version of a model."""
    if options.reference is None and options.version is None:
        print_error("error: give --reference, --version or both")
        return MISUSED
    model = await use_existing_model(
        options,
        lambda catalog, ref: catalog.rename_model(
            ref, new_reference=options.reference, new_version=options.version
        ),
    )
    print_notice(f"{options.ref} is {model_name(model, exact=False)} now")
    return DONE


async def rm(options: Namespace) -> int:
    """Remove models from the catalog, after asking for confirmation."""
    if options.delete_files:
        # Not at the top: this import takes longer than the rest of the command.
        from model_catalog.cli.commands.downloads.eviction import remove_with_files  # noqa: PLC0415

        return await remove_with_files(options)
    refs = list(dict.fromkeys(map(ModelRef.parse, options.refs)))

    async def remove(catalog: ModelCatalog) -> int:
        removals = [found for ref in refs if (found := await _find_removal(catalog, ref, options))]
        if not removals:
            return FAILED
        if not options.yes and not is_confirmed(
            "Remove them from the catalog? The files stay. [y/N] "
        ):
            print_notice("nothing was removed")
            return FAILED
        for removal in removals:
            await catalog.remove_model(removal.reference, removal.provider, removal.version)
        print_notice("removed from the catalog; the files stay")
        return DONE if len(removals) == len(refs) else FAILED

    code = await use_existing_catalog(options, remove, None)
    if code is None:
        raise ModelNotFoundError(refs[0].reference, refs[0].provider, refs[0].version)
    return code


@dataclass(frozen=True, slots=True)
class _Removal:
    """The arguments of `remove_model`; `version` is None for all versions."""

    reference: str
    provider: str
    version: str | None


async def _find_removal(
    catalog: ModelCatalog, ref: ModelRef, options: Namespace
) -> _Removal | None:
    """Print the models that a ref names, and return what to remove; None if there are none."""
    models = await catalog.list_models(provider=ref.provider, reference=ref.reference)
    if ref.version is not None:
        # find_model, because the version may be an alias.
        model = await catalog.find_model(ref)
        models = [model] if model else []
    if not models:
        error = ModelNotFoundError(ref.reference, ref.provider, ref.version)
        print_error(complete_commands(f"error: {error}", options))
        return None
    for model in models:
        name = model_name(model, exact=ref.version is not None or bool(models[1:]))
        print_notice(f"{name}, {human_size(model.size_bytes)}, at {model.local_path}")
    # The version itself, not its alias: the alias may move before the user confirms.
    version = None if ref.version is None else models[0].version
    return _Removal(ref.reference, ref.provider, version)


def _tsv_fields(model: Model) -> list[object]:
    return list({**model.to_dict(), "tags": ",".join(model.tags)}.values())
