// A CUDA runtime small enough to run the kernels of plugins/cuda on a CPU, for the tests of their
// indexing: this header is found in place of NVIDIA's when g++ compiles the .cu file.
//
// Each thread of a block is a fiber, blocks run side by side on a few OS threads, a warp's lanes meet at every
// warp operation, and a block's threads at every barrier. One that leaves while others wait aborts. The
// order of fibers and blocks is shuffled by RGFL_EMULATOR_SEED, so that repeated runs see other schedules.
// checker.cpp looks at what they read and write.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <functional>

#include "emulator.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local  // an OS thread runs one block at a time

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

extern thread_local dim3 threadIdx, blockIdx, gridDim;

namespace emulator {

void launch(dim3 grid, dim3 block, const void* address, const std::function<void()>& kernel);
enum class Meeting { shuffle, ballot, sync };  // of a warp's lanes; the last alone orders memory

// Waits for the 32 lanes and returns what each brought.
const uint64_t* exchange(unsigned mask, uint64_t value, Meeting meeting);
// Waits for all threads of the block; whether any of them voted.
bool barrier(bool vote);

template <class T>
uint64_t to_bits(T value) {
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    return bits;
}

template <class T>
T from_bits(uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace emulator

// ---- host side: one device, whose stream is the calling thread ---------------------------------------

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
enum cudaMemcpyKind { cudaMemcpyDefault = 4 };
using cudaStream_t = void*;
using cudaEvent_t = void*;

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes = 0;
    cudaStream_t stream = nullptr;
};

inline cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
    *value = 1;
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
    memset(memory, value, bytes);
    emulator::host_wrote(memory, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
    *memory = malloc(bytes);
    return cudaSuccess;
}
inline cudaError_t cudaFree(void* memory) {
    free(memory);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    memcpy(to, from, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "invalid argument";
}
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
    const void* address = reinterpret_cast<const void*>(kernel);
    const void* first[] = {&arguments...};  // all that a translated kernel takes
    const auto* translation = emulator::translation(address, (sizeof(Parameters) + ...));
    emulator::launch(config->gridDim, config->blockDim, address,
                     [&] { translation == nullptr ? kernel(arguments...) : translation->run(first[0]); });
    return cudaSuccess;
}

// ---- device side: what the kernels use ---------------------------------------------------------------

template <class T>
T __shfl_sync(unsigned mask, T value, int source) {
    return emulator::from_bits<T>(emulator::exchange(mask, emulator::to_bits(value), emulator::Meeting::shuffle)[source & 31]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip) {
    return __shfl_sync(mask, value, static_cast<int>(threadIdx.x % 32) ^ flip);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int step) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    return __shfl_sync(mask, value, lane < step ? lane : lane - step);
}
inline unsigned __ballot_sync(unsigned mask, bool vote) {
    const uint64_t* votes = emulator::exchange(mask, vote, emulator::Meeting::ballot);
    unsigned ballot = 0;
    for (int lane = 0; lane < 32; ++lane) {
        ballot |= static_cast<unsigned>(votes[lane]) << lane;
    }
    return ballot;
}
inline bool __any_sync(unsigned mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulator::exchange(mask, 0, emulator::Meeting::sync); }
inline void __syncthreads() { emulator::barrier(false); }
inline int __syncthreads_or(int vote) { return emulator::barrier(vote != 0); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline unsigned __float_as_uint(float value) { return static_cast<unsigned>(emulator::to_bits(value)); }
inline float __uint_as_float(unsigned bits) { return emulator::from_bits<float>(bits); }
template <class T>
T atomicAdd(T* address, T value) {
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
template <class T>
T atomicOr(T* address, T value) {
    return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
