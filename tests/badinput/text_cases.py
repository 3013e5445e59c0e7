"""Delimited text that is no table: emptiness, headers, delimiters, encodings, quotes, rows, and what is no text at all."""

# ruff: noqa: E501  the tables read better unwrapped

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import zipfile

from tests.badinput.refusals import CELL, Case, Columns


def utf16(text: str) -> bytes:
    return text.encode("utf-16-le")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("t.csv", "k,a\n1,x\n")
    return buffer.getvalue()


GOOD = b"k,a\n1,x\n2,y\n"
GZ = gzip.compress(b"k,a\n" + os.urandom(3000).hex().encode(), mtime=0)
NUMBERS: Columns = ({"name": "k", "type": "number"}, {"name": "a", "type": "string"})
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256))
CFB = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(512)

TEXT = (
    Case("empty", "no byte", b"", ("t.csv is empty", "first line must name the columns")),
    Case("empty", "a byte order mark alone", b"\xef\xbb\xbf", ("t.csv is empty",)),
    Case("empty", "blank lines", b"\n\r\n\n", ("t.csv is empty",)),
    Case("empty", "gzip of nothing", gzip.compress(b""), ("t.csv is empty",)),
    Case("header only", "one line", b"k,a\n", ("t.csv: there is a header, and no rows",)),
    Case("header only", "no line end", b"k,a", ("there is a header, and no rows",)),
    Case("header only", "blank lines below", b"k,a\n\n\n", ("there is a header, and no rows",)),
    Case("header only", "gzip", gzip.compress(b"k,a\n"), ("there is a header, and no rows",)),
    Case("duplicate columns", "one name twice", b"k,a,a\n1,x,2\n", ("column a: stands 2 times",)),
    Case("duplicate columns", "quoted and bare", b'k,a,"a"\n1,x,2\n', ("column a: stands 2 times",)),
    Case("duplicate columns", "all of them", b"k,k\n1,x\n", ("column k: stands 2 times", "column a: is missing")),
    Case("blank column name", "an index column", b",k,a\n0,1,x\n", ("column 1", "has no name")),
    Case("blank column name", "a comma too much", b"k,a,\n1,x,\n", ("column 3", "has no name")),
    Case("blank column name", "blanks only", b"k,a,  \n1,x,\n", ("column 3", "has no name")),
    Case("column missing", "not there", b"k,b\n1,x\n", ("column a: is missing",)),
    Case("column missing", "nearly there", b"kk,a\n1,x\n", ("column k: is missing", "did you mean 'kk'?")),
    Case("column missing", "in capitals", b"K,A\n1,x\n", ("column k: is missing", "did you mean 'K'?")),
    Case("column missing", "a blank before it", b"k, a\n1,x\n", ("column a: is missing", "did you mean ' a'?")),
    Case("column missing", "two byte order marks", b"\xef\xbb\xbf" * 2 + GOOD, ("column k: is missing", "did you mean")),
    Case("column too much", "at the end", b"k,a,c\n1,x,2\n", ("column c: is not in the schema", "extra_columns: drop")),
    Case("no header", "rows from the start", b"1,x\n2,y\n", ("column k: is missing", "column a: is missing")),
    Case("no header", "sensitive cells in its place", CELL.encode() + b",1\n", ("column a: is missing", "column 1 is not in the schema", "is the header missing?"), columns=({"name": "a", "type": "string", "sensitive": True}, {"name": "k", "type": "integer"})),
    Case("no header", "a title first", b"Report of May\nk,a\n1,x\n", ("column k: is missing",)),
    Case("no header", "a comment first", b"# made today\nk,a\n1,x\n", ("column k: is missing",)),
    Case("wrong delimiter", "semicolons", b"k;a\n1;x\n", ('source.csv.delimiter: ";"',)),
    Case("wrong delimiter", "tabs", b"k\ta\n1\tx\n", ('source.csv.delimiter: "\\t"',)),
    Case("wrong delimiter", "bars", b"k|a\n1|x\n", ('source.csv.delimiter: "|"',)),
    Case("wrong delimiter", "commas, semicolons asked for", GOOD, ('delimiter: ","',), source={"csv": {"delimiter": ";"}}),
    Case("wrong delimiter", "decimal commas", b"k;a\n1,5;x\n", ("column k", "type (number)", "row 1", "1,5"), columns=NUMBERS, source={"csv": {"delimiter": ";"}}),
    Case("wrong encoding", "latin-1", b"k,a\n1,x\n2,caf\xe9\n", ("row 2", "is not utf-8", "csv.encoding, often latin-1")),
    Case("wrong encoding", "latin-1 in the header", b"k,\xe9\n1,x\n", ("the header is not utf-8",)),
    Case("wrong encoding", "Windows quotes", b"k,a\n1,\x93x\x94\n", ("row 1", "is not utf-8")),
    Case("wrong encoding", "utf-16", "k,a\n1,x\n".encode("utf-16"), ("is UTF-16, read as utf-8", "csv.encoding: utf-16")),
    Case("wrong encoding", "utf-16 without mark", utf16("k,a\n1,x\n"), ("is not text",)),
    Case("wrong encoding", "utf-16 asked for", GOOD, ("is not utf-16", "csv.encoding"), source={"csv": {"encoding": "utf-16"}}),
    Case("wrong encoding", "utf-16 cut off", "k,a\n1,x\n".encode("utf-16")[:-1], ("is not utf-16",), source={"csv": {"encoding": "utf-16"}}),
    Case("wrong encoding", "utf-32", "k,a\n1,x\n".encode("utf-32"), ("UTF-32",)),
    Case("wrong encoding", "a character cut off", b"k,a\n1,x\n2,caf\xc3", ("row 2", "is not utf-8")),
    Case("wrong encoding", "a lone surrogate", b"k,a\n1,\xed\xa0\x80\n", ("row 1", "is not utf-8")),
    Case("wrong encoding", "a zero in two bytes", b"k,a\n1,\xc0\x80\n", ("row 1", "is not utf-8")),
    Case("quotes", "never closed", b'k,a\n1,x\n2,"y\n3,z\n', ("row 2", "a quote is opened and never closed")),
    Case("quotes", "never closed in the header", b'k,"a\n1,x\n', ("a quote is opened and never closed", "header")),
    Case("quotes", "inside a cell", b'k,a\n1,x\n2,5" pipe\n3,6" pipe\n', ("row 2", "a quote stands in the middle of a cell")),
    Case("quotes", "text behind it", b'k,a\n1,"x"y\n', ("row 1", "a quote stands in the middle of a cell")),
    Case("quotes", "a blank before it", b'k,a\n1, "x, y"\n', ("row 1", "a quote stands in the middle of a cell")),
    Case("quotes", "escaped by backslash", b'k,a\n1,"x \\" y"\n', ("row 1", "a quote")),
    Case("quotes", "another one asked for", b"k,a\n1,'x,y\n", ("a quote is opened and never closed",), source={"csv": {"quote": "'"}}),
    Case("NUL bytes", "in a cell", b"k,a\n1,x\n2,\0\n", ("row 2", "holds a NUL byte")),
    Case("NUL bytes", "in the header", b"k,\0a\n1,x\n", ("is not text",)),
    Case("NUL bytes", "a disk's hole", b"k,a\n1,x\n" + bytes(4096), ("row 2", "holds a NUL byte")),
    Case("NUL bytes", "nothing else", bytes(4096), ("is not text",)),
    Case("ragged rows", "a cell too few", b"k,a\n1,x\n2\n", ("cells (as many cells as the header names)", "row 2: '1 cells'")),
    Case("ragged rows", "a cell too many", b"k,a\n1,x,y\n2,y\n", ("row 1: '3 cells'",)),
    Case("ragged rows", "a comma at each end", b"k,a\n1,x,\n2,y,\n", ("2 rows break it", "row 1: '3 cells'")),
    Case("ragged rows", "a cut-off last line", b"k,a\n1,x\n2,y\n3", ("row 3: '1 cells'",)),
    Case("ragged rows", "a sensitive text with a comma", b"k,s\n1," + CELL.encode() + b",x\n", ("row 1: '3 cells'",), columns=({"name": "k", "type": "integer"}, {"name": "s", "type": "string", "sensitive": True})),
    Case("no text", "a spreadsheet or zip", zipped(), ("zip archive or spreadsheet",)),
    Case("no text", "an old spreadsheet", CFB, ("old Excel file",)),
    Case("no text", "a picture", PNG, ("t.csv", "the header is not utf-8")),
    Case("no text", "a web page", b"<!DOCTYPE html>\n<html><body>Sign in, please</body></html>\n", ("web page",)),
    Case("no text", "JSON", json.dumps([{"k": 1, "a": "x"}]).encode(), ("JSON",)),
    Case("no text", "JSON lines", b'{"k": 1, "a": "x"}\n{"k": 2, "a": "y"}\n', ("JSON",)),
    Case("no text", "bzip2", bz2.compress(GOOD), ("is a bzip2 file",)),
    Case("no text", "xz", lzma.compress(GOOD), ("is an xz file",)),
    Case("gzip", "cut off", GZ[:-900], ("its gzip stream",), file="t.csv.gz"),
    Case("gzip", "two bytes of it", b"\x1f\x8bxxxxxxxxxxxxxx", ("its gzip stream",), file="t.csv.gz"),
    Case("gzip", "a bit flipped", GZ[:1500] + bytes([GZ[1500] ^ 1]) + GZ[1501:], ("its gzip stream",), file="t.csv.gz"),
    Case("gzip", "something behind it", gzip.compress(GOOD) + b"behind", ("its gzip stream",), file="t.csv.gz"),
    Case("gzip", "twice", gzip.compress(gzip.compress(GOOD)), ("is a gzip file within the other",), file="t.csv.gz"),
)  # fmt: skip
