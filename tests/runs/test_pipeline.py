from matplotlib.figure import Figure

from jaxcalc.runs.pipeline import PARTS, draw_pipeline, pipeline_lines

SHARES = {"embeddings": 0.41, "attention": 0.2, "feed-forward": 0.18, "output": 0.22, "weight decay": -0.01}


def test_the_picture_fits_80_columns_and_each_share_stands_below_its_part() -> None:
    for answer in ("seven", "seventeen"):
        question, forward, back, beside = pipeline_lines("two plus three equals ___", answer, False, SHARES)
        assert question.endswith("___")
        assert forward.endswith(f'"{answer}" (wrong)')
        assert max(len(forward), len(back)) <= 80
        for part in PARTS:
            start = forward.index(part)
            assert back[start : start + len(part)].strip() == f"{round(100 * SHARES[part])} %"
        assert "no weights" in back[: forward.index("embeddings")]
        assert beside == "beside these: weight decay -1 %"


def test_without_shares_the_picture_has_none() -> None:
    *_, back = pipeline_lines("one plus one equals ___", "two", True, None)
    assert "%" not in back
    assert back.count("–") == len(PARTS)


def test_the_figure_says_the_same() -> None:
    axes = Figure().subplots()
    draw_pipeline(axes, "two plus three equals ___", "seven", False, SHARES)
    said = [text.get_text() for text in axes.texts]
    assert {*PARTS, "41 %", "20 %", "18 %", "22 %", "no weights"} <= set(said)
    draw_pipeline(Figure().subplots(), "one plus one equals ___", "two", True, None)
