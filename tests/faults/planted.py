"""The named faults."""

from __future__ import annotations

from . import Fault

CORE = "scatterbrain_core"
NUMPY = "numpy and float64 and not readonly"

STATISTICS = [
    Fault(
        "1/m dropped",
        "low-rank weights m times too large",
        f"{CORE}/low_rank/positive_features.py",
        "offset = -math.log(require_rank(self.n_features))",
        "offset = 0.0",
        ("tests/test_statistics.py::test_mean_and_variance_are_theorem_2s",),
        "one and dense",
    ),
    Fault(
        "overlap counted twice",
        "a pair in several tables counts in each",
        f"{CORE}/sparse_correction.py",
        "            tables[:t],\n",
        "            (),\n",
        ("tests/test_statistics.py::test_mean_and_variance_are_theorem_2s",),
        "two and tiles",
    ),
    Fault(
        "hashes share W",
        "one stream of random numbers for both parts",
        f"{CORE}/random.py",
        "return np.random.default_rng(self._hashes)",
        "return np.random.default_rng(self._features)",
        ("tests/test_statistics.py::test_hashes_do_not_share_the_features_projections",),
    ),
    Fault(
        "seed ignored",
        "all seeds draw the same",
        f"{CORE}/random.py",
        "np.random.default_rng(self.seed).integers",
        "np.random.default_rng(0).integers",
        ("tests/test_statistics.py::test_the_draws_of_the_two_parts_are_independent_and_standard_normal",),
    ),
    Fault(
        "norm of the keys forgotten",
        "no -‖k‖²/2 in the features of keys",
        f"{CORE}/low_rank/positive_features.py",
        "            return self._log_features(xp, drawn[0], None, x)\n        moved",
        "            return xp.matmul(x, xp.matrix_transpose(drawn[0]))\n        moved",
        ("tests/test_statistics.py::test_mean_and_variance_are_theorem_2s",),
        "performer and dense",
    ),
    Fault(
        "standard error without (G - 1)/G",
        "the jackknife's factor",
        f"{CORE}/estimator.py",
        "factor = math.sqrt((len(groups) - 1) / len(groups))",
        "factor = 1.0",
        ("tests/test_standard_error.py",),
    ),
    Fault(
        "standard error with a wrong share",
        "groups of unequal size taken for equal",
        f"{CORE}/estimator.py",
        "shares = [(group.stop - group.start) / groups[-1].stop for group in groups]",
        "shares = [1 / len(groups) for group in groups]",
        ("tests/test_standard_error.py",),
    ),
    Fault(
        "standard error to first order",
        "the denominator's fluctuation left out",
        f"{CORE}/estimator.py",
        "step = (move - share * drift) / ((1 - share) * left[..., None])",
        "step = (move - share * drift) / (1 - share)",
        ("tests/test_standard_error.py",),
    ),
    Fault(
        "standard error halved",
        "intervals half as wide as they should be",
        f"{CORE}/estimator.py",
        "return _norm(backend, steps) * factor,",
        "return _norm(backend, steps) * (factor / 2),",
        ("tests/test_statistics.py::test_intervals_of_the_standard_error_cover_the_exact_output",),
    ),
]

MASKS = [
    Fault(
        "features of hidden keys",
        "references taken over masked keys too",
        f"{CORE}/rows.py",
        "key = low_rank.kernel.hide(xp, key, problem.key_mask)",
        "key = key + 0.0",
        ("tests/test_masks.py::test_hidden_keys_are_as_good_as_absent_at_large_norms",),
        "numpy and not readonly",
    ),
    Fault(
        "mask on the numerator alone",
        "hidden keys count in the denominator",
        f"{CORE}/dense.py",
        "visible = visible & problem.key_mask[heads, :][:, None, :]",
        "visible = visible & (problem.key_mask[heads, :] | True)[:, None, :]",
        ("tests/test_masks.py::test_hidden_keys_are_as_good_as_absent",),
        f"{NUMPY} and exact",
    ),
    Fault(
        "what stands in padding",
        "hidden keys are not zeroed",
        f"{CORE}/problem.py",
        "key, value = (xp.where(hidden, 0.0, x) for x in (key, value))",
        "value = xp.where(hidden, 0.0, value)",
        ("tests/test_masks.py::test_what_stands_in_padding_changes_no_bit",),
        NUMPY,
    ),
    Fault(
        "row mask ignored",
        "a query that sees no key gets an output",
        f"{CORE}/estimator.py",
        "return result if problem.row_mask is None else",
        "return result if problem is problem else",
        ("tests/test_masks.py::test_a_query_that_sees_no_key_gets_zeros",),
        NUMPY,
    ),
    Fault(
        "dense mask of another head",
        "every head gets the first mask",
        f"{CORE}/dense.py",
        "number = problem.mask_of_head[heads.start]",
        "number = problem.mask_of_head[0]",
        ("tests/test_masks.py::test_masks_of_any_shape_are_obeyed",),
        f"{NUMPY} and dense",
    ),
]

CAUSAL = [
    Fault(
        "one reference for the sequence",
        "the maximum of future keys rounds the past",
        f"{CORE}/causal.py",
        "    states = running_merge(backend, feature_states(backend, rows, keys),",
        "    states = feature_states(backend, rows, keys)\n"
        "    top = xp.full_like(states.ref, float(xp.max(states.ref)))\n"
        "    states = Partial(top, states.acc * xp.exp(states.ref - top)[..., None])\n"
        "    states = running_merge(backend, states,",
        ("tests/test_causal.py::test_large_features_of_the_future_change_no_bit_of_the_past",),
        NUMPY,
    ),
    Fault(
        "one reference for a tile",
        "keys of the future in the last block round the past",
        f"{CORE}/low_rank/kernels.py",
        "top_query, top_key = _top(backend, log_query), _top(backend, log_key)",
        "top_query, top_key = _top(backend, log_query), _top(backend, log_key)\n"
        "    top_key = xp.broadcast_to(xp.max(top_key, axis=-1)[..., None], top_key.shape)",
        ("tests/test_causal.py::test_the_future_changes_no_bit_of_the_past",),
        NUMPY,
    ),
    Fault(
        "one key of the future",
        "the far field sees j = i + 1",
        f"{CORE}/causal.py",
        "return prefix_partial(backend, rows, joint, joint.start + joint.rank)",
        "return prefix_partial(backend, rows, joint, xp.minimum(joint.start + joint.rank + 1, joint.stop))",
        ("tests/test_causal.py::test_the_future_changes_no_bit_of_the_past",),
        NUMPY,
    ),
    Fault(
        "a query misses its own key",
        "keys and queries of one position sorted the wrong way round",
        f"{CORE}/tiles.py",
        "keys_before = by_kind[n_keys:] - integers(xp, n_queries, order)",
        "keys_before = xp.maximum(by_kind[n_keys:] - integers(xp, n_queries, order) - 1, 0)",
        ("tests/test_causal.py::test_the_first_query_sees_the_first_key_alone",),
        NUMPY,
    ),
    Fault(
        "wrong sibling",
        "the last bit of the code flipped at every level",
        f"{CORE}/causal.py",
        "(table.query_bucket >> up) ^ 1",
        "(table.query_bucket ^ 1) >> up",
        ("tests/test_oracle.py",),
        f"{NUMPY} and causal",
    ),
]

SUMS = [
    Fault(
        "merge without rescaling",
        "near field and far field added in different units",
        f"{CORE}/normalization.py",
        "total = Partial(ref, scaled(backend, total, ref) + scaled(backend, other, ref))",
        "total = Partial(ref, total.acc + scaled(backend, other, ref))",
        ("tests/test_oracle.py",),
        NUMPY,
    ),
    Fault(
        "total minus own, then clamped",
        "the far field loses all digits where the features overestimate on the support",
        f"{CORE}/far_field.py",
        "    return unblock_partial(backend, blocks, order, apply_states(backend, rows, blocks, far))",
        "    own = first_occurrences(backend, rows, [table], 0, rows.low_rank_pairs())\n"
        "    every = far_field_of_all(backend, rows)\n"
        "    ref = xp.maximum(every.ref, own.ref)\n"
        "    acc = scaled(backend, every, ref) - scaled(backend, own, ref)\n"
        "    return Partial(ref, xp.where(acc[:, -1:] > 0, acc, 0.0))",
        ("tests/test_numerics.py::test_features_that_overestimate_the_support_cost_no_digits",),
        "numpy and not readonly",
    ),
    Fault(
        "no guard against cancellation",
        "later tables subtracted wherever they are",
        f"{CORE}/far_field.py",
        "unsafe = backend.stop_gradient(extra_acc[:, -1] > MAX_CANCELLATION * kept)",
        "unsafe = kept != kept",
        ("tests/test_numerics.py::test_rows_that_would_cancel_are_summed_directly",),
    ),
    Fault(
        "underflow of feature products",
        "pairs whose large features do not meet weigh nothing",
        f"{CORE}/low_rank/kernels.py",
        "    if bool(xp.any(lost)):\n",
        "    if False:\n",
        ("tests/test_numerics.py::test_feature_products_that_underflow_are_summed_by_terms",),
        "numpy and not readonly",
    ),
    Fault(
        "a lost table",
        "pairs of later tables alone get no weight",
        f"{CORE}/sparse_correction.py",
        "return first_occurrences(backend, rows, tables, 0, rows.exact())",
        "return first_occurrences(backend, rows, tables[:1], 0, rows.exact())",
        ("tests/test_oracle.py",),
        NUMPY,
    ),
    Fault(
        "last partial block dropped",
        "keys behind the last whole block of an interval are not seen",
        f"{CORE}/sparse_correction.py",
        "steps = -(-int(xp.max(xp.take(width, chosen))) // tile_keys)",
        "steps = int(xp.max(xp.take(width, chosen))) // tile_keys",
        ("tests/test_oracle.py",),
        NUMPY,
    ),
    Fault(
        "keys behind the bucket lost",
        "the far field ends at the query's bucket",
        f"{CORE}/far_field.py",
        "state_at(backend, after, keys, hi, hi < (query_head + 1) * rows.n_keys),",
        "state_at(backend, after, keys, hi, hi > (query_head + 1) * rows.n_keys),",
        ("tests/test_oracle.py",),
        NUMPY,
    ),
    Fault(
        "running sums across heads",
        "one head's far field flows into the next",
        f"{CORE}/normalization.py",
        "same = (segment[step:] == segment[:-step])[:, None]",
        "same = (segment[step:] >= segment[:-step])[:, None]",
        ("tests/test_exactness.py::test_a_head_does_not_depend_on_the_others",),
        f"{NUMPY} and scatterbrain",
    ),
    Fault(
        "shards weighted alike",
        "merge takes the mean of the shards",
        f"{CORE}/merging.py",
        "weights = [weight / total for weight in weights]",
        "weights = [weight * 0 + 1 / len(weights) for weight in weights]",
        ("tests/test_merge.py::test_shards_merge_to_the_whole",),
        f"{NUMPY} and performer",
    ),
]

ARGUMENTS = [
    Fault(
        "scale applied twice",
        "no square root where the scale is shared",
        f"{CORE}/problem.py",
        "root = math.sqrt(abs(scale))",
        "root = abs(scale)",
        ("tests/test_exactness.py::test_the_scale_is_that_of_the_logits",),
        NUMPY,
    ),
    Fault(
        "sign of the scale lost",
        "a negative scale taken for a positive one",
        f"{CORE}/problem.py",
        "query=problem.query * math.copysign(root, scale)",
        "query=problem.query * root",
        ("tests/test_exactness.py::test_the_scale_is_that_of_the_logits",),
        NUMPY,
    ),
    Fault(
        "wrong group of a grouped-query head",
        "keys tiled where they should be repeated",
        f"{CORE}/problem.py",
        "return xp.repeat(x, query.shape[-3] // max(x.shape[-3], 1), axis=-3)",
        "return xp.concat([x] * (query.shape[-3] // max(x.shape[-3], 1)), axis=-3)",
        ("tests/test_exactness.py::test_grouped_query_heads_are_repeated_keys",),
        NUMPY,
    ),
    Fault(
        "half precision summed in half",
        "sums of many keys in float16",
        f"{CORE}/problem.py",
        '"float16": "float32"',
        '"float16": "float16"',
        ("tests/test_half_precision.py",),
        "numpy and not readonly",
    ),
]

GRADIENTS = [
    Fault(
        "gradient through one reference of two",
        "the reference is a constant where it is added, not where it is subtracted",
        f"{CORE}/low_rank/kernels.py",
        "xp.exp(log_query - top_query[..., None]), ",
        "xp.exp(log_query - xp.max(log_query, axis=-1)[..., None]), ",
        ("tests/test_gradients.py::test_tiles_have_the_gradient_of_the_definition",),
        "causal and tables and not limited",
    ),
    Fault(
        "gradient cut with the reference",
        "exponentials of constants have no gradient",
        "backends/scatterbrain_backends/torch_.py",
        "return torch.exp(logits - reference)",
        "return torch.exp(logits.detach() - reference)",
        ("tests/test_gradients.py::test_gradcheck_of_lse",),
        "all",
    ),
]

FEATURES = [
    Fault(
        "whitening of one side alone",
        "keys are moved by P where they need its inverse",
        f"{CORE}/low_rank/positive_features.py",
        "moved = _moved(xp, x, fitted.mean_key, fitted.inverse)\n        rows",
        "moved = _moved(xp, x, fitted.mean_key, fitted.transform)\n        rows",
        ("tests/test_features.py::test_every_map_is_the_oracles",),
        NUMPY,
    ),
    Fault(
        "centring without the factor of the row",
        "exp(q·c) is left out",
        f"{CORE}/low_rank/positive_features.py",
        "rows if fitted.mean_key is None else rows + _inner(xp, x, fitted.mean_key)",
        "rows",
        ("tests/test_features.py::test_every_map_is_the_oracles",),
        NUMPY,
    ),
    Fault(
        "FAVOR++ without its bound",
        "A‖w‖² half as large as ρ asks for",
        f"{CORE}/low_rank/positive_features.py",
        "(1 - 1 / rho) / 8 * norms",
        "(1 - 1 / rho) / 16 * norms",
        ("tests/test_features.py::test_every_map_is_the_oracles",),
        NUMPY,
    ),
    Fault(
        "pairs of the same sign",
        "the second row of a pair is the first",
        f"{CORE}/low_rank/positive_features.py",
        "projections[1::2] *= -1",
        "projections[1::2] *= 1",
        ("tests/test_features.py::test_a_pair_is_a_row_and_its_opposite",),
    ),
    Fault(
        "simplex rows not centred",
        "rows at right angles in place of a simplex",
        f"{CORE}/random.py",
        "(np.eye(dim) - 1 / dim)",
        "np.eye(dim)",
        ("tests/test_features.py::test_rows_are_coupled_within_blocks_and_standard_normal_alone",),
    ),
    Fault(
        "statistics of hidden keys",
        "means are over all keys, hidden ones too",
        f"{CORE}/low_rank/preconditioning.py",
        "    if mask is None:\n        return xp.ones_like",
        "    if True:\n        return xp.ones_like",
        ("tests/test_features.py::test_statistics_leave_out_what_a_mask_hides",),
        NUMPY,
    ),
]

DECODING = [
    Fault(
        "window of a bucket one key too long",
        "a decoded query sees max_bucket + 1 keys",
        f"{CORE}/decoding/cache.py",
        "- counts < hashing.max_bucket",
        "- counts <= hashing.max_bucket",
        ("tests/test_decoding.py::test_steps_are_the_full_causal_call",),
        NUMPY,
    ),
    Fault(
        "a key pushed out of its window is lost",
        "older keys of a bucket are in no sum",
        f"{CORE}/decoding/leaves.py",
        "states = _aged(context, states, grown, past + i)",
        "_aged(context, states, grown, past + i)",
        ("tests/test_decoding.py::test_steps_are_the_full_causal_call",),
        NUMPY,
    ),
    Fault(
        "own bucket in the far field of a step",
        "the keys of the support count twice",
        f"{CORE}/decoding/leaves.py",
        "xp.where(number < n_buckets, number != own,",
        "xp.where(number < n_buckets, number >= 0,",
        ("tests/test_decoding.py::test_steps_are_the_full_causal_call",),
        NUMPY,
    ),
    Fault(
        "a token sees the next of its step",
        "several tokens at a time are not causal among themselves",
        f"{CORE}/decoding/cache.py",
        "[None, :] <= position[:, None]",
        "[None, :] <= position[:, None] + 1",
        ("tests/test_decoding.py::test_steps_are_the_full_causal_call",),
        NUMPY,
    ),
]

ADJOINTS = [
    Fault(
        "sign of a quotient's adjoint",
        "gradients through denominators turned round",
        f"{CORE}/differentiation/rules.py",
        "-g * (out / y)",
        "g * (out / y)",
        ("tests/test_vjp.py::test_torchs_autograd_gives_the_same",),
        NUMPY,
    ),
    Fault(
        "one head of a group in the gradient of its keys",
        "the gradients of repeated keys are not summed",
        f"{CORE}/differentiation/rules.py",
        "    return lambda g: xp.sum(xp.reshape(g, split), axis=axis + 1)\n\n\ndef _take",
        "    return lambda g: xp.max(xp.reshape(g, split), axis=axis + 1)\n\n\ndef _take",
        ("tests/test_vjp.py",),
        "group and numpy and not readonly",
    ),
]

FAULTS = [*STATISTICS, *MASKS, *CAUSAL, *SUMS, *ARGUMENTS, *GRADIENTS, *FEATURES, *DECODING, *ADJOINTS]
