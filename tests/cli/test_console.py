"""What commands print: valid JSON whatever the numbers, paths as they stand."""

import json
import math

from glmspectra.cli.console import finish


def test_json_output_is_one_object_that_any_parser_takes(capsys):
    finish({"a": math.nan, "b": [1.5, math.inf], "c": {"d": (1, "文")}}, "not shown", as_json=True)
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=lambda word: refuse(word)) == {
        "a": None,
        "b": [1.5, None],
        "c": {"d": [1, "文"]},
    }
    assert out.count("\n") == 1


def refuse(word):
    raise AssertionError(f"{word} is no JSON")


def test_square_brackets_in_a_path_are_kept(capsys):
    finish({}, ["report: runs/[a]/index.html"], as_json=False)
    assert capsys.readouterr().out == "report: runs/[a]/index.html\n"
