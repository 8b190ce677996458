"""The training loop and what it needs: optimizers, stopping, records, checkpoints."""
