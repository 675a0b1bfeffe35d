"""Commands that compare the catalog with the disk: check, verify, accept, sign-verify."""

from __future__ import annotations

from argparse import Namespace
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final

from model_catalog.cli.catalog_access import (
    model_name,
    short_ref,
    use_existing_catalog,
    use_existing_model,
)
from model_catalog.cli.exit_codes import DONE, NOT_AS_RECORDED
from model_catalog.cli.filter_expressions import parse_age, parse_filters, parse_size
from model_catalog.cli.output import (
    human_size,
    pluralize,
    print_error,
    print_json,
    print_line,
    print_notice,
    print_table,
    print_tsv,
)
from model_catalog.cli.output.progress import ProgressBar
from model_catalog.domain.file_record import FileState
from model_catalog.domain.model_ref import ModelRef
from model_catalog.mapping.tables import Model
from model_catalog.repository.model_catalog import ModelCatalog
from model_catalog.repository.statements.filters import Filters
from model_catalog.upkeep import (
    CheckFinding,
    CheckReport,
    Signature,
    Verdict,
    VerifiedModel,
    accept_model,
    check_models,
    verify_models,
    verify_signature,
)

_GOOD_VERDICTS: Final = {Verdict.OK, Verdict.UNFINISHED}
_CHECK_FIELDS: Final = ("state", "model", "detail", "local_path", "before", "damaged")
_VERIFY_FIELDS: Final = ("verdict", "model", "detail", "read_bytes", "digest", "found_digest")


async def check(options: Namespace) -> int:
    """Check whether the files of models exist and are unchanged, without reading them."""
    filters = parse_filters(options.filter, datetime.now(UTC))

    async def run(catalog: ModelCatalog) -> CheckReport:
        return await check_models(catalog, roots=options.root, force=options.force, **filters)

    report = await use_existing_catalog(options, run, CheckReport({}, ()))
    if options.format == "json":
        counts = {str(state): count for state, count in report.counts.items()}
        findings = [
            dict(zip(_CHECK_FIELDS, _check_row(finding), strict=True))
            for finding in report.findings
        ]
        print_json({"models": report.model_count, "counts": counts, "findings": findings})
    elif options.format == "tsv":
        print_tsv(_CHECK_FIELDS, map(_check_row, report.findings))
    elif options.format == "quiet":
        for finding in report.findings:
            if not finding.is_as_recorded:
                print_line(str(finding.ref))
    else:
        _print_check_report(report)
    return DONE if report.is_as_recorded else NOT_AS_RECORDED


def _check_row(finding: CheckFinding) -> tuple[object, ...]:
    return (
        str(finding.state),
        str(finding.ref),
        finding.detail,
        finding.local_path,
        str(finding.before),
        finding.is_damaged,
    )


def _print_check_report(report: CheckReport) -> None:
    if report.findings:
        cells = [
            [_state_label(finding), short_ref(finding.ref), finding.detail or ""]
            for finding in report.findings
        ]
        print_table(["STATE", "MODEL", "WHAT"], cells, cut=["WHAT", "MODEL"])
    states = ", ".join(
        f"{report.counts[state]:,} {state}" for state in FileState if state in report.counts
    )
    print_notice(f"{pluralize(report.model_count, 'model')}{': ' if states else ''}{states}")


def _state_label(finding: CheckFinding) -> str:
    if finding.is_damaged and finding.state is FileState.PRESENT:
        return "damaged"
    return str(finding.state)


async def verify(options: Namespace) -> int:
    """Verify the content of models, and print the result of each."""
    filters = parse_filters(options.filter, datetime.now(UTC))

    async def run(catalog: ModelCatalog) -> list[VerifiedModel]:
        selections = [filters]
        if options.refs:
            selections = [
                {**filters, **_filters_for(await _get_model(catalog, ModelRef.parse(ref)))}
                for ref in options.refs
            ]
        return [
            result
            for selection in selections
            for result in await _verify_selection(catalog, options, selection)
        ]

    results = await use_existing_catalog(options, run, list[VerifiedModel]())
    if options.format == "json":
        print_json([_verified_fields(result) for result in results])
    elif options.format == "tsv":
        print_tsv(_VERIFY_FIELDS, [list(_verified_fields(result).values()) for result in results])
    elif options.format == "quiet":
        for result in results:
            if result.verdict not in _GOOD_VERDICTS:
                print_line(model_name(result.model, exact=True))
    read_bytes = sum(result.read_bytes for result in results)
    bad_count = sum(result.verdict not in _GOOD_VERDICTS for result in results)
    print_notice(
        f"{pluralize(len(results), 'model')}, {human_size(read_bytes)} read, "
        f"{f'{bad_count:,} not as recorded' if bad_count else 'all as recorded'}"
    )
    return NOT_AS_RECORDED if bad_count else DONE


async def _verify_selection(
    catalog: ModelCatalog, options: Namespace, filters: Filters
) -> list[VerifiedModel]:
    """Verify the filtered models. In the human format, print each result when it is ready."""
    results = []
    max_time, max_bytes, not_since = options.max_time, options.max_bytes, options.not_since
    max_seconds = None if max_time is None else parse_age("--max-time", max_time).total_seconds()
    with ProgressBar() as bar:
        verification = verify_models(
            catalog,
            options.level,
            max_bytes=None if max_bytes is None else parse_size("--max-bytes", max_bytes),
            max_seconds=max_seconds,
            not_since=None if not_since is None else parse_age("--not-since", not_since),
            on_progress=bar.show,
            **filters,
        )
        async with aclosing(verification) as verified:
            async for result in verified:
                results.append(result)
                if options.format == "human":
                    detail = f": {result.detail}" if result.detail else ""
                    name = model_name(result.model, exact=False)
                    with bar.hidden():
                        print_line(f"{result.verdict:<11} {name}{detail}")
    return results


def _verified_fields(result: VerifiedModel) -> dict[str, Any]:
    model = result.model
    values = (
        str(result.verdict),
        model_name(model, exact=True),
        result.detail,
        result.read_bytes,
        model.digest,
        model.found_digest,
    )
    return dict(zip(_VERIFY_FIELDS, values, strict=True))


def _filters_for(model: Model) -> Filters:
    return {
        "provider": model.provider,
        "reference": model.reference,
        "version": model.version,
    }


async def _get_model(catalog: ModelCatalog, ref: ModelRef) -> Model:
    return await catalog.get_model(ref)


async def accept(options: Namespace) -> int:
    """Accept the current files of a model as its content."""

    async def run(catalog: ModelCatalog, ref: ModelRef) -> tuple[Model, Model]:
        before = await _get_model(catalog, ref)
        with ProgressBar() as bar:
            accepted = await accept_model(
                catalog,
                before,
                on_progress=bar.show,
            )
        return before, accepted.model

    before, after = await use_existing_model(options, run)
    name = model_name(after, exact=False)
    if before.digest == after.digest:
        print_notice(f"{name} has the recorded digest: {after.digest}")
    else:
        print_notice(f"{name} has the new digest {after.digest}")
        print_notice(f"before: {before.digest or 'not known'}")
    return DONE


async def sign_verify(options: Namespace) -> int:
    """Verify the signature of a model."""

    async def run(catalog: ModelCatalog, ref: ModelRef) -> Signature:
        model = await _get_model(catalog, ref)
        with ProgressBar() as bar:
            return await verify_signature(
                catalog,
                model,
                key=options.key,
                bundle=options.bundle,
                follow_links=options.follow_links,
                ignore_paths=options.ignore_path,
                on_progress=bar.show,
            )

    signature = await use_existing_model(options, run)
    name = model_name(signature.model, exact=False)
    if signature.is_valid:
        print_notice(f"{name} is signed by the key {signature.key_fingerprint}")
        return DONE
    print_error(f"the signature of {name} was refused: {signature.reason}")
    return NOT_AS_RECORDED
