"""Ways in which a command ends without a fault of this project: a user's mistake, a signal, a death."""

import signal


class UserError(Exception):
    """A user's mistake: what is wrong, where, and what to do. It is shown without a traceback.

    Each argument is a line. So a line feed inside an argument came from data.
    """

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.args))


class Died(Exception):
    """A process of a job has died, and which one and how is said in one line. The exit code is 1.

    It is not a UserError: what goes on without the work of a mistake does not go on after this.
    """


class Stopped(BaseException):
    """A signal ended the work. What is finished is on disk, and the same command resumes the rest.

    It is not an Exception, because libraries catch those as faults. It is not a KeyboardInterrupt,
    because typer answers that one itself.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(f"signal {signal_number}")
        self.signal_number = signal_number


def stop_signals() -> list[int]:
    """Return the signals that stop a command: Ctrl-C, SIGTERM, and SIGHUP of a terminal that is closed.

    Under nohup a process is started so that it goes on without its terminal.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows has no SIGHUP
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ignored = [one for one in numbers[2:] if signal.getsignal(one) is signal.SIG_IGN]
    return [one for one in numbers if one not in ignored]
