"""Prompts of any kind: each is read rightly, or refused with one short line, and never takes long."""

import time
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jaxcalc
from jaxcalc import InputError, Task
from jaxcalc.tasks.problems import Problem
from jaxcalc.tasks.words import OPERATIONS, normalize

LONGEST_MESSAGE = 300
TASKS = {
    "words": jaxcalc.calculator(),
    "reversed": jaxcalc.calculator(output="digits-reversed"),
    "small": jaxcalc.calculator(("plus",), 9, split="none"),
}
LETTERS = set("abcdefghijklmnopqrstuvwxyz0123456789+-*/=−×÷")

STRANGE = [
    *"\x00\x07\x1c\x7f\x85\u00a0\u00ad\u200b\u200d\u200f\u2028\u202e\u2066\u3000\ufeff\ufffd\ud800\udfff\U000e0001",
    *"éİſß\u212a🧮٣３²½Ⅷ三_.,%'\"\\{}<>",
    *"２＋－＊／＝𝟐–—‑‐·⁄\u2060…？，",
    *["\x1b[31m", "e\u0301", "<pad>", "<end>", "$(x)"],
]
WORDS = [
    *["two", "Twenty", "forty-two", "fortytwo", "zero", "and", "hundred", "thousand", "million"],
    *["minus", "plus", "times", "x", "divided by", "divided", "by", "divided\tby", "equals"],
    *["what is", "what's", "negative", "-and-", "-plus-"],
    *["infinity", "nan", "None"],
]
NUMBERS = ["0", "00", "7", "42", "99", "100", "0" * 400 + "5", "9" * 400, "1e9", "0x10", "1_0", "1,000", "1.5"]
SPACES = ["", " ", "  ", "\n", "\r\n", "\t", "\u2003"]
SIGNS = ["+", "-", "−", "*", "×", "/", "÷", "=", "x"]

pieces = st.sampled_from([*STRANGE, *WORDS, *NUMBERS, *SIGNS])
texts = st.one_of(
    st.lists(st.tuples(pieces, st.sampled_from(SPACES)), max_size=12).map(
        lambda found: "".join(a + b for a, b in found)
    ),
    st.text(st.characters(exclude_categories=()), max_size=80),
    st.text(st.characters(exclude_categories=()), min_size=1, max_size=4).map(lambda text: f"two plus {text} three"),
)


def check(task: Task, text: str) -> Problem | None:
    """Return the problem that a text was read as, if it was; what is said otherwise is one short line."""
    try:
        problem = task.parse(text)
    except InputError as error:
        message = str(error)
        assert 0 < len(message) <= LONGEST_MESSAGE
        assert message.isprintable()
        with pytest.raises(InputError):
            task.encode(text)
        return None
    largest = task.tokenizer.max_number
    assert len(problem.operations) == 1
    assert set(problem.operations) <= set(task.tokenizer.operations)
    assert len(problem.numbers) == 2
    assert all(0 <= number <= largest for number in problem.numbers)
    read = normalize(text).replace("what's", "").rstrip(" \t\r\n.?")
    assert {letter for letter in read if not letter.isspace()} <= LETTERS  # nothing strange was passed over
    prompt = task.encode(text)
    assert prompt.shape == (task.prompt_length,)
    assert task.parse(task.tokenizer.decode(prompt[prompt > 1])) == problem
    return problem


@settings(max_examples=300, deadline=None)
@given(texts, st.sampled_from(sorted(TASKS)))
@example("", "words")
@example("divided" + " " * 900 + "by", "words")
@example("0" * 980 + "123 + 1", "words")
def test_any_text_is_read_rightly_or_refused_in_one_line(text: str, task: str) -> None:
    check(TASKS[task], text)


@pytest.mark.faults
@settings(max_examples=20_000, deadline=None)
@given(texts, st.sampled_from(sorted(TASKS)))
def test_very_many_texts_are_read_rightly_or_refused_in_one_line(text: str, task: str) -> None:
    check(TASKS[task], text)


def written(number: int) -> st.SearchStrategy[str]:
    """The ways in which a number may be written."""
    words = jaxcalc.number_to_words(number)
    return st.sampled_from(
        [str(number), "000" + str(number), words, words.upper(), words.replace(" ", "-"), words.replace(" ", "")]
    )


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_question_is_read_however_it_is_written(data: st.DataObject) -> None:
    a, b, operation = (
        data.draw(st.integers(0, 99)),
        data.draw(st.integers(1, 99)),
        data.draw(st.sampled_from(OPERATIONS)),
    )
    signs = {"plus": "+＋", "minus": "−-–—－\u2011", "times": "××*＊·", "divided by": "÷/／∕"}
    sign = data.draw(st.sampled_from([operation, operation.title(), *signs[operation]]))
    space = data.draw(st.sampled_from([" ", "  ", "\n", "\t", "\u2003", "\u00a0"]))
    end = data.draw(st.sampled_from(["", " ", "\r\n", " =", " equals", "?", ".", " = ?", "＝", "\u200b"]))
    begin = data.draw(st.sampled_from(["", "What is ", "\ufeff"]))
    text = f"{begin}{data.draw(written(a))}{space}{sign}{space}{data.draw(written(b))}{end}"
    assert check(TASKS["words"], text) == ((a, b), (operation,))


HUGE = {
    "nines": "9" * 10**7,
    "a million nines": "9" * 10**6,
    "zeros": "0" * 10**7 + "1 + 1",
    "words": "two plus " * 10**6,
    "one word": "a" * 10**7,
    "spaces": " " * 10**7,
    "hyphens": "forty-" * 10**6,
    "control characters": "\x1b" * 10**7,
    "surrogates": "\ud800" * 10**6,
    "right to left": "\u202e" * 10**6,
}


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_text_is_refused_without_a_copy_of_it(name: str) -> None:
    tracemalloc.start()
    try:
        assert check(TASKS["words"], HUGE[name]) is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", HUGE)
def test_a_huge_number_in_words_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(InputError) as caught:
        jaxcalc.words_to_number(HUGE[name][:100_000])
    assert len(str(caught.value)) <= LONGEST_MESSAGE
    assert str(caught.value).isprintable()


@pytest.mark.faults
@pytest.mark.parametrize("name", HUGE)
def test_no_text_takes_long(name: str) -> None:
    start = time.process_time()
    for text in (HUGE[name], HUGE[name][:1000], HUGE[name][:990] + " plus two"):
        check(TASKS["words"], text)
    assert time.process_time() - start < 0.1
