"""Documents from a column of a Parquet file, or of an Arrow file as Hugging Face datasets are saved in.

pyarrow is imported only here, and only when such a file is read.
"""

from collections.abc import Callable, Iterator
from typing import Any

from lsp import nearest
from lsp.data import files
from lsp.data.files import title, unread, unusable

ROWS = 256  # read at once; a row may be a whole book


def strings(path: str, field: str, read: Callable[[int], object] | None = None) -> Iterator[str]:
    """The texts of the column `field`, row by row; rows without one, or with blank text, are passed over.

    `read` is told about how many stored bytes were read. Raises LspError as `values` does.
    """
    return (document for (document,) in values(path, (field,), read) if document is not None and document.strip())


def values(
    path: str, fields: tuple[str, ...], read: Callable[[int], object] | None = None
) -> Iterator[tuple[Any, ...]]:
    """The columns `fields`, of which the first holds text, row by row.

    `read` is told about how many stored bytes were read. Raises LspError: exit 3 for a damaged file and a column that
    is missing or holds no text, 5 without pyarrow.
    """
    try:
        import pyarrow as arrow
    except ModuleNotFoundError:
        raise unread("pyarrow", path) from None
    stored, row = files.size([path]), 0
    with files.opened(path) as raw:
        try:
            rows, batches = _batches(raw, path, fields)
            for batch in batches:
                column, *others = (batch.column(field) for field in fields)
                if not _holds_text(column.type):
                    raise unusable(
                        f"{title(path)}: the column '{fields[0]}' holds {column.type}, not text.",
                        f"Columns there: {', '.join(batch.schema.names)}. Name one with --set data.text_field=NAME.",
                    )
                for start in range(0, len(column), ROWS):
                    yield from zip(*(c.slice(start, ROWS).to_pylist() for c in (column, *others)), strict=True)
                row += len(column)
                if read is not None:
                    read(stored * row // rows if rows else raw.tell())
        except UnicodeDecodeError:
            raise unusable(f"{title(path)}: text after row {row} is not UTF-8.", "Write the file again.") from None
        except (arrow.ArrowException, EOFError, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the machine's; Arrow's own have no number
                raise
            reason = str(error).splitlines()[0][:200]
            raise unusable(
                f"{title(path)} is damaged or cut short after row {row} ({reason}).", "Fetch or write the file again."
            ) from None


def _batches(raw: Any, path: str, fields: tuple[str, ...]) -> tuple[int, Iterator[Any]]:
    """How many rows there are (0 when the file does not say) and the batches that hold them."""
    from pyarrow import ipc, parquet

    first = raw.peek(8)[:8]
    if first.startswith(b"PAR1"):
        file = parquet.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False)
        _need(fields, file.schema_arrow.names, path)
        return file.metadata.num_rows, file.iter_batches(batch_size=ROWS, columns=list(fields))
    if first.startswith(b"ARROW1"):
        table = ipc.open_file(raw)
        _need(fields, table.schema.names, path)
        return 0, (table.get_batch(index) for index in range(table.num_record_batches))
    stream = ipc.open_stream(raw)
    _need(fields, stream.schema.names, path)
    return 0, iter(stream)


def _need(fields: tuple[str, ...], names: list[str], path: str) -> None:
    for field, key in zip(fields, ("text_field", "client_field"), strict=False):
        if field not in names:
            raise unusable(
                f"{title(path)}: no column '{field}'.{nearest(field, names)}",
                f"Columns there: {', '.join(names) or 'none'}. Name one with --set data.{key}=NAME.",
            )
        if names.count(field) > 1:
            raise unusable(f"{title(path)}: {names.count(field)} columns are named '{field}'.", "Rename all but one.")


def _holds_text(kind: Any) -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_null(kind)
