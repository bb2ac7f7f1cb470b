"""``segfuse doctor``: a complete report, and a reason for whatever is missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from segfuse import cli, doctor

HIDE = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name in {names!r}:
            raise ImportError("hidden from this test", name=name)

sys.meta_path.insert(0, Hide())
"""


def segfuse(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``python -m segfuse`` in a process of its own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEGFUSE_")}
    command = [sys.executable, "-m", "segfuse", *args]
    return subprocess.run(command, env={**kept, **variables}, capture_output=True, text=True, timeout=120)


def test_a_reader_that_has_seen_enough():
    code = "import sys; from segfuse.cli import main; sys.exit(main(['demo', '--list']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout and run.stderr
        run.stdout.close()
        assert run.stderr.read() == b"" and run.wait(60) == 1


def hide(folder: Path, *names: str) -> str:
    """A PYTHONPATH under which importing any of ``names`` fails."""
    (folder / "sitecustomize.py").write_text(HIDE.format(names=names))
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


def test_report_is_complete():
    run = segfuse("doctor", "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    report = json.loads(run.stdout)
    assert report["ready"] and report["problems"] == []
    assert set(report["versions"]) == {"segfuse", "torch", "numpy", "numba", "python", "platform"}
    assert set(report) >= {"backends", "cpu", "threads", "cuda", "environment", "warnings", "errors"}
    for reasons in report["backends"].values():
        assert list(reasons) == ["cpp", "cuda", "numba", "reference"]
        assert reasons["cpp"] is None and reasons["reference"] is None
        assert reasons["cuda"]
    assert report["cpu"]["isa_used"] in report["cpu"]["isa_found"]
    assert report["threads"]["torch"] >= 1
    assert len(report["threads"]["openmp"]) <= 1, "a second OpenMP runtime was loaded"


def test_text_ends_with_the_verdict():
    run = segfuse("doctor")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.splitlines()[-1].startswith("ready: losses run on the cpp")
    assert "backends of every op" in run.stdout


def test_pure_python_package_is_ready(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "segfuse._cpp", None)  # as if it had not been built
    for name in doctor.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    report = doctor.collect()
    assert report["ready"] and "the C++ extension is missing" in report["warnings"][0]
    report["backends"]["pixel_stats"]["cpp"] = report["errors"]["segfuse._cpp"]
    assert doctor.render(report).splitlines()[-1].startswith("ready: losses run on the numba backend")


def test_missing_extension_shows_its_reason(tmp_path):
    run = segfuse("doctor", "--json", PYTHONPATH=hide(tmp_path, "segfuse._cpp"))
    assert run.returncode == 1, run.stderr
    report = json.loads(run.stdout)
    assert "hidden from this test" in report["errors"]["segfuse._cpp"]
    for reasons in report["backends"].values():
        assert reasons["cpp"] is not None and reasons["reference"] is None
    assert "hidden from this test" in report["problems"][0]


def test_missing_numba_says_how_to_install_it(tmp_path):
    path = hide(tmp_path, "numba")
    report = json.loads(segfuse("doctor", "--json", PYTHONPATH=path).stdout)
    assert "pip install numba" in report["backends"]["pixel_stats"]["numba"]
    path = hide(tmp_path, "numba", "segfuse._cpp")
    run = segfuse("doctor", "--json", PYTHONPATH=path)
    assert "pip install numba" in json.loads(run.stdout)["problems"][0]
    code = "import segfuse as s, torch; print(s.explain(s.DiceLoss(), torch.ones(1, 1, 4), torch.ones(1, 4)))"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120)
    assert "on reference" in run.stdout and "pip install numba" in run.stdout, run.stderr


def test_missing_torch_says_how_to_install_it(tmp_path):
    run = segfuse("doctor", PYTHONPATH=hide(tmp_path, "torch"))
    assert run.returncode == 1, run.stderr
    assert "hidden from this test" in run.stdout
    assert "install torch" in run.stdout.splitlines()[-1]


@pytest.mark.parametrize("variable", ["SEGFUSE_BACKEND", "SEGFUSE_ISA"])
def test_forced_choice_that_does_not_exist(variable, monkeypatch, capsys):
    for name in doctor.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "abacus")
    assert cli.main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["environment"] == {variable: "abacus"}
    assert f"{variable}=abacus" in report["problems"][0]


def test_second_openmp_runtime_is_a_warning():
    report = doctor.collect()
    report["threads"]["openmp"] = ["/a/libgomp.so.1", "/b/libgomp-1234.so.1"]
    assert "more than one OpenMP runtime" in doctor._warnings(report)[0]


@pytest.mark.parametrize(("args", "status"), [(["--version"], 0), (["--help"], 0), ([], 2), (["dcotor"], 2)])
def test_command_line(args, status, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(args)
    assert end.value.code == status
    captured = capsys.readouterr()
    if args == ["--version"]:
        assert captured.out.startswith("segfuse ")
    elif args == ["--help"]:
        assert "doctor" in captured.out and "demo" in captured.out
