// Tiles in the arrays' own dtype: every thread multiplies what its rows need.
#include "tile.cuh"

constexpr int TY = 16;  // rows that stand side by side; thread ty has the rows ty, ty + TY, ...

// Rows of a tile, a row more than W / 4 quads apart: lanes meet no bank twice.
template <class T, int W>
struct Quads {
    T* at;

    __device__ __forceinline__ void put(int r, int c, T x) const { at[r * (W + 4) + c] = x; }
    __device__ __forceinline__ void put(int r, int c, const Four<T>& x) const {
        *reinterpret_cast<Four<T>*>(at + r * (W + 4) + c) = x;
    }
    __device__ __forceinline__ Four<T> get(int r, int c) const { return four(at + r * (W + 4) + c); }
};

// Thread (tx, ty) has the rows ty + TY * i, the slots tx + TX * j, and groups of four columns.
template <class T_, int W, int ROWS_, int TK_, int TX>
struct PlainProducts {
    typedef T_ T;
    typedef Run<T, T> Input;
    static constexpr int ROWS = ROWS_, TK = TK_, TQ = TY * ROWS, THREADS = TY * TX, LANES = TX;
    static constexpr T UNIT = 1;
    static constexpr int SLOTS = TK / TX, COLUMNS = W / TX, GROUPS = COLUMNS / 4;
    static_assert(TK % TX == 0 && W % (4 * TX) == 0, "tile");
    Quads<T, W> q, k, v;
    Quads<T, TK> p;

    __device__ static __forceinline__ int row(int i) { return threadIdx.x / TX + TY * i; }
    __device__ static __forceinline__ int slot(int j) { return threadIdx.x % TX + TX * j; }
    __device__ static __forceinline__ int column(int c) { return 4 * (threadIdx.x % TX + TX * (c / 4)) + c % 4; }

    __device__ __forceinline__ explicit PlainProducts(Room& room)
        : q{room.take<T>(TQ * (W + 4))}, k{room.take<T>(TK * (W + 4))}, v{room.take<T>(TK * (W + 4))},
          p{room.take<T>(TQ * (TK + 4))} {}

    __device__ __forceinline__ void load_queries(const Input& run, const Index* query_of) const {
        load_rows<W, THREADS>(q, run.query, query_of, TQ, run.dim, run.dim, run.is_aligned);
    }

    __device__ __forceinline__ void load_keys(const Input& run, const Index* key_of) const {
        load_rows<W, THREADS>(k, run.key, key_of, TK, run.dim, run.dim, run.is_aligned);
        load_rows<W, THREADS>(v, run.value, key_of, TK, run.n_columns - 1, run.n_columns, false);
    }

    __device__ __forceinline__ void logits(int dim, T (&s)[ROWS][SLOTS]) const {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < SLOTS; j++) s[i][j] = T(0);
#pragma unroll(SLOTS < 8 ? 2 : 1)
        for (int d = 0; d < dim; d += 4) {
            Four<T> a[ROWS], b[SLOTS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) a[i] = q.get(row(i), d);
#pragma unroll
            for (int j = 0; j < SLOTS; j++) b[j] = k.get(slot(j), d);
#pragma unroll
            for (int i = 0; i < ROWS; i++)
#pragma unroll
                for (int j = 0; j < SLOTS; j++)
#pragma unroll
                    for (int e = 0; e < 4; e++) s[i][j] += a[i].at[e] * b[j].at[e];
        }
    }

    __device__ __forceinline__ void add(const T (&x)[ROWS][SLOTS], int n_here, T (&sums)[ROWS][COLUMNS]) const {
#pragma unroll
        for (int i = 0; i < ROWS; i++)
#pragma unroll
            for (int j = 0; j < SLOTS; j++) p.put(row(i), slot(j), x[i][j]);
        if (MUT != 3) __syncwarp();  // a row's weights are written and read by lanes of one warp
#pragma unroll 1
        for (int j = 0; j < n_here; j += 4) {
            Four<T> a[ROWS];
#pragma unroll
            for (int i = 0; i < ROWS; i++) a[i] = p.get(row(i), j);
#pragma unroll
            for (int c = 0; c < 4; c++)
#pragma unroll
                for (int g = 0; g < GROUPS; g++) {
                    const Four<T> b = v.get(j + c, column(4 * g));
#pragma unroll
                    for (int i = 0; i < ROWS; i++)
#pragma unroll
                        for (int e = 0; e < 4; e++) sums[i][4 * g + e] += a[i].at[c] * b.at[e];
                }
        }
    }
};

// Thread blocks that a multiprocessor's registers should have room for: 160 a thread, or all 255.
constexpr int blocks_at_a_time(int bytes, int width, int threads) {
    return (bytes > 4 || width > 96 ? 256 : 384) / threads;
}

// T: of the arrays. W: columns of queries, keys and values, padded. ROWS: of a thread, so that a tile has TY * ROWS
// places. TK: slots of a tile. TX: neighbouring lanes that share a row.
template <class T, int W, int ROWS, int TK, int TX>
__global__ void __launch_bounds__(TY* TX, blocks_at_a_time(sizeof(T), W, TY* TX)) tile_partial(TILE_ARGUMENTS(T, T)) {
    DYNAMIC_SHARED(raw);
    Room room = {raw};
    const PlainProducts<T, W, ROWS, TK, TX> products(room);
    run_tiles(Run<T, T> TILE_RUN, products, room);
}
