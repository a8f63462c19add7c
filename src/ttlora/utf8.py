"""Text in UTF-8: files of users, and text that UTF-8 cannot encode."""

import codecs
from pathlib import Path


def read_utf8(path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is not UTF-8; the message names the line.
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
    """The first lone surrogate of a text, as an escape; None: there is none, and UTF-8 can encode the text.

    Such halves stand in JSON that was cut within an emoji, and for bytes of a command line that are no UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return ascii(text[error.start])[1:-1]
    return None
