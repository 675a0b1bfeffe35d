"""Looks through stores as a user to whom the modes of files apply; root is told nothing by them."""

import json
import os
import sys
from pathlib import Path

from model_catalog.stores.store_kinds import SCANNERS


def outcome(store, root):
    scanned = SCANNERS[store](root)
    return {
        "found": [[model.reference, model.version, model.reasons] for model in scanned.found],
        "problems": [[problem.path, problem.reason] for problem in scanned.problems],
    }


if __name__ == "__main__":
    # Whatever is imported late is imported before: it may lie where only root looks.
    for name in SCANNERS:
        outcome(name, Path(__file__).parent)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    print(json.dumps([outcome(store, root) for store, root in json.loads(sys.argv[1])]))
