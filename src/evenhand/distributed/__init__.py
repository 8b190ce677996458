"""Several processes that train one model, each on a part of every batch.

`ranks` has the collectives, `agreement` what a step begins with (the header), `reducing` what the
passes agree by, `settings` what methods are set to, `wrappers` what a model is wrapped in, and
`parallel` what a balancer keeps of all this.
"""
