"""Makes texts from a server safe for messages and log lines."""

_SHORTEST_SECRET_CHARS = 4


def printable(text: str, limit: int) -> str:
    """Return the first `limit` characters in one line, without control characters."""
    line = " ".join(text[: 4 * limit].split())
    return "".join(character if character.isprintable() else "?" for character in line)[:limit]


def redact(text: str, *secrets: str) -> str:
    """Return the text with these secrets replaced."""
    for secret in secrets:
        # Shorter ones are placeholders, and part of ordinary words.
        if len(secret) >= _SHORTEST_SECRET_CHARS:
            text = text.replace(secret, "***")
    return text
