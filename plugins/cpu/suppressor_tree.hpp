// The kept boxes of one class, found again by place: a binary tree over blocks of boxes that lie
// together. Every candidate's place is fixed beforehand, so the tree's shape never changes; the
// bounds of a node are those of the boxes *kept* so far below it, and empty ones are never entered.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/suppression.hpp"
#include "cpu/box_arrays.hpp"
#include "cpu/instruction_sets.hpp"

namespace rgfl {

// Boxes tested together: one vector of AVX2.
constexpr std::size_t block_size = 8;

// Whether one of the block's boxes suppresses `candidate`.
bool any_suppresses(const BoxColumns<float>& block, const PreparedBox<float>& candidate, float threshold,
                    InstructionSet set);

// Upright bounds, a little wider than the extents that `bounds_meet` compares in float: what the
// rule calls meeting always meets here too, so skipping by these bounds changes no result.
struct WideBounds {
    double left, top, right, bottom;

    static WideBounds none() {
        constexpr double infinity = std::numeric_limits<double>::infinity();
        return {infinity, infinity, -infinity, -infinity};
    }
    static WideBounds of(const PreparedBox<float>& box) {
        const double reach_x = box.extent_x * (1.0 + 1e-6), reach_y = box.extent_y * (1.0 + 1e-6);
        return {box.cx - reach_x, box.cy - reach_y, box.cx + reach_x, box.cy + reach_y};
    }
    bool meet(const WideBounds& other) const {
        // Without short circuits: which of the four fails is not predictable.
        return (left <= other.right) & (other.left <= right) & (top <= other.bottom) & (other.top <= bottom);
    }
    void include(const WideBounds& other) {
        left = smaller(left, other.left);
        top = smaller(top, other.top);
        right = larger(right, other.right);
        bottom = larger(bottom, other.bottom);
    }
};

class SuppressorTree {
public:
    explicit SuppressorTree(std::size_t places) {
        const std::size_t blocks = (places + block_size - 1) / block_size;
        while (first_leaf_ < blocks) {
            first_leaf_ *= 2;
        }
        bounds_.assign(2 * first_leaf_, WideBounds::none());
        used_.assign(blocks, 0);
        // A block of degenerate boxes, which suppress nothing.
        numbers_.assign(blocks * block_numbers, 0.0f);
        for (std::size_t block = 0; block < blocks; ++block) {
            for (std::size_t k = 0; k < block_size; ++k) {
                set(block, k, prepare(RotatedBox<float>{0, 0, 0, 0, 0}));
            }
        }
    }

    void keep(std::size_t place, const PreparedBox<float>& box) {
        const std::size_t block = place / block_size;
        set(block, used_[block]++, box);
        const WideBounds bounds = WideBounds::of(box);
        for (std::size_t node = first_leaf_ + block; node >= 1; node /= 2) {
            bounds_[node].include(bounds);
        }
    }

    bool suppresses(const PreparedBox<float>& candidate, float threshold, InstructionSet set) const {
        const WideBounds bounds = WideBounds::of(candidate);
        std::size_t stack[8 * sizeof(std::size_t)];
        std::size_t height = 0;
        // A node is written always and counted where its bounds meet, so nothing here mispredicts.
        const auto push = [&](std::size_t node) {
            stack[height] = node;
            height += bounds_[node].meet(bounds);
        };
        push(1);
        while (height > 0) {
            const std::size_t node = stack[--height];
            if (node < first_leaf_) {
                push(2 * node + 1);
                push(2 * node);
            } else if (any_suppresses(block_at(node - first_leaf_), candidate, threshold, set)) {
                return true;
            }
        }
        return false;
    }

private:
    static constexpr std::size_t block_numbers = BoxColumns<float>::count * block_size;

    void set(std::size_t block, std::size_t k, const PreparedBox<float>& box) {
        BoxColumns<float>::write(numbers_.data() + block * block_numbers, block_size, k, box);
    }

    BoxColumns<float> block_at(std::size_t block) const {
        return BoxColumns<float>::strided(numbers_.data() + block * block_numbers, block_size);
    }

    std::size_t first_leaf_ = 1;       // a power of two; node i has the children 2i and 2i + 1
    std::vector<WideBounds> bounds_;   // by node; the root is 1
    std::vector<unsigned char> used_;  // boxes in each block
    std::vector<float> numbers_;       // block by block, column by column
};

}  // namespace rgfl
