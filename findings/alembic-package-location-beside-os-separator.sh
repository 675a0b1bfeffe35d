#!/usr/bin/env bash
# Alembic 1.20.1: `path_separator = os`, which `alembic init` writes, splits a package location.
#
# Alembic documents `PACKAGE:FOLDER` as a location of revisions inside an installed package, for
# `script_location` and for `version_locations`. Its template of alembic.ini sets
# `path_separator = os`. On POSIX that separator is the colon, so `plugin:migrations` in
# `version_locations` becomes the folders `plugin` and `migrations`, which do not exist. Alembic
# raises no error and prints no warning: the revisions of the package are missing. With
# `path_separator = newline` they are found.
#
# Prints the separator, the number of locations and the heads that Alembic sees:
#
#     os 3 service_0001
#     newline 2 plugin_0001 service_0001
#
# Exits with 1 if that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check 'alembic==1.20.1' 'sqlalchemy==2.1.9' 2>/dev/null
cd "$folder"
mkdir -p plugin/migrations service/versions
touch plugin/__init__.py service/env.py service/script.py.mako
cat > plugin/migrations/plugin_0001.py <<'PY'
revision, down_revision, branch_labels, depends_on = "plugin_0001", None, ("plugin",), None
def upgrade(): pass
def downgrade(): pass
PY
cat > service/versions/service_0001.py <<'PY'
revision, down_revision, branch_labels, depends_on = "service_0001", None, None, None
def upgrade(): pass
def downgrade(): pass
PY
cat > look.py <<'PY'
import sys
from alembic.config import Config
from alembic.script import ScriptDirectory

separator, between = sys.argv[1], {"os": ":", "newline": "\n    "}[sys.argv[1]]
with open("alembic.ini", "w") as file:
    file.write(
        "[alembic]\nscript_location = %(here)s/service\n"
        f"path_separator = {separator}\n"
        f"version_locations = %(here)s/service/versions{between}plugin:migrations\n"
    )
scripts = ScriptDirectory.from_config(Config("alembic.ini"))
print(separator, len(scripts.version_locations), *sorted(scripts.get_heads()))
PY
with_os=$(PYTHONPATH=. venv/bin/python look.py os)
with_newline=$(PYTHONPATH=. venv/bin/python look.py newline)
printf '%s\n' "$with_os" "$with_newline"
[ "$with_os" = "os 3 service_0001" ] && [ "$with_newline" = "newline 2 plugin_0001 service_0001" ]
