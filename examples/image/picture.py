"""Writes a PNG of so many points to stdout, or says how large the PNG on stdin is.

    picture.py 640 480 > large.png
    picture.py --size < large.png
"""

import struct
import sys
import zlib


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def picture(width: int, height: int) -> bytes:
    """Red grows to the right, green downwards, and there are blue rings."""
    rows = bytearray()
    for y in range(height):
        rows.append(0)  # no filter
        for x in range(width):
            ring = ((x - width // 2) ** 2 + (y - height // 2) ** 2) // 4000 % 2
            rows += bytes((255 * x // width, 255 * y // height, 255 * ring))
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(rows), 9))
        + chunk(b"IEND", b"")
    )


def size(png: bytes) -> str:
    if png[:8] != b"\x89PNG\r\n\x1a\n":
        sys.exit("that is no PNG")
    width, height = struct.unpack(">II", png[16:24])
    return f"{width} x {height}"


if sys.argv[1:] == ["--size"]:
    print(size(sys.stdin.buffer.read()))
else:
    sys.stdout.buffer.write(picture(int(sys.argv[1]), int(sys.argv[2])))
