"""What a command must leave alone: a hook in the command's process notes every foreign program,
every write beyond the folders of the case, and every look into the folder that is guarded.
"""

import os
import resource
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_peft.system.files import sha256

MEMORY = 6_000_000_000
"""What a command may take beyond what its process holds at the start, so that a case that reads
without end cannot harm this machine.
"""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn")
_OURS = ("git",)
"""Programs that a command may ask: results name the commit of the code."""
_CHANGES = (
    "os.remove", "os.rmdir", "os.rename", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.chown", "os.utime",
)  # fmt: skip
_DEVICES = (Path("/dev"), Path("/proc"))
_CHARTS = tuple(
    Path(os.environ.get(key) or Path.home() / folder) / "matplotlib"
    for key, folder in (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache"))
)
"""What matplotlib makes for its settings and its list of fonts when it is loaded."""
_SPOOLED = ("llama_peft.data.examples", "llama_peft.tokens.prompts", "llama_peft.prefix_tree")
"""Rows that the process itself has put into a file without a name."""
_PICKLED = (
    *("torch", "numpy", "collections", "transformers", "accelerate", "_codecs", "datasets"),
    *_SPOOLED,
)


@dataclass
class Guard:
    """In a child: notes in `log` what the command must not do.

    own: the folders that it may write to. kept: the folder that it may not even read.
    """

    log: Path
    own: tuple[Path, ...]
    kept: Path
    programs: tuple[str, ...] = _OURS

    def __call__(self) -> None:
        os.setsid()  # so that its children can be ended with it
        with open("/proc/self/statm", encoding="ascii") as file:
            held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
        self.descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            self._opened(*args)
        elif event in _CHANGES:
            self._changed(event, args)
        elif event in _PROGRAMS:
            if Path(str(args[0])).name not in self.programs:
                self._note(f"started a program: {args[0]!r} {args[1:2]!r}")
        elif event == "pickle.find_class" and not str(args[0]).startswith(_PICKLED):
            self._note(f"unpickled {args[0]}.{args[1]}")
        elif event == "ctypes.dlopen" and self._foreign(args[0]):
            self._note(f"loaded the library {args[0]}")
        elif event == "exec" and self._foreign(args[0].co_filename):
            self._note(f"executed {args[0].co_filename}")
        elif event == "socket.connect" and isinstance(args[1], tuple):
            self._connected(str(args[1][0]))

    def _connected(self, host: str) -> None:
        if host not in ("127.0.0.1", "localhost", "::1"):
            self._note(f"connected to {host}")

    def _opened(self, path: object, mode: str | None, flags: int) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        real = Path(os.path.realpath(os.fsdecode(path)))
        writes = flags & _WRITES or any(letter in (mode or "") for letter in "wax+")
        if writes and not self._may_write(real):
            self._note(f"wrote {real}")
        elif real.is_relative_to(self.kept):
            self._note(f"read {real}")

    def _changed(self, event: str, args: tuple[Any, ...]) -> None:
        count = 2 if event in ("os.rename", "os.link") else 1
        names = args[1:2] if event == "os.symlink" else args[:count]
        numbers = [arg for arg in args if isinstance(arg, int) and arg >= 0]
        for name in names:
            if not isinstance(name, str | bytes | os.PathLike):
                continue
            path = Path(os.fsdecode(name))
            if not path.is_absolute() and numbers and event in ("os.remove", "os.rmdir"):
                path = Path(os.path.realpath(f"/proc/self/fd/{numbers[-1]}")) / path
            real = Path(os.path.realpath(path.parent)) / path.name  # a link itself may be removed
            if not self._may_write(real):
                self._note(f"{event} {real}")

    def _may_write(self, real: Path) -> bool:
        if real.is_relative_to(self.kept):
            return False
        return any(real.is_relative_to(folder) for folder in (*self.own, *_DEVICES, *_CHARTS))

    def _foreign(self, name: object) -> bool:
        return isinstance(name, str) and any(
            Path(os.path.realpath(name)).is_relative_to(folder) for folder in self.own
        )

    def _note(self, text: str) -> None:
        os.write(self.descriptor, text.encode("utf-8", "backslashreplace") + b"\n")


Seal = dict[str, tuple[object, ...]]


def seal_of(*places: Path) -> Seal:
    """What a guarded place is: kind, size, time and sum of everything in it; links by their text."""
    found: Seal = {}
    for place in places:
        inside = place.rglob("*") if place.is_dir() and not place.is_symlink() else ()
        for path in (place, *inside):
            try:
                found[str(path)] = _facts(path)
            except FileNotFoundError:
                found[str(path)] = ("absent",)
    return found


def _facts(path: Path) -> tuple[object, ...]:
    facts = path.lstat()
    kind = stat.S_IFMT(facts.st_mode)
    if stat.S_ISLNK(facts.st_mode):
        return kind, os.readlink(path)
    if stat.S_ISREG(facts.st_mode):
        return kind, facts.st_mode, facts.st_size, facts.st_mtime_ns, sha256(path)
    return (kind,)  # a folder's own time changes with a lock that comes and goes


def changes(before: Seal, after: Seal) -> list[str]:
    """The paths that were changed, removed or added."""
    return sorted(
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    )
