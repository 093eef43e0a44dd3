"""Bad input of every argument: the message names the argument, what came and what was expected."""

from __future__ import annotations

import re

import numpy as np
import pytest
from oracle import CAUSAL, MASKED, METHODS
from problems import draw_problem

import scatterbrain_core as sb


def arrays(**changes):
    q, k, v = draw_problem(np.random.default_rng(0), 6, 7, dim=4, columns=3)
    return {"query": q, "key": k, "value": v} | changes


SHAPES = {
    "query of one axis": (
        {"query": np.zeros(4)},
        r"query must have shape \(\.\.\., L, D\), got \(4,\)",
    ),
    "value of one axis": ({"value": np.zeros(4)}, r"value must have shape \(\.\.\., L, D\), got \(4,\)"),
    "another D": (
        {"key": np.zeros((2, 7, 5))},
        r"query and key must have the same last axis D, at least 1, got query \(2, 6, 4\), key \(2, 7, 5\)",
    ),
    "no D": (
        {"query": np.zeros((2, 6, 0)), "key": np.zeros((2, 7, 0))},
        r"same last axis D, at least 1, got query \(2, 6, 0\), key \(2, 7, 0\)",
    ),
    "another Lk": (
        {"value": np.zeros((2, 8, 3))},
        r"key and value must have the same length Lk, got key \(2, 7, 4\), value \(2, 8, 3\)",
    ),
    "another lead of value": (
        {"value": np.zeros((3, 7, 3))},
        r"key and value must have the same leading axes, got key \(2, 7, 4\), value \(3, 7, 3\)",
    ),
    "another lead of query": (
        {"query": np.zeros((5, 6, 4))},
        r"query and key must have the same leading axes, got query \(5, 6, 4\), key \(2, 7, 4\)$",
    ),
    "one lead too many": (
        {"query": np.zeros((1, 2, 6, 4))},
        r"same leading axes, got query \(1, 2, 6, 4\), key \(2, 7, 4\)$",
    ),
    "grouped heads without enable_gqa": (
        {"query": np.zeros((4, 6, 4))},
        r"same leading axes, got .*; grouped-query heads need enable_gqa=True",
    ),
    "heads that are no multiple": (
        {"query": np.zeros((3, 6, 4)), "enable_gqa": True},
        r"heads axis \(-3\) of query must be a multiple of key's .*, got query \(3, 6, 4\), key \(2, 7, 4\)",
    ),
    "enable_gqa without a heads axis": (
        {"query": np.zeros((6, 4)), "key": np.zeros((7, 4)), "value": np.zeros((7, 3)), "enable_gqa": True},
        r"with enable_gqa the heads axis \(-3\) of query .*, got query \(6, 4\), key \(7, 4\)",
    ),
    "mask of another shape": (
        {"attn_mask": np.ones((6, 6), dtype=bool)},
        r"attn_mask must be broadcastable to \(\.\.\., Lq, Lk\) = \(2, 6, 7\), got \(6, 6\)",
    ),
    "mask of too many axes": (
        {"attn_mask": np.ones((1, 2, 6, 7), dtype=bool)},
        r"attn_mask must be broadcastable to \(\.\.\., Lq, Lk\) = \(2, 6, 7\), got \(1, 2, 6, 7\)",
    ),
    "causal and a mask": (
        {"attn_mask": np.ones((6, 7), dtype=bool), "is_causal": True},
        r"attn_mask must be of keys .* or of queries .* where is_causal=True, got \(6, 7\); a mask of pairs",
    ),
}

VALUES = {
    "budget 0": ({"budget": 0}, r"budget must be in \(0, 1\], got 0.0"),
    "budget < 0": ({"budget": -0.5}, r"budget must be in \(0, 1\], got -0.5"),
    "budget > 1": ({"budget": 1.01}, r"budget must be in \(0, 1\], got 1.01"),
    "budget huge": ({"budget": 10**400}, r"budget must be in \(0, 1\], got inf"),
    "scale huge": ({"scale": 10**400}, r"scale must be finite, got inf"),
    "features beyond the budget": (
        {"method": sb.Scatterbrain(sb.PositiveFeatures(64), sb.RandomHyperplanes()), "budget": 0.9},
        r"budget must be at least 1, 7 of 7 keys, for the least form of .*, got 0.9: 6 of 7 keys",
    ),
    "tables beyond the budget": (
        {"method": sb.Scatterbrain(None, sb.RandomHyperplanes(n_tables=7)), "budget": 0.9},
        r"budget must be at least 1, 7 of 7 keys, for the least form of .*n_tables=7.*, got 0.9: 6 of 7",
    ),
    "features beside a stated window": (
        {"method": sb.Scatterbrain(sb.PositiveFeatures(), sb.LocalWindow(6)), "budget": 0.9},
        r"budget must be at least 1, 7 of 7 keys, for the least form of .*LocalWindow\(window=6\)\), got 0.9",
    ),
    "no key left for a window": (
        {"method": "longformer", "budget": 0.4},
        r"budget must be at least 0.4286, 3 of 7 keys, for the least form of .*, got 0.4: 2 of 7 keys",
    ),
    "features beside a sample": (
        {"method": sb.Scatterbrain(sb.PositiveFeatures(), debias=6), "budget": 0.9},
        r"budget must be at least 1, 7 of 7 keys, for the least form of .*debias=6",
    ),
    "a global token that is no key": (
        {"method": sb.Scatterbrain(None, sb.GlobalTokens(0, (2, 7)))},
        r"positions must be below the number of keys, 7, got 7",
    ),
    "values that overflow": (
        {"value": np.full((2, 7, 3), 1e308)},
        r"value must keep sums of its entries within float64, got entries up to 1e\+308",
    ),
    "budget NaN": ({"budget": float("nan")}, r"budget must be in \(0, 1\], got nan"),
    "scale NaN": ({"scale": float("nan")}, r"scale must be finite, got nan"),
    "scale inf": ({"scale": float("inf")}, r"scale must be finite, got inf"),
    "seed < 0": ({"seed": -1}, r"seed must not be negative, got -1"),
    "near method": (
        {"method": "performr"},
        r"method 'performr' is unknown; the nearest: 'performer', .*; known are 'auto', ",
    ),
    "other case": ({"method": "Scatterbrain"}, r"the nearest: 'scatterbrain'"),
    "no method": ({"method": "zzz"}, r"method 'zzz' is unknown; known are 'auto', .*'exact'"),
}

TYPES = {
    "list": ({"query": [[1.0]]}, r"query must be an array of a library .*, got list"),
    "None": ({"value": None}, r"value must be an array of a library .*, got NoneType"),
    "mask a list": ({"attn_mask": [True]}, r"attn_mask must be an array of a library .*, got list"),
    "integers": (
        {"query": np.zeros((2, 6, 4), dtype=int)},
        r"query must have dtype float16, bfloat16, float32, float64, got int64",
    ),
    "complex": ({"key": np.zeros((2, 7, 4), dtype=complex)}, r"key must have dtype .*, got complex128"),
    "half": ({"value": np.zeros((2, 7, 3), dtype=np.float16)}, r"one dtype, .*value float16"),
    "bool": ({"value": np.zeros((2, 7, 3), dtype=bool)}, r"value must have dtype .*, got bool"),
    "objects": ({"value": np.zeros((2, 7, 3), dtype=object)}, r"value must have dtype .*, got object"),
    "two dtypes": (
        {"key": np.zeros((2, 7, 4), dtype=np.float32)},
        r"one dtype, got query float64, key float32, value float64; nothing is cast",
    ),
    "mask of numbers": (
        {"attn_mask": np.zeros((6, 7))},
        r"attn_mask must have dtype bool \(True = may attend\), got float64",
    ),
    "budget a string": ({"budget": "all"}, r"budget must be a real number in \(0, 1\], got str"),
    "masked array": (
        {"query": np.ma.zeros((2, 6, 4))},
        r"query must be an array of a library .*, got numpy.ma.*MaskedArray",
    ),
    "is_causal of NumPy": ({"is_causal": np.bool_(True)}, r"is_causal must be True or False, got numpy.bool"),
    "scale a numeric string": ({"scale": "1"}, r"scale must be a real number or None, got str"),
    "budget a bool": ({"budget": True}, r"budget must be a real number in \(0, 1\], got bool"),
    "budget None": ({"budget": None}, r"budget must be a real number in \(0, 1\], got NoneType"),
    "scale a string": ({"scale": "big"}, r"scale must be a real number or None, got str"),
    "scale a bool": ({"scale": True}, r"scale must be a real number or None, got bool"),
    "scale complex": ({"scale": 1j}, r"scale must be a real number or None, got complex"),
    "seed a float": ({"seed": 1.0}, r"seed must be an int or a numpy.random.Generator, got float"),
    "seed a bool": ({"seed": True}, r"seed must be .*, got bool"),
    "seed None": ({"seed": None}, r"seed must be .*, got NoneType"),
    "method a number": ({"method": 3}, r"method must be a name or a Scatterbrain, got int"),
    "method a class": ({"method": sb.Scatterbrain}, r"method must be a name or a Scatterbrain, got type"),
    "is_causal a number": ({"is_causal": 1}, r"is_causal must be True or False, got int"),
    "enable_gqa None": ({"enable_gqa": None}, r"enable_gqa must be True or False, got NoneType"),
    "check_finite a string": ({"check_finite": "no"}, r"check_finite must be True or False, got str"),
}


@pytest.mark.parametrize("call", [sb.attention, sb.estimate])
@pytest.mark.parametrize(("changes", "message"), (SHAPES | VALUES).values(), ids=(SHAPES | VALUES).keys())
def test_wrong_values(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**arrays(**changes))


@pytest.mark.parametrize("call", [sb.attention, sb.estimate])
@pytest.mark.parametrize(("changes", "message"), TYPES.values(), ids=TYPES.keys())
def test_wrong_types(call, changes, message):
    with pytest.raises(TypeError, match=message):
        call(**arrays(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"normalize": 1}, TypeError, r"normalize must be True or False, got int"),
        ({"method": "exakt"}, ValueError, r"the nearest: 'exact'"),
        ({"budget": 2}, ValueError, r"budget must be in \(0, 1\], got 2.0"),
        ({"key": np.zeros((2, 7, 5))}, ValueError, r"same last axis D"),
        ({"query": "q"}, TypeError, r"query must be an array"),
    ],
)
def test_attention_matrix_checks_its_arguments(changes, error, message):
    call = {name: x for name, x in arrays().items() if name != "value"} | changes
    with pytest.raises(error, match=message):
        sb.attention_matrix(**call)


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(library, dtype, name, bad):
    q, k, v = (x.astype(dtype) for x in arrays().values())
    call = {"query": q, "key": k, "value": v}
    call[name][1, 2, 1] = bad
    call = {key: library.asarray(x) for key, x in call.items()}
    with pytest.raises(ValueError, match=f"{name} must be finite, got NaN or inf; check_finite=False"):
        sb.attention(**call)
    with np.errstate(invalid="ignore", over="ignore"):
        out = library.to_numpy(sb.attention(**call, check_finite=False, method="exact"))
    assert out.shape == (2, 6, 3)
    assert np.isfinite(out[0]).all()  # the other head


@pytest.mark.parametrize("method", ["exact", "performer", "lsh", "scatterbrain"])
def test_what_is_not_finite_never_becomes_zeros(library, dtype, method):
    q, k, v = (x.astype(dtype) for x in arrays().values())
    q[1, 2, 1] = np.nan
    with np.errstate(all="ignore"):
        out = sb.attention(*library.arrays(q, k, v), method=method, check_finite=False, budget=0.5)
    assert np.isnan(library.to_numpy(out)[1, 2]).all()


@pytest.mark.parametrize("changes", [{"factor": 1e30}, {"factor": 1.0, "scale": 1e300}, {"factor": 1e18}])
def test_products_that_would_overflow_are_refused(library, changes):
    q, k, v = (x.astype(np.float32) for x in arrays().values())
    call = library.arrays(q * np.float32(changes["factor"]), k, v)
    with pytest.raises(
        ValueError, match=r"keep products of entries within .*float32, got entries up to .* with scale"
    ):
        sb.attention(*call, scale=changes.get("scale", 4.0), method="exact")


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_a_matrix_is_no_array():
    with pytest.raises(TypeError, match=r"query must be an array of a library .*, got numpy.*matrix"):
        sb.attention(**arrays(query=np.asmatrix(np.zeros((6, 4)))))


def test_arrays_of_two_libraries_are_refused():
    torch = pytest.importorskip("torch")
    with pytest.raises(
        TypeError, match="one library, got query from numpy, key from torch, value from numpy"
    ):
        sb.attention(**arrays(key=torch.zeros((2, 7, 4), dtype=torch.float64)))
    with pytest.raises(TypeError, match=r"one library, got .* attn_mask from torch"):
        sb.attention(**arrays(attn_mask=torch.ones((6, 7), dtype=torch.bool)))


def test_tensors_on_two_devices_are_refused():
    torch = pytest.importorskip("torch")
    call = {name: torch.asarray(x) for name, x in arrays().items()}
    call["value"] = call["value"].to("meta")
    with pytest.raises(
        ValueError, match="on the device of query, got query on cpu, key on cpu, value on meta"
    ):
        sb.attention(**call)


def test_what_does_not_fit_into_memory_says_how_much_it_was():
    rows = np.broadcast_to(np.ones((1, 16), dtype=np.float32), (2**42, 16))
    with pytest.raises(MemoryError, match=r"256. TiB for an array with shape \(1, 4398046511104, 16\)"):
        sb.attention(rows, rows, rows, check_finite=False)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (
            lambda: sb.PositiveFeatures(0),
            ValueError,
            "n_features must be an int of at least 1 and at most 2147483647, got 0",
        ),
        (lambda: sb.PositiveFeatures(2.0), TypeError, "n_features must be an int .* or None, got float"),
        (
            lambda: sb.RandomHyperplanes(-1),
            ValueError,
            "n_bits must be an int of at least 0 and at most 24, got -1",
        ),
        (
            lambda: sb.RandomHyperplanes(25),
            ValueError,
            "n_bits must be an int of at least 0 and at most 24, got 25",
        ),
        (
            lambda: sb.RandomHyperplanes(2, 0),
            ValueError,
            "n_tables must be an int of at least 1 and at most 2147483647, got 0",
        ),
        (
            lambda: sb.RandomHyperplanes(2, 1, 0),
            ValueError,
            "max_bucket must be an int of at least 1 and at most 2147483647, got 0",
        ),
        (lambda: sb.RandomHyperplanes(True), TypeError, "n_bits must be .* or None, got bool"),
        (lambda: sb.Scatterbrain(), ValueError, "low_rank and sparse must not both be None"),
        (
            lambda: sb.Scatterbrain("performer"),
            TypeError,
            "low_rank must be a feature map .* got str",
        ),
        (
            lambda: sb.Scatterbrain(None, 3),
            TypeError,
            "sparse must be RandomHyperplanes, .* or None, got int",
        ),
        (lambda: sb.Scatterbrain(None, [sb.LocalWindow(2)]), TypeError, "a tuple of them, .* got list"),
        (lambda: sb.Scatterbrain(None, ()), ValueError, "a tuple of them, .* got an empty tuple"),
        (
            lambda: sb.Scatterbrain(None, (sb.LocalWindow(2), None)),
            TypeError,
            r"sparse\[1\] must be a sparse part, got NoneType",
        ),
        (
            lambda: sb.Scatterbrain(None, (sb.LocalWindow(2), sb.AllPairs())),
            ValueError,
            "sparse must be AllPairs alone, which leaves the others nothing",
        ),
        (
            lambda: sb.Scatterbrain(sb.PositiveFeatures(), sb.AllPairs()),
            ValueError,
            r"low_rank must be None with AllPairs, which leaves it nothing, got PositiveFeatures\(\)",
        ),
        (
            lambda: sb.Scatterbrain(None, sb.AllPairs(), debias=3),
            ValueError,
            "debias must be None with AllPairs, which leaves it nothing, got 3",
        ),
        (
            lambda: sb.Scatterbrain(None, sb.LocalWindow(), double_counting=True),
            ValueError,
            "double_counting must be False without a low-rank and a sparse part, got True",
        ),
        (
            lambda: sb.Scatterbrain(sb.EluFeatures(), sb.AllPairs(), double_counting=True),
            ValueError,
            "low_rank must be None with AllPairs",
        ),
        (
            lambda: sb.Scatterbrain(sb.EluFeatures(), sb.LocalWindow(), 5, double_counting=True),
            ValueError,
            "debias must be None with double_counting, whose sums are biased on the support, got 5",
        ),
        (
            lambda: sb.Scatterbrain(sb.EluFeatures(), debias=0),
            ValueError,
            "debias must be an int of at least 1 and at most 2147483647, got 0",
        ),
        (lambda: sb.Scatterbrain(sb.EluFeatures(), debias=2.0), TypeError, "debias must be .* got float"),
        (
            lambda: sb.Scatterbrain(sb.EluFeatures(), sb.LocalWindow(), double_counting=1),
            TypeError,
            "double_counting must be True or False, got int",
        ),
        (lambda: sb.LocalWindow(0), ValueError, "window must be an int of at least 1 and .*, got 0"),
        (lambda: sb.LocalWindow(0.5), TypeError, "window must be an int .* or None, got float"),
        (lambda: sb.GlobalTokens(-1), ValueError, "n_first must be an int of at least 0 and .*, got -1"),
        (lambda: sb.GlobalTokens(0), ValueError, "n_first, positions and n_queries must not all be empty"),
        (lambda: sb.GlobalTokens(0, [3]), TypeError, "positions must be a tuple of int, got list"),
        (
            lambda: sb.GlobalTokens(0, (3, 1.0)),
            TypeError,
            "positions must be a tuple of int, got float in it",
        ),
        (lambda: sb.GlobalTokens(0, (3, -1)), ValueError, "positions must not be negative, got -1"),
        (lambda: sb.GlobalTokens(n_queries=None), TypeError, "n_queries must be an int, got NoneType"),
        (lambda: sb.RoutedClusters(0.5), ValueError, "entries must be .*at least 1.*, got 0.5"),
        (lambda: sb.RoutedClusters(float("inf")), ValueError, "entries must be .*, got inf"),
        (lambda: sb.RoutedClusters("many"), TypeError, "entries must be .*, got str"),
        (
            lambda: sb.Scatterbrain(sb.PositiveFeatures(), sb.RoutedClusters()),
            ValueError,
            "low_rank must be None with RoutedClusters, which leaves it nothing, got PositiveFeatures",
        ),
        (
            lambda: sb.Scatterbrain(sparse=sb.RoutedClusters(), debias=3),
            ValueError,
            "debias must be None with RoutedClusters, which leaves it nothing, got 3",
        ),
        (
            lambda: sb.Scatterbrain(sparse=(sb.LocalWindow(), sb.RoutedClusters())),
            ValueError,
            "sparse must be RoutedClusters alone, which leaves the others nothing, got ",
        ),
        (
            lambda: sb.Scatterbrain(sparse=sb.RoutedClusters(), double_counting=True),
            ValueError,
            "double_counting must be False without a low-rank and a sparse part, got True",
        ),
    ],
)
def test_parts_check_their_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("name", [name for name in METHODS if name not in CAUSAL])
@pytest.mark.parametrize("call", [sb.attention, sb.estimate, sb.attention_vjp])
def test_parts_that_would_let_the_future_in_are_refused(call, name):
    with pytest.raises(
        ValueError, match=r"must not .* where is_causal=True hides some of them from some queries only, got "
    ):
        call(**arrays(), method=METHODS[name], is_causal=True)
    q, k, v = draw_problem(np.random.default_rng(0), 7, 7)
    reasons = r"where is_causal=True hides some|in decoding, which keeps no state|keeps no state of"
    with pytest.raises(ValueError, match=reasons):
        METHODS[name].prefill(q, k, v)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in MASKED])
@pytest.mark.parametrize("call", [sb.attention, sb.estimate, sb.attention_vjp])
def test_parts_that_would_let_in_what_a_mask_hides_are_refused(call, name):
    with pytest.raises(
        ValueError, match=r"must not .* where attn_mask hides some of them from some queries only, got "
    ):
        call(**arrays(), method=METHODS[name], attn_mask=np.tri(6, 7, dtype=bool))


def test_a_part_of_a_union_is_named():
    parts = sb.Scatterbrain(None, (sb.LocalWindow(2), sb.E2LSH(1, 1.0)))
    with pytest.raises(
        ValueError, match=r"sparse\[1\] must not take statistics of all queries and keys where "
    ):
        sb.attention(**arrays(), method=parts, is_causal=True)


@pytest.mark.parametrize("budget", [0.01, 0.3, 0.7])
def test_the_least_budget_is_enough(budget):
    """What the message says is accepted, and a little less is not."""
    parts = sb.Scatterbrain(
        sb.PositiveFeatures(),
        (sb.GlobalTokens(3), sb.LocalWindow(), sb.RandomHyperplanes(n_tables=60)),
        debias=9,
    )
    q, k, v = draw_problem(np.random.default_rng(0), 90, 97)
    with pytest.raises(ValueError, match=r"budget must be at least") as caught:
        sb.attention(q, k, v, method=parts, budget=budget)
    least = float(str(caught.value).split()[5].rstrip(","))
    assert sb.estimate(q, k, v, method=parts, budget=least).cost.fraction <= least
    with pytest.raises(ValueError, match=f"at least {least:g}, 74 of 97 keys"):
        sb.attention(q, k, v, method=parts, budget=least - 1e-3)


@pytest.mark.parametrize("n_keys", [200, 6000])
def test_a_budget_below_the_coarsest_clusters_says_the_least(is_causal, n_keys):
    q, k, v = np.ones((3, n_keys, 1))
    with pytest.raises(
        ValueError, match=f"for the coarsest clusters of {n_keys} keys, got 1 entries"
    ) as told:
        sb.attention(q, k, v, budget=1e-4, is_causal=is_causal)
    budget, entries = re.search(r"at least ([\d.e-]+), or entries ([\d.]+), for", str(told.value)).groups()
    sb.attention(q, k, v, budget=float(budget), is_causal=is_causal)
    least = sb.Scatterbrain(sparse=sb.RoutedClusters(float(entries)))
    sb.attention(q, k, v, method=least, is_causal=is_causal)
    with pytest.raises(ValueError, match=f"or entries {entries}, for"):
        sb.attention(q, k, v, budget=0.9 * float(budget), is_causal=is_causal)


@pytest.mark.parametrize("entries", [None, 5])
def test_no_state_is_kept_of_clusters(entries):
    q, k, v = np.ones((3, 100, 2))
    parts = sb.Scatterbrain(sparse=sb.RoutedClusters(entries))
    with pytest.raises(ValueError, match=r"sparse must be hashes, AllPairs or None in decoding, .*Routed"):
        parts.prefill(q, k, v)
