"""Keys, tokens and passwords: a model repeats what it has read, so a secret in training data is given away.

Found by the forms that their makers gave them, without asking anybody. What is plainly a stand-in is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from luthier.data.checks.findings import Finding, Notes, Severity
from luthier.data.checks.view import Layout, RowView

KINDS: Mapping[str, Severity] = {"secret": "error", "password": "warning"}

_FORMS: tuple[tuple[str, str], ...] = (
    ("a private key", r"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----"),
    ("a key of Amazon Web Services", r"\b(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b"),
    ("a key of Anthropic", r"\bsk-ant-[A-Za-z0-9_-]{16,}"),
    ("a key of OpenAI or of a service like it", r"\bsk-(?:proj-|svcacct-|or-v1-|live-|test-)?[A-Za-z0-9_-]{20,}"),
    ("a key of Stripe", r"\b(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{10,}|\bwhsec_[A-Za-z0-9]{16,}"),
    ("a token of GitHub", r"\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_[A-Za-z0-9_]{20,}"),
    ("a token of GitLab", r"\bglpat-[A-Za-z0-9_-]{16,}"),
    ("a token of Slack", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}|hooks\.slack\.com/services/T\w+/B\w+/\w+"),
    ("a key of Google", r"\bAIza[0-9A-Za-z_-]{30,}|\bya29\.[0-9A-Za-z_-]{20,}|\bGOCSPX-[A-Za-z0-9_-]{20,}"),
    ("a token of Hugging Face", r"\bhf_[A-Za-z0-9]{20,}"),
    ("a token of npm or PyPI", r"\bnpm_[A-Za-z0-9]{30,}|\bpypi-[A-Za-z0-9_-]{30,}"),
    ("a key of SendGrid", r"\bSG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"),
    ("a key of Twilio or Mailgun", r"\b(?:AC|SK)[0-9a-f]{32}\b|\bkey-[0-9a-f]{32}\b"),
    ("a token of a bot", r"\b\d{8,10}:AA[A-Za-z0-9_-]{32,}|\b[MN][A-Za-z\d]{23}\.[\w-]{6}\.[\w-]{27,}"),
    (
        "a token of a service",
        r"\b(?:dop_v1_|shpat_|shpss_|dapi|nvapi-|gsk_|r8_|sq0atp-|lin_api_|figd_|dckr_pat_|tskey-)[A-Za-z0-9_-]{20,}",
    ),
    ("a JSON web token", r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}"),
    ("a password in an address", r"\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@'\"<>]{1,60}:[^\s/@'\"<>]{3,80}@[\w.-]+"),
    ("a key of a storage account", r"\bAccountKey=[A-Za-z0-9+/=]{40,}"),
    ("a bearer token", r"\b[Bb]earer\s+[A-Za-z0-9_\-.~+/]{24,}=*"),
    (
        "a key or password that is set",
        r"(?i:\b(?:[a-z]+[_-])*(?:api[_-]?key|secret(?:[_-]?(?:access)?[_-]?key)?|access[_-]?token|auth[_-]?token|client[_-]?secret"
        r"|password|passwd|pwd|passphrase|private[_-]?key)(?:[\"']?\s*(?:=|:|=>)\s*[\"']?|\s+is:?\s+[\"']?))"
        r"(?=[^\s\"']{0,60}[0-9!@#$%^&*_+-]|(?=[^\s\"']{16})[^\s\"']{0,40}[a-z][A-Z])(?=[^\s\"']{0,60}[A-Za-z])[^\s\"'<>{}()\[\],;]{8,80}",
    ),
)
_ALL = re.compile("|".join(f"(?P<f{number}>{pattern})" for number, (_, pattern) in enumerate(_FORMS)))
_HINTS = (
    "-----BEGIN", "AKIA", "ASIA", "ABIA", "ACCA", "sk-", "sk_", "rk_", "pk_", "whsec_", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_",
    "glpat-", "xox", "hooks.slack", "AIza", "ya29.", "GOCSPX", "hf_", "npm_", "pypi-", "SG.", "key-", ":AA", "dop_v1_", "shp", "dapi", "nvapi-",
    "gsk_", "r8_", "sq0", "lin_api_", "figd_", "dckr_", "tskey-", "eyJ", "://", "AccountKey", "earer", "AC", "SK",
)  # fmt: skip

_WORDS = ("key", "secret", "token", "passw", "pwd", "passphrase")
_SHORTEST = 10
"""Signs without a space that the shortest of them has."""

_STAND_IN = re.compile(
    r"(?i)x{4,}|\*{3,}|\.{3}|your|<|\{|placeholder|changeme|redacted|\$\(|\bpassword\b.{0,3}password|(.)\1{6,}|user(name)?:pass(word)?@|abcdef|123456"
)


def look(view: RowView, layout: Layout, notes: Notes) -> None:
    """Note every secret in a row's texts, once a field."""
    notes.looked("password", "")
    for cell in view.cells:
        if not any(map(cell.text.casefold().__contains__, _WORDS)):
            longest = max(map(len, cell.text.split()), default=0)
            if longest < _SHORTEST or not any(map(cell.text.__contains__, _HINTS)):
                continue
        for match in _ALL.finditer(cell.text):
            number = int(str(match.lastgroup)[1:])
            if number and _STAND_IN.search(match[0]):
                continue
            found = f"{_FORMS[number][0]} stands in it: {_hidden(match[0])}."
            mend = "Take it out, and have it withdrawn where it was given: whoever has the data or the model has it."
            if number < len(_FORMS) - 1:
                notes.tell("secret", "error", view.origin, cell.field, found, mend)
            else:
                finding = Finding("password", "warning", view.origin.file, view.origin.line, cell.field, found, mend)
                notes.suspect("", finding, 0.01)
            break


def _hidden(secret: str) -> str:
    """Enough of a secret to find it by, and not more."""
    return f"{secret[: min(10, len(secret) // 3)]}… ({len(secret)} characters)"
