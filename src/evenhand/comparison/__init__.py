"""Compare recipes: the same seeds, the same splits, the same grid of rates; validation chooses.

Methods have different natural step sizes (the min-norm point is shorter than the sum), so one
rate for all would be no comparison. Every recipe is trained at every rate with every seed; the
rate is chosen by the mean over seeds of the monitored validation quantity, and only then is the
test set read. A recipe that composes several networks is joined the same way: among networks for
the same tasks the better one by validation stands, networks for different tasks complete each
other.
"""
