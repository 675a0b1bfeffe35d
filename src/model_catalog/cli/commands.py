"""What each command does: fetch from the catalog, print, return an exit code."""

from __future__ import annotations

import errno
import os
import stat
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from model_catalog.catalog import ModelCatalog
from model_catalog.cli import demo
from model_catalog.cli.output import (
    complain,
    counted,
    human_size,
    human_time,
    iso_time,
    print_json,
    print_line,
    print_table,
    print_tsv,
    tell,
)
from model_catalog.errors import ModelNotFoundError
from model_catalog.lifecycle import open_catalog
from model_catalog.model import Model
from model_catalog.reference import ModelRef
from model_catalog.schema import check_schema, schema_state, upgrade
from model_catalog.target import locate

T = TypeVar("T")

DONE, FAILED = 0, 1

_FIELDS: Final = (
    "provider",
    "reference",
    "version",
    "size_bytes",
    "downloaded_at",
    "local_path",
)


async def run(options: Namespace) -> int:
    """Run the command that was typed."""
    return await _COMMANDS[options.command](options)


async def add(options: Namespace) -> int:
    path = Path(options.path).absolute()
    try:
        size_bytes = _measured(path)
    except OSError as error:
        complain(f"error: {os.fspath(path)!r} cannot be read: {error.strerror}")
        return FAILED
    async with open_catalog(options.db) as catalog:
        model = await catalog.register_model(
            Model(
                reference=options.reference,
                provider=options.provider,
                version=options.version,
                local_path=os.fspath(path),
                size_bytes=size_bytes,
            )
        )
    tell(f"recorded {_name(model, exact=False)}, {human_size(size_bytes)}, at {path}")
    return DONE


async def ls(options: Namespace) -> int:
    async def read(catalog: ModelCatalog) -> list[Model]:
        return await catalog.list_models(provider=options.provider)

    models = await _from_existing(options, read, list[Model]())
    if options.format == "json":
        print_json([_facts(model) for model in models])
    elif options.format == "tsv":
        print_tsv(_FIELDS, (list(_facts(model).values()) for model in models))
    elif options.format == "quiet":
        versions = Counter((model.provider, model.reference) for model in models)
        for model in models:
            print_line(_name(model, exact=versions[model.provider, model.reference] > 1))
    else:
        if models:
            _print_models(models, paths=options.paths)
        known = sum(model.size_bytes or 0 for model in models)
        tell(f"{counted(len(models), 'model')}, {human_size(known)}")
    return DONE


def _print_models(models: Sequence[Model], *, paths: bool) -> None:
    columns: dict[str, Callable[[Model], str]] = {
        "PROVIDER": lambda model: model.provider,
        "REFERENCE": lambda model: model.reference,
        "VERSION": lambda model: model.version,
        "SIZE": lambda model: human_size(model.size_bytes),
        "DOWNLOADED": lambda model: human_time(model.downloaded_at),
        "PATH": lambda model: model.local_path,
    }
    if not any(model.version for model in models):
        del columns["VERSION"]
    if not paths:
        del columns["PATH"]
    print_table(
        list(columns),
        [[column(model) for column in columns.values()] for model in models],
        right=["SIZE"],
        cut="REFERENCE",
    )


async def show(options: Namespace) -> int:
    ref = ModelRef.parse(options.ref)

    async def read(catalog: ModelCatalog) -> Model | None:
        return await catalog.find_model(ref.reference, ref.provider, ref.version)

    model = await _from_existing(options, read, None)
    if model is None:
        raise ModelNotFoundError(ref.reference, ref.provider, ref.version)
    facts = _facts(model)
    if options.format == "json":
        print_json(facts)
    elif options.format == "tsv":
        print_tsv(_FIELDS, [list(facts.values())])
    elif options.format == "quiet":
        print_line(_name(model, exact=True))
    else:
        size = human_size(model.size_bytes)
        facts["size_bytes"] = size if model.size_bytes is None else f"{model.size_bytes} ({size})"
        for field, value in facts.items():
            print_line(f"{field + ':':<15}{'?' if value is None else value}")
    return DONE


async def rm(options: Namespace) -> int:
    refs = list(dict.fromkeys(map(ModelRef.parse, options.refs)))

    async def read(catalog: ModelCatalog) -> int | None:
        known: list[ModelRef] = []
        for ref in refs:
            found = [
                model
                for model in await catalog.list_models(
                    provider=ref.provider, reference=ref.reference
                )
                if ref.version in (None, model.version)
            ]
            if not found:
                complain(f"error: {ModelNotFoundError(ref.reference, ref.provider, ref.version)}")
                continue
            known.append(ref)
            for model in found:
                tell(
                    f"{_name(model, exact=bool(found[1:]))}, {human_size(model.size_bytes)}, "
                    f"at {model.local_path}"
                )
        if not known:
            return FAILED
        if not options.yes and not _agreed("Forget them? The files stay. [y/N] "):
            tell("nothing was forgotten")
            return FAILED
        for ref in known:
            await catalog.remove_model(ref.reference, ref.provider, ref.version)
        tell("forgotten; the files stay")
        return DONE if known == refs else FAILED

    code = await _from_existing(options, read, None)
    if code is None:
        raise ModelNotFoundError(refs[0].reference, refs[0].provider, refs[0].version)
    return code


async def du(options: Namespace) -> int:
    models: Counter[str] = Counter()
    sizes: Counter[str] = Counter()

    async def read(catalog: ModelCatalog) -> None:
        async for model in catalog.iter_models():
            models[model.provider] += 1
            sizes[model.provider] += model.size_bytes or 0

    await _from_existing(options, read, None)
    rows = [(provider, models[provider], size) for provider, size in sizes.most_common()]
    fields = ("provider", "models", "size_bytes")
    if options.format == "json":
        providers = [dict(zip(fields, row, strict=True)) for row in rows]
        print_json({"models": models.total(), "size_bytes": sizes.total(), "providers": providers})
    elif options.format == "tsv":
        print_tsv(fields, rows)
    elif options.format == "quiet":
        print(sizes.total())
    else:
        print_table(
            ["PROVIDER", "MODELS", "SIZE"],
            [
                [row[0], f"{row[1]:,}", human_size(row[2])]
                for row in (*rows, ("total", models.total(), sizes.total()))
            ],
            right=["MODELS", "SIZE"],
        )
    return DONE


async def db_upgrade(options: Namespace) -> int:
    await upgrade(options.db, options.revision)
    current, _ = await schema_state(options.db)
    tell(f"the catalog is at {current}")
    return DONE


async def db_current(options: Namespace) -> int:
    current, head = await schema_state(options.db)
    print_line(current or "none")
    tell("the newest" if current == head else f"the newest is {head}")
    return DONE


async def db_check(options: Namespace) -> int:
    problems = await check_schema(options.db)
    for problem in problems:
        print_line(problem)
    tell(counted(len(problems), "problem") if problems else "no problem found")
    return FAILED if problems else DONE


async def show_demo(_options: Namespace) -> int:
    await demo.walk()
    return DONE


async def _from_existing(
    options: Namespace, read: Callable[[ModelCatalog], Awaitable[T]], nothing: T
) -> T:
    """
    What `read` makes of the catalog. Looking makes no file: a typo is to be an error.

    On a machine where the default catalog was never made there is nothing, and that is no error.
    """
    place = locate(options.db)
    if place.is_default and place.path is not None and not place.path.exists():
        return nothing
    async with open_catalog(options.db, create=False) as catalog:
        return await read(catalog)


def _measured(path: Path) -> int:
    """The bytes of a file, or of all files of a folder, each once. Raises OSError."""
    found = path.stat()
    if stat.S_ISREG(found.st_mode):
        return found.st_size
    if not stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EINVAL, "it is neither a file nor a folder")
    sizes: dict[tuple[int, int], int] = {}

    def give_up(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(path, onerror=give_up):
        for name in names:
            # A file in a snapshot is a link to a blob beside it: the blob is what weighs.
            file = Path(folder, name).stat()
            if stat.S_ISREG(file.st_mode):
                sizes[file.st_dev, file.st_ino] = file.st_size
    return sum(sizes.values())


def _facts(model: Model) -> dict[str, Any]:
    facts = {field: getattr(model, field) for field in _FIELDS}
    facts["downloaded_at"] = iso_time(model.downloaded_at)
    return facts


def _name(model: Model, *, exact: bool) -> str:
    """How a model is named as a REF: shortly where that is enough, else with its version."""
    version = model.version or None
    if version is None and (exact or "@" in model.reference):
        version = ""
    return str(ModelRef(model.provider, model.reference, version))


def _agreed(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:
        tell("")
    return answer.strip().lower() in ("y", "yes")


_COMMANDS: Final[dict[str, Callable[[Namespace], Awaitable[int]]]] = {
    "add": add,
    "ls": ls,
    "show": show,
    "rm": rm,
    "du": du,
    "db upgrade": db_upgrade,
    "db current": db_current,
    "db check": db_check,
    "demo": show_demo,
}
