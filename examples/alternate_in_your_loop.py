"""Alternate training in a loop of your own: `frozen` makes a phase cost only what it moves.

In an own phase no graph is built for the trunk; in a shared phase no gradient of a head's weights
is taken; what rests does not move, not even by AdamW's decay or BatchNorm's statistics.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from evenhand import Balancer, Clock, MultiTaskNetwork, alternate_epochs, frozen

torch.manual_seed(0)
trunk = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU())
network = MultiTaskNetwork(trunk, {"kind": nn.Linear(32, 3), "size": nn.Linear(32, 1)})
shared = torch.optim.AdamW(network.trunk.parameters(), lr=1e-2)
own = torch.optim.AdamW(network.heads.parameters(), lr=3e-2)  # two learning rates
balancer = Balancer(model=network)
schedule = alternate_epochs(shared=2, own=2)

x = torch.randn(512, 8)
kind, size = x[:, :3].argmax(dim=1), x.square().mean(dim=1, keepdim=True)

for epoch in range(12):
    (phase,) = schedule(Clock(epoch=epoch), network.tasks)
    for rows in torch.randperm(512).split(64):
        with frozen(network, phase):
            y = network(x[rows])
        losses = {
            "kind": cross_entropy(y["kind"], kind[rows]),
            "size": mse_loss(y["size"], size[rows]),
        }
        balance = balancer.backward(losses, features=y.features, phase=phase)
        for optimizer in (shared, own):
            optimizer.step()
            optimizer.zero_grad()
    print(epoch, *phase.trains, dict(zip(balance.tasks, balance.losses.tolist(), strict=True)))
