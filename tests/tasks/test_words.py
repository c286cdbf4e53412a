import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from num2words import num2words

from jaxcalc import InputError, number_to_words, words_to_number
from jaxcalc.tasks.words import NUMBER_WORDS

numbers = st.integers(-999_999_999, 999_999_999)


def oracle(number: int) -> str:
    return num2words(number).replace("-", " ").replace(",", "").replace(" and ", " ")


@given(numbers)
def test_spelling_agrees_with_num2words(number: int) -> None:
    assert number_to_words(number) == oracle(number)


@given(numbers)
@example(100_001)  # "one-hundred-thousand-one"
def test_every_number_is_read_back_from_canonical_and_british_spelling(number: int) -> None:
    assert words_to_number(number_to_words(number)) == number
    assert words_to_number(num2words(number)) == words_to_number(num2words(number).replace(",", "")) == number
    assert words_to_number(number_to_words(abs(number)).replace(" ", "-")) == abs(number)
    assert words_to_number(number_to_words(number).upper()) == number


def test_all_small_numbers_agree_with_num2words() -> None:
    assert [number_to_words(n) for n in range(10_000)] == [oracle(n) for n in range(10_000)]


@pytest.mark.parametrize("text", ["forty two", "forty-two", "fortytwo", " Forty  Two "])
def test_compounds_may_be_spaced_hyphenated_or_glued(text: str) -> None:
    assert words_to_number(text) == 42


NO_NUMBERS = """
hundred|twenty eleven|twenty ten|five twenty|zero five|five zero|one one|and five|five and|forty and two
one hundred and|thousand|one thousand thousand|one hundred hundred|eleven hundred|one thousand two million
minus|minus zero|minus minus one|forty--two|five-three|tenone|one million million|one thousand million
fourty two|4|two point five
"""


@pytest.mark.parametrize("text", ["", *NO_NUMBERS.strip().replace("\n", "|").split("|")])
def test_anything_else_is_an_error_that_quotes_it(text: str) -> None:
    with pytest.raises(InputError, match="not a number"):
        words_to_number(text)


@given(st.lists(st.sampled_from([*NUMBER_WORDS, "and", "minus"]), max_size=6))
def test_whatever_is_read_is_spelled_that_way(words: list[str]) -> None:
    try:
        number = words_to_number(" ".join(words))
    except InputError:
        return
    assert [w for w in words if w != "and"] == number_to_words(number).split()


@pytest.mark.parametrize("number", [1_000_000_000, -1_000_000_000])
def test_numbers_without_a_name_are_out_of_range(number: int) -> None:
    with pytest.raises(InputError, match="out of range"):
        number_to_words(number)


@pytest.mark.parametrize("number", [1.0, "1", True, None])
def test_only_ints_are_spelled(number: object) -> None:
    with pytest.raises(TypeError, match="expected an int"):
        number_to_words(number)  # pyright: ignore[reportArgumentType]
