"""The command attend."""

import os
import stat
from pathlib import Path

import numpy as np
import pytest
from commands import SHAPE, arrays, attend, mistake

import scatterbrain_core as sb
from scatterbrain_core.cli import measure


@pytest.mark.parametrize("method", ["exact", "performer", "lsh", "scatterbrain"])
def test_attend_writes_what_the_library_returns(folder, capsys, method):
    assert attend("--method", method, "--budget", "1/4", "--seed", "3") == 0
    expected = sb.attention(*arrays(), method=method, budget=0.25, seed=3)
    written = np.load("out.npy")
    assert written.dtype == np.float32
    np.testing.assert_array_equal(written, expected)
    out, err = capsys.readouterr()
    assert "out.npy: float32 (4, 40, 8)" in out
    assert method in out
    assert err == ""


def test_attend_defaults_are_those_of_the_library(folder):
    assert attend() == 0
    np.testing.assert_array_equal(np.load("out.npy"), sb.attention(*arrays()))


def test_attend_passes_causal_and_scale_on(folder):
    assert attend("--method", "exact", "--causal", "--scale", "0.5") == 0
    expected = sb.attention(*arrays(), method="exact", is_causal=True, scale=0.5)
    np.testing.assert_array_equal(np.load("out.npy"), expected)


def test_attend_passes_the_mask_on(folder):
    mask = np.arange(40) < 25
    np.save("mask.npy", mask[None])
    assert attend("--method", "exact", "--mask", "mask.npy") == 0
    query, key, value = arrays()
    expected = sb.attention(query, key[:, :25], value[:, :25], method="exact")
    np.testing.assert_allclose(np.load("out.npy"), expected, rtol=1e-5, atol=1e-6)


def test_attend_takes_a_mask_of_keys_with_causal(folder):
    mask = (np.arange(40) >= 7)[None]
    np.save("mask.npy", mask)
    assert attend("--causal", "--mask", "mask.npy") == 0
    expected = sb.attention(*arrays(), is_causal=True, attn_mask=mask)
    np.testing.assert_array_equal(np.load("out.npy"), expected)


def test_attend_passes_grouped_heads_on(folder):
    query, key, value = arrays()
    np.save("k.npy", key[:2])
    np.save("v.npy", value[:2])
    assert attend("--method", "exact", "--gqa") == 0
    expected = sb.attention(query, key[:2], value[:2], method="exact", enable_gqa=True)
    np.testing.assert_array_equal(np.load("out.npy"), expected)


def test_attend_writes_the_normaliser_and_the_standard_error(folder):
    assert attend("--method", "performer", "--lse", "lse.npy", "--stderr", "se.npy") == 0
    expected = sb.estimate(*arrays(), method="performer")
    np.testing.assert_array_equal(np.load("lse.npy"), expected.lse)
    np.testing.assert_array_equal(np.load("se.npy"), expected.stderr)


def test_attend_reads_the_other_byte_order(folder):
    for name, array in zip("qkv", arrays(), strict=True):
        np.save(f"{name}.npy", array.astype(array.dtype.newbyteorder()))
    assert attend() == 0
    np.testing.assert_array_equal(np.load("out.npy"), sb.attention(*(x.astype("f4") for x in arrays())))


def test_attend_takes_float64(folder):
    for name, array in zip("qkv", arrays(), strict=True):
        np.save(f"{name}.npy", array.astype(np.float64))
    assert attend("--method", "exact") == 0
    np.testing.assert_allclose(np.load("out.npy"), measure.dense_attention(*arrays()), rtol=1e-12)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_output_has_the_permissions_of_any_new_file(folder):
    Path("usual").touch()
    assert attend() == 0
    assert stat.S_IMODE(Path("out.npy").stat().st_mode) == stat.S_IMODE(Path("usual").stat().st_mode)


@pytest.mark.skipif(os.name != "posix", reason="a link needs no privilege on POSIX alone")
def test_output_through_a_link_goes_where_the_link_points(folder):
    Path("deep").mkdir()
    Path("out.npy").symlink_to(Path("deep") / "real.npy")
    assert attend() == 0
    assert Path("out.npy").is_symlink()
    assert np.load(Path("deep") / "real.npy").shape == SHAPE


def test_attend_reads_files_in_place_and_keeps_to_a_limit(folder, monkeypatch):
    seen, attention = [], sb.attention

    def spy(*found, **arguments):
        seen.append((found, arguments.get("max_memory")))
        return attention(*found, **arguments)

    monkeypatch.setattr(sb, "attention", spy)
    assert attend("--max-memory", str(2**27)) == 0
    found, limit = seen[-1]
    assert limit == 2**27
    assert all(isinstance(x, np.memmap) for x in found)
    np.testing.assert_array_equal(np.load("out.npy"), attention(*arrays()))


def test_attend_says_what_the_least_memory_is(folder, capsys):
    told = mistake(capsys, ["attend", "q.npy", "k.npy", "v.npy", "-o", "out.npy", "--max-memory", "10"])
    assert "--max-memory must be at least" in told
    arguments = ["--max-memory", str(2**27), "--lse", "lse.npy"]
    told = mistake(capsys, ["attend", "q.npy", "k.npy", "v.npy", "-o", "out.npy", *arguments])
    assert told.startswith("--max-memory does not go with --lse")
