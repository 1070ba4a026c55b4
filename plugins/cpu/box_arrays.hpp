// Prepared boxes as one array per number, which is what vector loops read.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "core/rotated_iou.hpp"

namespace rgfl {

// A view: nine pointers.
template <class T>
struct BoxColumns {
    const T *cx, *cy, *cos, *sin, *half_w, *half_h, *area, *extent_x, *extent_y;

    RGFL_HOST_DEVICE PreparedBox<T> operator[](std::size_t i) const {
        return {cx[i], cy[i], cos[i], sin[i], half_w[i], half_h[i], area[i], extent_x[i], extent_y[i]};
    }
    RGFL_HOST_DEVICE BoxColumns from(std::size_t i) const {
        return {cx + i, cy + i, cos + i, sin + i, half_w + i, half_h + i, area + i, extent_x + i, extent_y + i};
    }
};

template <class T>
class BoxArrays {
public:
    explicit BoxArrays(std::size_t size) : size_(size), numbers_(9 * size) {}

    // `boxes` is (size, 5), row by row: cx, cy, w, h, angle.
    static BoxArrays prepared(const T* boxes, std::size_t size) {
        BoxArrays arrays(size);
        for (std::size_t i = 0; i < size; ++i) {
            const T* box = boxes + 5 * i;
            arrays.set(i, prepare(RotatedBox<T>{box[0], box[1], box[2], box[3], box[4]}));
        }
        return arrays;
    }

    std::size_t size() const { return size_; }

    void set(std::size_t i, const PreparedBox<T>& box) {
        const T values[9] = {box.cx,     box.cy,   box.cos,      box.sin,     box.half_w,
                             box.half_h, box.area, box.extent_x, box.extent_y};
        for (std::size_t k = 0; k < 9; ++k) {
            numbers_[k * size_ + i] = values[k];
        }
    }

    BoxColumns<T> columns() const {
        const T* p = numbers_.data();
        const std::size_t n = size_;
        return {p,         p + n,     p + 2 * n, p + 3 * n, p + 4 * n,
                p + 5 * n, p + 6 * n, p + 7 * n, p + 8 * n};
    }

private:
    std::size_t size_;
    std::vector<T> numbers_;
};

}  // namespace rgfl
