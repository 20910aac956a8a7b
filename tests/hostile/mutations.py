"""What strangers hand over, at random: values, JSON, headers, bytes, names and patterns."""

import json
import struct

STRANGE = [
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e20, 1e308, -1e999, float("inf"), float("nan"),
    10**6, 10**9, 2**31, 2**62, 2**63, 2**64, 10**30, "", "12", "x" * 300, "\0", "\ud800",
    "../../x", "/dev/zero", "C:\\x", [], [[]], {}, [0], [-1], {"a": 1},
    [1] * 1000, "é" * 50, [None, 1.5], 3, 7,
]  # fmt: skip
"""Values in place of the right one."""

REGEX_PARTS = [
    "a", ".", "\\w", "\\s", "[a-z]", "(", ")", "(?:", "(?=", "(?x)", "(?i)", "*", "+", "?", "*?",
    "++", "{2,}", "{1000}", "{ 1 0 0 0 }", "{0001000}", "{,99999}", "{999999999999}", "|", "^", "$",
    "\\1", "(?R)", "\\p{L}", "[", "]", "\\", "#\n", "(?P<n>", "(?P=n)", "{e<=9}", "{i<=3}",
    "red", " ",
]  # fmt: skip


REPEATS = ["*", "+", "?", "*?", "++", "{2,}", "{9}", "{1,30}", "{0001000}", "{ 1 0 0 0 }", "{,50}"]


def strange_pattern(rng):
    """A regular expression, or parts of one in no order."""
    if rng.random() < 0.3:
        return "".join(rng.choices(REGEX_PARTS, k=rng.randint(0, 25)))
    return rng.choice(["", "", "(?x)", "(?i)", "(?if)", "(?V1)"]) + _pattern(rng, 4)


def _pattern(rng, depth):
    if not depth or rng.random() < 0.2:
        return rng.choice(
            ["a", ".", "r", "red", "\\w", "\\s", "[a-z ]", "[^x]", "\\p{L}", " ", "é"]
        )
    inner, kind = _pattern(rng, depth - 1), rng.random()
    if kind < 0.35:
        return (
            f"({rng.choice(['', '?:', '?>', '?=', '?!', '?<=', '?|'])}{inner}){rng.choice(REPEATS)}"
        )
    if kind < 0.5:
        return f"(?:{inner}){{{rng.choice(['e<=1', 'i<=2', 'd<=1,s<=2', 'e<=9'])}}}"
    return inner + rng.choice(["", "|"]) + _pattern(rng, depth - 1)


def strange_json(rng, value):
    """``value`` with one to three of its parts replaced, removed, added, or nested deep."""
    for _ in range(rng.randint(1, 3)):
        value = _changed(rng, value)
    return value


def _changed(rng, value):
    if isinstance(value, dict) and value and rng.random() < 0.95:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.15:
            return {**value, str(rng.choice(STRANGE)): rng.choice(STRANGE)}
        if kind < 0.55 or not isinstance(value[key], (dict, list)):
            return {**value, key: rng.choice(STRANGE)}
        return {**value, key: _changed(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = rng.randrange(len(value))
        return [*value[:place], _changed(rng, value[place]), *value[place + 1 :]]
    return rng.choice(STRANGE)


def json_bytes(rng, value):
    """The text of a strange value; now and then no JSON at all."""
    kind = rng.random()
    if kind < 0.04:
        return b"[" * rng.choice([100, 100_000]) + b"]" * rng.choice([0, 100_000])
    if kind < 0.06:
        return b'{"a":' * 50_000
    if kind < 0.1:
        return strange_bytes(rng, json.dumps(value).encode())
    return json.dumps(strange_json(rng, value)).encode(errors="surrogatepass")


def strange_bytes(rng, content):
    """``content`` cut off, or with bytes changed, inserted or repeated."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, kind = rng.randrange(len(content) or 1), rng.random()
        if kind < 0.2:
            del content[place:]
        elif kind < 0.7 and content:
            for i in range(place, min(len(content), place + rng.choice([1, 1, 4, 32]))):
                content[i] = rng.choice([0, 255, 127, rng.randrange(256)])
        elif kind < 0.85:
            content[place:place] = bytes(rng.choices(range(256), k=rng.choice([1, 8, 1000])))
        else:
            content += content[place : place + 1000]
    return bytes(content)


def safetensors_parts(content):
    """(header, data) of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def safetensors_bytes(header, data):
    text = json.dumps(header).encode(errors="surrogatepass")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def strange_safetensors(rng, content, strings=()):
    """A file with another header: its tensors' shapes, types and names, or one of its
    ``strings``, which are JSON."""
    header, data = safetensors_parts(content)
    kind = rng.random()
    if kind < 0.2:
        return strange_bytes(rng, content)
    notes = header.get("__metadata__", {})
    if strings and kind < 0.7 and (names := [name for name in strings if name in notes]):
        name = rng.choice(names)
        notes[name] = json_bytes(rng, json.loads(notes[name])).decode(errors="replace")
        return safetensors_bytes(header, data)
    tensors = [name for name in header if name != "__metadata__"]
    name = rng.choice(tensors)
    if kind < 0.8:  # a name that is another's, or nobody's
        header[rng.choice([*tensors, "x", "model.transformer.blocks.99.x"])] = header.pop(name)
    elif kind < 0.9:  # the same bytes as another type or shape
        size = header[name]["data_offsets"][1] - header[name]["data_offsets"][0]
        kinds = {"F32": 4, "I32": 4, "U8": 1, "F16": 2, "BOOL": 1, "F8_E4M3": 1, "I64": 8, "C64": 8}
        dtype, width = rng.choice(list(kinds.items()))
        header[name] |= {"dtype": dtype, "shape": rng.choice([[size // width], [1, size // width]])}
    else:
        header = strange_json(rng, header)
    return safetensors_bytes(header, data)


NAME_PARTS = [
    "a", "..", "\0", "x" * 300, "ü" * 200, "\ud800", "/", "\\", "C:", "CON", " ", ".", "~", "demo",
    ".png", ".safetensors", "\n", "*", "-", "--out", ":", "=", "1e999",
]  # fmt: skip


def strange_name(rng):
    return "".join(rng.choices(NAME_PARTS, k=rng.randint(0, 5)))
