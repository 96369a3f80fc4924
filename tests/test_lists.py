"""One reader of lists for `curate`, `run` and `evaluate`: however a spreadsheet writes them, the same clips with the same answers."""

import codecs
import inspect

import pytest

from scene4m import evaluate
from scene4m.worlds.street import DOG, LABELS
from scene4m.base.core import BadInput
from scene4m.base.lists import LISTS, folder_rows
from scene4m.evaluate import read_truth

HOUND = "Hündin.wav"
ROWS = [
    ("file", "label", "captions"),
    (HOUND, DOG, "[Music] plays"),
    ("b.wav", LABELS[0], '["One.", "Two."]'),
]
WRITTEN = [
    (d, e)
    for d in ",;\t"
    for e in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252")
]


def write(path, rows, delimiter=",", encoding="utf-8", end="\r\n"):
    quoted = [
        [f'"{c.replace(chr(34), chr(34) * 2)}"' if set(c) & set('";,\t') else c for c in row]
        for row in rows
    ]
    path.write_bytes(end.join([*(delimiter.join(r) for r in quoted), ""]).encode(encoding))
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "clips" / "sub").mkdir(parents=True)
    for name in (HOUND, "b.wav", "sub/c.wav", " d.wav"):
        (tmp_path / "clips" / name).write_bytes(b"RIFF")
    return tmp_path / "clips"


@pytest.mark.parametrize("delimiter, encoding", WRITTEN)
@pytest.mark.parametrize("beside", [True, False], ids=["beside the clips", "named"])
def test_every_way_to_write_a_list(folder, delimiter, encoding, beside):
    file = write((folder if beside else folder.parent) / "labels.csv", ROWS, delimiter, encoding)
    named = None if beside else file
    a, b = folder_rows(folder, named)
    assert (a.source, a.label, a.captions, a.size) == (HOUND, DOG, ("[Music] plays",), 4)
    assert (b.source, b.label, b.captions) == ("b.wav", LABELS[0], ("One.", "Two."))
    c, d = read_truth(folder, labels_file=named)
    assert (c.file, c.label, c.captions) == (
        folder / HOUND,
        DOG,
        ["[Music] plays"],
    ) and d.captions == ["One.", "Two."]


def test_a_mark_that_is_broken_is_said(folder):
    (folder / "labels.csv").write_bytes(codecs.BOM_UTF8 + "file\nMüll.wav\n".encode("latin-1"))
    for read in (folder_rows, read_truth):
        with pytest.raises(BadInput, match="save the file as UTF-8"):
            read(folder)


@pytest.mark.parametrize(
    "name, there",
    [
        ("sub\\c.wav", "sub/c.wav"),
        (" b.wav ", "b.wav"),
        (" d.wav", " d.wav"),
        (".\\b.wav", "./b.wav"),
    ],
)
def test_names_as_other_systems_write_them(folder, name, there):
    write(folder / "labels.csv", [("file", "label"), (name, DOG)])
    assert folder_rows(folder)[0].source == there and folder_rows(folder)[0].reason == ""
    assert read_truth(folder)[0].file == folder / there


@pytest.mark.parametrize(
    "name", ["..\\c.wav", "/etc/passwd", "C:\\c.wav", "sub\\..\\..\\x", "\\\\server\\c.wav"]
)
def test_what_lies_outside_is_refused_and_the_others_go_on(folder, name):
    write(folder / "labels.csv", [("file", "label"), (name, DOG), ("b.wav", DOG)])
    assert [r.reason for r in folder_rows(folder)] == ["outside", ""]
    a, b = read_truth(folder)
    assert "outside the folder" in a.refused and b.refused == ""


@pytest.mark.parametrize(
    "cell, captions",
    [
        ("[Music] plays", ("[Music] plays",)),
        ("[oops", ("[oops",)),
        ("[1, 2]", ("[1, 2]",)),
        ('["a", "b"]', ("a", "b")),
        ("[]", ()),
        ("", ()),
        ("  ", ()),
        ("12", ("12",)),
        ("null", ("null",)),
        ("true", ("true",)),
        ("[" * 100_000, ("[" * 100_000,)),
    ],
)
def test_a_caption_is_a_text_unless_it_is_a_list_of_texts(folder, cell, captions):
    write(folder / "labels.csv", [("file", "label", "captions"), ("b.wav", DOG, cell)])
    assert (
        folder_rows(folder)[0].captions == captions
        and tuple(read_truth(folder)[0].captions) == captions
    )


def test_a_row_that_cannot_be_understood_stops_nothing(folder):
    write(
        folder / "labels.csv",
        [
            ("file", "label", "attributes"),
            ("b.wav", DOG, "{night"),
            (HOUND, DOG, ""),
            ("sub/c.wav", DOG, "outdoors"),
        ],
    )
    assert [r.reason for r in folder_rows(folder)] == ["bad row", "", ""]
    assert ["b.wav: its row" in c.refused for c in read_truth(folder)] == [True, False, False]


def test_class_folders_without_a_list(tmp_path):
    for label in (DOG, LABELS[0], "opera"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.wav").write_bytes(b"RIFF")
    assert {r.label for r in folder_rows(tmp_path)} == {DOG, LABELS[0], "opera"}
    assert {(c.label, c.file) for c in read_truth(tmp_path, LABELS)} == {
        (x, tmp_path / x / "a.wav") for x in (DOG, LABELS[0])
    }


def test_columns_and_labels_may_have_blanks_and_capitals(folder):
    write(folder / "labels.csv", [(" File", "LABEL "), ("b.wav", f" {DOG}")])
    assert folder_rows(folder)[0].label == DOG and read_truth(folder)[0].label == DOG


def test_the_same_list_of_several_is_read(folder):
    for name, label in zip(LISTS, LABELS):
        write(folder / name, [("file", "label"), ("b.wav", label)])
    assert folder_rows(folder)[0].label == read_truth(folder)[0].label == LABELS[0]


def test_there_is_no_second_reader():
    assert "csv" not in inspect.getsource(evaluate).replace("labels.csv", "").replace(
        "truth.csv", ""
    ).replace("manifest.csv", "")
