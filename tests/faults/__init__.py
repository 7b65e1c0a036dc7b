"""Faults that happen to a run on a user's machine, inflicted on purpose and counted.

    make faults                        all of it: hundreds of faults, in some minutes
    python -m tests.faults --only storage

Each fault is inflicted on a real command in a forked process, so that the libraries load once. The
verdicts are `right`: the fault is refused in one line with exit code 2, or the same command, given
again, ends with the bits of an undisturbed run; `lost`: finished work is gone; `wrong`: numbers
differ without a message; `traceback`: the user sees a traceback.
"""
