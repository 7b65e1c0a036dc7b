"""Why a disk refused a write, and how much room it has."""

import errno
import os
import re
import shutil
from pathlib import Path

_OF_TORCH = ("PytorchStreamWriter failed", "unexpected pos", "iostream error")
"""What torch.save says if its file takes no more; which words depends on how much was written."""
_TROUBLES = {
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE,
    errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip


def disk_trouble(error: BaseException) -> str | None:
    """Why a disk refused to read or write; None for an error of another kind.

    Python's own errors carry a number; the libraries that write tensors and tokenizers keep it in
    their text.
    """
    if isinstance(error, OSError) and error.errno in _TROUBLES:
        return f"{error.strerror}{f' ({error.filename})' if error.filename else ''}"
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found and int(found.group(1)) in _TROUBLES:
        return os.strerror(int(found.group(1)))
    if any(words in str(error) for words in _OF_TORCH):
        return "a file could not be written completely"
    return None


def free_disk(folder: Path) -> int:
    """Free bytes on the disk that holds a folder, which need not exist yet."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(existing).free
