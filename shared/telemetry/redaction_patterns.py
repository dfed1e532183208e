"""What secrets and personal data look like in a text. Pure functions over compiled patterns.

No pattern runs for longer than in proportion to the text: every repetition has a limit or a start
that is rare.
"""

import re
from typing import Final

_HIDDEN: Final = "[redacted]"
_WORDS: Final = (
    r"pass(?:word|wd|phrase|code)|pwd|secrets?|token(?!s)|api[_\-. ]?key|access[_\-]?key|"
    r"private[_\-]?key|authorization|credentials?|cookie|cvv|cvc|signature"
)
_BEGINNINGS: Final = (
    *("pass", "pwd", "secret", "token", "api", "access", "private", "auth", "credential"),
    *("cookie", "cvv", "cvc", "signature", "bearer", "basic", "eyj", "akia", "asia", "gho_"),
    *("ghp_", "ghu_", "ghs_", "ghr_", "xox", "k_live", "k_test"),
)
"""Without one of them, in lower case, no pattern about secrets finds anything."""

_DIGITS: Final = re.compile(r"[0-9](?<![\w.-].)(?!(?<!\+.)\.)[0-9 ()./-]{9}")
"""Without such a run there is no card and no phone number; it begins with what is quick to find.

The first digit of either follows neither a letter nor a digit, dot or dash. A dot comes after a
single digit only where that follows a plus: this is how long fractions differ, of which logs are full.
"""

_QUOTED_OR_WORD: Final = (
    r"""(?:\\*"[^"\\]{0,4096}(?:\\*")?|\\*'[^'\\]{0,4096}(?:\\*')?|[^\s"',;&)}\]]{1,4096})"""
)
_NAMED: Final = re.compile(
    rf"(?P<name>(?:{_WORDS})\w{{0,32}}\\*[\"']?\s{{0,4}}(?:[:=]|=>)\s{{0,4}})"
    rf"(?P<scheme>\\*[\"']?(?:bearer|basic|digest|token)\s{{1,4}})?(?!\[redacted)(?P<value>{_QUOTED_OR_WORD})",
    re.IGNORECASE,
)
_SCHEME: Final = re.compile(r"\b(bearer|basic)(\s{1,4})[\w.~+/=-]{8,4096}", re.IGNORECASE)
_IN_URL: Final = re.compile(r"://[^\s/@:\"']{0,256}:[^\s/@\"']{1,256}@")
_WELL_KNOWN: Final = re.compile(
    r"\beyJ[\w-]{8,4096}\.[\w-]{8,4096}(?:\.[\w-]{0,4096})?"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_\w{20,255}|\bxox[abeoprs]-[\w-]{8,255}|\b[sr]k_(?:live|test)_\w{8,255}"
)
_PRIVATE_KEY: Final = re.compile(
    r"-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----(?:[^-]|-(?!----)){0,16384}(?:-----END [A-Z ]{0,32}PRIVATE KEY-----)?"
)
_EMAIL: Final = re.compile(
    # Celery's node names are no addresses.
    r"(?<![\w.+-])(?!(?:celery|gen\d+|\d+)@)([\w+-])[\w.+%-]{0,63}@([\w-]{1,63}(?:\.[\w-]{1,63}){1,8})"
)
_CARD: Final = re.compile(r"(?<![\w.-])[2-6](?:[ -]?[0-9]){12,18}(?![\w-])")
_PHONE: Final = re.compile(
    r"(?<![\w.+-])(?:\+[1-9][0-9]{0,2}(?:[ .()/-]{0,2}[0-9]){7,12}"
    r"|\(?[0-9]{3}\)?[ .-][0-9]{3}[ .-][0-9]{4}"
    r"|\(?0[0-9]{1,4}\)?[ -][0-9]{1,4}[ -][0-9]{3,4})(?![\w-]|\.[0-9])"
)
_PHONE_DIGITS: Final = range(10, 16)
_CARD_DIGITS: Final = range(13, 20)


def mask_card(text: str) -> str:
    """Card numbers in a text by their last four digits."""
    return _CARD.sub(_masked_card, text)


def mask_email(text: str) -> str:
    """An address by its first character and its domain; what is no address is dropped."""
    masked = _EMAIL.sub(_masked_email, text)
    return _HIDDEN if masked == text and "***@" not in text else masked


def mask_phone(text: str) -> str:
    """A number by its last two digits, however it is written."""
    digits = _digits(text)
    return f"***{digits[-2:]}" if len(digits) > 4 else _HIDDEN


def _named(match: re.Match[str]) -> str:
    value = match["value"]
    quote = value[: len(value) - len(value.lstrip("\\\"'"))]
    return f"{match['name']}{quote}{_HIDDEN}{quote}"


def _masked_email(match: re.Match[str]) -> str:
    return f"{match[1]}***@{match[2]}"


def _masked_card(match: re.Match[str]) -> str:
    digits = _digits(match[0])
    if len(digits) not in _CARD_DIGITS or not _has_check_digit(digits):
        return match[0]
    return f"****{digits[-4:]}"


def _masked_phone(match: re.Match[str]) -> str:
    digits = _digits(match[0])
    return f"***{digits[-2:]}" if len(digits) in _PHONE_DIGITS else match[0]


def _digits(text: str) -> str:
    return "".join(filter(str.isdecimal, text))


def _has_check_digit(digits: str) -> bool:
    """Luhn's: https://en.wikipedia.org/wiki/Luhn_algorithm."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (1 + place % 2)
        total += doubled - 9 * (doubled > 9)
    return total % 10 == 0


def hidden(text: str) -> str:
    """A text without secrets and personal data; the same object where it has none.

    The three looks before the patterns decide for nearly every text, in a microsecond or two.
    """
    shown, lower = text, text.lower()
    for beginning in _BEGINNINGS:
        if beginning in lower:
            shown = _without_secrets(text)
            break
    if "@" in shown:
        shown = _EMAIL.sub(_masked_email, _IN_URL.sub(f"://{_HIDDEN}@", shown))
    if _DIGITS.search(shown):
        shown = _PHONE.sub(_masked_phone, _CARD.sub(_masked_card, shown))
    return text if shown == text else shown


def _without_secrets(text: str) -> str:
    text = _PRIVATE_KEY.sub(_HIDDEN, text)
    text = _NAMED.sub(_named, text)
    text = _SCHEME.sub(rf"\1\2{_HIDDEN}", text)
    return _WELL_KNOWN.sub(_HIDDEN, text)
