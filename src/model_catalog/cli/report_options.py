"""The options of `report` and `completion`."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from model_catalog.cli.completion import SHELLS


def add_report_command(
    add_command: Callable[..., argparse.ArgumentParser], non_negative_int: Callable[[str], int]
) -> None:
    """Add `report`."""
    report = add_command("report", "Write a page about the models: disk use, duplicates, problems.")
    report.add_argument(
        "--html", metavar="FILE", required=True, help="the file to write; - is standard output"
    )
    report.add_argument(
        "--unused-days",
        type=non_negative_int,
        default=30,
        metavar="N",
        help="list models that were not used for N days (default: 30)",
    )
    report.add_argument(
        "--limit",
        type=non_negative_int,
        default=2000,
        metavar="N",
        help="only the N largest models (default: 2000)",
    )


def add_completion_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `completion`, which needs no catalog."""
    summary = "Print the script that completes commands and names in a shell."
    completion = commands.add_parser(
        "completion",
        help=summary,
        description=f'{summary} For bash: eval "$(model-catalog completion bash)" in ~/.bashrc; '
        "for zsh the same in ~/.zshrc, after compinit; for fish: model-catalog completion fish > "
        "~/.config/fish/completions/model-catalog.fish. Needs the extra `cli`.",
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(command="completion")
