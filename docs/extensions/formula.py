r"""Formulas as the docstrings write them, rendered as MathML: no LaTeX, no script, no download.

The docstrings write mathematics in plain Unicode (``w = argmin ‖Σ w_i g_i‖² over the simplex``), so
that `help()` shows it. This module reads that notation and gives MathML, which browsers draw:

    x_i, x_ij, x_{t+1}    a subscript                 x², x⁻¹, xᵀ, x^k, x^(1/m)   a superscript
    ḡ, ĝ, g̃               an accent                   argmin, log, …              upright
    over the simplex      words stay words            everything else             as it is written

A quotient stays on its line: ``1 / Σ_j z_j / L_j`` cannot be misread more than in the docstring.
In a page a formula is the role {formula}`w_i = 1/L_i`, or a block:

    ```{formula}
    w = argmin ‖Σ w_i g_i‖² over the simplex
    ```
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from html import escape
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

FUNCTIONS = frozenset(
    [
        "argmin",
        "argmax",
        "max",
        "min",
        "log",
        "exp",
        "mean",
        "tanh",
        "cos",
        "sin",
        "sign",
        "softmax",
        "diag",
        "sum",
        "median",
        "sqrt",
        "med",
    ]
)
RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺⁽⁾ᵀⁱⁿ", "0123456789−+()Tin", strict=True))
LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉₋₊₍₎", "0123456789−+()", strict=True))
ACCENTS = {"\u0304": "¯", "\u0302": "^", "\u0303": "~", "\u0307": "˙", "\u0305": "¯"}
OPENING, CLOSING = "([{", ")]}"
GREEK = "α-ωΑ-ΟΡΤ-Ωℓϑϕ"  # Π and Σ are operators
TOKEN = re.compile(
    r"(?P<space>\s+)"
    r"|(?P<number>\d+(?:\.\d+)?(?:e[-−]?\d+)?…?|\.\d+|[½¼¾])"
    rf"|(?P<letters>(?:[A-Za-z{GREEK}À-ɏḀ-ỿ][\u0302-\u0307]?)+)"
    r"|(?P<script>[_^])"
    rf"|(?P<raised>[{''.join(RAISED)}]+)"
    rf"|(?P<lowered>[{''.join(LOWERED)}]+)"
    r"|(?P<prime>['′]+)"
    r"|(?P<other>.)"
)
SPACED = frozenset("=+−-<>≤≥←→∝∈·×~,;:/∘≈±≠∀")
"""Operators that bring their own space, or want none."""


def mathml(text: str, display: bool = False) -> str:
    """The formula as a ``<math>`` element."""
    block = ' display="block"' if display else ""
    return f"<math{block}><mrow>{''.join(_Reader(text).row())}</mrow></math>"


def aligned(lines: list[str]) -> str:
    """Formulas below each other, at their first relation if every one has one."""
    halves = [re.split(r"\s+(?=[=←]\s)", line, maxsplit=1) for line in lines]
    if len(lines) == 1 or any(len(half) == 1 for half in halves):
        return "".join(mathml(line, display=True) for line in lines)
    cell = "<mtd style='text-align: {}'>{}</mtd>"
    rows = (
        cell.format("right", "".join(_Reader(left).row()))
        + cell.format("left", "".join(_Reader(right).row()))
        for left, right in halves
    )
    table = "".join(f"<mtr>{row}</mtr>" for row in rows)
    return f'<math display="block"><mtable>{table}</mtable></math>'


class _Reader:
    """Reads the notation, one token at a time."""

    def __init__(self, text: str) -> None:
        text = unicodedata.normalize("NFC", text)
        self.tokens = [(m.lastgroup or "", m.group()) for m in TOKEN.finditer(text)]
        self.at = 0

    def row(self) -> Iterator[str]:
        while self.at < len(self.tokens):
            yield self._scripted()

    def _next(self) -> tuple[str, str]:
        token = self.tokens[self.at]
        self.at += 1
        return token

    def _peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("", "")

    def _scripted(self) -> str:
        """One atom with what hangs on it."""
        kind, text = self._next()
        if kind == "space":
            return self._space(len(text))
        if kind == "letters":
            *before, base = _letters(text)
        else:
            before, base = [], _atom(kind, text)
        low, high = self._scripts()
        return "".join(before) + _with_scripts(base, low, high)

    def _space(self, wide: int) -> str:
        """Several spaces set formulas apart; one stands between factors, and more so words."""
        if wide > 1:
            return '<mspace width="1.5em"/>'
        (_, before), (_, after) = self.tokens[self.at - 2], self._peek()
        if before in SPACED - {","} or after in SPACED:
            return ""
        words = any(len(text) > 2 and text.isalpha() for text in (before, after))
        return f'<mspace width="{0.3 if words or before == "," else 0.17}em"/>'

    def _scripts(self) -> tuple[str, str]:
        low = high = ""
        while True:
            kind, text = self._peek()
            if kind == "raised":
                self._next()
                high += _plain(RAISED[c] for c in text)
            elif kind == "lowered":
                self._next()
                low += _plain(LOWERED[c] for c in text)
            elif kind == "prime":
                self._next()
                high += f"<mo>{'′' * len(text)}</mo>"
            elif kind == "script" and self.at + 1 < len(self.tokens):
                self._next()
                inner = self._argument()
                low, high = (low + inner, high) if text == "_" else (low, high + inner)
            else:
                return low, high

    def _argument(self) -> str:
        """What stands after ``_`` or ``^``: a word, a number, or what brackets hold."""
        kind, text = self._next()
        if text in OPENING:
            inner, depth = [], 1
            while self.at < len(self.tokens):
                if self._peek()[1] in OPENING:
                    depth += 1
                elif self._peek()[1] in CLOSING:
                    depth -= 1
                    if depth == 0:
                        self._next()
                        break
                inner.append(self._scripted())
            return "".join(inner)
        if text in "−-":
            return _atom(kind, text) + self._argument()
        if kind == "letters":
            return "".join(_letters(text, script=True))
        return _atom(kind, text)


def _letters(text: str, script: bool = False) -> list[str]:
    """A word if it is one, else a product of variables."""
    plain = text.isascii() and len(text) > 1
    if text in FUNCTIONS:
        return [f"<mi>{text}</mi>"]
    if plain and (len(text) > 2 or (text.islower() and not script)):
        return [f"<mtext>{escape(text)}</mtext>"]
    return [_variable(part) for part in re.findall(r".[\u0302-\u0307]?", text)]


def _variable(text: str) -> str:
    base, *marks = unicodedata.normalize("NFD", text)
    inner = f"<mi>{base}</mi>"
    for mark in marks:
        accent = ACCENTS.get(mark)
        if accent is None:
            return f"<mi>{text}</mi>"
        inner = f'<mover accent="true">{inner}<mo>{accent}</mo></mover>'
    return inner


def _atom(kind: str, text: str) -> str:
    if kind == "number":
        return f"<mn>{text}</mn>"
    if kind == "raised":
        return _plain(RAISED[c] for c in text)
    if kind == "lowered":
        return _plain(LOWERED[c] for c in text)
    if text in "ΣΠ":
        return f'<mo largeop="false">{"∑" if text == "Σ" else "∏"}</mo>'
    if text == "-":
        text = "−"
    stretchy = ' stretchy="false"' if text in "()[]{}|‖√" else ""
    return f"<mo{stretchy}>{escape(text)}</mo>"


def _plain(characters: Iterator[str]) -> str:
    return "".join(
        f"<mn>{c}</mn>" if c.isdigit() else f"<mi>{c}</mi>" if c.isalpha() else f"<mo>{c}</mo>"
        for c in characters
    )


def _with_scripts(base: str, low: str, high: str) -> str:
    if low and high:
        return f"<msubsup>{base}<mrow>{low}</mrow><mrow>{high}</mrow></msubsup>"
    if low:
        return f"<msub>{base}<mrow>{low}</mrow></msub>"
    if high:
        return f"<msup>{base}<mrow>{high}</mrow></msup>"
    return base


# In the pages ---------------------------------------------------------------------------------


def _role(
    name: str, rawtext: str, text: str, lineno: int, inliner: Any, *_: Any, **__: Any
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    return [nodes.raw("", mathml(text), format="html")], []


class _Block(Directive):
    has_content = True

    def run(self) -> list[nodes.Node]:
        lines = [line.strip() for line in self.content if line.strip()]
        return [nodes.raw("", f'<div class="formula">{aligned(lines)}</div>', format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_role("formula", _role)
    app.add_directive("formula", _Block)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
