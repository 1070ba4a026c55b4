// What compute-sanitizer looks for on a GPU, looked for in the emulated kernels: accesses outside the
// arrays (memcheck), reads of what nobody wrote (initcheck), and two accesses of which one writes that
// no barrier orders (racecheck, of global memory too).
//
// g++ -fsanitize=thread puts a call before every access to memory. The calls are answered here instead
// of by ThreadSanitizer, whose threads and locks are not those of a GPU:
//   - the lanes of a warp are ordered by __syncwarp (no ballot or shuffle orders memory), the warps of a
//     block by its barriers, and the blocks of a launch by nothing;
//   - launches follow each other;
//   - volatile and atomic accesses are strong: they do not race with each other.
// Memory is looked at in words of four bytes. What it sees in kernels translated from PTX (ptx.py) alone: an
// access further than `red_zone` beyond an array, and of shared memory its bounds and first values.
// It also counts a kernel's atomic additions, since a result does not show what it took.
#include <cxxabi.h>
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "emulator.hpp"

namespace emulator {
namespace {

constexpr size_t red_zone = 4096;  // bytes on either side of an array that belong to nobody
constexpr size_t most_findings = 20;
constexpr int64_t many = -1;

struct Access {
    bool write, strong;
};

// Who touched a word last. `lane` is many: several lanes of one warp, between two of its __syncwarp. `warp` too:
// several warps of one block, between two of its barriers. `block` too: several blocks.
struct Touch {
    unsigned launch = 0;
    int64_t block = many, warp = many, lane = many;
    unsigned barrier = 0, sync = 0;

    bool comes_before(const Place& now) const {
        return launch != now.launch || (block == now.block && barrier < now.barrier) ||
               (warp == now.warp && (lane == static_cast<int64_t>(now.lane) || sync < now.sync));
    }
    void add(const Place& now) {
        if (comes_before(now)) {
            *this = {now.launch, now.block, now.warp, now.lane, now.barrier, now.sync};
            return;
        }
        lane = warp == now.warp && lane == static_cast<int64_t>(now.lane) ? lane : many;
        warp = warp == now.warp ? warp : many;
        block = block == now.block ? block : many;
    }
};

struct Word {
    Touch touched[2][2];  // [write][strong]
    bool written = false;
};

struct Array {
    std::string name;
    uintptr_t begin, end;
    bool read_only;
    std::unique_ptr<Word[]> words;
};

std::vector<Array> arrays;
std::atomic<unsigned> first_launch{0};  // that touched a watched array
std::atomic<uint64_t> adds[16];         // of the launches since
std::atomic<bool> watching{false};
std::mutex word_locks[64];
std::mutex findings_lock;
std::vector<std::string> findings;
std::string findings_text;

// Arrays that are not watched are the block's shared memory.
thread_local std::unordered_map<uintptr_t, Word> shared_words;
thread_local unsigned shared_launch = 0;
thread_local int64_t shared_block = -1;

std::string kernel_name(const Place& place) {
    Dl_info info{};
    if (dladdr(place.kernel, &info) == 0 || info.dli_sname == nullptr) {
        return "a kernel";
    }
    int status = 0;
    char* readable = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
    std::string name = status == 0 ? readable : info.dli_sname;
    free(readable);
    return name.substr(0, name.find('('));
}

void report(const Place& place, const std::string& what, const std::string& where) {
    const std::string text = kernel_name(place) + ": block " + std::to_string(place.block) + ", warp " +
                             std::to_string(place.warp) + ", lane " + std::to_string(place.lane) + ": " + what +
                             " " + where;
    const std::lock_guard<std::mutex> guard(findings_lock);
    if (findings.size() < most_findings) {
        findings.push_back(text);
    }
}

void touch(Word& word, const Place& place, Access access, const std::string& name, uintptr_t offset) {
    const auto races_with = [&](bool write, bool strong) {
        return (access.write || write) && !(access.strong && strong) &&
               !word.touched[write][strong].comes_before(place);
    };
    if (races_with(false, false) || races_with(false, true) || races_with(true, false) || races_with(true, true)) {
        report(place, access.write ? "race, a write to" : "race, a read of", name + " + " + std::to_string(offset));
    }
    word.touched[access.write][access.strong].add(place);
}

// The words of shared memory are a block's.
void begin_block(const Place& place) {
    if (shared_launch != place.launch || shared_block != place.block) {
        shared_words.clear();
        shared_launch = place.launch;
        shared_block = place.block;
    }
}

// Whether the memory is there. What lies in no array is the block's shared memory, unless `global`.
bool look(const void* address, size_t bytes, Access access, bool global = false) {
    if (!watching.load(std::memory_order_relaxed)) {
        return true;
    }
    Place place{};
    if (!find_place(address, place)) {
        return true;  // on the host, or the thread's own stack
    }
    const auto first = reinterpret_cast<uintptr_t>(address), last = first + bytes;
    for (Array& array : arrays) {
        if (last <= array.begin - red_zone || first >= array.end + red_zone) {
            continue;
        }
        const auto where = array.name + " + " + std::to_string(static_cast<int64_t>(first - array.begin));
        if (first < array.begin || last > array.end) {
            report(place, access.write ? "out of bounds, a write to" : "out of bounds, a read of", where);
            return false;
        }
        if (!access.write) {
            unsigned none = 0;
            first_launch.compare_exchange_strong(none, place.launch);
        }
        if (access.write && array.read_only) {
            report(place, "a write to the input", where);
        }
        for (uintptr_t i = (first - array.begin) / 4; i <= (last - 1 - array.begin) / 4; ++i) {
            const std::lock_guard<std::mutex> guard(word_locks[i % 64]);
            Word& word = array.words[i];
            if (!access.write && !word.written) {
                report(place, "not initialised, a read of", where);
            }
            word.written |= access.write;
            touch(word, place, access, array.name, 4 * i);
        }
        return true;
    }
    if (global) {
        report(place, access.write ? "out of bounds, a write to" : "out of bounds, a read of", "memory of no array");
        return false;
    }
    begin_block(place);
    for (uintptr_t i = first / 4; i <= (last - 1) / 4; ++i) {
        touch(shared_words[i], place, access, "shared memory", 4 * i);
    }
    return true;
}

}  // namespace

bool accessed(const void* memory, size_t bytes, bool write, bool strong) {
    return look(memory, bytes, {write, strong}, true);
}

bool shared_accessed(const char* shared, size_t size, size_t begin, size_t bytes, bool write, bool strong) {
    Place place{};
    find_place(shared, place);
    begin_block(place);
    const std::string where = "shared memory + " + std::to_string(begin);
    if (begin + bytes > size) {
        report(place, write ? "out of bounds, a write to" : "out of bounds, a read of", where);
        return false;
    }
    for (size_t i = begin / 4; i <= (begin + bytes - 1) / 4; ++i) {
        Word& word = shared_words[i];
        if (!write && !word.written) {
            report(place, "not initialised, a read of", where);
        }
        word.written |= write;
        touch(word, place, {write, strong}, "shared memory", 4 * i);
    }
    return true;
}

void added() {
    Place place{};
    if (watching && find_place(nullptr, place)) {
        adds[(place.launch - first_launch) % 16] += 1;
    }
}

void host_wrote(const void* memory, size_t bytes) {
    const auto first = reinterpret_cast<uintptr_t>(memory);
    for (Array& array : arrays) {
        if (first >= array.begin && first + bytes <= array.end) {
            for (uintptr_t i = (first - array.begin) / 4; bytes > 0 && i <= (first + bytes - 1 - array.begin) / 4; ++i) {
                array.words[i].written = true;
            }
        }
    }
}

}  // namespace emulator

// ---- for the tests, by ctypes -----------------------------------------------------------------------

extern "C" const size_t emulator_red_zone = emulator::red_zone;

// From now on the array's accesses are checked. Around it lie `red_zone` bytes that nobody uses.
extern "C" void emulator_watch(const char* name, void* memory, size_t bytes, bool input) {
    using namespace emulator;
    const auto begin = reinterpret_cast<uintptr_t>(memory);
    if (!watching) {
        for (std::atomic<uint64_t>& count : adds) {
            count = 0;
        }
        first_launch = 0;
    }
    arrays.push_back({name, begin, begin + bytes, input, std::make_unique<Word[]>((bytes + 3) / 4)});
    if (input) {
        host_wrote(memory, bytes);
    }
    watching = true;
}

// Words of the array that no kernel wrote.
extern "C" size_t emulator_unwritten(const void* memory) {
    for (const emulator::Array& array : emulator::arrays) {
        if (array.begin == reinterpret_cast<uintptr_t>(memory)) {
            const size_t count = (array.end - array.begin + 3) / 4;
            return static_cast<size_t>(std::count_if(array.words.get(), array.words.get() + count,
                                                     [](const emulator::Word& word) { return !word.written; }));
        }
    }
    return 0;
}

// 32-bit atomic additions of the launch of this number, from 0.
extern "C" uint64_t emulator_adds(unsigned launch) { return emulator::adds[launch]; }

// Ends the watch; the first findings, a line each.
extern "C" const char* emulator_findings() {
    using namespace emulator;
    watching = false;
    arrays.clear();
    findings_text.clear();
    for (const std::string& finding : findings) {
        findings_text += finding + "\n";
    }
    findings.clear();
    return findings_text.c_str();
}

// ---- for the compiler -------------------------------------------------------------------------------

#define READ(size)                                                                                    \
    extern "C" void __tsan_read##size(void* address) { emulator::look(address, size, {false, false}); } \
    extern "C" void __tsan_volatile_read##size(void* address) { emulator::look(address, size, {false, true}); }
#define WRITE(size)                                                                                   \
    extern "C" void __tsan_write##size(void* address) { emulator::look(address, size, {true, false}); } \
    extern "C" void __tsan_volatile_write##size(void* address) { emulator::look(address, size, {true, true}); }
READ(1) READ(2) READ(4) READ(8) READ(16)
WRITE(1) WRITE(2) WRITE(4) WRITE(8) WRITE(16)

extern "C" void __tsan_read_range(void* address, size_t bytes) { emulator::look(address, bytes, {false, false}); }
extern "C" void __tsan_write_range(void* address, size_t bytes) { emulator::look(address, bytes, {true, false}); }
extern "C" int __tsan_atomic32_fetch_add(int* address, int value, int) {
    emulator::look(address, 4, {false, true});
    emulator::look(address, 4, {true, true});
    emulator::added();
    return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
extern "C" unsigned __tsan_atomic32_fetch_or(unsigned* address, unsigned value, int) {
    emulator::look(address, 4, {false, true});
    emulator::look(address, 4, {true, true});
    return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
extern "C" uint64_t __tsan_atomic64_fetch_or(uint64_t* address, uint64_t value, int) {
    emulator::look(address, 8, {false, true});
    emulator::look(address, 8, {true, true});
    return __atomic_fetch_or(address, value, __ATOMIC_RELAXED);
}
extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}
