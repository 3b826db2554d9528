// A whole segment of a recurrent layer in one launch each way, for any cell: what a unit does in a step stands in functions
// that text.py writes from the cell's Python text, where it says CELL below. Constants of a layout come as macros BPTT_...:
//   T       float | double                     H    hidden units
//   OB      blocks that share a group of rows: each has 1/OB of the units and their weights
//   NB      sequences of a group of rows
//   UT      units of a thread                  KS   threads that share a sum (a power of two, at most 32)
//   KR      of the KC vectors of each weight row of a thread, how many are in registers; the others are in shared memory
//   TH      threads of a block                 PF   steps of prefetch
//   STAGED  whether the weights, backward, come by way of shared memory
// Grid: (OB, groups of rows, members and directions E). Arrays over time are (S, E, N, ...), E before N.
//
// In a step a group of KS threads forms the sums of UT units, all gates of each, for NB sequences; the row of states that it
// multiplies by is in shared memory, its part of the weights in registers. Then each of the KS threads has some of these
// sums (sequence, unit) whole, and computes the cell for them: the same in every step, so that c, dh and dc stay with it.
// With OB = 1 the next row is handed on through shared memory, one __syncthreads a step. Otherwise through global memory,
// with a barrier of the OB blocks: rows of different groups never wait for each other.
typedef BPTT_T T;
constexpr int H = BPTT_H, OB = BPTT_OB, NB = BPTT_NB, UT = BPTT_UT, KS = BPTT_KS, KR = BPTT_KR, TH = BPTT_TH, PF = BPTT_PF;
constexpr int VEC = 16 / (int)sizeof(T);
constexpr int UB = (H + OB - 1) / OB;                      // units of a block
constexpr int ITEMS = NB * UT;                             // (sequence, unit) pairs of the KS threads of a sum
constexpr int OWN = (ITEMS + KS - 1) / KS;                 // of which a thread has at most so many after the sum
constexpr int BUFFERS = OB == 1 ? 2 : 1;                   // with a barrier of blocks between reading and writing one is enough
struct alignas(16) V { T v[VEC]; };

__host__ __device__ constexpr int vectors(int K) { return (K + VEC * KS - 1) / (VEC * KS); }
__host__ __device__ constexpr int padded(int K) { return vectors(K) * VEC * KS; }

/* CELL */

// The part of a matrix M (outputs x K) that a thread multiplies by: R rows, and of each the vectors ks, ks + KS, ...
template <int R, int K> struct Weights {
    static constexpr int KC = vectors(K), INREG = KR < KC ? KR : KC;
    V reg[R][INREG > 0 ? INREG : 1];
    const V* shared;
    V* store;
    __device__ __forceinline__ Weights(V* at) : shared(at + threadIdx.x), store(at) {}
    __device__ __forceinline__ void put(int r, int c, const V& w) {
        if (c < INREG) reg[r][c < INREG ? c : 0] = w;
        else store[((c - INREG) * R + r) * TH + threadIdx.x] = w;
    }
    // vector(r, k): numbers k to k + VEC - 1 of row r of this thread, zeros past K
    template <class F> __device__ __forceinline__ void load(F vector) {
#pragma unroll
        for (int r = 0; r < R; r++)
#pragma unroll
            for (int c = 0; c < KC; c++) put(r, c, vector(r, (c * KS + (int)threadIdx.x % KS) * VEC));
    }
    // sum[n][r] += over this thread's k of M[r][k] a[n][k]
    __device__ __forceinline__ void multiply(T (&sum)[NB][R], const T* a) const {
        const V* rows = (const V*)a + threadIdx.x % KS;
#pragma unroll
        for (int c = 0; c < KC; c++) {
            V w[R];
#pragma unroll
            for (int r = 0; r < R; r++) w[r] = c < INREG ? reg[r][c < INREG ? c : 0] : shared[((c - INREG) * R + r) * TH];
#pragma unroll
            for (int n = 0; n < NB; n++) {
                V x = rows[n * (padded(K) / VEC) + c * KS];
#pragma unroll
                for (int r = 0; r < R; r++)
#pragma unroll
                    for (int i = 0; i < VEC; i++) sum[n][r] += w[r].v[i] * x.v[i];
            }
        }
    }
};

// Sums over the KS threads: in each of log2(KS) exchanges a thread gives away half of the results it has, and gets
// the other's part of the half that it keeps, until it has OWN of them or one.
template <int P_> __device__ __forceinline__ void add_up(T (&v)[ITEMS][P_]) {
    int n = ITEMS;
#pragma unroll
    for (int m = KS / 2; m >= 1; m /= 2) {
        const bool up = threadIdx.x & m;
        const int half = (n + 1) / 2;
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
            if (i < half)
#pragma unroll
                for (int p = 0; p < P_; p++) {
                    if (n == 1) v[i][p] += __shfl_xor_sync(0xffffffffu, v[i][p], m);
                    else {
                        T other = i + half < n ? v[i + half < ITEMS ? i + half : 0][p] : (T)0;
                        T give = up ? v[i][p] : other, keep = up ? other : v[i][p];
                        v[i][p] = keep + __shfl_xor_sync(0xffffffffu, give, m);
                    }
                }
        n = half;
    }
}
// Which items those are: from `first` to before `last`. Where several threads have the same, one is its owner.
__device__ __forceinline__ void own_items(int& first, int& last) {
    int n = ITEMS;
    first = 0; last = ITEMS;
#pragma unroll
    for (int m = KS / 2; m >= 1; m /= 2) {
        const bool up = threadIdx.x & m;
        if (n > 1) {
            n = (n + 1) / 2;
            if (up) first += n; else last = min(last, first + n);
        } else if (up) last = first;
    }
}

// All OB blocks of a group of rows are here. The OB additions of a barrier flip the highest bit of `count` and leave the
// others 0, so it is ready for the next one, of this launch or another with any number of groups.
__device__ __forceinline__ void barrier(unsigned* count) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        const unsigned before = atomicAdd(count, blockIdx.x == 0 ? 0x80000000u - (OB - 1) : 1u);
        while (((before ^ *(volatile unsigned*)count) & 0x80000000u) == 0) ;
        __threadfence();
    }
    __syncthreads();
}
// Rows of width K from global memory, written by other blocks of this launch, times a mask, to the padded rows of a.
template <int K> __device__ __forceinline__ void fetch(T* a, const T* from, const T* mask, int rows) {
    for (int i = threadIdx.x; i < NB * K; i += TH) {
        int n = i / K, k = i % K;
        if (n < rows) a[n * padded(K) + k] = __ldcg(from + (size_t)n * K + k) * (mask ? mask[(size_t)n * K + k] : (T)1);
    }
}

struct Item { int n, unit; bool mine; size_t at; };     // at: n * H + unit within a step's rows
__device__ __forceinline__ Item item(int j, int unit0, int rows) {
    Item i;
    int first, last;
    own_items(first, last);
    int k = first + j;
    i.n = k / UT;
    i.unit = unit0 + k % UT;
    i.mine = k < last && i.n < rows && i.unit < H && i.unit < (int)(blockIdx.x + 1) * UB;
    i.at = (size_t)i.n * H + i.unit;
    return i;
}

#if !BPTT_BACKWARD
// h0, c0 (E, N, H): the states before the segment, which become rows 0 of hs, cs (S+1, E, N, H); the last rows go to h_last,
// c_last (E, N, H) too. z (S, E, N, G*H); of a cell that works in place z is in rows 1.. of hs. kept (S, K, E, N, H).
// W (E, G*H, H). mask (E, N, H) or null: what multiplies h before its product.
extern "C" __global__ void __launch_bounds__(TH, 1)
forward(T* hs, T* cs, const T* __restrict__ h0, const T* __restrict__ c0, T* h_last, T* c_last, const T* z, T* kept,
        const T* __restrict__ W, const T* __restrict__ mask, int S, int E, int N, unsigned* counts OWN_PARAMETERS) {
    extern __shared__ V memory[];
    T* a = (T*)memory;                                   // [BUFFERS][NB][padded(H)]
    const int group = threadIdx.x / KS, unit0 = blockIdx.x * UB + group * UT, e = blockIdx.z, n0 = blockIdx.y * NB;
    const int rows = N - n0 < NB ? N - n0 : NB;
    const size_t step = (size_t)E * N * H, begin = ((size_t)e * N + n0) * H;
    W += (size_t)e * G * H * H;
    hs += begin; h0 += begin; h_last += begin;
    if (mask) mask += begin;
    if (HAS_C) { cs += begin; c0 += begin; c_last += begin; }
    if (K) kept += begin;
    if (!IN_PLACE) z += begin * G;
    Weights<UT * G, H> w(memory + BUFFERS * NB * padded(H) / VEC);
    const int limit = (int)(blockIdx.x + 1) * UB < H ? (int)(blockIdx.x + 1) * UB : H;
    w.load([&](int r, int k) {
        const int unit = unit0 + r / G;
        const T* from = W + (size_t)(r % G * H + unit) * H + k;
        V v;
        if (H % VEC == 0) {                              // rows begin at 16 bytes
            if (unit < limit && k < H) return *(const V*)from;
#pragma unroll
            for (int i = 0; i < VEC; i++) v.v[i] = 0;
            return v;
        }
#pragma unroll
        for (int i = 0; i < VEC; i++) v.v[i] = unit < limit && k + i < H ? from[i] : (T)0;
        return v;
    });
    for (int i = threadIdx.x; i < BUFFERS * NB * padded(H); i += TH) {
        int n = i / padded(H), k = i % padded(H);
        a[i] = n < rows && k < H ? h0[(size_t)n * H + k] * (mask ? mask[(size_t)n * H + k] : (T)1) : (T)0;
    }
    Item it[OWN];
    T h_before[OWN], c_before[OWN], factor[OWN], own[OWN][P], next[PF][OWN][LF];
    const T* zs = IN_PLACE ? hs + step : z;
    const size_t zstep = IN_PLACE ? step : step * G;
    auto load_z = [&](int t, T (&to)[OWN][LF]) {
#pragma unroll
        for (int j = 0; j < OWN; j++) read_forward(to[j], it[j].mine && t < S, zs + t * zstep + (size_t)it[j].n * G * H + it[j].unit);
    };
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        it[j] = item(j, unit0, rows);
        h_before[j] = it[j].mine ? h0[it[j].at] : (T)0;
        c_before[j] = HAS_C && it[j].mine ? c0[it[j].at] : (T)0;
        factor[j] = mask && it[j].mine ? mask[it[j].at] : (T)1;
        if (it[j].mine) hs[it[j].at] = h_before[j];
        if (HAS_C && it[j].mine) cs[it[j].at] = c_before[j];
        read_own(own[j], it[j].mine, e, it[j].unit OWN_ARGUMENTS);
    }
#pragma unroll
    for (int p = 0; p < PF; p++) load_z(p, next[p]);
    __syncthreads();
    for (int t0 = 0; t0 < S; t0 += PF) {
#pragma unroll
        for (int p = 0; p < PF; p++) {
            const int t = t0 + p;
            if (t >= S) break;
            const T* now = a + (t & (BUFFERS - 1)) * NB * padded(H);
            T* then = a + (~t & (BUFFERS - 1)) * NB * padded(H);
            T sum[NB][UT * G];
#pragma unroll
            for (int n = 0; n < NB; n++)
#pragma unroll
                for (int r = 0; r < UT * G; r++) sum[n][r] = 0;
            w.multiply(sum, now);
            T (&v)[ITEMS][G] = (T (&)[ITEMS][G])sum;
            add_up(v);
            T x[OWN][LF];
#pragma unroll
            for (int j = 0; j < OWN; j++)
#pragma unroll
                for (int l = 0; l < LF; l++) x[j][l] = next[p][j][l];
            load_z(t + PF, next[p]);
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                T h, c = 0, keep[K ? K : 1];
                cell_forward(v[j], x[j], h_before[j], c_before[j], own[j], h, c, keep);
                h_before[j] = h; c_before[j] = c;
                if (it[j].mine) {
                    const size_t at = (t + 1) * step + it[j].at;
                    hs[at] = h;
                    if (HAS_C) cs[at] = c;
                    if (t + 1 == S) {
                        h_last[it[j].at] = h;
                        if (HAS_C) c_last[it[j].at] = c;
                    }
#pragma unroll
                    for (int k = 0; k < K; k++) kept[((size_t)t * K + k) * step + it[j].at] = keep[k];
                    if (OB == 1) then[it[j].n * padded(H) + it[j].unit] = h * factor[j];
                }
            }
            if (OB == 1) __syncthreads();
            else if (t + 1 < S) {
                barrier(counts + 32 * (e * gridDim.y + blockIdx.y));
                fetch<H>(then, hs + (t + 1) * step, mask, rows);
                __syncthreads();
            }
        }
    }
}

#else
// dhs, dcs (S+1, E, N, H): direct parts in, but of row 0, which has none; out come the totals. dcs has direct parts only where
// direct_c. dh_after, dc_after (E, N, H) or null: what later steps hand to the last row. What goes to the state before the
// segment comes out in dh_first, dc_first (E, N, H), and not in row 0; dz (S, E, N, G*H) and extra (X, S, E, N, H), what
// finish_ needs, come out.
extern "C" __global__ void __launch_bounds__(TH, 1)
backward(T* dhs, T* dcs, const T* __restrict__ dh_after, const T* __restrict__ dc_after, int direct_c, T* dh_first, T* dc_first,
         T* dz, T* extra, const T* hs, const T* cs, const T* kept, const T* __restrict__ W, const T* __restrict__ mask, int S,
         int E, int N, unsigned* counts OWN_PARAMETERS) {
    extern __shared__ V memory[];
    T* a = (T*)memory;                                   // [BUFFERS][NB][padded(G*H)]
    const int group = threadIdx.x / KS, unit0 = blockIdx.x * UB + group * UT, e = blockIdx.z, n0 = blockIdx.y * NB;
    const int rows = N - n0 < NB ? N - n0 : NB;
    const size_t step = (size_t)E * N * H, begin = ((size_t)e * N + n0) * H;
    W += (size_t)e * G * H * H;
    dhs += begin; hs += begin; dz += begin * G; dh_first += begin;
    if (dh_after) dh_after += begin;
    if (dc_after) dc_after += begin;
    if (mask) mask += begin;
    if (HAS_C) { dcs += begin; cs += begin; dc_first += begin; }
    if (X) extra += begin;
    if (K) kept += begin;
    constexpr int PITCH = UB + 1, TILE = BPTT_STAGED ? KS * VEC * PITCH : 0, ROWS = BUFFERS * NB * padded(G * H);
    Weights<UT, G * H> w(memory + ((ROWS > TILE ? ROWS : TILE) + VEC - 1) / VEC);
    const int limit = (int)(blockIdx.x + 1) * UB < H ? (int)(blockIdx.x + 1) * UB : H;
    if (BPTT_STAGED) {                                   // rows of W one after the other, and each thread picks its columns
#pragma unroll
        for (int c = 0; c < vectors(G * H); c++) {
            for (int i = threadIdx.x; i < KS * VEC * UB; i += TH) {
                const int k = c * KS * VEC + i / UB, unit = blockIdx.x * UB + i % UB;
                a[i / UB * PITCH + i % UB] = k < G * H && unit < limit ? W[(size_t)k * H + unit] : (T)0;
            }
            __syncthreads();
#pragma unroll
            for (int r = 0; r < UT; r++) {
                V v;
#pragma unroll
                for (int i = 0; i < VEC; i++)
                    v.v[i] = group * UT + r < UB ? a[((int)threadIdx.x % KS * VEC + i) * PITCH + group * UT + r] : (T)0;
                w.put(r, c, v);
            }
            __syncthreads();
        }
    } else
        w.load([&](int r, int k) {
            const int unit = unit0 + r;
            V v;
#pragma unroll
            for (int i = 0; i < VEC; i++) v.v[i] = unit < limit && k + i < G * H ? W[(size_t)(k + i) * H + unit] : (T)0;
            return v;
        });
    for (int i = threadIdx.x; i < ROWS; i += TH) a[i] = (T)0;
    Item it[OWN];
    T dh[OWN], dc[OWN], factor[OWN], own[OWN][P], next[PF][OWN][LB];
    auto load = [&](int t, T (&to)[OWN][LB]) {
#pragma unroll
        for (int j = 0; j < OWN; j++) {
            const size_t at = t * step + it[j].at;
            const bool ok = it[j].mine && t >= 0, direct = it[j].mine && t > 0;
            read_backward(to[j], ok, direct, direct && direct_c, dhs + at, dcs + at, hs + at, hs + at + step, cs + at,
                          cs + at + step, kept + (size_t)t * K * step + it[j].at, step);
        }
    };
#pragma unroll
    for (int j = 0; j < OWN; j++) {
        it[j] = item(j, unit0, rows);
        const size_t last = S * step + it[j].at;
        dh[j] = it[j].mine ? dhs[last] + (dh_after ? dh_after[it[j].at] : (T)0) : (T)0;
        dc[j] = HAS_C && it[j].mine ? (direct_c ? dcs[last] : (T)0) + (dc_after ? dc_after[it[j].at] : (T)0) : (T)0;
        factor[j] = mask && it[j].mine ? mask[it[j].at] : (T)1;
        if (it[j].mine) dhs[last] = dh[j];
        read_own(own[j], it[j].mine, e, it[j].unit OWN_ARGUMENTS);
    }
#pragma unroll
    for (int p = 0; p < PF; p++) load(S - 1 - p, next[p]);
    __syncthreads();
    for (int t0 = 0; t0 < S; t0 += PF) {
#pragma unroll
        for (int p = 0; p < PF; p++) {
            const int t = S - 1 - t0 - p;
            if (t < 0) break;
            T* now = a + (t & (BUFFERS - 1)) * NB * padded(G * H);
            T x[OWN][LB], carry[OWN][CARRY];
#pragma unroll
            for (int j = 0; j < OWN; j++)
#pragma unroll
                for (int l = 0; l < LB; l++) x[j][l] = next[p][j][l];
            load(t - PF, next[p]);
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                T d[G], dc_total, more[X ? X : 1];
                cell_before(x[j], dh[j], dc[j], own[j], d, carry[j], dc_total, more);
                if (it[j].mine) {
                    if (HAS_C) dcs[(t + 1) * step + it[j].at] = dc_total;
#pragma unroll
                    for (int i = 0; i < X; i++) extra[((size_t)i * S + t) * step + it[j].at] = more[i];
#pragma unroll
                    for (int g = 0; g < G; g++) {
                        dz[t * step * G + ((size_t)it[j].n * G + g) * H + it[j].unit] = d[g];
                        if (OB == 1) now[it[j].n * padded(G * H) + g * H + it[j].unit] = d[g];
                    }
                }
            }
            if (OB > 1) {
                barrier(counts + 32 * (e * gridDim.y + blockIdx.y));
                fetch<G * H>(now, dz + t * step * G, nullptr, rows);
            }
            __syncthreads();
            T sum[NB][UT];
#pragma unroll
            for (int n = 0; n < NB; n++)
#pragma unroll
                for (int r = 0; r < UT; r++) sum[n][r] = 0;
            w.multiply(sum, now);
            T (&v)[ITEMS][1] = (T (&)[ITEMS][1])sum;
            add_up(v);
#pragma unroll
            for (int j = 0; j < OWN; j++) {
                cell_after(v[j][0] * factor[j], carry[j], own[j], dh[j], dc[j]);
                if (it[j].mine) {
                    if (t > 0) dhs[t * step + it[j].at] = dh[j];
                    else {
                        dh_first[it[j].at] = dh[j];
                        if (HAS_C) dc_first[it[j].at] = dc[j];
                    }
                }
            }
        }
    }
}
#endif
