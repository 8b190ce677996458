# The names of `evenhand.public`, as a type checker can follow them: it sees no lazy loading.
from evenhand.aggregation import *  # noqa: F403
from evenhand.estimators import MultiTaskClassifier as MultiTaskClassifier
from evenhand.estimators import MultiTaskEstimator as MultiTaskEstimator
from evenhand.estimators import MultiTaskRegressor as MultiTaskRegressor
from evenhand.public import *  # noqa: F403
from evenhand.weighting import *  # noqa: F403

__version__: str
