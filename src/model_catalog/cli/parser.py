"""What can be typed after `model-catalog`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Final

FORMATS: Final = ("human", "json", "tsv", "quiet")

_EXAMPLES: Final = """\
examples:
  model-catalog add ./tiny.gguf --provider local --reference tiny
  model-catalog scan
  model-catalog ls
  model-catalog show local:tiny
  model-catalog rm local:tiny

A REF is provider:reference, or provider:reference@version. Without a version it is the one
downloaded last, and for `rm` every version; `provider:reference@` is the one without a version.
"""


def _whole(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number: give 0 or more")
    return int(text)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version  # noqa: PLC0415 - slower than all the rest of --help

        print(f"model-catalog {version('model-catalog')}")
        parser.exit()


Command = Callable[..., argparse.ArgumentParser]


def make_parser() -> argparse.ArgumentParser:
    """The parser: `options.command` is the name of the command, as `ls` or `db upgrade`."""
    parser = argparse.ArgumentParser(
        prog="model-catalog",
        description="What models lie on this machine, where, and how large they are.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    database = argparse.ArgumentParser(add_help=False)
    database.add_argument(
        "--db",
        metavar="TARGET",
        help="a path or a URL; default: $MODEL_CATALOG_URL, or .rbee/models/catalog.db",
    )
    listing = argparse.ArgumentParser(add_help=False)
    listing.add_argument(
        "--format",
        choices=FORMATS,
        default="human",
        help="json and tsv carry whole bytes and UTC times; quiet only names (default: human)",
    )
    listing.add_argument(
        "--json", action="store_const", const="json", dest="format", help="as --format json"
    )

    def command(
        name: str, summary: str, *parents: argparse.ArgumentParser, under: Any = commands
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = under.add_parser(
            name.rpartition(" ")[2], help=summary, description=summary, parents=[database, *parents]
        )
        made.set_defaults(command=name)
        return made

    _add_models(command, listing)
    _add_labels(command, listing)
    _add_upkeep(command, listing)
    _add_databases(command)
    db = commands.add_parser("db", help="Look after the database itself.")
    under = db.add_subparsers(title="commands", metavar="COMMAND", required=True)
    upgrade = command("db upgrade", "Create the tables, or bring them up to date.", under=under)
    upgrade.add_argument("revision", nargs="?", default="head")
    command("db current", "Print the revision the database is at.", under=under)
    command("db check", "Look for what is wrong with the database.", under=under)
    backup = command("db backup", "Copy the database while it is used.", under=under)
    backup.add_argument(
        "file", metavar="FILE", nargs="?", help="default: beside it, named after the time"
    )
    restore = command("db restore", "Put a copy in the database's place.", under=under)
    restore.add_argument("copy", metavar="COPY", help="what `db backup` made; it stays")
    repair = command("db repair", "Save what can be read of a damaged file.", under=under)
    repair.add_argument(
        "file", metavar="FILE", nargs="?", help="the new file; default: beside the damaged one"
    )

    demo = commands.add_parser(
        "demo", help="Walk through the life of a catalog, in a temporary folder."
    )
    demo.set_defaults(command="demo")
    return parser


def _add_models(command: Command, listing: argparse.ArgumentParser) -> None:
    add = command("add", "Record a model file or folder; it stays where it is.")
    add.add_argument("path", metavar="PATH", help="the file or the folder")
    add.add_argument("--provider", required=True, help="where it is from, as in hf")
    add.add_argument("--reference", required=True, help="what the provider calls it")
    add.add_argument("--version", default="", help="a commit, a tag (default: none)")
    add.add_argument("--digest", action="store_true", help="read all of it, and record its SHA-256")

    scan = command("scan", "Record what other programs keep on this machine.", listing)
    scan.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help="a store, or any folder (default: where Hugging Face, Ollama, LM Studio and llama.cpp "
        "keep their models)",
    )
    scan.add_argument("-n", "--dry-run", action="store_true", help="only tell what would change")
    command("dupes", "List the files that lie here several times.", listing)

    ls = command("ls", "List the recorded models, newest first.", listing)
    ls.add_argument("--provider", help="only those of one provider")
    ls.add_argument(
        "-f",
        "--filter",
        action="append",
        default=[],
        metavar="EXPR",
        help="as size>1GB, used<30d, used=never, tag=chat, arch=llama; several are all to hold",
    )
    ls.add_argument(
        "--sort",
        metavar="KEY[:asc|desc]",
        help="downloaded (default), used, uses, size, reference, ... : see a wrong one's message",
    )
    ls.add_argument("--limit", type=_whole, metavar="N", help="at most N models")
    ls.add_argument("--paths", action="store_true", help="show where they lie")

    show = command("show", "Show all that is recorded of one model.", listing)
    show.add_argument("ref", metavar="REF")

    rm = command("rm", "Forget models. Their files stay.")
    rm.add_argument("refs", metavar="REF", nargs="+")
    rm.add_argument("-y", "--yes", action="store_true", help="do not ask")

    command("du", "Add up the sizes, by provider.", listing)

    command("stats", "Count models and bytes by provider, format, architecture, ...", listing)


def _add_labels(command: Command, listing: argparse.ArgumentParser) -> None:
    for name, summary in (("tag", "Give a model tags."), ("untag", "Take tags from a model.")):
        labels = command(name, summary)
        labels.add_argument("ref", metavar="REF")
        labels.add_argument("tags", metavar="TAG", nargs="+")

    note = command("note", "Describe a model in your own words.")
    note.add_argument("ref", metavar="REF")
    note.add_argument("text", metavar="TEXT", help="`-` reads it from standard input; '' clears it")

    pin = command("pin", "Protect a model from eviction.")
    pin.add_argument("ref", metavar="REF")
    pin.add_argument("--reason", help="why")
    command("unpin", "Let a pinned model go again.").add_argument("ref", metavar="REF")

    alias = command("alias", "Name a version of a model, move a name, or list the names.", listing)
    alias.add_argument("ref", metavar="REF", nargs="?", help="the version; without one, list")
    alias.add_argument("name", metavar="NAME", nargs="?", help="as in main or stable")
    alias.add_argument("-d", "--delete", action="store_true", help="forget the name")


def _add_upkeep(command: Command, listing: argparse.ArgumentParser) -> None:
    only = argparse.ArgumentParser(add_help=False)
    only.add_argument(
        *("-f", "--filter"), action="append", default=[], metavar="EXPR", help="as those of `ls`"
    )
    check = command("check", "Look whether the files are as recorded.", listing, only)
    check.add_argument(
        *("--root", "-r"),
        action="append",
        default=[],
        metavar="DIR",
        help="a folder of models: if it is gone or empty, what it held is offline and not missing",
    )
    check.add_argument(
        "--force", action="store_true", help="also if most of a disk would go missing"
    )

    verify = command("verify", "Read models and compare their bytes.", listing, only)
    verify.add_argument("refs", metavar="REF", nargs="*", help="default: all, the oldest first")
    verify.add_argument(
        "--level",
        choices=("quick", "structure", "full"),
        default="full",
        help="status alone, headers too, or every byte (default: full)",
    )
    verify.add_argument("--max-bytes", metavar="SIZE", help="stop before more is read, as 50GB")
    verify.add_argument("--max-time", metavar="TIME", help="start no file after it, as 30m or 2h")
    verify.add_argument("--not-since", metavar="TIME", help="not what was read within it, as 7d")

    accept = command("accept", "Take what lies at a model's path for its bytes from now on.")
    accept.add_argument("ref", metavar="REF")

    relink = command("relink", "Record where a model lies that was moved.")
    relink.add_argument("ref", metavar="REF", nargs="?")
    relink.add_argument("path", metavar="PATH", nargs="?", help="where it lies")
    relink.add_argument(
        "--search",
        metavar="DIR",
        nargs="+",
        default=[],
        help="look below these folders for all that are missing, by their bytes",
    )
    relink.add_argument("-n", "--dry-run", action="store_true", help="with --search: only tell")

    relocate = command("relocate", "Record that a folder of models lies elsewhere.")
    relocate.add_argument("old", metavar="OLD", help="the folder as it is recorded")
    relocate.add_argument("new", metavar="NEW", help="where it lies")
    relocate.add_argument(
        "-n", "--dry-run", action="store_true", help="only tell what would change"
    )

    sign = command("sign-verify", "Hold a model against its signature and the signer's key.")
    sign.add_argument("ref", metavar="REF")
    sign.add_argument("--key", required=True, metavar="PEM", help="the signer's public key")
    sign.add_argument("--bundle", metavar="FILE", help="default: model.sig in the model's folder")
    sign.add_argument("--follow-links", action="store_true", help="for a cache that is all links")


def _add_databases(command: Command) -> None:
    export = command("export", "Write the whole catalog as NDJSON.")
    export.add_argument("file", metavar="FILE", nargs="?", default="-", help="default: -, stdout")
    import_ = command("import", "Record what `export` wrote; all of it or nothing.")
    import_.add_argument("file", metavar="FILE", nargs="?", default="-", help="default: -, stdin")
    import_.add_argument(
        "--on-conflict",
        choices=("keep", "replace", "newer"),
        default="keep",
        help="what becomes of a model that is there already (default: keep)",
    )
    import_.add_argument(
        "--skip-broken", action="store_true", help="leave out lines that cannot be read"
    )
