import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import chex
import export
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import jaxcalc
from jaxcalc import InputError, Params, fingerprint, load_params, named_leaves, runs, save_params
from jaxcalc.params import HEAD_AXIS
from jaxcalc.runs import cli
from jaxcalc.runs.config import RunConfig, SizesConfig, TaskConfig
from jaxcalc.runs.files import write_whole
from jaxcalc.runs.share import LARGEST_HEADER, load_metadata
from jaxcalc.runs.stablehlo import export_answerer

METADATA = {
    "config": {"model": {"d_model": 64}, "learning_rate": 1e-3, "clip_norm": None, "name": "ünïcode"},
    "vocabulary": ["<pad>", "divided by"],
    "accuracy": 0.9974,
}
CONFIG = RunConfig(TaskConfig(("plus", "times"), 22, held_out=0.2), SizesConfig(16, 2, 32, 1)).filled()


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return the header and the arrays' bytes of a safetensors file."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def write(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.fixture
def params(tiny: Params) -> Params:
    return tiny


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_parameters_come_back_bit_for_bit(params: Params, path: Path) -> None:
    save_params(path, params, METADATA)
    chex.assert_trees_all_equal(load_params(path), params, strict=True)
    assert load_metadata(path) == {**METADATA, "fingerprint": fingerprint(params)}
    assert [file.name for file in path.parent.iterdir()] == ["model.safetensors"]


def test_the_same_input_gives_the_same_bytes(params: Params, path: Path) -> None:
    save_params(path, params, METADATA)
    before = path.read_bytes()
    save_params(path, load_params(path), METADATA)
    assert path.read_bytes() == before


def test_the_safetensors_package_reads_the_same(params: Params, path: Path) -> None:
    save_params(path, params, METADATA)
    chex.assert_trees_all_equal(safetensors.numpy.load_file(path), named_leaves(jax.tree.map(np.asarray, params)))
    with safetensors.safe_open(path, "numpy") as file:
        texts = file.metadata()
    assert set(texts) == {*METADATA, "fingerprint", "checksum"}
    assert {name: json.loads(texts[name]) for name in METADATA} == METADATA
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0


@pytest.mark.parametrize("metadata", [None, {"format": "pt", "note": "{not JSON"}])
def test_a_file_of_other_code_loads(params: Params, path: Path, metadata: dict[str, str] | None) -> None:
    safetensors.numpy.save_file(named_leaves(jax.tree.map(np.asarray, params)), path, metadata)
    chex.assert_trees_all_equal(load_params(path), params, strict=True)
    assert load_metadata(path) == (metadata or {})


def test_a_model_without_some_of_its_heads_can_be_shared(params: Params, path: Path) -> None:
    attention = params["blocks"][0]["attention"]
    cut = {name: jnp.take(attention[name], jnp.array([0, 2]), axis=axis) for name, axis in HEAD_AXIS.items()}
    pruned: Any = {
        **params,
        "blocks": [{**params["blocks"][0], "attention": {**attention, **cut}}, *params["blocks"][1:]],
    }
    save_params(path, pruned)
    chex.assert_trees_all_equal(load_params(path), pruned, strict=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda leaf: leaf.at[0].set(jnp.nan), r"embed\.token is float32\[35, 8\], empty or not finite; expected"),
        (lambda leaf: leaf.astype(jnp.bfloat16), r"embed\.token is bfloat16\[35, 8\]"),
        (lambda leaf: leaf[:, :0], r"embed\.token has shape|is float32\[35, 0\]"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(params: Params, path: Path, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        save_params(path, {**params, "embed": {**params["embed"], "token": change(params["embed"]["token"])}})
    assert not path.exists()


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"accuracy": float("nan")}, "metadata 'accuracy' is not a JSON value"),
        ({"path": Path()}, "metadata 'path' is not a JSON value: Object of type"),
        ({"checksum": 1}, "expected strings except 'checksum' and 'fingerprint'"),
        ({"fingerprint": {}}, "expected strings except 'checksum' and 'fingerprint'"),
        ({1: 1}, "expected strings except"),
        ({"notes": "a" * LARGEST_HEADER}, r"12 arrays and a header of 13\d,\d+ bytes; expected at most 1,024 arrays"),
    ],
)
def test_metadata_that_is_not_json_is_refused(params: Params, path: Path, metadata: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        save_params(path, params, metadata)
    assert not path.exists()


def test_a_full_disk_leaves_the_old_file_and_is_told(
    params: Params, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_params(path, params)
    before, n_bytes = path.read_bytes(), path.stat().st_size

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=rf"cannot write .*model\.safetensors \({n_bytes:,} bytes\): No space left"):
        save_params(path, params)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_a_file_that_grows_too_large_leaves_nothing(path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .* \(100,002 bytes\): File too large"):
            write_whole(path, [b"ab", b"\1" * 100_000])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(path.parent.iterdir())


def test_a_place_that_cannot_be_written_is_named(params: Params, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot write .*file/model: Not a directory|\(\d.* bytes\): Not a directory"):
        save_params(tmp_path / "file" / "model", params)
    with pytest.raises(InputError, match="Is a directory"):
        save_params(tmp_path, params)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("nothing", "No such file"), ("pipe", "it is not a file"), (".", "it is not a file")):
        for load in (load_params, load_metadata):
            with pytest.raises(InputError, match=f"cannot read .*: {message}"):
                load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("embed.token", np.full((35, 8), np.nan, np.float32), r"embed\.token is not finite; expected finite float32"),
        ("embed.token", np.zeros((35, 8), np.float16), r"embed\.token is 'F16'; expected 'F32', which is float32"),
        ("embed.token", np.zeros((35, 8), np.int32), r"embed\.token is 'I32'"),
        ("embed.token", np.zeros((35, 7), np.float32), r"embed\.\w+ has shape"),
        ("embed.token", np.zeros((35, 8, 1), np.float32), r"embed\.token has shape \(35, 8, 1\); expected axes"),
        (
            "embed.token",
            np.zeros((0, 8), np.float32),
            r"embed\.token has shape \[0, 8\]; expected at most 8 positive",
        ),
        ("embed.extra", np.zeros(3, np.float32), r"extra leaf 'embed\.extra'"),
        ("blocks.7.mlp.up", np.zeros((8, 12), np.float32), r"blocks are \['0', '7'\]; expected .*without a gap"),
        ("blocks.00.mlp.up", np.zeros((8, 12), np.float32), r"blocks are .*without a gap"),
        ("blocks.0", np.zeros(3, np.float32), r"names do not form a tree|no leaf 'blocks\.0"),
        ("blocks", np.zeros(3, np.float32), r"names do not form a tree|blocks are ShapeDtypeStruct"),
        ("embed", np.zeros(3, np.float32), r"names do not form a tree|no leaf 'embed"),
        ("../embed", np.zeros(3, np.float32), r"extra leaf '\.\./embed'"),
        ("/etc/passwd", np.zeros(3, np.float32), r"extra leaf '/etc/passwd'"),
        ("a.b.c.d.e", np.zeros(3, np.float32), r"extra leaf 'a\.b\.c\.d\.e'"),
        ("embed.tokén\n", np.zeros(3, np.float32), r"an array is named 'embed\.tokén\\n'; expected a leaf's name"),
        ("", np.zeros(3, np.float32), "an array is named ''"),
    ],
)
def test_files_that_hold_no_model_are_refused(
    params: Params, path: Path, name: str, array: np.ndarray, message: str
) -> None:
    arrays = {path: np.asarray(leaf) for path, leaf in named_leaves(params).items()} | {name: array}
    safetensors.numpy.save_file(arrays, path)
    with pytest.raises(InputError, match=rf"cannot read .*model\.safetensors: .*({message})"):
        load_params(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [35]}, r"embed\.token is at \[\d+, \d+\]; expected \[\d+, \d+\], right after .*, for shape \[35\]"),
        ({"shape": [-35, -8]}, r"shape \[-35, -8\]; expected at most 8 positive integers"),
        ({"shape": [35.0, 8]}, r"shape \[35\.0, 8\]; expected"),
        ({"shape": [True, 8]}, r"shape \[True, 8\]; expected"),
        ({"shape": [35, 8, 1, 1, 1, 1, 1, 1, 1]}, r"expected at most 8 positive integers"),
        ({"shape": [10**30, 8]}, r"expected at most 8 positive integers"),
        ({"shape": "35"}, r"shape '35'; expected"),
        ({"dtype": ["F32"]}, r"embed\.token is \['F32'\]; expected 'F32'"),
        ({"data_offsets": [0, 1120]}, r"is at \[0, \d+\]; expected \["),
        ({"data_offsets": [-4, 1116]}, r"is at \[-4, 1116\]; expected its begin and end"),
        ({"data_offsets": [0]}, r"is at \[0\]; expected its begin and end"),
        ({"data_offsets": None}, r"is at None; expected its begin and end"),
        ({"strides": [1]}, r"embed\.token is \{.*; expected its dtype, shape and data_offsets"),
    ],
)
def test_arrays_that_do_not_fill_the_file_are_refused(params: Params, path: Path, change: dict, message: str) -> None:
    safetensors.numpy.save_file(named_leaves(jax.tree.map(np.asarray, params)), path)
    header, data = parts(path)
    write(path, {**header, "embed.token": {**header["embed.token"], **change}}, data)
    for load in (load_params, load_metadata):
        with pytest.raises(InputError, match=message):
            load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1]", "its header is not a JSON object"),
        (b" {}", "its header is not a JSON object"),
        (b"{}", "it has 0 arrays; expected 1 to 1,024"),
        (b'{"a":1', "its header is not JSON: Expecting"),
        (b'{"\xff":1}', "its header is not JSON: 'utf-8' codec"),
        (b'{"a":NaN}', "its header is not JSON: NaN is not a finite number"),
        (b'{"a":1e999}', "its header is not JSON: 1e999 is not a finite number"),
        (b'{"a":1,"a":1}', "its header is not JSON: an object has a name twice"),
        (b'{"a":' + b"9" * 5000 + b"}", "its header is not JSON: Exceeds the limit"),
        (b'{"a":' + b"[" * 90_000, "its header is not JSON: maximum recursion depth"),
        (b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", r"a is \[\[\[.*\.\.\..*; expected its dtype"),
        (b'{"__metadata__":[]}', "its __metadata__ is not an object of strings"),
        (b'{"__metadata__":{"a":1}}', "its __metadata__ is not an object of strings"),
    ],
)
def test_headers_that_are_no_safetensors_are_refused(path: Path, text: bytes, message: str) -> None:
    write(path, text)
    with pytest.raises(InputError, match=rf"cannot read .*model\.safetensors: {message}"):
        load_params(path)


@pytest.mark.parametrize(
    "data", [b"", b"\2", b"\xff" * 100, bytes(100), b"\7" + bytes(7) + b"{}", bytes([0, 0, 8]) * 9]
)
def test_a_length_that_is_no_headers_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(
        InputError, match=r"its first 8 bytes give its header [\d,]+ bytes; expected 2 to 131,072, within the \d+ bytes"
    ):
        load_params(path)


def test_damage_is_told_apart(params: Params, path: Path) -> None:
    save_params(path, params, METADATA)
    header, data = parts(path)
    whole = path.read_bytes()
    for change, message in (
        (lambda texts: texts | {"accuracy": "0.9975"}, "its header does not match its checksum"),
        (lambda texts: {name: texts[name] for name in texts if name != "checksum"}, "does not match its checksum"),
        (lambda texts: {name: texts[name] for name in texts if name != "fingerprint"}, "does not match its checksum"),
    ):
        write(path, {**header, "__metadata__": change(header["__metadata__"])}, data)
        for load in (load_params, load_metadata):
            with pytest.raises(InputError, match=f"it is damaged: {message}|{message}"):
                load(path)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(InputError, match=r"damaged: the fingerprints of output\.unembed do not match"):
        load_params(path)
    assert load_metadata(path)["accuracy"] == METADATA["accuracy"]


@pytest.fixture(scope="module")
def exported(make_params: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[runs.Run, Path]:
    """A run of an untrained model, and the program that export.py wrote of it."""
    path = tmp_path_factory.mktemp("export") / "run"
    runs.start_run(path, CONFIG, overwrite=False)
    save_params(path / runs.MODEL, make_params(CONFIG.make_model()))
    runs.write_json(path / runs.SUMMARY, {})
    assert export.main(export.ExportOptions(path)) == 0
    return runs.load_run(path), path


WITHOUT_JAXCALC = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("jaxcalc", "flax"):
            raise ImportError(name)

sys.meta_path.insert(0, Blocked())
import jax
import jax.export
import numpy as np

folder = sys.argv[1]
with open(f"{folder}/model.vocabulary.json", encoding="utf-8") as file:
    vocabulary = json.load(file)
with open(f"{folder}/model.stablehlo", "rb") as file:
    answerer = jax.export.deserialize(bytearray(file.read()))
with open(f"{folder}/questions.json", encoding="utf-8") as file:
    questions = json.load(file)
ids = {token: index for index, token in enumerate(vocabulary["tokens"])}
rows = [[ids[word] for word in words] for words in questions]
pad, end, length = vocabulary["pad_id"], vocabulary["end_id"], vocabulary["prompt_length"]
prompts = np.array([[pad] * (length - len(row)) + row for row in rows], np.int32)
batches = [[prompts], np.split(prompts, 5)]
found = [[answerer.call(batch) for batch in split] for split in batches]
print(json.dumps([[np.concatenate(output).tolist() for output in zip(*outputs)] for outputs in found]))
"""


def test_the_program_answers_every_problem_without_jaxcalc(exported: tuple[runs.Run, Path]) -> None:
    run, path = exported
    rows = np.arange(len(run.task.tokens))
    problems = [run.task.problem(row) for row in rows.tolist()]
    words = [
        [*jaxcalc.number_to_words(a).split(), operation, *jaxcalc.number_to_words(b).split(), "equals"]
        for (a, b), (operation,) in problems
    ]
    (path / "questions.json").write_text(json.dumps(words))
    command = [sys.executable, "-I", "-c", WITHOUT_JAXCALC, path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    expected = jaxcalc.evaluate(run.params, run.task, rows)
    for answers, probabilities in json.loads(result.stdout):  # asked at once, and in five batches
        np.testing.assert_array_equal(answers, expected.generated)
        np.testing.assert_allclose(probabilities, expected.probability, rtol=1e-5)
    assert len(np.unique((expected.generated > 1).sum(axis=1))) > 1  # they end early and late


def test_the_program_is_for_any_batch_and_all_platforms(exported: tuple[runs.Run, Path]) -> None:
    answerer = jax.export.deserialize(bytearray((exported[1] / "model.stablehlo").read_bytes()))
    assert answerer.platforms == ("cpu", "cuda", "tpu")
    assert b".py" not in (exported[1] / "model.stablehlo").read_bytes()  # no paths of the machine that wrote it
    assert [aval.str_short() for aval in answerer.in_avals] == ["int32[batch,6]"]
    single = export_answerer(exported[0].params, exported[0].task, ("cpu",))
    assert jax.export.deserialize(bytearray(single)).platforms == ("cpu",)


def test_the_script_says_what_it_wrote(
    exported: tuple[runs.Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "calculator.stablehlo"

    def run(*arguments: Path | str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, arguments)])
        return cli.run_script(export.main, export.ExportOptions), *capsys.readouterr()

    status, stdout, stderr = run(exported[1], "--out", out, "--json")
    assert (status, stderr) == (0, "")
    assert json.loads(stdout) == {
        "path": str(out),
        "bytes": out.stat().st_size,
        "platforms": ["cpu", "cuda", "tpu"],
        "vocabulary": str(tmp_path / "calculator.vocabulary.json"),
    }
    assert out.read_bytes() == (exported[1] / "model.stablehlo").read_bytes()
    vocabulary = json.loads((tmp_path / "calculator.vocabulary.json").read_text(encoding="utf-8"))
    assert vocabulary["tokens"][vocabulary["equals_id"]] == "equals"
    assert (vocabulary["prompt_length"], vocabulary["answer_length"]) == (6, 3)
    for arguments, message in (
        ([exported[1], "--out", tmp_path / "nowhere" / "model"], r"cannot write .*nowhere/model \("),
        ([tmp_path], "is not a run folder"),
    ):
        status, stdout, stderr = run(*arguments)
        assert (status, stdout, stderr.count("\n")) == (2, "", 1)
        assert re.search(message, stderr)
