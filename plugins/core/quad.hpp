// General quads: IoU by winding numbers, and the rectangle of least area.
#pragma once

#include <math.h>

#include "core/scalar.hpp"

namespace rgfl {

// Four corners in order, in pixels. Any shape: convex, concave, self-crossing, either direction.
struct Quad {
    double x[4], y[4];
};

RGFL_HOST_DEVICE bool is_finite(const Quad& quad) {
    bool finite = true;
    for (int i = 0; i < 4; ++i) {
        finite &= absolute(quad.x[i]) <= 1e150 && absolute(quad.y[i]) <= 1e150;
    }
    return finite;
}

// Shoelace formula about the first corner; the sign tells the direction.
RGFL_HOST_DEVICE double signed_area(const Quad& quad) {
    return 0.5 * ((quad.x[2] - quad.x[0]) * (quad.y[3] - quad.y[1]) -
                  (quad.x[3] - quad.x[1]) * (quad.y[2] - quad.y[0]));
}

// Whether the quad is turned round before it is compared, so that its area is not negative.
// A rectangle with two corners swapped crosses itself into halves that cancel: rounding decides the sign
// of its area, and with it that of the intersection. There we round as the devkit does, by its sum, in its
// order; elsewhere that sum would only lose digits far from the origin.
RGFL_HOST_DEVICE bool is_turned(const Quad& quad, double area) {
    const double first = absolute(quad.x[2] - quad.x[0]) + absolute(quad.y[2] - quad.y[0]);
    const double second = absolute(quad.x[3] - quad.x[1]) + absolute(quad.y[3] - quad.y[1]);
    if (absolute(area) > 1e-6 * first * second) {
        return area < 0.0;
    }
    double sum = 0.0;
    for (int i = 0; i < 4; ++i) {
        const int next = (i + 1) & 3;
        sum += quad.x[i] * quad.y[next] - quad.y[i] * quad.x[next];
    }
    return sum < 0.0;
}

// ∫ min(y_e, y_f) dx over the columns that edge e (p→q) and edge f (r→s) share, negative where
// the two run in opposite directions.
RGFL_HOST_DEVICE double shared_column_integral(double px, double py, double qx, double qy, double rx,
                                               double ry, double sx, double sy) {
    const double sign = (px < qx) == (rx < sx) ? 1.0 : -1.0;
    const double left = larger(smaller(px, qx), smaller(rx, sx));
    const double right = smaller(larger(px, qx), larger(rx, sx));
    if (!(left < right)) {
        return 0.0;
    }
    const double ex = qx - px, ey = qy - py, fx = sx - rx, fy = sy - ry;
    const double e0 = py + (left - px) / ex * ey, e1 = py + (right - px) / ex * ey;
    const double f0 = ry + (left - rx) / fx * fy, f1 = ry + (right - rx) / fx * fy;
    const double d0 = f0 - e0, d1 = f1 - e1;
    const double low0 = smaller(d0, 0.0), low1 = smaller(d1, 0.0);
    // Mean over the columns of min(0, d) for d running linearly from d0 to d1.
    const double spread = absolute(d1 - d0);
    const bool crosses = (d0 < 0.0) != (d1 < 0.0);
    const double low = low0 + low1;
    const double mean = crosses && spread > 0.0 ? -0.5 * low * low / spread : 0.5 * low;
    return sign * (right - left) * (0.5 * (e0 + e1) + mean);
}

// ∫ wp·wq over the plane, with w the winding number of each quad; `opposite`: one of them is turned round.
// A quad's winding number is the signed count of its edges above a point, so the integral is a
// sum over pairs of edges.
RGFL_HOST_DEVICE double winding_intersection(const Quad& p, const Quad& q, bool opposite) {
    const double ox = p.x[0], oy = p.y[0];
    double sum = 0.0;
    for (int i = 0; i < 4; ++i) {
        const int in = (i + 1) & 3;
        for (int j = 0; j < 4; ++j) {
            const int jn = (j + 1) & 3;
            sum += shared_column_integral(p.x[i] - ox, p.y[i] - oy, p.x[in] - ox, p.y[in] - oy,
                                          q.x[j] - ox, q.y[j] - oy, q.x[jn] - ox, q.y[jn] - oy);
        }
    }
    return opposite ? -sum : sum;
}

// The DOTA devkit's IoU: intersection by winding numbers over |P| + |Q| − intersection. In [0, 1]
// for quads that do not cross themselves; a self-crossing one may leave it. 0 for quads with a
// coordinate that is NaN, infinite or beyond 1e150, and where the union is 0 up to rounding.
RGFL_HOST_DEVICE double quad_iou(const Quad& p, const Quad& q) {
    if (!is_finite(p) || !is_finite(q)) {
        return 0.0;
    }
    const double area_p = signed_area(p), area_q = signed_area(q);
    const double both = winding_intersection(p, q, is_turned(p, area_p) != is_turned(q, area_q));
    const double areas = absolute(area_p) + absolute(area_q);
    const double either = areas - both;
    // Quads that cross themselves can have a union of 0, and then the quotient is rounding noise.
    return absolute(either) > 1e-12 * (areas + absolute(both)) ? both / either : 0.0;
}

// A rectangle by its centre, its sides and the unit direction of its width.
struct Rectangle {
    double cx, cy, w, h, ux, uy;
};

// The rectangle of least area around the corners. One of its sides lies on an edge of their
// convex hull, which is an edge or a diagonal of the quad; the first least one wins.
RGFL_HOST_DEVICE Rectangle min_area_rectangle(const Quad& quad) {
    const int from[6] = {0, 1, 2, 3, 0, 1}, to[6] = {1, 2, 3, 0, 2, 3};
    Rectangle best = {quad.x[0], quad.y[0], 0.0, 0.0, 1.0, 0.0};
    double best_area = -1.0;
    for (int k = 0; k < 6; ++k) {
        const double ex = quad.x[to[k]] - quad.x[from[k]], ey = quad.y[to[k]] - quad.y[from[k]];
        const double length = sqrt(ex * ex + ey * ey);
        if (!(length > 0.0)) {
            continue;
        }
        const double ux = ex / length, uy = ey / length;
        double a0 = 0.0, a1 = 0.0, b0 = 0.0, b1 = 0.0;  // bounds along u and across it, from corner 0
        for (int i = 1; i < 4; ++i) {
            const double dx = quad.x[i] - quad.x[0], dy = quad.y[i] - quad.y[0];
            const double a = dx * ux + dy * uy, b = dy * ux - dx * uy;
            a0 = smaller(a0, a);
            a1 = larger(a1, a);
            b0 = smaller(b0, b);
            b1 = larger(b1, b);
        }
        const double w = a1 - a0, h = b1 - b0, area = w * h;
        // A later direction must be better by more than rounding, so that a rectangle keeps its own sides.
        if (best_area < 0.0 || area < best_area * (1.0 - 1e-12)) {
            const double a = 0.5 * (a0 + a1), b = 0.5 * (b0 + b1);
            best = {quad.x[0] + a * ux - b * uy, quad.y[0] + a * uy + b * ux, w, h, ux, uy};
            best_area = area;
        }
    }
    return best;
}

}  // namespace rgfl
