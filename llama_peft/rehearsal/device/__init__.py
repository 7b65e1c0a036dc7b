"""A GPU that is not there: what the code asks of it, which kernels it has, what they take."""
