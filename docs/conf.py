"""Sphinx configuration: ``sphinx-build -W -b html docs docs/_build/html``. Needs no network."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import infotorch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
# Notebooks run in their own process: they must find the same sources, and share two cores peacefully.
os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
os.environ.setdefault("OMP_NUM_THREADS", "1")

project = "infotorch"
author = "The infotorch developers"
copyright = "The infotorch developers, Apache License 2.0"
version = release = infotorch.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.doctest",
    "sphinx.ext.viewcode",
    "ledger",
    "mathml",
]
exclude_patterns = ["_build", "_ext", "_static", "results", "**/.ipynb_checkpoints", "**/.jupyter_cache"]
default_role = "py:obj"

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3

nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_mock_imports = ["transformers", "trl"]  # what only adapters need
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
# Not autodoc_preserve_defaults: it replaces the defaults of imported functions, and doctests in pages call those.
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Deviations"]

# Docstrings are run by pytest; here only what the pages show.
doctest_test_doctest_blocks = ""
doctest_global_setup = "import torch"

html_theme = "furo"
html_math_renderer = "mathml"
html_title = "infotorch"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_show_sourcelink = False
html_copy_source = False
