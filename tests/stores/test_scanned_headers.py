"""A scan reads the headers of the models that it finds, once for each state of the files."""

import sys

import pytest
from adoption_helpers import adopt_scan, scan
from layouts import C1, C2, HuggingFace, Ollama, write

from model_catalog.cli import main
from model_catalog.upkeep import adopt, register_path, verify_models

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")
save = pytest.importorskip("safetensors.numpy").save

CONFIG = b'{"model_type": "llama", "max_position_embeddings": 2048}'
WEIGHTS = save({"w": np.ones((4, 8), np.float16)})
"""A whole file, by the package safetensors 0.8."""


@pytest.fixture
def opened():
    """The paths that this process opens, reported by an audit hook, which cannot be removed."""
    found = []
    is_active = True

    def record_open(event, arguments):
        if is_active and event == "open" and isinstance(arguments[0], str):
            found.append(arguments[0])

    sys.addaudithook(record_open)
    yield found
    is_active = False


def gguf_bytes(path, architecture):
    """Return a model file that the package gguf has written."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(4096)
    writer.add_file_type(15)
    writer.add_tensor("t", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def make_hub(folder):
    cache = HuggingFace(folder / "hub")
    cache.revision("org/a", C1, {"model.safetensors": WEIGHTS, "config.json": CONFIG})
    return cache


async def test_a_scan_records_what_headers_claim(catalog, tmp_path):
    """
    The values of safetensors come from its header and from config.json.
    """
    cache = make_hub(tmp_path)
    write(tmp_path / "lm/me/repo/m.gguf", gguf_bytes(tmp_path / "m", "qwen3"))

    await adopt_scan(catalog, cache)
    await adopt(catalog, scan("lmstudio", tmp_path / "lm"))

    (llama,) = await catalog.list_models(architecture="llama")
    (qwen,) = await catalog.list_models(architecture="qwen3")
    assert (llama.format, llama.quantization, llama.context_length) == ("safetensors", "F16", 2048)
    assert llama.parameter_count == 32
    assert (qwen.format, qwen.quantization, qwen.context_length) == ("gguf", "Q4_K_M", 4096)


async def test_a_header_is_not_read_again_while_its_file_is_the_same(on_sqlite, tmp_path, opened):
    """
    A scan without headers leaves the reading to the next one. New bytes are read again.
    """
    cache = make_hub(tmp_path)
    path = cache.repository("org/a") / f"snapshots/{C1}"
    weights, config = f"{path}/model.safetensors", f"{path}/config.json"
    steps = []
    for headers in (False, True, True):
        opened.clear()
        report = await adopt_scan(on_sqlite, cache, headers=headers)
        steps.append(({weights, config} & set(opened), len(report.new), report.changed))
    again = b'{"model_type": "mistral"}'
    cache.blob("org/a", "config.json", again)
    (path / "config.json").unlink()
    cache.link(path, "config.json", cache.blob("org/a", "config.json", again))
    opened.clear()

    await adopt_scan(on_sqlite, cache)

    assert steps == [(set(), 1, ()), ({weights, config}, 0, ()), (set(), 0, ())]
    assert {weights, config} <= set(opened)
    assert (await on_sqlite.get_model("org/a", "hf")).architecture == "mistral"


async def test_a_header_that_cannot_be_read_is_not_read_at_each_scan(on_sqlite, tmp_path, opened):
    """
    The claims of the store stay.
    """
    store = Ollama(tmp_path / "ollama")
    store.model("llama3", b"GGUF" + bytes(100))
    await adopt(on_sqlite, scan("ollama", store.root))
    opened.clear()

    await adopt(on_sqlite, scan("ollama", store.root))

    model = await on_sqlite.get_model("llama3", "ollama")
    assert model.local_path not in opened
    assert (model.architecture, model.headers_read_at is None) == ("llama", False)


async def test_a_link_that_was_moved_after_the_scan_is_not_followed(on_sqlite, tmp_path, opened):
    """
    The recording opens only the files that the scan has found.
    """
    cache = make_hub(tmp_path)
    found = scan("huggingface", cache.root)
    link = cache.repository("org/a") / f"snapshots/{C1}/model.safetensors"
    link.unlink()
    link.symlink_to(write(tmp_path / "outside.safetensors", WEIGHTS))

    await adopt(on_sqlite, found)

    assert str(link) not in opened
    assert (await on_sqlite.get_model("org/a", "hf")).parameter_count is None


async def test_a_verification_records_what_headers_claim(on_sqlite, tmp_path):
    """
    Also of a model that was scanned without headers, at both levels.
    """
    cache = make_hub(tmp_path)
    cache.revision("org/b", C2, {"model.safetensors": WEIGHTS, "config.json": CONFIG})
    await adopt_scan(on_sqlite, cache, headers=False)
    before = await on_sqlite.count_models(architecture="llama")

    for level, reference in (("structure", "org/a"), ("full", "org/b")):
        async for _ in verify_models(on_sqlite, level, reference=reference):
            pass

    assert (before, await on_sqlite.count_models(architecture="llama")) == (0, 2)


async def test_values_of_the_user_stay(on_sqlite, tmp_path):
    """
    A value that the user has set has priority over the header's.
    """
    write(tmp_path / "models/a/config.json", CONFIG)
    write(tmp_path / "models/a/model.safetensors", WEIGHTS)
    await register_path(on_sqlite, tmp_path / "models/a", provider="local", reference="a")
    await on_sqlite.update_model("a", "local", architecture="mine")

    await adopt(on_sqlite, scan("directory", tmp_path / "models"))

    assert (await on_sqlite.get_model("a", "local")).architecture == "mine"


@pytest.mark.slow
def test_the_command_has_an_option_to_open_no_files(tmp_path, monkeypatch, capsys):
    """
    Without the option `ls -f arch=llama` finds the model.
    """
    monkeypatch.setenv("MODEL_CATALOG_URL", str(tmp_path / "c.db"))
    cache = make_hub(tmp_path)
    listed = []
    for options in (["--no-headers"], []):
        assert main(["scan", *options, str(cache.root)]) == 0
        capsys.readouterr()
        assert main(["ls", "--format", "quiet", "-f", "arch=llama"]) == 0
        listed.append(capsys.readouterr().out)

    assert listed == ["", f"hf:org/a@{C1}\n"]
