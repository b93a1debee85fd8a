"""GGUF files packed and taken apart by hand, without gpt2c: from and to plain values, wrong ones too."""

import struct

FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
BLOCKS = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 12: (256, 144), 13: (256, 176),
          14: (256, 210), 30: (1, 2)}  # fmt: skip


def pack(pairs, tensors, data, version=3, alignment=32, counts=None):
    """pairs: (key, type, value), an array's value (type, values); tensors: (name, dims, type, offset)."""
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(pairs))))
    for key, kind, value in pairs:
        head += text(key) + struct.pack("<I", kind) + packed(kind, value)
    for name, dims, kind, offset in tensors:
        head += text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)
    return head + bytes(-len(head) % alignment) + data


def text(content):
    data = content if isinstance(content, bytes) else content.encode()
    return struct.pack("<Q", len(data)) + data


def packed(kind, value):
    if kind == 8:
        return text(value)
    if kind == 9:
        inner, values = value
        return struct.pack("<IQ", inner, len(values)) + b"".join(packed(inner, one) for one in values)
    return struct.pack("<" + FORMS[kind], value)


def laid_out(arrays, alignment=32):
    """(tensors, data) of [(name, NumPy shape, type, bytes)]."""
    tensors, data = [], b""
    for name, shape, kind, content in arrays:
        tensors.append((name, list(shape)[::-1], kind, len(data)))
        data += content + bytes(-len(content) % alignment)
    return tensors, data


def apart(data):
    """[version, pairs, tensors, data in hexadecimal] of a file of alignment 32."""
    at = 24
    version, num_tensors, num_pairs = struct.unpack_from("<IQQ", data, 4)

    def take(form):
        nonlocal at
        values = struct.unpack_from("<" + form, data, at)
        at += struct.calcsize("<" + form)
        return values

    def string():
        nonlocal at
        (length,) = take("Q")
        at += length
        return data[at - length : at].decode()

    def value(kind):
        if kind == 8:
            return string()
        if kind == 9:
            inner, count = take("IQ")
            return [inner, [value(inner) for _ in range(count)]]
        return take(FORMS[kind])[0]

    pairs, tensors = [], []
    for _ in range(num_pairs):
        key, (kind,) = string(), take("I")
        pairs.append([key, kind, value(kind)])
    for _ in range(num_tensors):
        name, (dimensions,) = string(), take("I")
        tensors.append([name, list(take(f"{dimensions}Q")), *take("IQ")])
    return [version, pairs, tensors, data[-(-at // 32) * 32 :].hex()]


def together(parts):
    version, pairs, tensors, data = parts
    return pack(pairs, tensors, bytes.fromhex(data), version)


def bytes_of(array):
    """{name: (type, dims, bytes)} and {key: value} of a file."""
    version, pairs, tensors, data = apart(array)
    data, found = bytes.fromhex(data), {}
    for name, dims, kind, offset in tensors:
        elements, size = BLOCKS[kind]
        count = size
        for dim in dims:
            count *= dim
        found[name] = kind, dims, data[offset : offset + count // elements]
    return found, {key: value for key, _, value in pairs}
