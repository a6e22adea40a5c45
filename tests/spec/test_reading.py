"""What every kind of YAML file has: overrides, relative paths, fields that wait for a later version, errors."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest

from spec.errors import Problem, SpecError
from spec.fields import Count, Text, TextOrNull
from spec.not_yet import NotYet
from spec.paths import FileName
from spec.reading import Schema
from spec.reference import page
from spec.rules import is_number
from spec.section import Section


class Book(Section):
    """A book."""

    file: Annotated[Text, FileName()]
    """Where it lies."""
    pages: Annotated[Count, NotYet("count them yourself")] = 1
    """How long it is."""


class Desk(Section):
    """A desk."""

    lamp: Annotated[Text, FileName(keep=("sun",))] = "sun"
    """The light."""
    books: tuple[Book, ...] = ()
    """What lies on it."""


class Library(Section):
    """A library."""

    index: Annotated[TextOrNull, FileName()] = None
    """Its index."""
    desk: Desk = Desk()


def too_many_books(library: Library) -> Iterator[Problem]:
    if len(library.desk.books) > 2:
        yield Problem("desk.books", "are too many.")


LIBRARY = Schema(Library, subject="the library", smallest="index: …", checks=too_many_books)


def refused(data: object) -> SpecError:
    with pytest.raises(SpecError) as caught:
        LIBRARY.check(data)
    return caught.value


def test_relative_paths_start_at_the_file_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "library.yaml"
    path.write_text(f"index: a.txt\ndesk: {{lamp: b, books: [{{file: c/*.txt}}, {{file: {tmp_path}/d}}]}}\n")
    library = LIBRARY.load(path)
    files = [library.index, library.desk.lamp, *(book.file for book in library.desk.books)]
    assert files == [str(tmp_path / name) for name in ("a.txt", "b", "c/*.txt", "d")]


def test_words_that_are_no_paths_stay(tmp_path: Path) -> None:
    library = LIBRARY.check({"index": None, "desk": {"lamp": "sun"}}, base=tmp_path)
    assert (library.index, library.desk.lamp) == (None, "sun")


def test_urls_stay(tmp_path: Path) -> None:
    assert LIBRARY.check({"index": "s3://bucket/a"}, base=tmp_path).index == "s3://bucket/a"


def test_without_a_folder_paths_stay() -> None:
    assert LIBRARY.check({"index": "a.txt"}).index == "a.txt"


def test_what_is_no_section_is_left_to_the_schema(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="5 was given; allowed: a section with some of the fields file, pages"):
        LIBRARY.check({"desk": {"books": [5]}}, base=tmp_path)


def test_an_empty_section_has_its_defaults() -> None:
    assert LIBRARY.check({"desk": None}) == Library()


def test_fields_of_a_list_s_sections_are_found() -> None:
    problem = "desk.books.0.fil: is not a field; did you mean file? Fields here: file, pages."
    assert problem in str(refused({"desk": {"books": [{"fil": "a"}]}}))


def test_what_is_not_honoured_is_found_in_lists_too() -> None:
    error = refused({"desk": {"books": [{"file": "a"}, {"file": "b", "pages": 3}, {"file": "c"}]}})
    assert [problem.field for problem in error.problems] == ["desk.books.1.pages", "desk.books"]
    assert str(error).startswith(
        "the library: 2 problems\n  desk.books.1.pages: 3 was given, which is not honoured yet"
    )


def test_nothing_but_a_mapping_will_do() -> None:
    assert str(refused(None)) == "is empty; allowed: sections and fields, at least index: …."
    assert str(refused([])) == "[] was given; allowed: sections and fields, at least index: …."


def test_errors_survive_the_trip_between_processes() -> None:
    error = refused({"index": 1, "desk": {"lamp": 2}})
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own bytes


def test_a_page_has_a_chapter_for_each_section() -> None:
    text = page("# Libraries\n", Library, {"desk.books.<number>": Book})
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Libraries",
        "## `desk`",
        "## `desk.books.<number>`",
    ]
    assert "| `index` | text, or null | `null` | Its index. |" in text
    pages = "| `pages` | a whole number from 1 to 2147483647 | `1` | How long it is."
    assert f"{pages} **Not yet**: count them yourself. |" in text


@pytest.mark.parametrize("text", ["/a\0b", "/a\ud800b", "\udcff"])
def test_text_that_can_name_nothing_is_refused_wherever_it_stands(text: str) -> None:
    for data, field in (({"index": text}, "index"), ({"desk": {"books": [{"file": text}]}}, "desk.books.0.file")):
        with pytest.raises(SpecError, match=rf"{field}: '.*' was given; allowed: text in UTF-8 without a NUL"):
            LIBRARY.check(data, base=Path("/here"))
    with pytest.raises(SpecError, match="index: '.*' was given"):
        LIBRARY.check({}, {"index": text})
    with pytest.raises(SpecError, match="desk: '.*' is no name of a field"):
        LIBRARY.check({"desk": {text: 1}})


def test_a_home_that_nobody_has_is_a_name_like_others() -> None:
    assert LIBRARY.check({"index": "~nobody-at-all/a"}, base=Path("/here")).index == "/here/~nobody-at-all/a"
    assert LIBRARY.check({"index": "~/a"}, base=Path("/here")).index == str(Path.home() / "a")


@pytest.mark.parametrize("given", [True, False, "1", 2**1024, 2**1024 - 1, float("inf"), float("nan"), -0.1])
def test_what_is_no_number_that_computes(given: object) -> None:
    assert not is_number(given)


def test_numbers_up_to_the_largest_float() -> None:
    assert all(is_number(given) for given in (0, 1, 0.5, 1.7976931348623157e308, 2**1023))
