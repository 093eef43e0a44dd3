// Tiles on tensor cores, for float arrays whose entries were of half precision before the scale was shared between
// queries and keys: divided by their factors they are so again, exactly. A weight exp(logit - ref) is split in two
// terms of half precision, so that sums are those of float to 2^-17 of a weight (bfloat16), and rounded once, later.
// The denominator is summed in float.
#include "tile.cuh"
#include "mma.cuh"

// Rows of a tile times `factor`, two entries a word; 16 bytes more a row keep the rows of a matrix in banks apart.
template <class H, int W>
struct Halves {
    static constexpr int STRIDE = W + 8;
    unsigned short* at;
    float factor;

    __device__ __forceinline__ void put(int r, int c, float x) const {
        at[r * STRIDE + c] = (unsigned short)packed<H>(x * factor, 0.f);
    }
    __device__ __forceinline__ void put(int r, int c, const Four<float>& x) const {
        const Two words = {packed<H>(x.at[0] * factor, x.at[1] * factor),
                           packed<H>(x.at[2] * factor, x.at[3] * factor)};
        *reinterpret_cast<Two*>(at + r * STRIDE + c) = words;
    }
    __device__ __forceinline__ const void* get(int r, int c) const { return at + r * STRIDE + c; }

    struct alignas(8) Two {
        unsigned at[2];
    };
};

struct Factors {
    float query, key, scale;  // of queries and of keys to half precision, and of the products of these to logits
};

// A warp has 16 rows of the tile, and its lanes share them as the products of mma.cuh do.
template <class H, int W, int WARPS, int TK_>
struct TensorProducts {
    typedef float T;
    static constexpr int ROWS = 2, TK = TK_, TQ = 16 * WARPS, THREADS = 32 * WARPS, LANES = 4;
    static constexpr int SLOTS = TK / LANES, COLUMNS = W / LANES;
    static_assert(TK % 16 == 0 && W % 16 == 0, "tile");
    Halves<H, W> q, k, v;
    float scale;

    __device__ static __forceinline__ int first_row() { return threadIdx.x / 32 * 16; }
    __device__ static __forceinline__ int row(int i) {
        return first_row() + threadIdx.x % 32 / 4 + (MUT == 16 ? 4 : 8) * i;
    }
    __device__ static __forceinline__ int slot(int j) { return j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2; }
    __device__ static __forceinline__ int column(int c) { return slot(c); }

    __device__ __forceinline__ TensorProducts(Room& room, const Factors& factors)
        : q{room.take<unsigned short>(TQ * (W + 8)), factors.query},
          k{room.take<unsigned short>(TK * (W + 8)), factors.key},
          v{room.take<unsigned short>(TK * (W + 8)), 1.f}, scale(factors.scale) {}

    __device__ __forceinline__ void load_queries(const Run<float>& run, const Index* query_of) const {
        load_rows<W, THREADS>(q, run.query, query_of, TQ, run.dim, run.dim, run.is_aligned);
    }

    __device__ __forceinline__ void load_keys(const Run<float>& run, const Index* key_of) const {
        load_rows<W, THREADS>(k, run.key, key_of, TK, run.dim, run.dim, run.is_aligned);
        load_rows<W, THREADS>(v, run.value, key_of, TK, run.n_columns - 1, run.n_columns, false);
    }

    __device__ __forceinline__ void logits(int dim, float (&s)[ROWS][SLOTS]) const {
#pragma unroll
        for (int j = 0; j < SLOTS; j++) s[0][j] = s[1][j] = 0.f;
        const int lane = threadIdx.x % 32;
#pragma unroll 1
        for (int d = 0; d < dim; d += 16) {
            unsigned a[4], b[4];
            load_matrices(a, q.get(first_row() + lane % 16, d + lane / 16 * 8));
#pragma unroll
            for (int n = 0; n < SLOTS; n += 4) {  // 16 keys
                load_matrices(b, k.get(4 * n + lane % 8 + lane / 16 * 8, d + lane / 8 % 2 * 8));
                if (MUT == 19) b[1] = b[0];
                multiply_add<H>(s[0][n], s[0][n + 1], s[1][n], s[1][n + 1], a, b[0], b[1]);
                multiply_add<H>(s[0][n + 2], s[0][n + 3], s[1][n + 2], s[1][n + 3], a, b[2], b[3]);
            }
        }
#pragma unroll
        for (int j = 0; j < SLOTS; j++) {
            s[0][j] *= MUT == 18 ? 1.f : scale;
            s[1][j] *= MUT == 18 ? 1.f : scale;
        }
    }

    // The weights of a product stand where the next one takes them from: none goes through shared memory.
    __device__ __forceinline__ void add(const float (&x)[ROWS][SLOTS], int n_here, float (&sums)[ROWS][COLUMNS]) const {
        const int lane = threadIdx.x % 32;
#pragma unroll
        for (int j = 0; j < SLOTS; j += 4) {  // 16 keys
            if (4 * j >= n_here) break;
            unsigned high[4], low[4], b[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float first = x[r % 2][j + r / 2 * 2], second = x[r % 2][j + r / 2 * 2 + 1];
                high[r] = packed<H>(first, second);
                low[r] = packed<H>(first - unpacked<H>(high[r], 0), second - unpacked<H>(high[r], 1));
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c += 4) {  // 16 columns
                if (MUT == 20)
                    load_matrices(b, v.get(4 * j + lane % 16, 4 * c + lane / 16 * 8));
                else
                    load_transposed(b, v.get(4 * j + lane % 16, 4 * c + lane / 16 * 8));
#pragma unroll
                for (int n = 0; n < 2; n++) {
                    float *const above = sums[0] + c + 2 * n, *const below = sums[1] + c + 2 * n;
                    multiply_add<H>(above[0], above[1], below[0], below[1], high, b[2 * n], b[2 * n + 1]);
                    if (MUT != 17)
                        multiply_add<H>(above[0], above[1], below[0], below[1], low, b[2 * n], b[2 * n + 1]);
                }
            }
        }
    }
};

// H: Float16 or BFloat16. W: columns of queries, keys and values, padded. WARPS: of 16 places each. TK: slots of a tile.
// With what is said in tile.cuh: query * query_factor and key * key_factor are of half precision, and so are values;
// logits are `scale` times the products of these.
template <class H, int W, int WARPS, int TK>
__global__ void __launch_bounds__(32 * WARPS, 384 / (32 * WARPS))
    tile_partial_half(TILE_ARGUMENTS(float), float query_factor, float key_factor, float scale) {
#if HAS_MMA
    DYNAMIC_SHARED(raw);
    Room room = {raw};
    const TensorProducts<H, W, WARPS, TK> products(room, Factors{query_factor, key_factor, scale});
    run_tiles(Run<float> TILE_RUN, products, room);
#else
    __trap();
#endif
}
