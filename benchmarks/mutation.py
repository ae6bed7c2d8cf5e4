"""Hostile copies of files: a seeded mutator that knows FITS, zip archives and text, and gzip around any of them.

What `bench_readers.mutants` makes are accidents, of which a judge knows what should be read; these are meant to crash
a reader, to keep it busy, or to make it ask for memory.
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

CARD, BLOCK = 80, 2880
HOSTILE = (
    *(
        "99999999999999999999",
        "-64",
        "1000000000",
        "10000000",
        "2147483648",
        "100000000000000000",
        "0",
        "-1",
        "1",
    ),
    *(
        "0,5",
        "1E400",
        "-1E400",
        "1E-400",
        "NAN",
        "INF",
        "0x10",
        "1_000",
        ".",
        "+",
        "(1,2)",
        "T",
        "F",
        "",
        "1.0",
        "3.",
    ),
    *(
        "'x'",
        "'unterminated",
        "''",
        "'&'",
        "'it''s'",
        "'99999999999999D'",
        "'0A'",
        "'PE(-1)'",
        "'QJ'",
        "'1PE(9)'",
    ),
    *(
        "'(0,0)'",
        "'(99999999999,9)'",
        "'1E'",
        "'200D'",
        "'m**99999999'",
        "'10**999999999 m'",
        "'log(log(m))'",
    ),
    *(
        "'IMAGE   '",
        "'BINTABLE'",
        "'TABLE   '",
        "'A3DTABLE'",
        "'XXX     '",
        "/ a comment",
        "'é'",
        "16",
        "-32",
        "64",
    ),
)
# Keywords that decide how much there is, or what it means; some of them nobody has put there.
DECIDING = (
    *(
        "SIMPLE",
        "XTENSION",
        "BITPIX",
        "NAXIS",
        "NAXIS1",
        "NAXIS2",
        "NAXIS3",
        "PCOUNT",
        "GCOUNT",
        "GROUPS",
        "TFIELDS",
    ),
    *(
        "THEAP",
        "TFORM1",
        "TFORM2",
        "TTYPE1",
        "TTYPE2",
        "TDIM1",
        "TDIM2",
        "TNULL1",
        "TSCAL1",
        "TZERO1",
        "TUNIT1",
    ),
    *(
        "TBCOL1",
        "TBCOL2",
        "TDISP1",
        "BSCALE",
        "BZERO",
        "BLANK",
        "BUNIT",
        "EXTNAME",
        "EXTVER",
        "EXTEND",
        "ZIMAGE",
    ),
    *(
        "ZCMPTYPE",
        "ZBITPIX",
        "ZNAXIS",
        "ZNAXIS1",
        "ZNAXIS2",
        "ZTILE1",
        "ZTILE2",
        "ZVAL1",
        "ZNAME1",
        "ZQUANTIZ",
    ),
    *(
        "ZSIMPLE",
        "ZBLANK",
        "ZSCALE",
        "ZZERO",
        "ZDITHER0",
        "CRVAL1",
        "CRPIX1",
        "CDELT1",
        "CD1_1",
        "PC1_1",
        "LTV1",
    ),
    *(
        "LTM1_1",
        "DC-FLAG",
        "WAT0_001",
        "WAT2_001",
        "WAT2_002",
        "CTYPE1",
        "DATASUM",
        "CHECKSUM",
        "COEFF0",
        "COEFF1",
    ),
    *("PHXTEFF", "PHXLOGG", "OBJECT", "INHERIT", "CONTINUE", "HIERARCH", "COMMENT", "END"),
)
CELLS = (
    *(
        "0,5",
        "1e999",
        "-1e999",
        "nan",
        "inf",
        "",
        "１２",
        "٣",
        "1_000",
        "9" * 5000,
        "1" + "0" * 400,
        "\0",
        '"',
        "'",
        ";",
        "\t",
    ),
    *(
        ",",
        "#",
        "%",
        "0x1F",
        "1d5",
        "1+300",
        "--",
        "=1+1",
        "\ufeff",
        "\x85",
        "\u2028",
        "é",
        "\udcff",
        "a b c",
        "-",
        "1e",
        "*",
    ),
)
SCALES = (  # of YAML: aliases of aliases, objects, a number that is none, and nothing
    "# - &a [x,x,x,x,x,x,x,x,x]",
    "# - {name: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], datatype: float64}",
    "# - {name: [[[[[[[[[[[[[[]]]]]]]]]]]]]], datatype: float64}",
    "# - {name: !!python/object/apply:os.getcwd [], datatype: float64}",
    "# - {name: !numpy.ndarray {buffer: !!binary AAAA, dtype: float64, shape: [1000000000], order: C}}",
    "# delimiter: 1",
    "# datatype: 3",
    "# datatype:",
    "# - {name: TEFF}",
    "# ? - ? -",
)

Mutator = Callable[[bytes, np.random.Generator], bytes]


def mutant(content: bytes, rng: np.random.Generator) -> bytes:
    """A damaged or hostile copy of a file.

    Args:
      content: of a sound one.
      rng: numpy's generator: the same state gives the same mutant.
    """
    if content.startswith(b"SIMPLE"):
        kinds, often = FITS, 0.85
    elif content.startswith(b"PK"):
        kinds, often = ARCHIVES, 0.7
    else:
        kinds, often = TEXTS, 0.75
    out = content
    for _ in range(1 + int(rng.integers(3)) // 2):  # two at once in a third of the cases
        kind = kinds if rng.random() < often else ANY
        out = _pick(kind, rng)(out, rng) or out[:1]
    if rng.random() < 0.08:
        out = _wrap(out, rng)
    return out


def _pick(options: tuple, rng: np.random.Generator) -> object:
    return options[int(rng.integers(len(options)))]


def _places(content: bytes, rng: np.random.Generator) -> tuple[int, int]:
    """A piece of a file, usually short."""
    at = int(rng.integers(len(content)))
    return at, min(len(content), at + int(2 ** rng.uniform(0, 12)))


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    out = np.frombuffer(content, np.uint8).copy()
    at = rng.integers(0, out.size, int(rng.integers(1, 20)))
    out[at] ^= (1 << rng.integers(0, 8, at.size)).astype(np.uint8)
    return out.tobytes()


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(1, len(content)))]


def _lengthen(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _places(content, rng)
    return content + _pick((content[start:stop], rng.bytes(stop - start), bytes(stop - start), content), rng)


def _insert(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _places(content, rng)
    at = int(rng.integers(len(content)))
    return (
        content[:at] + _pick((content[start:stop], rng.bytes(stop - start), bytes(2880)), rng) + content[at:]
    )


def _delete(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _places(content, rng)
    return content[:start] + content[stop:]


def _overwrite(content: bytes, rng: np.random.Generator) -> bytes:
    start, stop = _places(content, rng)
    size = stop - start
    return (
        content[:start]
        + _pick((b"\0" * size, b"\xff" * size, b" " * size, rng.bytes(size)), rng)
        + content[stop:]
    )


def _wrap(content: bytes, rng: np.random.Generator) -> bytes:
    """Gzipped: whole, in members, cut, damaged, or with something after it."""
    packed = gzip.compress(content, 1, mtime=0)
    half = len(content) // 2
    members = gzip.compress(content[:half], 1, mtime=0) + gzip.compress(content[half:], 1, mtime=0)
    return _pick(
        (packed, members, _cut(packed, rng), _flip(packed, rng), packed + b"x" * 9, packed + bytes(99)), rng
    )


# FITS.


def _headers(content: bytes) -> list[int]:
    """Where the cards of all headers stand, as far as the file can be followed: blocks of printable text."""
    cards = []
    for block in range(0, len(content) - BLOCK + 1, BLOCK):
        part = content[block : block + BLOCK]
        if part.isascii() and b"\0" not in part:
            cards += range(block, block + BLOCK, CARD)
    return [at for at in cards if content[at : at + CARD].strip()] or [0]


def _value(rng: np.random.Generator) -> bytes:
    text = _pick(HOSTILE, rng) if rng.random() < 0.8 else str(int(2 ** rng.uniform(0, 62)))
    return (text if text.startswith(("'", "/")) else f"{text:>20}").encode("latin-1")


def _set(content: bytes, at: int, card: bytes) -> bytes:
    return content[:at] + card[:CARD].ljust(CARD) + content[at + CARD :]


def _card_value(content: bytes, rng: np.random.Generator) -> bytes:
    at = _pick(_headers(content), rng)
    return _set(content, at, content[at : at + 8] + b"= " + _value(rng))


def _deciding_card(content: bytes, rng: np.random.Generator) -> bytes:
    """A deciding card has a hostile value; where there is none, it takes the place of another."""
    cards = _headers(content)
    key = _pick(DECIDING, rng).encode()
    there = [at for at in cards if content[at : at + 8].rstrip() == key]
    return _set(content, _pick(there or cards, rng), key.ljust(8) + b"= " + _value(rng))


def _swap_keywords(content: bytes, rng: np.random.Generator) -> bytes:
    cards = _headers(content)
    a, b = _pick(cards, rng), _pick(cards, rng)
    first, second = content[a : a + 8], content[b : b + 8]
    out = content[:a] + second + content[a + 8 :]
    return out[:b] + first + out[b + 8 :]


def _swap_cards(content: bytes, rng: np.random.Generator) -> bytes:
    cards = _headers(content)
    a, b = _pick(cards, rng), _pick(cards, rng)
    return _set(_set(content, a, content[b : b + CARD]), b, content[a : a + CARD])


def _second_card(content: bytes, rng: np.random.Generator) -> bytes:
    """A deciding card once more, with another value or in another spelling, in place of one before or after it."""
    cards = _headers(content)
    deciding = [at for at in cards if content[at : at + 8].decode("latin-1").rstrip() in DECIDING] or cards
    key = content[(at := _pick(deciding, rng)) : at + 8].rstrip()
    spelt = _pick(
        (
            key.ljust(8) + b"= ",
            key.lower().ljust(8) + b"= ",
            key + b"= ",
            b" " + key.ljust(7)[:7] + b"= ",
            b"HIERARCH " + key + b" = ",
            key.ljust(8) + b"=",
            key.ljust(8) + b"  ",
        ),
        rng,
    )
    near = [a for a in cards if abs(a - at) < BLOCK]
    return _set(content, _pick(near, rng), spelt + _value(rng))


def _no_card(content: bytes, rng: np.random.Generator) -> bytes:
    return _set(
        content,
        _pick(_headers(content), rng),
        _pick((b"", b"COMMENT", b"END", b"\xff" * 80, b"\0" * 80), rng),
    )


def _moved_card(content: bytes, rng: np.random.Generator) -> bytes:
    """A card is taken out, so that the others of its block move up; or put in twice."""
    at = _pick(_headers(content), rng)
    end = at // BLOCK * BLOCK + BLOCK
    if rng.random() < 0.5:
        return content[:at] + content[at + CARD : end] + b" " * CARD + content[end:]
    return content[: at + CARD] + content[at : end - CARD] + content[end:]


def _blocks(content: bytes, rng: np.random.Generator) -> bytes:
    """Blocks of 2880 bytes are left out, doubled, or change places."""
    count = -(-len(content) // BLOCK)
    order = list(range(count))
    a, b = int(rng.integers(count)), int(rng.integers(count))
    kind = int(rng.integers(4))
    if kind == 0:
        order.pop(a)
    elif kind == 1:
        order.insert(b, order[a])
    elif kind == 2:
        order[a], order[b] = order[b], order[a]
    else:
        order[b:b] = [a] * int(rng.integers(2, 30))
    return b"".join(content[i * BLOCK : (i + 1) * BLOCK] for i in order)


def _type(content: bytes, rng: np.random.Generator) -> bytes:
    """The type of an image or of a column is another, of the same size or not."""
    cards = _headers(content)
    forms = [at for at in cards if content[at : at + 5] == b"TFORM"]
    if forms and rng.random() < 0.7:
        at = _pick(forms, rng)
        old = content[at + 11 : at + 30].split(b"'")[0].strip()
        letter = _pick((*b"LXBIJKAEDCMPQ",), rng)
        new = old[:-1] + bytes([letter]) if old else b"1E"
        if rng.random() < 0.3:
            new = str(int(2 ** rng.uniform(0, 60))).encode() + bytes([letter])
        return _set(content, at, content[at : at + 8] + b"= '" + new + b"'")
    types = [at for at in cards if content[at : at + 6] == b"BITPIX"] or cards
    number = _pick((8, 16, 32, 64, -32, -64, -16, 0, 24), rng)
    return _set(content, _pick(types, rng), f"BITPIX  = {number:>20}".encode())


def _empty_axis(content: bytes, rng: np.random.Generator) -> bytes:
    """An axis without pixels, beside which another can be of any length."""
    axes = [
        at
        for at in _headers(content)
        if content[at : at + 5] == b"NAXIS" and content[at + 5 : at + 6].isdigit()
    ]
    if not axes:
        return _deciding_card(content, rng)
    a, b = _pick(axes, rng), _pick(axes, rng)
    out = _set(content, a, content[a : a + 8] + b"= " + f"{int(2 ** rng.uniform(0, 59)):>20}".encode())
    return _set(out, b, content[b : b + 8] + b"= " + f"{0:>20}".encode())


def _many_cards(content: bytes, rng: np.random.Generator) -> bytes:
    """A header with very many cards."""
    at = _pick(_headers(content), rng) // BLOCK * BLOCK
    card = _pick(
        (b"COMMENT x", b"CONTINUE  'x&'", b"A       = 1", b"WAT2_001= 'x", b"", b"TFORM1  = '1E'"), rng
    )
    return content[:at] + card.ljust(CARD) * (36 * int(rng.integers(1, 100))) + content[at:]


# Zip archives.


def _members(content: bytes) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # a mutant already
        return []


def _archive(members: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def _member(content: bytes, rng: np.random.Generator) -> bytes:
    """The members of an archive are left out, doubled, swapped, renamed, or damaged."""
    members = _members(content)
    if not members:
        return _flip(content, rng)
    a, b = int(rng.integers(len(members))), int(rng.integers(len(members)))
    (name, data), (other, that) = members[a], members[b]
    kind = int(rng.integers(6))
    if kind == 0:
        members.pop(a)
    elif kind == 1:
        members[a], members[b] = (name, that), (other, data)
    elif kind == 2:
        members[a] = (_pick(("", "../x.npy", "flux", "x" * 300, "flux.npy.npy", "é.npy"), rng), data)
    elif kind == 3:
        members[a] = (name, _pick((_flip, _cut, _overwrite, _insert, _delete), rng)(data, rng))
    elif kind == 4:
        members[a] = (name, content)
    else:
        members[a] = (name, b"")
    return _archive(
        members, _pick((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2), rng)
    )


def _array(content: bytes, rng: np.random.Generator) -> bytes:
    """The header of an array is another: type, shape, order, or something that is no header."""
    members = _members(content)
    if not members:
        return _flip(content, rng)
    at = int(rng.integers(len(members)))
    name, data = members[at]
    size = 10 + int.from_bytes(data[8:10], "little") if data.startswith(b"\x93NUMPY") else 0
    dtype = _pick(
        ("<f8", ">f4", "<f2", "|O", "<U9", "|S3", "|b1", "<c16", "<M8[s]", "|V8", "<i8", "|u1"), rng
    )
    shape = _pick(
        (
            "(2,)",
            "(2, 200)",
            "(200, 2)",
            "(1000000000,)",
            "(0,)",
            "()",
            "(-1,)",
            "(10**9,)",
            "(4611686018427387904, 4)",
        ),
        rng,
    )
    text = f"{{'descr': '{dtype}', 'fortran_order': {_pick(('True', 'False', '1', 'x'), rng)}, 'shape': {shape}, }}"
    if rng.random() < 0.2:
        text = _pick(("(" * 5000, "{}", "[" * 200 + "]" * 200, "9" * 9000, "{'descr': " * 90, "\xff"), rng)
    header = text.encode("latin-1").ljust(64)
    version = _pick((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x09"), rng)
    length = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header) % 65536)
    members[at] = (name, b"\x93NUMPY" + version + length + header + data[size:])
    return _archive(members)


def _sizes(content: bytes, rng: np.random.Generator) -> bytes:
    """The directory of an archive says other sizes than there are."""
    at = content.find(b"PK\x01\x02")
    at = at + int(rng.integers(8, 46)) if at >= 0 else int(rng.integers(len(content)))
    return content[:at] + struct.pack("<I", int(2 ** rng.uniform(0, 32)) % 2**32) + content[at + 4 :]


def _no_archive(content: bytes, rng: np.random.Generator) -> bytes:
    """A single array, or a stream that ends."""
    members = _members(content)
    return members[0][1] if members and rng.random() < 0.5 else content[:40] + zlib.compress(rng.bytes(99))


# Text.


def _lines(content: bytes) -> list[bytes]:
    return content.split(b"\n")


def _cell(content: bytes, rng: np.random.Generator) -> bytes:
    lines = _lines(content)
    at = int(rng.integers(len(lines)))
    for mark in (b",", b";", b" "):
        if mark in lines[at]:
            cells = lines[at].split(mark)
            cells[int(rng.integers(len(cells)))] = _pick(CELLS, rng).encode("utf-8", "surrogateescape")
            lines[at] = mark.join(cells)
            break
    return b"\n".join(lines)


def _line(content: bytes, rng: np.random.Generator) -> bytes:
    lines = _lines(content)
    a, b = int(rng.integers(len(lines))), int(rng.integers(len(lines)))
    kind = int(rng.integers(7))
    if kind == 0:
        lines.pop(a)
    elif kind == 1:
        lines.insert(b, lines[a])
    elif kind == 2:
        lines[a], lines[b] = lines[b], lines[a]
    elif kind == 3:
        lines[a] = lines[a] * int(rng.integers(2, 2000))
    elif kind == 4:
        lines[a] = b'"' + lines[a]
    elif kind == 5:
        lines[a : a + 1] = [lines[a]] * int(rng.integers(2, 1000))
    else:
        lines[a] = _pick(CELLS, rng).encode("utf-8", "surrogateescape")
    return b"\n".join(lines)


def _separators(content: bytes, rng: np.random.Generator) -> bytes:
    old = _pick((b",", b" ", b"\n", b".", b"#", b"\r\n"), rng)
    return content.replace(old, _pick((b";", b"\t", b",", b"\r", b"", b"\r\n", b"\x0b", b"|", b"\0"), rng))


def _coded(content: bytes, rng: np.random.Generator) -> bytes:
    text = content.decode("latin-1")
    return _pick(
        (
            b"\xef\xbb\xbf" + content,
            text.encode("utf-16"),
            text.encode("utf-32"),
            b"\xff\xfe" + content,
            text.encode("utf-16")[:-1],
            b"\xfe\xff",
            content.replace(b"\n", b"\r"),
        ),
        rng,
    )


def _scale(content: bytes, rng: np.random.Generator) -> bytes:
    """Lines of YAML as hostile as they get, where the header of an ECSV table could be."""
    lines = _lines(content)
    at = int(rng.integers(min(len(lines), 15)))
    new = [_pick(SCALES, rng).encode() for _ in range(int(rng.integers(1, 4)))]
    return b"\n".join(lines[:at] + new + lines[at:])


ANY: tuple[Mutator, ...] = (_flip, _cut, _lengthen, _insert, _delete, _overwrite)
FITS: tuple[Mutator, ...] = (
    *(_card_value, _deciding_card, _deciding_card, _deciding_card, _swap_keywords, _swap_cards, _second_card),
    *(_second_card, _no_card, _moved_card, _blocks, _type, _type, _empty_axis, _many_cards),
)
ARCHIVES: tuple[Mutator, ...] = (_member, _member, _array, _array, _array, _sizes, _no_archive)
TEXTS: tuple[Mutator, ...] = (_cell, _cell, _line, _separators, _coded, _scale)
