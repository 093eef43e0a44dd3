// Exact weights on tiles: for blocks of visits, ref = max of the logits and acc = sum of exp(logit - ref) * (value,
// weight) over the keys in each visit's interval of slots. One thread block owns TQ places of one block of visits, and
// each of its rows one group of neighbouring lanes, so that no sum depends on the order of the threads.
//
// How tiles stand in shared memory, and how products of them are taken, is a type P of the kernel:
//   T, Input                     of logits, sums and arrays; the kernel's arguments, in which keys may be of another type
//   TQ, TK, THREADS              places and slots of a tile; threads of a block
//   LANES                        neighbouring lanes that share a row
//   ROWS, SLOTS, COLUMNS         rows of a thread, and of each its slots and columns; ROWS * SLOTS <= 32
//   row(i), slot(j), column(c)   where these stand in the tile
//   P(room)                      takes its arrays in shared memory
//   load_queries, load_keys      into these arrays
//   UNIT                         in which sums are taken
//   logits(dim, s)               s[i][j] = q.k
//   add(x, n_here, sums)         sums[i][c] += sum of x * value over the first n_here slots
#include "common.cuh"

// The kernel's arguments:
//
// query (n_query_rows, dim), key (n_keys, dim), value (n_keys, n_columns), whose last column are weights;
// key_order (n_slots); lo, hi of visits, query row * n_visits + r; rows, filled (n_blocks, size); the tables whose
// pairs are left out: slot (n_tables, n_keys), out_lo, out_hi (n_query_rows, n_tables, n_intervals);
// ref (n_blocks, size), acc (n_blocks, size, n_columns).
#define TILE_ARGUMENTS(T, K)                                                                                          \
    const T *__restrict__ query, const K *__restrict__ key, const T *__restrict__ value,                              \
        const Index *__restrict__ key_order, const Index *__restrict__ lo, const Index *__restrict__ hi,              \
        const Index *__restrict__ rows, const bool *__restrict__ filled, const Index *__restrict__ slot,              \
        const Index *__restrict__ out_lo, const Index *__restrict__ out_hi, T *__restrict__ ref, T *__restrict__ acc, \
        int size, int n_visits, int dim, int n_columns, int n_tables, int n_intervals, Index n_keys, int is_aligned
#define TILE_RUN                                                                                                  \
    {query, key, value, key_order, lo, hi, rows, filled, slot, out_lo, out_hi, ref, acc, size, n_visits, dim,     \
     n_columns, n_tables, n_intervals, n_keys, is_aligned != 0}

template <class T, class K>
struct Run {
    const T* query;
    const K* key;
    const T* value;
    const Index *key_order, *lo, *hi, *rows;
    const bool* filled;
    const Index *slot, *out_lo, *out_hi;
    T *ref, *acc;
    int size, n_visits, dim, n_columns, n_tables, n_intervals;
    Index n_keys;
    bool is_aligned;
};

// Shared memory that is not taken yet.
struct Room {
    unsigned char* next;

    template <class A>
    __device__ __forceinline__ A* take(int n) {
        A* const own = reinterpret_cast<A*>(next);
        next += n * sizeof(A);
        return own;
    }
};

// Where a row begins: matrices may have more than 2^31 entries.
__device__ __forceinline__ Index start_of(Index row, Index stride) {
    return MUT == 21 ? Index(unsigned(row * stride)) : row * stride;
}

// Rows of a matrix into shared memory, row_of[r] < 0 and columns from `width` on as zeros.
template <int W, int THREADS, class To, class T>
__device__ __forceinline__ void load_rows(const To& to, const T* from, const Index* row_of, int n_rows, int width,
                                          Index stride, bool is_aligned) {
    if (is_aligned) {  // 16 bytes at a time
        constexpr int ROW = W / 4, AT_ONCE = THREADS / ROW;
        const int c = threadIdx.x % ROW * 4;
#pragma unroll 4
        for (int r = threadIdx.x < ROW * AT_ONCE ? threadIdx.x / ROW : n_rows; r < n_rows; r += AT_ONCE) {
            const Index row = row_of[r];
            Four<T> x = {};
            if (row >= 0 && c < width) x = four(from + start_of(row, stride) + c);
            to.put(r, c, x);
        }
        return;
    }
    for (int c = threadIdx.x % 32; c < W; c += 32)
#pragma unroll 8
        for (int r = threadIdx.x / 32; r < n_rows; r += THREADS / 32) {
            const Index row = row_of[r];
            if ((MUT == 12 && c >= width) || (MUT == 13 && row < 0)) continue;
            to.put(r, c, row >= 0 && c < width ? from[start_of(row, stride) + c] : T(0));
        }
}

template <int LANES, class T>
__device__ __forceinline__ T largest_of_lanes(T x) {
    for (int step = MUT == 6 ? LANES / 4 : LANES / 2; step > 0; step /= 2)
        x = larger(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

template <int LANES, class T>
__device__ __forceinline__ T sum_of_lanes(T x) {
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

// What stands in shared memory beside the tiles.
template <class P>
struct Visits {
    typename P::T* weight;
    Index *query_of, *from_of, *to_of;
    Index* keys_of;  // two tiles of them

    __device__ __forceinline__ explicit Visits(Room& room)
        : weight(room.take<typename P::T>(P::TK)), query_of(room.take<Index>(P::TQ)), from_of(room.take<Index>(P::TQ)),
          to_of(room.take<Index>(P::TQ)), keys_of(room.take<Index>(2 * P::TK)) {}

    __device__ __forceinline__ void load(const typename P::Input& run, Index first_place, int n_places) const {
        for (int place = threadIdx.x; place < P::TQ; place += P::THREADS) {
            const bool is_visit = place < n_places && (MUT == 8 || run.filled[first_place + place]);
            const Index visit = is_visit ? run.rows[first_place + place] : 0;
            const Index from = is_visit ? run.lo[visit] : 0, to = is_visit ? run.hi[visit] : 0;
            query_of[place] = is_visit ? visit / (MUT == 11 ? 1 : run.n_visits) : -1;
            from_of[place] = from;
            to_of[place] = max(from, to);
        }
    }

    // The slots from the first to the last of any visit, which every warp finds for itself.
    __device__ __forceinline__ void find_extent(Index& origin, Index& end) const {
        origin = 0x7fffffffffffffffLL, end = 0;
        for (int place = threadIdx.x % 32; place < P::TQ; place += 32)
            if (from_of[place] < to_of[place]) {
                origin = min(origin, from_of[place]);
                end = max(end, to_of[place]);
            }
        for (int step = 16; step > 0; step /= 2) {
            origin = min(origin, __shfl_xor_sync(0xffffffffu, origin, step));
            end = max(end, __shfl_xor_sync(0xffffffffu, end, step));
        }
        origin = min(origin, end);  // where no visit sees a key
    }
};

// The rows of a thread, as their softmax streams.
template <class P>
struct Rows {
    typedef typename P::T T;
    T top[P::ROWS], total[P::ROWS], sums[P::ROWS][P::COLUMNS];
    int from[P::ROWS], to[P::ROWS];  // behind the origin

    __device__ __forceinline__ Rows(const Visits<P>& visits, Index origin) {
#pragma unroll
        for (int i = 0; i < P::ROWS; i++) {
            const Index first = visits.from_of[P::row(i)], last = visits.to_of[P::row(i)];
            from[i] = first < last ? int(first - origin) : 0;
            to[i] = first < last ? int(last - origin) : 0;
            top[i] = T(MINUS_INFINITY);
            total[i] = T(0);
#pragma unroll
            for (int c = 0; c < P::COLUMNS; c++) sums[i][c] = T(0);
        }
    }

    // Logits of a tile, whose first slot is `start` behind the origin, to weights below the new maximum of row i.
    __device__ __forceinline__ void weigh(int i, T (&s)[P::SLOTS], unsigned hidden, int start, const T* weight) {
        T most = T(MINUS_INFINITY);
        unsigned seen = 0;
#pragma unroll
        for (int j = 0; j < P::SLOTS; j++) {
            const int place = start + P::slot(j);
            const bool is_within = (place >= from[i] || MUT == 5) && place < to[i] + (MUT == 4);
            const bool is_seen = is_within && !(hidden >> j & 1u);
            seen |= unsigned(is_seen) << j;
            if (is_seen || MUT == 15) most = larger(most, s[j]);
        }
        most = larger(top[i], largest_of_lanes<P::LANES>(most));
        const T base = most == T(MINUS_INFINITY) ? T(0) : most;
        const T shrink = MUT == 7 ? T(1) : exp_of(top[i] - base);
        top[i] = most;
        total[i] *= shrink;
#pragma unroll
        for (int c = 0; c < P::COLUMNS; c++) sums[i][c] *= shrink;
#pragma unroll
        for (int j = 0; j < P::SLOTS; j++) {
            s[j] = seen >> j & 1u ? exp_of(s[j] - base) : T(0);
            total[i] += s[j] * weight[P::slot(j)];
        }
    }

    __device__ __forceinline__ void write(const typename P::Input& run, Index first_place, int n_places) const {
#pragma unroll
        for (int i = 0; i < P::ROWS; i++) {
            const int place = P::row(i);
            const T all = MUT == 10 ? total[i] : sum_of_lanes<P::LANES>(total[i]);
            if (place >= n_places) continue;
            T* const row = run.acc + (first_place + place) * run.n_columns;
            if (threadIdx.x % P::LANES == 0) {
                run.ref[first_place + place] = top[i];
                row[run.n_columns - 1] = all;
            }
#pragma unroll
            for (int c = 0; c < P::COLUMNS; c++)
                if (P::column(c) < run.n_columns - 1) row[P::column(c)] = sums[i][c] * (T(1) / P::UNIT);
        }
    }
};

// Which of a thread's pairs stand in one of the tables that count them already; bit i * SLOTS + j.
template <class P>
__device__ __forceinline__ unsigned counted_before(const Index* query_of, const Index* key_of,
                                                   const typename P::Input& run) {
    unsigned held = 0;
    for (int table = 0; table < run.n_tables; table++) {
        Index at[P::SLOTS];
#pragma unroll
        for (int j = 0; j < P::SLOTS; j++) {
            const Index key = key_of[P::slot(j)];
            at[j] = key < 0 ? -1 : run.slot[table * run.n_keys + key];
        }
#pragma unroll
        for (int i = 0; i < P::ROWS; i++) {
            const Index query = query_of[P::row(i)];
            if (query < 0) continue;
            const Index first = (query * run.n_tables + table) * run.n_intervals;
            for (int r = 0; r < run.n_intervals; r++) {
                const Index from = run.out_lo[first + r], to = run.out_hi[first + r];
#pragma unroll
                for (int j = 0; j < P::SLOTS; j++)
                    held |= unsigned(at[j] >= from && at[j] < to) << (i * P::SLOTS + j);
            }
        }
    }
    return held;
}

// Add the tiles of slots from `origin` to `end` to the rows of every thread.
template <class P>
__device__ __forceinline__ void add_tiles(const typename P::Input& run, const P& products, const Visits<P>& visits,
                                          Index origin, Index end, Rows<P>& rows) {
    constexpr int TK = P::TK;
    products.load_queries(run, visits.query_of);
    for (int j = threadIdx.x; j < TK; j += P::THREADS)
        visits.keys_of[j] = origin + j < end ? (MUT == 9 ? origin + j : run.key_order[origin + j]) : -1;

    int turn = 0;
    for (Index start = origin; start < end; start += TK, turn ^= 1) {
        const Index* const key_of = visits.keys_of + turn * TK;
        const int n_here = int(min(Index(TK), end - start));
        if (MUT != 2) __syncthreads();  // the last tile has been read, and this one's numbers of keys are there
        products.load_keys(run, key_of);
        for (int j = threadIdx.x; j < TK; j += P::THREADS) {
            const Index here = key_of[j], next = start + TK + j;
            visits.weight[j] = here >= 0 ? run.value[here * run.n_columns + run.n_columns - 1] : 0;
            visits.keys_of[(turn ^ 1) * TK + j] = next < end ? run.key_order[next] : -1;
        }
        if (MUT != 1) __syncthreads();
        unsigned hidden = 0;
        if (run.n_tables > 0 && MUT != 14) hidden = counted_before<P>(visits.query_of, key_of, run);
        typename P::T s[P::ROWS][P::SLOTS];
        products.logits(run.dim, s);
#pragma unroll
        for (int i = 0; i < P::ROWS; i++)
            rows.weigh(i, s[i], hidden >> (i * P::SLOTS), int(start - origin), visits.weight);
        products.add(s, n_here, rows.sums);
    }
}

// A kernel, but for what its products need: a thread block's part of it.
template <class P>
__device__ __forceinline__ void run_tiles(const typename P::Input& run, const P& products, Room& room) {
    static_assert(32 % P::LANES == 0 && P::ROWS * P::SLOTS <= 32, "tile");
    const Visits<P> visits(room);
    const Index first_place = Index(blockIdx.x) * run.size + Index(blockIdx.y) * P::TQ;
    const int n_places = min(P::TQ, run.size - int(blockIdx.y) * P::TQ);
    visits.load(run, first_place, n_places);
    __syncthreads();
    Index origin, end;
    visits.find_extent(origin, end);
    Rows<P> rows(visits, origin);
    add_tiles(run, products, visits, origin, end, rows);
    rows.write(run, first_place, n_places);
}
