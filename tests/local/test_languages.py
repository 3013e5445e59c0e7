"""The three small languages: values, precedence, and the quoting traps that Argo has."""

import contextlib
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.local.depends import compile_depends, results
from workflows.local.expr import compile_expression, go_text
from workflows.local.pratt import LanguageError
from workflows.local.templating import Scope, paste
from workflows.local.when import holds

NAMES = {"workflow": {"parameters": {"train-memory": "64", "version": ""}}, "retries": "1", "none": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7), ("(1 + 2) * 3", 9), ("2 ** 3 ** 2", 512.0), ("-2 ** 2", -4.0), ("7 % 3", 1), ("-7 % 3", -1),
        ("7 / 2", 3.5), ("1 < 2 && 2 < 3", True), ("1 == 1.0", True), ("'1' == 1", False), ("true == 1", False),
        ("not true || true", True), ("!(true || true)", False),
        ("not ('x' in ['a'])", True), ("'x' not in ['x']", False),
        ("'abc' contains 'b' && 'abc' startsWith 'a' && 'abc' endsWith 'c' && 'abc' matches '^a.c$'", True),
        ("'abc' not contains 'b'", False), ("true ? 1 : false ? 2 : 3", 1), ("false ? 1 : false ? 2 : 3", 3),
        ("none ?? 'x'", "x"), ("asInt(retries) + 1", 2), ("asInt('-3')", -3), ("asFloat('1.5')", 1.5),
        ("string(2.0) + string(true)", "2true"), ("min(2, 1.5)", 1.5), ("max([1, 4, 2])", 4), ("len('åb')", 2),
        ("workflow.parameters['train-memory']", "64"), ("workflow.parameters.version != '' ? 'a' : 'b'", "b"),
        ("workflow.parameters.unknown", None), ("[1, 2, 3][1]", 2),
        ('"it\'s"', "it's"), (r"'it\'s'", "it's"), ("`a\\n`", r"a\n"),
        ("asInt(workflow.parameters['train-memory']) * min(2 ** asInt(retries), 4)", 128.0),
        ("sprig.replace('$', '$$', 'a$(B)$')", "a$$(B)$$"), ("sprig.replace('$', '$$', '')", ""),
        ("none?.x?.y ?? 'z'", "z"), ("get(get(none, 'x'), 'y') ?? 'z'", "z"), ("get([1, 2], 1)", 2),
        ("get(get(workflow, 'parameters'), 'train-memory')", "64"), ("get(workflow, 'unknown') ?? 'z'", "z"),
        ("sprig.trim(' a ') + sprig.default('b', '')", "ab"), ("toJson(['a', 1])", '["a",1]'),
    ],
)  # fmt: skip
def test_an_expression_has_the_value_of_expr_lang(text: str, value: object) -> None:
    found = compile_expression(text)(NAMES)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text", ["", "1 +", "1 2", "(1", "foo(1)", "os.system('x')()", "a b", "'open", "1 ? 2", "[1", "#", "x | y"]
)
def test_what_is_not_in_the_language_is_refused_before_it_runs(text: str) -> None:
    with pytest.raises(LanguageError):
        compile_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "1 + 'a'",
        "1 && true",
        "asInt('1.5')",
        "asInt('x')",
        "unknown",
        "unknown.x",
        "none.x",
        "1 in 2",
        "min('a')",
        "1 / 0",
        "'a' matches '('",
    ],
)
def test_values_that_do_not_fit_are_an_error_of_the_language(text: str) -> None:
    with pytest.raises(LanguageError):
        compile_expression(text)(NAMES)


COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul}
SUMS = st.recursive(
    st.integers(0, 99).map(lambda number: (str(number), number)),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: (f"({t[0][0]} {t[1]} {t[2][0]})", COMPUTE[t[1]](t[0][1], t[2][1]))
    ),
)


@given(SUMS)
def test_arithmetic_agrees_with_python(case: tuple[str, int]) -> None:
    text, value = case
    assert compile_expression(text)({}) == value


@given(st.text())
def test_any_text_is_read_or_refused_and_nothing_else_happens(text: str) -> None:
    for read in (compile_expression, compile_depends, holds):
        with contextlib.suppress(LanguageError):
            read(text)


@settings(deadline=None)
@given(st.text())
def test_a_quoted_text_is_itself(text: str) -> None:
    quoted = "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
    assert compile_expression(quoted)({}) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", True), ("'passed' == 'passed'", True),
        ("passed == passed", True), ("'' == 'kaniko'", False), ("5 == 5.0", True),
        ("'5' == 5", False), ("1 < 2 && 3 >= 3", True),
        ("'a' < 'b'", True), ("true && !false", True), ("!true || true", True),
        ("false && true || true", True), ("'a' in ('a', 'b')", True), ("'x' =~ '^x$'", True), ("'x' !~ 'y'", True),
        ("1 + 2 * 3 == 7", True), ("2 ** 3 == 8", True),
        ("(1 + 2) * 3 == 9", True), ("-1 < 0", True), ("[a-b] == 'a-b'", True),
        ("'2024-01-01' == '2024-01-01T00:00:00Z'", True), ('"a" == \'a\'', True), ("'it\" == 'it'", True),
    ],
)  # fmt: skip
def test_a_condition_has_the_value_of_govaluate(text: str, value: bool) -> None:
    assert holds(text) is value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" == 'yes'", "Invalid 'when' expression"),  # an empty value that was not quoted
        ("a-b == 'a-b'", "Value 'a' cannot be used with the modifier '-', it is not a number"),
        ("'it's' == 'x'", "Invalid 'when' expression"),
        ("a ==-1", "Invalid token: '==-'"),
        ("'a' === 'a'", "hint: try wrapping"),
        ("a.b == 'c'", "field access"),
        ("'a'", "Expected boolean evaluation for ''a''. Got a"),
        ("1 < 'a'", "cannot be used with the comparator '<'"),
        ("'open", "Invalid 'when' expression"),
    ],
)
def test_a_condition_that_argo_cannot_evaluate_is_an_error_with_its_text(text: str, message: str) -> None:
    with pytest.raises(LanguageError) as caught:
        holds(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "ended", "met"),
    [
        ("a", {"a": "Succeeded"}, True), ("a", {"a": "Skipped"}, True),
        ("a", {"a": "Omitted"}, False), ("a", {"a": "Failed"}, False),
        ("a.Failed", {"a": "Failed"}, True), ("a.Failed", {"a": "Error"}, False), ("a.Errored", {"a": "Error"}, True),
        ("a.Omitted", {"a": "Omitted"}, True), ("!a.Succeeded", {"a": "Failed"}, True),
        ("a && b", {"a": "Succeeded", "b": "Failed"}, False), ("a || b.Failed", {"a": "Failed", "b": "Failed"}, True),
        ("a && (b || c-d.Skipped)", {"a": "Succeeded", "b": "Failed", "c-d": "Skipped"}, True),
        ("a || b && c", {"a": "Succeeded", "b": "Failed", "c": "Failed"}, True),
    ],
)  # fmt: skip
def test_depends_holds_as_argo_says(text: str, ended: dict[str, str], met: bool) -> None:
    depends = compile_depends(text)
    assert set(depends.tasks) == set(ended)
    assert depends.holds({name: results(phase) for name, phase in ended.items()}) is met


@pytest.mark.parametrize("text", ["a &&", "a b", "a.Done", "(a", "a & b", ""])
def test_a_depends_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(LanguageError):
        compile_depends(text)


def test_tags_are_replaced_as_text_and_unknown_ones_stay() -> None:
    scope = Scope({"workflow.parameters.x-y": "a'b", "retries": "2", "inputs.parameters.s": "{{retries}}"})
    assert paste("<{{workflow.parameters.x-y}}> {{ retries }}", scope) == "<a'b> 2"
    assert (
        paste("{{=workflow.parameters['x-y']}} {{=asInt(retries) * 2.5}} {{=2 ** asInt(retries)}}", scope) == "a'b 5 4"
    )
    assert paste("{{tasks.a.outputs.parameters.x}} {{=workflow.outputs.parameters['x']}}", scope).count("{{") == 2
    assert paste("{{=workflow.parameters.unknown}}", scope) == "{{=workflow.parameters.unknown}}"
    assert paste("{{inputs.parameters.s}}", scope) == "{{retries}}"  # a value is pasted, not read again
    assert paste("{{=asInt('{{retries}}') + 1}}", scope) == "3"
    assert paste("s3://b/dt={{as_of:%Y}}/x", scope) == "s3://b/dt={{as_of:%Y}}/x"


def test_numbers_are_written_as_go_writes_them() -> None:
    assert [go_text(v) for v in (2.0, 2.5, True, 1, ["a", 1.5])] == ["2", "2.5", "true", "1", '["a",1.5]']
