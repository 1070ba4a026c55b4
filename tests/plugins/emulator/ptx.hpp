// What the translated instructions do; see ptx.py.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <limits>
#include <type_traits>

#include "cuda_fp16.h"
#include "cuda_runtime.h"
#include "emulator.hpp"

namespace ptx {

// The bits of a register, read as the instruction's type: an instruction may read less than a whole register.
template <class To, class From>
To as(From value) {
    static_assert(sizeof(To) <= sizeof(From), "a register holds all of a value");
    To result;
    memcpy(&result, &value, sizeof result);
    return result;
}
template <class Value, class Register>
void put(Register& place, Value value) {
    if constexpr (std::is_integral_v<Value> && sizeof(Register) > sizeof(Value)) {
        place = static_cast<Register>(static_cast<std::conditional_t<std::is_signed_v<Value>, int64_t, uint64_t>>(value));
    } else {
        place = as<Register>(value);
    }
}
template <class Low, class High>
void unpack(uint64_t value, Low& low, High& high) {
    low = static_cast<uint32_t>(value);
    high = static_cast<uint32_t>(value >> 32);
}
inline uint64_t packed(uint32_t low, uint32_t high) { return static_cast<uint64_t>(high) << 32 | low; }
inline uint64_t address_of(const void* memory) { return reinterpret_cast<uint64_t>(memory); }

// ---- memory -------------------------------------------------------------------------------------------

// A block's shared memory; addresses of it count from its beginning.
struct Shared {
    uint32_t bytes;
};
inline thread_local char shared_memory[48 * 1024];  // an OS thread runs one block at a time

inline void expect_aligned(uint64_t address, size_t bytes) {
    if (address % bytes != 0) {
        fprintf(stderr, "emulator: misaligned address %#llx of %zu bytes\n", static_cast<unsigned long long>(address), bytes);
        abort();
    }
}
inline void* global(uint64_t address, size_t bytes, bool write, bool strong) {
    expect_aligned(address, bytes);
    void* memory = reinterpret_cast<void*>(address);
    return emulator::accessed(memory, bytes, write, strong) ? memory : nullptr;
}
inline void* of_block(Shared shared, uint32_t address, size_t bytes, bool write, bool strong) {
    expect_aligned(address, bytes);
    return emulator::shared_accessed(shared_memory, shared.bytes, address, bytes, write, strong)
               ? shared_memory + address
               : nullptr;
}
template <class T>
T read(const void* memory) {
    return *static_cast<const volatile T*>(memory);
}
template <class T>
void write(void* memory, T value) {
    *static_cast<volatile T*>(memory) = value;
}

template <class T, class Register>
void load_global(uint64_t address, bool strong, Register& to) {
    const void* memory = global(address, sizeof(T), false, strong);
    put<T>(to, memory == nullptr ? T{} : read<T>(memory));
}
template <class T>
void store_global(uint64_t address, bool strong, T value) {
    if (void* memory = global(address, sizeof(T), true, strong)) {
        write(memory, value);
    }
}
template <class T, class Register>
void load_shared(Shared shared, uint32_t address, bool strong, Register& to) {
    const void* memory = of_block(shared, address, sizeof(T), false, strong);
    put<T>(to, memory == nullptr ? T{} : read<T>(memory));
}
template <class T>
void store_shared(Shared shared, uint32_t address, bool strong, T value) {
    if (void* memory = of_block(shared, address, sizeof(T), true, strong)) {
        write(memory, value);
    }
}
// Local memory and parameters: on the thread's own stack.
template <class T, class... Registers>
void load_own(uint64_t address, Registers&... to) {
    expect_aligned(address, sizeof(T) * sizeof...(to));
    (..., (put<T>(to, read<T>(reinterpret_cast<const void*>(address))), address += sizeof(T)));
}
template <class T, class... Values>
void store_own(uint64_t address, Values... values) {
    expect_aligned(address, sizeof(T) * sizeof...(values));
    (..., (write<T>(reinterpret_cast<void*>(address), values), address += sizeof(T)));
}

inline uint32_t add_global(uint64_t address, uint32_t value) {
    global(address, 4, false, true);
    void* memory = global(address, 4, true, true);
    emulator::added();
    return memory == nullptr ? 0 : __atomic_fetch_add(static_cast<uint32_t*>(memory), value, __ATOMIC_RELAXED);
}
inline uint32_t or_shared(Shared shared, uint32_t address, uint32_t value) {
    of_block(shared, address, 4, false, true);
    void* memory = of_block(shared, address, 4, true, true);
    return memory == nullptr ? 0 : __atomic_fetch_or(static_cast<uint32_t*>(memory), value, __ATOMIC_RELAXED);
}

// ---- warps --------------------------------------------------------------------------------------------

inline uint32_t take_from(uint32_t mask, uint32_t value, int source, bool inside, bool& was_inside) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    was_inside = inside;
    return __shfl_sync(mask, value, inside ? source : lane);
}
inline void expect_bounds(uint32_t got, uint32_t whole_warp) {
    if (got != whole_warp) {
        fprintf(stderr, "emulator: only shuffles over whole warps are known, got %#x\n", got);
        abort();
    }
}
inline uint32_t shuffle_idx(uint32_t value, uint32_t source, uint32_t bounds, uint32_t mask, bool& inside) {
    expect_bounds(bounds, 31);
    return take_from(mask, value, static_cast<int>(source % 32), true, inside);
}
inline uint32_t shuffle_bfly(uint32_t value, uint32_t flip, uint32_t bounds, uint32_t mask, bool& inside) {
    expect_bounds(bounds, 31);
    return take_from(mask, value, static_cast<int>(threadIdx.x % 32 ^ flip % 32), true, inside);
}
inline uint32_t shuffle_up(uint32_t value, uint32_t step, uint32_t bounds, uint32_t mask, bool& inside) {
    expect_bounds(bounds, 0);
    const int source = static_cast<int>(threadIdx.x % 32) - static_cast<int>(step % 32);
    return take_from(mask, value, source, source >= 0, inside);
}

// ---- arithmetic ---------------------------------------------------------------------------------------

template <class T>
T shl(T value, uint32_t count) {
    return count >= 8 * sizeof(T) ? T{0} : static_cast<T>(value << count);
}
template <class T>
T shr(T value, uint32_t count) {
    const uint32_t most = 8 * sizeof(T) - 1;
    return count > most ? static_cast<T>(std::is_signed_v<T> ? value >> most : 0) : static_cast<T>(value >> count);
}
template <class T>
T abs(T value) {
    return std::is_floating_point_v<T> ? static_cast<T>(fabs(value)) : value < 0 ? -value : value;
}
// Of a NaN and a number the number; −0 is less than 0.
template <class T>
T max(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
        return a != a ? b : b != b ? a : a == b ? (signbit(a) ? b : a) : a > b ? a : b;
    } else {
        return a > b ? a : b;
    }
}
template <class T>
T min(T a, T b) {
    if constexpr (std::is_floating_point_v<T>) {
        return a != a ? b : b != b ? a : a == b ? (signbit(a) ? a : b) : a < b ? a : b;
    } else {
        return a < b ? a : b;
    }
}
inline int32_t truncated(double value) {
    return value >= INT32_MAX ? INT32_MAX : value > INT32_MIN ? static_cast<int32_t>(value) : INT32_MIN;  // NaN, too
}
// How far to the left its first bit may be moved.
inline uint32_t shift_of(uint32_t bits) {
    return bits == 0 ? 0xffffffffu : static_cast<uint32_t>(__builtin_clz(bits));
}
inline uint32_t reversed(uint32_t bits) {
    uint32_t result = 0;
    for (int i = 0; i < 32; ++i) {
        result |= (bits >> i & 1u) << (31 - i);
    }
    return result;
}
// The low `count` bits of `bits` in place of those of `into` from `first` on.
inline uint64_t inserted(uint64_t bits, uint64_t into, uint32_t first, uint32_t count) {
    const uint64_t mask = shl(shl<uint64_t>(1, count) - 1, first);
    return (shl(bits, first) & mask) | (into & ~mask);
}
inline uint32_t funnel_left(uint32_t low, uint32_t high, uint32_t count) {
    return static_cast<uint32_t>(((static_cast<uint64_t>(high) << 32 | low) << count % 32) >> 32);
}

}  // namespace ptx
