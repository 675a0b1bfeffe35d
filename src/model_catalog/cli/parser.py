"""The argument parser of `model-catalog`. It imports no SQLAlchemy, so that `--help` is fast."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

from model_catalog.cli.download_options import add_download_commands, add_scope_option
from model_catalog.cli.fleet_options import add_fleet_commands, lost_after_options
from model_catalog.cli.report_options import add_completion_command, add_report_command

FORMATS: Final = ("human", "json", "tsv", "quiet")

_EXAMPLES: Final = """\
examples:
  model-catalog add ./tiny.gguf --provider local --reference tiny
  model-catalog scan
  model-catalog ls
  model-catalog show local:tiny
  model-catalog rm local:tiny

A REF is provider:reference or provider:reference@version. A REF without a version names the
version that was downloaded last; for `rm` it names every version. `provider:reference@` names
the model without a version.
"""


def _non_negative_int(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 0 or more")
    return int(text)


class _VersionAction(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        # Imported here because this import takes longer than everything else that --help does.
        from importlib.metadata import version  # noqa: PLC0415

        print(f"model-catalog {version('model-catalog')}")
        parser.exit()


_AddCommand = Callable[..., argparse.ArgumentParser]


def make_parser() -> argparse.ArgumentParser:
    """Build the parser. `options.command` is the name of the command, such as `db upgrade`."""
    parser = argparse.ArgumentParser(
        prog="model-catalog",
        description="Keep a catalog of the AI model files on this machine: path, size, metadata.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version", action=_VersionAction, nargs=0, help="show the version and exit"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    database, host = _database_options(), _host_option()
    formats = _format_options()

    def add_command(
        name: str, summary: str, *parents: argparse.ArgumentParser, group: Any = commands
    ) -> argparse.ArgumentParser:
        options = [database, host] if group is commands else [database]
        command: argparse.ArgumentParser = group.add_parser(
            name.rpartition(" ")[2], help=summary, description=summary, parents=[*options, *parents]
        )
        command.set_defaults(command=name)
        return command

    _add_model_commands(add_command, formats)
    add_download_commands(add_command, formats)
    _add_label_commands(add_command, formats)
    _add_upkeep_commands(add_command, formats)
    _add_relinking_commands(add_command)
    _add_export_commands(add_command)
    add_fleet_commands(add_command, commands, formats)
    _add_database_commands(add_command, commands)

    demo = commands.add_parser("demo", help="Show what a catalog does, in a temporary folder.")
    demo.set_defaults(command="demo")
    add_completion_command(commands)
    return parser


def _database_options() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--db",
        metavar="TARGET",
        help="the path or the URL of the catalog; default: $MODEL_CATALOG_URL, or "
        ".rbee/models/catalog.db",
    )
    parent.add_argument(
        "--schema",
        metavar="NAME",
        help="the PostgreSQL schema of the catalog's tables; default: $MODEL_CATALOG_SCHEMA if the "
        "URL is from $MODEL_CATALOG_URL, or else the schema that the server chooses",
    )
    return parent


def _host_option() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--host",
        metavar="NAME",
        help="the host whose models are meant, if hosts share the database; default: "
        "$MODEL_CATALOG_HOST if the URL is from $MODEL_CATALOG_URL, or else no host",
    )
    return parent


def _format_options() -> argparse.ArgumentParser:
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--format",
        choices=FORMATS,
        default="human",
        help="json and tsv have sizes in bytes and times in UTC; quiet prints only names "
        "(default: human)",
    )
    parent.add_argument(
        "--json",
        action="store_const",
        const="json",
        dest="format",
        help="the same as --format json",
    )
    return parent


def _add_model_commands(add_command: _AddCommand, formats: argparse.ArgumentParser) -> None:
    add = add_command("add", "Register a model file or folder. It stays at its path.")
    add.add_argument("path", metavar="PATH", help="the file or the folder")
    add.add_argument(
        "--provider", required=True, help="the source of the model, for example hf, or local"
    )
    add.add_argument(
        "--reference", required=True, help="the provider's name of the model; any for local"
    )
    add.add_argument("--version", default="", help="a commit or a tag (default: none)")
    add.add_argument("--digest", action="store_true", help="read all files and record the SHA-256")

    _add_scan_command(add_command, formats)
    add_command("dupes", "List duplicate files.", formats)

    ls = add_command("ls", "List the models, newest download first.", formats)
    ls.add_argument("--provider", help="list only the models of this provider")
    ls.add_argument(
        "-f",
        "--filter",
        action="append",
        default=[],
        metavar="EXPR",
        help="size>1GB, used<30d, used=never, tag=chat, arch=llama, ...; all filters must match; "
        "an invalid key lists all of them",
    )
    ls.add_argument(
        "--sort",
        metavar="KEY[:asc|desc]",
        help="downloaded (default), used, uses, size, reference, ...; an invalid key lists all of "
        "them",
    )
    ls.add_argument("--limit", type=_non_negative_int, metavar="N", help="list at most N models")
    ls.add_argument("--paths", action="store_true", help="show the paths")
    ls.add_argument("--fleet", action="store_true", help="list the models of all hosts, by host")

    show = add_command("show", "Show all fields of one model.", formats)
    show.add_argument("ref", metavar="REF")

    rename = add_command("rename", "Change the reference or the version of a model.")
    rename.add_argument("ref", metavar="REF")
    rename.add_argument("--reference", metavar="NAME", help="the new reference")
    rename.add_argument("--version", metavar="VERSION", help="the new version; '' removes it")

    rm = add_command("rm", "Remove models from the catalog. Their files stay.")
    rm.add_argument("refs", metavar="REF", nargs="+")
    rm.add_argument("-y", "--yes", action="store_true", help="do not ask for confirmation")
    rm.add_argument(
        "--delete-files", action="store_true", help="delete the files too, if nothing needs them"
    )
    add_scope_option(rm)

    summary = "Show the number and total size of models by provider."
    du = add_command("du", summary, formats, lost_after_options())
    du.add_argument("--fleet", action="store_true", help="by host, with the free space of each")

    add_command("stats", "Count models and bytes by provider, format, architecture, ...", formats)

    add_report_command(add_command, _non_negative_int)


def _add_scan_command(add_command: _AddCommand, formats: argparse.ArgumentParser) -> None:
    scan = add_command("scan", "Register the models in other programs' stores.", formats)
    scan.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help="a store, the folder above one, a repository of a Hugging Face cache, or any folder "
        "(default: the stores of Hugging Face, Ollama, LM Studio, "
        "llama.cpp, Docker Model Runner, RamaLama, ModelScope and kagglehub)",
    )
    scan.add_argument("-n", "--dry-run", action="store_true", help="print the changes only")
    scan.add_argument(
        "--force",
        action="store_true",
        help="record missing models even if most of a store is missing",
    )
    scan.add_argument(
        "--no-headers",
        action="store_false",
        dest="headers",
        help="do not open model files to read their headers",
    )
    scan.add_argument(
        "--no-follow-links",
        action="store_false",
        dest="follow_links",
        help="refuse links out of a store, also those of you and root",
    )


def _add_label_commands(add_command: _AddCommand, formats: argparse.ArgumentParser) -> None:
    for name, summary in (
        ("tag", "Add tags to a model."),
        ("untag", "Remove tags from a model."),
    ):
        labels = add_command(name, summary)
        labels.add_argument("ref", metavar="REF")
        labels.add_argument("tags", metavar="TAG", nargs="+")

    note = add_command("note", "Set the description of a model.")
    note.add_argument("ref", metavar="REF")
    note.add_argument(
        "text", metavar="TEXT", help="`-` reads standard input; '' removes the description"
    )

    pin = add_command("pin", "Mark a model as one to keep.")
    pin.add_argument("ref", metavar="REF")
    pin.add_argument("--reason", help="why the model is pinned")
    add_command("unpin", "Remove the pin of a model.").add_argument("ref", metavar="REF")

    alias = add_command("alias", "Set, move, delete or list aliases of model versions.", formats)
    alias.add_argument("ref", metavar="REF", nargs="?", help="the version; omit it to list aliases")
    alias.add_argument("name", metavar="NAME", nargs="?", help="for example main or stable")
    alias.add_argument("-d", "--delete", action="store_true", help="delete the alias")


def _add_upkeep_commands(add_command: _AddCommand, formats: argparse.ArgumentParser) -> None:
    filters = argparse.ArgumentParser(add_help=False)
    filters.add_argument(
        *("-f", "--filter"), action="append", default=[], metavar="EXPR", help="see `ls`"
    )
    check = add_command("check", "Check the status of files against the catalog.", formats, filters)
    check.add_argument(
        *("--root", "-r"),
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of models; if it does not exist or is empty, its models are offline, "
        "not missing",
    )
    check.add_argument(
        "--force",
        action="store_true",
        help="record missing models even if most of a disk is missing",
    )

    verify = add_command("verify", "Read model files and compare their digests.", formats, filters)
    verify.add_argument(
        "refs", metavar="REF", nargs="*", help="default: all models, those read longest ago first"
    )
    verify.add_argument(
        "--level",
        choices=("quick", "structure", "full"),
        default="full",
        help="quick: file status; structure: headers too; full: every byte (default: full)",
    )
    verify.add_argument(
        "--max-bytes", metavar="SIZE", help="read at most this much, for example 50GB"
    )
    verify.add_argument(
        "--max-time", metavar="TIME", help="start no file after this time, for example 30m or 2h"
    )
    verify.add_argument(
        "--not-since",
        metavar="TIME",
        help="skip models verified within this time, for example 7d",
    )

    accept = add_command("accept", "Accept the current files of a model as its content.")
    accept.add_argument("ref", metavar="REF")

    sign = add_command("sign-verify", "Verify a model's signature with the signer's public key.")
    sign.add_argument("ref", metavar="REF")
    sign.add_argument("--key", required=True, metavar="PEM", help="the signer's public key")
    sign.add_argument("--bundle", metavar="FILE", help="default: model.sig in the model's folder")
    sign.add_argument(
        "--follow-links", action="store_true", help="for a cache that consists of symbolic links"
    )
    sign.add_argument(
        "--ignore-path",
        action="append",
        default=[],
        metavar="PATH",
        help="a file or folder that needs no signature, relative to the model, for example "
        ".cache; may be repeated",
    )


def _add_relinking_commands(add_command: _AddCommand) -> None:
    relink = add_command("relink", "Record the new path of a model that was moved.")
    relink.add_argument("ref", metavar="REF", nargs="?")
    relink.add_argument("path", metavar="PATH", nargs="?", help="the new path")
    relink.add_argument(
        "--search",
        metavar="DIR",
        nargs="+",
        default=[],
        help="search these folders for all missing models, by size and digest",
    )
    relink.add_argument(
        "-n", "--dry-run", action="store_true", help="with --search: print the new paths only"
    )

    relocate = add_command("relocate", "Record the new path of a folder of models.")
    relocate.add_argument("old", metavar="OLD", help="the recorded path of the folder")
    relocate.add_argument("new", metavar="NEW", help="the new path of the folder")
    relocate.add_argument("-n", "--dry-run", action="store_true", help="print the changes only")


def _add_export_commands(add_command: _AddCommand) -> None:
    export = add_command("export", "Export the whole catalog as NDJSON.")
    export.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="default: -, standard output"
    )
    import_ = add_command("import", "Import a file of `export`, in one transaction.")
    import_.add_argument(
        "file", metavar="FILE", nargs="?", default="-", help="default: -, standard input"
    )
    import_.add_argument(
        "--on-conflict",
        choices=("keep", "replace", "newer"),
        default="keep",
        help="what to do with a model that is already in the catalog (default: keep)",
    )
    import_.add_argument(
        "--trust-source",
        action="store_true",
        help="import the results of verifications and signature checks too",
    )
    import_.add_argument("--skip-broken", action="store_true", help="skip lines that are not valid")


def _add_database_commands(add_command: _AddCommand, commands: Any) -> None:
    db = commands.add_parser("db", help="Manage the database: upgrade, check, back up, restore.")
    group = db.add_subparsers(title="commands", metavar="COMMAND", required=True)
    upgrade = add_command("db upgrade", "Create the tables or upgrade them.", group=group)
    upgrade.add_argument("revision", nargs="?", default="head")
    upgrade.add_argument(
        "--shared",
        action="store_true",
        help="create the tables even if the database has tables of another program",
    )
    add_command("db current", "Print the revision of the database.", group=group)
    add_command("db check", "Check the database for errors.", group=group)
    backup = add_command("db backup", "Back up the database while it is in use.", group=group)
    backup.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        help="default: a file with the time in its name, next to the database",
    )
    restore = add_command("db restore", "Replace the database with a backup.", group=group)
    restore.add_argument("copy", metavar="COPY", help="a file of `db backup`; it stays")
    repair = add_command(
        "db repair", "Copy the readable rows of a damaged database to a new file.", group=group
    )
    repair.add_argument(
        "file", metavar="FILE", nargs="?", help="the new file; default: next to the damaged one"
    )
