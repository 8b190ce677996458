"""How the documentation is built: `make docs`. Nothing is downloaded; warnings are errors."""

import sys
from pathlib import Path

import evenhand

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "Evenhand"
author = "The Evenhand authors"
copyright = "the Evenhand authors, MIT licence"
version = release = evenhand.__version__

extensions = ["myst_parser", "sphinx_design", "formula", "pages"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "extensions"]
suppress_warnings = ["config.cache"]
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_theme = "furo"
html_title = "Evenhand"
html_static_path = ["static"]
html_css_files = ["house.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navigation_with_keys": True,
    "light_css_variables": {"color-brand-primary": "#00639b", "color-brand-content": "#00639b"},
    "dark_css_variables": {"color-brand-primary": "#7fbfea", "color-brand-content": "#7fbfea"},
}
pygments_style = "friendly"
pygments_dark_style = "native"
