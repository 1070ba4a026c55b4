#include "cpu/suppressor_tree.hpp"

namespace rgfl {
namespace {

RGFL_HOST_DEVICE bool any_in_block(const BoxColumns<float> block, const PreparedBox<float> candidate,
                                   float threshold) {
    int meets = 0;
    for (std::size_t k = 0; k < block_size; ++k) {
        meets |= bounds_meet(block[k], candidate);
    }
    if (meets == 0) {
        return false;
    }
    int suppressed = 0;
    for (std::size_t k = 0; k < block_size; ++k) {
        suppressed |= suppresses(block[k], candidate, threshold);
    }
    return suppressed != 0;
}

#if RGFL_X86_VARIANTS
RGFL_TARGET("avx2")
bool any_in_block_avx2(const BoxColumns<float>& block, const PreparedBox<float>& candidate, float threshold) {
    return any_in_block(block, candidate, threshold);
}
#endif

}  // namespace

bool any_suppresses(const BoxColumns<float>& block, const PreparedBox<float>& candidate, float threshold,
                    InstructionSet set) {
#if RGFL_X86_VARIANTS
    if (set != InstructionSet::baseline) {
        return any_in_block_avx2(block, candidate, threshold);
    }
#endif
    (void)set;
    return any_in_block(block, candidate, threshold);
}

}  // namespace rgfl
