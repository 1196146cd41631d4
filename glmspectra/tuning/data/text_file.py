"""The text of a data file: decompressed, in the encoding its bytes are in, line by line in bounded memory.

gzip, bzip2, xz and zstandard are known by their first bytes. Encodings: UTF-8; UTF-16 and UTF-32 by their byte order
mark or their zeros; GB18030 (GBK, GB2312), as Excel in Chinese writes CSV, where the bytes are no UTF-8.
"""

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from glmspectra.errors import DataError, RequestError
from glmspectra.language import text as said
from glmspectra.tuning.data.rows import BadRow

LONGEST_LINE = 64 << 20  # characters; a conversation of a million tokens takes some 5 million
LARGEST_JSON = 2 << 30  # characters of a .json file, which is read as a whole
SAMPLE = 1 << 16

COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
COMPRESSED |= {
    bytes([0x50 + nibble, 0x2A, 0x4D, 0x18]): "zstandard" for nibble in range(16)
}  # pzstd begins with a note
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
FOREIGN = {
    b"PK\x03\x04": "a zip archive or an Excel sheet; unpack it, or save the sheet as CSV",
    b"%PDF": "a PDF; save the rows as JSON Lines or CSV",
    b"SQLite format 3": "an SQLite database; export the rows as CSV",
    b"ARROW1": "an Arrow file; give it the suffix .arrow",
    b"\xff\xff\xff\xff": "an Arrow stream; give it the suffix .arrow",
    b"PAR1": "a Parquet file; give it the suffix .parquet",
    b"\xd0\xcf\x11\xe0": "an Excel sheet; save it as CSV",
}
MARKS = {  # the longer before the shorter that it begins with
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
SHOWN = {"gb18030": "GB18030 (GBK)", "utf-8-sig": "UTF-8 with a byte order mark"}
DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)


class TextFile:
    """A data file as text. `how` says what is not plain UTF-8 about it, for the user.

    Raises:
        RequestError: There is no such file.
        DataError: It cannot be read, is no text, or is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise RequestError(f"{path}: there is no such data file.")
        with path.open("rb") as file:
            head = file.read(16)
        self.compression = next((name for mark, name in COMPRESSED.items() if head.startswith(mark)), None)
        with self._readable():
            self.encoding = self._find_encoding()
        self.how = [said("data-how-unpacked", tool=self.compression)] if self.compression else []
        if self.encoding not in ("utf-8", "utf-8-sig"):
            self.how.append(said("data-how-encoding", encoding=SHOWN.get(self.encoding, self.encoding.upper())))

    def lines(self) -> Iterator[tuple[int, str] | BadRow]:
        """(number, line without its end); a line that is too long or no text is a `BadRow`."""
        with self.open() as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                if len(line) > LONGEST_LINE and not line.endswith("\n"):
                    while (rest := file.readline(SAMPLE)) and not rest.endswith("\n"):
                        pass
                    yield BadRow(self.path.name, number, f"has more than {LONGEST_LINE:,} characters")
                    continue
                fault = bad_bytes(line)
                if fault is not None:
                    yield BadRow(self.path.name, number, f"bad UTF-8 at byte {fault} of the line")
                else:
                    yield number, line.rstrip("\r\n")

    def text(self) -> str:
        """The whole text. Raises DataError when it is too large or holds what is no text."""
        with self.open() as file:
            text = file.read(LARGEST_JSON + 1)
        if len(text) > LARGEST_JSON:
            raise DataError(
                f"{self.path}: has more than {LARGEST_JSON:,} characters, and a .json file is read as a whole; "
                "write one object a line (.jsonl)."
            )
        if bad_bytes(text) is not None:
            broken = next(number for number, line in enumerate(text.split("\n"), 1) if bad_bytes(line) is not None)
            raise DataError(f"{self.path}: bad UTF-8 in line {broken}; a .json file is read as a whole.")
        return text

    @contextmanager
    def open(self, newline: str = "\n") -> Iterator[IO[str]]:
        """The decoded text; `newline` as for `open`. Bytes that are no UTF-8 become lone surrogates."""
        errors = "surrogateescape" if self.encoding.startswith("utf-8") else "strict"
        with self._readable(), self._bytes() as raw:
            yield io.TextIOWrapper(raw, encoding=self.encoding, errors=errors, newline=newline)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as fault:
            raise DataError(f"{self.path}: cannot be read as {self.encoding.upper()}: {fault.reason}.") from None
        except DAMAGED as fault:
            unpacked = f" ({self.compression})" if self.compression else ""
            raise DataError(f"{self.path}: cannot be read{unpacked}: {str(fault).rstrip('.')}.") from None

    def _bytes(self) -> IO[bytes]:
        if self.compression == "gzip":
            return cast(IO[bytes], gzip.open(self.path))
        if self.compression == "bzip2":
            return bz2.open(self.path)
        if self.compression == "xz":
            return lzma.open(self.path)
        if self.compression == "zstandard":
            import pyarrow

            return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(self.path)), "zstd"))
        return self.path.open("rb")

    def _find_encoding(self) -> str:
        with self._bytes() as raw:
            head = raw.read(SAMPLE)
        foreign = next((text for mark, text in FOREIGN.items() if head.startswith(mark)), None)
        if foreign is not None:
            raise DataError(f"{self.path}: is {foreign}.")
        marked = next((name for mark, name in MARKS.items() if head.startswith(mark)), None)
        if marked is not None:
            return marked
        if b"\0" in head:
            # ASCII in UTF-16, such as quotes and line ends, has a zero in every second byte.
            even, odd = head[::2].count(0), head[1::2].count(0)
            stray = 4 * head.count(0) < len(head) and head.replace(b"\0", b"").isascii()
            if stray or max(even, odd) < len(head) / 50 or min(even, odd) > max(even, odd) / 10:
                raise DataError(f"{self.path}: holds zero bytes and is no text file.")
            return "utf-16-be" if even > odd else "utf-16-le"
        return self._eight_bit()

    def _eight_bit(self) -> str:
        """UTF-8, unless more lines are not than are, and the whole is the Chinese of GB18030."""
        good = bad = 0
        decoder = codecs.getincrementaldecoder("gb18030")("strict")
        other, sample = True, ""
        with self._bytes() as raw:
            while line := raw.readline(LONGEST_LINE):
                if line.isascii():
                    continue
                try:
                    line.decode("utf-8")
                    good += 1
                except UnicodeDecodeError:
                    bad += 1
                if other and bad:
                    try:
                        text = decoder.decode(line)
                        sample += text if len(sample) < SAMPLE else ""
                    except UnicodeDecodeError:
                        other = False
        return "gb18030" if bad > good and other and _is_chinese(sample) else "utf-8"


def bad_bytes(text: str) -> int | None:
    """The first byte, from 1, that was no UTF-8 and became a lone surrogate on reading; None where all was."""
    try:
        text.encode("utf-8")
        return None
    except UnicodeEncodeError as fault:
        return len(text[: fault.start].encode("utf-8")) + 1


def _is_chinese(text: str) -> bool:
    """Whether most characters beyond ASCII are of GB 2312, which other 8-bit texts hit by chance only."""
    beyond = [character for character in text if not character.isascii()]
    common = sum(len(character.encode("gb2312", "ignore")) == 2 for character in beyond)
    return common > 0.8 * len(beyond)
