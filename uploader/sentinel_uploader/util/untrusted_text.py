"""Texts that a server sent, made fit for a message or a log line."""

_SHORTEST_SECRET_CHARS = 4


def printable(text: str, limit: int) -> str:
    """Return the beginning of the text in one line of at most `limit` characters, without control characters."""
    line = " ".join(text[: 4 * limit].split())
    return "".join(character if character.isprintable() else "?" for character in line)[:limit]


def redact(text: str, *secrets: str) -> str:
    """Return the text with our own secrets blotted out."""
    for secret in secrets:
        # Anything shorter is a placeholder, and part of ordinary words.
        if len(secret) >= _SHORTEST_SECRET_CHARS:
            text = text.replace(secret, "***")
    return text
