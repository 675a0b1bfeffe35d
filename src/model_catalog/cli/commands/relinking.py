"""Commands for models that were moved: `relink` and `relocate`."""

from __future__ import annotations

from argparse import Namespace

from model_catalog.cli.catalog_access import (
    model_name,
    short_ref,
    use_existing_catalog,
    use_existing_model,
)
from model_catalog.cli.exit_codes import DONE, FAILED, MISUSED
from model_catalog.cli.output import (
    pluralize,
    print_error,
    print_line,
    print_notice,
)
from model_catalog.cli.output.named_commands import completed_command
from model_catalog.cli.output.progress import ProgressBar
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.upkeep import find_moved, relink_model


async def relink(options: Namespace) -> int:
    """Record the new path of one model, or search for all missing models."""
    if options.search:
        if options.ref is not None:
            print_error("error: give either a REF and a PATH, or --search with folders")
            return MISUSED
        return await _search(options)
    if options.ref is None or options.path is None:
        print_error("error: give a REF and its new PATH, or --search with folders")
        return MISUSED

    async def run(catalog: ModelCatalog, ref: ModelRef) -> Model:
        model = await catalog.get_model(ref)
        return await _relink(catalog, model, options.path)

    model = await use_existing_model(options, run)
    print_notice(f"{model_name(model, exact=False)} is at {model.local_path}")
    return DONE


async def _relink(catalog: ModelCatalog, model: Model, path: str) -> Model:
    with ProgressBar() as bar:
        relinked = await relink_model(
            catalog,
            model,
            path=path,
            on_progress=bar.show,
        )
    return relinked.model


async def _search(options: Namespace) -> int:
    async def run(catalog: ModelCatalog) -> int:
        missing_count = await catalog.count_models(state=FileState.MISSING)
        with ProgressBar() as bar:
            moved = await find_moved(catalog, options.search, on_progress=bar.show)
        for each in moved:
            print_line(f"{model_name(each.model, exact=False)}: {each.path}")
            if not options.dry_run:
                await _relink(catalog, each.model, each.path)
        outcome = "would be relinked" if options.dry_run else "relinked"
        print_notice(f"{len(moved):,} of {pluralize(missing_count, 'missing model')} {outcome}")
        return DONE if len(moved) == missing_count else FAILED

    return await use_existing_catalog(options, run, DONE)


async def relocate(options: Namespace) -> int:
    """Record the new path of a folder of models."""

    async def run(catalog: ModelCatalog) -> int:
        moved = await catalog.relocate(options.old, options.new, dry_run=options.dry_run)
        for each in moved:
            print_line(f"{short_ref(each.ref)}: {each.new_path}")
        outcome = "would be recorded" if options.dry_run else "recorded"
        print_notice(f"{pluralize(len(moved), 'model')} {outcome} below {options.new}")
        if moved and not options.dry_run:
            command = completed_command(["check"], options)
            print_notice(f"run {command} to see which of them exist")
        return DONE if moved else FAILED

    return await use_existing_catalog(options, run, FAILED)
