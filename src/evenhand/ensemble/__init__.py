"""Many seeds and rates of a small network, trained as one."""
