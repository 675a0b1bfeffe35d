"""Configuration of Sphinx. `make docs` builds the site into build/docs; warnings are errors."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "model-catalog"
author = "The model-catalog developers"
release = version = metadata.version("model-catalog")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "generated_pages",
]
exclude_patterns = ["_ext"]
root_doc = "index"

# A `name` in a docstring is code.
default_role = "code"
autodoc_default_options = {"members": True, "member-order": "bysource", "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
add_module_names = False

myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings = ["myst.strikethrough"]

# Furo brings its own fonts and scripts: nothing is loaded from a network.
html_theme = "furo"
html_title = f"model-catalog {release}"
html_show_sourcelink = False
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["diagrams.css"]
