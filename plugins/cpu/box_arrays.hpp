// Prepared boxes as one array per number, which is what vector loops read.
#pragma once

#include <cstddef>
#include <vector>

#include "core/rotated_iou.hpp"

namespace rgfl {

// Row `i` of (N, 5) boxes.
template <class T>
RotatedBox<T> box_at(const T* boxes, std::size_t i) {
    const T* box = boxes + 5 * i;
    return {box[0], box[1], box[2], box[3], box[4]};
}

// A view: nine pointers.
template <class T>
struct BoxColumns {
    static constexpr std::size_t count = 9;

    const T *cx, *cy, *cos, *sin, *half_w, *half_h, *area, *extent_x, *extent_y;

    // Columns that lie `stride` numbers apart.
    static BoxColumns strided(const T* p, std::size_t stride) {
        return {p,
                p + stride,
                p + 2 * stride,
                p + 3 * stride,
                p + 4 * stride,
                p + 5 * stride,
                p + 6 * stride,
                p + 7 * stride,
                p + 8 * stride};
    }
    // Writes box `i` of columns that lie `stride` numbers apart.
    static void write(T* p, std::size_t stride, std::size_t i, const PreparedBox<T>& box) {
        const T values[count] = {box.cx,     box.cy,   box.cos,      box.sin,     box.half_w,
                                 box.half_h, box.area, box.extent_x, box.extent_y};
        for (std::size_t column = 0; column < count; ++column) {
            p[column * stride + i] = values[column];
        }
    }

    RGFL_HOST_DEVICE PreparedBox<T> operator[](std::size_t i) const {
        return {cx[i], cy[i], cos[i], sin[i], half_w[i], half_h[i], area[i], extent_x[i], extent_y[i]};
    }
    BoxColumns from(std::size_t i) const {
        return {cx + i, cy + i, cos + i, sin + i, half_w + i, half_h + i, area + i, extent_x + i, extent_y + i};
    }
};

template <class T>
class BoxArrays {
public:
    // `boxes` is (size, 5), row by row: cx, cy, w, h, angle.
    BoxArrays(const T* boxes, std::size_t size) : size_(size), numbers_(BoxColumns<T>::count * size) {
        for (std::size_t i = 0; i < size; ++i) {
            BoxColumns<T>::write(numbers_.data(), size, i, prepare(box_at(boxes, i)));
        }
    }

    std::size_t size() const { return size_; }
    BoxColumns<T> columns() const { return BoxColumns<T>::strided(numbers_.data(), size_); }

private:
    std::size_t size_;
    std::vector<T> numbers_;
};

}  // namespace rgfl
