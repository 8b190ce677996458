"""Docstrings as Markdown for the pages: prose with its formulas rendered, sections, examples.

The docstrings are Google's form in plain text. Formulas in prose are found by what only formulas
have (subscripts, Greek letters, bars); formulas on lines of their own are indented.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SECTIONS = ("Args", "Attributes", "Raises", "Example", "Examples", "Returns", "Yields")
HEADING = re.compile(rf"({'|'.join(SECTIONS)}):\s*(.*)")
ENTRY = re.compile(r"(\*{0,2}\w[\w, .*]*?)\s*(?:\([^)]*\))?:\s+(.*)", re.DOTALL)

STRONG = re.compile(
    r"[‖Σ∇√∂∈∞½α-ωΑ-Ωℓ²³ᵀ⁻⁰¹₀₁₂∝←∘·≥≤≠\u0302-\u0307ĝḡŵĜḠ]"
    r"|(?<![A-Za-z0-9_])[A-Za-z]\*?'?_(\{[^}]*\}|[A-Za-z0-9]{1,2}(?![A-Za-z0-9]))"
    r"|\b[A-Za-z]\^[({\w]|\b(max|min|mean)_[a-z]\b"
)
"""What only formulas have."""
RELATION = re.compile(r"[=<>≥≤≠→←∝≈]|>=|<=")
"""Words that make a formula of what stands around them."""
WEAK = re.compile(
    rf"[+−×/·∘|]|{RELATION.pattern}|[b-zB-HJ-Z][*'′]?|G[wW]|[−-]?[\d.]+(e[-−]?\d+)?|…"
    r"|arg(min|max)|max|min|log|exp|mean|[a-z]+(?=\()\(.*"
)
"""What may stand in a formula, and elsewhere."""
CODE = re.compile(r"(``[^`]+``|`[^`]+`)")
EMPHASIS = re.compile(r"((?<![\w*])(?:\*\*[^\s*][^*]*\*\*|\*[^\s*][^*]*\*)(?![\w*]))")
ITEM = re.compile(r"\s*(?:[-*]|\d+\.)\s+\S")
COMPOUND = re.compile(r"[(\"]?[α-ωA-Z]-[a-z]{3,}.*")
"""A word such as α-fair, which is no difference."""
ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


@dataclass(frozen=True)
class Section:
    """A part of a docstring: its name ("" for the text before the first) and its lines."""

    name: str
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        return textwrap.dedent("\n".join(self.lines)).strip("\n")


def sections(docstring: str) -> list[Section]:
    """The parts of a clean docstring (`inspect.getdoc`), in order."""
    parts: list[tuple[str, list[str]]] = [("", [])]
    for line in docstring.splitlines():
        heading = HEADING.fullmatch(line)
        if heading:
            parts.append((heading[1], [heading[2]] if heading[2] else []))
        elif line and not line.startswith(" ") and parts[-1][0]:
            parts.append(("", [line]))  # text goes on after a section
        else:
            parts[-1][1].append(line)
    return [Section(name, tuple(lines)) for name, lines in parts]


def paragraphs(text: str) -> list[str]:
    """Blocks between empty lines; an indented one keeps its indent."""
    return [block for block in re.split(r"\n\s*\n", text.strip("\n")) if block.strip()]


Link = Callable[[str], str]
"""From what stands in backticks to Markdown."""


def markdown(docstring: str, link: Link) -> str:
    """A docstring as Markdown; its sections have headings in bold."""
    return "\n\n".join(shown(part, link) for part in sections(docstring) if part.lines)


def shown(section: Section, link: Link) -> str:
    """One section as Markdown."""
    match section.name:
        case "":
            return "\n\n".join(block(paragraph, link) for paragraph in paragraphs(section.text))
        case "Example" | "Examples":
            return f"**Example**\n\n{_example(section, link)}"
        case "Returns" | "Yields":
            return f"**{section.name}** {prose(' '.join(section.text.split()), link)}"
    return f"**{_title(section.name)}**\n\n{_entries(section, link)}"


def _title(name: str) -> str:
    return {"Args": "Arguments"}.get(name, name)


def block(paragraph: str, link: Link) -> str:
    """A paragraph: prose, a formula or a table on lines of its own, or a list."""
    lines = paragraph.splitlines()
    if ITEM.match(lines[0]) and not lines[0].startswith("    "):
        return "\n".join(_items(lines, link))
    if all(line.startswith(" ") for line in lines):
        return formula("\n".join(lines))
    if any(line.startswith("    ") for line in lines[1:]) and not lines[0].startswith(" "):
        cut = next(i for i, line in enumerate(lines) if line.startswith("    "))
        return (
            f"{block(chr(10).join(lines[:cut]), link)}\n\n{block(chr(10).join(lines[cut:]), link)}"
        )
    return prose(" ".join(line.strip() for line in lines), link)


def _items(lines: list[str], link: Link) -> Iterator[str]:
    """A list, each item with its further lines."""
    items: list[list[str]] = []
    for line in lines:
        if ITEM.match(line):
            items.append([])
        items[-1].append(line.strip())
    for item in items:
        mark, text = re.split(r"\s+", " ".join(item), maxsplit=1)
        yield f"{mark} {prose(text, link)}"


def formula(text: str) -> str:
    """What is indented: mathematics is rendered; code, and what is aligned with words, is kept."""
    text = textwrap.dedent(text)
    is_code = re.search(r'\w\(\w+=|"|^\w+\(.*\)$', text, re.MULTILINE) is not None
    return f"```{'python' if is_code else '{formula}'}\n{text}\n```"


def _example(section: Section, link: Link) -> str:
    lines = list(section.lines)
    told = []
    while lines and not lines[0].strip().startswith(">>>"):
        told.append(lines.pop(0).strip())
    code = textwrap.dedent("\n".join(lines)).strip()
    before = prose(" ".join(told).strip(), link) if any(told) else ""
    return f"{before}\n\n```pycon\n{code}\n```".strip()


def _entries(section: Section, link: Link) -> str:
    """``name: text`` entries, their further lines indented; otherwise a sentence."""
    entries: list[str] = []
    for line in section.text.splitlines():
        if line.startswith(" ") and entries:
            entries[-1] += " " + line.strip()
        elif line.strip():
            entries.append(line.strip())
    shown = []
    for entry in entries:
        found = ENTRY.fullmatch(entry)
        if found:
            names = ", ".join(f"`{name.strip()}`" for name in found[1].split(","))
            shown.append(f"- {names}: {prose(found[2], link)}")
        else:
            shown.append(f"- {prose(entry, link)}")
    return "\n".join(shown)


# Prose ----------------------------------------------------------------------------------------


def prose(text: str, link: Link) -> str:
    """A paragraph on one line, its formulas, code, names and papers marked up."""
    parts = CODE.split(text)
    return "".join(
        _marked(part, link) if index % 2 else _plain(part) for index, part in enumerate(parts)
    )


def _plain(text: str) -> str:
    parts = EMPHASIS.split(text)
    return "".join(
        part if index % 2 else ARXIV.sub(_paper, "".join(_with_formulas(part)))
        for index, part in enumerate(parts)
    )


def _marked(code: str, link: Link) -> str:
    return f"`{code.strip('`')}`" if code.startswith("``") else link(code.strip("`"))


def _paper(match: re.Match[str]) -> str:
    return f"[arXiv {match[1]}](https://arxiv.org/abs/{match[1]})"


def _with_formulas(text: str) -> Iterator[str]:
    """The text, each longest run of words that is a formula in a role."""
    words = re.findall(r"\s+|\S+", text)
    at = 0
    while at < len(words):
        end = _run(words, at)
        if end == at:
            yield _escaped(words[at])
            at += 1
            continue
        inside = "".join(words[at:end])
        lead, inside, tail = _trimmed(inside)
        yield f"{_escaped(lead)}{{formula}}`{inside}`{_escaped(tail)}" if inside else _escaped(lead)
        at = end


def _run(words: list[str], start: int) -> int:
    """Where the formula that begins here ends; `start` if none does."""
    at, end, depth, formula = start, start, 0, False
    if words[start].isspace():
        return start
    while at < len(words) and (words[at].isspace() or _belongs(words[at])):
        word = words[at]
        at += 1
        if word.isspace():
            continue
        depth += sum(map(word.count, "([{")) - sum(map(word.count, ")]}"))
        core = word.rstrip(".,;:")
        formula |= STRONG.search(word) is not None or RELATION.fullmatch(core) is not None
        if not re.fullmatch(r"[-+−×/·=<>≥≤]+", core):
            end = at  # an operator alone does not end a formula
        if word[-1] in ".;:" or (word[-1] == "," and depth <= 0):
            break
    whole = "".join(words[start:end]).rstrip(".,;:")
    return end if formula and (STRONG.search(whole) or re.search(r"\S\s+\S", whole)) else start


def _belongs(word: str) -> bool:
    core = word.strip(".,;:()[]{}")
    if COMPOUND.fullmatch(word):
        return False
    return STRONG.search(word) is not None or WEAK.fullmatch(core) is not None


def _trimmed(run: str) -> tuple[str, str, str]:
    """What is around the formula: an opening bracket that it does not close, punctuation."""
    lead = tail = ""
    while run and (run[-1] in ".,;:" or (run[-1] == ")" and run.count(")") > run.count("("))):
        run, tail = run[:-1], run[-1] + tail
    for left, right in ("()", "[]", "{}"):
        while run and run[0] == left and run.count(left) > run.count(right):
            lead, run = lead + run[0], run[1:]
    if run[:1] + run[-1:] == "()" and ")" not in run[1:-1]:
        lead, run, tail = lead + "(", run[1:-1], ")" + tail
    return lead, run, tail


def _escaped(text: str) -> str:
    return re.sub(r"([*_\[\]<>{}$\\|])", r"\\\1", text)
