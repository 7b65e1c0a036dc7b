"""States of the frozen base, computed once and kept on disk, beside the runs that read them.

A head alone reads one state of each text. Blocks that are trained above frozen ones read a state of
each token.
"""
