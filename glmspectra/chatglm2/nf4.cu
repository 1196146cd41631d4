// NF4 weights of bitsandbytes: the product of one token with one, and one widened to bfloat16.
//
// Two codes lie in a byte, the earlier column in its high half; consecutive blocks of 64 numbers share a scale. Both
// kernels look bytes up in shared memory, in a table that each lane (each pair of half warps) has a copy of, in banks of
// its own: selecting codes by arithmetic takes more instructions than an H100 has for the bytes that it can read.

typedef unsigned int u32;

// The word of a byte, at (byte * 32 + lane) words of the table: PRMT and IMAD use two pipes of the processor.
__device__ __forceinline__ u32 looked_up(const char* mine, u32 word, int byte) {
  return *(const u32*)(mine + __byte_perm(word, 0, 0x4440 + byte) * 128);
}

#define WARPS 8
#define TILE 16                 // rows that a block works on
#define VECTORS 2               // rounds of 4 lanes x 32 columns, 16 bytes of codes, that a warp takes of a row at a time
#define COLUMNS (128 * VECTORS)

struct Part {
  uint4 codes[VECTORS][2];      // [round][half of the rows]
  float scales[VECTORS / 2][2];
};

// Lane 4 g + t of a warp holds rows g and g + 8 of its part; of every round the t-th 32 columns, of every four scales
// the t-th.
__device__ __forceinline__ void fetch(Part& part, const uint4* __restrict__ codes, const float* __restrict__ scales,
                                      int tile, int chunk, int rows, int columns, bool gated, int g, int t) {
  const int blocks = columns >> 6, vectors = columns >> 5;
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const int of_y = gated ? tile * (TILE / 2) + g : tile * TILE + g + 8 * half;
    const bool in_rows = of_y < rows;
    const int row = gated ? of_y + half * rows : of_y;
#pragma unroll
    for (int v = 0; v < VECTORS; v++) {
      const int at = (chunk * VECTORS + v) * 4 + t;
      part.codes[v][half] =
          in_rows && at < vectors ? __ldcs(codes + (long long)row * vectors + at) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int u = 0; u < VECTORS / 2; u++) {
      const int block = chunk * (COLUMNS / 64) + 4 * u + t;
      part.scales[u][half] = in_rows && block < blocks ? __ldcs(scales + (long long)row * blocks + block) : 0.f;
    }
  }
}

__device__ __forceinline__ void multiply(float c[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float sum_of(const float partial[WARPS][TILE], int place, const unsigned short* bias, int row) {
  float total = bias ? __uint_as_float((u32)bias[row] << 16) : 0.f;
#pragma unroll
  for (int i = 0; i < WARPS; i++) total += partial[i][place];
  return total;
}

// To bfloat16: to the nearest, ties to even.
__device__ __forceinline__ unsigned short rounded(float number) {
  u32 bits = __float_as_uint(number);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
  return (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// y = W x + b: codes (rows, columns / 2) bytes, scales (rows, columns / 64), x (columns,) bfloat16, y (rows,).
//
// Of the tensor cores' 16 x 16 times 16 x 8 product, even columns here are sums over the even blocks of 64 columns of W
// and odd ones over the odd blocks, since scales differ between blocks: x is put where it belongs, and zero elsewhere.
// Every number is exact but for the float32 sums. Gated, W has the rows of a gate G and then those of U, `rows` each, and
// y = silu(G x + g) (U x + u): the halves of a tile are rows of the two.
__device__ __forceinline__ void product(const uint4* x, const uint4* __restrict__ codes,
                                        const float* __restrict__ scales, const u32* __restrict__ pairs,
                                        const unsigned short* __restrict__ bias, unsigned short* y, int rows,
                                        int columns, int gated) {
  __shared__ u32 table[256 * 32];
  __shared__ float partial[WARPS][TILE];
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int height = gated ? TILE / 2 : TILE;  // rows of y in a tile
  const int tiles = (rows + height - 1) / height, chunks = (columns + COLUMNS - 1) / COLUMNS, vectors = columns >> 5;
  const bool active = (t >> 1) == (g & 1);
  const bool idle = warp >= chunks;  // fewer parts of a row than warps
  Part now, next;
  if (!idle && blockIdx.x < tiles) fetch(now, codes, scales, blockIdx.x, warp, rows, columns, gated, g, t);
  const u32 value = pairs[threadIdx.x];
#pragma unroll
  for (int l = 0; l < 32; l++) table[threadIdx.x * 32 + ((l + lane) & 31)] = value;
  __syncthreads();
#if __CUDA_ARCH__ >= 900
  // The next kernel may begin (it waits likewise), and this one goes on once the last one has written x.
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  const char* mine = (const char*)(table + lane);
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float sum0 = 0.f, sum8 = 0.f;
    if (!idle) {
      for (int chunk = warp; chunk < chunks; chunk += WARPS) {
        const bool more = chunk + WARPS < chunks;
        const int next_tile = more ? tile : tile + gridDim.x, next_chunk = more ? chunk + WARPS : warp;
        if (next_tile < tiles) fetch(next, codes, scales, next_tile, next_chunk, rows, columns, gated, g, t);
        float c[VECTORS][4];
#pragma unroll
        for (int v = 0; v < VECTORS; v++) {
          const int at = (chunk * VECTORS + v) * 4 + t;
          const bool there = active && at < vectors;
          const u32 low[4] = {now.codes[v][0].x, now.codes[v][0].y, now.codes[v][0].z, now.codes[v][0].w};
          const u32 high[4] = {now.codes[v][1].x, now.codes[v][1].y, now.codes[v][1].z, now.codes[v][1].w};
#pragma unroll
          for (int i = 0; i < 4; i++) c[v][i] = 0.f;
#pragma unroll
          for (int i = 0; i < 4; i++) {
            const uint4 xs = there ? x[at * 4 + i] : make_uint4(0, 0, 0, 0);
            multiply(c[v], looked_up(mine, low[i], 0), looked_up(mine, high[i], 0), looked_up(mine, low[i], 1),
                     looked_up(mine, high[i], 1), xs.x, xs.y);
            multiply(c[v], looked_up(mine, low[i], 2), looked_up(mine, high[i], 2), looked_up(mine, low[i], 3),
                     looked_up(mine, high[i], 3), xs.z, xs.w);
          }
        }
        // Lanes of a row hold the same sums; each takes those of its scales.
#pragma unroll
        for (int u = 0; u < VECTORS / 2; u++) {
          const float* here = c[2 * u];
          const float* after = c[2 * u + 1];
          sum0 += (t & 2 ? (t & 1 ? after[1] : after[0]) : (t & 1 ? here[1] : here[0])) * now.scales[u][0];
          sum8 += (t & 2 ? (t & 1 ? after[3] : after[2]) : (t & 1 ? here[3] : here[2])) * now.scales[u][1];
        }
        now = next;
      }
    }
    sum0 += __shfl_xor_sync(~0u, sum0, 1);
    sum8 += __shfl_xor_sync(~0u, sum8, 1);
    sum0 += __shfl_xor_sync(~0u, sum0, 2);
    sum8 += __shfl_xor_sync(~0u, sum8, 2);
    if (t == 0) {
      partial[warp][g] = sum0;
      partial[warp][g + 8] = sum8;
    }
    __syncthreads();
    const int row = tile * height + threadIdx.x;
    if (threadIdx.x < height && row < rows) {
      float total = sum_of(partial, threadIdx.x, bias, row);
      if (gated) total = total / (1.f + __expf(-total)) * sum_of(partial, threadIdx.x + 8, bias, row + rows);
      y[row] = rounded(total);
    }
    __syncthreads();
  }
}

// The same for few tiles, with more registers a thread, and for many, with more threads.
#define PRODUCT(NAME, RESIDENT)                                                                                      \
  extern "C" __global__ void __launch_bounds__(32 * WARPS, RESIDENT)                                                 \
  NAME(const uint4* x, const uint4* __restrict__ codes, const float* __restrict__ scales,                            \
       const u32* __restrict__ pairs, const unsigned short* __restrict__ bias, unsigned short* y, int rows,          \
       int columns, int gated) {                                                                                     \
    product(x, codes, scales, pairs, bias, y, rows, columns, gated);                                                 \
  }
PRODUCT(nf4_product_2, 2)
PRODUCT(nf4_product_3, 3)

// bfloat16 numbers of a whole weight: code times scale in float32, rounded once. words: of 8 codes; pairs: the table.
#define UNROLL 4
extern "C" __global__ void __launch_bounds__(256)
nf4_widen(const u32* __restrict__ codes, const float* __restrict__ scales, const float2* __restrict__ pairs,
          uint4* __restrict__ out, int words) {
  __shared__ float2 table[256 * 16];
  const int lane = threadIdx.x & 15;
  const float2 value = pairs[threadIdx.x];
#pragma unroll
  for (int l = 0; l < 16; l++) table[threadIdx.x * 16 + ((l + lane) & 15)] = value;
  __syncthreads();
  const float2* mine = table + lane;
  const int step = gridDim.x * 256;
  for (long long first = blockIdx.x * 256 + threadIdx.x; first < words; first += UNROLL * step) {
    u32 q[UNROLL];
    float s[UNROLL];
#pragma unroll
    for (int i = 0; i < UNROLL; i++) {
      const long long at = first + (long long)i * step;
      q[i] = at < words ? __ldcs(codes + at) : 0;
      s[i] = at < words ? __ldg(scales + (at >> 3)) : 0.f;
    }
#pragma unroll
    for (int i = 0; i < UNROLL; i++) {
      const long long at = first + (long long)i * step;
      u32 r[4];
#pragma unroll
      for (int b = 0; b < 4; b++) {
        const float2 c = mine[((q[i] >> (8 * b)) & 0xff) * 16];
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r[b]) : "f"(c.y * s[i]), "f"(c.x * s[i]));
      }
      if (at < words) out[at] = make_uint4(r[0], r[1], r[2], r[3]);
    }
  }
}
