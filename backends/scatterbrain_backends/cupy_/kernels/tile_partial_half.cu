// Tiles on tensor cores, for arrays whose entries were of half precision before the scale was shared between queries
// and keys: divided by their factors they are so again, exactly. Keys and values, which many tiles read, come as such
// rows (half_rows.cu); queries come as floats, as those of a tile are often gathered for it alone. A weight
// exp(logit - ref) is split in two terms of half precision, so that sums are those of float to 2^-17 of a weight
// (bfloat16), and rounded once, later; of float16 it is 2^15 times as large, as small ones would be subnormal or none.
// The denominator is summed in float.
#include "tile.cuh"
#include "mma.cuh"

// Rows of a tile, two entries a word; 16 bytes more a row keep the rows of a matrix in banks apart.
template <int W>
struct Halves {
    static constexpr int STRIDE = W + 8;
    unsigned short* at;

    __device__ __forceinline__ void put(int r, int c, const Four<unsigned>& x) const {
        *reinterpret_cast<Four<unsigned>*>(at + r * STRIDE + c) = x;
    }
    __device__ __forceinline__ const void* get(int r, int c) const { return at + r * STRIDE + c; }
};

// The same, of floats times `factor`.
template <class H, int W>
struct Rounded : Halves<W> {
    float factor;

    __device__ __forceinline__ Rounded(unsigned short* room, float factor) : Halves<W>{room}, factor(factor) {}
    __device__ __forceinline__ void put(int r, int c, float x) const {
        this->at[r * this->STRIDE + c] = (unsigned short)packed<H>(x * factor, 0.f);
    }
    __device__ __forceinline__ void put(int r, int c, const Four<float>& x) const {
        const Two words = {packed<H>(x.at[0] * factor, x.at[1] * factor),
                           packed<H>(x.at[2] * factor, x.at[3] * factor)};
        *reinterpret_cast<Two*>(this->at + r * this->STRIDE + c) = words;
    }

    struct alignas(8) Two {
        unsigned at[2];
    };
};

// Rows of half precision into shared memory, 16 bytes at a time, row_of[r] < 0 and columns from `stride` on as zeros.
template <int W, int THREADS>
__device__ __forceinline__ void load_halves(const Halves<W>& to, const HalfBits* from, const Index* row_of, int n_rows,
                                            int stride) {
    constexpr int ROW = W / 8, AT_ONCE = THREADS / ROW;
    if (threadIdx.x >= ROW * AT_ONCE) return;
    const int c = threadIdx.x % ROW * 8;
#pragma unroll 4
    for (int r = threadIdx.x / ROW; r < n_rows; r += AT_ONCE) {
        const Index row = row_of[r];
        if ((MUT == 12 && c >= stride) || (MUT == 13 && row < 0)) continue;
        Four<unsigned> x = {};
        if (row >= 0 && c < stride) x = four(reinterpret_cast<const unsigned*>(from + start_of(row, stride) + c));
        to.put(r, c, x);
    }
}

// Of weights, which are 1 at most: 1 is near the largest number.
template <class H>
struct WeightUnit {
    static constexpr float VALUE = 1.f;
};
template <>
struct WeightUnit<Float16> {
    static constexpr float VALUE = 32768.f;
};

struct Halved {
    const HalfBits* value;
    int key_stride, value_stride;
    float query_factor, scale;  // of queries to half precision, and of its products to logits
};

// A warp has 16 rows of the tile, and its lanes share them as the products of mma.cuh do.
template <class H, int W, int WARPS, int TK_>
struct TensorProducts {
    typedef float T;
    typedef Run<float, HalfBits> Input;
    static constexpr int ROWS = 2, TK = TK_, TQ = 16 * WARPS, THREADS = 32 * WARPS, LANES = 4;
    static constexpr int SLOTS = TK / LANES, COLUMNS = W / LANES;
    static constexpr float UNIT = WeightUnit<H>::VALUE;
    static_assert(TK % 16 == 0 && W % 16 == 0, "tile");
    Rounded<H, W> q;
    Halves<W> k, v;
    Halved halved;

    __device__ static __forceinline__ int first_row() { return threadIdx.x / 32 * 16; }
    __device__ static __forceinline__ int row(int i) {
        return first_row() + threadIdx.x % 32 / 4 + (MUT == 16 ? 4 : 8) * i;
    }
    __device__ static __forceinline__ int slot(int j) { return j / 2 * 8 + threadIdx.x % 4 * 2 + j % 2; }
    __device__ static __forceinline__ int column(int c) { return slot(c); }

    __device__ __forceinline__ TensorProducts(Room& room, const Halved& halved)
        : q(room.take<unsigned short>(TQ * (W + 8)), halved.query_factor),
          k{room.take<unsigned short>(TK * (W + 8))}, v{room.take<unsigned short>(TK * (W + 8))}, halved(halved) {}

    __device__ __forceinline__ void load_queries(const Input& run, const Index* query_of) const {
        load_rows<W, THREADS>(q, run.query, query_of, TQ, run.dim, run.dim, run.is_aligned);
    }

    __device__ __forceinline__ void load_keys(const Input& run, const Index* key_of) const {
        load_halves<W, THREADS>(k, run.key, key_of, TK, halved.key_stride);
        load_halves<W, THREADS>(v, halved.value, key_of, TK, halved.value_stride);
    }

    __device__ __forceinline__ void logits(int dim, float (&s)[ROWS][SLOTS]) const {
#pragma unroll
        for (int j = 0; j < SLOTS; j++) s[0][j] = s[1][j] = 0.f;
        const int lane = threadIdx.x % 32;
        __syncwarp();
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
            s[0][j] *= MUT == 18 ? 1.f : halved.scale;
            s[1][j] *= MUT == 18 ? 1.f : halved.scale;
        }
    }

    // The weights of a product stand where the next one takes them from: none goes through shared memory. Products
    // of 16 keys are added by the lanes: to the sum of all, tensor cores would round each towards zero.
    __device__ __forceinline__ void add(const float (&x)[ROWS][SLOTS], int n_here, float (&sums)[ROWS][COLUMNS]) const {
        const int lane = threadIdx.x % 32;
        const float unit = MUT == 22 ? 1.f : UNIT;
        __syncwarp();
#pragma unroll
        for (int j = 0; j < SLOTS; j += 4) {  // 16 keys
            if (4 * j >= n_here) break;
            unsigned high[4], low[4], b[4];
#pragma unroll
            for (int r = 0; r < 4; r++) {
                const float first = x[r % 2][j + r / 2 * 2] * unit, second = x[r % 2][j + r / 2 * 2 + 1] * unit;
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
                for (int n = 0; n < 4; n += 2) {
                    float here[4] = {};
                    if (MUT != 17) multiply_add<H>(here[0], here[1], here[2], here[3], low, b[n], b[n + 1]);
                    multiply_add<H>(here[0], here[1], here[2], here[3], high, b[n], b[n + 1]);
#pragma unroll
                    for (int i = 0; i < 4; i++) sums[i / 2][c + n + i % 2] += here[i] * (UNIT / unit);
                }
            }
        }
    }
};

// H: Float16 or BFloat16. W: columns of queries, keys and values, padded. WARPS: of 16 places each. TK: slots of a tile.
// With what is said in tile.cuh: key (n_keys, key_stride) and halves (n_keys, value_stride), the values, are rows of half
// precision; of `value` the weights alone are read; query * query_factor is of half precision too, and logits are
// `scale` times the products.
template <class H, int W, int WARPS, int TK>
__global__ void __launch_bounds__(32 * WARPS, (W > 96 && TK > 32 ? 256 : 384) / (32 * WARPS))
    tile_partial_half(TILE_ARGUMENTS(float, HalfBits), const HalfBits* __restrict__ halves, int key_stride,
                      int value_stride, float query_factor, float scale) {
#if HAS_MMA
    DYNAMIC_SHARED(raw);
    Room room = {raw};
    const TensorProducts<H, W, WARPS, TK> products(
        room, Halved{halves, key_stride, value_stride, query_factor, scale});
    run_tiles(Run<float, HalfBits> TILE_RUN, products, room);
#else
    __trap();
#endif
}
