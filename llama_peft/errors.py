"""What ends a command without being a fault of ours: a user's mistake, and a signal."""


class UserError(Exception):
    """A user's mistake: what, where, what to do. Shown as it is, without a traceback."""


class Stopped(BaseException):
    """A signal ended the work; what is finished is on disk, and the same command continues.

    No Exception, which libraries would take for a fault, and no KeyboardInterrupt, which typer would answer itself.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number
