"""Whether every link in the built pages leads somewhere: `python links.py FOLDER`.

Looks at pages and files of the folder and at the anchors in them. Links to other sites are counted
and not followed, since nothing is fetched at build.
"""

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.append(value)
            elif name in ("id", "name") and value:
                self.anchors.add(value)


@cache
def read(file: Path) -> Page:
    return Page(file.read_text())


def broken(folder: Path) -> tuple[list[str], int]:
    """What leads nowhere, and how many links there are in all."""
    found, count = [], 0
    for file in sorted(folder.rglob("*.html")):
        for link in read(file).links:
            count += 1
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (file.parent / unquote(url.path)).resolve() if url.path else file.resolve()
            target = target / "index.html" if target.is_dir() else target
            there = target.is_file()
            if there and url.fragment and target.suffix == ".html":
                there = unquote(url.fragment) in read(target).anchors
            if not there:
                found.append(f"{file.relative_to(folder)}: {link}")
    return found, count


def main() -> None:
    found, count = broken(Path(sys.argv[1]).resolve())
    if found:
        sys.exit("\n".join(["these links lead nowhere:", *found]))
    print(f"{count} links lead somewhere")


if __name__ == "__main__":
    main()
