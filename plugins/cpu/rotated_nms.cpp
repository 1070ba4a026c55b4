#include "cpu/rotated_nms.hpp"

#include <algorithm>

#include "core/suppression.hpp"
#include "cpu/suppressor_tree.hpp"

namespace rgfl {
namespace {

// Indices of the boxes that have a rank, best first.
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

// The low 16 bits of x moved to the even places.
std::uint32_t spread_bits(std::uint32_t x) {
    x = (x | x << 8) & 0x00ff00ffu;
    x = (x | x << 4) & 0x0f0f0f0fu;
    x = (x | x << 2) & 0x33333333u;
    return (x | x << 1) & 0x55555555u;
}

// Places of centres along a Z-shaped curve through their bounds (Morton 1966): near on the curve
// is near in the image. Only speed depends on it.
class ZCurve {
public:
    explicit ZCurve(const std::vector<PreparedBox<float>>& boxes) : bounds_(WideBounds::none()) {
        for (const PreparedBox<float>& box : boxes) {
            bounds_.include({box.cx, box.cy, box.cx, box.cy});
        }
    }

    std::uint32_t operator()(const PreparedBox<float>& box) const {
        const std::uint32_t x = cell(box.cx, bounds_.left, bounds_.right);
        const std::uint32_t y = cell(box.cy, bounds_.top, bounds_.bottom);
        return spread_bits(x) | spread_bits(y) << 1;
    }

private:
    static std::uint32_t cell(double value, double low, double high) {
        return high > low ? static_cast<std::uint32_t>((value - low) / (high - low) * 65535.0) : 0u;
    }

    WideBounds bounds_;
};

// Where a candidate lies: which tree, and which place in it.
struct Place {
    std::size_t tree, place;
};

}  // namespace

std::vector<std::int64_t> rotated_nms_quadratic(const float* boxes, const float* scores,
                                                const std::int64_t* labels, std::size_t count,
                                                float threshold, InstructionSet) {
    std::vector<std::int64_t> kept;
    std::vector<PreparedBox<float>> kept_boxes;
    for (std::int64_t i : order_of_rank(scores, count)) {
        const PreparedBox<float> box = prepare(box_at(boxes, static_cast<std::size_t>(i)));
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
                                      std::size_t count, float threshold, InstructionSet set) {
    const std::vector<std::int64_t> order = order_of_rank(scores, count);
    std::vector<PreparedBox<float>> prepared;
    prepared.reserve(order.size());
    for (std::int64_t i : order) {
        prepared.push_back(prepare(box_at(boxes, static_cast<std::size_t>(i))));
    }

    // Candidates by class, then along the curve: one tree per class, neighbours in one block.
    struct Key {
        std::int64_t label;
        std::uint32_t curve, rank;
    };
    const ZCurve curve(prepared);
    std::vector<Key> keys;
    keys.reserve(order.size());
    for (std::size_t rank = 0; rank < order.size(); ++rank) {
        const std::int64_t label = labels == nullptr ? 0 : labels[order[rank]];
        keys.push_back({label, curve(prepared[rank]), static_cast<std::uint32_t>(rank)});
    }
    std::sort(keys.begin(), keys.end(), [](const Key& a, const Key& b) {
        return a.label != b.label ? a.label < b.label : a.curve != b.curve ? a.curve < b.curve : a.rank < b.rank;
    });
    std::vector<SuppressorTree> trees;
    std::vector<Place> places(order.size());
    for (std::size_t first = 0; first < keys.size();) {
        std::size_t end = first;
        while (end < keys.size() && keys[end].label == keys[first].label) {
            places[keys[end].rank] = {trees.size(), end - first};
            ++end;
        }
        trees.emplace_back(end - first);
        first = end;
    }

    std::vector<std::int64_t> kept;
    for (std::size_t rank = 0; rank < order.size(); ++rank) {
        const PreparedBox<float>& box = prepared[rank];
        SuppressorTree& tree = trees[places[rank].tree];
        if (!tree.suppresses(box, threshold, set)) {
            tree.keep(places[rank].place, box);
            kept.push_back(order[rank]);
        }
    }
    return kept;
}

}  // namespace rgfl
