"""Group the names of files in one folder into models that need no config.json."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Final

from model_catalog.files.file_names import ShardSet, parse_shard_name

ONNX: Final = ".onnx"

# optimum and transformers.js call the external data NAME.onnx_data or NAME.onnx_data_1, and
# torch.onnx calls it NAME.onnx.data.
_ONNX_DATA: Final = re.compile(r"(?P<main>.+\.onnx)(_data(_[0-9]+)?|\.data)", re.IGNORECASE)
# tf.train.Checkpoint of TensorFlow 2: NAME.index and NAME.data-00000-of-00001.
_TENSORFLOW_DATA: Final = re.compile(r"(?P<stem>.+)\.data-[0-9]{5}-of-[0-9]{5}")
# OpenVINO 2026 keeps the graph in NAME.xml, and Paddle 3 in NAME.pdmodel or NAME.json.
_GRAPH_ENDINGS: Final = {".bin": (".xml",), ".pdiparams": (".pdmodel", ".json")}


def group_names(weights: Iterable[str], names: Collection[str]) -> list[list[str]]:
    """
    Return the files of each model among the names of files with tensors in a folder.

    The first file of each is the one that a program opens. `names` are all names in the folder: the
    graph of OpenVINO or Paddle, and the index of TensorFlow or of a shard set, belong to the
    tensors beside them.
    """
    groups: dict[str | ShardSet, dict[str, None]] = {}
    for name in sorted(weights):
        shard = parse_shard_name(name)
        if shard is not None:
            groups.setdefault(shard[1], {})[name] = None
        else:
            main = _main_name(name, names)
            groups.setdefault(main, {}).update({main: None, name: None})
    for key, group in groups.items():
        if isinstance(key, ShardSet):
            group.update(dict.fromkeys(name for name in key.index_names if name in names))
    return [list(group) for group in groups.values()]


def _main_name(name: str, names: Collection[str]) -> str:
    """Return the name of the file that a program opens to load the tensors in a file."""
    if (match := _ONNX_DATA.fullmatch(name)) is not None:
        candidates = [match["main"]]
    elif (match := _TENSORFLOW_DATA.fullmatch(name)) is not None:
        candidates = [f"{match['stem']}.index"]
    else:
        stem, dot, ending = name.rpartition(".")
        candidates = [stem + each for each in _GRAPH_ENDINGS.get(dot + ending.lower(), ())]
    return next((each for each in candidates if each in names), name)
