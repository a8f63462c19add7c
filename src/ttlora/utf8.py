"""Text in UTF-8: what files of users hold of it, and what of a text has no form in it."""

import codecs
from pathlib import Path


def read_utf8(path: Path) -> str:
    """The text of a file, without the mark that some programs put at its beginning.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no UTF-8; the message names the line.
    """
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ValueError("it is UTF-16: save it as UTF-8") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line} holds a byte of no character of UTF-8: save it as UTF-8") from None


def half_character(text: str) -> str | None:
    """The first half of a character without its other half, as an escape, which UTF-8 has no form for; None: none.

    Such halves stand in JSON that was cut within an emoji, and for bytes of a command line that are no UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return ascii(text[error.start])[1:-1]
    return None
