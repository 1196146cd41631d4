"""`glmspectra svd` and `values` as a user meets them: what is printed where, exit statuses, one sentence an
error."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from glmspectra.cli.main import main
from glmspectra.errors import RequestError
from glmspectra.store import read_run
from tests.sweep.small_checkpoint import matrix, write_small_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_small_checkpoint(tmp_path_factory.mktemp("models") / "small", layers=2)


NUMBERS_ONLY = ("--no-report", "--no-values")


def run(capfd, *arguments):
    """Exit status, stdout and stderr of one command line, in this process."""
    try:
        main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as leaving:
        status = leaving.code or 0
    out, err = capfd.readouterr()
    return status, out, err


def test_json_is_one_object_on_stdout_and_nothing_else(capfd, model, tmp_path):
    chosen = ("--layers", "0", "--include", "*attention*")
    status, out, err = run(capfd, "svd", "--model", model, "--out", tmp_path, "--json", "--no-report", *chosen)
    assert status == 0
    facts = json.loads(out)
    assert out.count("\n") == 1
    assert facts["matrices"] == facts["measured"] == 2
    assert facts["nonfinite"] == []
    assert facts["report"] is None
    assert err == ""
    table = read_run(Path(facts["tables"])).matrices
    assert table[["mean", "spectral_norm"]].notna().all().all()


def test_the_summary_names_every_matrix_type_and_where_the_tables_are(capfd, model, tmp_path):
    status, out, _ = run(capfd, "svd", "--model", model, "--out", tmp_path, *NUMBERS_ONLY, "--split")
    assert status == 0
    for word in ("query_key_value", "dense_h_to_4h", "gate", "sigma 1", "stable", "energy"):
        assert word in out
    assert "8 matrices, in" in out
    assert str(next((tmp_path / "param_matrix").iterdir())) in out.replace("\n", "")
    status, out, _ = run(capfd, "svd", "--model", model, "--out", tmp_path, *NUMBERS_ONLY, "--split")
    assert "8 matrices, finished before" in out


def test_values_then_svd_fill_one_table(capfd, model, tmp_path):
    arguments = ("--model", model, "--out", tmp_path, "--no-report", "--json", "--matrices", "dense")
    status, out, _ = run(capfd, "values", *arguments)
    assert status == 0
    folder = Path(json.loads(out)["tables"])
    assert read_run(folder).matrices["spectral_norm"].isna().all()
    status, out, _ = run(capfd, "svd", *arguments, "--no-values")
    assert (status, Path(json.loads(out)["tables"])) == (0, folder)
    assert read_run(folder).matrices[["mean", "spectral_norm"]].notna().all().all()


def test_selection_options_choose(capfd, model, tmp_path):
    chosen = ("--layers", "-1", "--include", "*mlp*", "--exclude", "*4h_to_h*")
    _, out, _ = run(capfd, "svd", "--model", model, "--out", tmp_path, *NUMBERS_ONLY, "--json", *chosen)
    names = read_run(Path(json.loads(out)["tables"])).matrices["name"].tolist()
    assert names == [matrix(1, "dense_h_to_4h")]
    _, out, _ = run(capfd, "svd", "--model", model, "--out", tmp_path, *NUMBERS_ONLY, "--json", "--matrices", "all")
    names = read_run(Path(json.loads(out)["tables"])).matrices["name"].tolist()
    assert names[0] == "transformer.embedding.word_embeddings.weight"
    assert names[-1] == "transformer.output_layer.weight"
    chosen = ("--layers", "0", "--matrices", "dense", *NUMBERS_ONLY)
    _, out, _ = run(capfd, "svd", "--model", model, "--out", tmp_path, *chosen)
    assert "1 matrix, finished before" in out
    assert "9 matrices of earlier selections kept on disk" in out


def test_the_jsonl_of_the_study(capfd, model, tmp_path):
    arguments = ("--model", model, "--out", tmp_path, *NUMBERS_ONLY, "--json")
    _, out, _ = run(capfd, "svd", *arguments, "--export-jsonl")
    path = Path(json.loads(out)["jsonl"])
    assert path.name == "singular_value.jsonl"
    assert len(path.read_text().splitlines()) == 2
    status, out, err = run(capfd, "svd", *arguments, "--export-jsonl", "--matrices", "dense")
    assert (status, out) == (2, "")
    assert "lacks query_key_value" in err


def test_nan_gives_exit_status_1_and_is_named(capfd, tmp_path):
    bad = matrix(0, "dense")
    model = write_small_checkpoint(tmp_path / "model", layers=1, spoil={bad: float("nan")})
    for command in ("svd", "values"):
        chosen = ("--matrices", "dense", "--no-report")
        status, out, _ = run(capfd, command, "--model", model, "--out", tmp_path / command, *chosen)
        assert status == 1
        assert "1 of them holds NaN, infinity or numbers beyond float32" in out
        assert bad in out.replace("\n", "")
    status, out, _ = run(capfd, "svd", "--model", model, "--out", tmp_path / "svd", *chosen, "--json")
    assert (status, json.loads(out)["nonfinite"]) == (1, [bad]), "also when everything was finished before"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--layers", "0-1,x"), "'x' in --layers"),
        (("--layers", "7"), "the checkpoint has layers 0 to 1"),
        (("--layers", "1-0"), "runs backwards"),
        (("--layers", ""), "--layers is empty"),
        (("--matrices", "nothing"), "'nothing' in --matrices is no matrix of"),
        (("--matrices", "dense,dens"), "'dens' in --matrices is no matrix of"),
        (("--method", "fast"), "--method is exact or topk, not 'fast'"),
        (("--rtol", "2"), "--rtol is 2.0"),
        (("--device", "gpu"), "--device gpu is not a device"),
        (("--model", "/nowhere/at/all"), "--model says /nowhere/at/all, and there is no such file or folder"),
    ],
)
def test_a_wrong_request_is_one_sentence_and_status_2(capfd, model, tmp_path, arguments, sentence):
    status, out, err = run(capfd, "svd", "--model", model, "--out", tmp_path, "--no-report", "--json", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert sentence in err


def test_a_truncated_file_is_one_sentence_and_status_1(capfd, model, tmp_path):
    content = (model / "model.safetensors").read_bytes()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "model.safetensors").write_bytes(content[: len(content) // 2])
    status, out, err = run(capfd, "svd", "--model", tmp_path / "cut", "--out", tmp_path, "--no-report")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "model.safetensors" in err


def test_a_place_that_cannot_be_written_is_one_sentence_and_status_1(capfd, model, tmp_path):
    (tmp_path / "param_matrix").write_text("")
    status, out, err = run(capfd, "svd", "--model", model, "--out", tmp_path, "--no-report")
    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert "a file is in the way of a folder" in err


def test_an_unknown_option_is_status_2_and_the_traceback_needs_debug(capfd, model, tmp_path):
    assert run(capfd, "svd", "--no-such-option")[0] == 2
    wrong = ("svd", "--model", tmp_path / "absent", "--out", tmp_path)
    assert "Traceback" not in run(capfd, *wrong)[2]
    with pytest.raises(RequestError, match="there is no such file or folder"):
        main([*map(str, wrong), "--debug"])


def test_an_error_that_no_one_foresaw_is_one_sentence_too(capfd, model, tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError("first line\nsecond line")

    monkeypatch.setattr("glmspectra.cli.measuring._sweep", fails)
    command = ("svd", "--model", model, "--out", tmp_path)
    status, out, err = run(capfd, *command)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("error: ValueError: first line second line (not foreseen")
    with pytest.raises(ValueError, match="first line"):
        main([*map(str, command), "--debug"])

    def interrupted(*_):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error

    monkeypatch.setattr("glmspectra.cli.measuring._sweep", interrupted)
    status, _, err = run(capfd, *command)
    assert (status, err.split(":")[0]) == (130, "interrupted")


def test_results_go_to_the_current_folder_unless_told(capfd, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, _ = run(capfd, "svd", "--model", model, *NUMBERS_ONLY, "--json", "--matrices", "dense")
    assert status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["param_matrix"]
    assert (tmp_path / json.loads(out)["tables"] / "matrices.parquet").is_file()


@pytest.mark.slow
def test_the_report_is_drawn_and_named(capfd, model, tmp_path):
    status, out, _ = run(capfd, "svd", "--model", model, "--out", tmp_path, "--json", "--layers", "0")
    assert status == 0
    index = Path(json.loads(out)["report"])
    assert index == tmp_path / "reports" / json.loads(out)["run"] / "index.html"
    assert "<html" in index.read_text()


def test_a_full_disk_keeps_what_was_finished_and_the_same_command_goes_on(capfd, model, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=28k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small tmpfs can only be mounted by root")
    try:
        arguments = ("svd", "--model", model, "--out", disk, *NUMBERS_ONLY, "--json")
        status, out, err = run(capfd, *arguments)
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert "the disk is full; what was finished is kept, so free some space and run the same command again" in err
        finished = len(list(disk.rglob("*.npz")))
        assert 0 < finished < 8
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        status, out, _ = run(capfd, *arguments)
        assert (status, json.loads(out)["reused"]) == (0, finished)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_form_of_the_study_is_refused_before_anything_is_measured(capfd, model, tmp_path):
    asked = ("--matrices", "dense", "--export-jsonl", "--no-report")
    status, _, err = run(capfd, "svd", "--model", model, "--out", tmp_path, *asked)
    assert status == 2
    assert "layer 0 of this selection lacks query_key_value, dense_h_to_4h, dense_4h_to_h" in err
    assert not list(tmp_path.iterdir())


def test_numbers_of_the_summary_are_never_cut_in_a_narrow_window(monkeypatch):
    import pandas as pd
    from rich.console import Console

    from glmspectra.cli.measuring import summary_table
    from glmspectra.cli.svd import SUMMARY

    row = {"quantity": "weight", "matrix": "some.very.long.name.of_a_matrix.lora_A", "part": "whole"}
    table = pd.DataFrame([{**row, **dict.fromkeys(SUMMARY, 1.2345e-5)}])
    stored = type("Stored", (), {"matrices": table, "name": "run"})
    console = Console(width=80, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    console.print(summary_table(stored, SUMMARY))
    text = console.export_text()
    assert text.count("1.234e-05") == len(SUMMARY)
    assert "…" not in text


def test_a_page_is_written_again_only_where_what_it_shows_has_changed(capfd, model, tmp_path):
    def drawn(*more):
        """The page's time, and that of the page over all, after the command."""
        status, out, _ = run(capfd, "svd", "--model", model, "--out", tmp_path, "--layers", "0", "--json", *more)
        assert status == 0
        page = Path(json.loads(out)["report"])
        return page, page.stat().st_mtime_ns, (tmp_path / "reports/index.html").stat().st_mtime_ns

    page, *first = drawn()
    assert drawn() == (page, *first)
    assert drawn("--layers", "all")[1] > first[0]  # more was measured
    _, *chinese = drawn("--layers", "all", "--lang", "zh")
    assert '"opens":"zh"' in page.read_text(encoding="utf-8")
    page.write_text("something else", encoding="utf-8")
    again = drawn("--layers", "all", "--lang", "zh")
    assert again[1] > chinese[0]
    assert "something else" not in page.read_text(encoding="utf-8")
