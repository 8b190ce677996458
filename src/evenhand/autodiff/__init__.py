"""Per-task gradients: the validated call, the passes of autograd, whose a parameter is."""
