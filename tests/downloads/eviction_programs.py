"""Execute a plan in a process that kills itself before one of its statements or deletions."""

import asyncio
import os
import signal

from child_programs import PROCESSES
from sqlalchemy import Engine, event

from model_catalog import open_catalog
from model_catalog.downloads import plan_eviction

WRITES = ("DELETE", "INSERT", "UPDATE", "WITH")


def evict_and_kill_self(target, kill_at, pipe):
    """
    Delete all models that may be deleted; kill this process before step `kill_at`.

    A step is a statement that writes, a commit, or the deletion of a name or of a folder. A kill
    before another statement leaves the same files and rows as a kill before the next step. Sends
    the number of steps if it is not reached.
    """
    count = 0
    counts = False

    def step(*_, **_options):
        nonlocal count
        count += counts
        if counts and count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(function):
        def run(*arguments, **options):
            step()
            return function(*arguments, **options)

        return run

    def statement_step(_connection, _cursor, statement, *_):
        if statement.lstrip().startswith(WRITES):
            step()

    event.listen(Engine, "before_cursor_execute", statement_step)
    event.listen(Engine, "commit", step)
    os.unlink, os.rmdir = before(os.unlink), before(os.rmdir)

    async def run():
        nonlocal counts
        async with open_catalog(target) as catalog:
            plan = await plan_eviction(catalog, keep_days=0)
            counts = True
            await plan.execute(catalog)
            counts = False

    asyncio.run(run())
    pipe.send(count)


def run_and_kill(target, kill_at):
    """Run `evict_and_kill_self` in a process; return its steps, or None if it was killed."""
    receiving, sending = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=evict_and_kill_self, args=(target, kill_at, sending))
    process.start()
    sending.close()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return receiving.recv() if process.exitcode == 0 else None
