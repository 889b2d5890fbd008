"""Secrets in records: by which names and shapes they are known, and texts without them.

A secret is known by the name of its field (`is_secret_name`) or by its shape: keys of well-known
services, JSON Web Tokens, private keys, bearer tokens, passwords in connection URLs, and
`password=...`, `"api_key": "..."`, `Authorization: ...`, `--token ...` inside texts. The name
stays, and so does a prefix that tells the kind of key.

Nearly every text is clean, and a caller waits. So `may_hold_secret` looks only for what C finds
fast, single characters and literal beginnings, and errs on the safe side; what it doubts is read by
`Redactor`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from heapq import merge
from json import JSONDecoder

REDACTED = "[redacted]"
UNREAD = "[redacted: too much in it looks like a secret]"

_KEYS = (
    "access|account|api|auth|deploy|encryption|master|private|service|shared|signing|ssh"
    "|subscription"
)
_TOKENS = "access|api|auth|bearer|refresh|security|session"
# what a model writes or is billed for, and pages of a list
_NO_SECRET_TOKENS = "per|first|last|next|page|eos|bos|pad|unk|sep|mask|stop|start|end|max|min"

_SECRET_NAME = re.compile(
    r"passw(?:or)?d|passphrase|passcode|pwd$|secret(?!ar)|credential|cookie|authorization|jwt"
    r"|^x?auth$|(?:basic|http|proxy)auth$|authheader|bearer$"
    rf"|(?:{_KEYS})key(?!id)|(?:{_TOKENS})tokens$"
    rf"|{''.join(f'(?<!{word})' for word in _NO_SECRET_TOKENS.split('|'))}token$"
)
_ABOUT_A_SECRET = re.compile(
    r"(?:count|length|len|limit|policy|type|url|uri|at|maxage|expir\w*|required|enabled|status|name"
    r"|usage|used|version|arn)s?$"
)
_BETWEEN_WORDS = {ord(character): None for character in "-_. /:$@"}
_LONGEST_NAME = 128


def is_secret_name(name: str) -> bool:
    """Whether a field of this name holds a secret; `apiKey`, `API_KEY` and `x-api-key` are one."""
    squashed = name[:_LONGEST_NAME].lower().translate(_BETWEEN_WORDS)
    return bool(_SECRET_NAME.search(squashed)) and not _ABOUT_A_SECRET.search(squashed)


def _after_any(words: str, last: str) -> str:
    """`last` after one of these words, with or without something between them."""
    found = (f"(?<={word}{last})|(?<={word}[-_. ]{last})" for word in words.split("|"))
    return f"{last}(?:{'|'.join(found)})"


# Of each name that `is_secret_name` knows one of these is a part, in lower case.
_PARTS_OF_NAMES = tuple(
    re.compile(part)
    for part in (
        "cre(?:t|dential)",
        "pass(?:w|phrase|code)",
        "auth(?:oriz|header|(?![a-z]))",
        "cookie",
        "token(?!s|_?[a-z0-9])",
        _after_any(_TOKENS, "tokens"),
        _after_any(_KEYS, "key"),
        "bearer",
        "pwd",
        "jwt",
    )
)


def _word(prefix: str) -> str:
    r"""Asserts that the prefix just read began a word; in JSON as text a word may follow `\n`."""
    return rf"(?:(?<![A-Za-z0-9_-]{prefix})|(?<=\\[nrt]{prefix}))"


def _key_after(last: str, before: str, *prefixes: str) -> re.Pattern[str]:
    """Keys that begin with one of these patterns of fixed width.

    All of them end in `last`, after one of the characters of `before`: what rules most out at once.
    """
    known = "|".join(f"(?<={prefix}){_word(prefix)}" for prefix in prefixes)
    return re.compile(
        rf"{last}(?<=[{before}]{last})(?=[A-Za-z0-9_-]{{10}})(?:{known})[A-Za-z0-9_.-]+"
    )


_BEFORE_DASH = ("sk-", "xai-", "pypi-", "xapp-", "pplx-", "xox[abeprs]-", "glpat-")
_BEFORE_UNDERSCORE = (
    *("hf_", "r8_", "gh[opsur]_", "npm_", "gsk_", "pcsk_", "whsec_", "shpat_", "dop_v1_"),
    *("[rs]k_(?:live|test)_", "lsv2_(?:pt|sk)_", "github_pat_"),
)
# each with a character that is in whatever it finds: where that is absent, nothing is looked for
_SHAPES = (
    ("-", _key_after("-", "abeikprstx", *_BEFORE_DASH), f"-{REDACTED}"),
    ("_", _key_after("_", "cefkmoprstu18", *_BEFORE_UNDERSCORE), f"_{REDACTED}"),
    (".", _key_after(r"\.", "G9", r"SG\.", r"ya29\."), f".{REDACTED}"),
    (
        "A",
        re.compile(
            rf"A(?:[KS]IA{_word('A[KS]IA')}[A-Z0-9]{{16}}|Iza{_word('AIza')}[A-Za-z0-9_-]{{30,}})"
        ),
        REDACTED,
    ),
    (
        "J",
        re.compile(rf"eyJ{_word('eyJ')}[A-Za-z0-9_-]{{8,}}(?:\.[A-Za-z0-9_-]*){{1,4}}"),
        REDACTED,
    ),
    (
        " ",
        re.compile(r"earer (?<=[Bb]earer ) {0,3}(?=[A-Za-z._~+/=-]{0,256}[0-9])[\w.~+/=-]{8,}"),
        f"earer {REDACTED}",
    ),
    (
        "K",
        re.compile(
            r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY[A-Z ]{0,9}-----"
            r"[^-]*(?:-(?!----END)[^-]*)*(?:-----END [A-Z ]{0,60}-----)?"
        ),
        REDACTED,
    ),
)
# A port is no password, and a password may hold a slash that nobody encoded.
_URL_PASSWORD = re.compile(
    r"(:(?:\\{0,8}/){2}[^\s/@:\"'<>]{0,128}:)(?!\d{1,5}(?:[/?#\s]|\Z))"
    r"(?:[^\s\"'<>/]{1,256}|[^\s\"'<>]{1,256}?)@"
)

# not the colon of 12:30 or https://
_COLON = re.compile(r":(?<![0-9]:)(?!//)")
_OPTION = re.compile(r"--[a-z]")
# a letter of a name, as some write JSON
_ESCAPED_LETTER = re.compile(r"\\u00[46]")
# In lower case, one of these is in each text that holds a secret: for a short text the quicker way.
_HINT = re.compile(
    "|".join(
        (
            *(*_BEFORE_DASH, *_BEFORE_UNDERSCORE, r"sg\.", r"ya29\.", "a[ks]ia", "aiza", "eyj"),
            *("earer ", "-----begin", "@", r"\\u00"),
            *("cre[td]", "pass", "auth", "cookie", "token", "key", "bearer", "pwd", "jwt"),
        )
    )
)
_SHORT = 200


def may_hold_secret(text: str) -> bool:
    """Whether `Redactor.text` might change this text. False is certain."""
    if len(text) < _SHORT and not _HINT.search(text.lower()):
        return False
    for character, pattern, _ in _SHAPES:
        if character in text and pattern.search(text):
            return True
    if "@" in text and _URL_PASSWORD.search(text):
        return True
    if not (
        "=" in text
        or (":" in text and _COLON.search(text))
        or ("-" in text and _OPTION.search(text))
    ):
        return False
    low = text.lower()
    return any(part.search(low) for part in _PARTS_OF_NAMES) or bool(_ESCAPED_LETTER.search(text))


_NAME_BEFORE = re.compile(r"[\w.-]{0,40}\Z")
# the word before decides as well: an API key, a token limit
_WORDS_BEFORE = re.compile(r"(?:[\w.-]{1,20} )?[\w.-]{0,40}\Z")
_NAME_AFTER = re.compile(r"[\w.-]{0,40}")
# in JSON as text a name may follow `\n`
_ESCAPED_SPACE = re.compile(r"\\[nrt]")
# from a name to its value: in JSON (escaped or not), Python, YAML, headers, shells
_ASSIGNMENT = re.compile(r"""(?:\\{0,31}["'`])?\]?[ \t]{0,8}(?:=>|:=|={1,3}|:)\s{0,8}""")
_GAP = re.compile(r"[ \t]{1,4}(?!-)")
# what is in quotes ends at the same quotes, or with its line where it was cut
_QUOTED = re.compile(
    r"""[bfru]{0,2}("{3}|'{3}|["'`])(?P<value>(?:(?!\1)[^\\\n]|\\.)*)""", re.IGNORECASE
)
# in JSON inside a text: the same quotes with as many backslashes
_ESCAPED = re.compile(
    r"""[bfru]{0,2}(\\+)(["'])(?:\1\2\1\2)?(?P<value>.*?)(?=(?<!\\)\1\2|\n|\Z)""", re.IGNORECASE
)
_HEADER = re.compile(r"""(?P<value>[^\r\n"'`\\]+)""")
_BARE = re.compile(
    r"""(?P<value>(?:(?:bearer|basic|token)\s{1,3})?[^\s,;&"'`<>(){}\[\]\\|]+)""", re.IGNORECASE
)
_REST_OF_LINE = re.compile(r"(?P<value>[^\n]+)")
_HEADER_NAME = re.compile(r"authorization|cookie", re.IGNORECASE)
_NO_VALUES = {
    "",
    "none",
    "null",
    "nil",
    "true",
    "false",
    "undefined",
    "str",
    "string",
    "bytes",
    "int",
}
# a document that is longer is taken for one that was cut
_LONGEST_DOCUMENT = 65536
_JSON = JSONDecoder()


class TooMuch(Exception):
    """A text in which so much looks like a secret that reading it takes too long."""


class Redactor:
    """Takes secrets out of texts, up to an amount of work; `count` is how many it found."""

    def __init__(self, work: int = 20_000) -> None:
        self.count = 0
        self._work = work

    def text(self, text: str) -> str:
        """The text without its secrets, or none of it when that takes too much work."""
        if not may_hold_secret(text):
            return text
        try:
            for _, pattern, replacement in _SHAPES:
                text = self._replaced(pattern, replacement, text)
            text = self._replaced(_URL_PASSWORD, rf"\1{REDACTED}@", text)
            return self._without_named(text)
        except TooMuch:
            self.count += 1
            return UNREAD

    def _replaced(self, pattern: re.Pattern[str], replacement: str, text: str) -> str:
        text, found = pattern.subn(replacement, text, count=self._work + 1)
        self._spend(found)
        self.count += found
        return text

    def _without_named(self, text: str) -> str:
        kept: list[str] = []
        end = 0
        for start, stop in self._named_values(text):
            if text[start:stop] != REDACTED:
                kept += text[end:start], REDACTED
                end = stop
                self.count += 1
        return "".join([*kept, text[end:]]) if kept else text

    def _named_values(self, text: str) -> Iterator[tuple[int, int]]:
        """Where the values of secret names begin and end."""
        low = text.lower()
        if len(low) != len(text):
            # the one letter that gets longer
            low = text.replace("\u0130", "i").lower()
        has_options = "--" in text
        end = 0
        for hit in merge(*(part.finditer(low) for part in _PARTS_OF_NAMES), key=re.Match.start):
            if hit.start() < end:
                continue
            self._spend(1)
            name_end = _NAME_AFTER.match(text, hit.end())
            assert name_end is not None
            given = _ASSIGNMENT.match(text, name_end.end())
            if given is None and has_options:
                given = _GAP.match(text, name_end.end())
            if given is None:
                continue
            self._spend(3)
            words = _WORDS_BEFORE if hit[0] in ("key", "token") else _NAME_BEFORE
            before = words.search(text[max(end, hit.start() - 61) : hit.start()])
            assert before is not None
            begin, end = hit.start() - len(before[0]), name_end.end()
            if _ESCAPED_SPACE.match(text, begin - 1):
                begin += 1
            is_option = text.startswith("--", begin)
            if (is_option or given.re is _ASSIGNMENT) and is_secret_name(text[begin:end]):
                value = self._value(text, begin, end, given.end())
                if value is not None:
                    yield value
                    end = value[1]

    def _value(self, text: str, begin: int, end: int, at: int) -> tuple[int, int] | None:
        """Where the value at `at`, of the name at begin:end, is; None if there is none."""
        if text.startswith(REDACTED, at):
            return None
        patterns = [_QUOTED, _ESCAPED, _HEADER if _HEADER_NAME.search(text, begin, end) else _BARE]
        if text[at : at + 1] in ("{", "["):
            self._spend(100)
            with suppress(ValueError, RecursionError):
                _, length = _JSON.raw_decode(text[at : at + _LONGEST_DOCUMENT])
                return at, at + length
            # of another language, or cut
            patterns = [_REST_OF_LINE] if text[begin - 1 : begin] in ("'", '"') else []
        for pattern in patterns:
            if found := pattern.match(text, at):
                is_none = found["value"].lower() in _NO_VALUES
                return None if is_none else found.span("value")
        return None

    def _spend(self, work: int) -> None:
        self._work -= work
        if self._work < 0:
            raise TooMuch
