"""Bytes of a file become text, or one line says where they do not and which encoding fits."""

import codecs
import io

from llama_peft.errors import UserError

_MARKED = {
    "utf-8": (codecs.BOM_UTF8, "utf-8-sig"),
    "utf-16-le": (codecs.BOM_UTF16_LE, "utf-16"),
    "utf-16-be": (codecs.BOM_UTF16_BE, "utf-16"),
}
"""The mark that programs write before the text, and the codec that removes it."""
_CHUNK = 1 << 20
_ASCII = bytes(range(0x80))
_RARE = set(range(0x80, 0xA0))
"""Bytes that are letters and quotes in cp1252, and control characters in latin-1."""


def as_text(
    path: str, file: io.BufferedReader, encoding: str, newline: str | None
) -> io.TextIOWrapper:
    """Return the text of a file. Reading it raises UnicodeError, as `not_text` explains.

    newline: as in `open`.
    """
    name = codecs.lookup(encoding).name
    start = file.peek(4)
    mark, without = _MARKED.get(name, (b"", name))
    if name == "utf-8" and b"\0" in start[:4] and (found := _two_bytes(start)):
        raise UserError(f"{path}: is not UTF-8 text: set dataset.encoding: {found}")
    chosen = without if start.startswith(mark) else name
    return io.TextIOWrapper(file, encoding=chosen, newline=newline)


def not_text(path: str, file: io.BufferedReader, encoding: str) -> UserError:
    """Return what is wrong with a file that is not text in this encoding: its first such line."""
    start = file.peek(4)[:4]
    decoder = codecs.getincrementaldecoder(encoding)()
    line, found, high = 1, "", set[int]()
    while not found:
        chunk = file.read(_CHUNK)
        try:
            line += decoder.decode(chunk, final=not chunk).count("\n")
        except UnicodeDecodeError as error:
            line += error.object[: error.start].count(b"\n")
            found, chunk = f"byte {error.object[error.start]:#04x}", error.object
        except UnicodeError as error:
            found = str(error)
        if not chunk and not found:
            return UserError(f"{path}: the file changed while it was read")
    while chunk:
        high |= set(chunk.translate(None, _ASCII))
        chunk = file.read(_CHUNK)
    is_utf8 = codecs.lookup(encoding).name == "utf-8"
    name = "UTF-8" if is_utf8 else encoding
    return UserError(
        f"{path}: line {line}: is not {name} text ({found}): {_advice(start, high, is_utf8)}"
    )


def _advice(start: bytes, high: set[int], is_utf8: bool) -> str:
    if found := _two_bytes(start):
        return f"set dataset.encoding: {found}"
    if not is_utf8:
        return "set dataset.encoding to the encoding of the file, or remove it for UTF-8"
    fits = "latin-1" if not high & _RARE else "cp1252"
    try:
        bytes(high).decode(fits)
    except UnicodeDecodeError:
        return "save the file as UTF-8, or set dataset.encoding to the encoding that it has"
    return (
        "save the file as UTF-8, or set dataset.encoding to the encoding that it has "
        f"({fits} fits if the language is Western European)"
    )


def _two_bytes(start: bytes) -> str:
    """Return the encoding of text with two bytes a letter, by its first bytes; "" for other text."""
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if start[1:2] == b"\0" != start[:1]:
        return "utf-16-le"
    return "utf-16-be" if start[:1] == b"\0" != start[1:2] else ""
