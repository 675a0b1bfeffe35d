"""Commands that delete model files: `prune`, and `rm --delete-files`."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from model_catalog.cli.catalog_access import short_ref, use_existing_catalog
from model_catalog.cli.exit_codes import DONE, FAILED, MISUSED
from model_catalog.cli.filter_expressions import parse_age, parse_size
from model_catalog.cli.output import (
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
from model_catalog.cli.output.progress import ProgressBar
from model_catalog.domain.model_ref import ModelRef
from model_catalog.downloads import (
    EvictedModel,
    EvictionPlan,
    EvictionResult,
    KeptModel,
    plan_deletion,
    plan_eviction,
)
from model_catalog.errors import ModelNotFoundError
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog

_FIELDS: Final = ("action", "model", "last_used_at", "freed_bytes", "reason", "detail")
_SECONDS_PER_DAY: Final = 86_400


async def prune(options: Namespace) -> int:
    """Delete downloaded models to free disk space."""
    if options.free is None and options.older_than is None and options.max_total is None:
        print_error("error: give --free, --older-than or --max-total")
        return MISUSED
    criteria: dict[str, Any] = {"providers": options.provider, "scope": options.scope}
    if options.free is not None:
        criteria["free_bytes"] = parse_size("--free", options.free)
    if options.older_than is not None:
        age = parse_age("--older-than", options.older_than)
        criteria["keep_days"] = age.total_seconds() / _SECONDS_PER_DAY
    if options.max_total is not None:
        criteria["max_total_bytes"] = parse_size("--max-total", options.max_total)

    async def run(catalog: ModelCatalog) -> int:
        plan = await plan_eviction(catalog, **criteria)
        return await _run_plan(catalog, plan, options)

    return await use_existing_catalog(options, run, DONE)


async def _run_plan(catalog: ModelCatalog, plan: EvictionPlan, options: Namespace) -> int:
    if options.format == "human":
        _print_plan(plan)
    result: EvictionResult | None = None
    if plan.models and not options.dry_run:
        if (code := _ask(plan, options)) != DONE:
            return code
        result = await _execute(catalog, plan, delete_files=not options.forget)
    _print_values(plan, result, options)
    if result is not None:
        _print_result(result, forget=options.forget)
    is_complete = not plan.shortfall_bytes and (result is None or not result.kept)
    return DONE if is_complete else FAILED


def _ask(plan: EvictionPlan, options: Namespace) -> int:
    """Ask whether to execute a plan; return DONE for yes, else the exit code."""
    if options.yes:
        return DONE
    if sys.stdin is None or not sys.stdin.isatty():
        print_error(
            "error: standard input is not a terminal, so the plan was not executed: pass -y"
        )
        return MISUSED
    if is_confirmed(_question(plan, forget=options.forget)):
        return DONE
    print_notice("nothing was deleted")
    return FAILED


def _print_values(plan: EvictionPlan, result: EvictionResult | None, options: Namespace) -> None:
    if options.format == "json":
        print_json(_to_json(plan, result, dry_run=options.dry_run))
    elif options.format == "tsv":
        print_tsv(_FIELDS, _rows(plan))
    elif options.format == "quiet":
        for model in plan.models if result is None else result.evicted:
            print_line(str(model.ref))


def _question(plan: EvictionPlan, *, forget: bool) -> str:
    models = pluralize(len(plan.models), "model")
    if forget:
        return f"Remove {models} from the catalog? The files stay. [y/N] "
    return f"Delete {models}, and free {human_size(plan.freed_bytes)}? [y/N] "


def _print_plan(plan: EvictionPlan) -> None:
    if plan.models:
        print_table(
            ["MODEL", "LAST USED", "FREES", "NOTE"],
            [
                [
                    short_ref(model.ref),
                    human_time(model.used_at),
                    human_size(model.freed_bytes),
                    "unfinished" if model.is_unfinished else "",
                ]
                for model in plan.models
            ],
            right=["FREES"],
            cut=["MODEL"],
        )
    print_notice(
        f"{pluralize(len(plan.models), 'model')} to delete: {human_size(plan.freed_bytes)}"
    )
    if plan.kept:
        counts = "; ".join(f"{count:,} {reason}" for reason, count in plan.kept_counts.items())
        print_notice(f"{pluralize(len(plan.kept), 'model')} kept: {counts}")
    if plan.shortfall_bytes:
        print_notice(f"{human_size(plan.shortfall_bytes)} are missing from the target")


async def _execute(
    catalog: ModelCatalog, plan: EvictionPlan, *, delete_files: bool
) -> EvictionResult:
    done_count = freed_bytes = 0
    with ProgressBar() as bar:

        def show(outcome: EvictedModel | KeptModel, _: EvictionPlan) -> None:
            nonlocal done_count, freed_bytes
            done_count += 1
            freed_bytes += outcome.freed_bytes if isinstance(outcome, EvictedModel) else 0
            freed = human_size(freed_bytes)
            bar.show_count(done_count, len(plan.models), f"{freed} freed: {outcome.ref}")

        return await plan.execute(catalog, delete_files=delete_files, on_progress=show)


def _print_result(result: EvictionResult, *, forget: bool) -> None:
    for kept in result.kept:
        print_error(f"warning: kept {kept}")
    models = pluralize(len(result.evicted), "model")
    if forget:
        print_notice(f"{models} removed from the catalog; the files stay")
    else:
        print_notice(f"{models} deleted, {human_size(result.freed_bytes)} freed")


def _rows(plan: EvictionPlan) -> Iterator[Sequence[object]]:
    for model in plan.models:
        yield "delete", model.ref, _time(model.used_at), model.freed_bytes, None, None
    for kept in plan.kept:
        yield "keep", kept.ref, None, None, kept.reason, kept.detail


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def _to_json(plan: EvictionPlan, result: EvictionResult | None, *, dry_run: bool) -> dict[str, Any]:
    values: dict[str, Any] = {
        "dry_run": dry_run,
        "planned_bytes": plan.freed_bytes,
        "shortfall_bytes": plan.shortfall_bytes,
        "models": [
            {
                "model": str(model.ref),
                "local_path": model.local_path,
                "last_used_at": _time(model.used_at),
                "freed_bytes": model.freed_bytes,
                "is_unfinished": model.is_unfinished,
            }
            for model in plan.models
        ],
        "kept": [_kept_to_json(kept) for kept in plan.kept],
    }
    if result is not None:
        values["freed_bytes"] = result.freed_bytes
        values["deleted"] = [str(model.ref) for model in result.evicted]
        values["kept"] += [_kept_to_json(kept) for kept in result.kept]
    return values


def _kept_to_json(kept: KeptModel) -> dict[str, str]:
    return {"model": str(kept.ref), "reason": kept.reason, "detail": kept.detail}


async def remove_with_files(options: Namespace) -> int:
    """Delete models that the user names, with their files, after asking for confirmation."""
    refs = list(dict.fromkeys(map(ModelRef.parse, options.refs)))

    async def remove(catalog: ModelCatalog) -> int:
        models = [model for ref in refs for model in await _find_models(catalog, ref)]
        plan = await plan_deletion(catalog, models, scope=options.scope)
        for model in plan.models:
            print_notice(f"{model.ref}, {human_size(model.freed_bytes)}, at {model.local_path}")
        if not options.yes and not is_confirmed(_question(plan, forget=False)):
            print_notice("nothing was deleted")
            return FAILED
        result = await _execute(catalog, plan, delete_files=True)
        _print_result(result, forget=False)
        return FAILED if result.kept else DONE

    code = await use_existing_catalog(options, remove, None)
    if code is None:
        raise ModelNotFoundError(refs[0].reference, refs[0].provider, refs[0].version)
    return code


async def _find_models(catalog: ModelCatalog, ref: ModelRef) -> list[Model]:
    """Return the models that a REF names; without a version all versions. Raises if none does."""
    if ref.version is not None:
        return [await catalog.get_model(ref)]
    models = await catalog.list_models(provider=ref.provider, reference=ref.reference)
    if not models:
        raise ModelNotFoundError(ref.reference, ref.provider, ref.version)
    return models
