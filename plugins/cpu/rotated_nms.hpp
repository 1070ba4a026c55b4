// Rotated NMS over a whole scene.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/instruction_sets.hpp"

namespace rgfl {

// Indices kept, in order of rank. `boxes` is (count, 5) row by row; `labels` may be null (one class).
std::vector<std::int64_t> rotated_nms(const float* boxes, const float* scores, const std::int64_t* labels,
                                      std::size_t count, float threshold, InstructionSet set);

// The definition, every pair compared: the twin that tests hold the other against.
std::vector<std::int64_t> rotated_nms_quadratic(const float* boxes, const float* scores,
                                                const std::int64_t* labels, std::size_t count,
                                                float threshold, InstructionSet set);

}  // namespace rgfl
