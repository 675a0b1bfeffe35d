"""Build the stores of Docker Model Runner, RamaLama, ModelScope and kagglehub byte by byte."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from layouts import fill, sha256, write

DOCKER_CONFIG = {
    "format": "gguf",
    "quantization": "MOSTLY_Q4_K_M",
    "parameters": "361.82M",
    "architecture": "llama",
    "size": "256.35MiB",
    "gguf": {"general.name": "Tiny"},
    "context_size": 8192,
}


@dataclass(frozen=True)
class Docker:
    """A store of Docker Model Runner 1.2.6, as its package `pkg/distribution` writes it."""

    root: Path

    def layer(self, kind, data, path=None, *, media_type=None):
        """Write a blob and return its descriptor. The annotation names the file that it is."""
        write(self.root / "blobs/sha256" / sha256(data), data)
        descriptor = {
            "mediaType": media_type or f"application/vnd.docker.ai.{kind}",
            "size": len(data),
            "digest": f"sha256:{sha256(data)}",
        }
        if path is not None:
            descriptor["annotations"] = {"org.cncf.model.filepath": path}
        return descriptor

    def manifest(self, tags, layers, config=None):
        """Write a manifest, add it to the index, and return its path."""
        text = json.dumps(
            {
                "config": DOCKER_CONFIG if config is None else config,
                "descriptor": {"created": "2026-07-22T09:22:08Z"},
                "rootfs": {"type": "rootfs", "diff_ids": [each["digest"] for each in layers]},
            }
        )
        kind = "model.config.v0.1+json"
        manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": self.layer(kind, text.encode()),
                "layers": layers,
            }
        )
        hexadecimal = sha256(manifest.encode())
        files = [*(each["digest"] for each in layers), f"sha256:{sha256(text.encode())}"]
        self.index({"id": f"sha256:{hexadecimal}", "tags": tags, "files": files})
        return write(self.root / "manifests/sha256" / hexadecimal, manifest)

    def index(self, entry):
        """Add an entry to the index, whose file the program replaces as a whole."""
        path = self.root / "models.json"
        models = json.loads(path.read_text())["models"] if path.exists() else []
        write(path, json.dumps({"models": [*models, entry]}, indent=2))
        write(self.root / "layout.json", '{\n  "version": "1.0.0"\n}')

    def model(self, tag, weights, *, more=()):
        """Add a GGUF model, as `docker model pull` does."""
        tags = [f"docker.io/{tag}"]
        return self.manifest(tags, [self.layer("gguf.v3", weights), *more])

    def bundle(self, manifest, **files):
        """Make the bundle of the first run: hard links by name, and the runtime config."""
        folder = self.root / "bundles/sha256" / manifest.name
        write(folder / "config.json", json.dumps(DOCKER_CONFIG))
        for name, data in files.items():
            path = folder / "model" / name.replace("__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(self.root / "blobs/sha256" / sha256(data), path)
        return folder


@dataclass(frozen=True)
class RamaLama:
    """A store of RamaLama 0.25: the folder `store` below the base folder of the program."""

    root: Path

    def model(self, name, tag, files, *, snapshot="sha256:" + "1" * 64):
        """Add a tag with files (NAME: (TYPE, content)), and return its ref. None: no bytes."""
        folder = self.root / name
        for part in ("blobs", "refs", "snapshots"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        listed = []
        for path, (kind, data) in files.items():
            # The hash of the name, as for files that are downloaded by URL.
            blob = f"sha256-{sha256(path.encode())}"
            listed.append({"hash": blob, "name": path, "type": kind})
            if data is not None:
                write(folder / "blobs" / blob, data)
                link = folder / "snapshots" / snapshot.replace(":", "-") / path
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                os.link(folder / "blobs" / blob, link)
        ref = folder / f"refs/{tag}.json"
        content = {"files": listed, "hash": snapshot, "path": str(ref), "version": "v1.0.1"}
        return write(ref, json.dumps(content, indent=2))


@dataclass(frozen=True)
class ModelScope:
    """The cache of modelscope_hub 0.5 (`revision`) and of modelscope before 1.38 (`old_model`)."""

    root: Path

    def revision(self, name, revision, **files):
        """Add a revision in the new layout, and return its folder."""
        folder = self.root / "models" / name.replace("/", "--") / "snapshots" / revision
        return fill(folder, **files)

    def old_model(self, name, *, parent="hub/models", revision="master", **files):
        """Add a model in the old layout, and return its folder."""
        owner, _, repository = name.partition("/")
        folder = self.root / parent / owner / repository.replace(".", "___")
        write(folder / ".msc", b"\x80\x04]\x94.")
        write(folder / ".mdl", b"\x80\x04}\x94.")
        if revision is not None:
            write(folder / ".mv", f"Revision:{revision},CreatedAt:1753259426")
        link = folder.with_name(repository)
        if not link.exists():
            link.symlink_to(folder)
        return fill(folder, **files)


@dataclass(frozen=True)
class KaggleHub:
    """The cache of kagglehub 1.0.3."""

    root: Path

    def version(self, handle, *, complete=True, marks=(), **files):
        """Add the files of a version, and its marks; return its folder."""
        folder = self.root / "models" / handle
        fill(folder, **files)
        if complete:
            write(folder.with_name(f"{folder.name}.complete"))
        for mark in marks:
            write(folder.parent / f".complete/{folder.name}/{mark}.complete")
        return folder
