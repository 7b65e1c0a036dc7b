"""Everything that happens to a run on somebody's one machine, done to it on purpose and counted.

    make faults                        all of it: hundreds of faults, in some minutes
    python -m tests.faults --only storage

Each fault is inflicted on real processes, forked so that the libraries load once, that run the real commands. Its verdict is
`right`: refused in one line with exit code 2, or undone by running the same command again, with the same bits as a run that
nothing disturbed; or `lost`: finished work is gone; `wrong`: numbers differ and nobody said so; `traceback`: the user is shown our
insides.
"""
