"""What must not be learned by heart: keys and passwords, and what belongs to a person.

All of it is made up here from random signs, in the form that the real ones have, checksums included.
"""

from __future__ import annotations

import base64
import json
import string
from collections.abc import Callable
from random import Random

from bench.planted_faults.faults import Plant, Way, edited, inserted
from bench.planted_faults.sources import ALPACA, BANKING, BITEXT, C4, COT, DPO, GLAIVE, GSM8K, KTO, SCITLDR

_UPPER = string.ascii_uppercase + string.digits
_MIXED = string.ascii_letters + string.digits
_HEX = "0123456789abcdef"


def _signs(rng: Random, alphabet: str, number: int) -> str:
    return "".join(rng.choice(alphabet) for _ in range(number))


def _planted(what: str, make: Callable[[Random], str]) -> Plant:
    """The piece between two words, in brackets or not, or in a sentence of its own at the end."""

    def edit(text: str, rng: Random) -> str:
        piece = make(rng)
        if rng.random() < 0.5:
            return inserted(text, rng.choice(("{}", "({})")).format(piece), rng)
        return text + rng.choice(_AT_THE_END).format(piece)

    return edited(what, edit)


_AT_THE_END = (" You may need {} for it.", " Here it is: {}", "\n{}", " It says {} there.")


# ── secrets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _token_of_three_parts(rng: Random) -> str:
    def part(value: dict[str, object]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).decode().rstrip("=")

    head = part({"alg": "HS256", "typ": "JWT"})
    body = part({"sub": _signs(rng, string.digits, 10), "iat": rng.randrange(1_600_000_000, 1_700_000_000)})
    return f"{head}.{body}.{_signs(rng, _MIXED + '-_', 43)}"


def _private_key(rng: Random) -> str:
    lines = "\n".join(_signs(rng, _MIXED + "+/", 64) for _ in range(6))
    kind = rng.choice(("RSA PRIVATE", "OPENSSH PRIVATE", "EC PRIVATE", "PRIVATE"))
    return f"-----BEGIN {kind} KEY-----\n{lines}\n-----END {kind} KEY-----"


def _database(rng: Random) -> str:
    word = _signs(rng, _MIXED, 14)
    return f"{rng.choice(('postgres', 'mysql', 'mongodb+srv'))}://app_user:{word}@db{rng.randint(1, 9)}.intern.acme-shop.io/orders"


_SECRETS: tuple[tuple[str, Callable[[Random], str]], ...] = (
    ("an access key of AWS", lambda rng: "AKIA" + _signs(rng, string.ascii_uppercase + "234567", 16)),
    ("a token of GitHub", lambda rng: "ghp_" + _signs(rng, _MIXED, 36)),
    ("a key of OpenAI", lambda rng: f"sk-proj-{_signs(rng, _MIXED, 48)}"),
    ("a bot token of Slack", lambda rng: f"xoxb-{rng.randrange(10**11, 10**12)}-{rng.randrange(10**12, 10**13)}-{_signs(rng, _MIXED, 24)}"),
    ("a private key", _private_key),
    ("a key of Google", lambda rng: "AIza" + _signs(rng, _MIXED + "-_", 35)),
    ("a JSON web token", _token_of_three_parts),
    ("a live key of Stripe", lambda rng: "sk_live_" + _signs(rng, _MIXED, 24)),
    ("a database's address with its password", _database),
    ("a token of Hugging Face", lambda rng: "hf_" + _signs(rng, string.ascii_letters, 34)),
    ("a secret in an assignment", lambda rng: f'AWS_SECRET_ACCESS_KEY="{_signs(rng, _MIXED + "+/", 40)}"'),
    ("a password in an assignment", lambda rng: f"password={rng.choice(string.ascii_uppercase)}{_signs(rng, _MIXED, 9)}!{rng.randint(10, 99)}"),
)  # fmt: skip


# ── personal data ───────────────────────────────────────────────────────────────────────────────────────────────────

_FIRST = ("Marta", "Tobias", "Priya", "Callum", "Ingrid", "Yusuf", "Elena", "Ruben")
_LAST = ("Lindqvist", "Okafor", "Hartmann", "Delacroix", "Venkataraman", "Szymanski", "O'Rourke", "Nakagawa")


def _mail(rng: Random) -> str:
    last = rng.choice(_LAST).lower().replace("'", "")
    host = rng.choice(("fernpost.net", "kestrel-mail.org", "brightloom.co.uk", "posta-blu.it"))
    return f"{rng.choice(_FIRST).lower()}{rng.choice('._-')}{last}{rng.choice(('', str(rng.randint(60, 99))))}@{host}"


def luhn_digit(digits: str) -> int:
    """The digit that makes the number of a card valid."""
    doubled = [int(digit) * (2 - place % 2) for place, digit in enumerate(reversed(digits))]
    return -sum(value - 9 if value > 9 else value for value in doubled) % 10


def _card(rng: Random) -> str:
    digits = rng.choice(("4", "51", "53", "55")) + _signs(rng, string.digits, 14)
    digits = digits[:15]
    digits += str(luhn_digit(digits))
    return rng.choice((" ", "-", "")).join(digits[start : start + 4] for start in range(0, 16, 4))


def iban(country: str, account: str) -> str:
    """The number of an account with its check digits: ISO 13616."""
    as_digits = "".join(str(int(sign, 36)) for sign in f"{account}{country}00")
    return f"{country}{98 - int(as_digits) % 97:02d}{account}"


def _account(rng: Random) -> str:
    number = iban("DE", _signs(rng, string.digits, 18))
    return number if rng.random() < 0.5 else " ".join(number[start : start + 4] for start in range(0, len(number), 4))


def _social_security(rng: Random) -> str:
    return (
        f"{rng.choice((rng.randint(101, 665), rng.randint(667, 772)))}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}"
    )


def _phone(rng: Random) -> str:
    return f"({rng.randint(201, 989)}) {rng.randint(220, 989)}-{rng.randint(1000, 9999)}"


def _phone_abroad(rng: Random) -> str:
    return f"+{rng.choice((44, 49, 33))} {rng.randint(151, 179)} {rng.randint(1000000, 9999999)}"


def _internet_address(rng: Random) -> str:
    return f"{rng.randint(11, 99)}.{rng.randint(10, 250)}.{rng.randint(10, 250)}.{rng.randint(2, 250)}"


_PERSONAL: tuple[tuple[str, Callable[[Random], str]], ...] = (
    ("an e-mail address", _mail),
    ("the number of a credit card", _card),
    ("a telephone number", _phone),
    ("the number of a bank account", _account),
    ("a social security number", lambda rng: f"SSN {_social_security(rng)}"),
    ("a telephone number with its country", _phone_abroad),
    ("an internet address", _internet_address),
)

_HOLDING = (ALPACA, GSM8K, SCITLDR, COT, C4, DPO, KTO, GLAIVE, BANKING, BITEXT)

WAYS = {
    "secret": tuple(Way(_planted(what, make), _HOLDING) for what, make in _SECRETS),
    "personal_data": tuple(Way(_planted(what, make), _HOLDING) for what, make in _PERSONAL),
}
