"""What a secret looks like: tokens and keys of known services, passwords in URLs, and the values of
the user's own secrets.

The search before a push and everything that is printed use this one list.
"""

import os
import re
import sys
from collections.abc import Iterator, Sequence

# Each pattern begins with fixed letters: others take minutes on weights.
_PATTERNS = {
    "a Hugging Face token": (rb"hf_[A-Za-z0-9]{20}", rb"api_org_[A-Za-z0-9]{20}"),
    "a GitHub token": (rb"gh[pousr]_[A-Za-z0-9]{30}", rb"github_pat_\w{30}"),
    "an OpenAI or Anthropic key": (rb"sk-(?:proj-|ant-)?[A-Za-z0-9_-]{24}",),
    "an AWS key": (rb"AKIA[A-Z0-9]{16}(?![A-Za-z0-9])", rb"ASIA[A-Z0-9]{16}(?![A-Za-z0-9])"),
    "a Google key": (rb"AIza[A-Za-z0-9_-]{35}",),
    "a Slack token": (rb"xox[abprs]-[A-Za-z0-9-]{10}",),
    "a private key": (rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",),
}
_BEFORE = re.compile(
    rb"(?:^|[^A-Za-z0-9]|\\[nrtbfv]|\\x[0-9a-fA-F]{2}|\\u[0-9a-fA-F]{4}|\\U[0-9a-fA-F]{8}|%[0-9a-fA-F]{2}"
    rb"|(?:\x1b|\\[xX]1[bB]|\\u001[bB]|\\033|\\e)\[[0-9;:?]*[A-Za-z])\Z"
)
"""What may stand before a token: anything but a letter or a digit, unless it ends an escape
sequence of JSON, Python, a URL or a terminal.
"""
_LONGEST_BEFORE = 64
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSWORD|API_?KEY")
_SHORTEST = 12
"""Shorter values of environment variables are not searched for: they would be found everywhere."""
_MASK = "***"
_IN_A_URL = re.compile(
    r"(?i)((?:(?<=://)|(?<=https:/)|(?<=http:/))[^\s/?#\"]+(?=@)|[^\s/?#\"'=:]+:[^\s/?#\"]+(?=@(?:huggingface\.co|hf\.co|git))"
    r"|(?<=[?&])((?:access_|auth_|api_?)?(?:token|key|secret|password|signature|sig)=)[^\s&#\"]+)"
)
"""A user's name and password before the host, or a key among the words after the question mark."""
_ADDRESS = re.compile(
    r"(?i)\s*([a-z][a-z0-9+.-]+://|([^/\s]+@)?(www\.[^/\s]+|huggingface\.co|hf\.co)([/:]|$))"
)


def own_values() -> Iterator[str]:
    """The values of the user's own secrets: the Hub token, and environment variables named as a
    token, key or password.
    """
    if hub := sys.modules.get("huggingface_hub"):  # who uses the Hub has imported it
        token = hub.get_token()
        if token:
            yield token
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name.upper()) and len(value) >= _SHORTEST:
            yield value


def is_web_address(name: str) -> bool:
    """Whether a name is a web address. It may hold a password, so nothing is named by one."""
    return _ADDRESS.match(name) is not None


def kind_of_secret(raw: bytes, values: Sequence[bytes]) -> str | None:
    """The kind of the first secret in some bytes; None if there is none.

    values: the user's own secrets.
    """
    for text in _decoded(raw):
        if any(value in text for value in values):
            return "the value of one of your secrets"
        for name, patterns in _PATTERNS.items():
            if any(next(_tokens(text, pattern), None) for pattern in patterns):
                return name
    return None


def masked(text: str) -> str:
    """The text with `***` in place of every secret."""
    for value in own_values():
        text = text.replace(value, _MASK)
    text = _IN_A_URL.sub(lambda found: (found[2] or "") + _MASK, text)
    raw = text.encode("utf-8", "surrogatepass")
    pieces = [found for each in _PATTERNS.values() for one in each for found in _tokens(raw, one)]
    if not pieces:
        return text
    for start, end in sorted(pieces, reverse=True):
        raw = raw[:start] + _MASK.encode() + raw[end:]
    return raw.decode("utf-8", "surrogatepass")


def _tokens(text: bytes, pattern: bytes) -> Iterator[tuple[int, int]]:
    """Where the tokens of a pattern stand in a text, if not inside a longer word. The bounds include
    the letters and digits that follow.
    """
    compiled, start = re.compile(pattern), 0
    while found := compiled.search(text, start):
        start = found.start()
        if _BEFORE.search(text[max(0, start - _LONGEST_BEFORE) : start]):
            rest = re.compile(rb"[A-Za-z0-9_-]*").match(text, found.end())
            end = rest.end() if rest else found.end()
            yield start, end
            start = end
        else:
            start += 1


def _decoded(raw: bytes) -> Iterator[bytes]:
    """The bytes as they are and, if zeros are among them, decoded from UTF-16, in which Windows
    shells write logs.
    """
    yield raw
    if b"\0" in raw:
        for order in ("utf-16-le", "utf-16-be"):
            yield raw.decode(order, "ignore").encode("utf-8", "ignore")
