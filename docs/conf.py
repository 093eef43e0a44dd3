"""Configuration of the documentation: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

from importlib.util import find_spec

import scatterbrain_core

project = "scatterbrain_core"
author = "The scatterbrain_core developers"
project_copyright = author
version = release = scatterbrain_core.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
]
exclude_patterns = ["_build"]
default_role = "py:obj"

html_theme = "furo"
html_title = f"scatterbrain_core {release}"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
math_eqref_format = "({number})"

# Types stand in the docstrings; nearly all annotations of the public calls say "any array".
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_xref_param_type = False

# Docstrings of what needs a library that is not installed are read without it.
autodoc_mock_imports = [name for name in ("torch", "transformers") if find_spec(name) is None]

# Examples of libraries that are not installed are skipped.
doctest_global_setup = """
from importlib.util import find_spec
no_torch, no_jax, no_transformers = (find_spec(name) is None for name in ("torch", "jax", "transformers"))
"""
