"""Public calls whose tiles run through the kernels, on the CPU: half precision is still rounded once."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from oracle import METHODS, oracle
from problems import draw_problem

import scatterbrain_core as sb
from kernels.cases import prepare
from kernels.host import COMPILER, HostKernels
from scatterbrain_backends.cupy_.forms import HalfTile, Tile
from scatterbrain_backends.cupy_.tile_partial import is_taken, tile_of
from scatterbrain_backends.numpy_ import NumpyBackend
from scatterbrain_core.backend import Backend

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")

# Half a unit in the last place, relative.
UNITS = {"float16": (np.float16, 2.0**-11), "bfloat16": (ml_dtypes.bfloat16, 2.0**-8)}
ROOM = 2**17


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("calls")


class Launched(list):
    """The kernels' files, as they are launched, with a bug if one is planted."""

    bug = 0


@pytest.fixture
def launched(monkeypatch, folder):
    """Tiles of NumPy's backend go where CuPy's would go."""
    names = Launched()

    def tile_partial(_, visits, generic):
        tile = tile_of(visits, ROOM, has_mma=True) if is_taken(visits) else None
        if tile is None:
            return generic()
        launch, ref, acc = prepare(visits, tile)
        HostKernels(launch.source, [launch.kernel], folder).run(launch, order="random", bug=names.bug)
        names.append(launch.source)
        return ref, acc

    monkeypatch.setattr(NumpyBackend, "tile_partial", tile_partial)
    for name in ("attend", "with_opened", "solve_tiles"):  # NumPy's own ways around the tiles
        monkeypatch.setattr(NumpyBackend, name, getattr(Backend, name))
    return names


def is_rounded_once(rng, dtype, name, **form):
    """Whether every entry is within the very tolerance that half precision has without the kernels."""
    kind, unit = UNITS[dtype]
    arrays = [x.astype(kind) for x in draw_problem(rng, 60, 50, dim=8)]
    output = sb.attention(*arrays, method=METHODS[name], **form)
    expected, _ = oracle(*(x.astype(np.float64) for x in arrays), METHODS[name], **form)
    assert output.dtype == kind
    return (np.abs(output.astype(np.float64) - expected) <= unit * np.abs(expected) + 1e-5).all()


@pytest.mark.parametrize("name", ["lsh", "tables", "scatterbrain", "window", "longformer", "sorted clusters"])
@pytest.mark.parametrize("dtype", UNITS)
def test_output_is_the_oracles_rounded_once(launched, rng, is_causal, dtype, name):
    assert is_rounded_once(rng, dtype, name, is_causal=is_causal)
    assert "tile_partial_half" in launched


@pytest.mark.parametrize("dtype", UNITS)
def test_one_term_of_a_weight_would_not_do(launched, rng, dtype):
    launched.bug = 17  # the lower term is dropped
    assert not is_rounded_once(rng, dtype, "window")


@pytest.mark.parametrize("dtype", UNITS)
def test_auto_is_the_same_without_the_kernels(launched, rng, is_causal, dtype, monkeypatch):
    kind, unit = UNITS[dtype]
    arrays = [x.astype(kind) for x in draw_problem(rng, 400, 400, dim=16)]
    own = sb.attention(*arrays, is_causal=is_causal)
    assert launched
    assert set(launched) == {"tile_partial_half"}
    monkeypatch.undo()
    generic = sb.attention(*arrays, is_causal=is_causal).astype(np.float64)
    assert (np.abs(own.astype(np.float64) - generic) <= 2 * unit * np.abs(generic) + 1e-5).all()


def test_grouped_heads_and_masks(launched, rng):
    """What a mask hides is zero, which is of half precision too; grouped heads share their keys."""
    query, key, value = (x.astype(np.float16) for x in draw_problem(rng, 60, 60, dim=8))
    query = np.concatenate([query, -query])
    mask = rng.random((1, 1, 60)) < 0.7
    form = {"method": METHODS["window"], "attn_mask": mask}
    own = sb.attention(query, key, value, enable_gqa=True, **form)
    assert set(launched) == {"tile_partial_half"}
    exact = [np.repeat(x.astype(np.float64), len(query) // len(key), axis=0) for x in (key, value)]
    expected, _ = oracle(query.astype(np.float64), *exact, METHODS["window"], mask=mask)
    assert (np.abs(own - expected) <= 2.0**-11 * np.abs(expected) + 1e-5).all()


def visits_of(monkeypatch, scale, dtype):
    """Visits of a small call."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(NumpyBackend, "tile_partial", lambda _, visits, g: seen.append(visits) or g())
        arrays = np.random.default_rng(0).standard_normal((3, 40, 8)).astype(dtype)
        sb.attention(*arrays, method="local", scale=scale)
    return seen[0]


def test_half_precision_is_multiplied_where_it_can_be(monkeypatch):
    visits = visits_of(monkeypatch, None, np.float16)
    assert isinstance(tile_of(visits, ROOM, has_mma=True), HalfTile)
    assert isinstance(tile_of(visits, ROOM, has_mma=False), Tile)
    # Without a scale there is nothing to divide by.
    for scale in (0.0, 1e-30):
        assert isinstance(tile_of(visits_of(monkeypatch, scale, np.float16), ROOM, has_mma=True), Tile)
    for dtype in (np.float32, np.float64):
        assert isinstance(tile_of(visits_of(monkeypatch, None, dtype), ROOM, has_mma=True), Tile)
