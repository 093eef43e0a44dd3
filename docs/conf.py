"""Configuration of the documentation: ``python -m sphinx -W --keep-going -b html docs docs/_build/html``."""

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

# Examples of libraries that are not installed are skipped.
doctest_global_setup = """
from importlib.util import find_spec
no_torch, no_jax = find_spec("torch") is None, find_spec("jax") is None
"""
