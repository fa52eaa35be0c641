"""docs/protocol.md agrees with the code: each field, number and bound in its tables, each byte in its examples."""

import ast
import enum
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec
import pytest
from msgspec import inspect

from meshim import errors, topology
from meshim.protocol import routing, timeouts
from meshim.protocol.ordering import OrderingOptions
from meshim.protocol.outcome import OutStreamOptions
from meshim.runtime.crypto import open_sealed
from meshim.wire import client, codec, envelope, link, mesh, notification, offline_log, outcome
from meshim.wire.bounds import INTEGER_MAX, ITEMS_MAX, LIST_MAX, MS_MAX, SEQ_MAX

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")


class Section(NamedTuple):
    title: str
    text: str

    def rows(self) -> list[list[str]]:
        """The cells of all tables, without their heads."""
        found: list[list[str]] = []
        for table in re.findall(r"(?:^\|.*\n)+", self.text, flags=re.MULTILINE):
            rows = [line.removeprefix("|").removesuffix("|").split("|") for line in table.splitlines()]
            lines = [[cell.strip() for cell in row] for row in rows]
            assert set("".join(lines[1])) <= set("- |"), f"a table without a head in {self.title}"
            found += lines[2:]
        return found


def sections(marks: str) -> Iterator[Section]:
    """Yield each section under a heading with these marks, up to the next heading of its level or above."""
    pattern = rf"^{marks} (.*)\n((?:(?!#{{1,{len(marks)}}} ).*\n)*)"
    for title, text in re.findall(pattern, DOCUMENT, flags=re.MULTILINE):
        yield Section(title, text)


CHAPTERS = {section.title.split(". ", 1)[-1]: section for section in sections("##")}
SUBSECTIONS = {section.title: section for section in sections("###")}
STRUCTS = {title: section for title, section in SUBSECTIONS.items() if not title[0].isdigit()}
"""The headings of subsections have a number, those of structs have none."""
BARE = re.compile(r"`([^`]*)`")


# ---------------------------------------------------------------- sections and links

LINKED = sorted(
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "docs/adr/*.md", "examples/*.md")
    for page in ROOT.glob(pattern)
)
SCREEN = 45
"""Lines of prose in one section, without fences and tables."""


def anchors(text: str) -> list[str]:
    """The anchor of each heading, as GitHub and most renderers of Markdown make it."""
    headings = re.findall(r"^#+ (.*)$", without_fences(text), flags=re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def without_fences(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", LINKED)
def test_every_link_to_a_file_or_a_section_has_a_target(name: str) -> None:
    text = without_fences((ROOT / name).read_text(encoding="utf-8"))
    for found in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        path, _, anchor = found.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name} links to {found}"
        if anchor:
            assert anchors(target.read_text(encoding="utf-8")).count(anchor) == 1, f"{name} links to {found}"


def test_the_contents_have_every_section() -> None:
    contents = DOCUMENT.split("# Part one: clients\n")[0]
    listed = re.findall(r"\]\(#([^)]+)\)", contents)
    sections_of_clients = [title for title in SUBSECTIONS if title not in STRUCTS]
    titles = [section.title for section in sections("##")] + sections_of_clients
    assert set(anchors("".join(f"## {title}\n" for title in titles))) <= set(listed)


def test_a_section_has_a_screen_of_prose() -> None:
    parts = re.split(r"^#{2,3} ", without_fences(DOCUMENT.split("# Part two")[0]), flags=re.MULTILINE)[1:]
    for part in parts:
        lines = [line for line in part.splitlines()[1:] if line and not line.startswith("|")]
        assert len(lines) <= SCREEN, f"{part.splitlines()[0]} has {len(lines)} lines"


def test_the_words_of_bcp_14_are_those_that_the_page_declares() -> None:
    prose = without_fences(DOCUMENT)
    assert not re.findall(r"\b(?:SHALL|REQUIRED|RECOMMENDED|OPTIONAL)\b", prose)
    assert not re.findall(r"\b(?:must|should)\b", prose.split("# Part two")[0]), "a duty is written in capitals"


# ---------------------------------------------------------------- structs

TYPES = {
    struct.__name__: struct
    for module in (link, client, envelope, outcome, mesh, offline_log, notification)
    for struct in vars(module).values()
    if isinstance(struct, type) and issubclass(struct, msgspec.Struct) and struct.__struct_fields__
}
"""Every struct of the wire, by name."""

RANGES: dict[tuple[int | None, int | None], str] = {
    (0, INTEGER_MAX): "u53",
    (0, 2**63 - 1): "u63",
    (0, 2**31 - 1): "u31",
    (0, 255): "u8",
    (1, INTEGER_MAX): "n53",
    (1, SEQ_MAX): "seq",
    (0, MS_MAX): "ms",
    (1, LIST_MAX): "window",
}


DEFAULTS = {"()": "empty", "''": "empty", "b''": "empty", "False": "false", "0": "0"}


def written(kind: inspect.Type) -> str:
    """Return a type in the notation of the document."""
    match kind:
        case inspect.IntType(ge=low, le=high):
            return RANGES[low, high]
        case inspect.BoolType():
            return "bool"
        case inspect.StrType(max_length=most):
            return "text" if most is None else f"text ≤{most}"
        case inspect.BytesType(min_length=least, max_length=most):
            return "bytes" if most is None else f"bytes {most}" if least == most else f"bytes ≤{most}"
        case inspect.TupleType(item_types=items):
            return f"({', '.join(map(written, items))})"
        case inspect.VarTupleType(item_type=item, max_length=most):
            return f"[{written(item)} ≤{most}]"
        case inspect.StructType(cls=cls):
            return cls.__name__
        case inspect.UnionType() | inspect.AnyType():
            return "item"
    raise AssertionError(f"the document has no word for {kind}")


def test_every_struct_of_the_wire_has_a_table() -> None:
    assert STRUCTS.keys() == TYPES.keys() - {"Stream"}


@pytest.mark.parametrize("name", STRUCTS)
def test_fields_types_and_defaults_are_those_of_the_code(name: str) -> None:
    info = inspect.type_info(TYPES[name])
    assert isinstance(info, inspect.StructType)
    fields = [
        (field.name, written(field.type), "" if field.required else DEFAULTS[repr(field.default)])
        for field in info.fields
    ]
    documented = []
    for field_name, type_name, meaning in STRUCTS[name].rows():
        default = re.findall(r"Default: (\w+)", meaning)
        documented.append((field_name.strip("`"), type_name.strip("`"), "".join(default)))
    assert documented == fields


def test_frame_types_are_those_of_the_table() -> None:
    frames = get_args(client.ClientFrame) + get_args(client.ConnectorFrame)
    expected = {(str(_tag(frame)), _origin(frame).__name__) for frame in frames}
    assert {(number, name) for number, name, *_ in CHAPTERS["Frames"].rows() if number.isdigit()} == expected


@pytest.mark.parametrize("name", ["Submit", "Delivery", "Outcome", "Route", "Deliver", "Return", "WakeUp", "Kick"])
def test_types_of_items_and_notifications_are_those_of_the_text(name: str) -> None:
    assert re.match(rf"\n(Item|Notification) {_tag(TYPES[name])}\b", STRUCTS[name].text)


def _origin(frame: Any) -> Any:
    return getattr(frame, "__origin__", frame)


def _tag(frame: Any) -> object:
    return _origin(frame).__struct_config__.tag


# ---------------------------------------------------------------- numbers


def named(numbers: type[enum.IntEnum]) -> set[tuple[str, str]]:
    return {(str(number.value), number.name) for number in numbers}


def test_codes() -> None:
    rows = CHAPTERS["Codes"].rows()
    assert {(number, name) for number, name, _ in rows} == named(errors.Code)
    assert all(meaning for _, _, meaning in rows)


def test_kinds() -> None:
    rows = CHAPTERS["Streams, destinations, kinds"].rows()
    assert {(number, name) for number, name, *_ in rows if number.isdigit()} == named(envelope.Kind)
    assert f"Kinds from {envelope.EPHEMERAL_FROM} are **ephemeral**" in DOCUMENT


def test_types_of_destinations_receipts_and_outcomes() -> None:
    for numbers, text in (
        (envelope.DestinationType, STRUCTS["Destination"].text),
        (envelope.ReceiptKind, STRUCTS["Receipt"].text),
        (outcome.OutcomeStatus, STRUCTS["Outcome"].text),
    ):
        for number in numbers:
            assert re.search(rf"\b{number.value} {number.name}\b", text), f"{number!r} is not documented"
    rows = CHAPTERS["The outbox: sent, delivered, read"].rows()
    assert {tuple(row[0].split()) for row in rows if row[0][:1].isdigit()} == named(outcome.OutcomeStatus)


def test_every_timer_and_limit_is_documented_with_its_default() -> None:
    default = topology.default()
    expected = {
        name: getattr(part, name) for part in (default.timers, default.limits) for name in part.__struct_fields__
    }
    expected |= {name.lower(): value for name, value in vars(timeouts).items() if name.endswith("_S")}
    rows = CHAPTERS["Timers and limits"].rows() + CHAPTERS["Timers and limits of the mesh"].rows()
    assert {name.strip("`"): float(value) for name, value, _ in rows} == expected
    assert len(rows) == len(expected)


def test_bounds_in_the_text_are_those_of_the_code() -> None:
    assert OutStreamOptions().in_flight == 256
    assert "lowest unsettled seq` ≥ 256" in DOCUMENT
    options = OrderingOptions(gap_release_s=30.0)
    assert (options.early_max, options.holes_max) == (1024, 64)
    assert "holds more than 1024" in DOCUMENT
    assert "beyond 64 ranges" in DOCUMENT
    assert (LIST_MAX, ITEMS_MAX) == (1024, 65536)


def test_routing_examples() -> None:
    examples = {call.strip("`"): value.strip("`") for call, value in CHAPTERS["Routing"].rows()}
    functions = {"mix": routing.mix, "conversation": routing.conversation_of}
    for call, value in examples.items():
        name, arguments = re.fullmatch(r"(\w+)\((.*)\)", call).groups()  # type: ignore[union-attr]
        assert functions[name](*map(int, arguments.split(","))) == int(value, 16)  # type: ignore[operator]
    assert len(examples) == 3


@pytest.mark.parametrize("chapter", ["Redis", "The log", "Notifications"])
def test_keys_subjects_and_streams_are_in_the_code(chapter: str) -> None:
    """Each name with {ns}: the text between its placeholders occurs in the adapters."""
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "meshim" / "stores").rglob("*.py"))
    names = [name for name in BARE.findall(CHAPTERS[chapter].text) if "{ns}" in name]
    assert names
    for name in names:
        for fixed in re.split(r"\{\w+\}|\.", name):
            assert fixed.strip(":-") in code, f"meshim/stores does not contain {fixed!r} of {name!r}"


# ---------------------------------------------------------------- examples

DECODERS: dict[str, Callable[[bytes], Any]] = {
    "client": client.decode_from_client,
    "connector": client.decode_from_connector,
    "hello": mesh.decode_from_connector,
    "transfer": mesh.decode_from_transfer,
    "envelope": envelope.decode_envelope,
    "text": envelope.decode_text,
    "receipt": envelope.decode_receipt,
    "log": offline_log.decode_record,
    "notification": notification.decode_notification,
}

EXAMPLES = re.findall(r"^```wire (\w+)\n(.*?)\n\n(.*?)\n```$", DOCUMENT, flags=re.MULTILINE | re.DOTALL)


def value_of(text: str) -> Any:
    """Return the value of an example: numbers, arrays, "text", true, false, h'bytes'."""
    text = re.sub(r"h'([0-9a-f\s]*)'", lambda found: repr(bytes.fromhex("".join(found[1].split()))), text)
    return ast.literal_eval(re.sub(r"\b(true|false)\b", lambda found: found[1].capitalize(), text))


@pytest.mark.parametrize(("side", "text", "hexadecimal"), EXAMPLES)
def test_examples_are_the_bytes_that_meshim_sends(side: str, text: str, hexadecimal: str) -> None:
    data = bytes.fromhex(hexadecimal)
    assert codec.encode(value_of(text)) == data
    assert codec.encode(DECODERS[side](data)) == data, "meshim encodes it differently"


def test_every_struct_of_the_wire_has_an_example() -> None:
    shown = {name for side, _, data in EXAMPLES for name in _names(DECODERS[side](bytes.fromhex(data)))}
    assert shown == STRUCTS.keys()
    assert len(EXAMPLES) == DOCUMENT.count("```wire ")


def _names(value: Any) -> Iterator[str]:
    if isinstance(value, msgspec.Struct):
        yield type(value).__name__
        for name in value.__struct_fields__:
            yield from _names(getattr(value, name))
    elif isinstance(value, tuple):
        for each in value:
            yield from _names(each)


def test_the_sealed_example_opens() -> None:
    (block,) = re.findall(r"^```sealed\n(.*?)```$", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    parts = {
        name.strip(): bytes.fromhex(data)
        for name, data in re.findall(r"^([a-z ]+):((?:\s+(?:[0-9a-f]{2} ?)+)+)", block, flags=re.MULTILINE)
    }
    (example,) = (data for side, _, data in EXAMPLES if side == "envelope")
    made = envelope.decode_envelope(bytes.fromhex(example))
    assert made.body == parts["body"]
    assert made.body.startswith(parts["nonce"])
    assert envelope.associated_data(made) == parts["associated data"]
    assert open_sealed(parts["key"], parts["body"], parts["associated data"]) == parts["plaintext"]
    assert envelope.decode_text(parts["plaintext"]) == envelope.Text("hello")
