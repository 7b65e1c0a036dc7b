"""A training in several processes: it takes the steps of one, and is started, ended and resumed as one."""
