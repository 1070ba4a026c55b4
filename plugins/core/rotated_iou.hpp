// IoU of two rotated boxes, exact up to rounding, without vertices, sorting or epsilon lists.
//
// Area of A ∩ B by Green's theorem in the frame of A: walk the edges of B and add, for each, the
// integral of clamp(y, −H, H) dx over the part of the edge with x in [−W, W]. Every term is
// continuous in its inputs, so touching, nested, equal and parallel boxes need no special case.
#pragma once

#include "core/scalar.hpp"
#include "core/trigonometry.hpp"

namespace rgfl {

// Pixels, x right, y down; `angle` in radians turns x towards y. See rgfl/boxes.py for the drawing.
template <class T>
struct RotatedBox {
    T cx, cy, w, h, angle;
};

// What the IoU needs of a box, computed once per box.
template <class T>
struct PreparedBox {
    T cx, cy;
    T cos, sin;            // of the angle
    T half_w, half_h;
    T area;                // 0 for a degenerate box
    T extent_x, extent_y;  // half sizes of the upright bounds; −largest for a degenerate box
};

// False, and IoU 0 with everything, where a number is NaN or infinite or a side is not in
// [1e-18, 1e18] ([1e-150, 1e150] in double): zero, negative, or too extreme for its square.
template <class T>
RGFL_HOST_DEVICE bool has_area(const RotatedBox<T>& box) {
    using L = Limits<T>;
    return absolute(box.cx) <= L::largest && absolute(box.cy) <= L::largest &&
           absolute(box.angle) <= L::largest && box.w >= L::side_min && box.w <= L::side_max &&
           box.h >= L::side_min && box.h <= L::side_max;
}

template <class T>
RGFL_HOST_DEVICE PreparedBox<T> prepare(const RotatedBox<T>& box) {
    if (!has_area(box)) {
        return {0, 0, 1, 0, 0, 0, 0, -Limits<T>::largest, -Limits<T>::largest};
    }
    const SinCos turn = sin_cos(static_cast<double>(box.angle));
    const T c = static_cast<T>(turn.cos), s = static_cast<T>(turn.sin);
    const T half_w = box.w * T(0.5), half_h = box.h * T(0.5);
    return {box.cx,
            box.cy,
            c,
            s,
            half_w,
            half_h,
            box.w * box.h,
            absolute(c) * half_w + absolute(s) * half_h,
            absolute(s) * half_w + absolute(c) * half_h};
}

// False where the upright bounds are apart, and then the IoU is exactly 0: the cheap first test,
// and what lets a spatial index skip pairs without changing any result.
template <class T>
RGFL_HOST_DEVICE bool bounds_meet(const PreparedBox<T>& a, const PreparedBox<T>& b) {
    return (absolute(b.cx - a.cx) <= a.extent_x + b.extent_x) &
           (absolute(b.cy - a.cy) <= a.extent_y + b.extent_y);
}

// dy/dx of an edge; 0 where it is so steep that its extent in x is below rounding.
template <class T>
RGFL_HOST_DEVICE T slope_of_edge(T ex, T ey) {
    const bool vertical = absolute(ex) <= Limits<T>::steep * absolute(ey);
    const T slope = ey / (vertical ? T(1) : ex);
    return vertical ? T(0) : slope;
}

// 2 ∫ clamp(y, −H, H) dx along the line through (px, py), from x = x0 to x = x1.
//
// The mean of the clamped line is half of c0 + c1, its clamped ends, plus what the clamping bends;
// in this form a line wholly inside or wholly outside the band gives its mean without rounding,
// and a flat one (y1 = y0) needs a guard only against 0/0.
template <class T>
RGFL_HOST_DEVICE T clamped_edge_integral(T px, T py, T slope, T x0, T x1, T H) {
    const T y0 = py + (x0 - px) * slope, y1 = py + (x1 - px) * slope;
    const T c0 = clamp(y0, -H, H), c1 = clamp(y1, -H, H);
    const T m0 = larger(absolute(y0), H), m1 = larger(absolute(y1), H);
    const T dy = y1 - y0, ends = c0 + c1;
    const T bend = ends * ((c1 - c0) - dy) + (H + H) * (m1 - m0);
    return (ends + bend / (dy == T(0) ? T(1) : dy)) * (x1 - x0);
}

// Area of A ∩ B for boxes whose bounds meet. `a` is the frame: A and B are not exchangeable to
// the last bit, so NMS passes the higher-ranked box first on every backend.
template <class T>
RGFL_HOST_DEVICE T intersection_area(const PreparedBox<T>& a, const PreparedBox<T>& b) {
    const T W = a.half_w, H = a.half_h;
    // B in the frame of A: centre (x, y), half axes u along its width and v along its height.
    const T dx = b.cx - a.cx, dy = b.cy - a.cy;
    const T x = a.cos * dx + a.sin * dy, y = a.cos * dy - a.sin * dx;
    const T c = a.cos * b.cos + a.sin * b.sin, s = a.cos * b.sin - a.sin * b.cos;
    const T ux = b.half_w * c, uy = b.half_w * s;
    const T vx = -(b.half_h * s), vy = b.half_h * c;

    // Its corners in the order of rgfl/boxes.py, and their x limited to A.
    const T left = x - ux, right = x + ux, left_y = y - uy, right_y = y + uy;
    const T x1 = left - vx, x2 = right - vx, x3 = right + vx, x4 = left + vx;
    const T y1 = left_y - vy, y2 = right_y - vy, y3 = right_y + vy, y4 = left_y + vy;
    const T k1 = clamp(x1, -W, W), k2 = clamp(x2, -W, W), k3 = clamp(x3, -W, W), k4 = clamp(x4, -W, W);

    // Where both ends of an edge are limited to the same side, x does not move and nothing is added.
    const T u_slope = slope_of_edge(ux, uy), v_slope = slope_of_edge(vx, vy);
    const T twice_negative = clamped_edge_integral(x1, y1, u_slope, k1, k2, H) +
                             clamped_edge_integral(x2, y2, v_slope, k2, k3, H) +
                             clamped_edge_integral(x3, y3, u_slope, k3, k4, H) +
                             clamped_edge_integral(x4, y4, v_slope, k4, k1, H);
    return clamp(T(-0.5) * twice_negative, T(0), smaller(a.area, b.area));
}

// Intersection over union, in [0, 1]; 0 for a degenerate box.
template <class T>
RGFL_HOST_DEVICE T rotated_iou(const PreparedBox<T>& a, const PreparedBox<T>& b) {
    const T both = intersection_area(a, b);
    const T iou = both / (a.area + b.area - both);
    return bounds_meet(a, b) ? iou : T(0);
}

}  // namespace rgfl
