// The rules of rotated NMS. Loops and indices belong to the backends.
#pragma once

#include <stdint.h>

#include "core/rotated_iou.hpp"

namespace rgfl {

// A NaN or −∞ score has no rank: such a box is never kept and suppresses nothing.
RGFL_HOST_DEVICE bool has_rank(float score) { return score >= -Limits<float>::largest; }

// Higher score first, then lower index: a strict order of boxes that have a rank.
RGFL_HOST_DEVICE bool ranks_before(float score_a, int64_t index_a, float score_b, int64_t index_b) {
    return score_a > score_b || (score_a == score_b && index_a < index_b);
}

// Whether the kept box `a`, which ranks before `b`, removes `b`: strictly above the threshold, and
// of the same class. Degenerate boxes have IoU 0, so they neither suppress nor are suppressed.
RGFL_HOST_DEVICE bool suppresses(const PreparedBox<float>& a, const PreparedBox<float>& b, float threshold) {
    return bounds_meet(a, b) && rotated_iou(a, b) > threshold;
}

}  // namespace rgfl
