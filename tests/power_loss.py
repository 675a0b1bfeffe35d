"""A simulated disk for power cuts: synced data survives, unsynced sectors may or may not."""

import random
from pathlib import Path

import apsw

SECTOR_BYTES = 512


class Disk(apsw.VFS):
    """An SQLite VFS that records which data of each file would survive a power cut."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.written: dict[str, bytearray] = {}
        self.synced: dict[str, bytearray] = {}
        super().__init__(name, "")

    def xOpen(self, name, flags):  # noqa: N802 - the name is SQLite's
        return File(self, name, flags)

    def xDelete(self, name, sync):  # noqa: N802
        super().xDelete(name, sync)
        self.written.pop(name, None)
        self.synced.pop(name, None)

    def cut_power(self, folder: Path, chance: random.Random, *, torn: bool) -> None:
        """Write the surviving data to a folder; with `torn`, unsynced sectors survive at random."""
        for name, kept in self.synced.items():
            survived = bytearray(kept)
            written = self.written[name]
            for at in range(0, len(written) if torn else 0, SECTOR_BYTES):
                if chance.random() < 0.5:
                    survived.extend(bytes(max(0, at - len(survived))))
                    survived[at : at + SECTOR_BYTES] = written[at : at + SECTOR_BYTES]
            (folder / Path(name).name).write_bytes(survived)


class File(apsw.VFSFile):
    """A file whose writes reach the simulated disk when it is synced."""

    def __init__(self, disk: Disk, name, flags) -> None:
        super().__init__("", name, flags)
        self.disk = disk
        self.name = name.filename() if isinstance(name, apsw.URIFilename) else name
        if self.name and self.name not in disk.written:
            found = Path(self.name).read_bytes()
            disk.written[self.name] = bytearray(found)
            disk.synced[self.name] = bytearray(found)

    def xWrite(self, data, offset):  # noqa: N802
        super().xWrite(data, offset)
        if self.name:
            written = self.disk.written[self.name]
            written.extend(bytes(max(0, offset - len(written))))
            written[offset : offset + len(data)] = data

    def xTruncate(self, size):  # noqa: N802
        super().xTruncate(size)
        if self.name:
            del self.disk.written[self.name][size:]

    def xSync(self, flags):  # noqa: N802
        super().xSync(flags)
        if self.name:
            self.disk.synced[self.name] = bytearray(self.disk.written[self.name])
