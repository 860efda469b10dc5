"""YAML text becomes values with positions, or problems with positions; never anything else."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmgateway.config.source import MAX_BYTES, Document, read
from llmgateway.config.tree import Mark, Node, Pairs, Problem, Scalar, Series, from_python


def document(text: str | bytes, **environ: str) -> Document:
    return read(text, file="c.yaml", environ=environ)


def problems(text: str | bytes, **environ: str) -> list[str]:
    return [str(problem) for problem in document(text, **environ).problems]


def at(node: Node | None, *steps: str | int) -> Node:
    for step in steps:
        if isinstance(node, Pairs):
            node = node.pairs[str(step)].value
        else:
            assert isinstance(node, Series) and isinstance(step, int)
            node = node.items[step]
    assert node is not None
    return node


def scalar(text: str, *steps: str | int, **environ: str) -> Scalar:
    found = document(text, **environ)
    assert found.problems == ()
    node = at(found.root, *steps)
    assert isinstance(node, Scalar)
    return node


def plain(node: Node | None) -> object:
    match node:
        case Pairs():
            return {key: plain(pair.value) for key, pair in node.pairs.items()}
        case Series():
            return [plain(item) for item in node.items]
        case Scalar():
            return None if node.null else node.text
    return node


TEXT = "# first\na:\n  b: [1, 'ü', {c: x}]\nü: é\r\nlast: |\n  two\n  lines\n"


@pytest.mark.parametrize(
    ("steps", "line", "column"),
    [
        (("a",), 3, 3),
        (("a", "b"), 3, 6),
        (("a", "b", 0), 3, 7),
        (("a", "b", 1), 3, 10),
        (("a", "b", 2, "c"), 3, 19),
        (("ü",), 4, 4),
        (("last",), 5, 7),
    ],
)
def test_every_value_knows_its_line_and_column(steps: tuple[str | int, ...], line: int, column: int) -> None:
    assert at(document(TEXT).root, *steps).mark == Mark(line, column)


def test_every_key_knows_its_line_and_column() -> None:
    pairs = at(document(TEXT).root, "a")
    assert isinstance(pairs, Pairs)
    assert pairs.pairs["b"].key_mark == Mark(3, 3)


def test_a_byte_order_mark_moves_nothing() -> None:
    assert scalar("\ufeffa: 1", "a").mark == Mark(1, 4)
    found = document("\ufeffa: 1".encode())
    assert at(found.root, "a").mark == Mark(1, 4)


@pytest.mark.parametrize(
    "word", ["on", "yes", "1.5", "22:22", "0o17", "2027-06-30", "aa:bb:cc:dd:ee:ff", "=", "1_0"]
)
def test_a_word_stays_as_it_is_written(word: str) -> None:
    assert scalar(f"a: {word}", "a").text == word
    assert plain(document(f"{word}: x").root) == {word: "x"}


@pytest.mark.parametrize("text", ["a:", "a: ~", "a: null", "a: ${NOPE:-}"])
def test_nothing_is_null(text: str) -> None:
    assert scalar(text, "a").null


@pytest.mark.parametrize("text", ["a: ''", 'a: "null"', "a: ${EMPTY}", "a: ${NULL}"])
def test_quotes_and_variables_are_text_even_when_they_look_like_nothing(text: str) -> None:
    assert not scalar(text, "a", EMPTY="", NULL="null").null


# --- Broken files ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("", "c.yaml:1:1: the file is empty"),
        ("# only this\n", "c.yaml:1:1: the file is empty"),
        ("---\n", "c.yaml:1:1: the file is empty"),
        ("\n[a]", "c.yaml:2:1: the file must be a mapping"),
        ("hello", "c.yaml:1:1: the file must be a mapping"),
        ("a:\n\t- b", "c.yaml:2:1: a tab cannot indent YAML"),
        ("a:\n  b: 1\n \tc: 2", "c.yaml:3:2: a: a tab cannot indent YAML"),
        ("a: b: c", "c.yaml:1:5: this is not valid YAML: mapping values are not allowed"),
        ("a: [1, 2\nb: 3\n", "c.yaml:2:2: a: this is not valid YAML: did not find expected ',' or ']'"),
        ("a: 'open\nb: c\n", "c.yaml:3:1: this is not valid YAML: found unexpected end of stream"),
        ("a: {b: ${X}}", "c.yaml:1:9: a: this is not valid YAML"),
        ("a: \x07", "c.yaml:1:4: the character U+0007 is not allowed"),
        ("ok: 1\na: \ud800", "c.yaml:2:4: the character U+D800 is not allowed"),
        (b"ok: 1\r\nb: \xff", "c.yaml:2:4: the file is not UTF-8"),
        ("a: 1".encode("utf-16"), "c.yaml:1:1: the file is not UTF-8"),
        (b"\x00", "c.yaml:1:1: the character U+0000 is not allowed"),
        ("a: 1\n---\nb: 2", "c.yaml:2:1: a second YAML document begins here"),
        ("? [a]\n: b", "c.yaml:1:3: a key must be a plain word"),
        ("a: !!python/object:os.system {}", "c.yaml:1:4: a: YAML tags"),
        ("a: !!int 3", "c.yaml:1:4: a: YAML tags"),
        ("a: *b", "c.yaml:1:4: a: no anchor of this name"),
        ("a: &x [*x]", "c.yaml:1:8: a[0]: this alias stands inside its own anchor"),
        ("<<: 3", "c.yaml:1:1: << takes an alias"),
        ("a: " + "[" * 50, "c.yaml:1:36: a" + "[0]" * 32 + ": this is nested more than 32"),
        ("#" * (MAX_BYTES + 1), "c.yaml:1:1: the file is larger than 1 MB"),
    ],
)
def test_what_cannot_be_read_is_a_problem_with_a_position(text: str | bytes, beginning: str) -> None:
    found = problems(text)
    assert len(found) == 1
    assert found[0].startswith(beginning)


def test_a_bracket_left_open_tells_where_it_began() -> None:
    assert "began on line 1" in problems("a: [1,\n  2\nb: 3\n")[0]


def test_a_duplicate_key_is_reported_where_it_stands_again_each_time() -> None:
    assert problems("a: 1\nb: {c: 1, c: 2}\na: 3\n'a': 4\n") == [
        "c.yaml:2:11: b.c: this key stands here twice, first on line 2; keep one of them",
        "c.yaml:3:1: a: this key stands here twice, first on line 1; keep one of them",
        "c.yaml:4:1: a: this key stands here twice, first on line 1; keep one of them",
    ]


@pytest.mark.parametrize(
    "text",
    ["[" * 900_000, "? " * 450_000, "&a " * 300_000, '"' * 900_000, "[a, " * 200_000, "a:\n " * 200_000],
)
def test_a_hostile_file_is_refused_soon(text: str) -> None:
    assert problems(text)  # about a second on a slow machine; what is quadratic would hang


# --- Aliases --------------------------------------------------------------------------------------


def test_aliases_and_merge_keys_work() -> None:
    found = document("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\nd: {y: 4, <<: [*a, {z: 5, x: 6}]}")
    assert found.problems == ()
    assert plain(found.root) == {
        "a": {"x": "1", "y": "2"},
        "b": {"y": "3", "x": "1"},
        "c": {"x": "1", "y": "2"},
        "d": {"y": "4", "x": "1", "z": "5"},
    }


def test_an_anchor_may_be_set_again() -> None:
    assert plain(document("a: &x 1\nb: *x\nc: &x 2\nd: *x").root) == {"a": "1", "b": "1", "c": "2", "d": "2"}


def test_a_billion_laughs_are_refused() -> None:
    lines = ["a0: &a0 [ha]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "more than 100000 values" in problems("\n".join(lines))[0]


def test_aliases_cannot_make_a_tree_deeper_than_allowed() -> None:
    lines = ["a0: &a0 [ha]"] + [f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 60)]
    assert "nested more than 32" in problems("\n".join(lines))[0]


# --- Variables ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("${A}", "1"),
        ("x${A}y${B}z", "x1y2 #: [z"),
        ("${NOPE:-d}", "d"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY}", ""),
        ("${A:-d}", "1"),
        ("${NOPE:-http://x:1/-}", "http://x:1/-"),
        ("$${A}", "${A}"),
        ("$A $ {A} $", "$A $ {A} $"),
        ("$$${A}", "$${A}"),
        ("$${A}${A}", "${A}1"),
    ],
)
def test_variables_are_filled_in(written: str, meant: str) -> None:
    environ = {"A": "1", "B": "2 #: [", "EMPTY": ""}
    for text in (f"a: {written}", f'a: "{written}"', f"a: |-\n  {written}"):
        assert scalar(text, "a", **environ).text == meant


def test_a_value_is_not_searched_for_variables_again() -> None:
    assert scalar("a: ${A}", "a", A="${B}").text == "${B}"


@pytest.mark.parametrize("written", ["${}", "${a b}", "${A", "${1A}", "${A-b}", "${A:}"])
def test_a_misspelt_variable_is_a_problem(written: str) -> None:
    (found,) = problems(f"x: 1\na: ['{written}']", A="secret")
    assert found.startswith(
        "c.yaml:2:5: a[0]: ${ begins a variable, ${NAME}, ${NAME:-default} or ${file:PATH}; write $${ for"
    )


def test_each_unset_variable_is_named_at_its_value() -> None:
    assert problems("a: ${A}\nb:\n  - x${B}${A}\n") == [
        "c.yaml:1:4: a: the environment variable A is not set; set it, or write ${A:-default}",
        "c.yaml:3:5: b[0]: the environment variable B is not set; set it, or write ${B:-default}",
        "c.yaml:3:5: b[0]: the environment variable A is not set; set it, or write ${A:-default}",
    ]


def test_keys_and_comments_are_left_alone() -> None:
    found = document("# ${NOPE}\n${NOPE}: 1 # ${NOPE}")
    assert found.problems == ()
    assert plain(found.root) == {"${NOPE}": "1"}


@pytest.mark.parametrize(
    ("text", "bare", "from_env"),
    [
        ("a: 1", True, False),
        ("a: '1'", False, False),
        ("a: ${A}", True, True),
        ("a: '${A}'", True, True),
        ("a: '${NOPE:-1}'", True, False),
    ],
)
def test_a_value_knows_whether_it_may_be_a_number_and_whether_to_hide_it(
    text: str, bare: bool, from_env: bool
) -> None:
    found = scalar(text, "a", A="1")
    assert (found.bare, found.from_env) == (bare, from_env)


def test_the_repr_of_a_value_does_not_show_it() -> None:
    assert "hunter2" not in repr(scalar("a: ${A}", "a", A="hunter2"))


# --- Anything at all ------------------------------------------------------------------------------


def assert_sound(found: Document) -> None:
    assert found.root is not None or found.problems
    for problem in found.problems:
        assert problem.line >= 1 and problem.column >= 1
        assert "\n" not in str(problem)


@given(st.text() | st.binary(), st.dictionaries(st.text(), st.text(), max_size=3))
def test_any_text_is_a_document_or_problems(text: str | bytes, environ: Mapping[str, str]) -> None:
    assert_sound(read(text, file="c.yaml", environ=environ))


@given(st.text(alphabet="ab:- \n\t[]{}&*!|>'\"%@`#,?<~${}\\\r\x85\u2028\ufeff1.", max_size=40))
def test_any_yaml_like_text_is_a_document_or_problems(text: str) -> None:
    assert_sound(document(text))


# --- Problems and plain values --------------------------------------------------------------------


def test_a_problem_reads_as_file_line_column_path_message() -> None:
    assert (
        str(Problem("c.yaml", 14, 9, "providers.rig.url", "is bad"))
        == "c.yaml:14:9: providers.rig.url: is bad"
    )
    assert str(Problem("c.yaml", 1, 1, "", "is bad")) == "c.yaml:1:1: is bad"
    assert str(Problem("<built-in>", 0, 0, "a", "is bad")) == "<built-in>: a: is bad"


def test_plain_python_values_become_the_same_tree() -> None:
    tree = from_python({"a": [1, "1", None, True, 0.5], 2: {}})
    assert plain(tree) == {"a": ["1", "1", None, "true", "0.5"], "2": {}}
    assert [isinstance(n, Scalar) and n.bare for n in (at(tree, "a", 0), at(tree, "a", 1))] == [True, False]


def test_a_value_that_no_file_can_hold_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="object"):
        from_python({"a": object()})
