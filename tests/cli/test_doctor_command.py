"""`glmspectra doctor` on machines that lack one thing each."""

import json
import sys
from importlib import metadata

import pytest
import torch

from glmspectra.cli import doctor
from glmspectra.cli.main import main


def states(checks):
    return {check.name: check.state for check in checks}


def test_this_machine_is_in_order(capsys):
    with pytest.raises(SystemExit) as leaving:
        main(["doctor", "--json"])
    assert leaving.value.code == 0
    results = json.loads(capsys.readouterr().out)
    assert results["faults"] == 0
    found = {check["name"]: check for check in results["checks"]}
    assert found["torch"]["words"] == str(torch.__version__)
    assert found["peft"]["words"] == metadata.version("peft")


def test_a_package_of_another_version_is_a_fault_with_the_way_out(monkeypatch, capsys):
    own = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "0.20.1" if name == "peft" else own(name))
    with pytest.raises(SystemExit) as leaving:
        main(["doctor", "--lang", "en"])
    assert leaving.value.code == 1
    results = capsys.readouterr().out
    assert "✗ peft: 0.20.1 is installed; tested is peft<0.22,>=0.21: pip install 'peft<0.22,>=0.21'" in results


def test_an_extra_may_be_absent_and_a_requirement_may_not(monkeypatch):
    own = metadata.version

    def version(name):
        if name in ("gguf", "scipy"):
            raise metadata.PackageNotFoundError(name)
        return own(name)

    monkeypatch.setattr(metadata, "version", version)
    words = {check.name: check.words for check in doctor.packages()}
    assert words["gguf"].endswith("pip install 'gguf>=0.17'"), "glmspectra itself is on no index"
    found = states(doctor.packages())
    assert found["gguf"] == doctor.WEAK
    assert found["scipy"] == doctor.BAD


def test_a_full_disk_and_an_ascii_terminal_are_noted(monkeypatch, tmp_path):
    usage = doctor.shutil.disk_usage(tmp_path)._replace(free=2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    assert doctor.disk(tmp_path).state == doctor.WEAK

    class Ascii:
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Ascii())
    assert doctor.output().state == doctor.WEAK


def test_a_package_that_does_not_load_is_a_fault():
    def broken():
        raise OSError("libcudart.so.13: cannot open\nshared object file")

    check = doctor._works("json", "doctor-kernels", broken)
    assert check.state == doctor.BAD
    assert "libcudart.so.13: cannot open shared object file" in check.words
