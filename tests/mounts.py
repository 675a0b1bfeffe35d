"""Private mount namespaces, in which a test can mount small file systems."""

import subprocess
from functools import cache


@cache
def mount_namespace_command() -> list[str] | None:
    """
    Return the command prefix for a private mount namespace; None if this user may not create one.
    """
    for command in (["unshare", "-m"], ["unshare", "-Urm"]):
        try:
            tried = subprocess.run(
                [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            return None
        if tried.returncode == 0:
            return command
    return None
