"""Commands about downloads: `pull`."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from typing import Final

from model_catalog.cli.catalog_access import open_named
from model_catalog.cli.commands.models import add, print_recorded
from model_catalog.cli.exit_codes import DONE, MISUSED
from model_catalog.cli.output import print_error, print_line
from model_catalog.cli.output.progress import ProgressBar
from model_catalog.domain.model_ref import ModelRef
from model_catalog.downloads import download_from_hub
from model_catalog.downloads.hub.hub_progress import abort_xet_transfers
from model_catalog.files.file_names import absolute_path

_LOCAL: Final = "local:"
_HUB: Final = "hf"


async def pull(options: Namespace) -> int:
    """Download a model of the Hugging Face hub, or register a local path."""
    ref = ModelRef.parse(options.ref)
    if options.ref.startswith(_LOCAL):
        # A path may contain an `@`.
        return await _pull_path(options, options.ref.removeprefix(_LOCAL))
    if ref.provider != _HUB:
        print_error(
            f"error: `pull` downloads from {_HUB}: only, not from {ref.provider}:. Pass a function "
            f"that downloads to `model_catalog.downloads.get_or_download`, in Python"
        )
        return MISUSED
    # Its warnings would break the progress bar, and contain URLs, which may be signed.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    async with open_named(options) as catalog:
        with ProgressBar() as bar:
            try:
                model = await download_from_hub(
                    catalog,
                    ref,
                    include=options.include,
                    exclude=options.exclude,
                    on_progress=bar.show,
                    scope=options.scope,
                )
            except asyncio.CancelledError:
                abort_xet_transfers()
                raise
    reasons = [] if model.incomplete_reason is None else [model.incomplete_reason]
    print_recorded(model, reasons)
    # For scripts: path=$(model-catalog pull hf:org/name)
    print_line(model.local_path)
    return DONE


async def _pull_path(options: Namespace, path: str) -> int:
    """Register a path. The file or folder stays where it is."""
    if options.include or options.exclude:
        print_error("error: --include and --exclude are for hf: only: a local path is registered")
        return MISUSED
    full = absolute_path(path)
    named = {"path": full, "provider": "local", "reference": full, "version": "", "digest": False}
    code = await add(Namespace(**{**vars(options), **named}))
    if code == DONE:
        print_line(full)
    return code
