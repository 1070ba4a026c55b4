#include "cpu/quad.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/quad.hpp"

namespace rgfl {
namespace {

Quad quad_at(const double* quads, std::size_t i) {
    Quad quad;
    for (std::size_t k = 0; k < 4; ++k) {
        quad.x[k] = quads[8 * i + 2 * k];
        quad.y[k] = quads[8 * i + 2 * k + 1];
    }
    return quad;
}

struct Bounds {
    double left, top, right, bottom;

    explicit Bounds(const Quad& quad)
        : left(*std::min_element(quad.x, quad.x + 4)),
          top(*std::min_element(quad.y, quad.y + 4)),
          right(*std::max_element(quad.x, quad.x + 4)),
          bottom(*std::max_element(quad.y, quad.y + 4)) {}

    bool meet(const Bounds& other) const {
        return left <= other.right && other.left <= right && top <= other.bottom && other.top <= bottom;
    }
};

}  // namespace

void quad_iou_matrix(const double* a, std::size_t count_a, const double* b, std::size_t count_b, double* out) {
    std::vector<Quad> quads_b;
    std::vector<Bounds> bounds_b;
    for (std::size_t j = 0; j < count_b; ++j) {
        quads_b.push_back(quad_at(b, j));
        bounds_b.emplace_back(quads_b.back());
    }
    for (std::size_t i = 0; i < count_a; ++i) {
        const Quad quad = quad_at(a, i);
        const Bounds bounds(quad);
        for (std::size_t j = 0; j < count_b; ++j) {
            out[i * count_b + j] = bounds.meet(bounds_b[j]) ? quad_iou(quad, quads_b[j]) : 0.0;
        }
    }
}

void quad_iou_pairwise(const double* a, const double* b, std::size_t count, double* out) {
    for (std::size_t i = 0; i < count; ++i) {
        const Quad p = quad_at(a, i), q = quad_at(b, i);
        out[i] = Bounds(p).meet(Bounds(q)) ? quad_iou(p, q) : 0.0;
    }
}

void min_area_rectangles(const double* quads, std::size_t count, double* out) {
    for (std::size_t i = 0; i < count; ++i) {
        const Quad quad = quad_at(quads, i);
        double* box = out + 5 * i;
        if (!is_finite(quad)) {
            std::fill(box, box + 5, std::numeric_limits<double>::quiet_NaN());
            continue;
        }
        const Rectangle rectangle = min_area_rectangle(quad);
        box[0] = rectangle.cx;
        box[1] = rectangle.cy;
        box[2] = rectangle.w;
        box[3] = rectangle.h;
        box[4] = std::atan2(rectangle.uy, rectangle.ux);
    }
}

}  // namespace rgfl
