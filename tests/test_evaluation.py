import jax
import numpy as np
import pytest

import jaxcalc
from jaxcalc import Params, Task, evaluate
from jaxcalc.evaluation import answer_log_probs, answer_text


@pytest.fixture(scope="module")
def params(task: Task) -> Params:
    """Parameters of one narrow block, large enough that every path through it matters."""
    config = jaxcalc.ModelConfig(
        task.vocab_size, d_model=16, n_heads=2, d_ff=32, n_layers=1, context_length=task.context_length
    )
    return jax.tree.map(lambda leaf: leaf * 3 if leaf.ndim > 1 else leaf, jaxcalc.init(jax.random.key(1), config))


def test_exact_match_counts_whole_answers_with_their_end(
    task: Task, params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An oracle that is right but for three known mistakes scores exactly that."""
    table = {tuple(row[:6]): row[6:].copy() for row in np.asarray(task.tokens)}
    rows = np.arange(0, len(task.tokens), 5)
    end, five = 1, task.tokenizer.ids["five"]
    mistakes = {int(rows[0]): [five, five, end], int(rows[7]): None, int(rows[9]): [end, 0, 0]}
    for row, answer in mistakes.items():
        key = tuple(np.asarray(task.tokens[row, :6]))
        right = table[key]
        # The second mistake is the right words without their end.
        table[key] = np.where(right == end, five, right) if answer is None else np.array(answer)

    def oracle(params: Params, prompts: jax.Array, n_tokens: int, **_: object) -> tuple[np.ndarray, jax.Array]:
        answers = np.array([table[tuple(prompt)] for prompt in np.asarray(prompts)])
        return answers, jax.numpy.full(answers.shape, -0.1)

    monkeypatch.setattr("jaxcalc.evaluation.generate", oracle)
    result = evaluate(params, task, rows)
    assert set(rows[~result.correct]) == set(mistakes)
    assert result.exact_match == pytest.approx(1 - 3 / len(rows))
    assert [error["got"] for error in result.errors()] == ["five five", result.errors()[1]["got"], ""]
    assert result.errors()[0]["problem"] == "zero plus zero"
    assert result.errors()[0]["expected"] == "zero"
    np.testing.assert_allclose(result.probability, np.exp(-0.3), rtol=1e-5)
    by_operation = result.by_operation()
    assert sum(row["problems"] for row in by_operation.values()) == len(rows)
    assert sum(row["correct"] for row in by_operation.values()) == len(rows) - 3


def test_rows_are_decoded_whatever_their_number(task: Task, params: Params) -> None:
    rows = np.arange(1030)
    whole = evaluate(params, task, rows)
    part = evaluate(params, task, rows[1000:])
    np.testing.assert_array_equal(whole.generated[1000:], part.generated)
    assert evaluate(params, task, rows[:0]).exact_match is None


def test_the_log_probability_of_an_answer_is_that_of_its_tokens(task: Task, params: Params) -> None:
    prompt = task.encode("40 + 2")
    log_probs = answer_log_probs(params, task, prompt)
    logits = jax.jit(jaxcalc.apply)(params, task.tokens[task.row(task.parse("40 + 2")) :][:1, :-1])
    step = np.asarray(jax.nn.log_softmax(logits))[0]
    expected = sum(step[5 + i, index] for i, index in enumerate([*task.tokenizer.encode("forty two"), 1]))
    assert float(log_probs[42]) == pytest.approx(float(expected), rel=1e-4)
    assert float(np.exp(log_probs).sum()) < 1


def test_answers_without_an_end_are_marked(task: Task) -> None:
    ids = task.tokenizer.ids
    assert answer_text(task, np.array([ids["five"], 1, 0])) == "five"
    assert answer_text(task, np.array([ids["five"], ids["five"], ids["five"]])) == "five five five …"
