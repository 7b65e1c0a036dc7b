"""Whether this machine can do it: what blocks a run, and what fits."""
