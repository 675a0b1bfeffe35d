"""Build the stores of other programs byte by byte, in the form that each program writes."""

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

C1, C2, C3 = (digit * 40 for digit in "abc")
WEIGHTS = (".gguf", ".safetensors", ".bin")
DETAILS = {
    "model_format": "gguf",
    "model_family": "llama",
    "model_families": ["llama"],
    "model_type": "8.0B",
    "file_type": "Q4_K_M",
}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def git_sha1(data):
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def write(path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@dataclass(frozen=True)
class HuggingFace:
    """A cache of huggingface_hub 2.4."""

    root: Path

    def repository(self, name):
        return self.root / f"models--{name.replace('/', '--')}"

    def write_marker_files(self):
        """Write the files that huggingface_hub keeps next to the repositories."""
        write(self.root / "CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n")
        (self.root / ".locks/models--org--m").mkdir(parents=True)

    def revision(self, name, commit, files, *, refs=("main",), tree=None):
        """
        Add the downloaded files of one commit; `tree` lists all files of the commit.

        Weights are in LFS: their blobs are named by their SHA-256.
        """
        repository = self.repository(name)
        snapshot = repository / "snapshots" / commit
        (repository / "blobs").mkdir(parents=True, exist_ok=True)
        snapshot.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            self.link(snapshot, path, self.blob(name, path, data))
        for ref in refs:
            write(repository / "refs" / ref, commit)
        if tree is not None:
            write(repository / "trees" / f"{commit}.json", self.tree(tree))
        return snapshot

    def blob(self, name, path, data):
        blob_name = sha256(data) if path.endswith(WEIGHTS) else git_sha1(data)
        return write(self.repository(name) / "blobs" / blob_name, data)

    def link(self, snapshot, path, blob):
        link = snapshot / path
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
        return link

    def replace_links_with_files(self, name):
        """Put the files themselves in the snapshots, as on a system without links."""
        repository = self.repository(name)
        for path in repository.joinpath("snapshots").rglob("*"):
            if path.is_symlink():
                path.resolve().rename(path)

    def share_blob(self, name, path, data):
        """Move a blob to the blobs that all repositories of a cache share, and make it a link."""
        xet = sha256(b"xet" + data)
        write(self.root / "blobs/.huggingface-shared-blobs", "1\n")
        shared = write(self.root / "blobs" / xet[:2] / xet, data)
        write(shared.with_name(f"{xet}.refs"), "")
        blob = self.blob(name, path, data)
        blob.unlink()
        blob.symlink_to(os.path.relpath(shared, blob.parent))
        return blob

    @staticmethod
    def tree(files):
        entries = {
            path: {"size": len(data), "blob_id": git_sha1(data)}
            | (
                {"lfs_sha256": sha256(data), "lfs_size": len(data)}
                if path.endswith(WEIGHTS)
                else {}
            )
            for path, data in sorted(files.items())
        }
        return json.dumps({"format_version": 1, "files": entries}, indent=1)


@dataclass(frozen=True)
class Ollama:
    """A store of Ollama. Older releases wrote `:` instead of `-` in the names of blobs."""

    root: Path
    separator: str = "-"

    def layer(self, kind, data, **more):
        """Write a blob and return its entry in a manifest."""
        write(self.root / "blobs" / f"sha256{self.separator}{sha256(data)}", data)
        return {
            "mediaType": f"application/vnd.ollama.image.{kind}",
            "digest": f"sha256:{sha256(data)}",
            "size": len(data),
            **more,
        }

    def config(self, details):
        encoded = json.dumps(
            {
                **details,
                "architecture": "amd64",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": []},
            },
            separators=(",", ":"),
        ).encode()
        media = "application/vnd.docker.container.image.v1+json"
        return {**self.layer("config", encoded), "mediaType": media}

    def manifest(self, name, layers, config):
        """Write a manifest; the name is [[HOST/]NAMESPACE/]MODEL[:TAG]."""
        path, _, tag = name.partition(":")
        parts = path.split("/")
        parts = [*["registry.ollama.ai", "library"][: 3 - len(parts)], *parts, tag or "latest"]
        text = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
                "config": config,
                "layers": layers,
            },
            separators=(",", ":"),
        )
        return write(self.root.joinpath("manifests", *parts), text)

    def model(self, name, weights, *, details=DETAILS, more=()):
        """Add a model as `ollama pull` does: weights, a template, a license and parameters."""
        layers = [
            self.layer("model", weights),
            *more,
            self.layer("template", b"{{ .Prompt }}"),
            self.layer("license", b"MIT License"),
            self.layer("params", b'{"stop":["</s>"]}'),
        ]
        return self.manifest(name, layers, self.config(details))


def flat_llamacpp(root, repository, path, data, *, with_json=True):
    """Write a file of llama.cpp's older cache, and the .json file beside it."""
    file = write(root / f"{repository}_{path}".replace("/", "_"), data)
    if with_json:
        url = f"https://huggingface.co/{repository}/resolve/main/{path}"
        metadata = {"etag": f'"{sha256(data)}"', "lastModified": "", "url": url}
        write(file.with_name(f"{file.name}.json"), json.dumps(metadata, indent=4))
    return file


def fill(root, **files):
    """Write files with these contents; in their names `__` stands for `.` and `___` for `/`."""
    for name, content in files.items():
        write(root / name.replace("___", "/").replace("__", "."), content)
    return root


def listing(root):
    """Return stat values and contents of everything below a folder; any write changes them."""
    found = {}
    for path in [root, *root.rglob("*")]:
        status = path.lstat()
        content = None
        if path.is_symlink():
            content = path.readlink()
        elif path.is_file():
            content = path.read_bytes()
        found[path] = (
            *(status.st_mode, status.st_ino, status.st_nlink, status.st_uid, status.st_gid),
            *(status.st_size, status.st_mtime_ns, status.st_ctime_ns),
            content,
        )
    return found


@contextmanager
def shared_folder():
    """Make a folder that every user can read, unlike the folders of pytest."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder).resolve()
        for path, _, _ in os.walk(folder):
            Path(path).chmod(0o755)
