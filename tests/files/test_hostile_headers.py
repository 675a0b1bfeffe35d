"""Hostile headers are refused at once, with little memory."""

import os
import resource
import signal
import subprocess
import sys

import pytest
from builders import raw_safetensors
from hostile import LARGE, LIMITS, ONE_TOO_MANY, REASONS, REFUSED

from model_catalog import BadHeaderError, HeaderLimitError
from model_catalog.files.formats.header_reader import read_header


def write_model(tmp_path, content, name="model.safetensors"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def read_limited(path, seconds=2):
    """Read a header in a new process with limited CPU time; return its format and the MiB used."""
    code = """if True:
        import resource, sys
        resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[2]),) * 2)
        from model_catalog.files.formats.header_reader import read_header
        try:
            found = read_header(sys.argv[1]).format
        except Exception as error:
            found = type(error).__name__
        # ru_maxrss would include the memory that the parent had at the fork.
        peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
        kib = int(peak[0].split()[1]) if peak else resource.getrusage(0).ru_maxrss
        print(found, kib // 1024)
    """
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", code, str(path), str(seconds)],
            capture_output=True,
            text=True,
            check=False,
        )
        # On a CPU core that two workers share, the same work can take more CPU time. A real
        # regression fails each time.
        if done.returncode != -signal.SIGKILL:
            break
    assert done.returncode == 0, done.stderr or f"killed by {-done.returncode}"
    found, mebibytes = done.stdout.split()
    return found, int(mebibytes)


@pytest.mark.slow_with("safetensors: 1 MiB of lists", "safetensors: 262,145 tensors")
@pytest.mark.usefixtures("short_garbage_collections")
@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_header_is_refused(tmp_path, name):
    """
    At once: a length that a header claims is never read or allocated.
    """
    path = write_model(tmp_path, REFUSED[name]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime

    with pytest.raises(BadHeaderError, match=f"cannot be read: .*{REASONS[name]}") as caught:
        read_header(path)

    assert caught.value.path == str(path)
    assert isinstance(caught.value, HeaderLimitError) == (name in LIMITS)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 2


# These hostile files could need much more memory than their size.
COSTLY = ["array of 40 million texts", "safetensors: 1 MiB of lists"]
COSTLY += ["safetensors: a name of megabytes", "safetensors: 100,000 objects deep"]


@pytest.mark.parametrize("name", COSTLY)
def test_a_refused_header_needs_little_time_and_memory(tmp_path, name):
    """
    Less than 2 s of CPU time and 64 MiB, including the interpreter.
    """
    path = write_model(tmp_path, REFUSED[name]())
    if name == "array of 40 million texts":
        os.truncate(path, 2 * 1024**3)

    found, mebibytes = read_limited(path)

    assert found in {"BadHeaderError", "HeaderLimitError"}
    assert mebibytes < 64


@pytest.mark.slow_with("4,000,001 texts in two arrays")
@pytest.mark.parametrize("make", ONE_TOO_MANY.values(), ids=ONE_TOO_MANY)
def test_a_list_that_is_too_long_is_refused(tmp_path, make):
    """
    Before it is read, although all of it exists.
    """
    content, zeros = make()
    path = write_model(tmp_path, content)
    os.truncate(path, len(content) + zeros)

    with pytest.raises(HeaderLimitError, match=r"not read \(limit\).*more than 4,000,000"):
        read_header(path)


@pytest.mark.slow
@pytest.mark.parametrize("make", LARGE.values(), ids=LARGE)
def test_the_largest_header_needs_little_memory(tmp_path, make):
    """
    The header is as large as the limits allow. It takes 2 s on a slow machine.
    """
    _, mebibytes = read_limited(write_model(tmp_path, make()), seconds=8)

    assert mebibytes < 64


@pytest.mark.slow
def test_a_header_of_100_megabytes_needs_little_memory(tmp_path):
    """
    That is the limit of the format.
    """
    path = write_model(tmp_path, raw_safetensors(b"{" + b" " * 99_000_000 + b"}"))

    found, mebibytes = read_limited(path)

    assert found == "safetensors"
    assert mebibytes < 64
