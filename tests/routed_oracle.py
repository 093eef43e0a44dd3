"""Routed clusters by their description: float64 NumPy, a head, a chunk or a tile, and a query at a time.

Only the numbers that shape the algorithm are taken from the library, and the `Layout` of a call, which has
tests of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.special import logsumexp

import scatterbrain_core as sb
from scatterbrain_core import kmeans
from scatterbrain_core.planning import plan
from scatterbrain_core.problem import make_problem
from scatterbrain_core.routing import nodes, query_tiles, selection, spending, view
from scatterbrain_core.routing.layout import TILE, lay_out

TIED = 1 + selection.TIES * np.finfo(np.float64).eps


def layout_of(n_queries, n_keys, dim, part, budget, is_causal):
    """The layout of a call, from its lengths alone."""
    q, k = np.zeros((n_queries, dim)), np.zeros((n_keys, dim))
    options = {"scale": None, "enable_gqa": False, "check_finite": True, "attn_mask": None}
    planned = plan(sb.Scatterbrain(sparse=part), budget, n_queries, n_keys, dim).sparse
    return lay_out(make_problem(q, k, k, is_causal=is_causal, **options), planned)


@dataclass
class Cluster:
    """One cluster of a block: its keys and what is known of them."""

    place: tuple
    keys: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    axes: np.ndarray
    group: tuple = ()

    @property
    def n(self):
        return len(self.keys)

    @property
    def width(self):
        return self.variance.sum()


@dataclass
class Whole:
    """A group that a tile sees as one cluster: its logit has `more` added, which the tile's mean query tells.

    `parts` has its clusters, each with the logarithm of its part of the weight.
    """

    as_one: Cluster
    more: float = 0.0
    parts: list = field(default_factory=list)


@dataclass
class Tile:
    """Queries that look at the same clusters, and see each of the other groups as one."""

    queries: list
    clusters: list = field(default_factory=list)
    wholes: list = field(default_factory=list)


@dataclass
class Head:
    """One head: what it is given, and what comes of it."""

    query: np.ndarray
    key: np.ndarray
    visible: np.ndarray
    is_row: np.ndarray
    layout: object
    is_causal: bool
    blocks: dict = field(default_factory=dict)
    tiles: list = field(default_factory=list)
    opened: dict = field(default_factory=dict)
    split: dict = field(default_factory=dict)


@dataclass
class Routed:
    """Of all heads, shapes (..., Lq, Dv), (..., Lq) thrice, (..., Lq, Lk)."""

    output: np.ndarray
    lse: np.ndarray
    pairs: np.ndarray
    rank: np.ndarray
    logs: np.ndarray
    heads: list


def routed(
    query, key, value, layout, *, is_causal=False, key_mask=None, row_mask=None, scale=None, like=None
):
    """Attention by routed clusters.

    Parameters
    ----------
    key_mask, row_mask : array of bool, shape (..., Lk) and (..., Lq)
    like : callable, optional
        From a head's number to what it is to have in place of its own: `labels` and `axes` by block,
        `groups` by cluster, choice(i), the clusters that query i opened and those it sees apart, and where
        not causal `tiles`, the queries of each, and looked(number), the groups whose clusters one looks at.
    """
    query, key, value = (np.asarray(x, dtype=np.float64) for x in (query, key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    root, lead = math.sqrt(abs(scale)), query.shape[:-2]
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    logs = np.full((*lead, n_queries, n_keys), -np.inf)
    pairs, rank, heads = np.zeros((*lead, n_queries)), np.zeros((*lead, n_queries)), []
    for number, head in enumerate(np.ndindex(lead)):
        visible, is_row = _of_head(key_mask, n_keys, lead, head), _of_head(row_mask, n_queries, lead, head)
        q = np.where(is_row[:, None], math.copysign(root, scale) * query[head], 0.0)
        k = np.where(visible[:, None], root * key[head], 0.0)
        solved = Head(q, k, visible, is_row, layout, is_causal)
        _solve(solved, like and like(number))
        for i in np.flatnonzero(is_row):
            logs[head][i], pairs[head][i] = _row(solved, i)
            rank[head][i] = _rank(solved, i)
        heads.append(solved)
    lse = logsumexp(logs, axis=-1)
    with np.errstate(invalid="ignore"):
        weights = np.where(np.isneginf(lse)[..., None], 0.0, np.exp(logs - lse[..., None]))
    values = value if key_mask is None else np.where(key_mask[..., None], value, 0.0)
    return Routed(weights @ values, lse, pairs, rank, logs, heads)


def _of_head(mask, n, lead, head):
    return np.ones(n, bool) if mask is None else np.broadcast_to(mask, (*lead, n))[head]


def _solve(head, like):
    """Clusters of all blocks that some query sees, and every query's choice."""
    for level, start in sorted({block for i in range(len(head.query)) for block in _seen(head, i)}):
        head.blocks[level, start] = _clusters(head, level, start, like)
    _group(head, like)
    if not head.is_causal:
        _tile(head, like)
    _choose(head, like)


def _seen(head, i):
    """Blocks that query i sees: the largest that are complete; small ones within a chunk alone."""
    layout = head.layout
    if not head.is_causal:
        return [(0, start) for start in range(0, layout.length, layout.largest.block)]
    chunk, start, blocks = i // layout.chunk * layout.chunk, 0, []
    for number, level in reversed(list(enumerate(layout.levels))):
        end = i // layout.own * layout.own if number == 0 else chunk
        while start + level.block <= end:
            blocks.append((number, start))
            start += level.block
    return blocks


def _metric(head, level, start):
    """Second moment of the queries that a block may know, with unit trace and a graded ridge."""
    layout, known = head.layout, head.query
    if head.is_causal and level == 0 and len(layout.levels) > 1:
        known = known[: start // layout.chunk * layout.chunk or layout.own]
    elif head.is_causal:
        known = known[: start + layout.levels[level].block]
    moment, dim = known.T @ known, head.query.shape[-1]
    if np.trace(moment) > 0:
        moment = moment / np.trace(moment)
    return moment + np.diag([nodes.RIDGE / dim * (0.5 + d / dim) for d in range(dim)])


def _clusters(head, level, start, like):
    layout = head.layout
    block, n_fine = layout.levels[level].block, layout.levels[level].n_fine
    places = np.arange(start, start + block)
    key = np.zeros((block, head.key.shape[-1]))
    inside = places < len(head.key)
    key[inside] = head.key[places[inside]]
    there = inside.copy()
    there[inside] &= head.visible[places[inside]] & ~_is_first(head)[places[inside]]
    metric = _metric(head, level, start)
    labels = like.labels[level, start] if like else _kmeans(key, there, metric, n_fine)
    axes, clusters = (like.axes[level, start] if like else np.linalg.eigh(metric)[1]), []
    for c in range(n_fine):
        mine = there & (labels == c)
        if not mine.any():
            continue
        mean = key[mine].mean(0)
        variance = (((key[mine] - mean) @ axes) ** 2).mean(0)
        clusters.append(Cluster((level, start, c), places[mine], mean, variance, axes))
    return clusters


def _kmeans(points, there, metric, n_clusters):
    """Lloyd's iterations from points at equal steps in order; the first of equally near centres."""
    ranks, total = np.cumsum(there), there.sum()
    first = [int((2 * n_clusters * ranks < (2 * c + 1) * total).sum()) for c in range(n_clusters)]
    centres = points[np.minimum(first, len(points) - 1)]
    for step in range(kmeans.ITERATIONS):
        away = points[:, None, :] - centres[None, :, :]
        labels = np.argmin(((away @ metric) * away).sum(-1), axis=-1)
        if step < kmeans.ITERATIONS - 1:
            for c in range(n_clusters):
                if (there & (labels == c)).any():
                    centres[c] = points[there & (labels == c)].mean(0)
    return labels


def _group(head, like):
    """Groups of clusters with means near each other: of a block, or of all blocks where not causal."""
    families = [[block] for block in head.blocks] if head.is_causal else [list(head.blocks)]
    for family in families:
        level = head.layout.levels[family[0][0]]
        # Empty clusters keep their place in the order that k-means starts from, without a weight.
        places = [(*block, c) for block in family for c in range(level.n_fine)]
        by_place = {cluster.place: cluster for block in family for cluster in head.blocks[block]}
        there = np.array([place in by_place for place in places])
        means = np.array(
            [by_place[place].mean if place in by_place else np.zeros(head.key.shape[-1]) for place in places]
        )
        if like:
            labels = [like.groups[place] for place in places]
        else:
            labels = _kmeans(means, there, _metric(head, *family[0]), level.n_coarse)
        for place, label in zip(places, labels, strict=True):
            if place in by_place:
                by_place[place].group = (family[0] if head.is_causal else (), int(label))


def _tile(head, like):
    """Tiles of queries with their two largest groups in common, and what each looks at."""
    groups = _groups(cluster for block in head.blocks.values() for cluster in block)
    overview = [_as_one(group, members) for group, members in sorted(groups.items())]
    order = sorted(range(len(head.query)), key=lambda i: _place(head, i, overview))
    tiles = like.tiles if like else [order[t : t + TILE] for t in range(0, len(order), TILE)]
    for number, queries in enumerate(tiles):
        rows = [head.query[i] for i in queries if head.is_row[i]]
        wholes = _wholes(rows, overview, groups)
        looked = like.looked(number) if like else _looked(rows, wholes, head.layout.looked)
        tile = Tile(queries)
        for whole in wholes:
            if whole.as_one.group in looked:
                tile.clusters += [cluster for cluster, _ in whole.parts]
            else:
                tile.wholes.append(whole)
        head.tiles.append(tile)


def _groups(clusters):
    """Clusters by their group."""
    groups = {}
    for cluster in clusters:
        groups.setdefault(cluster.group, []).append(cluster)
    return groups


def _as_one(group, members):
    """The keys of a group as one cluster, with the variance within its clusters and between them."""
    keys = np.concatenate([c.keys for c in members])
    mean = sum(c.n * c.mean for c in members) / len(keys)
    spreads = [c.n * (c.variance + ((c.mean - mean) @ c.axes) ** 2) for c in members]
    return Cluster(group, keys, mean, sum(spreads) / len(keys), members[0].axes, group)


def _place(head, i, overview):
    """What queries are sorted by: their two groups of most weight; what is no row comes last."""
    if not head.is_row[i]:
        return (1,)
    logits = {c.group: head.query[i] @ c.mean + math.log(c.n) for c in overview}
    return (0, *sorted(logits, key=lambda group: (-logits[group], group))[:2])


def _wholes(rows, overview, groups):
    """Groups as one cluster each, as the mean of some queries has the sums over their clusters."""
    if not overview:
        return []
    centre = np.mean(rows, axis=0) if rows else np.zeros_like(overview[0].mean)
    logits = {group: np.array([_logit(centre, c) for c in members]) for group, members in groups.items()}
    top, wholes = max(x.max() for x in logits.values()), []
    for cluster in overview:
        members, own = groups[cluster.group], logits[cluster.group]
        total = logsumexp(own)
        if math.exp(total - top) > query_tiles.LEAST_WEIGHT:
            wholes.append(Whole(cluster, total - _logit(centre, cluster), _with(members, own - total)))
        else:
            parts = [math.log(c.n / cluster.n) for c in members]
            wholes.append(Whole(cluster, 0.0, _with(members, parts)))
    return wholes


def _with(members, parts):
    return list(zip(members, parts, strict=True))


def _looked(rows, wholes, most):
    """Groups that some queries look at the clusters of: those that leave most error as one cluster each."""
    scores = np.zeros(len(wholes))
    for query in rows if wholes else ():
        errors = np.array(_errors(query, wholes))
        if errors.sum() > 0:
            scores += errors / errors.sum()
    looked, n_clusters = set(), 0
    for number in np.argsort(-scores, kind="stable"):
        if n_clusters < most:
            looked.add(wholes[number].as_one.group)
        n_clusters += len(wholes[number].parts)
    return looked


def _floored(log_share):
    """A share; one that is too small by its logarithm, and not by itself."""
    below = math.log(view.LEAST_SHARE) - log_share
    return view.LEAST_SHARE / (1 + below) if below > 0 else math.exp(log_share)


def _errors(query, wholes):
    """What error each group leaves as one cluster."""
    logits = [_logit_of_whole(query, whole) for whole in wholes]
    top = max(logits)
    spreads = [_spread(query, whole.as_one) for whole in wholes]
    return [
        _floored(logit - top) ** 2 * (math.expm1(spread) + 1e-9) * whole.as_one.width / whole.as_one.n
        for logit, spread, whole in zip(logits, spreads, wholes, strict=True)
    ]


def _logit_of_whole(query, whole):
    return _logit(query, whole.as_one) + whole.more


def _tile_of(head, i):
    return next(tile for tile in head.tiles if i in tile.queries)


def _as_wholes(head, i):
    """Groups that query i sees as one cluster whatever it chooses."""
    return [] if head.is_causal else _tile_of(head, i).wholes


def _columns(head, i):
    """Clusters that query i may open."""
    if not head.is_causal:
        return _tile_of(head, i).clusters
    return [cluster for block in _seen(head, i) for cluster in head.blocks[block]]


def _logit(query, cluster):
    """Log of a whole cluster's weight: its mean, half its variance, its size."""
    return query @ cluster.mean + _spread(query, cluster) / 2 + math.log(cluster.n)


def _spread(query, cluster):
    return min(((query @ cluster.axes) ** 2) @ cluster.variance, view.MOST_SPREAD)


def _near(head, i):
    """Keys that query i sees exactly whatever it chooses."""
    j, layout = np.arange(len(head.key)), head.layout
    seen = _is_first(head)
    if head.is_causal:
        seen = (seen | (j // layout.own == i // layout.own)) & (j <= i)
    return np.flatnonzero(seen & head.visible)


def _is_first(head):
    """The first keys that are there, as many as the layout says."""
    chosen = np.zeros(len(head.key), bool)
    chosen[np.flatnonzero(head.visible)[: head.layout.first]] = True
    return chosen


def _items(head, i):
    """Clusters of each group, and what error each leaves as one key, and as one of its group."""
    query, clusters = head.query[i], _columns(head, i)
    if not clusters:
        return {}, {}, {}
    logits = np.array([_logit(query, c) for c in clusters])
    others = [_logit_of_whole(query, whole) for whole in _as_wholes(head, i)]
    all_logits = np.concatenate([logits, others, query @ head.key[_near(head, i)].T])
    share = np.exp(logits - logsumexp(all_logits)) * head.is_row[i]
    groups, within, between = {}, {}, {}
    for number, cluster in enumerate(clusters):
        groups.setdefault(cluster.group, []).append(number)
        error = share[number] ** 2 * (math.expm1(_spread(query, cluster)) + 1e-9)
        within[cluster.place] = error * cluster.width / cluster.n
    for members in groups.values():
        n = sum(clusters[m].n for m in members)
        centre = sum(clusters[m].n * clusters[m].mean for m in members) / n
        total = sum(share[m] for m in members)
        for m in members:
            deviation = share[m] - total * clusters[m].n / n
            away = clusters[m].mean - centre
            between[clusters[m].place] = deviation**2 * (away @ away)
    of_group = {group: [clusters[m] for m in members] for group, members in groups.items()}
    return of_group, within, between


def _bar(items, limit):
    """The gain of the first item that does not fit; 0 where all do."""
    spent = 0.0
    for gain, cost in sorted(items, reverse=True):
        spent += cost
        if spent > limit + selection.PART_OF_ENTRY:
            return gain
    return 0.0


def _best(items_of_row, mean, most, bar):
    """What each row takes, and the bar at which the rows spend the mean, or a sample where a bar is given.

    `items_of_row` has a dict {what: (gain, cost)} for each row, `most` a limit.
    """
    affordable = [
        {what: (gain if cost <= limit else 0.0, cost) for what, (gain, cost) in items.items()}
        for items, limit in zip(items_of_row, most, strict=True)
    ]
    step = 1 if bar is None else max(1, len(affordable) // selection.SAMPLED_ROWS)
    sample = affordable[::step]
    at_mean = _bar([item for items in sample for item in items.values()], mean * len(sample))
    bar = at_mean if bar is None else bar
    taken = []
    for items, limit in zip(affordable, most, strict=True):
        own = max(bar, _bar(items.values(), limit))
        taken.append({what for what, (gain, _) in items.items() if gain > own * TIED})
    return taken, at_mean


def _choose(head, like):
    if like:
        for i in range(len(head.query)):
            head.opened[i], head.split[i] = like.choice(i)
    elif head.is_causal:
        _choose_by_chunk(head)
    else:
        for tile in head.tiles:
            _choose_of_tile(head, tile)


def _choose_by_chunk(head):
    """Where causal: a chunk has the bars of the chunk before it, and makes up for what that saved."""
    layout, n_queries = head.layout, len(head.query)
    saved, bars = 0.0, None
    for start in range(0, n_queries, layout.chunk):
        rows = range(start, min(start + layout.chunk, n_queries))
        if not _seen(head, start + layout.chunk - 1):
            for i in rows:
                head.opened[i], head.split[i] = set(), set()
            continue
        bars = _spend(head, rows, *_allowance(head, saved, bars), bars or (0.0, 0.0))
        saved += sum(_left_over(head, i) for i in rows)


def _choose_of_tile(head, tile):
    """A tile spends by itself what its rows may; those that are none open and split nothing."""
    mean, rows = float(head.layout.refined), [i for i in tile.queries if head.is_row[i]]
    singles = {c.place for members in _groups(tile.clusters).values() if len(members) == 1 for c in members}
    for i in tile.queries:
        head.opened[i], head.split[i] = set(), singles
    if rows:
        _spend(head, rows, mean, spending.MOST * mean, (None, None))


def _spend(head, rows, mean, most, bars):
    """Choose for rows that share a mean or are given bars, and give the bars at which they spend the mean."""
    found = [_items(head, i) for i in rows]
    taken, first = _best([_splits(*f) for f in found], mean, [most] * len(rows), bars[0])
    # A group of one cluster is split as it is.
    split = [
        {group for group, members in of_group.items() if group in chosen or len(members) == 1}
        for (of_group, _, _), chosen in zip(found, taken, strict=True)
    ]
    spent = [
        sum(len(of_group[group]) - 1 for group in groups)
        for (of_group, _, _), groups in zip(found, split, strict=True)
    ]
    opens = [_opens(*f, groups) for f, groups in zip(found, split, strict=True)]
    # Behind the last causal query stand those that fill its chunk, and nothing comes after it.
    mean = mean - sum(spent) / len(rows)
    opened, second = _best(opens, mean, [most - s for s in spent], bars[1])
    for i, (of_group, _, _), groups, places in zip(rows, found, split, opened, strict=True):
        head.split[i] = {c.place for group in groups for c in of_group[group]}
        head.opened[i] = places
    return first, second


def _splits(of_group, within, between):
    """Groups to split, beside clusters to open: gain an entry and cost of each."""
    items = {}
    for group, members in of_group.items():
        n, gain = len(members) - 1, sum(between[c.place] for c in members)
        if n > 0:
            items[group] = (gain / n, n)
        for c in members:
            items[c.place] = ((within[c.place] + between[c.place]) / c.n, c.n)
    return items


def _opens(of_group, within, between, split):
    """Clusters to open, now that some groups are split: one seen apart already costs an entry less."""
    items = {}
    for group, members in of_group.items():
        for c in members:
            if group not in split:
                items[c.place] = ((within[c.place] + between[c.place]) / c.n, c.n)
            elif c.n > 1:
                items[c.place] = (within[c.place] / (c.n - 1), c.n - 1)
    return items


def _allowance(head, saved, bars):
    """Mean and most entries a query of the next causal chunk may add."""
    layout = head.layout
    mean = float(layout.refined)
    if bars is None:
        return mean, mean
    spare = saved / layout.chunk
    slack = spending.SLACK * mean * len(head.query) / layout.chunk
    most = min(max(mean + spare + slack, 0.0), spending.MOST_CAUSAL * mean)
    return mean + min(max(spare, -spending.CORRECTION * mean), spending.CORRECTION * mean), most


def _left_over(head, i):
    """Of what query i might have added to its coarsest view, what it did not."""
    clusters = _columns(head, i)
    coarsest = len({c.group for c in clusters})
    offered = min(sum(c.n for c in clusters) - coarsest, head.layout.refined)
    opened = sum(c.n for c in clusters if c.place in head.opened[i])
    return offered - (opened + _rank(head, i) - coarsest)


def _rank(head, i):
    """Clusters and groups that query i sees as one."""
    closed = [c for c in _columns(head, i) if c.place not in head.opened[i]]
    alone = [c for c in closed if c.place in head.split[i]]
    grouped = {c.group for c in closed if c.place not in head.split[i]}
    return len(alone) + len(grouped) + len(_as_wholes(head, i))


def _row(head, i):
    """Logs of all weights of query i, and how many are exact."""
    query, logs = head.query[i], np.full(len(head.key), -np.inf)
    exact, groups = list(_near(head, i)), {}
    for c in _columns(head, i):
        if c.place in head.opened[i]:
            exact.extend(c.keys)
        elif c.place in head.split[i]:
            logs[c.keys] = _logit(query, c) - math.log(c.n)
        else:
            groups.setdefault(c.group, []).append(c)
    for members in groups.values():
        n = sum(c.n for c in members)
        for c in members:
            logs[c.keys] = logsumexp([_logit(query, m) for m in members]) - math.log(n)
    for whole in _as_wholes(head, i):
        for c, part in whole.parts:
            logs[c.keys] = _logit_of_whole(query, whole) + part - math.log(c.n)
    logs[exact] = head.key[exact] @ query
    return logs, len(exact)
