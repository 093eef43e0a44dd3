// Exact weights on tiles: for blocks of visits, ref = max of q.k and acc = sum of exp(q.k - ref) * (value, weight)
// over the keys in each visit's interval of slots. One thread block owns TY * ROWS places of one block of visits, and
// each of its rows one group of TX neighbouring lanes, so that no sum depends on the order of the threads.
#include "common.cuh"

constexpr int TY = 16;  // rows that stand side by side; thread ty has the rows ty, ty + TY, ...

// Rows of a matrix into shared memory, row_of[r] < 0 and columns from `width` on as zeros.
template <class T, int W, int THREADS>
__device__ __forceinline__ void load_rows(T* to, const T* from, const Index* row_of, int n_rows, int width,
                                          Index stride, bool is_aligned) {
    if (is_aligned) {  // 16 bytes at a time
        constexpr int ROW = W / 4, AT_ONCE = THREADS / ROW;
        const int c = threadIdx.x % ROW * 4;
#pragma unroll 4
        for (int r = threadIdx.x < ROW * AT_ONCE ? threadIdx.x / ROW : n_rows; r < n_rows; r += AT_ONCE) {
            const Index row = row_of[r];
            Four<T> x = {};
            if (row >= 0 && c < width) x = four(from + row * stride + c);
            *reinterpret_cast<Four<T>*>(to + r * (W + 4) + c) = x;
        }
        return;
    }
    for (int c = threadIdx.x % 32; c < W; c += 32)
#pragma unroll 8
        for (int r = threadIdx.x / 32; r < n_rows; r += THREADS / 32) {
            const Index row = row_of[r];
            if ((MUT == 12 && c >= width) || (MUT == 13 && row < 0)) continue;
            to[r * (W + 4) + c] = row >= 0 && c < width ? from[row * stride + c] : T(0);
        }
}

template <class T, int TX>
__device__ __forceinline__ T largest_of_lanes(T x) {
    for (int step = MUT == 6 ? TX / 4 : TX / 2; step > 0; step /= 2)
        x = larger(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

template <class T, int TX>
__device__ __forceinline__ T sum_of_lanes(T x) {
    for (int step = TX / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// The kernel's arguments, and its arrays in shared memory, as the loop over the tiles takes them.
template <class T>
struct Run {
    const T *query, *key, *value;
    const Index *key_order, *slot, *out_lo, *out_hi;
    int dim, n_columns, n_tables, n_intervals;
    Index n_keys;
    bool is_aligned;
};

template <class T>
struct Shared {
    T *q, *k, *v, *p, *weight;
    Index *query_of, *keys_of;
};

// Which of a thread's pairs stand in one of the tables that count them already; bit i * (TK / TX) + j.
template <int ROWS, int TK, int TX, class T>
__device__ __forceinline__ unsigned counted_before(const Index* query_of, const Index* key_of, const Run<T>& run) {
    constexpr int TN = TK / TX;
    const int tx = threadIdx.x % TX, ty = threadIdx.x / TX;
    unsigned held = 0;
    for (int table = 0; table < run.n_tables; table++) {
        Index at[TN];
#pragma unroll
        for (int j = 0; j < TN; j++) {
            const Index key = key_of[tx + TX * j];
            at[j] = key < 0 ? -1 : run.slot[table * run.n_keys + key];
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            const Index query = query_of[ty + TY * i];
            if (query < 0) continue;
            const Index first = (query * run.n_tables + table) * run.n_intervals;
            for (int r = 0; r < run.n_intervals; r++) {
                const Index from = run.out_lo[first + r], to = run.out_hi[first + r];
#pragma unroll
                for (int j = 0; j < TN; j++) held |= unsigned(at[j] >= from && at[j] < to) << (i * TN + j);
            }
        }
    }
    return held;
}

// Add the tiles of slots from `origin` to `end` to the rows of every thread.
template <class T, int W, int ROWS, int TK, int TX>
__device__ __forceinline__ void add_tiles(const Run<T>& run, const Shared<T>& own, Index origin, Index end,
                                          const int (&from)[ROWS], const int (&to)[ROWS], T (&top)[ROWS],
                                          T (&total)[ROWS], Four<T> (&sums)[ROWS][W / (4 * TX)]) {
    constexpr int THREADS = TY * TX, TN = TK / TX, GROUPS = W / (4 * TX);
    const int tid = threadIdx.x, tx = tid % TX, ty = tid / TX;
    load_rows<T, W, THREADS>(own.q, run.query, own.query_of, ROWS * TY, run.dim, run.dim, run.is_aligned);
    for (int j = tid; j < TK; j += THREADS)
        own.keys_of[j] = origin + j < end ? (MUT == 9 ? origin + j : run.key_order[origin + j]) : -1;

    int turn = 0;
    for (Index start = origin; start < end; start += TK, turn ^= 1) {
        const Index* const key_of = own.keys_of + turn * TK;
        const int n_here = int(min(Index(TK), end - start));
        if (MUT != 2) __syncthreads();  // the last tile has been read, and this one's numbers of keys are there
        load_rows<T, W, THREADS>(own.k, run.key, key_of, TK, run.dim, run.dim, run.is_aligned);
        load_rows<T, W, THREADS>(own.v, run.value, key_of, TK, run.n_columns - 1, run.n_columns, false);
        for (int j = tid; j < TK; j += THREADS) {
            const Index here = key_of[j], next = start + TK + j;
            own.weight[j] = here >= 0 ? run.value[here * run.n_columns + run.n_columns - 1] : T(0);
            own.keys_of[(turn ^ 1) * TK + j] = next < end ? run.key_order[next] : -1;
        }
        if (MUT != 1) __syncthreads();
        unsigned hidden = 0;
        if (run.n_tables > 0 && MUT != 14)
            hidden = counted_before<ROWS, TK, TX>(own.query_of, key_of, run);
        T s[ROWS][TN];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) s[i][j] = T(0);
#pragma unroll(TN < 8 ? 2 : 1)
        for (int d = 0; d < run.dim; d += 4) {
            Four<T> a[ROWS], b[TN];
#pragma unroll
            for (int i = 0; i < ROWS; i++) a[i] = four(own.q + (ty + TY * i) * (W + 4) + d);
#pragma unroll
            for (int j = 0; j < TN; j++) b[j] = four(own.k + (tx + TX * j) * (W + 4) + d);
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int j = 0; j < TN; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) s[i][j] += a[i].at[e] * b[j].at[e];
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            T most = T(MINUS_INFINITY);
            unsigned seen = 0;
#pragma unroll
            for (int j = 0; j < TN; j++) {
                const int place = int(start - origin) + tx + TX * j;
                const bool is_within = (place >= from[i] || MUT == 5) && place < to[i] + (MUT == 4);
                const bool is_seen = is_within && !(hidden >> (i * TN + j) & 1u);
                seen |= unsigned(is_seen) << j;
                if (is_seen) most = larger(most, s[i][j]);
            }
            most = larger(top[i], largest_of_lanes<T, TX>(most));
            const T base = most == T(MINUS_INFINITY) ? T(0) : most;
            const T shrink = MUT == 7 ? T(1) : exp_of(top[i] - base);
            top[i] = most;
            total[i] *= shrink;
#pragma unroll
            for (int g = 0; g < GROUPS; g++)
#pragma unroll
                for (int e = 0; e < 4; e++) sums[i][g].at[e] *= shrink;
#pragma unroll
            for (int j = 0; j < TN; j++) {
                const T x = seen >> j & 1u ? exp_of(s[i][j] - base) : T(0);
                total[i] += x * own.weight[tx + TX * j];
                own.p[(ty + TY * i) * (TK + 4) + tx + TX * j] = x;
            }
        }
        if (MUT != 3) __syncwarp();  // a row's weights are written and read by lanes of one warp
#pragma unroll 1
        for (int j = 0; j < n_here; j += 4) {
            Four<T> a[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) a[i] = four(own.p + (ty + TY * i) * (TK + 4) + j);
#pragma unroll
            for (int c = 0; c < 4; c++)
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
                    const Four<T> b = four(own.v + (j + c) * (W + 4) + 4 * (tx + TX * g));
#pragma unroll
                    for (int i = 0; i < ROWS; i++)
#pragma unroll
                        for (int e = 0; e < 4; e++) sums[i][g].at[e] += a[i].at[c] * b.at[e];
                }
        }
    }
}

// Thread blocks that a multiprocessor's registers should have room for: 160 a thread, or all 255.
constexpr int blocks_at_a_time(int bytes, int width, int threads) {
    return (bytes > 4 || width > 96 ? 256 : 384) / threads;
}

// T: of the arrays. W: columns of queries, keys and values, padded. ROWS: of a thread, so that a tile has TY * ROWS
// places. TK: slots of a tile. TX: neighbouring lanes that share a row.
//
// query (n_query_rows, dim), key (n_keys, dim), value (n_keys, n_columns), whose last column are weights;
// key_order (n_slots); lo, hi of visits, query row * n_visits + r; rows, filled (n_blocks, size); the tables whose
// pairs are left out: slot (n_tables, n_keys), out_lo, out_hi (n_query_rows, n_tables, n_intervals);
// ref (n_blocks, size), acc (n_blocks, size, n_columns).
template <class T, int W, int ROWS, int TK, int TX>
__global__ void __launch_bounds__(TY* TX, blocks_at_a_time(sizeof(T), W, TY* TX))
    tile_partial(const T* __restrict__ query, const T* __restrict__ key, const T* __restrict__ value,
                 const Index* __restrict__ key_order, const Index* __restrict__ lo, const Index* __restrict__ hi,
                 const Index* __restrict__ rows, const bool* __restrict__ filled, const Index* __restrict__ slot,
                 const Index* __restrict__ out_lo, const Index* __restrict__ out_hi, T* __restrict__ ref,
                 T* __restrict__ acc, int size, int n_visits, int dim, int n_columns, int n_tables, int n_intervals,
                 Index n_keys, int is_aligned) {
    constexpr int TQ = TY * ROWS, THREADS = TY * TX, GROUPS = W / (4 * TX);
    static_assert(32 % TX == 0 && TK % TX == 0 && W % (4 * TX) == 0 && ROWS * TK / TX <= 32, "tile");
    DYNAMIC_SHARED(raw);
    T* const q = reinterpret_cast<T*>(raw);  // a row more than W / 4 quads apart: lanes meet no bank twice
    T* const k = q + TQ * (W + 4);
    T* const v = k + TK * (W + 4);
    T* const p = v + TK * (W + 4);
    T* const weight = p + TQ * (TK + 4);
    Index* const query_of = reinterpret_cast<Index*>(weight + TK);
    Index* const from_of = query_of + TQ;
    Index* const to_of = from_of + TQ;
    Index* const keys_of = to_of + TQ;  // two tiles of them

    const int tid = threadIdx.x, lane = tid % 32, tx = tid % TX, ty = tid / TX;
    const Index first_place = Index(blockIdx.x) * size + Index(blockIdx.y) * TQ;
    const int n_places = min(TQ, size - int(blockIdx.y) * TQ);
    for (int place = tid; place < TQ; place += THREADS) {
        const bool is_visit = place < n_places && (MUT == 8 || filled[first_place + place]);
        const Index visit = is_visit ? rows[first_place + place] : 0;
        const Index from = is_visit ? lo[visit] : 0, to = is_visit ? hi[visit] : 0;
        query_of[place] = is_visit ? visit / (MUT == 11 ? 1 : n_visits) : -1;
        from_of[place] = from;
        to_of[place] = max(from, to);
    }
    __syncthreads();

    // The slots from the first to the last of any visit, which every warp finds for itself.
    Index origin = 0x7fffffffffffffffLL, end = 0;
    for (int place = lane; place < TQ; place += 32)
        if (from_of[place] < to_of[place]) {
            origin = min(origin, from_of[place]);
            end = max(end, to_of[place]);
        }
    for (int step = 16; step > 0; step /= 2) {
        origin = min(origin, __shfl_xor_sync(0xffffffffu, origin, step));
        end = max(end, __shfl_xor_sync(0xffffffffu, end, step));
    }
    origin = min(origin, end);  // where no visit sees a key

    int from[ROWS], to[ROWS];  // behind the origin
    T top[ROWS], total[ROWS];
    Four<T> sums[ROWS][GROUPS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const Index first = from_of[ty + TY * i], last = to_of[ty + TY * i];
        from[i] = first < last ? int(first - origin) : 0;
        to[i] = first < last ? int(last - origin) : 0;
        top[i] = T(MINUS_INFINITY);
        total[i] = T(0);
#pragma unroll
        for (int g = 0; g < GROUPS; g++) sums[i][g] = Four<T>{};
    }
    const Run<T> run = {query, key, value, key_order, slot, out_lo, out_hi, dim, n_columns, n_tables, n_intervals,
                        n_keys, is_aligned != 0};
    const Shared<T> shared = {q, k, v, p, weight, query_of, keys_of};
    add_tiles<T, W, ROWS, TK, TX>(run, shared, origin, end, from, to, top, total, sums);

#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const int place = ty + TY * i;
        const T all = MUT == 10 ? total[i] : sum_of_lanes<T, TX>(total[i]);
        if (place >= n_places) continue;
        T* const row = acc + (first_place + place) * n_columns;
        if (tx == 0) {
            ref[first_place + place] = top[i];
            row[n_columns - 1] = all;
        }
#pragma unroll
        for (int g = 0; g < GROUPS; g++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                const int c = 4 * (tx + TX * g) + e;
                if (c < n_columns - 1) row[c] = sums[i][g].at[e];
            }
    }
}
