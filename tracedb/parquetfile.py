"""Archive files as Parquet, with the types of their columns; needs the extra `archive`.

CSV goes in and comes out, as COPY writes it, and every value comes back to the letter. A `numeric`
is a decimal of 18 places; where that is not all of it (digits beyond, 1.50, NaN), its text is in a
second column, `name.text`. What Parquet has no type for (jsonb, text[]) is text; the metadata of
the field says what it was.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import BinaryIO

from tracedb import csvfile
from tracedb.errors import ExtraMissing

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq
except ImportError:
    raise ExtraMissing("Parquet needs pyarrow: pip install 'tracedb[archive]'") from None

SUFFIX = ".parquet"

DAMAGES: tuple[type[Exception], ...] = (pa.ArrowException, EOFError, KeyError)

# of a row group, which is what memory holds
GROUP_ROWS = 65_536
GROUP_BYTES = 16 << 20

DECIMAL = pa.decimal128(38, 18)
TEXT = ".text"


def encode(rows: Iterable[bytes], file: BinaryIO, columns: Sequence[Mapping[str, str]]) -> str:
    """Write CSV as Parquet; the SHA-256 of the CSV that `decode` gives of it."""
    digest = hashlib.sha256()
    schema = _schema(columns)
    with pq.ParquetWriter(
        pa.PythonFile(file, mode="w"), schema, compression="zstd", write_page_index=True
    ) as writer:
        for group in _groups(rows):
            table = _typed(group, columns, schema)
            digest.update(_csv(table, columns))
            writer.write_table(table)
    return digest.hexdigest()


def decode(file: BinaryIO, columns: Sequence[Mapping[str, str]]) -> Iterator[bytes]:
    """The CSV of a file, a row group at a time."""
    parquet = pq.ParquetFile(file, pre_buffer=False)
    for number in range(parquet.num_row_groups):
        yield _csv(parquet.read_row_group(number), columns)


def _groups(rows: Iterable[bytes]) -> Iterator[bytes]:
    gathered: list[bytes] = []
    size = 0
    for record in csvfile.records(rows):
        gathered.append(record)
        size += len(record)
        if len(gathered) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield b"".join(gathered)
            gathered, size = [], 0
    if gathered:
        yield b"".join(gathered)


def _schema(columns: Sequence[Mapping[str, str]]) -> pa.Schema:
    fields = []
    for column in columns:
        kind = _kind(column["type"])
        metadata = {"postgresql_type": column["type"]}
        fields.append(pa.field(column["name"], kind[0], metadata=metadata))
        if kind[0] == DECIMAL:
            fields.append(pa.field(column["name"] + TEXT, pa.string()))
    return pa.schema(fields)


def _typed(group: bytes, columns: Sequence[Mapping[str, str]], schema: pa.Schema) -> pa.Table:
    names = [column["name"] for column in columns]
    texts = pa_csv.read_csv(
        io.BytesIO(group),
        read_options=pa_csv.ReadOptions(
            column_names=names, block_size=len(group) + 1, use_threads=False
        ),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
        convert_options=pa_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()),
            null_values=[""],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    ).combine_chunks()
    arrays = []
    for column in columns:
        text = _whole(texts[column["name"]])
        type_, read, _ = _kind(column["type"])
        if type_ == DECIMAL:
            value, rest = _decimals(text)
            arrays += [value, rest]
        else:
            arrays.append(read(text))
    return pa.Table.from_arrays(arrays, schema=schema)


def _csv(table: pa.Table, columns: Sequence[Mapping[str, str]]) -> bytes:
    texts = []
    for column in columns:
        value = _whole(table[column["name"]])
        type_, _, write = _kind(column["type"])
        text = write(value)
        if type_ == DECIMAL:
            text = pc.coalesce(_whole(table[column["name"] + TEXT]), text)
        texts.append(text)
    out = io.BytesIO()
    options = pa_csv.WriteOptions(include_header=False, quoting_style="needed")
    plain = pa.table(texts, names=[column["name"] for column in columns])
    # pyarrow quotes every text and no null, which is how COPY tells them apart
    pa_csv.write_csv(plain, out, options)
    return out.getvalue()


def _whole(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays(whole.chunks)


Read = Callable[[pa.Array], pa.Array]


def _kind(type_: str) -> tuple[pa.DataType, Read, Read]:
    """Of a type of PostgreSQL: the type it is kept as, how it is read from text, and written."""
    name, _, _ = type_.partition("(")
    if name in ("vector", "halfvec", "real[]"):
        return _numbers(pa.float32(), "[]" if name != "real[]" else "{}")
    if name in ("smallint[]", "integer[]", "bigint[]"):
        return _numbers(pa.int64(), "{}")
    return _KINDS.get(name, (pa.string(), _same, _same))


def _cast(type_: pa.DataType) -> tuple[pa.DataType, Read, Read]:
    return type_, lambda text: text.cast(type_), lambda value: value.cast(pa.string())


def _same(array: pa.Array) -> pa.Array:
    return array


def _numbers(item: pa.DataType, brackets: str) -> tuple[pa.DataType, Read, Read]:
    type_ = pa.list_(item)

    def read(text: pa.Array) -> pa.Array:
        inner = pc.utf8_trim(text, characters=brackets)
        split = pc.split_pattern(inner, ",")
        # of nothing it makes one empty text
        empty = pa.array([[]], type_)[0]
        filled = pc.if_else(pc.equal(inner, ""), pa.scalar(["0"], split.type), split)
        return pc.if_else(pc.equal(inner, ""), empty, filled.cast(type_))

    def write(value: pa.Array) -> pa.Array:
        joined = pc.binary_join(value.cast(pa.list_(pa.string())), ",")
        return pc.binary_join_element_wise(brackets[0], joined, brackets[1], "")

    return type_, read, write


def _decimals(text: pa.Array) -> tuple[pa.Array, pa.Array]:
    """The decimals, cut at 18 places, and the text of what is not such a one to the letter."""
    is_number = _matches(text, r"^-?\d{1,20}(\.\d+)?$")
    is_same = pc.and_not(_matches(text, r"^-?\d{1,20}(\.\d{0,17}[1-9])?$"), _matches(text, "^-0$"))
    none = pa.scalar(None, pa.string())
    short = pc.replace_substring_regex(text, r"(\.\d{18})\d+$", r"\1")
    return pc.if_else(is_number, short, none).cast(DECIMAL), pc.if_else(is_same, none, text)


def _matches(text: pa.Array, pattern: str) -> pa.Array:
    return pc.fill_null(pc.match_substring_regex(text, pattern), False)


def _decimal_text(value: pa.Array) -> pa.Array:
    found = (None if each is None else _plain(each) for each in value.to_pylist())
    return pa.array(list(found), pa.string())


def _plain(number: Decimal) -> str:
    return f"{number:f}".rstrip("0").rstrip(".") or "0"


def _time(text: pa.Array) -> pa.Array:
    # as PostgreSQL writes it, or as this does
    plain = pc.replace_substring_regex(text, r"(\+00|Z)$", "")
    return plain.cast(pa.timestamp("us")).cast(pa.timestamp("us", tz="UTC"))


def _bytes(text: pa.Array) -> pa.Array:
    return pa.array(
        [None if each is None else bytes.fromhex(each[2:]) for each in text.to_pylist()],
        pa.binary(),
    )


def _bytes_text(value: pa.Array) -> pa.Array:
    found = (None if each is None else "\\x" + each.hex() for each in value.to_pylist())
    return pa.array(list(found), pa.string())


def _uuid(text: pa.Array) -> pa.Array:
    digits = pc.fill_null(pc.replace_substring(text, "-", ""), "0" * 32)
    data = bytes.fromhex("".join(digits.to_pylist()))
    ids = pa.Array.from_buffers(pa.binary(16), len(text), [None, pa.py_buffer(data)])
    known = pc.if_else(text.is_valid(), ids, pa.scalar(None, pa.binary(16)))
    return pa.ExtensionArray.from_storage(pa.uuid(), known)


def _uuid_text(value: pa.Array) -> pa.Array:
    ids = pc.fill_null(value.storage, bytes(16))
    start = 16 * ids.offset
    digits = ids.buffers()[1][start : start + 16 * len(ids)].to_pybytes().hex().encode()
    fixed = pa.Array.from_buffers(pa.binary(32), len(ids), [None, pa.py_buffer(digits)])
    text = fixed.cast(pa.binary()).cast(pa.string())
    dashed = pc.replace_substring_regex(text, "^(.{8})(.{4})(.{4})(.{4})", r"\1-\2-\3-\4-")
    return pc.if_else(value.is_valid(), dashed, pa.scalar(None, pa.string()))


_KINDS: dict[str, tuple[pa.DataType, Read, Read]] = {
    "bigint": _cast(pa.int64()),
    "integer": _cast(pa.int32()),
    "smallint": _cast(pa.int16()),
    "double precision": _cast(pa.float64()),
    "real": _cast(pa.float32()),
    "boolean": (
        pa.bool_(),
        lambda text: pc.equal(text, "t"),
        lambda value: pc.if_else(value, "t", "f"),
    ),
    "numeric": (DECIMAL, _same, _decimal_text),
    "timestamp with time zone": (
        pa.timestamp("us", tz="UTC"),
        _time,
        lambda value: value.cast(pa.string()),
    ),
    "bytea": (pa.binary(), _bytes, _bytes_text),
    "uuid": (pa.uuid(), _uuid, _uuid_text),
}
