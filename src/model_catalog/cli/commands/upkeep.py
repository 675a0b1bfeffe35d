"""The commands that hold the catalog against the disk."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from model_catalog.cli.catalog_access import DONE, FAILED, existing_catalog, model_name, short_ref
from model_catalog.cli.filter_expressions import parse_age, parse_filters, parse_size
from model_catalog.cli.output import (
    ProgressBar,
    human_size,
    pluralize,
    print_error,
    print_json,
    print_line,
    print_notice,
    print_table,
    print_tsv,
)
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.errors import ModelNotFoundError
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.repository.statements.filters import Filters
from model_catalog.upkeep import (
    CheckFinding,
    CheckReport,
    Verdict,
    VerifiedModel,
    accept_model,
    check_models,
    find_moved,
    relink_model,
    verify_models,
    verify_signature,
)

T = TypeVar("T")

NOT_AS_RECORDED: Final = 3
"""The exit code where something is not as it is recorded."""

_FINE: Final = {Verdict.OK, Verdict.UNFINISHED}


async def check(options: Namespace) -> int:
    filters = parse_filters(options.filter, datetime.now(UTC))

    async def look(catalog: ModelCatalog) -> CheckReport:
        return await check_models(catalog, roots=options.root, force=options.force, **filters)

    checked = await existing_catalog(options, look, CheckReport({}, ()))
    fields = ("state", "model", "detail", "local_path", "before", "damaged")
    rows = [
        (
            str(each.state),
            str(each.ref),
            each.detail,
            each.local_path,
            str(each.before),
            each.is_damaged,
        )
        for each in checked.findings
    ]
    if options.format == "json":
        counts = {str(state): count for state, count in checked.counts.items()}
        findings = [dict(zip(fields, row, strict=True)) for row in rows]
        print_json({"models": checked.model_count, "counts": counts, "findings": findings})
    elif options.format == "tsv":
        print_tsv(fields, rows)
    elif options.format == "quiet":
        for each in checked.findings:
            if not each.is_as_recorded:
                print_line(str(each.ref))
    else:
        if rows:
            cells = [
                [_state(each), short_ref(each.ref), each.detail or ""] for each in checked.findings
            ]
            print_table(["STATE", "MODEL", "WHAT"], cells, cut=["WHAT", "MODEL"])
        states = ", ".join(
            f"{checked.counts[state]:,} {state}" for state in FileState if state in checked.counts
        )
        print_notice(f"{pluralize(checked.model_count, 'model')}{': ' if states else ''}{states}")
    return DONE if checked.is_as_recorded else NOT_AS_RECORDED


def _state(finding: CheckFinding) -> str:
    if finding.is_damaged and finding.state is FileState.PRESENT:
        return "damaged"
    return str(finding.state)


async def verify(options: Namespace) -> int:
    filters = parse_filters(options.filter, datetime.now(UTC))

    async def run(catalog: ModelCatalog) -> list[VerifiedModel]:
        wanted = [filters]
        if options.refs:
            wanted = [
                {**filters, **_only(await _meant(catalog, ModelRef.parse(ref)))}
                for ref in options.refs
            ]
        return [each for which in wanted for each in await _verify(catalog, options, which)]

    results = await existing_catalog(options, run, list[VerifiedModel]())
    if options.format == "json":
        print_json([_told(each) for each in results])
    elif options.format == "tsv":
        print_tsv(_VERIFIED, [list(_told(each).values()) for each in results])
    elif options.format == "quiet":
        for each in results:
            if each.verdict not in _FINE:
                print_line(model_name(each.model, exact=True))
    read = sum(each.read_bytes for each in results)
    bad = sum(each.verdict not in _FINE for each in results)
    print_notice(
        f"{pluralize(len(results), 'model')}, {human_size(read)} read, "
        f"{'all as recorded' if not bad else f'{bad:,} not as recorded'}"
    )
    return NOT_AS_RECORDED if bad else DONE


async def _verify(
    catalog: ModelCatalog, options: Namespace, filters: Filters
) -> list[VerifiedModel]:
    results = []
    with ProgressBar() as bar:
        verification = verify_models(
            catalog,
            options.level,
            max_bytes=None if options.max_bytes is None else parse_size(options.max_bytes),
            max_seconds=None
            if options.max_time is None
            else parse_age(options.max_time).total_seconds(),
            not_since=None if options.not_since is None else parse_age(options.not_since),
            on_progress=lambda seen: bar.show(seen.done_bytes, seen.total_bytes, seen.path),
            **filters,
        )
        async with aclosing(verification) as verified:
            async for each in verified:
                results.append(each)
                if options.format == "human":
                    bar.clear()
                    detail = f": {each.detail}" if each.detail else ""
                    print_line(f"{each.verdict:<11} {model_name(each.model, exact=False)}{detail}")
    return results


_VERIFIED: Final = ("verdict", "model", "detail", "read_bytes", "digest", "found_digest")


def _told(each: VerifiedModel) -> dict[str, Any]:
    model = each.model
    values = (
        str(each.verdict),
        model_name(model, exact=True),
        each.detail,
        each.read_bytes,
        model.digest,
        model.found_digest,
    )
    return dict(zip(_VERIFIED, values, strict=True))


def _only(model: Model) -> Filters:
    return {
        "provider": model.provider,
        "reference": model.reference,
        "version": model.version,
    }


async def _meant(catalog: ModelCatalog, ref: ModelRef) -> Model:
    return await catalog.get_model(ref.reference, ref.provider, ref.version)


async def accept(options: Namespace) -> int:
    ref = ModelRef.parse(options.ref)

    async def take(catalog: ModelCatalog) -> tuple[Model, Model]:
        before = await _meant(catalog, ref)
        with ProgressBar() as bar:
            done = await accept_model(
                catalog,
                before.reference,
                before.provider,
                before.version,
                on_progress=lambda seen: bar.show(seen.done_bytes, seen.total_bytes, seen.path),
            )
        return before, done.model

    before, after = await _of_existing(options, ref, take)
    if before.digest == after.digest:
        print_notice(
            f"{model_name(after, exact=False)} has the bytes that were recorded: {after.digest}"
        )
    else:
        print_notice(f"{model_name(after, exact=False)} is {after.digest} from now on")
        print_notice(f"before: {before.digest or 'not known'}")
    return DONE


async def relink(options: Namespace) -> int:
    if options.search:
        if options.ref is not None:
            print_error("error: give either a REF and a PATH, or --search with folders")
            return 2
        return await _search(options)
    if options.ref is None or options.path is None:
        print_error("error: give a REF and the PATH where it lies, or --search with folders")
        return 2
    ref = ModelRef.parse(options.ref)

    async def link(catalog: ModelCatalog) -> Model:
        model = await _meant(catalog, ref)
        return await _relinked(catalog, model, options.path)

    model = await _of_existing(options, ref, link)
    print_notice(f"{model_name(model, exact=False)} lies at {model.local_path}")
    return DONE


async def _relinked(catalog: ModelCatalog, model: Model, path: str) -> Model:
    with ProgressBar() as bar:
        done = await relink_model(
            catalog,
            model.reference,
            model.provider,
            model.version,
            path=path,
            on_progress=lambda seen: bar.show(seen.done_bytes, seen.total_bytes, seen.path),
        )
    return done.model


async def _search(options: Namespace) -> int:
    async def run(catalog: ModelCatalog) -> int:
        missing = await catalog.count_models(state=FileState.MISSING)
        with ProgressBar() as bar:
            moved = await find_moved(
                catalog,
                options.search,
                on_progress=lambda seen: bar.show(seen.done_bytes, seen.total_bytes, seen.path),
            )
        for each in moved:
            print_line(f"{model_name(each.model, exact=False)}: {each.path}")
            if not options.dry_run:
                await _relinked(catalog, each.model, each.path)
        verb = "would be relinked" if options.dry_run else "relinked"
        print_notice(f"{len(moved):,} of {pluralize(missing, 'missing model')} {verb}")
        return DONE if len(moved) == missing else FAILED

    return await existing_catalog(options, run, DONE)


async def relocate(options: Namespace) -> int:
    async def move(catalog: ModelCatalog) -> int:
        moved = await catalog.relocate(options.old, options.new, dry_run=options.dry_run)
        for each in moved:
            print_line(f"{short_ref(each.ref)}: {each.new_path}")
        verb = "would lie" if options.dry_run else "recorded"
        print_notice(f"{pluralize(len(moved), 'model')} {verb} below {options.new}")
        if moved and not options.dry_run:
            print_notice("`model-catalog check` tells which of them are there")
        return DONE if moved else FAILED

    return await existing_catalog(options, move, FAILED)


async def sign_verify(options: Namespace) -> int:
    ref = ModelRef.parse(options.ref)

    async def hold(catalog: ModelCatalog) -> int:
        model = await _meant(catalog, ref)
        with ProgressBar() as bar:
            found = await verify_signature(
                catalog,
                model.reference,
                model.provider,
                model.version,
                key=options.key,
                bundle=options.bundle,
                follow_links=options.follow_links,
                on_progress=lambda seen: bar.show(seen.done_bytes, seen.total_bytes, seen.path),
            )
        if found.is_valid:
            print_notice(
                f"{model_name(found.model, exact=False)} is signed by key {found.key_fingerprint}"
            )
            return DONE
        print_error(
            f"{model_name(found.model, exact=False)} is not as it was signed: {found.reason}"
        )
        return NOT_AS_RECORDED

    return await _of_existing(options, ref, hold)


async def _of_existing(
    options: Namespace, ref: ModelRef, act: Callable[[ModelCatalog], Awaitable[T]]
) -> T:
    async def kept(catalog: ModelCatalog) -> tuple[T]:
        return (await act(catalog),)

    found = await existing_catalog(options, kept, None)
    if found is None:
        raise ModelNotFoundError(ref.reference, ref.provider, ref.version)
    return found[0]
