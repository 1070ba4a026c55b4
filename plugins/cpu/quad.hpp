// Loops over general quads. Quads are (count, 8), row by row: x1, y1, … x4, y4.
#pragma once

#include <cstddef>

namespace rgfl {

// out (N, M), row by row.
void quad_iou_matrix(const double* a, std::size_t count_a, const double* b, std::size_t count_b, double* out);

void quad_iou_pairwise(const double* a, const double* b, std::size_t count, double* out);

// out (count, 5): cx, cy, w, h, angle of the width in (−π, π]; not in canonical form. A quad with
// a coordinate that is not finite gives NaN.
void min_area_rectangles(const double* quads, std::size_t count, double* out);

}  // namespace rgfl
