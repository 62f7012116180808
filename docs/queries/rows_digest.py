#!/usr/bin/env python3
"""The digest of a table's rows (docs/formats/ledger.md, "Digest of rows"): rows_digest.py FILE.parquet KIND."""
# SPDX-License-Identifier: Apache-2.0
import hashlib, itertools, struct, sys

import pyarrow as pa, pyarrow.compute as pc, pyarrow.parquet as pq

ORDER = """host tap domain instance vo payload first last orig_ip orig_port resp_ip resp_port proto vlan
    orig_packets orig_bytes resp_packets resp_bytes orig_flags resp_flags""".split()


def plain(column):
    """One stretch; words as text, times as their nanoseconds."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(pa.string())
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def ordered(table, kind):
    if kind != "flows":
        return table
    keyed, keys = table, []
    for name in (name for name in ORDER if name in table.column_names):
        if table[name].null_count:
            # Null first, in every version of pyarrow.
            keyed = keyed.append_column(f"{name}?", pc.cast(pc.is_valid(table[name]), pa.uint8()))
            keys.append((f"{name}?", "ascending"))
        keys.append((name, "ascending"))
    # Stable: rows that are alike in all of these stay as they are.
    return table.take(pc.sort_indices(keyed, sort_keys=keys))


def texts(column):
    """Runs of equal values: how many, how many bytes each (all ones: null), the bytes."""
    for value, run in itertools.groupby(column.to_pylist()):
        count = sum(1 for _ in run)
        if value is None:
            yield struct.pack("<II", count, 0xFFFFFFFF)
        else:
            data = value if isinstance(value, bytes) else value.encode()
            yield struct.pack("<II", count, len(data)) + data


def numbers(column):
    """0: all null; 1 and the values; or 2, a bit for each row, and the values with zero for null."""
    rows, width = len(column), column.type.bit_width // 8
    if rows and column.null_count == rows:
        yield b"\0"
        return
    if column.null_count == 0:
        yield b"\1"
    else:
        there = bytearray((rows + 7) // 8)
        for row, is_there in enumerate(column.is_valid().to_pylist()):
            there[row // 8] |= is_there << row % 8
        yield b"\2" + bytes(there)
    letter = {1: "B", 2: "H", 4: "I", 8: "Q"}[width]
    values = column.fill_null(0).to_pylist()
    yield struct.pack(f"<{rows}{letter.lower() if pa.types.is_signed_integer(column.type) else letter}", *values)


def digest(table, kind):
    table = pa.table({name: plain(table[name]) for name in table.column_names})
    table = ordered(table, kind).combine_chunks()
    sha256 = hashlib.sha256(struct.pack("<Q", table.num_rows))
    for name in table.column_names:
        if name == "segment":
            continue
        column = plain(table[name])
        sha256.update(name.encode() + b"\0")
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type):
            parts = texts(column)
        elif pa.types.is_boolean(column.type):
            parts = [bytes(column.fill_null(False).to_pylist())]
        else:
            parts = numbers(column)
        for part in parts:
            sha256.update(part)
    return sha256.hexdigest()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    # The file as it is: the names of its folders (date=, host=) are no columns of it.
    print(digest(pq.ParquetFile(sys.argv[1]).read(), sys.argv[2]))
