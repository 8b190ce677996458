"""What the documentation shows runs as shown, and what makes its pages reads what it should."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from evenhand import MGDA

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MADE = {"methods", "api", "papers", "_build"}
PAGES = [
    page
    for page in sorted(DOCS.rglob("*.md"))
    if not MADE & set(page.relative_to(DOCS).parts) and "\n```python\n" in page.read_text()
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_the_code_of_a_page_runs_from_top_to_bottom(page) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    names = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


@pytest.fixture
def extension(monkeypatch):
    """Imports one of the modules that make the pages."""
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(str(DOCS / "extensions"))
    return importlib.import_module


# Formulas -------------------------------------------------------------------------------------


def _shape(mathml: str) -> str:
    """MathML in short: what is written, with its scripts and accents; words stay together."""
    text = re.sub(r"<mspace[^>]*>", "", mathml)
    text = re.sub(r"<mover[^>]*>(.*?)</mover>", r"over[\1]", text)
    for tag, name in (("msubsup", "both"), ("msub", "sub"), ("msup", "sup")):
        text = text.replace(f"<{tag}>", f"{name}[").replace(f"</{tag}>", "]")
    text = re.sub(r"<mtext>(.*?)</mtext>", r"'\1'", text)
    return re.sub(r"<[^>]*>", " ", text).replace(" ", "")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("w_i", "sub[wi]"),
        ("φ_ij", "sub[φij]"),
        ("w_i^b", "both[wib]"),
        ("‖g_i‖²", "‖sub[gi]sup[‖2]"),
        ("E_i⁰", "both[Ei0]"),
        ("(Π L_i)^(1/m)", "(∏sub[Li]sup[)1/m]"),
        ("w^(−1/α)", "sup[w−1/α]"),
        ("J₁ J₂ᵀ", "sub[J1]both[J2T]"),
        ("ḡ_i", "sub[over[g¯]i]"),
        ("φ̂_ij²", "both[over[φ^]ij2]"),
        ("λ'_i", "both[λi′]"),
        ("Gw = 1/w", "Gw=1/w"),
        ("argmin x over the simplex", "argminx'over''the''simplex'"),
        ("a < b", "a&lt;b"),
    ],
)
def test_a_formula_is_read_as_it_is_meant(extension, written, read) -> None:
    assert _shape(extension("formula").mathml(written)) == read


@pytest.mark.parametrize(
    ("prose", "formulas"),
    [
        ("w = argmin ‖Σ w_i g_i‖² over the simplex.", ["w = argmin ‖Σ w_i g_i‖²"]),
        ("pulls with c_i up to 1, others down to 1 − α.", ["c_i", "1 − α"]),
        ("a task (r_i > 1) is given more", ["r_i > 1"]),
        ("with n_i = ‖g_i − v‖, v_n = Σ w_i g_i", ["n_i = ‖g_i − v‖", "v_n = Σ w_i g_i"]),
        ("call `g_i` and ``max_norm`` what you like", []),
        ("Nothing to see here, in 2 of 3 cases - or so.", []),
    ],
)
def test_formulas_in_prose_are_found(extension, prose, formulas) -> None:
    text = extension("docstrings").prose(prose, link=lambda code: f"`{code}`")
    assert re.findall(r"\{formula\}`([^`]*)`", text) == formulas
    plain = re.sub(r"\{formula\}`([^`]*)`", r"\1", text).replace("\\", "")
    assert plain == prose.replace("``", "`")  # nothing is lost


# Pages ----------------------------------------------------------------------------------------


def test_every_method_has_a_page_whose_code_runs(extension) -> None:
    pages = extension("method_pages")
    for name, method in pages.METHODS.items():
        page = pages.method_page(name, method)
        for part in ("What it does", "What it costs and promises", "Values to check by hand"):
            assert f"## {part}" in page
        for code in re.findall(r"^```python\n(from evenhand .*?)^```$", page, re.DOTALL | re.M):
            exec(code, {})


def test_the_page_on_choosing_names_whoever_makes_a_promise(extension) -> None:
    pages = extension("method_pages")
    page = (DOCS / "which.md").read_text()
    made = {name: pages.made(m) for name, m in pages.METHODS.items() if pages.call(m)}
    made["CAGrad"] = pages.METHODS["CAGrad"](c=1.0)
    promises = {"No task may get worse": "feasible", "The units of a loss": "scale_invariant"}
    for bullet, promise in promises.items():
        (text,) = re.findall(rf"- \*\*{bullet}.*?(?=\n- |\n\n)", page, re.DOTALL)
        named = set(re.findall(r"\[(\w+)\]\(methods/", text))
        assert named == {name for name, method in made.items() if getattr(method.traits, promise)}


def test_values_of_a_page_are_those_worked_out_by_hand(extension) -> None:
    # At right angles, with norms 2 and 1, the min-norm point has weights 1/5 and 4/5.
    value = extension("values").value({"aggregator": MGDA()}, ((2.0, 0.0), (0.0, 1.0)))
    assert value.weights == pytest.approx([0.2, 0.8])
    assert value.direction == pytest.approx([0.4, 0.8])


def test_a_link_that_leads_nowhere_is_found(extension, tmp_path) -> None:
    (tmp_path / "a.html").write_text('<a id="x" href="b.html#y">1</a><a href="https://e.org">2</a>')
    (tmp_path / "b.html").write_text('<p id="z"><a href="a.html#x">3</a><a href="c.html">4</a>')
    found, count = extension("links").broken(tmp_path)
    assert found == ["a.html: b.html#y", "b.html: c.html"]
    assert count == 4


def test_the_paths_that_are_drawn_are_still_walked(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    walked = importlib.import_module("landscape").walked
    kept = json.loads((ROOT / "benchmarks" / "results" / "landscape.json").read_text())["paths"]
    for name in ("sg", "mgda"):
        assert walked(name, steps=140) == [kept[name][0], kept[name][1], kept[name][2]]
