"""One parser reads the questions of every task, or says what is wrong with them and what to type."""

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from jaxcalc import InputError, Tokenizer, number_to_words
from jaxcalc.tasks.problems import Problem
from jaxcalc.tasks.questions import encode, parse
from jaxcalc.tasks.tokenizer import EQUALS, OPERATIONS, PAD

LARGEST = 10**30 - 1
TOKENIZERS = {
    "table": Tokenizer(),
    "words": Tokenizer(max_number=999),
    "digits": Tokenizer(max_number=LARGEST, output="digits", notation="digits"),
    "reversed": Tokenizer(max_number=LARGEST, output="digits-reversed", notation="digits-reversed"),
}
each_tokenizer = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


@each_tokenizer
@given(st.data())
def test_a_question_is_read_as_its_problem_and_so_is_its_encoding(tokenizer: Tokenizer, data: st.DataObject) -> None:
    n_numbers = data.draw(st.integers(2, 4))
    numbers = data.draw(st.lists(st.integers(1, tokenizer.max_number), min_size=n_numbers, max_size=n_numbers))
    operations = data.draw(st.lists(st.sampled_from(OPERATIONS), min_size=n_numbers - 1, max_size=n_numbers - 1))
    problem = Problem(tuple(numbers), tuple(operations))
    assert parse(str(problem), tokenizer, n_numbers) == problem
    tokens = encode(problem, tokenizer, 200, slot=31)
    assert tokens.shape == (200,)
    words = [tokenizer.token(index) for index in tokens.tolist()]
    assert words[-1] == EQUALS
    spelled = [tokenizer.spell(number, tokenizer.notation) for number in numbers]
    parts = zip(spelled, (*operations, EQUALS), strict=True)
    assert [word for word in words if word != PAD] == [word for number, after in parts for word in (*number, after)]


def test_padding_stands_before_a_number_or_behind_its_highest_digit() -> None:
    problem = Problem((12, 3), ("plus",))
    for notation, expected in {
        "digits": "<pad> <pad> 1 2 plus <pad> <pad> 3 equals",
        "digits-reversed": "<pad> 2 1 <pad> plus 3 <pad> <pad> equals",
        "words": "<pad> <pad> <pad> twelve plus <pad> <pad> three equals",
    }.items():
        tokenizer = Tokenizer(notation=notation)  # pyright: ignore[reportArgumentType]
        assert tokenizer.decode(encode(problem, tokenizer, 9, slot=3)) == expected


@each_tokenizer
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("two plus three", Problem((2, 3), ("plus",))),
        ("2+3 =", Problem((2, 3), ("plus",))),
        (" Twenty-one − 007 equals", Problem((21, 7), ("minus",))),
        ("fortytwo / 6", Problem((42, 6), ("divided by",))),
        ("0 divided by nine", Problem((0, 9), ("divided by",))),
        ("3 x 99", Problem((3, 99), ("times",))),
    ],
)
def test_every_notation_reads_words_digits_and_symbols(tokenizer: Tokenizer, text: str, problem: Problem) -> None:
    assert parse(text, tokenizer, 2) == problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("5 – 3", Problem((5, 3), ("minus",))),  # an en dash
        ("5\u20113", Problem((5, 3), ("minus",))),  # a non-breaking hyphen
        ("twenty\u2011one — 3", Problem((21, 3), ("minus",))),
        ("１２ ＋ ３ ＝", Problem((12, 3), ("plus",))),
        ("８／２", Problem((8, 2), ("divided by",))),
        ("8 ⁄ 2", Problem((8, 2), ("divided by",))),
        ("4 · 2", Problem((4, 2), ("times",))),
        ("\ufefftwo\u200bplus thir\u00adteen", Problem((2, 13), ("plus",))),
        ("What is two plus three?", Problem((2, 3), ("plus",))),
        ("what’s 2 + 3 = ?", Problem((2, 3), ("plus",))),
        ("How much is 2 + 3…", Problem((2, 3), ("plus",))),
        ("two plus three.", Problem((2, 3), ("plus",))),
        ("one thousand, two hundred and thirty-four plus one", Problem((1234, 1), ("plus",))),
        ("1,234 + 1", Problem((1234, 1), ("plus",))),
        ("twenty-one-plus-one", Problem((21, 1), ("plus",))),
        ("one-hundred-five-divided-by-five", Problem((105, 5), ("divided by",))),
        ("10x10", Problem((10, 10), ("times",))),
        ("0 x 10", Problem((0, 10), ("times",))),
    ],
)
def test_a_question_is_read_as_people_type_it(text: str, problem: Problem) -> None:
    assert parse(text, Tokenizer(max_number=9999), 2) == problem


@pytest.mark.parametrize(
    "text", ["-5 + 2", "2 + -3", "two plus-three", "minus five plus two", "5 − −3", "2 + negative 3"]
)
def test_a_negative_number_is_refused_as_such(text: str) -> None:
    with pytest.raises(InputError, match="negative numbers are out of range; this vocabulary goes from 0 to 99"):
        parse(text, TOKENIZERS["table"], 2)


def test_numbers_may_be_written_in_parts_as_the_vocabulary_has_them() -> None:
    assert parse("twenty 8 + 1", TOKENIZERS["table"], 2).numbers == (28, 1)
    assert parse("2 8 + 1", TOKENIZERS["digits"], 2).numbers == (28, 1)
    assert parse("2 8 + 1", TOKENIZERS["reversed"], 2).numbers == (82, 1)
    assert parse("three hundred and five + 1", TOKENIZERS["digits"], 2).numbers == (305, 1)
    assert parse("1 + 2 - 3 + 4", TOKENIZERS["words"], 4) == Problem((1, 2, 3, 4), ("plus", "minus", "plus"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the prompt is empty; ask for example 'four plus two'"),
        ("   ", "the prompt is empty; ask for example 'four plus two'"),
        ("two", "the prompt is not 'number operation number': 'two'; ask for example 'four plus two'"),
        ("two = 4", "the prompt is not 'number operation number': 'two equals four'; ask for example 'four plus two'"),
        ("1 + 2 + 3", "the prompt has 2 operations (plus, plus), not 1; ask for example 'four plus two'"),
        ("2 + = 5", "the prompt is not 'number operation number': 'two plus equals five'; ask for example"),
        ("2 + 3 = =", "the prompt is not 'number operation number': 'two plus three equals equals'; ask for example"),
        ("two plus", "there is no number after 'plus'; ask for example 'four plus two'"),
        ("plus two", "there is no number before 'plus'; ask for example 'four plus two'"),
        ("two three plus one", "'two three' is not a number"),
        ("<pad> two plus one", "'<pad> two' is not a number; ask for example 'four plus two'"),
        ("two <end> plus one", "'two <end>' is not a number; ask for example 'four plus two'"),
        ("two pluss three", "unknown word 'pluss'; did you mean 'plus'?"),
        ("100 + 1", "number out of range: '100'; this vocabulary goes from 0 to 99"),
        ("7 / 0", "division by zero has no answer; divide by another number"),
        ("zero divided by zero", "division by zero has no answer; divide by another number"),
    ],
)
def test_what_is_no_question_is_refused_with_an_example_of_one(text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(text, TOKENIZERS["table"], 2)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("tokenizer", "n_numbers", "text", "message"),
    [
        ({}, 4, "2 + 3", "the prompt has 1 operation (plus), not 3; ask for example 'four plus two plus one plus one'"),
        ({}, 3, "two", "not 'number operation number operation number': 'two'"),
        ({}, 3, "2 + + 3", "there is no number after 'plus'; ask for example 'four plus two plus one'"),
        ({"operations": ("times", "plus")}, 2, "", "ask for example 'four times two'"),
        ({"max_number": 3}, 2, "", "ask for example 'three plus two'"),
        ({"notation": "digits"}, 2, "", "ask for example '4 plus 2'"),
        ({"notation": "digits"}, 2, "4 0 2 + 1", "number out of range: '4 0 2'; this vocabulary goes from 0 to 99"),
        ({"notation": "digits"}, 2, "0 5 + 1", "'0 5' is not a number; ask for example '4 plus 2'"),
        ({"max_number": 20}, 2, "20 + twenty 8", "number out of range: 'twenty eight'; this vocabulary goes from 0"),
    ],
)
def test_the_example_is_one_of_the_task(tokenizer: dict[str, Any], n_numbers: int, text: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse(text, Tokenizer(**tokenizer), n_numbers)
    assert message in str(error.value)


def test_a_long_text_is_not_repeated_in_full() -> None:
    for text in ("9 " * 490 + "+ 1", "two " * 249, "9 " * 400 + "+ 1" * 10):
        with pytest.raises(InputError) as error:
            parse(text, TOKENIZERS["digits"], 2)
        assert len(str(error.value)) < 200


def test_the_example_can_be_asked() -> None:
    for max_number in (1, 2, 9, 99):
        for operation in OPERATIONS:
            tokenizer = Tokenizer((operation,), max_number)
            with pytest.raises(InputError) as error:
                parse("", tokenizer, 2)
            example = str(error.value).split("'")[1]
            first, second = min(4, max_number), min(2, max_number)
            assert parse(example, tokenizer, 2) == Problem((first, second), (operation,))
            assert example == f"{number_to_words(first)} {operation} {number_to_words(second)}"
