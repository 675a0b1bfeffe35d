"""
Fork a child that opens a catalog of its own, close the parent's, and let the child write on.

    python surviving_child_program.py FILE idle|writing|transaction|inline

Prints what the child was told: the references that it registered, or the class of its error.
"""

import os
import sys
import threading
from contextlib import ExitStack

from model_catalog import CatalogError, Model, sync

TARGET, KIND = sys.argv[1:]
WRITES = 5


def a_model(reference: str) -> Model:
    return Model(reference=reference, provider="hf", local_path="/m")


def say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def write_in_thread(catalog: sync.SyncCatalog, stack: ExitStack) -> None:
    is_over, is_writing = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not is_over.is_set():
            catalog.register_model(a_model(f"parent{number}"))
            number += 1
            is_writing.set()

    thread = threading.Thread(target=write)
    thread.start()
    is_writing.wait()
    stack.callback(thread.join)
    stack.callback(is_over.set)


def run_child(parent_closed: int, opened: int) -> None:
    try:
        catalog = sync.open_catalog(TARGET)
    except CatalogError as error:
        say(type(error).__name__)
        return
    catalog.register_model(a_model("child"))
    os.write(opened, b"1")
    os.read(parent_closed, 1)
    for number in range(WRITES):
        catalog.register_model(a_model(f"child{number}"))
        say(f"child{number}")
    # Another program closes the file while the child has it open.
    with sync.open_catalog(TARGET) as other:
        assert other.count_models()


def main() -> None:
    parent_closed, close = os.pipe()
    wait_opened, opened = os.pipe()
    with ExitStack() as stack:
        reads = "inline" if KIND == "inline" else "threads"
        catalog = stack.enter_context(sync.open_catalog(TARGET, reads=reads))
        catalog.register_model(a_model("before"))
        catalog.find_model("before", "hf")
        if KIND == "writing":
            write_in_thread(catalog, stack)
        if KIND == "transaction":
            stack.enter_context(catalog.transaction()).register_model(a_model("in transaction"))
        child = os.fork()
        if child == 0:
            run_child(parent_closed, opened)
            os._exit(0)
        os.close(opened)
        os.read(wait_opened, 1)
        assert catalog.find_model("before", "hf") is not None
    os.write(close, b"1")
    assert os.waitpid(child, 0)[1] == 0


main()
