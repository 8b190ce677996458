"""What stands behind a `Balancer`.

`request` is a call as it was made, and the same when it has been checked. `sources` says where its
gradients come from, `slots` composes the two methods into an update, `deferred` does so inside
somebody else's backward pass, and `balance` is what is told of it.
"""
