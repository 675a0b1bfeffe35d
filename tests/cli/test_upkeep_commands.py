"""The commands that compare the catalog with the disk, as a person and as a script use them."""

import json
from pathlib import Path

import pytest

from model_catalog.cli import main
from model_catalog.cli.commands.demo_files import make_gguf


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """
    Run a command in a folder with one registered model; return exit code, standard output and
    standard error.
    """
    monkeypatch.chdir(tmp_path)
    Path("m.gguf").write_bytes(make_gguf("llama", context_length=4096))

    def run(*arguments):
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    run("add", "m.gguf", "--provider", "local", "--reference", "m", "--digest")
    return run


def test_an_unchanged_model_has_exit_code_0(cli):
    """
    `check` and `verify` report that it matches the catalog.
    """
    assert cli("check") == (0, "", "1 model: 1 present\n")
    assert cli("verify") == (0, "ok          local:m\n", "1 model, 224 B read, all as recorded\n")


def test_a_missing_model_has_exit_code_3(cli):
    """
    The exit code is for a script, the table for a person. `ls` and `show` print the state too.
    """
    Path("m.gguf").unlink()

    code, out, err = cli("check")
    quiet = cli("check", "--format", "quiet")
    found = json.loads(cli("check", "--format", "json")[1])

    assert code == 3
    assert out.splitlines()[0].split() == ["STATE", "MODEL", "WHAT"]
    assert out.splitlines()[1].split()[:2] == ["missing", "local:m"]
    assert err == "1 model: 1 missing\n"
    assert quiet == (3, "local:m@\n", "")
    assert found["counts"] == {"missing": 1}
    assert found["findings"][0]["state"] == "missing"
    assert cli("ls")[1].splitlines()[1].endswith("missing")
    assert "state:           missing\n" in cli("show", "local:m")[1]
    assert cli("ls", "-f", "state=missing", "--format", "quiet")[1] == "local:m\n"
    assert cli("verify")[0] == 3


def test_changed_content_is_reported_until_it_is_accepted(cli):
    """
    A mismatch has exit code 3 until `accept` records the new content.
    """
    content = bytearray(Path("m.gguf").read_bytes())
    content[-1] ^= 1
    Path("m.gguf").write_bytes(content)

    code, out, _ = cli("verify", "local:m")
    (row,) = json.loads(cli("verify", "--format", "json")[1])
    listed = cli("ls", "-f", "damaged=yes")[1]
    accepted = cli("accept", "local:m")

    assert code == 3
    assert out == "mismatch    local:m: 'm.gguf' does not match its recorded digest\n"
    assert (row["verdict"], row["model"]) == ("mismatch", "local:m@")
    assert row["found_digest"] != row["digest"]
    assert listed.splitlines()[1].endswith("damaged")
    assert accepted[0] == 0
    assert row["found_digest"] in accepted[2]
    assert row["digest"] in accepted[2]
    assert cli("verify")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("verify", "--max-bytes", "many"),
        ("verify", "--max-time", "soon"),
        ("verify", "--not-since", "x"),
        ("check", "-f", "state=gone"),
        ("relink",),
        ("relink", "local:m"),
        ("relink", "local:m", "--search", "."),
        ("relocate", "relative", "/new"),
    ],
    ids=" ".join,
)
def test_invalid_arguments_have_exit_code_2(cli, arguments):
    """
    One line says what is wrong.
    """
    code, out, err = cli(*arguments)

    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("command", ["accept", "relink", "sign-verify", "verify"])
def test_an_unknown_model_has_exit_code_1(cli, command):
    """
    The message names the model, for every command that takes a REF.
    """
    more = {"relink": ["m.gguf"], "sign-verify": ["--key", "k.pem"]}.get(command, [])

    code, _, err = cli(command, "local:other", *more)

    assert code == 1
    assert "no model 'other'" in err


def test_a_moved_model_is_found_and_relinked(cli, tmp_path):
    """
    `relink --search` prints the new path with `--dry-run`, and records it without. A PATH with
    other content is refused.
    """
    Path("other.gguf").write_bytes(make_gguf("llama", context_length=1))
    Path("deep/er").mkdir(parents=True)
    Path("m.gguf").rename("deep/er/renamed.gguf")
    cli("check")

    refused = cli("relink", "local:m", "other.gguf")
    dry = cli("relink", "--search", "deep", "-n")
    before = cli("ls", "--paths")[1]
    result = cli("relink", "--search", "deep")

    new_path = f"{tmp_path}/deep/er/renamed.gguf"
    assert refused[0] == 3
    assert "is another model" in refused[2]
    assert dry == (0, f"local:m: {new_path}\n", "1 of 1 missing model would be relinked\n")
    assert new_path not in before
    assert result == (0, f"local:m: {new_path}\n", "1 of 1 missing model relinked\n")
    assert cli("check")[0] == 0


def test_a_moved_folder_is_relocated(cli, tmp_path):
    """
    `relocate` prints the new paths with `--dry-run`, and records them without.
    """
    Path("old").mkdir()
    Path("m.gguf").rename("old/m.gguf")
    cli("relink", "local:m", "old/m.gguf")
    Path("old").rename("new")

    missing = cli("check")
    dry = cli("relocate", f"{tmp_path}/old", f"{tmp_path}/new", "-n")
    result = cli("relocate", f"{tmp_path}/old/", f"{tmp_path}/new/")

    assert missing[0] == 3
    assert dry[:2] == result[:2] == (0, f"local:m: {tmp_path}/new/m.gguf\n")
    assert "would be recorded" in dry[2]
    assert cli("check") == (0, "", "1 model: 1 present\n")
    assert cli("relocate", "/nothing/here", "/new")[0] == 1


def test_a_signature_is_verified_with_a_key(cli, tmp_path):
    """
    A valid signature has exit code 0 and is shown. After a change of the file the exit code is 3.
    """
    pytest.importorskip("cryptography")
    import signed_bundles

    private = signed_bundles.private_key()
    digest = signed_bundles.digest(Path("m.gguf").read_bytes())
    payload = json.dumps(signed_bundles.statement({".": digest})).encode()
    Path("m.gguf.sig").write_text(json.dumps(signed_bundles.envelope(private, payload)))
    Path("key.pem").write_bytes(signed_bundles.pem(private))

    valid = cli("sign-verify", "local:m", "--key", "key.pem")
    shown = cli("show", "local:m")[1]
    Path("m.gguf").write_bytes(b"other")
    refused = cli("sign-verify", "local:m", "--key", "key.pem")

    assert valid[0] == 0
    assert "signature_verdict:    valid" in shown
    assert refused[0] == 3
    assert "tampered with" in refused[2]
    assert "signature_verdict:    refused" in cli("show", "local:m")[1]


def test_many_missing_models_need_the_option_force(cli, tmp_path):
    """
    Without `--force` the exit code is 3, and the message explains what to do.
    """
    for number in range(12):
        path = tmp_path / f"{number}.gguf"
        path.write_bytes(b"x")
        cli("add", str(path), "--provider", "local", "--reference", f"{number}")
        path.unlink()

    code, _, err = cli("check", "--root", str(tmp_path))

    assert code == 3
    assert "12 of 13 models" in err
    assert cli("check", "--force")[2] == "13 models: 1 present, 12 missing\n"


def test_a_pickle_causes_a_warning(cli):
    """
    It is recorded, and never loaded.
    """
    Path("w.bin").write_bytes(b"\x80\x04}q\x00.")

    code, _, err = cli("add", "w.bin", "--provider", "local", "--reference", "w")

    assert code == 0
    assert "warning: the weights are pickled" in err
