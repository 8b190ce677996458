"""Draw the README's picture, that of the verdict, from a finished comparison: that of the demo.

make demo
python docs/figures/make.py evenhand-demo
"""

import sys
from pathlib import Path

from evenhand import data
from evenhand.app import figures, intervals
from evenhand.app.findings import Findings
from evenhand.comparison.compare import finished

comparison = finished(Path(sys.argv[1]))
findings = Findings.of(comparison, data.problem(comparison.settings.source))
with figures.style():
    figure = intervals.differences(findings)
    if figure is None:
        sys.exit("nothing was compared with single-task")
    figures.save(figure, Path(__file__).parent / "verdict.png")
