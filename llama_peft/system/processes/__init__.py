"""A job of several processes: what each knows of the others, and how this machine starts one."""
