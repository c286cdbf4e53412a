import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcalc import InputError, Tokenizer, number_to_words
from jaxcalc.batch import PAD_ID
from jaxcalc.tasks.tokenizer import END_ID, OPERATIONS

TOKENIZER = Tokenizer()


def test_the_vocabulary_is_closed_and_small() -> None:
    assert len(TOKENIZER.vocabulary) == len(set(TOKENIZER.vocabulary)) == 35
    assert (TOKENIZER.vocabulary[PAD_ID], TOKENIZER.vocabulary[END_ID]) == ("<pad>", "<end>")
    words = "<pad> <end> equals plus zero one two three four five"
    assert " ".join(Tokenizer(("plus",), 5).vocabulary) == words
    assert "hundred" in Tokenizer(max_number=100).ids
    assert "hundred" not in TOKENIZER.ids


@pytest.mark.parametrize(
    "text",
    ["2 + 3", "2+3", "Two plus three", "two plus three equals", "two plus three =", " TWO  Plus\tthree ", "2 plus 3="],
)
def test_every_way_to_write_a_question_gives_the_same_ids(text: str) -> None:
    assert TOKENIZER.encode(text) == TOKENIZER.encode("two plus three equals")


@pytest.mark.parametrize(
    ("symbols", "operation"), [("+", "plus"), ("-−", "minus"), ("*×x", "times"), ("/÷", "divided by")]
)
def test_symbols_stand_for_operations(symbols: str, operation: str) -> None:
    expected = TOKENIZER.encode(f"forty two {operation} six")
    for symbol in symbols:
        assert TOKENIZER.encode(f"42 {symbol} 6") == expected
        assert TOKENIZER.encode(f"42{symbol}6=") == expected
        assert TOKENIZER.encode(f"forty-two {symbol} six") == expected


@given(st.integers(0, 99), st.sampled_from(OPERATIONS), st.integers(0, 99), st.integers(0, 99))
def test_canonical_text_round_trips(a: int, operation: str, b: int, c: int) -> None:
    for text in (
        f"{number_to_words(a)} {operation} {number_to_words(b)} equals",
        f"{number_to_words(a)} {operation} {number_to_words(b)} equals {number_to_words(c)} <end>",
        number_to_words(c),
    ):
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(st.lists(st.integers(0, 34), max_size=12))
def test_reading_what_was_decoded_never_crashes(ids: list[int]) -> None:
    try:
        again = TOKENIZER.encode(TOKENIZER.decode(ids))
    except InputError:
        return
    assert TOKENIZER.encode(TOKENIZER.decode(again)) == again


@given(st.text(max_size=50))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        ids = TOKENIZER.encode(text)
    except InputError:
        return
    assert all(0 <= index < 35 for index in ids)


@given(st.integers(0, 999), st.sampled_from(["words", "digits", "digits-reversed"]))
def test_answers_are_read_back_in_every_output(number: int, output: str) -> None:
    tokenizer = Tokenizer(("plus",), 999, output)  # pyright: ignore[reportArgumentType]
    spelled = tokenizer.spell(number)
    assert tokenizer.read(spelled) == number
    text = " ".join(["one plus one equals", *spelled])
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.read([*spelled, "one"]) is None or output == "words"


@pytest.mark.parametrize("answer", [[], ["twenty", "zero"], ["<end>"], ["one", "…"], ["plus"]])
def test_what_is_not_a_number_is_read_as_none(answer: list[str]) -> None:
    assert TOKENIZER.read(answer) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("two pluss three", "unknown word 'pluss'; did you mean 'plus'"),
        ("fourty plus two", "unknown word 'fourty'; did you mean 'forty'"),
        ("twenty eleven plus two", "'twenty eleven' is not a number"),
        ("100 plus two", "number out of range: '100'"),
        ("one hundred plus two", "number out of range: 'one hundred'"),
        ("9" * 500 + " + 1", "number out of range: .* 500 digits"),
        ("1" * 2000, "2,000 characters; at most 1,000"),
        ("٣ + 3", "unknown word '٣'"),
        ("3² + 3", "unknown word '²'"),
        ("½ + 3", "unknown word '½'"),
        ("5!", "unknown word '!'"),
        ("1,5 + 2", "unknown word ','"),
        ("0x10", "'0x10' may be a hexadecimal number; write it in decimal, or put spaces around the 'x'"),
        ("negative five + 2", "negative numbers are out of range; this vocabulary goes from 0 to 99"),
        ("<script>", "unknown word '<'"),
        ("🙂", "unknown word '🙂'"),
    ],
)
def test_errors_name_the_word_and_its_neighbour(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TOKENIZER.encode(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    {"tow": "two", "plsu": "plus", "hudnred": "hundred", "equl": "equals", "divide": "divided by"}.items(),
)
def test_a_misspelt_word_has_its_neighbour_named(text: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"unknown word '{text}'; did you mean '{meant}'"):
        TOKENIZER.encode(text)


@pytest.mark.parametrize("text", ["exit", "into", "quit", "help", "often", "money", "power", "add", "modulo"])
def test_a_word_far_from_every_other_has_no_neighbour(text: str) -> None:
    with pytest.raises(InputError, match=f"unknown word '{text}'; write numbers, an operation and 'equals'"):
        TOKENIZER.encode(text)


def test_an_operation_that_was_left_out_is_named() -> None:
    with pytest.raises(InputError, match=r"unknown operation '×'; this vocabulary has 'plus', 'minus'"):
        Tokenizer(("plus", "minus")).encode("2 × 3")


@pytest.mark.parametrize("index", [-1, 35])
def test_ids_outside_the_vocabulary_are_errors(index: int) -> None:
    with pytest.raises(InputError, match=f"token id {index} is outside"):
        TOKENIZER.decode([index])
