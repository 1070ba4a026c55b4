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

}  // namespace emulator
