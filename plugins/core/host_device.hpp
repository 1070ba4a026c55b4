// One macro so that a rule compiles for the CPU, for CUDA and for CPU tests of what CUDA will do.
#pragma once

#if defined(__CUDACC__)
#define RGFL_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__)
// Always inlined, so that one rule serves loops compiled for several instruction sets.
#define RGFL_HOST_DEVICE inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define RGFL_HOST_DEVICE __forceinline
#else
#define RGFL_HOST_DEVICE inline
#endif
