"""Pages that are made from the code: one for each method, the API reference, the papers.

They are written into docs/methods, docs/api and docs/papers before Sphinx reads its sources; git
ignores them. Nothing in them is typed by hand that the code knows.
"""

from __future__ import annotations

import re
import shutil

from api_pages import api_index, api_page
from method_pages import method_page, methods_index
from names import DOCS, METHODS, ROOT, rooms, slug
from paths import write_figures
from sphinx.application import Sphinx

MADE = ("methods", "api", "papers")


def write_all(app: Sphinx | None = None) -> None:
    """Make every page anew."""
    for folder in MADE:
        shutil.rmtree(DOCS / folder, ignore_errors=True)
        (DOCS / folder).mkdir()
    for name, method in METHODS.items():
        (DOCS / "methods" / f"{slug(name)}.md").write_text(method_page(name, method))
    (DOCS / "methods" / "index.md").write_text(methods_index())
    write_figures()
    for room, modules in rooms().items():
        (DOCS / "api" / f"{room}.md").write_text(api_page(room, modules))
    (DOCS / "api" / "index.md").write_text(api_index())
    copy_papers()


def copy_papers() -> None:
    """The papers' pages, with the files that they link to."""
    for page in [ROOT / "papers" / "README.md", *sorted((ROOT / "papers").glob("*/README.md"))]:
        text = page.read_text()
        to = DOCS / page.relative_to(ROOT)
        to.parent.mkdir(exist_ok=True)
        for target in re.findall(r"\]\(([^):#]+)\)", text):
            if not target.endswith(".md"):
                (to.parent / target).parent.mkdir(exist_ok=True)
                shutil.copy(page.parent / target, to.parent / target)
        to.with_name("index.md").write_text(text.replace("README.md)", "index.md)"))
    folders = sorted(path.parent.name for path in (DOCS / "papers").glob("*/index.md"))
    pages = "\n".join(f"{folder}/index" for folder in folders)
    with (DOCS / "papers" / "index.md").open("a") as index:
        index.write(f"\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n")


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", write_all)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
