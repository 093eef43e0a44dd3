"""The commands methods and doctor, version and help."""

import subprocess
import sys

import numpy as np
import pytest

import scatterbrain_core as sb
from scatterbrain_core._version import __version__
from scatterbrain_core.cli import doctor, main
from scatterbrain_core.cli.libraries import LIBRARIES, Library


def test_methods_lists_every_method_with_its_line(capsys):
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(sb.methods())
    assert all(line.endswith(told) for line, told in zip(lines, sb.methods().values(), strict=True))


def test_methods_needs_the_core_alone():
    script = (
        "import sys; from scatterbrain_core.cli import main; main(['methods']); "
        "sys.exit(sorted({'rich', 'matplotlib', 'scipy', 'torch', 'tokenizers'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_version_and_help(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"scatterbrain {__version__}\n"
    for command in ([], ["demo"], ["attend"], ["compare"], ["methods"], ["doctor"]):
        assert main([*command, "--help"]) == 0
        assert capsys.readouterr().out.startswith("usage: scatterbrain")


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_doctor_goes_to_every_device_of_a_library_and_back(library):
    module = pytest.importorskip(
        library.module, reason=f"{library.name} is not installed", exc_type=ImportError
    )
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    try:
        devices = library.devices(module)
    except RuntimeError as error:  # CuPy without a driver
        pytest.skip(f"{library.name} sees no device here: {error}")
    for device in devices:
        there = library.make(module, array, device)
        assert type(there).__module__.partition(".")[0] in (library.name, "jaxlib")
        np.testing.assert_array_equal(np.asarray(library.to_numpy(there)), array)


def test_doctor_leaves_out_the_device_that_cannot_sort():
    strict = pytest.importorskip("array_api_strict", reason="array-api-strict is not installed")
    library = next(library for library in LIBRARIES if library.name == "array_api_strict")
    assert [device for device in library.devices(strict) if "no_x64" in str(device)] == []


def test_doctor_names_every_library_and_none_gives_a_wrong_answer(capsys, monkeypatch):
    # JAX compiles each operation of the run, a quarter of a minute of it.
    monkeypatch.setattr(doctor, "LIBRARIES", [library for library in LIBRARIES if library.name != "jax"])
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err.splitlines()[0] == "[1/5] numpy"
    assert f"scatterbrain-core {__version__}" in out
    for name in ("numpy", "torch", "cupy", "array_api_strict", "dask"):
        assert f"\n{name} " in out
    numpy = next(line for line in out.splitlines() if line.startswith("numpy"))
    assert numpy.count("ok, error") == 2
    assert "WRONG" not in out


def test_doctor_tells_a_missing_library_from_a_broken_one(monkeypatch, tmp_path, capsys):
    (tmp_path / "crooked_arrays.py").write_text("raise OSError('libcrooked.so:\\n no such library')")
    monkeypatch.syspath_prepend(tmp_path)
    crooked, absent = (
        Library(name, name, LIBRARIES[0].devices, LIBRARIES[0].make, LIBRARIES[0].to_numpy)
        for name in ("crooked_arrays", "absent_arrays")
    )
    monkeypatch.setattr(doctor, "LIBRARIES", (LIBRARIES[0], crooked, absent))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "crooked_arrays is broken: OSError: libcrooked.so: no such library" in lines
    assert ["absent_arrays", "not", "installed"] in [line.split() for line in lines]


def test_doctor_says_why_a_device_fails_and_which_answer_is_wrong(monkeypatch, capsys):
    def lost(array):
        raise RuntimeError("the device is lost")

    numpy = LIBRARIES[0]
    failing = Library("numpy", "numpy", lambda _module: ["far"], numpy.make, lost)
    lying = Library("numpy", "numpy", lambda _module: ["lying"], numpy.make, lambda x: x + 1)
    monkeypatch.setattr(doctor, "LIBRARIES", (lying, failing))
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "numpy on far, exact: RuntimeError: the device is lost" in out
    assert next(line for line in out.splitlines() if "lying" in line).count("WRONG") == 2
