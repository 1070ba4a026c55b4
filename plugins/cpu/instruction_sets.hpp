// The same loop compiled for several instruction sets, chosen when the module loads. The rules
// contain no fused multiply-add and no reordering, so every variant gives the same bits.
#pragma once

#if defined(__GNUC__) && defined(__x86_64__)
#define RGFL_X86_VARIANTS 1
#define RGFL_TARGET(isa) __attribute__((target(isa)))
#else
#define RGFL_X86_VARIANTS 0
#endif

namespace rgfl {

enum class InstructionSet { baseline, avx2, avx512 };

inline bool is_supported(InstructionSet set) {
#if RGFL_X86_VARIANTS
    __builtin_cpu_init();
    if (set == InstructionSet::avx512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw");
    }
    if (set == InstructionSet::avx2) {
        return __builtin_cpu_supports("avx2");
    }
#endif
    return set == InstructionSet::baseline;
}

inline InstructionSet best_instruction_set() {
    for (InstructionSet set : {InstructionSet::avx512, InstructionSet::avx2}) {
        if (is_supported(set)) {
            return set;
        }
    }
    return InstructionSet::baseline;
}

}  // namespace rgfl
