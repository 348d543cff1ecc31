# ruff: noqa: E501 -- a table with one kind of input a line, however long, so that rows can be compared
"""Kinds of input: one table from which `docs/inputs.md` is written and every row of which is a test.

python tests/data/input_kinds.py > docs/inputs.md
"""

import bz2
import datetime
import decimal
import gzip
import io
import itertools
import json
import lzma
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet

NA = None  # a missing entry
TABLE = "age,zip,y\n31,00501,a\n42,,b\n"
COLUMNS = {"age": ["31", "42"], "zip": ["00501", NA], "y": ["a", "b"]}
DAY, NOON = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 12)


class Kind(NamedTuple):
    """A kind of input: how it is made, what is read, and what the docs say."""

    section: str
    name: str
    make: Callable[[Path], str]  # writes files in a folder and returns the source
    expected: Mapping[str, Sequence[Any]] | str  # columns, or a regular expression that the error matches
    sentence: str
    note: str = ""  # a regular expression that a note matches; no note where it is empty
    dtypes: str = ""  # of the columns, with blanks between them; `str` for all where it is empty


class Taken(NamedTuple):
    """A kind of column, and what the data card calls it."""

    name: str
    make: Callable[[Path], str]  # writes a table whose first column is of the kind
    kind: str  # of `columns.KINDS`
    sentence: str
    note: str = ""  # a regular expression that the line of the card matches


def file(name: str, content: bytes | str) -> Callable[[Path], str]:
    """Writes one file."""

    def make(folder: Path) -> str:
        path = folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return make


def zipped(*names: str) -> bytes:
    """An archive with the same table under each name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, TABLE)
    return buffer.getvalue()


def arrow(columns: Mapping[str, Any] | pa.Table, write: Callable[[pa.Table, Any], Any]) -> bytes:
    """The bytes of a table of Arrow in one of its formats."""
    buffer = io.BytesIO()
    write(columns if isinstance(columns, pa.Table) else pa.table(dict(columns)), buffer)
    return buffer.getvalue()


def parquet(columns: Mapping[str, Any]) -> bytes:
    """The bytes of a Parquet file."""
    return arrow(columns, pyarrow.parquet.write_table)


def stream(table: pa.Table, buffer: io.BytesIO) -> None:
    """Writes a stream of Arrow."""
    with pa.ipc.new_stream(buffer, table.schema) as writer:
        writer.write_table(table)


def sheet(*sheets: Sequence[Sequence[Any]]) -> bytes:
    """The bytes of an Excel file."""
    buffer = io.BytesIO()
    with pd.ExcelWriter(buffer, engine="openpyxl") as writer:
        for i, rows in enumerate(sheets, start=1):
            pd.DataFrame(rows, dtype=object).to_excel(writer, sheet_name=f"Sheet{i}", header=False, index=False)
    return buffer.getvalue()


def folder_of(pattern: str, **contents: bytes | str) -> Callable[[Path], str]:
    """Writes several files; the source is a pattern, or names with commas between them."""

    def make(folder: Path) -> str:
        for name, content in contents.items():
            file(name.replace("_", "."), content)(folder)
        return ",".join(str(folder / part) for part in pattern.split(","))

    return make


def rows(*cells: str, name: str = "x") -> Callable[[Path], str]:
    """Writes a .csv of 40 rows with a column that goes through ``cells``, and another."""
    lines = [f'"{cells[i % len(cells)]}",{i % 7}' for i in range(40)]
    return file("t.csv", "\n".join([f"{name},other", *lines]) + "\n")


AB = {"a": ["1", "3"], "b": ["2", "4"]}
PARQUET = parquet({"age": [31, None], "zip": ["00501", None]})
PARQUET_COLUMNS = {"age": [31, NA], "zip": ["00501", NA]}

TEXT = "Delimited text: .csv, .tsv, .txt"
HEADER = "Header and lines"
CELLS = "Cells of text files"
TYPED = "Files with types"
PACKED = "Packed files, several files, names"
DAMAGED = "What is refused"

KINDS = (
    Kind(TEXT, "UTF-8", file("t.csv", TABLE), COLUMNS, "Every cell is text, as it stands in the file."),
    Kind(TEXT, "UTF-8 with a byte order mark", file("t.csv", b"\xef\xbb\xbf" + TABLE.encode()), COLUMNS, "The mark is left out of the first name."),
    Kind(TEXT, "UTF-16 with a byte order mark", file("t.csv", TABLE.encode("utf-16")), COLUMNS, "Decoded; a note names the encoding.", "UTF-16"),
    Kind(TEXT, "Windows-1252", file("t.csv", "name,y\nKöln €,1\n".encode("cp1252")), {"name": ["Köln €"], "y": ["1"]}, "Decoded; a note names the first line that is not UTF-8.", "line 2 is not UTF-8: read as Windows-1252"),
    Kind(TEXT, "Latin-1 with control characters", file("t.csv", b"name,y\n\x81\xe9 and more text,1\n"), {"name": ["\x81é and more text"], "y": ["1"]}, "Decoded; noted.", "Latin-1"),
    Kind(TEXT, "semicolons", file("t.csv", "a;b\n1;2\n3;4\n"), AB, "Recognised; noted.", "semicolons"),
    Kind(TEXT, "tabs", file("t.tsv", "a\tb\n1\t2\n3\t4\n"), AB, "Recognised."),
    Kind(TEXT, "tabs in a .csv", file("t.csv", "a\tb\n1\t2\n3\t4\n"), AB, "Recognised; noted.", "tabs"),
    Kind(TEXT, "vertical bars in a .txt", file("t.txt", "a|b\n1|2\n3|4\n"), AB, "Recognised; noted.", "vertical bars"),
    Kind(TEXT, "text with commas between semicolons", file("t.csv", "a;b\nyes, no;2\nyes, no, or;4\n"), {"a": ["yes, no", "yes, no, or"], "b": ["2", "4"]}, "The delimiter is what gives most lines, and the first, one number of fields.", "semicolons"),
    Kind(TEXT, "decimal commas", file("t.csv", "a;b\n3,14;x\n-1,5e3;y\n"), {"a": ["3,14", "-1,5e3"], "b": ["x", "y"]}, "Text; the commands read the numbers with a decimal comma.", "semicolons"),
    Kind(TEXT, "thousands with commas", file("t.csv", 'a,b\n"1,234",x\n"12,500",y\n'), {"a": ["1,234", "12,500"], "b": ["x", "y"]}, "Text; the commands take the commas as thousands separators."),
    Kind(TEXT, "`sep=;` in the first line, as Excel writes it", file("t.csv", "sep=;\na;b\n1;2\n3;4\n"), AB, "The line names the delimiter; the header follows.", "semicolons"),
    Kind(TEXT, "no delimiter", file("t.txt", "text\nhello\nworld\n"), {"text": ["hello", "world"]}, "One column; noted.", "no delimiter"),
    Kind(HEADER, "titles above the header", file("t.csv", "Report of 2024\n\na,b,c\n1,2,3\n"), {"a": ["1"], "b": ["2"], "c": ["3"]}, "Left out; their number is noted.", "left out 1 line above the header"),
    Kind(HEADER, "comments above the header", file("t.csv", "# made on Monday, at noon, by hand\n# v2\na,b\n1,2\n3,4\n"), AB, "Left out; their number is noted.", "left out 2 lines above the header"),
    Kind(HEADER, "blanks around names", file("t.csv", " a , b\n1,2\n3,4\n"), AB, "Names are stripped."),
    Kind(HEADER, "a line break in a name", file("t.csv", '"price\n(USD)",b\n1,2\n'), {"price (USD)": ["1"], "b": ["2"]}, "A blank."),
    Kind(HEADER, "the row index of pandas", file("t.csv", ",a,b\n0,1,2\n1,3,4\n"), {"Unnamed: 0": ["0", "1"], **AB}, "The column without a name is called `Unnamed: 0`; the commands recognise it as an index and leave it out.", "called 'Unnamed: 0'"),
    Kind(HEADER, "the row names of R, without a name in the header", file("t.tsv", "a\tb\nr1\t1\t2\nr2\t3\t4\n"), {"Unnamed: 0": ["r1", "r2"], **AB}, "The first column is called `Unnamed: 0`.", "called 'Unnamed: 0'"),
    Kind(HEADER, "a delimiter at the end of each line", file("t.csv", "a,b,\n1,2,\n3,4,\n"), AB, "The empty column is left out; noted.", "left out 1 empty column without a name"),
    Kind(HEADER, "columns counted from 0", file("t.csv", "0,1\n1,2\n3,4\n"), {"0": ["1", "3"], "1": ["2", "4"]}, "Names are the numbers, as text."),
    Kind(HEADER, "no header, numbers only", file("t.csv", "5.1,3.5,0\n4.9,3.0,1\n"), r"found numbers only in the first line \(5\.1, 3\.5, 0, \.\.\.\), expected names .* add a header line", "Refused."),
    Kind(HEADER, "a name twice", file("t.csv", "a,b,a\n1,2,3\n"), r"found 'a' as the name of columns \[1, 3\], expected distinct names", "Refused, with the positions."),
    Kind(HEADER, "blank lines", file("t.csv", "a,b\n\n1,2\n\n3,4\n\n"), AB, "Passed over."),
    Kind(HEADER, "rows of delimiters only, as spreadsheets leave them", file("t.csv", "a,b\n1,2\n3,4\n,\n,\n"), AB, "Left out; their number is noted.", "left out 2 rows without any entry"),
    Kind(HEADER, "line ends of Windows and of old Macs", folder_of("t.csv,u.csv", t_csv="a,b\r\n1,2\r\n", u_csv="a,b\r3,4\r"), AB, "Both are line ends.", "read 2 files"),
    Kind(HEADER, "a line with too few fields", file("t.csv", "a,b\n1,2\n3\n4,5\n"), "line 3: found 1 field, expected 2", "Refused, with the number of the line."),
    Kind(HEADER, "a line with too many fields", file("t.csv", 'a,b\n"two\nlines",2\n3,4,5\n'), "line 4: found 3 fields, expected 2", "Refused, with the number of the line, that of an editor."),
    Kind(CELLS, "numbers with zeros in front", file("t.csv", "zip,y\n00501,1\n10001,2\n"), {"zip": ["00501", "10001"], "y": ["1", "2"]}, "The text stays as it is, as an id byte for byte."),
    Kind(CELLS, "integers beyond 2^53, and 17 digits", file("t.csv", "id,x\n9007199254740993,0.1000000000000000055\n"), {"id": ["9007199254740993"], "x": ["0.1000000000000000055"]}, "No digit is lost in reading; a feature becomes the nearest float64."),
    Kind(CELLS, "commas, quotes and line breaks in quotes", file("t.csv", 'a,b\n"x, y","say ""hi"""\n"two\nlines",2\n'), {"a": ["x, y", "two\nlines"], "b": ['say "hi"', "2"]}, "One cell, as in RFC 4180."),
    Kind(CELLS, "a blank before a quote", file("t.csv", 'a, b\n1, "x, y"\n3, z\n'), {"a": ["1", "3"], "b": ["x, y", "z"]}, "The quotes count, and blanks after delimiters are left out."),
    Kind(CELLS, "an empty cell, in quotes or not", file("t.csv", 'a,b\n,1\n"",2\n'), {"a": [NA, NA], "b": ["1", "2"]}, "Missing."),
    Kind(CELLS, "a quote that is not closed", file("t.csv", 'a,b\n1,"x\n2,y\n3,z\n'), "found a quote that is not closed, 3 lines before the end", "Refused, with its line counted from the end."),
    Kind(CELLS, "NUL bytes", file("t.csv", b"a,b\n1,\x00\n"), "found NUL bytes, expected text", "Refused."),
    Kind(TYPED, "Parquet: integers and booleans, some missing", file("t.parquet", parquet({"a": pa.array([2**53 + 1, None]), "b": [True, None], "c": pa.array([1, 2], pa.int8())})), {"a": [2**53 + 1, NA], "b": [True, NA], "c": [1, 2]}, "Types and digits are kept.", dtypes="Int64 boolean int8"),
    Kind(TYPED, "Parquet: text that looks like numbers", file("t.parquet", parquet({"zip": ["00501", None]})), {"zip": ["00501", NA]}, "Text."),
    Kind(TYPED, "Parquet: categories", file("t.parquet", parquet({"a": pa.array(["x", None, "y"]).dictionary_encode()})), {"a": ["x", NA, "y"]}, "Categories.", dtypes="category"),
    Kind(TYPED, "Parquet: decimals", file("t.parquet", parquet({"a": [decimal.Decimal("1.50"), None]})), {"a": [decimal.Decimal("1.50"), NA]}, "Numbers.", dtypes="decimal128(3,2)[pyarrow]"),
    Kind(TYPED, "Parquet: dates, and times with a zone", file("t.parquet", parquet({"a": [DAY, None], "b": pa.array([NOON, None], pa.timestamp("us", "Asia/Tokyo"))})), {"a": [pd.Timestamp(DAY), NA], "b": [pd.Timestamp(NOON, tz="UTC"), NA]}, "Dates.", dtypes="datetime64[ms] datetime64[us,Asia/Tokyo]"),
    Kind(TYPED, "Parquet: text stored as bytes", file("t.parquet", parquet({"a": [b"x", None]})), {"a": ["x", NA]}, "Text, where the bytes are UTF-8."),
    Kind(TYPED, "Parquet: a column without any entry", file("t.parquet", parquet({"a": pa.nulls(2), "b": [1, 2]})), {"a": [NA, NA], "b": [1, 2]}, "A column of missing numbers.", dtypes="float64 int64"),
    Kind(TYPED, "Parquet: lists or structures", file("t.parquet", parquet({"a": [[1, 2], None]})), {"a": [[1, 2], NA]}, "Objects, which the commands refuse by name unless dropped.", dtypes="object"),
    Kind(TYPED, "Parquet: an index of pandas", file("t.parquet", pd.DataFrame({"a": [1, 2]}, index=pd.Index(["p", "q"], name="key")).to_parquet()), {"a": [1, 2], "key": ["p", "q"]}, "A column under its name (`__index_level_0__` without one).", dtypes="int64 str"),
    Kind(TYPED, "Feather", file("t.feather", arrow({"a": [1.5, 2.5]}, pyarrow.feather.write_feather)), {"a": [1.5, 2.5]}, "As Parquet.", dtypes="float64"),
    Kind(TYPED, "an Arrow stream", file("t.arrow", arrow({"a": ["x", "y"]}, stream)), {"a": ["x", "y"]}, "As Parquet."),
    Kind(TYPED, "Excel: numbers, text, dates, truth values", file("t.xlsx", sheet([["n", "zip", "day", "ok"], [3, "00501", NOON, True], [None, "10001", None, False]])), {"n": [3, NA], "zip": ["00501", "10001"], "day": [pd.Timestamp(NOON), NA], "ok": [True, False]}, "Types of the cells; whole numbers are integers.", dtypes="Int64 str datetime64[us] bool"),
    Kind(TYPED, "Excel: numbers and text in one column", file("t.xlsx", sheet([["n"], [3], ["?"], [2.5]])), {"n": ["3", "?", "2.5"]}, "Text; the commands then apply the rule of text files."),
    Kind(TYPED, "Excel: titles above the header, empty rows, several sheets", file("t.xlsx", sheet([["Report", None, None], [None, None, None], ["a", "b", "c"], [1, 2, 3]], [["other"], [1]])), {"a": [1], "b": [2], "c": [3]}, "The first sheet with cells is read, from its header on; notes say so.", "first of 2.*left out 1 line above", "int64 int64 int64"),
    Kind(TYPED, "JSON lines", file("t.jsonl", '{"a": 1, "b": "00501"}\n\n{"a": null, "c": 1.5}\n'), {"a": [1, NA], "b": ["00501", NA], "c": [NA, 1.5]}, "Types of the values; a key that a record lacks is missing.", dtypes="Int64 str float64"),
    Kind(TYPED, "JSON: a list of records", file("t.json", json.dumps([{"a": 2**53 + 1}, {"a": 2}], indent=1)), {"a": [2**53 + 1, 2]}, "As JSON lines.", dtypes="int64"),
    Kind(TYPED, "JSON: columns, as pandas writes them", file("t.json", pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}).to_json() or ""), {"a": [1, 2], "b": ["x", "y"]}, "As JSON lines.", dtypes="int64 str"),
    Kind(TYPED, "JSON: integers and text in one column", file("t.jsonl", '{"a": 1}\n{"a": "?"}\n'), {"a": ["1", "?"]}, "Text; the commands then apply the rule of text files."),
    Kind(TYPED, "JSON: a line that is cut off", file("t.jsonl", '{"a": 1}\n{"a": 2'), "line 2: found no JSON", "Refused, with the number of the line."),
    Kind(PACKED, ".gz", file("t.csv.gz", gzip.compress(TABLE.encode())), COLUMNS, "Unpacked."),
    Kind(PACKED, ".bz2", file("t.csv.bz2", bz2.compress(TABLE.encode())), COLUMNS, "Unpacked."),
    Kind(PACKED, ".xz", file("t.csv.xz", lzma.compress(TABLE.encode())), COLUMNS, "Unpacked."),
    Kind(PACKED, ".zst", file("t.csv.zst", pa.compress(TABLE.encode(), "zstd", asbytes=True)), COLUMNS, "Unpacked."),
    Kind(PACKED, ".zip of one file", file("t.zip", zipped("data/t.csv")), COLUMNS, "Unpacked."),
    Kind(PACKED, ".zip of several files", file("t.zip", zipped("a.csv", "b.csv")), r"found an archive of 2 files \(a\.csv, b\.csv\), expected one table", "Refused, with their names."),
    Kind(PACKED, "a packed Parquet file", file("t.parquet.gz", gzip.compress(PARQUET)), PARQUET_COLUMNS, "Unpacked in memory.", dtypes="Int64 str"),
    Kind(PACKED, "a Parquet file named .csv", file("t.csv", PARQUET), PARQUET_COLUMNS, "The content counts; noted.", r"named \.csv and holds Parquet", "Int64 str"),
    Kind(PACKED, "delimited text named .xls", file("t.xls", TABLE), COLUMNS, "The content counts; noted.", r"named \.xls and holds delimited text"),
    Kind(PACKED, "several files by a pattern", folder_of("part-*.csv", **{"part-1_csv": "a,b\n1,2\n", "part-2_csv": "b,a\n4,3\n"}), AB, "Rows end to end in the order of the names; columns by name.", "read 2 files"),
    Kind(PACKED, "several files with commas between them", folder_of("y.csv,x.csv", y_csv="a,b\n1,2\n", x_csv="a,b\n3,4\n"), AB, "Rows end to end in the order given.", "read 2 files"),
    Kind(PACKED, "several files whose columns differ", folder_of("x.csv,y.csv", x_csv="a,b\n1,2\n", y_csv="a,c\n1,2\n"), r"y\.csv: found no columns \['b'\], which .*x\.csv has", "Refused, with file and columns."),
    Kind(PACKED, "several files whose types differ", folder_of("x.parquet,y.parquet", x_parquet=parquet({"a": [1]}), y_parquet=parquet({"a": ["x"]})), r"y\.parquet: found text in 'a', expected numbers, as in .*x\.parquet", "Refused, with file and column."),
    Kind(PACKED, "several files, a column without entries in one", folder_of("x.parquet,y.parquet", x_parquet=parquet({"a": [2**53 + 1]}), y_parquet=parquet({"a": pa.nulls(1)})), {"a": [2**53 + 1, NA]}, "Missing entries of the type of the others.", "read 2 files", "Int64"),
    Kind(DAMAGED, "no such file", folder_of("trian.csv", train_csv=TABLE), r"trian\.csv: found no such file\. Did you mean train\.csv\?", "Refused, with the closest name of the folder."),
    Kind(DAMAGED, "a folder", folder_of("."), r"found a directory, expected a file, or several, as in .*/\*\.csv", "Refused, with a pattern for the files in it."),
    Kind(DAMAGED, "an empty file", file("t.csv", b""), "found an empty file, expected a header line and rows", "Refused."),
    Kind(DAMAGED, "a header without rows", file("t.csv", "a,b\n"), "found a header and no rows", "Refused."),
    Kind(DAMAGED, "a .gz that is cut off", file("t.csv.gz", gzip.compress(TABLE.encode() * 99)[:-12]), "is damaged, cut off or cannot be read", "Refused."),
    Kind(DAMAGED, "a Parquet file that is cut off", file("t.parquet", PARQUET[:-8]), "is damaged, cut off or cannot be read", "Refused."),
    Kind(DAMAGED, "bytes that are not text", file("t.csv", bytes(range(1, 256)) * 4), "found bytes that are not text", "Refused."),
    Kind(DAMAGED, "HTML named .xls, as web sites export it", file("t.xls", "<html><table>"), "found HTML or XML, expected one of .csv", "Refused by name."),
    Kind(DAMAGED, "a pickle, HDF5, SQLite or PDF", file("t.csv", b"\x80\x04\x95 and so on"), "found a Python pickle, expected one of .csv", "Refused by name; pickles are never opened."),
    Kind(DAMAGED, "a pointer of Git LFS", file("t.csv", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "found a pointer of Git LFS .git lfs pull", "Refused, with the command that brings the file."),
)  # fmt: skip


TAKEN = (
    Taken("numbers, some cells empty", rows("1.5", "", "3"), "number", "Median, and an indicator of what is missing.", "13 missing"),
    Taken("numbers beside NA, null, n/a, ?, -", rows("1.5", "NA", "3", "null", "?"), "number", "Spellings of a missing entry, in any case, are missing.", "24 missing"),
    Taken("integers of few values", rows("1", "2", "3"), "number", "Numbers, unless `--categorical` names the column."),
    Taken("numbers with zeros in front", rows("00501", "10001", "02139"), "category", "Codes, one level each; the zeros stay."),
    Taken("decimal commas", rows("3,14", "2,5", "-1,25"), "number", "Numbers; the card notes it.", "decimal commas"),
    Taken("thousands separators", rows("1,234", "12,500", "999"), "number", "Numbers; the card notes it.", "thousands"),
    Taken("amounts of money", rows("$1.50", "$20.00", "$3"), "number", "Numbers without the sign; the card notes it.", r"\$ removed"),
    Taken("per cent", rows("15 %", "7.5 %", "80 %"), "number", "Numbers without the sign; the card notes it.", "% removed"),
    Taken("infinite numbers", rows("1", "inf", "2"), "number", "Infinite numbers are missing; the card notes it.", "infinite"),
    Taken("yes and no", rows("yes", "no", "no"), "number", "1 and 0; the card notes it.", "no = 0, yes = 1"),
    Taken("numbers and words", rows("1", "2", "low", "3", "high", "4"), "category", "One level for each text; the card notes it.", "mixed"),
    Taken("dates of ISO 8601", rows("2024-01-31", "2024-12-01"), "date", "Days, and parts of the year, week and day."),
    Taken("days before months", rows("31.01.2024", "01.12.2024"), "date", "Recognised by all entries; the card names the format.", "%d.%m.%Y"),
    Taken("months before days", rows("01/31/2024", "12/01/2024"), "date", "Recognised by all entries; the card names the format.", "%m/%d/%Y"),
    Taken("few texts", rows("red", "green", "blue"), "category", "One level for each text.", "3 levels"),
    Taken("few texts, some cells empty", rows("red", "", "blue"), "category", "What is missing is a level of its own.", "3 levels; 13 missing"),
    Taken("another text in each row", file("t.csv", "x,other\n" + "".join(f"a text of {i * i} words,{i % 7}\n" for i in range(60))), "text", "Free text: n-grams of characters, weighted by rarity and reduced.", "60 different texts"),
    Taken("the row index", file("t.csv", ",other\n" + "".join(f"{i},{i % 7}\n" for i in range(40))), "dropped", "Left out.", "row index"),
    Taken("ids", file("t.csv", "account,other\n" + "".join(f"A-{i:05},{i % 7}\n" for i in range(40))), "dropped", "Left out; `--id` takes them as names of rows, byte for byte.", "id: another value in each row"),
    Taken("one value in all rows", rows("7"), "dropped", "Left out.", "constant"),
    Taken("no entry in any row", rows(""), "dropped", "Left out.", "all missing"),
    Taken("Parquet: truth values", file("t.parquet", parquet({"x": [True, False, True] * 10})), "number", "1 and 0.", "false = 0, true = 1"),
    Taken("Parquet: text that looks like numbers, with zeros in front", file("t.parquet", parquet({"x": ["00501", "10001"] * 10})), "category", "Codes, one level each; the zeros stay."),
    Taken("Parquet: categories", file("t.parquet", parquet({"x": pa.array(["x", "y"] * 10).dictionary_encode()})), "category", "One level each."),
    Taken("Parquet: decimals, some missing", file("t.parquet", parquet({"x": [decimal.Decimal("1.50"), None, decimal.Decimal("2.25")] * 10})), "number", "As numbers of text.", "10 missing"),
    Taken("Parquet: times with a zone", file("t.parquet", parquet({"x": pa.array([NOON, NOON + datetime.timedelta(1)] * 10, pa.timestamp("us", "Asia/Tokyo"))})), "date", "In UTC."),
)  # fmt: skip


def page() -> str:
    """The page of the docs."""
    lines = [
        "# What is read, and as what",
        "",
        "Both commands read a source with `d3mjax.data.files.read_table`. This page is made from the table of its tests,",
        "`tests/data/input_kinds.py`; every row is a test. Notes are printed, and are part of the report.",
    ]
    for section, kinds in itertools.groupby(KINDS, key=lambda kind: kind.section):
        lines += ["", f"## {section}", "", "| Input | What it becomes |", "|---|---|"]
        lines += [f"| {kind.name} | {kind.sentence} |" for kind in kinds]
    lines += ["", "## Columns", "", "The kind of a column is that of the data card.", ""]
    lines += ["| Column | Kind | What it becomes |", "|---|---|---|"]
    lines += [f"| {taken.name} | {taken.kind} | {taken.sentence} |" for taken in TAKEN]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
