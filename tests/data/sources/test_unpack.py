"""Files as people have them: packed, in other encodings, and with other delimiters."""

import gzip
import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from llama_peft.data import is_file_name
from llama_peft.data.sources import unpack
from llama_peft.errors import UserError
from llama_peft.recipe import Recipe, dump_recipe, load_recipe, strict_yaml
from tests.support.tables import (
    ROME,
    ROWS,
    nested,
    refusal,
    to_csv,
    to_parquet,
    to_tsv,
    train_of,
    whole,
    write,
)


def zipped(members: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


FORMS: dict[str, Callable[[Any], object]] = {
    "rows.csv": to_csv,
    "rows.tsv": to_tsv,
    "rows.json": json.dumps,
    "rows.jsonl": lambda rows: "\n".join(map(json.dumps, rows)),
    "rows.parquet": to_parquet,
}


@pytest.mark.parametrize("name", FORMS)
def test_a_packed_file_gives_the_rows_of_the_file(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, FORMS[name](ROWS))
    expected, content = train_of(whole(file)), file.read_bytes()
    notes = {"__MACOSX/._rows": b"x", "a/": b"", "a/.DS_Store": b"x", f"a/{name}": content}
    for packed, raw in {
        f"{name}.gz": gzip.compress(content, mtime=0),
        f"{name}.GZ": gzip.compress(content[:9], mtime=0) + gzip.compress(content[9:]),
        f"{name}.zip": zipped({"rows": content}),
        "any.zip": zipped(notes),
        f"un-{name}": gzip.compress(content, mtime=0),  # what the name hides
        f"un-{name}.gz": content,  # browsers unpack and keep the name
    }.items():
        assert train_of(whole(write(tmp_path / packed, raw))) == expected, packed


def test_squad_may_be_packed(tmp_path: Path) -> None:
    content = json.dumps(nested([{"text": "Rome", "answer_start": 13}])).encode()
    file = write(tmp_path / "dev.json.gz", gzip.compress(content, mtime=0))
    assert train_of(whole(file, "extractive_qa", format="squad"))[0].answers == ROME


def test_names_of_packed_files_are_names_of_files() -> None:
    assert all(map(is_file_name, ["a.csv.gz", "a.jsonl.GZ", "a.zip", "a/b.csv.zip"]))
    assert not is_file_name("owner/name")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (
            gzip.compress(b"text,label\na,b\n" * 99, mtime=0)[:-12],
            "cannot be unpacked (Compressed file e",
        ),
        (
            gzip.compress(b"text,label\na,b\n", mtime=0)[:-8] + b"\0" * 8,
            "cannot be unpacked (CRC check",
        ),
        (b"\x1f\x8bnothing of this kind", "cannot be unpacked ("),
        (b"PK\x03\x04", "cannot be unpacked ("),
        (zipped({}), "this archive holds 0 files: unpack it and name one of them"),
        (zipped({"a.csv": b"", "b.csv": b""}), "this archive holds 2 files (a.csv, b.csv): unpack"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
        (zipped({"a.csv": b"text,label\na,\xe9\n"}), "line 2: is not UTF-8 text (byte 0xe9)"),
        (zipped({"a.docx": b"x"}), "the name does not say the format: set dataset.format to one"),
    ],
)
def test_what_cannot_be_unpacked_is_one_line(tmp_path: Path, raw: bytes, message: str) -> None:
    file = write(tmp_path / ("a.csv.gz" if raw[:1] == b"\x1f" else "a.zip"), raw)
    assert refusal(whole(file)).startswith(f"{file}: ")
    assert message in refusal(whole(file))
    assert "\n" not in refusal(whole(file))


def test_a_zip_with_a_password_is_one_line(tmp_path: Path) -> None:
    raw = bytearray(zipped({"a.csv": b"text,label\na,b\n"}))
    raw[6] |= 1  # the flags of the member say that it is encrypted, in both places
    raw[raw.index(b"PK\x01\x02") + 8] |= 1
    assert "is encrypted, password required" in refusal(
        whole(write(tmp_path / "a.zip", bytes(raw)))
    )


@pytest.mark.parametrize("name", ["a.csv", "a.json", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("pack", [gzip.compress, lambda raw: zipped({"a": raw})])
def test_a_small_archive_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, pack: Callable[[bytes], bytes]
) -> None:
    packed = pack(bytes(50_000_000))
    assert len(packed) < 100_000
    file = write(tmp_path / f"{name}.{'zip' if packed[:1] == b'P' else 'gz'}", packed)
    monkeypatch.setattr(unpack, "available", lambda: unpack._RESERVE + 4_000_000)
    tracemalloc.start()
    message = refusal(whole(file, encoding="latin-1"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "it holds more than 2,000,000 bytes, and its rows would not fit" in message
    assert peak < 16_000_000


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("key", [";", "\t", r"\t", "|", "¦", ",", " "])
def test_any_character_may_separate_cells(tmp_path: Path, name: str, key: str) -> None:
    character = "\t" if key == r"\t" else key
    text = f'text{character}label\n"a, b; c\td | e"{character}x\nf{character}y\n'
    recipe = whole(write(tmp_path / name, text), delimiter=key, quoting="minimal")
    assert [example.text for example in train_of(recipe)] == ["a, b; c\td | e", "f"]
    assert recipe.dataset.delimiter == character
    assert Recipe.model_validate(strict_yaml.read(dump_recipe(recipe)).value) == recipe


@pytest.mark.parametrize(
    ("name", "content", "key"),
    [
        ("a.csv", '"text";"label"\n"a, b";"x"\n"c";"y"\n', '";"'),
        ("a.csv", "text;label\na, b;x\nc;y\n", '";"'),
        ("a.csv", "text\tlabel\na\tx\nb\ty\n", r'"\t"'),
        ("a.csv", "text|label\na|x\nb|y\n", '"|"'),
        ("a.tsv", "text,label\na,x\nb,y\n", '","'),
    ],
)
def test_another_delimiter_is_named(tmp_path: Path, name: str, content: str, key: str) -> None:
    file = write(tmp_path / name, content)
    for quoting in ("auto", "none"):
        message = refusal(whole(file, quoting=quoting))
        assert message.startswith(
            f"{file}: line 1: the header is one column here, and {key} stands"
        )
        assert message.endswith(f"set dataset.delimiter: {key}")
    assert len(train_of(whole(file, delimiter=json.loads(key), quoting="minimal"))) == 2


@pytest.mark.parametrize("value", ["", ";;", '"', "\n", "\0"])
def test_what_cannot_separate_cells_is_refused(value: str) -> None:
    values = {"task": "classification", "model": {"model_name_or_path": "m"}}
    with pytest.raises(UserError, match=r"dataset\.delimiter: .*one character that is neither"):
        load_recipe(values | {"dataset": {"path": "a.csv", "delimiter": value}})


ACCENTS = [{"text": "une soirée “très” chère €", "label": "x"}, {"text": "naïve", "label": "y"}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.json", "rows.jsonl"])
@pytest.mark.parametrize(
    "encoding", ["cp1252", "utf-16", "utf-16-le", "utf-16-be", "UTF8", "gb18030"]
)
def test_any_encoding_is_read_if_it_is_named(tmp_path: Path, name: str, encoding: str) -> None:
    dump = {"rows.json": lambda rows: json.dumps(rows, ensure_ascii=False)}.get(name, FORMS[name])
    text = str(dump(ACCENTS))
    if name == "rows.jsonl":
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in ACCENTS)
    for mark in ["", "\ufeff"] if "6-" in encoding else [""]:
        file = write(tmp_path / name, (mark + text).encode(encoding))
        read = train_of(whole(file, encoding=encoding))
        assert [example.text for example in read] == [row["text"] for row in ACCENTS]


@pytest.mark.parametrize(
    ("encoding", "advice"),
    [
        (
            "latin-1",
            "line 3: is not UTF-8 text (byte 0xe9): save the file as UTF-8, or set dataset",
        ),
        ("latin-1", "(latin-1 fits if the language is Western European)"),
        ("cp1252", "(cp1252 fits if the language is Western European)"),
        ("utf-16", "is not UTF-8 text: set dataset.encoding: utf-16"),
        ("utf-16-le", "is not UTF-8 text: set dataset.encoding: utf-16-le"),
        ("utf-16-be", "is not UTF-8 text: set dataset.encoding: utf-16-be"),
    ],
)
def test_a_fitting_encoding_is_named(tmp_path: Path, encoding: str, advice: str) -> None:
    quote = "“a”" if encoding == "cp1252" else "a"
    text = f"text,label\n{'a' * 9},x\nsoirée,y\n{quote},x\n"
    file = write(tmp_path / "a.csv", text.encode(encoding))
    assert advice in refusal(whole(file))
    assert "\n" not in refusal(whole(file))


@pytest.mark.parametrize("encoding", ["utf-16", "ascii", "utf-32", "shift_jis"])
def test_a_wrong_encoding_is_one_line_with_its_place(tmp_path: Path, encoding: str) -> None:
    file = write(tmp_path / "a.csv", "text,label\na,x\nb\U0001f600,y\n".encode() + b"\xff\n" * 3)
    message = refusal(whole(file, encoding=encoding))
    assert message.startswith(f"{file}: line ")
    assert f"is not {encoding} text (" in message
    assert message.endswith("or remove it for UTF-8")
    assert "\n" not in message


@pytest.mark.parametrize("name", ["nothing", "base64", "rot13", "", "a\0b", "é"])
def test_what_is_no_encoding_is_refused(name: str) -> None:
    values = {"task": "classification", "model": {"model_name_or_path": "m"}}
    with pytest.raises(UserError, match=r"dataset\.encoding: .*is not a text encoding that Python"):
        load_recipe(values | {"dataset": {"path": "a.csv", "encoding": name}})
