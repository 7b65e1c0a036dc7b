"""A page and a JSON endpoint on this machine, to try a run beside its untouched base."""
