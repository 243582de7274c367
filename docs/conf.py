"""Sphinx configuration of the site; docs/build.py runs Sphinx on what docs/pages.py writes."""

import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import reference  # noqa: E402

parser = ConfigParser(delimiters=["="])
parser.read(HERE.parent / "settings.ini", encoding="utf-8")
facts = parser["DEFAULT"]
MODULES = reference.read_package()

project = facts["title"]
author = facts["author"]
copyright = facts["copyright"]
release = version = facts["version"]

extensions = ["myst_nb", "sphinx.ext.linkcode", "sphinx_copybutton", "formulas"]
nitpicky = True
# Types of other packages are not linked: the site links to no other site.
nitpick_ignore_regex = [("py:.*", r"(?!space_warps\.).*")]
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

highlight_language = (
    "none"  # Blocks without a language are shell commands, file listings or messages
)
nb_execution_mode = "off"  # docs/execute.py has executed the notebooks
nb_merge_streams = True
nb_ipywidgets_js: dict[str, Any] = {}
myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

html_theme = "furo"
html_baseurl = f"{facts['doc_host']}{facts['doc_baseurl']}/"
html_title = f"{project} {release}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_favicon = "_static/icon.svg"
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00598c", "color-brand-content": "#00598c"},
    "dark_css_variables": {"color-brand-primary": "#7cc4f0", "color-brand-content": "#7cc4f0"},
}
copybutton_exclude = ".linenos, .gp, .go"


def linkcode_resolve(domain: str, info: dict[str, str]) -> str | None:
    """Address of the source of a name."""
    lines = reference.lines_of(MODULES, info["module"], info["fullname"])
    if lines is None:
        return None
    path = info["module"].replace(".", "/") + ".py"
    return f"{facts['git_url']}/blob/{facts['branch']}/{path}#L{lines[0]}-L{lines[1]}"


def describe_page(
    app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: Any
) -> None:
    """Set the description of each page to its first paragraph."""
    text = facts["description"]
    if doctree is not None:
        prose = (
            p for p in doctree.findall(nodes.paragraph) if not isinstance(p.parent, nodes.entry)
        )
        text = next((p.astext() for p in prose if len(p.astext()) > 20), text)
    text = " ".join(text.split()).replace("&", "&amp;").replace('"', "&quot;")
    context["metatags"] = (
        context.get("metatags", "") + f'<meta name="description" content="{text[:200]}">'
    )


def setup(app: Sphinx) -> None:
    """Connect the handlers to Sphinx."""
    app.connect("html-page-context", describe_page)
