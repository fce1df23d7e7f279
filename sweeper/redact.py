"""What nobody should read: values of secret settings, and passwords in URLs.

TOKENS are this field's unit (TRAIN_BATCH_TOKENS): only a single token is a secret.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

MASK = "…"
# Words of a name, in its parts: WANDB_API_KEY, GITHUB_PAT, NGROK_AUTHTOKEN, DB_PASS.
SECRET_WORDS = frozenset(
    {
        *("key", "apikey", "keys", "token", "authtoken", "accesstoken", "secret", "secrets"),
        *("password", "passwd", "passphrase", "pass", "pwd", "pat", "auth", "authorization"),
        *("credential", "credentials", "cookie", "bearer"),
    }
)
# Words that others are written together with: PGPASSWORD, SSH_PRIVATEKEY.
SECRET_ENDS = ("password", "passwd", "passphrase", "apikey", "apikeys", "privatekey", "secretkey")
TOKENS = frozenset({"token", "tokens"})
# Tokens that are no unit: of a person or a service.
SECRET_TOKENS = re.compile(
    r"^(?:my|hf|hub|api|auth|access|refresh|session|github|gitlab|openai|wandb|bot|user)_tokens?$"
)
# Tokens that are one, or of a vocabulary: nats_per_token, tokens_seen, bos_token, TOKEN_SHIFT.
UNITS = re.compile(
    r"(?:^|_)tokens?_(?:per|a|in|batch|count|budget|path|file|dir|freq|embed|seen|dim|mixer|shift"
    r"|loss)"
    r"|(?:^|_)(?:per|bos|eos|pad|mask|unk|sep|cls|special|vocab|first|next|last|bpb)_tokens?(?:_|$)"
)
# Parts of a model beside which a key is one of attention; passes that are counted.
MODEL_WORDS = frozenset(
    {"dim", "head", "heads", "norm", "proj", "query", "qkv", "kv", "scale", "gain", "attn", "cache"}
)
PASSES = re.compile(r"^(?:n|num|pass)_(?:pass|num|through)$|^(?:one|two)_pass$")
PROSE_NUMBER = re.compile(r"\d{1,5}|\d+\.\d+")  # `token: 3`, `pass: 2`: no secret is so short
PROSE = frozenset({"token", "key", "keys", "pass"})
A_UNIT = re.compile(r"\bper\s$|\b(?:nats|bits|bytes|ms|loss)/$")  # what stands before: per token
# Bounded, for in a text of nothing but :// each would be followed to the text's end.
IN_URL = re.compile(r"(?<=://)[^\s/@:]*:[^\s@]{1,2000}+(?=@[\w.-])|(?<=://)[^\s/@:]+(?=@[\w.-])")
# A name is tried from its first letter alone: from each, a long word would take the square of it.
PAIR = re.compile(
    r"""(?P<start>["']?(?<![\w.-])(?P<name>[\w.-]+)["']?\]?\s*[:=]\s*)"""
    r"""(?P<value>\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'[^'\n]*'"""
    r"""|(?:[Bb]earer\s+|[Bb]asic\s+)?[^\s,;"']+)""",
    re.DOTALL,
)
FLAG = re.compile(r"(?<!\S)(?P<start>--?(?P<name>[A-Za-z][\w-]*)[ \t]+)(?P<value>[^\s-]\S*)")
# What a service gives out: letters and digits mixed, in one word that is no expression.
GIVEN_OUT = re.compile(r"(?=\w*[0-9])(?=\w*[A-Za-z])[\w-]{16,}")
SHORTEST = 6  # characters of a value that is looked for anywhere: others are words


def secret_values(settings: Mapping[str, object]) -> frozenset[str]:
    """The values of the settings that are secret."""
    return frozenset(str(value) for name, value in settings.items() if is_secret(name))


def is_secret(name: str) -> bool:
    """Whether the value of a setting of this name is nobody's business."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("-", "_").strip("_")
    if SECRET_TOKENS.fullmatch(re.sub(r"_\d+$", "", text)):
        return True
    if PASSES.match(text):
        return False
    parts = {part for part in re.split(r"[^a-z]+", text) if part}
    if UNITS.search(text):
        parts -= TOKENS
    if parts & MODEL_WORDS:
        parts -= {"key", "keys"}
    return bool(parts & SECRET_WORDS) or any(part.endswith(SECRET_ENDS) for part in parts)


def redact(text: str, values: Collection[str] = ()) -> str:
    """A text without secrets: of `NAME=value`, `"name": "value"` and `--name value` by their names,
    passwords in URLs, and the given values wherever they stand.
    """
    # Values first: of one with spaces a name tells only where it begins.
    named = FLAG.sub(_masked, PAIR.sub(_masked, without(text, values)))
    return IN_URL.sub(MASK, named)


def without(text: str, values: Collection[str]) -> str:
    """A text without the given values; those that are short may be words of it, and stay."""
    for value in sorted((v for v in values if len(v) >= SHORTEST), key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def find_secret(text: str, values: Collection[str] = ()) -> str | None:
    """What in a line of a log is surely a secret: one of the values, `NAME=…` of the environment,
    `name: …` of what looks given out, a password in a URL. What else is named so in prose may be
    anything.
    """
    for pair in PAIR.finditer(text):
        value = pair["value"].strip("\"'")
        sure = len(value) >= SHORTEST if pair["name"].isupper() else GIVEN_OUT.fullmatch(value)
        if sure and is_secret(pair["name"]):
            return pair["name"]
    if ":" in text and (url := IN_URL.search(text)) is not None and ":" in url[0]:
        return "a password in a URL"
    found = any(value in text for value in values if len(value) >= SHORTEST)
    return "the value of a secret setting" if found else None


def _masked(pair: re.Match[str]) -> str:
    if not is_secret(pair["name"]) or _is_prose(pair):
        return pair[0]
    quote = pair["value"][0] if pair["value"][0] in "\"'" else ""
    return f"{pair['start']}{quote}{MASK}{quote}"


def _is_prose(pair: re.Match[str]) -> bool:
    """Whether it counts something: `nats per token: 2.3`, `pass: 3 of 4`."""
    if pair["name"] not in PROSE:
        return False
    before = pair.string[max(0, pair.start() - 8) : pair.start()]
    return bool(A_UNIT.search(before) or PROSE_NUMBER.fullmatch(pair["value"]))
