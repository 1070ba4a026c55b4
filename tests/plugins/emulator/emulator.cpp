// See cuda_runtime.h in this folder.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "cuda_runtime.h"
#include "emulator.hpp"

thread_local dim3 threadIdx, blockIdx, gridDim;

namespace emulator {
namespace {

constexpr unsigned os_threads = 3;
constexpr size_t stack_bytes = 32 * 1024;
constexpr auto longest = std::chrono::minutes(5);  // of a block; the tests' take seconds

struct Warp {
    uint64_t slots[2][32];
    unsigned arrived = 0, meetings = 0, left = 0;
    Meeting kind{};      // of the next meeting, as the first to arrive says
    unsigned syncs = 0;  // the meetings that order memory
};

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[stack_bytes]};
    bool done = false;
};

// The block that this OS thread runs.
struct Block {
    const std::function<void()>* kernel;
    const void* address;  // of the kernel
    unsigned launch;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    ucontext_t scheduler;
    unsigned current = 0;
    unsigned arrived = 0, barriers = 0;  // at the barrier that threads wait for, and those that are over
    bool votes[2] = {};
};
thread_local Block* block = nullptr;

void yield() { swapcontext(&block->fibers[block->current].context, &block->scheduler); }

void fiber_main() {
    (*block->kernel)();
    block->fibers[block->current].done = true;
    block->warps[block->current / 32].left += 1;
    yield();
}

void prepare(Fiber& fiber) {
    fiber.done = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    makecontext(&fiber.context, fiber_main, 0);
}

void run_block(Block& run, unsigned seed) {
    block = &run;
    std::vector<unsigned> order(run.fibers.size());
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    for (Fiber& fiber : run.fibers) {
        prepare(fiber);
    }
    run.warps.assign((run.fibers.size() + 31) / 32, Warp{});
    run.arrived = run.barriers = 0;
    run.votes[0] = run.votes[1] = false;
    const auto started = std::chrono::steady_clock::now();
    for (bool running = true; running;) {
        running = false;
        if (std::chrono::steady_clock::now() - started > longest) {
            fprintf(stderr, "emulator: block %u waits for what never comes\n", blockIdx.x);
            abort();
        }
        for (unsigned i : order) {
            if (!run.fibers[i].done) {
                running = true;
                run.current = i;
                threadIdx = dim3(i);
                swapcontext(&run.scheduler, &run.fibers[i].context);
            }
        }
        std::this_thread::yield();  // another block may hold what this one waits for
    }
    block = nullptr;
}

unsigned seed_of_process() {
    const char* text = getenv("RGFL_EMULATOR_SEED");
    return text == nullptr ? 0u : static_cast<unsigned>(strtoul(text, nullptr, 10));
}

}  // namespace

void launch(dim3 grid, dim3 threads, const void* address, const std::function<void()>& kernel) {
    static std::atomic<unsigned> launches{0};
    const unsigned number = ++launches, seed = seed_of_process() + 7919u * (number - 1);
    std::vector<unsigned> blocks(grid.x);
    std::iota(blocks.begin(), blocks.end(), 0u);
    std::shuffle(blocks.begin(), blocks.end(), std::mt19937(seed));
    std::atomic<unsigned> next{0};
    const auto work = [&] {
        Block run;
        run.kernel = &kernel;
        run.address = address;
        run.launch = number;
        run.fibers = std::vector<Fiber>(threads.x);
        gridDim = grid;
        for (unsigned i = next++; i < grid.x; i = next++) {
            blockIdx = dim3(blocks[i]);
            run_block(run, seed + blocks[i]);
        }
    };
    std::vector<std::thread> workers;
    for (unsigned i = 0; i < std::min(os_threads, grid.x); ++i) {
        workers.emplace_back(work);
    }
    for (std::thread& worker : workers) {
        worker.join();
    }
}

const uint64_t* exchange(unsigned mask, uint64_t value, Meeting kind) {
    if (mask != 0xffffffffu) {
        fprintf(stderr, "emulator: only whole warps may meet, got mask %08x\n", mask);
        abort();
    }
    Warp& warp = block->warps[block->current / 32];
    const unsigned meeting = warp.meetings;
    uint64_t* slots = warp.slots[meeting % 2];
    slots[block->current % 32] = value;
    if (warp.arrived != 0 && warp.kind != kind) {
        fprintf(stderr, "emulator: some lanes are at a shuffle, ballot or sync, others at another of these\n");
        abort();
    }
    warp.kind = kind;
    if (++warp.arrived == 32) {
        warp.arrived = 0;
        warp.meetings += 1;
        warp.syncs += kind == Meeting::sync;
    }
    while (warp.meetings == meeting) {
        if (warp.left != 0) {
            fprintf(stderr, "emulator: %u lanes left while others wait for them\n", warp.left);
            abort();
        }
        yield();
    }
    return slots;
}

bool barrier(bool vote) {
    const unsigned number = block->barriers;
    block->votes[number % 2] |= vote;
    if (++block->arrived == block->fibers.size()) {
        block->arrived = 0;
        block->votes[(number + 1) % 2] = false;
        block->barriers += 1;
    }
    while (block->barriers == number) {
        if (std::any_of(block->fibers.begin(), block->fibers.end(), [](const Fiber& fiber) { return fiber.done; })) {
            fprintf(stderr, "emulator: threads left while others wait at a barrier\n");
            abort();
        }
        yield();
    }
    return block->votes[number % 2];
}

bool find_place(const void* address, Place& place) {
    if (block == nullptr) {
        return false;
    }
    const char* stack = block->fibers[block->current].stack.get();
    if (address >= stack && address < stack + stack_bytes) {
        return false;
    }
    const unsigned warp = block->current / 32;
    place = {block->address,
             block->launch,
             blockIdx.x,
             static_cast<int64_t>(blockIdx.x) * static_cast<int64_t>(block->warps.size()) + warp,
             block->current % 32,
             block->warps[warp].syncs,
             block->barriers};
    return true;
}

// ---- translated kernels -------------------------------------------------------------------------------

static std::vector<Translation>& translations() {
    static std::vector<Translation> all;
    return all;
}

Translation::Translation(const char* name, void (*function)(const void*), size_t bytes)
    : kernel(name), run(function), parameter_bytes(bytes) {
    translations().push_back(*this);
}

const Translation* translation(const void* kernel, size_t parameter_bytes) {
    if (translations().empty()) {
        return nullptr;
    }
    Dl_info info{};
    dladdr(kernel, &info);
    for (const Translation& one : translations()) {
        if (info.dli_sname != nullptr && strcmp(one.kernel, info.dli_sname) == 0 &&
            one.parameter_bytes == parameter_bytes) {
            return &one;
        }
    }
    fprintf(stderr, "emulator: no translation of the kernel %s\n", info.dli_sname);
    abort();
}

}  // namespace emulator
