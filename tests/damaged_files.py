"""Damaged and hostile files: what is done to a file of every kind that tfkd loads.

`test_damaged_files.py` hands them to the loaders.
"""

import io
import json
import re
import struct
import zipfile

import numpy as np

#: Bytes that some members of archives unpack to: enough to notice, and no danger.
BOMB = 2**26
#: A shape that no memory holds.
HUGE = (2**40, 2**10)


def bytes_of_any_kind(content, seeds):
    """Yields `(what, content)`: damage that any file can have.

    Args:
        content: Bytes, a whole file.
        seeds: Integer, how often some of its bits are flipped.
    """
    size = len(content)
    yield "empty", b""
    for end in (1, size // 4, size // 2, size - 1):
        yield f"cut after {end} bytes", content[:end]
    yield "first half zeros", bytes(size // 2) + content[size // 2 :]
    middle = content[: size // 3] + bytes(size // 3) + content[2 * (size // 3) :]
    yield "zeros in the middle", middle
    yield "another magic", b"\x89PNG\r\n\x1a\n" + content[8:]
    yield "text", b"This is no such file.\n" * 9
    yield "bytes behind", content + b"\xff" * 99
    yield "twice", content * 2
    for seed in range(seeds):
        generator = np.random.default_rng(seed)
        flipped = np.frombuffer(content, "uint8").copy()
        places = generator.integers(0, size, 2 ** (seed % 6))
        flipped[places] ^= generator.integers(1, 256, len(places), dtype="uint8")
        yield f"bits, seed {seed}", flipped.tobytes()


def archives(content, _):
    """Yields damage of zip files: `.keras` and `.npz`."""
    yield from _with_members(content)
    # Of the entries in the directory at the end: method, flags, and the size when unpacked.
    entries = [found.start() for found in re.finditer(b"PK\x01\x02", content)]
    for what, offset, value in (
        ("of an unknown compression", 10, struct.pack("<H", 77)),
        ("encrypted", 8, struct.pack("<H", 1)),
        ("huge in the directory", 24, struct.pack("<I", 2**31)),
        ("behind the end of the file", 42, struct.pack("<I", 2**31)),
    ):
        changed = bytearray(content)
        for entry in entries:
            changed[entry + offset : entry + offset + len(value)] = value
        yield f"members {what}", bytes(changed)


def _with_members(content):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}

    def packed(changed, compression=zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", compression) as archive:
            for name, member in changed.items():
                archive.writestr(name, member)
        return file.getvalue()

    for name in ("../outside", "/tmp/tfkd-outside", "assets/../../outside", "a\\..\\..\\outside"):
        yield f"a member {name}", packed({**members, name: b"not to be written"})
    yield "a bomb beside", packed({**members, "bomb": bytes(BOMB)})
    for name in members:
        yield f"{name} is a bomb", packed({**members, name: bytes(BOMB)})
        yield f"{name} is empty", packed({**members, name: b""})
        yield f"without {name}", packed({key: members[key] for key in members if key != name})
        if name.endswith(".npy"):
            for what, array in arrays(members[name], 0):
                yield f"{name}: {what}", packed({**members, name: array})
        if name.endswith(".json"):
            for what, text in documents(members[name], 0):
                yield f"{name}: {what}", packed({**members, name: text})
    yield "no member", packed({})


def arrays(content, _):
    """Yields damage of `.npy` files: headers of every kind."""
    data = content[10 + struct.unpack("<H", content[8:10])[0] :]

    def with_header(text):
        head = text.encode()
        return content[:8] + struct.pack("<H", len(head)) + head + data

    good = {"descr": "<f4", "fortran_order": False, "shape": HUGE}
    yield "a huge shape", with_header(f"{good}\n")
    yield "a negative shape", with_header(f"{ {**good, 'shape': (-1, 4)} }\n")
    yield "a shape of text", with_header(f"{ {**good, 'shape': ('4',)} }\n")
    yield "objects", with_header(f"{ {**good, 'descr': '|O', 'shape': (1,)} }\n")
    yield "text", with_header(f"{ {**good, 'descr': '<U4', 'shape': (1,)} }\n")
    yield "a type of no kind", with_header(f"{ {**good, 'descr': 'f99'} }\n")
    yield "a call in the header", with_header("{'descr': exit(3), 'fortran_order': False}\n")
    yield "a deep header", with_header("(" * 9000 + "\n")
    yield "a header that is longer than the file", content[:8] + b"\xff\xff" + content[10:]
    yield "another version", content[:6] + b"\x09\x09" + content[8:]


def documents(content, _):
    """Yields damage of JSON files: what is no JSON, and every value replaced by others."""
    yield "a deep list", b"[" * 100_000 + b"]" * 100_000
    yield "a deep dictionary", b'{"config":' * 50_000 + b"0" + b"}" * 50_000
    yield "a long number", b"9" * 10_000
    yield "no UTF-8", b'{"a": "\xff\xfe"}'
    for text in ("null", "[]", "{}", "0", '""', "NaN", "1e999", '{"config": null}'):
        yield text, text.encode()
    document = json.loads(content)
    for path in _paths(document):
        for other in (None, [], {}, -1, "../outside", [[1]], 1e308):
            yield f"{'.'.join(map(str, path))} is {other!r}", _replaced(document, path, other)


def _paths(value, path=()):
    if path:
        yield path
    below = value.items() if isinstance(value, dict) else ()
    below = enumerate(value) if isinstance(value, list) else below
    for key, one in below:
        yield from _paths(one, (*path, key))


def _replaced(document, path, value):
    copy = json.loads(json.dumps(document))
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return json.dumps(copy).encode()


def images(content, _):
    """Yields images that say that they are huge, and files of other kinds by their names."""
    if content.startswith(b"\x89PNG"):
        for width, height in ((2**31 - 1, 2**31 - 1), (0, 0), (2**31 - 1, 1)):
            yield (
                f"{width}x{height}",
                content[:16] + struct.pack(">II", width, height) + content[24:],
            )
    if content.startswith(b"GIF"):
        yield "65535x65535", content[:6] + b"\xff" * 4 + content[10:]
    if content.startswith(b"\xff\xd8"):
        size = content.index(b"\xff\xc0") + 5
        yield "65535x65535", content[:size] + b"\xff" * 4 + content[size + 4 :]
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'
    yield (
        "BMP of a huge width",
        b"BM" + struct.pack("<IHHIIiiHH", 99, 0, 0, 54, 40, 2**31 - 1, 9, 1, 24),
    )


def safetensors(content, _):
    """Yields headers that promise what is not there."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]

    def with_header(text, length=None):
        text = text if isinstance(text, bytes) else json.dumps(text).encode()
        return struct.pack("<Q", len(text) if length is None else length) + text + data

    yield "a header longer than memory", with_header(header, 2**62)
    yield "a deep header", with_header(b"[" * 50_000)
    name = next(name for name in header if name != "__metadata__")
    for what, change in {
        "a huge shape": {"shape": [2**40, 2**20]},
        "a negative shape": {"shape": [-1]},
        "an unknown type": {"dtype": "Q99"},
        "offsets behind the end": {"data_offsets": [0, 2**40]},
        "offsets the other way round": {"data_offsets": [8, 0]},
    }.items():
        yield what, with_header({**header, name: {**header[name], **change}})
