"""The images of a run on many machines, as Parquet tables whose row groups are distributed to the workers.

A table has one of three layouts: a column ``image`` with addresses or paths; a column ``bytes`` with the content of
image files, and optionally ``image`` with their names; or a column ``image`` of structs with the fields ``bytes`` and
``path``, as in data sets on the Hugging Face Hub. For folders and patterns a table of addresses is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from glob import has_magic
from io import BytesIO
from pathlib import PurePosixPath
from typing import Any, Literal, NamedTuple

from maskkit.checkpoints.listing import one_line
from maskkit.cluster.storage import Storage, fetch, file_system, is_address, opened
from maskkit.data.images import SUFFIXES
from maskkit.errors import DataError, FileError
from maskkit.infer.runtimes import require
from maskkit.infer.sources import Item, numbered_images, stored_image

LIST = "images.parquet"
"""The table of addresses, in the folder of the run."""
_PARTS = 1000
"""The number of parts of a run, as far as the limits of their size allow."""
_SMALLEST, _LARGEST = 16, 4096
"""Images in a part. A worker that dies loses at most one part; each part is one file."""
_AT_ONCE = 16
"""Rows of a table that are in memory at a time."""

Layout = Literal["addresses", "bytes", "structs"]


class Table(NamedTuple):
    """A Parquet file with images."""

    address: str
    layout: Layout
    groups: tuple[int, ...]
    """Number of rows of each row group."""


class Part(NamedTuple):
    """Row groups of a table that one worker predicts; its results are one file."""

    number: int
    table: str
    layout: Layout
    begin: int
    """The first row group."""
    end: int
    """The row group after the last one."""
    row: int
    """Number of rows of the table before it."""
    first: int
    """Id of its first image."""
    images: int
    """Number of images."""

    @property
    def name(self) -> str:
        """The name of the file with its results."""
        return f"part-{self.number:06d}.parquet"


def is_table(source: str) -> bool:
    """Whether the name of a source is that of a Parquet file, or a pattern of such names."""
    return source.partition("::")[0].lower().endswith(".parquet")


def addresses(source: str) -> list[str]:
    """The files at an address, sorted: one file, the matches of a pattern, or the images of a folder.

    Raises `DataError` where there is none, `FileError` where the storage fails.
    """
    system, path = file_system(source)
    head, chain, tail = source.partition("::")
    try:
        if has_magic(head):
            found = system.glob(path)
        elif system.isdir(path):
            found = [name for name in system.ls(path, detail=False) if PurePosixPath(name).suffix.lower() in SUFFIXES]
        else:
            return [source]  # a missing file fails when it is read
    except Exception as error:
        raise FileError(f"{source}: cannot be listed ({one_line(error)}); check the address") from None
    if not found:
        raise DataError(f"{source}: contains no image; check the address")
    return [system.unstrip_protocol(name) + chain + tail for name in sorted(found)]


def open_table(address: str) -> Table:
    """The table in a Parquet file. Raises `DataError` for another file, and for one without a column of images."""
    parquet = require("pyarrow.parquet", "cluster")
    with opened(address) as file:
        try:
            about = parquet.ParquetFile(file)
            layout = _layout(about.schema_arrow)
            groups = tuple(about.metadata.row_group(i).num_rows for i in range(about.metadata.num_row_groups))
        except (ValueError, OSError) as error:  # pyarrow.ArrowInvalid is a ValueError
            raise DataError(f"{address}: is no Parquet file that can be read ({one_line(error)})") from None
    if layout is None:
        raise DataError(
            f"{address}: has the columns {', '.join(about.schema_arrow.names)}; name the addresses of images 'image', "
            "or their content 'bytes'"
        )
    return Table(address, layout, groups)


def _layout(schema: Any) -> Layout | None:
    types = require("pyarrow", "cluster").types
    kinds = dict(zip(schema.names, schema.types, strict=True))
    image, content = kinds.get("image"), kinds.get("bytes")
    if content is not None and (types.is_binary(content) or types.is_large_binary(content)):
        return "bytes"
    if image is not None and types.is_struct(image) and image.get_field_index("bytes") >= 0:
        return "structs"
    is_text = image is not None and (types.is_string(image) or types.is_large_string(image))
    return "addresses" if is_text else None


def rows_of(table: Table, begin: int = 0, end: int | None = None, first: int = 0) -> Iterator[tuple[str, bytes | None]]:
    """The name of each image of some row groups, and its content if the table has it.

    An image without a name is called after its row, counted from 1; ``first`` is the number of rows before ``begin``.
    Raises `DataError` for a damaged table, `FileError` where the storage fails.
    """
    parquet = require("pyarrow.parquet", "cluster")
    groups = range(begin, len(table.groups) if end is None else end)
    with opened(table.address) as file:
        source = parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        wanted = [name for name in ("image", "bytes") if name in source.schema_arrow.names]
        batches = source.iter_batches(_AT_ONCE, row_groups=list(groups), columns=wanted)
        try:
            for row, record in enumerate((r for batch in batches for r in batch.to_pylist()), first + 1):
                name, content = record.get("image"), record.get("bytes")
                if table.layout == "structs":
                    name, content = (name.get("path"), name.get("bytes")) if name else (None, None)
                yield name or f"{table.address}, row {row}", content
        except ValueError as error:  # such as names that are not UTF-8
            raise DataError(f"{table.address}: is damaged ({one_line(error)}); write it again") from None


def write_list(storage: Storage, names: Sequence[str]) -> None:
    """Write the table of addresses of a run, with a row group for each part."""
    pa, parquet = require("pyarrow", "cluster"), require("pyarrow.parquet", "cluster")
    size = part_size(len(names))
    content, schema = BytesIO(), pa.schema([("image", pa.string())])
    with parquet.ParquetWriter(content, schema, compression="zstd") as writer:
        for begin in range(0, len(names), size):
            writer.write_table(pa.table({"image": names[begin : begin + size]}, schema), row_group_size=size)
    storage.write(LIST, content.getvalue())


def part_size(images: int) -> int:
    """Images per part in a run with this number of images."""
    return min(max(images // _PARTS, _SMALLEST), _LARGEST)


def parts_of(tables: Iterable[Table]) -> list[Part]:
    """The parts of a run, each of whole row groups. Image ids are positions in all tables together, from 1."""
    tables = list(tables)
    size = part_size(sum(sum(table.groups) for table in tables))
    parts: list[Part] = []
    first = 1
    for table in tables:
        begin = row = images = 0
        for group, rows in enumerate(table.groups):
            images += rows
            if images >= size or group == len(table.groups) - 1:
                parts.append(Part(len(parts), table.address, table.layout, begin, group + 1, row, first, images))
                begin, row, first, images = group + 1, row + images, first + images, 0
    return parts


def items_of(part: Part) -> Iterator[Item]:
    """The images of a part, with their ids; each is read when its `Item` is."""
    table = Table(part.table, part.layout, ())
    for number, (name, content) in enumerate(rows_of(table, part.begin, part.end, part.row), part.first):
        if part.layout != "addresses":
            yield stored_image(number, name, partial(_present, name, content))
        elif is_address(name):
            yield stored_image(number, name, partial(fetch, name))
        else:
            yield from numbered_images([(number, name)])


def _present(name: str, content: bytes | None) -> bytes:
    if content is None:
        raise DataError(f"{name}: has no content; write its bytes")
    return content
