// Norms of all gradients of a network, and gradients clipped by them, in one launch. T is float or double.
//
//   E members     each has a row of every gradient, and a norm of its own; an only network is one member
//   G gradients   gradient g has rows of size[g] entries, one after the other
//   chunks        a row is cut in pieces of `chunk` entries, the first of which is number first[g] of its member's;
//                 the blocks share all E * chunks of them, and a sum is over chunks in order, whatever block has them:
//                 the same to the last bit on every device, and for a member what it is alone
// Grid: (1, blocks), all of which there are at the same time (a cooperative launch).
typedef BPTT_T T;
constexpr int MOST = BPTT_MOST, THREADS = BPTT_THREADS, WARPS = THREADS / 32;
constexpr unsigned EVERYONE = 0xffffffffu;

namespace {

struct Gradients {
    const T* array[MOST];
    long long size[MOST];
    unsigned first[MOST];
    unsigned place[MOST];       // where the clipped gradient is, in units of BPTT_UNIT entries
    long long chunk;
    int count, members, chunks;
};

// ---- what is kept of many entries ------------------------------------------------------------------------

// The largest absolute value. As whole numbers absolute values have the same order, and what is no number is above all.
struct Largest {
    unsigned long long bits;

    static __device__ Largest none() { return {0}; }
    __device__ void take(T x) {
        join({sizeof(T) == 4 ? __float_as_uint((float)x) & 0x7fffffffu
                             : (unsigned long long)__double_as_longlong((double)x) & 0x7fffffffffffffffull});
    }
    __device__ void join(Largest other) { bits = bits > other.bits ? bits : other.bits; }
    __device__ Largest of_lane(int mask) const { return {__shfl_xor_sync(EVERYONE, bits, mask)}; }
    static __device__ Largest at(const Largest* where) { return {__ldcg(&where->bits)}; }
    __device__ T value() const {
        return sizeof(T) == 4 ? (T)__uint_as_float((unsigned)bits) : (T)__longlong_as_double((long long)bits);
    }
};

// The sum of squares: as float64 holds the square of every float32, or with large and small ones scaled.
struct Squares {
    double sum;
#if BPTT_DOUBLE
    double large, small;
    static constexpr double UP = 0x1p600, DOWN = 0x1p-600;      // exact factors, whose squares are none

    static __device__ Squares none() { return {0, 0, 0}; }
    __device__ void take(T x) {
        const double size = fabs(x);
        if (size > 0x1p480) large += (x * DOWN) * (x * DOWN);
        else if (size < 0x1p-480) small += (x * UP) * (x * UP);
        else sum += x * x;                          // and what is no number
    }
    __device__ void join(Squares other) { sum += other.sum, large += other.large, small += other.small; }
    __device__ Squares of_lane(int mask) const {
        return {__shfl_xor_sync(EVERYONE, sum, mask), __shfl_xor_sync(EVERYONE, large, mask),
                __shfl_xor_sync(EVERYONE, small, mask)};
    }
    static __device__ Squares at(const Squares* where) {
        return {__ldcg(&where->sum), __ldcg(&where->large), __ldcg(&where->small)};
    }
    __device__ double scale() const { return large > 0 ? UP : sum == 0 ? DOWN : 1; }
    __device__ double root() const {
        return sqrt(large > 0 ? large + sum * DOWN * DOWN : sum == 0 ? small : sum + small * DOWN * DOWN);
    }
#else
    static __device__ Squares none() { return {0}; }
    __device__ void take(T x) { sum += (double)x * (double)x; }
    __device__ void join(Squares other) { sum += other.sum; }
    __device__ Squares of_lane(int mask) const { return {__shfl_xor_sync(EVERYONE, sum, mask)}; }
    static __device__ Squares at(const Squares* where) { return {__ldcg(&where->sum)}; }
    __device__ double scale() const { return 1; }
    __device__ double root() const { return sqrt(sum); }
#endif
    __device__ double norm() const { return scale() * root(); }
    // Of a gradient clipped by this norm: exactly 1 where it is no larger than the bound; root and scale one after the
    // other, since their product may overflow.
    __device__ T factor(double max_norm) const { return (T)(norm() <= max_norm ? 1 : max_norm / root() / scale()); }
};

// ---- of a warp, of a block, of the grid ------------------------------------------------------------------

template <class V> __device__ V over_warp(V v) {
    for (int mask = 16; mask; mask >>= 1) v.join(v.of_lane(mask));
    return v;
}

// Every thread has the result.
template <class V> __device__ V over_block(V v) {
    __shared__ V of_warps[WARPS];
    v = over_warp(v);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = v;
    __syncthreads();
    V all = V::none();
    for (int warp = 0; warp < WARPS; ++warp) all.join(of_warps[warp]);
    __syncthreads();
    return all;
}

// Nobody goes on before all blocks are here. All together add 2^31, so that only the highest bit of the word is another
// then, and the word is ready for the next time, of a grid of any size.
__device__ void everybody(unsigned* word) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const unsigned before = atomicAdd(word, blockIdx.y == 0 ? 0x80000000u - (gridDim.y - 1) : 1u);
        while (((*(volatile unsigned*)word ^ before) & 0x80000000u) == 0) {}
        __threadfence();
    }
    __syncthreads();
}

// ---- chunks ----------------------------------------------------------------------------------------------

struct Chunk {
    int g;
    long long begin, end;       // entries from the beginning of a row
};

__device__ Chunk chunk_of(const Gradients& gradients, unsigned c) {
    int g = 0, end = gradients.count;       // the last gradient that begins at this chunk or before it
    while (end - g > 1) {
        const int middle = (g + end) / 2;
        if (gradients.first[middle] <= c) g = middle; else end = middle;
    }
    const long long begin = (c - gradients.first[g]) * gradients.chunk, size = gradients.size[g];
    return {g, begin, begin + gradients.chunk < size ? begin + gradients.chunk : size};
}

// The chunks of this block, of E * chunks.
__device__ long long begin_of(const Gradients& gradients, unsigned block) {
    return (long long)gradients.members * gradients.chunks * block / gridDim.y;
}

template <class V> __device__ void write_parts(const Gradients& gradients, V* parts) {
    const long long last = begin_of(gradients, blockIdx.y + 1);
    for (long long k = begin_of(gradients, blockIdx.y); k < last; ++k) {
        const Chunk chunk = chunk_of(gradients, k % gradients.chunks);
        const T* row = gradients.array[chunk.g] + k / gradients.chunks * gradients.size[chunk.g];
        V v = V::none();
        long long i = chunk.begin + threadIdx.x;
        for (; i + 3 * THREADS < chunk.end; i += 4 * THREADS) {     // four at a time are on their way
            const T a = row[i], b = row[i + THREADS], c = row[i + 2 * THREADS], d = row[i + 3 * THREADS];
            v.take(a), v.take(b), v.take(c), v.take(d);
        }
        for (; i < chunk.end; i += THREADS) v.take(row[i]);
        v = over_block(v);
        if (threadIdx.x == 0) parts[k] = v;
    }
}

__device__ Squares of_member(const Gradients& gradients, const Squares* parts, int e) {
    Squares v = Squares::none();
    for (int c = threadIdx.x; c < gradients.chunks; c += THREADS)
        v.join(Squares::at(parts + (long long)e * gradients.chunks + c));
    return over_block(v);
}

}  // namespace

// ---- kernels ---------------------------------------------------------------------------------------------

// found: (G, E)
extern "C" __global__ void __launch_bounds__(THREADS)
largest_entries(const Gradients gradients, Largest* parts, unsigned* word, T* found) {
    write_parts(gradients, parts);
    everybody(word);
    const long long rows = (long long)gradients.count * gradients.members;
    for (long long row = blockIdx.y * WARPS + threadIdx.x / 32; row < rows; row += (long long)gridDim.y * WARPS) {
        const int g = row / gradients.members, e = row % gradients.members;
        const int last = g + 1 < gradients.count ? gradients.first[g + 1] : gradients.chunks;
        Largest v = Largest::none();
        for (int c = gradients.first[g] + threadIdx.x % 32; c < last; c += 32)
            v.join(Largest::at(parts + (long long)e * gradients.chunks + c));
        v = over_warp(v);
        if (threadIdx.x % 32 == 0) found[row] = v.value();
    }
}

// found: (E,)
extern "C" __global__ void __launch_bounds__(THREADS)
global_norm(const Gradients gradients, Squares* parts, unsigned* word, T* found) {
    write_parts(gradients, parts);
    everybody(word);
    for (int e = blockIdx.y; e < gradients.members; e += gridDim.y) {
        const Squares v = of_member(gradients, parts, e);
        if (threadIdx.x == 0) found[e] = (T)v.norm();
    }
}

// clipped: gradient g at place[g], with its rows one after the other
extern "C" __global__ void __launch_bounds__(THREADS)
clip(const Gradients gradients, Squares* parts, unsigned* word, T* clipped, double max_norm) {
    write_parts(gradients, parts);
    everybody(word);
    const long long last = begin_of(gradients, blockIdx.y + 1);
    int of = -1;                // the member that the factor is of
    T factor = 1;
    for (long long k = begin_of(gradients, blockIdx.y); k < last; ++k) {
        const int e = k / gradients.chunks;
        if (e != of) factor = of_member(gradients, parts, of = e).factor(max_norm);
        const Chunk chunk = chunk_of(gradients, k % gradients.chunks);
        const long long row = e * gradients.size[chunk.g];
        const T* from = gradients.array[chunk.g] + row;
        T* to = clipped + (long long)gradients.place[chunk.g] * BPTT_UNIT + row;
        #pragma unroll 4
        for (long long i = chunk.begin + threadIdx.x; i < chunk.end; i += THREADS)
            to[i] = factor == 1 ? from[i] : from[i] * factor;       // as it is, however small
    }
}
