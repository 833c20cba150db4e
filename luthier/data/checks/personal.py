"""Personal data: addresses, telephone numbers, accounts, cards, identity numbers.

Where a number has check digits, they are computed, so that other long numbers are left alone: IBAN (ISO 13616, mod 97), cards
(Luhn, ISO/IEC 7812), identity numbers of several countries. What is set aside for examples is passed over: example.com
(RFC 2606), the networks of RFC 5737, numbers of one digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from luthier.data.checks.findings import Finding, Notes, Severity
from luthier.data.checks.view import Layout, RowView

KINDS: Mapping[str, Severity] = {
    "email-address": "warning",
    "phone-number": "warning",
    "bank-account": "warning",
    "payment-card": "warning",
    "identity-number": "warning",
    "ip-address": "warning",
}

_EMAIL = re.compile(r"(?<![\w.+/:-])[A-Za-z0-9][A-Za-z0-9._%+-]{0,63}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,18}(?![\w-])")
_EXAMPLE_HOST = re.compile(
    r"(?i)@(?:.+\.)?(?:example\.\w+|example|test|invalid|localhost|domain\.\w+|yourdomain\.\w+|(?:my|your|the)?company\.com|xyz\.com|abc\.com|email\.com|mail\.com)$"
)
_EXAMPLE_NAME = re.compile(
    r"(?i)^(?:your|user(?:name)?|name|email|example|foo|bar|abc|xyz|test)\d*(?:[._-]?(?:name|email|address))?@"
)
_PHONE = re.compile(
    r"(?<![\w.,/=#$€£+-])(?<!\d )(?:"
    r"\+\d{1,3}[ .\-–]?(?:\(0?\d{1,4}\)[ .\-–]?)?\d{1,5}(?:[ .\-–/]?\d{2,5}){1,5}"
    r"|(?:1[ .-])?\(\d{3}\)[ .-]?\d{3}[ .-]\d{4}"
    r"|(?:1[ .-])?[2-9]\d{2}([ .-])[2-9]\d{2}\1\d{4}"
    r"|0\d{1,4}[ /-]\d{3,4}[ -]?\d{3,5}|0\d(?:[ .]\d\d){4}"
    r"|00\d{2}[ -]?\d{2,4}(?:[ -]?\d{2,5}){2,3}"
    r"|1[3-9]\d{9})(?![\w%]|[.,-]\d| \d)"
)
_DIGIT = re.compile(r"\d")
_LONG_NUMBER = re.compile(r"\d(?:[ .()/:+–-]{0,2}[\dA-Fa-f]){6}|[A-Z]{2} ?\d\d|\d{4,}[A-Z]\b|::")
_SPOKEN = re.compile(
    r"(?i)(?:phone|tel|telephone|mobile|cell|call(?: me| us| at| on)+|fax|whatsapp|电话|手机)\W{1,4}(?:\w+\W+){0,3}?(\+?[\d][\d .()/-]{6,17}\d)(?!\w)"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b")
_CARD = re.compile(
    r"(?<![\w.,+=/-])[2-6]\d{3}([ -]?)\d{4}\1\d{4}\1\d{4}(?![\w,/-]|\.\d)|(?<![\w.,-])3[47]\d{2}([ -]?)\d{6}\2\d{5}(?![\w-])"
)
_IP = re.compile(r"(?<![\w.:/-])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w-]|\.\d|/\d)")
_IP6 = re.compile(
    r"(?<![\w:])(?:[0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}(?![\w:])|(?<![\w:])(?:[0-9a-fA-F]{1,4}:){2,6}:(?:[0-9a-fA-F]{1,4}:?){1,4}(?![\w:])"
)
_NO_ADDRESS = re.compile(
    r"^(?:0\.|127\.|255\.|224\.|1\.2\.3\.4$|192\.0\.2\.|198\.51\.100\.|203\.0\.113\.|\d\.\d\.\d\.\d$)|^8\.8\.[48]\.[48]$"
)
_VERSION = re.compile(r"(?i)(?:version|release|v|section|§|build|firmware)\s*$")


def look(view: RowView, layout: Layout, notes: Notes) -> None:
    """Note personal data in a row's texts, each kind once a field."""
    for cell in view.cells:
        text = cell.text
        if cell.part == "id":
            continue
        for kind, found in _all_in(text):
            _note(view, cell.field, notes, kind, found)


def _note(view: RowView, place: str, notes: Notes, kind: str, found: str) -> None:
    mend = "Take it out or put a made-up one in its place, unless it is public and meant to be learned."
    notes.findings.append(Finding(kind, KINDS[kind], view.origin.file, view.origin.line, place, found, mend))


def _all_in(text: str) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    if "@" in text:
        address = next((m[0] for m in _EMAIL.finditer(text) if is_real_address(m[0])), None)
        if address is not None:
            found["email-address"] = f"the e-mail address {_masked(address)} stands in it."
    if not _DIGIT.search(text) or not _LONG_NUMBER.search(text):
        return list(found.items())
    for kind, finder, what in _NUMBERS:
        number = finder(text)
        if number is not None:
            found[kind] = f"{what} {_masked(number)} stands in it."
    if "bank-account" in found or "payment-card" in found:
        found.pop("phone-number", None)
    return list(found.items())


def _masked(value: str) -> str:
    """Enough to find it by."""
    return f"{value[:3]}…{value[-2:]}"


def is_real_address(address: str) -> bool:
    """Whether an e-mail address may be somebody's: not one of those set aside for examples."""
    return not _EXAMPLE_HOST.search(address) and not _EXAMPLE_NAME.search(address)


# ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def phone_in(text: str) -> str | None:
    """A telephone number: written with its country's code or in groups, or named as one."""
    for match in _PHONE.finditer(text):
        if is_varied(match[0]) and 8 <= len(_digits(match[0])) <= _MOST_DIGITS:
            return match[0]
    for match in _SPOKEN.finditer(text):
        is_date = re.fullmatch(r"(?:19|20)\d\d[-./ ]\d\d?[-./ ]\d\d?", match[1])
        if not is_date and is_varied(match[1]) and 7 <= len(_digits(match[1])) <= _MOST_DIGITS:
            return match[1]
    return None


_MOST_DIGITS = 13
"""E.164 allows 15; no country uses more than 13 of them."""


def is_varied(number: str) -> bool:
    """Whether a number is more than one digit again and again, or digits in their order."""
    digits = _digits(number)
    return len(set(digits)) > 3 and "123456" not in digits and "5555" not in digits and not digits.startswith("000")


def iban_in(text: str) -> str | None:
    """An account number whose check digits are right."""
    for match in _IBAN.finditer(text):
        compact = match[0].replace(" ", "")
        for end in range(min(34, len(compact)), 14, -1):  # a word in capitals may follow it
            if is_iban(compact[:end]):
                return compact[:end]
    return None


def is_iban(number: str) -> bool:
    """ISO 13616: the first four signs moved to the end, letters as 10 to 35, leave 1 when divided by 97."""
    turned = number[4:] + number[:4]
    return int("".join(str(int(sign, 36)) for sign in turned)) % 97 == 1 and len(set(number[4:])) > 2


def card_in(text: str) -> str | None:
    """A card number of a known kind whose check digit is right."""
    for match in _CARD.finditer(text):
        digits = _digits(match[0])
        if is_luhn(digits) and len(set(digits)) > 1:
            return match[0]
    return None


def is_luhn(digits: str) -> bool:
    """Whether the digits, every second from the right doubled and its digits added, sum to a multiple of 10."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(doubled) + sum(int(digit) for digit in digits[-1::-2])) % 10 == 0


def address_in(text: str) -> str | None:
    """An address of a machine on the internet, not one of those that stand for examples."""
    for match in _IP.finditer(text):
        if not _NO_ADDRESS.search(match[0]) and not _VERSION.search(text[: match.start()]):
            return match[0]
    found = _IP6.search(text)
    return found[0] if found and not found[0].lower().startswith(("2001:db8", "fe80")) else None


def identity_in(text: str) -> str | None:
    """An identity number: its form, and where it has check digits those."""
    for pattern, is_right in _IDENTITIES:
        for match in pattern.finditer(text):
            if is_right(match[match.lastindex or 0]):
                return match[match.lastindex or 0]
    return None


def _digits(text: str) -> str:
    return "".join(sign for sign in text if sign.isdigit())


def _is_ssn(number: str) -> bool:
    area, group, serial = number.split("-") if "-" in number else number.split()
    return area not in ("000", "666", "123") and area < "900" and group != "00" and serial != "0000"


def _is_cpf(number: str) -> bool:
    """Brazil: two check digits, weights 10 to 2 and 11 to 2, mod 11."""
    digits = [int(sign) for sign in _digits(number)]
    for length in (9, 10):
        total = sum(digit * weight for digit, weight in zip(digits, range(length + 1, 1, -1), strict=False))
        if digits[length] != (total * 10 % 11) % 10:
            return False
    return len(set(digits)) > 1


def _is_chinese(number: str) -> bool:
    """China: ISO 7064 MOD 11-2 over 17 digits."""
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return "10X98765432"[total % 11] == number[17].upper()


def _is_spanish(number: str) -> bool:
    """Spain: the letter is the number mod 23; X, Y, Z of foreigners stand for 0, 1, 2."""
    body = number[:-1].replace("-", "").translate(str.maketrans("XYZ", "012"))
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(body) % 23] == number[-1] and len(set(body)) > 2


def _is_french(number: str) -> bool:
    """France: the key is 97 less the number mod 97."""
    compact = number.replace(" ", "")
    return compact.isdigit() and int(compact[13:]) == 97 - int(compact[:13]) % 97


def _is_italian(code: str) -> bool:
    """Italy: the last letter is the sum of the values of odd and even places, mod 26."""
    odd = dict(zip("0123456789", (1, 0, 5, 7, 9, 13, 15, 17, 19, 21), strict=True))
    odd |= dict(
        zip(
            "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
            (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
            strict=True,
        )
    )
    total = sum(odd[sign] for sign in code[0:15:2])
    total += sum(int(sign) if sign.isdigit() else ord(sign) - 65 for sign in code[1:15:2])
    return chr(65 + total % 26) == code[15]


def _always(number: str) -> bool:
    return is_varied(number)


_IDENTITIES: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"), _is_ssn),
    (re.compile(r"(?<![\w.])\d{3}\.\d{3}\.\d{3}-\d{2}(?!\w)"), _is_cpf),
    (re.compile(r"(?<!\w)[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\w)"), _is_chinese),
    (re.compile(r"(?<!\w)(?:\d{8}|[XYZ]\d{7})-?[A-HJ-NP-TV-Z](?!\w)"), _is_spanish),
    (re.compile(r"(?<!\w)[12] ?\d{2} ?(?:0[1-9]|1[0-2]) ?\d{2} ?\d{3} ?\d{3} ?\d{2}(?!\w)"), _is_french),
    (re.compile(r"(?<!\w)[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z](?!\w)"), _is_italian),
    (re.compile(r"(?<!\w)(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)"), _always),
    (re.compile(r"(?i)(?:passport|social security|ssn|national id|id card|tax id|aadhaar|driver'?s licen[sc]e)\s+(?:number|no\.?|#)?\s*(?:is|:)?\s*((?=[A-Z\d-]*\d{4})[A-Z\d-]{7,14})\b"), _always),
)  # fmt: skip

_NUMBERS: tuple[tuple[str, Callable[[str], str | None], str], ...] = (
    ("phone-number", phone_in, "the telephone number"),
    ("bank-account", iban_in, "the account number"),
    ("payment-card", card_in, "the card number"),
    ("identity-number", identity_in, "the identity number"),
    ("ip-address", address_in, "the network address"),
)
