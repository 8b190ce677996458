"""Draw the README's picture from a finished comparison.

evenhand compare digits --recipes single-task,sg,mgda,mgda-ub,central,gradnorm,ate-sg --out DIR
python docs/figures/make.py DIR
"""

import sys
from pathlib import Path

from evenhand import data
from evenhand.app import figures
from evenhand.app.findings import Findings
from evenhand.comparison.compare import finished

comparison = finished(Path(sys.argv[1]))
findings = Findings.of(comparison, data.problem(comparison.settings.source))
with figures.style():
    figure = figures.trade_offs(findings)
    if figure is None:
        sys.exit("one task has no trade-off to draw")
    figures.save(figure, Path(__file__).parent / f"{comparison.settings.source}.png")
