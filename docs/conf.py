"""The site: ``pip install -e '.[docs]' && sphinx-build -W docs docs/_build/html``."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # models here are tiny: threads wait for each other

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

import sphinx_autosummary_accessors  # noqa: E402

import dar_probe.accessor  # noqa: E402  # registers ds.dar
import inventories  # noqa: E402
from dar_probe.runtime.version import HOME, SITE  # noqa: E402

project = "dar-probe"
author = "the dar-probe contributors"
copyright = f"2026, {author}"
version = release = dar_probe.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx_autosummary_accessors",
    "sphinx_copybutton",
    "sphinx_design",
    "gallery",
    "generated",
]
exclude_patterns = ["_build", "_ext", "**/.ipynb_checkpoints"]
smartquotes = False  # --fail-on is typed with two hyphens

# Pages are Markdown; those with {code-cell} are notebooks, which are run once and then cached.
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "notebooks")
nb_execution_timeout = 240
nb_execution_raise_on_error = True
nb_merge_streams = True

autosummary_generate = True
autodoc_use_legacy_class_based = True  # documenters of accessors are classes
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
napoleon_use_rtype = False
templates_path = [sphinx_autosummary_accessors.templates_path]

# Addresses of other projects' pages, without asking the network while this is built.
intersphinx_mapping = inventories.mapping(HERE / "_build" / "inventories")

html_theme = "pydata_sphinx_theme"
html_title = "dar-probe"
(HERE / "_build" / "extra").mkdir(parents=True, exist_ok=True)  # the gallery fills it
html_extra_path = ["_build/extra"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}
html_theme_options = {
    "header_links_before_dropdown": 6,
    "icon_links": [{"name": "Source", "url": HOME, "icon": "fa-brands fa-github"}],
    "navbar_align": "left",
    "navbar_end": ["version-switcher", "theme-switcher", "navbar-icon-links"],
    "switcher": {"json_url": f"{SITE}/versions.json", "version_match": "latest"},
    "check_switcher": False,  # the file lies beside the versions, on the web
    "show_version_warning_banner": False,
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": True,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_sidebars = {"index": [], "install": [], "glossary": [], "changelog": [], "citing": []}
copybutton_exclude = ".linenos, .gp, .go"
