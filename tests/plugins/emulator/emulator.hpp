// Between the emulator and its checker.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace emulator {

struct Place {
    const void* kernel;
    unsigned launch;  // from 1
    int64_t block, warp;  // the warp's number in the whole grid
    unsigned lane;
    unsigned sync;     // __syncwarp of the warp, so far
    unsigned barrier;  // of the block, so far
};

// Where the calling thread is in which kernel; false on the host, and for addresses on its own stack.
bool find_place(const void* address, Place& place);

// memset and memcpy from the host initialise memory.
void host_wrote(const void* memory, size_t bytes);

// ---- for kernels translated from PTX, see ptx.py -------------------------------------------------------

// A function to run in place of the kernel of this (mangled) name.
struct Translation {
    const char* kernel;
    void (*run)(const void* parameter);
    size_t parameter_bytes;

    Translation(const char* kernel, void (*run)(const void*), size_t parameter_bytes);
};

// Null where no kernel is translated.
const Translation* translation(const void* kernel, size_t parameter_bytes);

// Of global memory; false outside of all arrays.
bool accessed(const void* memory, size_t bytes, bool write, bool strong);
// Of the block's shared memory, which has `size` bytes; false outside of it.
bool shared_accessed(const char* shared, size_t size, size_t begin, size_t bytes, bool write, bool strong);
// By an atomic addition.
void added();

}  // namespace emulator
