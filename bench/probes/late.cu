// What the driver takes of the card when the first kernel of a kind is loaded and launched: one program for each MODE.
//     nvcc -O2 -arch=sm_90 -cudart static -DMODE=1 late.cu -o late_assert -ldl && ./late_assert
#include <cstdio>
#include <cstdlib>
#include <cassert>
#include <cstring>
#include <unistd.h>
#include <dlfcn.h>
#include <cuda_runtime.h>
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } info;
static void *card; static int (*get)(void*, unsigned*, info*);
static long mine() { info l[256]; unsigned n = 256; get(card, &n, l); for (unsigned i = 0; i < n; i++) if (l[i].pid == (unsigned)getpid()) return l[i].used >> 10; return -1; }

#define IS(x) (MODE == x)
#if MODE == 0
__global__ void k(float *o, int n) { o[threadIdx.x] = n; }
#elif MODE == 1
__global__ void k(float *o, int n) { assert(n > 0); o[threadIdx.x] = n; }
#elif MODE == 2
__global__ void k(float *o, int n) { if (n == 12345) printf("x\n"); o[threadIdx.x] = n; }
#elif MODE == 3
__global__ void k(float *o, int n) { if (n == 12345) { float *p = (float*)malloc(n); p[0] = 1; o[1] = p[0]; free(p);} o[threadIdx.x] = n; }
#elif MODE == 4
__device__ float f1(float x) { return x + 1; } __device__ float f2(float x) { return x * 2; }
typedef float (*fn)(float); __device__ fn table[2] = {f1, f2};
__global__ void k(float *o, int n) { o[threadIdx.x] = table[n & 1](o[threadIdx.x]); }
#elif MODE == 5
__device__ __noinline__ float rec(float x, int n) { return n <= 0 ? x : rec(x * 1.1f, n - 1) + 1; }
__global__ void k(float *o, int n) { o[threadIdx.x] = rec(1.f, n); }
#elif MODE == 6
__device__ char huge[64 << 20];
__global__ void k(float *o, int n) { o[threadIdx.x] = huge[threadIdx.x]; }
#elif MODE == 7
__global__ void k(float *o, int n) { if (n == 777) __trap(); o[threadIdx.x] = n; }
#elif MODE == 8
__global__ void k(float *o, int n) { double x = n; o[threadIdx.x] = (float)sin(x * 1e22) + (float)pow(x, 1.7); }
#elif MODE == 9
__global__ void k(float *o, int n) { float b[600]; for (int i = 0; i < 600; i++) b[i] = i * n; o[threadIdx.x] = b[(n * 7 + threadIdx.x) % 600]; }
#endif
int main(int c, char **v) {
  void *nv = dlopen("libnvidia-ml.so.1", RTLD_NOW); ((int(*)())dlsym(nv, "nvmlInit_v2"))(); ((int(*)(unsigned, void**))dlsym(nv, "nvmlDeviceGetHandleByIndex_v2"))(0, &card); get = (int(*)(void*, unsigned*, info*))dlsym(nv, "nvmlDeviceGetComputeRunningProcesses_v3");
  float *o; cudaMalloc(&o, 1 << 20); long a = mine();
  cudaFuncAttributes at; cudaFuncGetAttributes(&at, k); long b = mine();
  k<<<1, 32>>>(o, 3);
  cudaError_t e = cudaDeviceSynchronize();
  printf("%-10s attributes %ld launch %ld KiB local %zu regs %d %s\n", v[0], b - a, mine() - b, at.localSizeBytes, at.numRegs, cudaGetErrorString(e));
}
