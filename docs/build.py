"""Build the documentation site in _docs/html: executes every page; warnings are errors."""

import subprocess
import sys
from pathlib import Path

import execute
import pages

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_docs" / "html"


def execute_all() -> None:
    """Execute the notebooks whose executed copy is out of date."""
    names = [name for name in execute.notebook_names() if not execute.is_current(name)]
    with execute.copies_of(names) as copies:
        for number, (name, copy) in enumerate(copies.items(), 1):
            if error := copy.result():
                raise SystemExit(error)
            print(f"executed {number} of {len(names)}: {name}", flush=True)


def build() -> None:
    """Write the sources and run Sphinx on them."""
    sources = ROOT / "_docs" / "pages"
    pages.write_pages(sources)
    args = ["-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html", "-c", ROOT / "docs"]
    folders = ["-d", ROOT / "_docs" / "doctrees", sources, SITE]
    if subprocess.run([sys.executable, *args, *folders]).returncode:
        raise SystemExit("the site has warnings; see above")


def main() -> None:
    """Execute the notebooks and build the site."""
    execute_all()
    build()
    print(f"the site is in {SITE.relative_to(ROOT)}; open {SITE.relative_to(ROOT)}/index.html")


if __name__ == "__main__":
    main()
