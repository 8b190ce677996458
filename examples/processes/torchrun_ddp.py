"""Two tasks on several processes, with a checkpoint that a requeued job goes on from.

    torchrun --nproc-per-node 2 examples/processes/torchrun_ddp.py
    torchrun --nproc-per-node 2 examples/processes/torchrun_ddp.py --shard

With --shard every process keeps a part of the parameters only (`fully_shard`), and the checkpoint
is a folder to which every process writes its part. Each process draws its part of every batch. The
weights are those of the whole batch, and all processes find the same. On SIGTERM, which a scheduler
sends before it takes a machine away, the step is finished, everything is saved, and the job ends;
started again, it goes on: on as many processes to the same bits, on another number to rounding.
"""

import argparse
import gc
import io
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as sharded_checkpoint
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss
from torch.nn.parallel import DistributedDataParallel

from evenhand import Balancer, GradNorm, MultiTaskNetwork, UPGrad

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--shard", action="store_true")
parser.add_argument("--checkpoint", type=Path)
parser.add_argument("--terminate-at", type=int, help="act as a scheduler: SIGTERM in this step")
options = parser.parse_args()

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()


def train() -> None:
    """Train, from the checkpoint on if there is one."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
    network = MultiTaskNetwork(trunk, {"price": nn.Linear(8, 1), "sold": nn.Linear(8, 1)})
    balancer = Balancer(
        weighting=GradNorm(),
        aggregator=UPGrad(at="representation"),
        tasks=["price", "sold"],
        model=network,
    )
    wrapped = fully_shard(network) if options.shard else DistributedDataParallel(network)
    optimizer = torch.optim.Adam([*network.parameters(), *balancer.parameters()], lr=1e-2)
    parts = {"network": network, "balancer": balancer, "optimizer": optimizer}

    def part_of_batch(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's samples; the last process may have fewer."""
        chance = torch.Generator().manual_seed(step)
        x = torch.randn(30, 8, generator=chance)
        y = x[:, :2] @ torch.tensor([[1.0, -1.0], [0.5, 2.0]])
        each = 2 * math.ceil(len(x) / world / 2)
        mine = slice(each * rank, each * (rank + 1))
        return x[mine], {"price": y[mine, :1], "sold": (y[mine, 1:] > 0).float()}

    def states(step: int) -> dict[str, Any]:
        return {"step": step, **{name: part.state_dict() for name, part in parts.items()}}

    def save(step: int) -> None:
        if options.shard:
            # What every process has whole, and whose size may change, goes in as bytes.
            whole = io.BytesIO()
            torch.save(balancer.state_dict(), whole)
            found = {**states(step), "balancer": whole.getvalue()}
            sharded_checkpoint.save(found, checkpoint_id=options.checkpoint)
        elif rank == 0:
            torch.save(states(step), options.checkpoint)

    def load() -> dict[str, Any]:
        if not options.shard:
            return torch.load(options.checkpoint, weights_only=True)
        # A sharded checkpoint is read into what is there: a step without a gradient, which moves
        # nothing, gives the optimizer its state.
        for parameter in (*network.parameters(), *balancer.parameters()):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        found = {**states(0), "balancer": b""}
        sharded_checkpoint.load(found, checkpoint_id=options.checkpoint)
        found["balancer"] = torch.load(io.BytesIO(found["balancer"]), weights_only=True)
        return found

    told_to_stop = torch.zeros(1)
    signal.signal(signal.SIGTERM, lambda *_: told_to_stop.fill_(1))
    first = 0
    if options.checkpoint is not None and options.checkpoint.exists():
        saved = load()
        first = saved["step"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])

    for step in range(first, options.steps):
        x, y = part_of_batch(step)
        outputs = wrapped(x)
        losses = {
            "price": mse_loss(outputs["price"], y["price"]),
            "sold": binary_cross_entropy_with_logits(outputs["sold"], y["sold"]),
        }
        optimizer.zero_grad()
        counts = dict.fromkeys(losses, len(x))
        balancer.loss(losses, features=network.trunk, counts=counts).backward()
        optimizer.step()
        if rank == 0:
            weights = ", ".join(f"{w:.4f}" for w in balancer.last.weights)
            print(f"step {step}: losses {balancer.last.losses.tolist()}, weights {weights}")
        if step == options.terminate_at and rank == world - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        stop = told_to_stop.clone()
        dist.all_reduce(stop)  # one process was told, all stop after the same step
        if stop and options.checkpoint is not None:
            save(step + 1)
            break

    parts = (p.to_local() if options.shard else p for p in network.parameters())
    total = sum(p.detach().double().abs().sum() for p in parts)
    if options.shard:
        dist.all_reduce(total)
    if rank == 0:
        print("parameters", float(total).hex())


train()
gc.collect()  # nothing may hold the process group any longer, or it outlives the interpreter
dist.barrier()  # nobody leaves while another is still talking
dist.destroy_process_group()
if options.shard:
    # torch never lets go of the group of a mesh. A thread of it that still holds a tensor when the
    # interpreter ends may abort the process ("terminate called without an active exception").
    sys.stdout.flush()
    os._exit(0)
