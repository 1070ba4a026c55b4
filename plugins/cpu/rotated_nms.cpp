#include "cpu/rotated_nms.hpp"

#include <algorithm>

#include "core/suppression.hpp"

namespace rgfl {
namespace {

std::vector<std::int64_t> order_of_rank(const float* scores, std::size_t count) {
    std::vector<std::int64_t> order;
    order.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        if (has_rank(scores[i])) {
            order.push_back(static_cast<std::int64_t>(i));
        }
    }
    std::sort(order.begin(), order.end(), [scores](std::int64_t a, std::int64_t b) {
        return ranks_before(scores[a], a, scores[b], b);
    });
    return order;
}

PreparedBox<float> prepared_at(const float* boxes, std::int64_t i) {
    const float* box = boxes + 5 * i;
    return prepare(RotatedBox<float>{box[0], box[1], box[2], box[3], box[4]});
}

}  // namespace

std::vector<std::int64_t> rotated_nms_quadratic(const float* boxes, const float* scores,
                                                const std::int64_t* labels, std::size_t count,
                                                float threshold) {
    std::vector<std::int64_t> kept;
    std::vector<PreparedBox<float>> kept_boxes;
    for (std::int64_t i : order_of_rank(scores, count)) {
        const PreparedBox<float> box = prepared_at(boxes, i);
        bool suppressed = false;
        for (std::size_t k = 0; k < kept.size() && !suppressed; ++k) {
            const bool same_class = labels == nullptr || labels[kept[k]] == labels[i];
            suppressed = same_class && suppresses(kept_boxes[k], box, threshold);
        }
        if (!suppressed) {
            kept.push_back(i);
            kept_boxes.push_back(box);
        }
    }
    return kept;
}

std::vector<std::int64_t> rotated_nms(const float* boxes, const float* scores, const std::int64_t* labels,
                                      std::size_t count, float threshold) {
    return rotated_nms_quadratic(boxes, scores, labels, count, threshold);
}

}  // namespace rgfl
